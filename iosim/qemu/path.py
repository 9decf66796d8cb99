"""Which I/O path a machine's network takes, as far as iosim has a model of it."""

from __future__ import annotations

from dataclasses import dataclass

from iosim.errors import IosimError
from iosim.qemu.machine import Machine, Nic
from iosim.qemu.name_list import name_list
from iosim.qemu.options import FALSE, TRUE, whole_number
from iosim.settings import MOST_QUEUE_PAIRS

#: NICs that are emulated in full, and the model of each: those of one driver are simulated as one of them.
_EMULATED = {
    **dict.fromkeys(name_list("e1000 e1000-82544gc e1000-82545em"), "e1000"),
    **{name: name for name in name_list("ne2k_pci rtl8139 pcnet i82551 i82557b i82559er")},
    **dict.fromkeys(
        name_list("i82550 i82557a i82557c i82558a i82558b i82559a i82559b i82559c i82562 i82801"), "i82551"
    ),
}
_MODELS = "there is ne2k_pci, i82551, i82557b, i82559er, rtl8139, e1000, pcnet, virtio-net, vhost-net"
#: Back ends whose far end is something other than a tap: what becomes of the packets.
_OTHER_ENDS = {
    "user": "packets end in QEMU's own TCP/IP stack (slirp), not at a NIC of the host",
    "vhost-user": "the rings are served by a process that iosim knows nothing about",
    "vhost-vdpa": "the rings are served by hardware",
    "none": "the NIC has no back end",
}
#: virtio-net properties with no bearing on the path, or that a setting carries.
_WITHOUT_NOTE = frozenset(
    name_list("""
        mac tx rx_queue_size tx_queue_size event_idx x-txburst ioeventfd packed mq vectors multifunction
        bootindex romfile rombar romsize status speed duplex acpi-index mitigation autonegotiation csum host_tso4
    """)
)


@dataclass(frozen=True)
class Path:
    """A model by its registered name, its settings by their dotted names, and remarks for the user."""

    model: str
    settings: dict[str, object]
    notes: list[str]


def network_path(machine: Machine) -> Path:
    """Say which model simulates the machine's network, with which settings.

    Settings are given only where the command line says something: ``device.tx_queue_size`` and
    ``device.rx_queue_size`` (descriptors), ``device.event_idx``, ``device.tx_burst`` (packets; QEMU's
    x-txburst), ``device.csum``, ``device.host_tso4`` and ``device.vnet_hdr`` (offloads), ``device.mitigation`` (the
    e1000's interrupt mitigation), ``device.hub`` (joined by ``-net``),
    ``device.queues`` (queue pairs that the guest uses) and ``guest.vcpus`` (those they belong to).

    Raises:
        IosimError: iosim has no model of what the machine asks for; says which part, and what there is.
    """
    nic = _only_nic(machine)
    notes = _disk_notes(machine)
    found = None
    if nic.model in _EMULATED:
        found = _emulated(nic, notes)
    elif nic.is_virtio:
        found = _virtio(nic, notes, machine.vcpus)
    if found is not None:
        if nic.through_hub and found.model != "vhost-net":
            found.settings["device.hub"] = True
        return found
    raise IosimError(f"no model of the {nic.model} yet; {_MODELS}", nic.where)


def _only_nic(machine: Machine) -> Nic:
    if not machine.nics:
        raise IosimError(
            "this machine has no NIC; a network path needs one, as -nic tap gives it", machine.source
        )
    if len(machine.nics) > 1:
        asked = ", ".join(f"{nic.slot} {nic.model}" for nic in machine.nics)
        count = {2: "two", 3: "three", 4: "four"}.get(len(machine.nics), str(len(machine.nics)))
        default = (
            "; -netdev with its -device leaves out the one QEMU adds" if machine.nics[0].line == 0 else ""
        )
        raise IosimError(
            f"this asks for {count} NICs ({asked}); iosim simulates one{default}", machine.nics[1].where
        )
    return machine.nics[0]


def _disk_notes(machine: Machine) -> list[str]:
    names = {"ide": "IDE", "scsi": "SCSI", "nvme": "NVMe", "usb": "USB"}
    kinds = dict.fromkeys(
        f"{names.get(disk.interface, disk.interface)} ({disk.guest_driver})"
        for disk in machine.disks
        if disk.guest_driver and disk.interface not in ("floppy", "pflash")
    )
    return [f"disk: {kind}; iosim compares the network path" for kind in kinds]


def _check_backend(nic: Nic) -> None:
    if nic.backend in _OTHER_ENDS:
        raise IosimError(
            f"iosim cannot simulate the back end {nic.backend}: {_OTHER_ENDS[nic.backend]}; "
            "it simulates tap and bridge",
            nic.where,
        )
    if "+" in nic.backend:
        raise IosimError(
            f"iosim cannot simulate a hub with several back ends ({nic.backend.replace('+', ', ')}); "
            "it simulates one tap",
            nic.where,
        )
    if nic.backend not in ("tap", "bridge"):
        raise IosimError(
            f"iosim cannot simulate the back end {nic.backend}; it simulates tap and bridge", nic.where
        )
    if nic.backend_options.get("ifname", "").startswith("macvtap"):
        raise IosimError("iosim cannot simulate macvtap; it simulates a tap on a bridge", nic.where)


