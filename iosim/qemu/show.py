"""A machine as a table for people and as a document for programs."""

from __future__ import annotations

import dataclasses
import re

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iosim.qemu.machine import Disk, Machine, Nic

_PLAIN = re.compile(r"00:")


def render(machine: Machine) -> RenderableType:
    """Return the machine as a table of its devices by slot, with remarks under it."""
    parts: list[RenderableType] = [Text(_title(machine), style="bold"), _table(machine)]
    parts += [Text(f"warning: {line}", style="yellow") for line in machine.warnings]
    parts += [Text(f"note: {line}", style="dim") for line in machine.notes]
    return Group(*parts)


def to_dict(machine: Machine) -> dict[str, object]:
    """Return the machine as plain lists and dictionaries, ready for JSON."""
    return dataclasses.asdict(
        machine,
        dict_factory=lambda items: {
            key: list(value) if isinstance(value, tuple) else value for key, value in items if key != "where"
        },
    )


def _title(machine: Machine) -> str:
    cpus = f"{machine.vcpus} vCPU{'s' if machine.vcpus > 1 else ''}"
    return (
        f"{machine.source}: {machine.machine_type}, {cpus}, {machine.memory_mib} MiB, {machine.accelerator}"
    )


def _table(machine: Machine) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("slot", no_wrap=True)
    table.add_column("device", overflow="fold")
    table.add_column("guest driver", overflow="fold")
    table.add_column("back end", overflow="fold")
    rows = [(device.slot, 0, device.description, device.guest_driver, "") for device in machine.others]
    rows += [(nic.slot, 1, nic.model, nic.guest_driver, _nic_backend(nic)) for nic in machine.nics]
    rows += [(disk.slot, 1, disk.model, disk.guest_driver, _disk_backend(disk)) for disk in machine.disks]
    previous = ""
    # Devices of the first bus before those behind bridges; what has no PCI address at the end.
    for slot, _, device, driver, backend in sorted(rows, key=_order):
        # A disk shares the slot of its controller, which the row above it shows.
        table.add_row("" if slot == previous else slot, Text(device), Text(driver), Text(backend))
        previous = slot
    return table


def _order(row: tuple[str, int, str, str, str]) -> tuple[bool, bool, str, int]:
    return (not row[0], not _PLAIN.match(row[0]), row[0], row[1])


def _nic_backend(nic: Nic) -> str:
    words = [nic.backend]
    if nic.vhost and nic.backend == "tap":
        words.append("vhost-net in the host kernel")
    elif nic.is_virtio and nic.backend in ("tap", "bridge"):
        words.append("rings served by QEMU")
    elif nic.backend in ("tap", "bridge"):
        words.append("emulated by QEMU")
    if nic.through_hub:
        words.append("through QEMU's hub, no offloads")
    if nic.queues > 1:
        words.append(f"{nic.queues} queues")
    given = [f"{key}={value}" for key, value in nic.properties.items()]
    return ", ".join(words + given)


def _disk_backend(disk: Disk) -> str:
    if not disk.file:
        return "empty"
    return f"{disk.file} ({disk.format})" if disk.format else disk.file
