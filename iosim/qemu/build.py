"""From the options of a command line to the machine, in the order in which QEMU does it.

Source: ``qemu_init`` in QEMU's ``system/vl.c``: all options are read first; then the machine type makes
chipset, VGA and the NICs of -nic and -net; then come the -device options.
"""

from __future__ import annotations

import difflib

from iosim.errors import IosimError, unknown
from iosim.qemu.command_line import CommandLine, Option
from iosim.qemu.devices import ALIASES, DEVICES, DeviceModel, device_model
from iosim.qemu.drives import Drives
from iosim.qemu.keys import DEVICE_PROPERTIES
from iosim.qemu.machine import Disk, Machine, Nic, PciDevice
from iosim.qemu.name_list import name_list
from iosim.qemu.network import NIC_CLASSES, Network
from iosim.qemu.options import KeyValues, parse_key_values
from iosim.qemu.settings import Settings, read_settings
from iosim.qemu.slots import CHIPSETS, USB, PciBuses

_DEFAULT_NIC = {"pc": "e1000", "q35": "e1000e"}  # pc_i440fx_machine_options, pc_q35_machine_options
_HELP = ("help", "?")
#: The cards of -soundhw that sit on the PCI bus.
_SOUND = {"ac97": "AC97", "es1370": "ES1370", "hda": "intel-hda"}
#: Options read here and in settings.py; the others play no part in an I/O path.
_READ = frozenset(
    name_list("""
        M accel balloon blockdev cdrom chardev device drive enable-kvm fda fdb global hda hdb hdc hdd m
        machine net netdev nic no-kvm nodefaults pflash smp soundhw usb usbdevice vga virtfs watchdog
    """)
)
_IMAGES = {
    "hda": (0, "disk"),
    "hdb": (1, "disk"),
    "hdc": (2, "disk"),
    "hdd": (3, "disk"),
    "cdrom": (2, "cdrom"),
}


def build(command: CommandLine) -> Machine:
    """Build the machine that a command line asks for.

    Args:
        command: The command, as :func:`iosim.qemu.command_line.read_command_line` gives it.

    Raises:
        IosimError: QEMU would refuse it, or iosim does not know its machine type.
    """
    return _Builder(command).build()