def _hub_notes(nic: Nic) -> list[str]:
    if not nic.through_hub:
        return []
    hint = "; -netdev joins it directly" if nic.is_virtio else ""
    return [f"the NIC goes through QEMU's hub (-net): no checksum or segmentation offload{hint}"]


def _emulated(nic: Nic, notes: list[str]) -> Path:
    _check_backend(nic)
    model = _EMULATED[nic.model]
    settings: dict[str, object] = {}
    if model == "e1000" and "mitigation" in nic.properties:
        settings["device.mitigation"] = _is_on(nic, "mitigation", True)
    if nic.model != model:
        chip = " (82540EM)" if model == "e1000" else ""
        notes = [f"{nic.model} is simulated as {model}{chip}", *notes]
    if _asks_vhost(nic):
        notes = ["QEMU ignores vhost=on for a NIC that is not virtio", *notes]
    return Path(model, settings, [*_hub_notes(nic), *notes])


def _asks_vhost(nic: Nic) -> bool:
    return nic.backend_options.get("vhost") in TRUE


def _virtio(nic: Nic, notes: list[str], vcpus: int) -> Path:
    _check_backend(nic)
    _refuse(nic)
    notes = [*_hub_notes(nic), *notes]
    settings = _queue_pairs(nic, notes, vcpus)
    for name in ("rx_queue_size", "tx_queue_size"):
        if name in nic.properties:
            settings[f"device.{name}"] = whole_number(nic.properties[name])
    if "event_idx" in nic.properties:
        settings["device.event_idx"] = _is_on(nic, "event_idx", True)
    for name in ("csum", "host_tso4"):
        if name in nic.properties:
            settings[f"device.{name}"] = _is_on(nic, name, True)
    if not nic.vnet_hdr and not nic.through_hub:
        settings["device.vnet_hdr"] = False
    if "x-txburst" in nic.properties:
        if nic.vhost:
            notes.append("x-txburst is QEMU's; with vhost the kernel serves the ring")
        else:
            settings["device.tx_burst"] = whole_number(nic.properties["x-txburst"])
    if "poll-us" in nic.backend_options and nic.vhost:
        notes.append("poll-us is not simulated: vhost does not busy-poll here")
    unsimulated = [f"{k}={v}" for k, v in nic.properties.items() if k not in _WITHOUT_NOTE]
    if unsimulated:
        notes.append(f"not simulated: {', '.join(unsimulated)}")
    if "fd" in nic.backend_options or "fds" in nic.backend_options:
        notes.append("fd= is taken for a tap on a bridge; a macvtap would cost something else")
    return Path("vhost-net" if nic.vhost else "virtio-net", settings, notes)


def _queue_pairs(nic: Nic, notes: list[str], vcpus: int) -> dict[str, object]:
    """Return the settings for the queue pairs that the guest uses: as many as it has vCPUs (``virtnet_probe``)."""
    if nic.queues == 1:
        return {}
    if not _is_on(nic, "mq", False):
        notes.append(f"the tap has {nic.queues} queues, and without mq=on the guest uses one")
        return {}
    # vp_find_vqs: a vector for changes of the configuration and one a queue, or else one for all queues together. The
    # control queue has no callback. QEMU's own default (since 5.2) is one more than that.
    vectors = whole_number(nic.properties.get("vectors", "")) or 2 * nic.queues + 2
    if vectors < 2 * nic.queues + 1:
        raise IosimError(
            f"iosim cannot simulate vectors={vectors} for {nic.queues} queue pairs, with which all queues share one; "
            f"it simulates one for each, as vectors={2 * nic.queues + 2} gives",
            nic.where,
        )
    used = min(nic.queues, vcpus)
    if used > MOST_QUEUE_PAIRS:
        raise IosimError(f"iosim cannot simulate {used} queue pairs; it simulates up to {MOST_QUEUE_PAIRS}", nic.where)
    if used < nic.queues:
        has = "one vCPU" if vcpus == 1 else f"{vcpus} vCPUs"
        notes.append(f"the guest has {has} (-smp) and uses as many of the {nic.queues} queue pairs")
    elif used < vcpus:
        notes.append(f"of the guest's {vcpus} vCPUs those are simulated that the {used} queue pairs belong to")
    return {} if used == 1 else {"device.queues": used, "guest.vcpus": used}


def _refuse(nic: Nic) -> None:
    """Refuse the virtio-net properties that change the path into one iosim has no model of."""
    if _is_on(nic, "packed", False):
        raise IosimError("iosim cannot simulate packed=on in a path yet; it simulates split rings", nic.where)
    if not _is_on(nic, "ioeventfd", True):
        raise IosimError(
            "iosim cannot simulate ioeventfd=off: each kick would go through QEMU on the vCPU's thread; "
            "it simulates ioeventfd=on",
            nic.where,
        )
    if whole_number(nic.properties.get("vectors", "3")) == 0:
        raise IosimError(
            "iosim cannot simulate vectors=0 (INTx for a virtio NIC); it simulates MSI-X", nic.where
        )
    if nic.properties.get("tx") == "timer":
        raise IosimError("iosim cannot simulate tx=timer; it simulates tx=bh", nic.where)


def _is_on(nic: Nic, name: str, default: bool) -> bool:
    value = nic.properties.get(name)
    return default if value is None else value in TRUE or (value not in FALSE and default)
