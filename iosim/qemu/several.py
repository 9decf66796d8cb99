"""Several machines on one host: a file with several QEMU commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from iosim.errors import IosimError
from iosim.qemu.machine import Machine
from iosim.qemu.path import Path, network_path

DEFAULT_MAC = "52:54:00:12:34:56"
"""The address of a QEMU's first NIC, whoever else has it (net/net.c, qemu_macaddr_default_if_unset)."""


def network_paths(machines: Sequence[Machine]) -> Path:
    """Say which model simulates the machines' network: of several, guests of one host that are all alike.

    ``guest.vms`` is how many there are, if it is not one.

    Raises:
        IosimError: As for `network_path`; or they are not alike.
    """
    first, *others = (network_path(machine) for machine in machines)
    for machine, path in zip(machines[1:], others, strict=True):
        where = machine.nics[0].where if machine.nics else machine.source
        if path.model != first.model:
            raise IosimError(
                f"this machine asks for {path.model}, the first in the file for {first.model}; guests on one host are "
                "simulated if they are alike",
                where,
            )
        for key in sorted({*first.settings, *path.settings}):
            mine, theirs = path.settings.get(key, "not given"), first.settings.get(key, "not given")
            if mine != theirs:
                raise IosimError(
                    f"{key} is {mine} for this machine, and {theirs} for the first in the file; guests on one host are "
                    "simulated if they are alike",
                    where,
                )
    if not others:
        return first
    notes = list(dict.fromkeys(note for path in (first, *others) for note in path.notes))
    return replace(first, settings={**first.settings, "guest.vms": len(machines)}, notes=[*_same_mac(machines), *notes])


def _same_mac(machines: Sequence[Machine]) -> list[str]:
    """A remark where NICs have one address: on a real bridge only one of the guests would get its packets."""
    taken: set[str] = set()
    for machine in machines:
        for nic in machine.nics[:1]:
            mac = nic.properties.get("mac", DEFAULT_MAC).lower()
            if mac in taken:
                default = ", QEMU's default" if mac == DEFAULT_MAC else ""
                return [f"{nic.where}: two guests have the address {mac}{default}; on a bridge give each its own mac="]
            taken.add(mac)
    return []
