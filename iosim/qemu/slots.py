"""PCI addresses: who gets which slot.

Source: ``do_pci_register_device`` in QEMU's ``hw/pci/pci.c`` (a device without ``addr=`` gets the first slot
whose function 0 is free), ``hw/i386/pc_piix.c``, ``hw/isa/piix.c`` and ``hw/i386/pc_q35.c`` (the chipsets).
"""

from __future__ import annotations

import re

from iosim.errors import IosimError
from iosim.qemu.machine import PciDevice

_SLOTS = 32  # PCI Local Bus 3.0, section 3.2.2.3.2: five bits of device number, three of function number
_FUNCTIONS = 8
_ADDRESS = re.compile(r"(?:0[xX])?([0-9a-fA-F]{1,4})(?:\.([0-9a-fA-F]{1,2}))?\Z")

#: Devices each machine type has by itself: slot, function, model, description, Linux driver.
CHIPSETS: dict[str, tuple[tuple[int, int, str, str, str], ...]] = {
    "pc": (
        (0, 0, "i440FX", "i440FX host bridge", ""),
        (1, 0, "PIIX3", "PIIX3 ISA bridge", ""),
        (1, 1, "piix3-ide", "PIIX3 IDE controller", "ata_piix"),
        (1, 3, "PIIX4_PM", "PIIX4 ACPI", "piix4_smbus"),
    ),
    "q35": (
        (0, 0, "mch", "Q35 host bridge (MCH)", ""),
        (0x1F, 0, "ICH9-LPC", "ICH9 LPC (ISA) bridge", "lpc_ich"),
        (0x1F, 2, "ich9-ahci", "ICH9 AHCI controller", "ahci"),
        (0x1F, 3, "ICH9-SMB", "ICH9 SMBus controller", "i2c_i801"),
    ),
}
#: The USB controllers that -usb adds.
USB: dict[str, tuple[tuple[int, int, str, str, str], ...]] = {
    "pc": ((1, 2, "piix3-usb-uhci", "PIIX3 UHCI USB controller", "uhci_hcd"),),
    "q35": (
        (0x1D, 0, "ich9-usb-uhci1", "ICH9 UHCI USB controller", "uhci_hcd"),
        (0x1D, 1, "ich9-usb-uhci2", "ICH9 UHCI USB controller", "uhci_hcd"),
        (0x1D, 2, "ich9-usb-uhci3", "ICH9 UHCI USB controller", "uhci_hcd"),
        (0x1D, 7, "ich9-usb-ehci1", "ICH9 EHCI USB controller", "ehci-pci"),
    ),
}
#: The name of the first PCI bus, which -device may give as bus=.
ROOT_BUS = {"pc": "pci.0", "q35": "pcie.0"}


class PciBuses:
    """The PCI buses of one machine while it is put together."""

    def __init__(self, machine_type: str) -> None:
        self.root = ROOT_BUS[machine_type]
        self._taken: dict[str, dict[tuple[int, int], str]] = {self.root: {}}
        # A port has room for one device; a bridge for a whole bus.
        self._slots: dict[str, int] = {self.root: _SLOTS}

    def chipset(self, devices: tuple[tuple[int, int, str, str, str], ...]) -> list[PciDevice]:
        """Put devices of the machine type in their fixed places."""
        result = []
        for slot, function, model, description, driver in devices:
            self._taken[self.root][slot, function] = model
            result.append(PciDevice(self._name(self.root, slot, function), model, description, driver))
        return result

    def add_bus(self, name: str, ports: int = _SLOTS) -> None:
        """Add the bus behind a bridge."""
        self._taken.setdefault(name, {})
        self._slots.setdefault(name, ports)

    @property
    def names(self) -> list[str]:
        """The buses there are."""
        return list(self._taken)

    def place(self, model: str, address: str, option: str, where: str, bus: str = "") -> str:
        """Give a device its place and return it as ``lspci`` prints it.

        Args:
            model: The device's model, for errors.
            address: Its ``addr=``, ``slot`` or ``slot.function`` in hexadecimal, or "".
            option: The option that asks for it, for errors.
            where: ``file:line``.
            bus: Its bus, or "" for the first.

        Raises:
            IosimError: The address is none, or taken, or the bus is full.
        """
        name = bus or self.root
        taken = self._taken[name]
        if address:
            slot, function = self._parse(address, option, where)
            if (slot, function) in taken:
                raise IosimError(
                    f"{option}: slot {slot:02x} function {function} is in use by {taken[slot, function]}, "
                    f"so {model} cannot have it; the next free one is {self._free_text(name)}",
                    where,
                )
        else:
            free = self._free(name)
            if free is None:
                raise IosimError(f"{option}: no slot is left on {name} for {model}", where)
            slot, function = free, 0
        taken[slot, function] = model
        return self._name(name, slot, function)

    def _free(self, bus: str) -> int | None:
        taken = self._taken[bus]
        return next((slot for slot in range(self._slots[bus]) if (slot, 0) not in taken), None)

    def _free_text(self, bus: str) -> str:
        free = self._free(bus)
        return "none" if free is None else f"addr={free:02x}"

    def _parse(self, address: str, option: str, where: str) -> tuple[int, int]:
        found = _ADDRESS.match(address)
        slot, function = (int(found[1], 16), int(found[2] or "0", 16)) if found else (_SLOTS, 0)
        if slot >= _SLOTS or function >= _FUNCTIONS:
            raise IosimError(
                f"{option}: addr={address}: expects slot or slot.function in hexadecimal, 0 to 1f and 0 to 7",
                where,
            )
        return slot, function

    def _name(self, bus: str, slot: int, function: int) -> str:
        return f"{'00' if bus == self.root else bus}:{slot:02x}.{function}"
