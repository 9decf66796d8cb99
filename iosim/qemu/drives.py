"""Disks: ``-drive``, ``-hda`` and its kin, ``-blockdev``, ``-device`` of a disk.

Source: ``drive_new`` and ``drive_add`` in QEMU's ``blockdev.c``.
"""

from __future__ import annotations

from dataclasses import dataclass

from iosim.errors import IosimError, unknown
from iosim.qemu.devices import DeviceModel
from iosim.qemu.keys import DEVICE_PROPERTIES, DRIVE, DRIVE_INTERFACES, DRIVE_PREFIXES
from iosim.qemu.machine import Disk
from iosim.qemu.name_list import name_list
from iosim.qemu.options import KeyValues
from iosim.qemu.slots import PciBuses

#: Block drivers a user may name as format= (``block/*.c``).
FORMATS = name_list("""
    raw qcow2 qcow qed vdi vmdk vpc vhdx parallels luks bochs cloop dmg vvfat file host_device host_cdrom
    nbd rbd iscsi nfs ssh http https ftp ftps gluster null-co null-aio nvme blkdebug blkverify quorum
    io_uring virtio-blk-vhost-vdpa virtio-blk-vhost-user replication throttle copy-on-read sheepdog
""")
_CACHES = ("none", "off", "writeback", "writethrough", "directsync", "unsafe")
_AIO = ("threads", "native", "io_uring")
#: IDE on each machine type: buses, drives per bus, PCI address of the controller, Linux driver.
_IDE = {"pc": (2, 2, "00:01.1", "ata_piix"), "q35": (6, 1, "00:1f.2", "ahci")}


@dataclass
class _Drive:
    """A drive or block node, before it is known what it is plugged into."""

    id: str
    interface: str
    file: str
    format: str
    media: str
    address: str
    where: str
    line: int
    explicit: bool
    option: str
    used_by: str = ""


