"""What a QEMU command line builds: the machine as its guest and its host see it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PciDevice:
    """A device on a PCI bus that is neither NIC nor disk.

    ``slot`` is the address as ``lspci`` prints it, ``00:03.0`` (domain 0 left out). On a bus behind a
    bridge the bridge's id stands in place of the number, which only the guest's firmware gives.
    ``line`` is 0 for what the machine type has by itself.
    """

    slot: str
    model: str
    description: str
    guest_driver: str
    line: int = 0


@dataclass(frozen=True)
class Nic:
    """A network card and what serves it on the host.

    Args:
        model: QEMU's device model (``e1000``, ``virtio-net-pci``).
        guest_driver: The Linux driver in the guest (``e1000``, ``virtio_net``).
        backend: ``tap``, ``user``, ``vhost-user``, ...; ``none`` if there is none.
        vhost: The rings are served by vhost, not by QEMU.
        through_hub: Packets go through QEMU's hub (``-net``), which has no virtio-net header.
        vnet_hdr: Guest and tap can exchange checksum and segmentation work through that header.
        queues: Queue pairs of the back end.
        slot: Its PCI address.
        properties: The device properties given, by QEMU's names, as written.
        line: The line of the option that asks for it; 0 for the NIC that QEMU adds by default.
        backend_options: The back end's keys, as written.
        where: ``file:line``, for messages.
    """

    model: str
    guest_driver: str
    backend: str
    vhost: bool
    through_hub: bool
    vnet_hdr: bool
    queues: int
    slot: str
    properties: dict[str, str]
    line: int
    backend_options: dict[str, str] = field(default_factory=dict)
    where: str = ""

    @property
    def is_virtio(self) -> bool:
        """Whether the guest drives it through virtqueues."""
        return self.model.startswith("virtio-")


@dataclass(frozen=True)
class Disk:
    """A disk and what the guest sees of it.

    Args:
        interface: ``ide``, ``virtio``, ``scsi``, ``nvme``, ``usb``, ``floppy`` or ``pflash``.
        model: QEMU's device model (``ide-hd``, ``virtio-blk-pci``).
        guest_driver: The Linux driver in the guest (``ata_piix``, ``virtio_blk``).
        file: The image, as written; "" for an empty drive.
        format: ``raw``, ``qcow2``, ...; "" if QEMU is to find out.
        slot: The PCI address of the disk or of its controller; "" if it has none.
        line: The line of the option that asks for it.
        explicit_interface: The user chose the interface (``if=``), rather than leave it to QEMU.
    """

    interface: str
    model: str
    guest_driver: str
    file: str
    format: str
    slot: str
    line: int
    explicit_interface: bool = True


@dataclass(frozen=True)
class Machine:
    """A machine as one QEMU command line builds it.

    Args:
        source: The file it was read from, for messages.
        program: The program's name (``kvm``).
        machine_type: ``pc`` or ``q35``.
        memory_mib: Guest memory, in MiB.
        vcpus: Number of vCPUs present at start.
        nics: Network cards, in the order in which QEMU creates them.
        disks: Disks in the order of the command line. The empty CD-ROM drive that QEMU adds is left out.
        others: The remaining PCI devices, chipset included.
        notes: What was read and plays no part.
        warnings: What probably is not as it was meant; each with ``file:line``.
        accelerator: ``kvm``, ``tcg``, ...
        cpu_features: Features of -cpu that have a bearing on the path, ``on`` or ``off``.
    """

    source: str
    program: str
    machine_type: str
    memory_mib: int
    vcpus: int
    nics: tuple[Nic, ...]
    disks: tuple[Disk, ...]
    others: tuple[PciDevice, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    accelerator: str = "kvm"
    cpu_features: dict[str, str] = field(default_factory=dict)