class _Builder:
    """The state while one machine is put together."""

    def __init__(self, command: CommandLine) -> None:
        self.command = command
        self.settings: Settings = read_settings(command)
        self.buses = PciBuses(self.settings.machine_type)
        self.others: list[PciDevice] = []
        self.notes = [*command.notes, *self.settings.notes]
        self.warnings = list(self.settings.warnings)
        self.device_ids: dict[str, str] = {}
        self.devices = self._device_options()
        self.network = Network(_DEFAULT_NIC[self.settings.machine_type], self.buses, self._chardevs())
        self.network.globals = self._globals()
        self._check_memory()
        self.drives = Drives(self.settings.machine_type, self.buses)

    def build(self) -> Machine:
        self._read_drives()
        kind = self.settings.machine_type
        self.others += self.buses.chipset(CHIPSETS[kind])
        if self.settings.usb:
            self.others += self.buses.chipset(USB[kind])
            self.drives.add_controller("usb", DEVICES["piix3-usb-uhci"], self.others[-1].slot)
        self._add_vga()
        self._add_network()
        self._add_sound()
        for model, arguments in self.devices:
            self._add_device(model, arguments)
        nics = tuple(self.network.nics())
        disks = tuple(self.drives.disks())
        return Machine(
            source=self.command.source,
            program=self.command.program,
            machine_type=kind,
            memory_mib=self.settings.memory_mib,
            vcpus=self.settings.vcpus,
            nics=nics,
            disks=disks,
            others=tuple(sorted(self.others, key=lambda device: device.slot)),
            notes=(*self.notes, *self.drives.notes, *self.network.unused_globals(), *self._unread()),
            warnings=(
                *self.warnings,
                *self.network.warnings,
                *_virtio_disk_question(self.command.source, nics, disks),
            ),
            accelerator=self.settings.accelerator,
            cpu_features=self.settings.cpu_features,
        )

    # -- first pass: options that others refer to ------------------------------------------------------

    def _each(self, *names: str) -> list[Option]:
        return [option for option in self.command.options if option.name in names]

    def _chardevs(self) -> set[str]:
        return {_arguments(option, "backend").text("id") for option in self._each("chardev")}

    def _check_memory(self) -> None:
        """Warn of a vhost-user process that cannot see the guest's memory (QEMU docs/system/devices/vhost-user)."""
        users = [o for o in self._each("netdev", "nic") if o.value.startswith(("vhost-user", "type=vhost-user"))]
        shared = any("memory-backend" in o.value and "share=on" in o.value for o in self._each("object"))
        if users and not shared:
            self.warnings.append(
                f"{users[0].where}: the process of vhost-user maps the guest's memory, which takes an "
                "-object memory-backend-memfd,...,share=on and its use by -machine memory-backend= or -numa"
            )

    def _globals(self) -> list[tuple[str, str, str, str]]:
        result: list[tuple[str, str, str, str]] = []
        for option in self._each("global"):
            driver, dot, rest = option.value.partition(".")
            name, equals, value = rest.partition("=")
            if not dot or not equals:
                arguments = _arguments(option, "")
                driver, name, value = (arguments.text(key) for key in ("driver", "property", "value"))
                if not (driver and name):
                    raise IosimError(
                        f"-global: '{option.value}': expects driver.property=value", option.where
                    )
            classes = [*DEVICES, *ALIASES, *NIC_CLASSES]
            if driver not in classes and difflib.get_close_matches(driver, classes, n=1, cutoff=0.75):
                hint = unknown("-global driver", driver, classes)
                self.warnings.append(f"{option.where}: {hint}; QEMU ignores it")
            result.append((ALIASES.get(driver, driver), name, value, option.where))
        return result

    def _device_options(self) -> list[tuple[DeviceModel | None, KeyValues]]:
        """Return what -device asks for, and the options that are short for one, in QEMU's order."""
        plain: list[tuple[DeviceModel | None, KeyValues]] = []
        in_json: list[tuple[DeviceModel | None, KeyValues]] = []
        for option in self._each("device", "balloon", "watchdog", "virtfs"):
            if option.name == "balloon":
                plain += _balloon(option)
            elif option.name == "watchdog":
                plain += _watchdog(option)
            elif option.name == "virtfs":
                plain.append(
                    (DEVICES["virtio-9p-pci"], KeyValues("", {}, "-virtfs", option.where, option.line))
                )
            else:
                arguments = _arguments(option, "driver")
                # Those in JSON wait in a list of their own, which comes second (qemu_create_cli_devices).
                (in_json if option.value.startswith("{") else plain).append(
                    (self._model(arguments), arguments)
                )
        return plain + in_json

    def _model(self, arguments: KeyValues) -> DeviceModel | None:
        name = arguments.head
        if name in _HELP:
            known = ", ".join(
                model.name
                for model in DEVICES.values()
                if model.kind in ("nic", "disk") and not model.name.endswith("transitional")
            )
            raise arguments.error(
                "this lists device models and builds no machine; the NICs and disks that iosim knows are "
                f"{known}"
            )
        if not name:
            raise arguments.error("has no driver; expects -device driver,property=value")
        model = device_model(name)
        for word in _HELP:
            if word in arguments.values:
                known = ", ".join(sorted(DEVICE_PROPERTIES.get(model.name if model else "", ())))
                raise arguments.error(
                    f"this lists properties and builds no machine; {name} has {known or '...'}"
                )
        if model is None and not name.endswith("-cpu"):
            names = [*DEVICES, *ALIASES]
            # QEMU has devices that are not in the table, of other builds and later versions: only a name
            # close to a known one is taken for a mistake.
            if difflib.get_close_matches(name, names, n=1, cutoff=0.75):
                raise unknown("-device model", name, names, arguments.where)
            self.warnings.append(
                f"{arguments.where}: iosim does not know the device '{name}'; it and its slot are left out"
            )
        return model

    # -- second pass -----------------------------------------------------------------------------------

    def _read_drives(self) -> None:
        # -blockdev first: QEMU creates the nodes before the drives (configure_blockdev).
        for option in self._each("blockdev"):
            self.drives.add_blockdev(_arguments(option, ""))
        for option in self._each("drive", "fda", "fdb", "pflash", *_IMAGES):
            where, line = option.where, option.line
            if option.name == "drive":
                self.drives.add_drive(_drive_arguments(option))
            elif option.name in _IMAGES:
                index, media = _IMAGES[option.name]
                name = "the disk image" if option.positional else f"-{option.name}"
                self.drives.add_image(option.value, index, media, name, where, line)
            elif option.name == "pflash":
                values = {"file": option.value, "if": "pflash"}
                self.drives.add_drive(KeyValues("", values, "-pflash", where, line))
            else:
                self.drives.add_floppy(
                    option.value, int(option.name == "fdb"), f"-{option.name}", where, line
                )

    def _add_vga(self) -> None:
        # A VGA given by -device takes the place of the default one (default_list in vl.c).
        if self.settings.vga is None or (
            not self.settings.vga_given and any(model and model.kind == "vga" for model, _ in self.devices)
        ):
            return
        self._add_pci(DEVICES[self.settings.vga], KeyValues("", {}, "-vga", self.command.source), "")

    def _add_network(self) -> None:
        options = self._each("netdev", "nic", "net")
        # Neither -device of a NIC nor any other option stands in the way of the default NIC: default_net is
        # cleared by these three and by -nodefaults only.
        if not options and not self.settings.nodefaults:
            self.network.add_default(self.command.source)
        # net_init_clients: all -netdev, then all -nic, then all -net.
        for option in self._each("netdev"):
            self.network.add_netdev(_arguments(option, "type"))
        for option in self._each("nic"):
            self.network.add_nic(_arguments(option, "type"))
        for option in self._each("net"):
            self.network.add_net(_arguments(option, "type"))

    def _add_sound(self) -> None:
        for option in self._each("soundhw"):
            cards = _SOUND if option.value == "all" else option.value.split(",")
            for card in cards:
                if card in _SOUND:
                    arguments = KeyValues("", {}, "-soundhw", option.where, option.line)
                    self._add_pci(DEVICES[_SOUND[card]], arguments, "")

    def _add_device(self, model: DeviceModel | None, arguments: KeyValues) -> None:
        name = arguments.identifier()
        if name:
            if name in self.device_ids:
                raise arguments.error(f"duplicate id '{name}'; the first is in {self.device_ids[name]}")
            self.device_ids[name] = arguments.where
        if model is None:
            return
        bus = self._pci_bus(arguments) if model.bus == "PCI" else ""
        if model.kind == "nic":
            self.network.add_device(model, arguments, bus)
        elif model.kind == "disk":
            self.drives.add_device(model, arguments, bus)
        elif model.bus != "PCI":
            self.notes.append(f"{arguments.where}: {model.name} sits on a bus of another kind ({model.bus})")
        else:
            known = DEVICE_PROPERTIES.get(model.name)
            if known is not None:
                arguments.check_keys(known, ("x-",))
            self._add_pci(model, arguments, bus)

    def _add_pci(self, model: DeviceModel, arguments: KeyValues, bus: str) -> None:
        slot = self.buses.place(model.name, arguments.text("addr"), arguments.option, arguments.where, bus)
        self.others.append(PciDevice(slot, model.name, model.description, model.guest_driver, arguments.line))
        name = arguments.text("id")
        if model.kind == "bridge" and name:
            # Only a bridge to conventional PCI has room for more than one device.
            self.buses.add_bus(name, 32 if "pci-bridge" in model.name or model.name.startswith("pxb") else 1)
        if model.kind == "controller" or "usb" in model.name or "xhci" in model.name:
            self.drives.add_controller(name, model, slot)

    def _pci_bus(self, arguments: KeyValues) -> str:
        bus = arguments.text("bus")
        # The bus behind a bridge has the bridge's id for its name, and id.0 means it too.
        if bus in self.buses.names or not bus:
            return bus
        if bus.partition(".")[0] in self.buses.names and bus.endswith(".0"):
            return bus.partition(".")[0]
        raise unknown(f"{arguments.option} {arguments.head} bus", bus, self.buses.names, arguments.where)

    def _unread(self) -> list[str]:
        read = _READ | {"cpu"} if self.settings.cpu_features else _READ
        names = dict.fromkeys(
            f"-{option.name}" for option in self.command.options if option.name not in read
        )
        result = []
        for name in ("-readconfig", "-set"):
            if name in names:
                del names[name]
                self.warnings.append(
                    f"{self.command.source}: {name} is not read; what it sets is missing here"
                )
        if names:
            result.append(f"of no matter to the I/O path: {', '.join(names)}")
        return result