class Drives:
    """The disks of one machine while it is put together."""

    def __init__(self, machine_type: str, buses: PciBuses) -> None:
        self._ide_buses, self._ide_units, self._ide_slot, self._ide_driver = _IDE[machine_type]
        self._machine_type = machine_type
        self._buses = buses
        self._drives: dict[str, _Drive] = {}
        self._places: dict[tuple[str, int, int], _Drive] = {}
        self._disks: list[Disk] = []
        #: Controllers by id: PCI address, Linux driver, kind of bus.
        self._controllers: list[tuple[str, str, str, str]] = []
        self.notes: list[str] = []

    # -- options ---------------------------------------------------------------------------------

    def add_drive(self, arguments: KeyValues) -> None:
        """Take one -drive."""
        arguments.check_keys(DRIVE, DRIVE_PREFIXES)
        interface = arguments.text("if", "ide")
        if interface not in DRIVE_INTERFACES:
            raise unknown("-drive interface", interface, DRIVE_INTERFACES, arguments.where)
        if interface in ("scsi", "mtd", "sd", "xen"):
            instead = (
                "; use -device virtio-scsi-pci, -drive if=none,id=... and -device scsi-hd,drive=..."
                if interface == "scsi"
                else "; there is ide, virtio, floppy, pflash, none"
            )
            raise arguments.error(
                f"the machine {self._machine_type} does not support if={interface}{instead}"
            )
        media = arguments.text("media", "disk")
        if media not in ("disk", "cdrom"):
            raise unknown("-drive media", media, ("disk", "cdrom"), arguments.where)
        self._check_values(arguments)
        form = arguments.text("format") or arguments.text("driver")
        bus, unit = self._place(arguments, interface)
        file = arguments.text("file") or arguments.text("file.filename") or arguments.text("filename")
        opened = file or form or any(key.startswith("file.") for key in arguments.values)
        if not opened and media == "disk" and interface in ("ide", "virtio", "pflash"):
            raise arguments.error(f"a drive with if={interface} needs its image; it lacks file=")
        if "addr" in arguments.values and interface != "virtio":
            raise arguments.error(f"addr= is for if=virtio, and this drive is if={interface}")
        drive = _Drive(
            id=arguments.identifier() or self._default_id(interface, media, bus, unit),
            interface=interface,
            file=file,
            format=form,
            media=media,
            address=arguments.text("addr"),
            where=arguments.where,
            line=arguments.line,
            explicit="if" in arguments.values,
            option=arguments.option,
        )
        self._register(drive)
        self._places[interface, bus, unit] = drive
        if interface != "none":
            drive.used_by = f"if={interface}"

    def add_image(self, file: str, index: int, media: str, option: str, where: str, line: int) -> None:
        """Take -hda to -hdd, -cdrom, or an image without an option: a -drive with an index."""
        values = {"file": file, "index": str(index), "media": media}
        self.add_drive(KeyValues("", values, option, where, line))

    def add_floppy(self, file: str, index: int, option: str, where: str, line: int) -> None:
        """Take -fda, -fdb."""
        self.add_drive(
            KeyValues("", {"file": file, "index": str(index), "if": "floppy"}, option, where, line)
        )

    def add_blockdev(self, arguments: KeyValues) -> None:
        """Take one -blockdev: a named block node."""
        name = arguments.identifier("node-name")
        form = arguments.text("driver")
        if not form:
            raise arguments.error("has no driver=; it takes raw, qcow2, file, host_device, ...")
        if form not in FORMATS:
            raise unknown("-blockdev driver", form, FORMATS, arguments.where)
        if not name:
            raise arguments.error("has no node-name=; a -device needs it for its drive=")
        file = arguments.text("filename") or arguments.text("file.filename")
        below = self._drives.get(arguments.text("file"))
        if below is not None:
            below.used_by = name
            file = below.file
        self._register(
            _Drive(name, "none", file, form, "disk", "", arguments.where, arguments.line, True, "-blockdev")
        )

    def add_controller(self, name: str, model: DeviceModel, slot: str) -> None:
        """Take a controller that -device made, for the disks behind it."""
        bus = "IDE" if model.guest_driver in ("ahci", "ata_piix") else "SCSI"
        if "usb" in model.name:
            bus = "usb-bus"
        self._controllers.append((name, slot, model.guest_driver, bus))

    def add_device(self, model: DeviceModel, arguments: KeyValues, bus: str) -> None:
        """Take one -device of a disk."""
        known = DEVICE_PROPERTIES.get(model.name)
        if known is not None:
            arguments.check_keys(known, ("x-",))
        slot, interface, driver = self._attach(model, arguments, bus)
        drive = self._claim(model, arguments)
        self._disks.append(
            Disk(
                interface=interface,
                model=model.name,
                guest_driver=driver,
                file=drive.file if drive else "",
                format=drive.format if drive else "",
                slot=slot,
                line=arguments.line,
            )
        )

    # -- the result ------------------------------------------------------------------------------

    def disks(self) -> list[Disk]:
        """Plug in the drives that name their interface, and return all disks by line."""
        for (interface, _, _), drive in self._places.items():
            if interface == "none":
                if not drive.used_by:
                    self.notes.append(f"{drive.where}: no -device uses the drive '{drive.id}' (if=none)")
                continue
            self._disks.append(self._disk(interface, drive))
        return sorted(self._disks, key=lambda disk: disk.line)

    def _disk(self, interface: str, drive: _Drive) -> Disk:
        slot, driver, model = "", "", interface
        if interface == "ide":
            slot, driver = self._ide_slot, self._ide_driver
            model = "ide-cd" if drive.media == "cdrom" else "ide-hd"
        elif interface == "virtio":
            # drive_new appends its virtio-blk-pci to the -device options once all have been read, so it
            # comes after every -device of the command line.
            slot = self._buses.place("virtio-blk-pci", drive.address, drive.option, drive.where)
            driver, model = "virtio_blk", "virtio-blk-pci"
        elif interface == "floppy":
            driver = "floppy"
        return Disk(interface, model, driver, drive.file, drive.format, slot, drive.line, drive.explicit)

    # -- parts -----------------------------------------------------------------------------------

    def _check_values(self, arguments: KeyValues) -> None:
        for key in ("format", "driver"):
            value = arguments.text(key)
            if value and value not in FORMATS:
                raise unknown(f"-drive {key}", value, FORMATS, arguments.where)
        for key, valid in (("cache", _CACHES), ("aio", _AIO)):
            value = arguments.text(key)
            if key in arguments.values and value not in valid:
                raise unknown(f"-drive {key}", value, valid, arguments.where)
        for key in ("snapshot", "readonly", "read-only", "copy-on-read"):
            arguments.boolean(key)

    def _place(self, arguments: KeyValues, interface: str) -> tuple[int, int]:
        """Return bus and unit, as ``drive_new`` works them out."""
        per_bus = {"ide": self._ide_units, "floppy": 2}.get(interface, 0)
        index = arguments.integer("index", 0, 10**6, -1)
        bus = arguments.integer("bus", 0, 10**6)
        unit = arguments.integer("unit", 0, 10**6, -1)
        if index >= 0:
            if "bus" in arguments.values or unit >= 0:
                raise arguments.error("index= cannot be used with bus= and unit=")
            bus, unit = (index // per_bus, index % per_bus) if per_bus else (0, index)
        if unit < 0:
            unit = 0
            while (interface, bus, unit) in self._places:
                unit += 1
                if per_bus and unit >= per_bus:
                    bus, unit = bus + 1, 0
        elif per_bus and unit >= per_bus:
            raise arguments.error(f"unit={unit} is too big for if={interface}; expects 0 to {per_bus - 1}")
        taken = self._places.get((interface, bus, unit))
        if taken is not None:
            raise arguments.error(
                f"there is a drive with if={interface}, bus={bus}, unit={unit} already ({taken.where}); "
                "give each its index="
            )
        buses = {"ide": self._ide_buses, "floppy": 1}.get(interface)
        if buses is not None and bus >= buses:
            raise arguments.error(
                f"the machine {self._machine_type} has room for {buses * per_bus} {interface} drives, "
                f"not for bus={bus}, unit={unit}; if=virtio has room for more"
            )
        return bus, unit

    @staticmethod
    def _default_id(interface: str, media: str, bus: int, unit: int) -> str:
        if interface == "ide":
            return f"ide{bus}-{'cd' if media == 'cdrom' else 'hd'}{unit}"
        return f"{interface}{unit}"

    def _register(self, drive: _Drive) -> None:
        if drive.id in self._drives:
            first = self._drives[drive.id].where
            raise IosimError(
                f"{drive.option}: duplicate id '{drive.id}'; the first is in {first}", drive.where
            )
        self._drives[drive.id] = drive

    def _claim(self, model: DeviceModel, arguments: KeyValues) -> _Drive | None:
        name = arguments.values.get("drive")
        if name is None:
            # A CD-ROM may be empty, and vhost-user has its image in another process.
            if model.name.endswith("-cd") or model.name.startswith("vhost-user") or model.name == "usb-uas":
                return None
            raise arguments.error(f"{model.name} has no drive=; it takes the id of a -drive if=none")
        drive = self._drives.get(name)
        if drive is None:
            if not self._drives:
                raise arguments.error(f"there is no drive '{name}'; it takes a -drive if=none,id={name}")
            raise unknown(f"-device {model.name} drive", name, self._drives, arguments.where)
        if drive.used_by:
            hint = "; does its -drive lack if=none?" if drive.used_by.startswith("if=") else ""
            raise arguments.error(f"the drive '{name}' is in use already ({drive.used_by}){hint}")
        drive.used_by = model.name
        return drive

    def _attach(self, model: DeviceModel, arguments: KeyValues, bus: str) -> tuple[str, str, str]:
        """Return PCI address, interface and Linux driver of a disk that -device makes."""
        if model.bus == "PCI":
            address = arguments.text("addr")
            slot = self._buses.place(model.name, address, arguments.option, arguments.where, bus)
            return slot, "nvme" if model.name == "nvme" else "virtio", model.guest_driver
        wanted = arguments.text("bus").partition(".")[0]
        behind = [c for c in self._controllers if c[3] == model.bus and (not wanted or c[0] == wanted)]
        if model.bus == "IDE":
            # The machine's own buses are called ide.0, ide.1, ...
            if wanted not in ("", "ide") and behind:
                return behind[0][1], "ide", behind[0][2]
            return self._ide_slot, "ide", self._ide_driver
        if model.bus == "SCSI":
            if not behind:
                raise arguments.error(
                    f"there is no SCSI bus for {model.name}; a controller such as "
                    "-device virtio-scsi-pci must stand before it"
                )
            return behind[0][1], "scsi", behind[0][2]
        return behind[0][1] if behind else "", "usb", model.guest_driver
