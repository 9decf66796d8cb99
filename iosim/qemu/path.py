"""Which I/O path a machine's network takes, as far as iosim has a model of it."""

from __future__ import annotations

from dataclasses import dataclass

from iosim.errors import IosimError
from iosim.host.virtio_pci import OWN, SHARED, interrupt_mode
from iosim.qemu.machine import Machine, Nic, PciDevice
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
#: Devices of the host that are passed through.
_VFIO = ("vfio-pci", "vfio-pci-nohotplug")
_MODELS = "there is ne2k_pci, i82551, i82557b, i82559er, rtl8139, e1000, pcnet, virtio-net, vhost-net, vhost-user, vfio"
#: Back ends whose far end is something other than a tap: what becomes of the packets.
_OTHER_ENDS = {
    "user": "packets end in QEMU's own TCP/IP stack (slirp), not at a NIC of the host",
    "vhost-user": "it serves virtqueues, so only virtio NICs have it",
    "vhost-vdpa": "the rings are served by hardware",
    "none": "the NIC has no back end",
}
#: virtio-net properties with no bearing on the path, or that a setting carries.
_WITHOUT_NOTE = frozenset(
    name_list("""
        mac tx rx_queue_size tx_queue_size event_idx indirect_desc x-txburst x-txtimer ioeventfd packed mq vectors
        mrg_rxbuf disable-modern disable-legacy multifunction bootindex romfile rombar romsize status speed
        duplex acpi-index mitigation autonegotiation csum host_tso4 guest_csum guest_tso4
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
    ``device.rx_queue_size`` (descriptors), ``device.event_idx``, ``device.packed``, ``device.indirect`` (QEMU's
    indirect_desc), ``device.mrg_rxbuf``, ``device.csum``, ``device.host_tso4``, ``device.guest_csum``,
    ``device.guest_tso4`` and ``device.vnet_hdr`` (offloads), ``device.vectors``, ``device.disable_modern``,
    ``device.ioeventfd``, ``device.tx``, ``device.tx_timer`` (QEMU's x-txtimer), ``device.tx_burst`` (packets; QEMU's
    x-txburst), ``device.poll_us`` (the tap's poll-us), ``device.mitigation`` (the e1000's interrupt mitigation),
    ``device.hub`` (joined by ``-net``), ``device.queues`` (queue pairs that the guest uses), ``guest.vcpus`` (those
    they belong to) and ``host.pv_eoi`` (-cpu's kvm-pv-eoi).

    Raises:
        IosimError: iosim has no model of what the machine asks for; says which part, and what there is.
    """
    path = _network_path(machine)
    features = machine.cpu_features
    off = [f"{name}=off" for name in ("kvm", "kvm-pv-eoi") if features.get(name) == "off"]
    if off:
        # Without KVM's signature the guest uses none of its paravirtual features.
        path.settings["host.pv_eoi"] = False
        path.notes.append(f"-cpu {','.join(off)}: without PV EOI (host.pv_eoi=off) an interrupt's end exits")
    if features.get("x2apic") == "off":
        path.notes.append("not simulated: -cpu x2apic=off; here the local APIC is written as an MSR")
    return path


def _network_path(machine: Machine) -> Path:
    notes = _disk_notes(machine)
    passed = [device for device in machine.others if device.model in _VFIO]
    if passed and not machine.nics:
        return _vfio(machine, passed, notes)
    if passed:
        notes = [_not_the_nic(machine, passed[0]), *notes]
    nic = _only_nic(machine)
    found = None
    if nic.model in _EMULATED:
        found = _emulated(nic, notes)
    elif nic.is_virtio and nic.backend == "vhost-user":
        found = _vhost_user(nic, notes, machine.vcpus)
    elif nic.is_virtio:
        found = _virtio(nic, notes, machine.vcpus)
    if found is not None:
        if nic.through_hub and found.model != "vhost-net":
            found.settings["device.hub"] = True
        return found
    raise IosimError(f"no model of the {nic.model} yet; {_MODELS}", nic.where)


def _vfio(machine: Machine, passed: list[PciDevice], notes: list[str]) -> Path:
    if len(passed) > 1:
        raise IosimError(
            f"this passes {len(passed)} devices through (vfio-pci), and iosim cannot tell which is the NIC; it "
            "simulates one",
            f"{machine.source}:{passed[1].line}",
        )
    remarks = [
        f"{passed[0].model} is taken for a NIC of the host",
        "interrupts go through the host; where it has VT-d posted interrupts: host.apicv=on device.interrupts=posted",
    ]
    used = min(machine.vcpus, MOST_QUEUE_PAIRS)
    if used < machine.vcpus:
        remarks.append(f"of the guest's {machine.vcpus} vCPUs {used} are simulated, each with a queue pair of the NIC")
    # ixgbe_set_rss_queues: a queue pair and a vector for each CPU.
    settings: dict[str, object] = {"device.queues": used, "guest.vcpus": used} if used > 1 else {}
    return Path("vfio", settings, [*remarks, *notes])


def _vhost_user(nic: Nic, notes: list[str], vcpus: int) -> Path:
    settings = {**_queue_pairs(nic, notes, vcpus), **_rings(nic, notes), **_features(nic, "csum", "host_tso4")}
    if not _is_on(nic, "mrg_rxbuf", True) and _guest_gso(nic):
        settings["device.mrg_rxbuf"] = False
    _qemus_only(nic, "the process behind the socket serves", notes)
    _unsimulated(nic, notes)
    return Path("vhost-user", settings, ["the process behind the socket is taken to poll, as DPDK does", *notes])


def _rings(nic: Nic, notes: list[str]) -> dict[str, object]:
    """Return the settings of every virtio NIC, whatever serves its rings."""
    settings: dict[str, object] = {}
    for name in ("rx_queue_size", "tx_queue_size"):
        if name in nic.properties:
            settings[f"device.{name}"] = whole_number(nic.properties[name])
    for name, key in (("event_idx", "event_idx"), ("packed", "packed"), ("indirect_desc", "indirect")):
        if name in nic.properties:
            settings[f"device.{key}"] = _is_on(nic, name, True)
    if "disable-modern" in nic.properties:
        settings["device.disable_modern"] = _is_on(nic, "disable-modern", False)
    if settings.get("device.disable_modern") and settings.pop("device.packed", False):
        notes.append("packed=on has no effect with disable-modern=on: a legacy device does not offer it")
    return settings


def _qemus_only(nic: Nic, who: str, notes: list[str]) -> None:
    """Say which properties are of QEMU's own back end, and have no effect where another serves the rings."""
    given = [name for name in ("tx", "x-txtimer", "x-txburst", "ioeventfd") if name in nic.properties]
    if given:
        what = "is QEMU's own back end's" if len(given) == 1 else "are QEMU's own back end's"
        notes.append(f"{', '.join(given)} {what}; here {who} the rings, and kicks have their ioeventfd")


def _unsimulated(nic: Nic, notes: list[str]) -> None:
    unsimulated = [f"{k}={v}" for k, v in nic.properties.items() if k not in _WITHOUT_NOTE]
    if unsimulated:
        notes.append(f"not simulated: {', '.join(unsimulated)}")


def _not_the_nic(machine: Machine, passed: PciDevice) -> str:
    """Say that a device passed through is left out; where the NIC is only QEMU's default one, refuse to guess."""
    if machine.nics[0].line == 0:
        raise IosimError(
            f"this passes a device through ({passed.slot} {passed.model}) beside the NIC that QEMU adds by default "
            f"({machine.nics[0].model}); if it is the NIC, -nic none leaves out the other",
            f"{machine.source}:{passed.line}",
        )
    return f"{passed.model} at {passed.slot} is left out; the NIC is the {machine.nics[0].model}"


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
    notes = [*_hub_notes(nic), *notes]
    settings = {**_queue_pairs(nic, notes, vcpus), **_rings(nic, notes), **_offloads(nic, notes)}
    if not nic.vhost:
        settings.update(_qemus(nic))
    else:
        _qemus_only(nic, "the kernel serves", notes)
    if "poll-us" in nic.backend_options and nic.vhost:
        settings["device.poll_us"] = whole_number(nic.backend_options["poll-us"])
    elif "poll-us" in nic.backend_options:
        notes.append("poll-us is vhost's; without vhost=on nobody polls")
    if nic.vhost and settings.pop("device.packed", False):
        notes.append("packed=on has no effect with vhost=on: the kernel's vhost has no packed rings")
    _unsimulated(nic, notes)
    if "fd" in nic.backend_options or "fds" in nic.backend_options:
        notes.append("fd= is taken for a tap on a bridge; a macvtap would cost something else")
    return Path("vhost-net" if nic.vhost else "virtio-net", settings, notes)


def _queue_pairs(nic: Nic, notes: list[str], vcpus: int) -> dict[str, object]:
    """Return the settings for the queue pairs that the guest uses: as many as it has vCPUs (``virtnet_probe``)."""
    pairs = nic.queues
    if pairs > 1 and not _is_on(nic, "mq", False):
        notes.append(f"the tap has {nic.queues} queues, and without mq=on the guest uses one")
        pairs = 1
    used = min(pairs, vcpus)
    settings: dict[str, object] = {}
    # QEMU's own default (since 5.2) is one more than the guest can use: the control queue has no callback.
    given = whole_number(nic.properties.get("vectors", ""))
    vectors = 2 * pairs + 2 if given is None else given
    if interrupt_mode(vectors, 2 * pairs) != OWN:
        settings["device.vectors"] = min(vectors, 2)
        if used > 1:
            notes.append(_together(vectors, pairs))
    if pairs == 1:
        return settings
    if used > MOST_QUEUE_PAIRS:
        raise IosimError(f"iosim cannot simulate {used} queue pairs; it simulates up to {MOST_QUEUE_PAIRS}", nic.where)
    if used < nic.queues:
        has = "one vCPU" if vcpus == 1 else f"{vcpus} vCPUs"
        notes.append(f"the guest has {has} (-smp) and uses as many of the {nic.queues} queue pairs")
    elif used < vcpus:
        notes.append(f"of the guest's {vcpus} vCPUs those are simulated that the {used} queue pairs belong to")
    if used > 1:
        settings.update({"device.queues": used, "guest.vcpus": used})
    return settings


def _together(vectors: int, pairs: int) -> str:
    """Say that one vCPU takes the interrupts of all queues."""
    shared = "share one vector" if interrupt_mode(vectors, 2 * pairs) == SHARED else "interrupt by the INTx line"
    return f"with vectors={vectors} all queues {shared}; {2 * pairs + 2} would give each its own"
def _offloads(nic: Nic, notes: list[str]) -> dict[str, object]:
    """Return the settings for the features by which guest and device leave work to each other."""
    settings = _features(nic, "csum", "host_tso4", "guest_csum", "guest_tso4")
    if not _is_on(nic, "guest_csum", True) and settings.get("device.guest_tso4"):
        notes.append("guest_tso4=on has no effect with guest_csum=off: the tap hands on no GSO packet without checksum")
        del settings["device.guest_tso4"]
    if not nic.vnet_hdr and not nic.through_hub:
        settings["device.vnet_hdr"] = False
    if not _is_on(nic, "mrg_rxbuf", True):
        settings["device.mrg_rxbuf"] = False
        if _guest_gso(nic) and not _is_on(nic, "guest_tso4", True):
            notes.append("guest_tso6 or guest_ufo is on, and so Linux posts chains for GSO packets; here they are "
                         "buffers of one frame, as without any")  # fmt: skip
    return settings


def _features(nic: Nic, *names: str) -> dict[str, object]:
    """Return the settings of features that are on unless the command line says otherwise."""
    return {f"device.{name}": _is_on(nic, name, True) for name in names if name in nic.properties}


def _guest_gso(nic: Nic) -> bool:
    """Whether the guest may be given GSO packets: offered, and the tap hands their headers on (``virtnet_probe``)."""
    names = ("guest_tso4", "guest_tso6", "guest_ufo")
    return nic.vnet_hdr and _is_on(nic, "guest_csum", True) and any(_is_on(nic, name, True) for name in names)


def _qemus(nic: Nic) -> dict[str, object]:
    """Return the settings of QEMU's own back end, which vhost does not have: sending, and ioeventfd."""
    settings: dict[str, object] = {}
    if "x-txburst" in nic.properties:
        settings["device.tx_burst"] = whole_number(nic.properties["x-txburst"])
    if "ioeventfd" in nic.properties:
        settings["device.ioeventfd"] = _is_on(nic, "ioeventfd", True)
    if "tx" in nic.properties:
        # virtio_net_device_realize: anything but "timer" is taken for "bh".
        settings["device.tx"] = "timer" if nic.properties["tx"] == "timer" else "bh"
    if "x-txtimer" in nic.properties:
        settings["device.tx_timer"] = f"{whole_number(nic.properties['x-txtimer'])}ns"
    return settings


def _is_on(nic: Nic, name: str, default: bool) -> bool:
    value = nic.properties.get(name)
    return default if value is None else value in TRUE or (value not in FALSE and default)