def _arguments(option: Option, implied: str) -> KeyValues:
    return parse_key_values(option.value, f"-{option.name}", option.where, option.line, implied)


def _drive_arguments(option: Option) -> KeyValues:
    first = option.value.partition(",")[0]
    if "=" not in first and ("/" in first or "." in first):
        raise IosimError(f"-drive: '{first}' has no key; did you mean file={first}?", option.where)
    return _arguments(option, "")


def _balloon(option: Option) -> list[tuple[DeviceModel | None, KeyValues]]:
    """Read ``-balloon none`` and ``-balloon virtio[,addr=...]`` (until QEMU 4.2)."""
    arguments = _arguments(option, "type")
    if arguments.head not in ("none", "virtio"):
        raise unknown("-balloon type", arguments.head, ("none", "virtio"), option.where)
    if arguments.head == "none":
        return []
    arguments.check_keys({"addr", "id"})
    return [(DEVICES["virtio-balloon-pci"], arguments)]


def _watchdog(option: Option) -> list[tuple[DeviceModel | None, KeyValues]]:
    models = ("i6300esb", "ib700")
    if option.value not in models:
        raise unknown("-watchdog model", option.value, models, option.where)
    return [(DEVICES[option.value], KeyValues("", {}, "-watchdog", option.where, option.line))]


def _virtio_disk_question(source: str, nics: tuple[Nic, ...], disks: tuple[Disk, ...]) -> list[str]:
    """Ask whether ``if=virtio`` was forgotten.

    Asked when the NIC is virtio, no disk is, and a hard disk is IDE only because nothing said otherwise: who
    chose a paravirtual NIC probably wants such a disk. Not asked with an emulated NIC, where IDE fits the
    rest, nor with ``if=ide`` or ``-device ide-hd``, where IDE was chosen.
    """
    if not any(nic.is_virtio for nic in nics) or any(disk.interface in ("virtio", "scsi") for disk in disks):
        return []
    return [
        f"{source}:{disk.line}: this is an IDE disk ({disk.guest_driver}); "
        "was if=virtio meant, as the NIC is virtio?"
        for disk in disks
        if disk.model == "ide-hd" and not disk.explicit_interface
    ]
