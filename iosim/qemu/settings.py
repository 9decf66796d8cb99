"""Machine type, accelerator, memory and vCPUs of a command line.

Source: ``qemu_init`` and ``parse_memory_options`` in QEMU's ``system/vl.c``, ``hw/core/machine-smp.c``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from iosim.errors import IosimError, unknown
from iosim.qemu.command_line import CommandLine, Option
from iosim.qemu.name_list import name_list
from iosim.qemu.options import TRUE, KeyValues, parse_key_values, size_in_bytes, whole_number

_DEFAULT_MEMORY_MIB = 128  # default_ram_size of hw/core/machine.c
_MAX_CPUS = {"pc": 255, "q35": 4096}  # max_cpus in pc_piix.c and (QEMU 9.2) pc_q35.c
_MIB = 1 << 20
_ACCELERATORS = ("kvm", "tcg", "xen", "hvf", "whpx", "nvmm", "hax", "mshv", "qtest")
_OTHER_MACHINES = ("microvm", "isapc", "none", "xenfv", "xenpv", "x-remote", "nitro-enclave")
_PC = re.compile(r"pc(-i440fx-[\w.+-]+|-\d+\.\d+)?\Z|ubuntu\Z")
_Q35 = re.compile(r"q35\Z|pc-q35-[\w.+-]+\Z|ubuntu-q35\Z")
_VGAS = {
    "std": "VGA",
    "cirrus": "cirrus-vga",
    "qxl": "qxl-vga",
    "vmware": "vmware-svga",
    "virtio": "virtio-vga",
    "none": None,
}
_SMP_KEYS = frozenset(name_list("cpus sockets drawers books dies clusters modules cores threads maxcpus"))
_HELP = ("help", "?")
#: Features of -cpu that change how interrupts end.
_CPU_FEATURES = ("kvm", "kvm-pv-eoi", "x2apic")
_NO_MACHINE = {"h": "options", "help": "options", "version": "the version", "audio-help": "audio drivers"}


@dataclass(frozen=True)
class Settings:
    """What a command line says about the machine as a whole; ``vga`` is QEMU's model or None."""

    machine_type: str
    accelerator: str
    memory_mib: int
    vcpus: int
    vga: str | None
    vga_given: bool
    usb: bool
    nodefaults: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    cpu_features: dict[str, str]


def read_settings(command: CommandLine) -> Settings:
    """Read the machine's settings.

    Raises:
        IosimError: A value QEMU would refuse, a machine type other than pc and q35, or an option such as
            -help that builds no machine.
    """
    for option in command.options:
        if option.name in _NO_MACHINE:
            raise IosimError(
                f"{option}: this lists {_NO_MACHINE[option.name]} and builds no machine", option.where
            )
        if option.name in ("cpu", "accel", "vga", "soundhw", "watchdog") and option.value in _HELP:
            raise IosimError(f"{option}: this lists what there is and builds no machine", option.where)
    machine_type, machine = _machine(command)
    accelerator = _accelerator(command, machine)
    warnings: tuple[str, ...] = ()
    if accelerator != "kvm":
        warnings = (
            f"{command.source}:{command.line}: without -enable-kvm this guest runs under {accelerator}; "
            "iosim simulates KVM",
        )
    nodefaults = any(option.name == "nodefaults" for option in command.options)
    given = [option for option in command.options if option.name == "vga"]
    return Settings(
        machine_type=machine_type,
        accelerator=accelerator,
        memory_mib=_memory(command),
        vcpus=_vcpus(command, machine_type),
        vga=_vga(given[-1]) if given else None if nodefaults else "VGA",
        vga_given=bool(given),
        usb=machine.boolean("usb") or any(o.name in ("usb", "usbdevice") for o in command.options),
        nodefaults=nodefaults,
        notes=_unsimulated(command, machine),
        warnings=warnings,
        cpu_features=_cpu_features(command),
    )


def _arguments(option: Option, implied: str) -> KeyValues:
    return parse_key_values(option.value, f"-{option.name}", option.where, option.line, implied)


def _machine(command: CommandLine) -> tuple[str, KeyValues]:
    """Return pc or q35, and the properties of all -machine options together."""
    kind = "pc"
    together = KeyValues("", {}, "-machine", command.source)
    for option in command.options:
        if option.name not in ("machine", "M"):
            continue
        arguments = _arguments(option, "type")
        name = arguments.head
        if name in _HELP:
            raise arguments.error("this lists machine types and builds no machine; iosim knows pc and q35")
        if name:
            kind = _machine_type(name, arguments)
        together = KeyValues(
            kind, {**together.values, **arguments.values}, arguments.option, arguments.where, arguments.line
        )
        together.boolean("usb")
    return kind, together


def _machine_type(name: str, arguments: KeyValues) -> str:
    if _Q35.match(name):
        return "q35"
    if _PC.match(name):
        return "pc"
    if name in _OTHER_MACHINES:
        raise arguments.error(f"iosim knows the machine types pc and q35, not {name}")
    raise unknown(f"{arguments.option} type", name, ("pc", "q35", "microvm"), arguments.where)


def _accelerator(command: CommandLine, machine: KeyValues) -> str:
    """Return the accelerator asked for first; programs called kvm ask for KVM by their name."""
    default = "kvm" if command.program in ("kvm", "qemu-kvm") else "tcg"
    asked = ""
    for option in command.options:
        if option.name == "enable-kvm":
            return "kvm"
        if option.name == "no-kvm":
            asked = asked or "tcg"
        if option.name == "accel":
            asked = asked or _known_accelerator(_arguments(option, "accel").head, option)
    listed = machine.text("accel").split(":")[0]
    if listed and not asked:
        if listed not in _ACCELERATORS:
            raise unknown("-machine accelerator", listed, _ACCELERATORS, machine.where)
        asked = listed
    return asked or default


def _known_accelerator(name: str, option: Option) -> str:
    first = name.split(":")[0]
    if first not in _ACCELERATORS:
        raise unknown("-accel accelerator", first, _ACCELERATORS, option.where)
    return first


def _memory(command: CommandLine) -> int:
    """Return guest memory in MiB; -m 0 is the default, as in QEMU."""
    result = _DEFAULT_MEMORY_MIB
    for option in command.options:
        if option.name != "m":
            continue
        arguments = _arguments(option, "size")
        arguments.check_keys({"slots", "maxmem"})
        arguments.integer("slots", 0, 256)  # ACPI_MAX_RAM_SLOTS in include/hw/acpi/acpi.h
        size = size_in_bytes(arguments.head, "m") if arguments.head else result * _MIB
        if size is None or size >= 1 << 64:
            raise arguments.error(f"'{arguments.head}': expects a size such as 2048 (MiB) or 2G")
        limit = arguments.values.get("maxmem")
        if limit is not None:
            most = size_in_bytes(limit, "b")
            if most is None or most < size:
                raise arguments.error(f"maxmem={limit}: expects a size of at least that of the memory")
        result = math.ceil(size / _MIB) or _DEFAULT_MEMORY_MIB
    return result


def _cpu_features(command: CommandLine) -> dict[str, str]:
    """Return the features of the last -cpu that have a bearing on an I/O path (``x86_cpu_parse_featurestr``).

    ``+name`` and ``-name`` are ``name=on`` and ``name=off``, and win; an underscore is a dash.
    """
    given = [option for option in command.options if option.name == "cpu"]
    if not given:
        return {}
    name, *features = given[-1].value.split(",")
    if not name:
        raise IosimError("-cpu: has no model; expects one, as in -cpu host,+x2apic", given[-1].where)
    plain: dict[str, str] = {}
    signed: dict[str, str] = {}
    for feature in features:
        if feature[:1] in ("+", "-"):
            signed[feature[1:].replace("_", "-")] = "on" if feature[0] == "+" else "off"
        else:
            key, _, value = feature.partition("=")
            plain[key.replace("_", "-")] = value or "on"
    found = {**plain, **signed}
    return {key: "on" if found[key] in TRUE else "off" for key in _CPU_FEATURES if key in found}


def _unsimulated(command: CommandLine, machine: KeyValues) -> tuple[str, ...]:
    """Return remarks on what would change exits or interrupts, and is not simulated."""
    said = []
    irqchip = machine.text("kernel_irqchip") or machine.text("kernel-irqchip")
    for option in command.options:
        if option.name == "accel":
            irqchip = _arguments(option, "accel").text("kernel-irqchip") or irqchip
        if option.name == "overcommit" and _arguments(option, "").boolean("cpu-pm"):
            said.append("not simulated: -overcommit cpu-pm=on, with which HLT does not exit")
    if irqchip in ("off", "split"):
        said.append(f"not simulated: kernel-irqchip={irqchip}; here KVM has local APICs and I/O APIC")
    return tuple(said)


def _vcpus(command: CommandLine, machine_type: str) -> int:
    """Return the vCPUs present at start (``machine_parse_smp_config``)."""
    result = 1
    for option in command.options:
        if option.name != "smp":
            continue
        arguments = _arguments(option, "cpus")
        arguments.check_keys(_SMP_KEYS)
        numbers = {}
        for key, value in {"cpus": arguments.head, **arguments.values}.items():
            if key == "cpus" and not value:
                continue
            number = whole_number(value)
            if number is None or number < 1:
                raise arguments.error(f"{key}={value}: expects a number greater than zero")
            numbers[key] = number
        most = numbers.pop("maxcpus", 0)
        cpus = numbers.pop("cpus", 0)
        product = math.prod(numbers.values())
        result = cpus or most or product
        if most and most < result:
            raise arguments.error(f"maxcpus={most}: expects at least the {result} CPUs of -smp")
        if product > 1 and {"sockets", "cores", "threads"} <= numbers.keys() and product != (most or result):
            raise arguments.error(
                f"sockets * cores * threads are {product}, which must match {most or result} CPUs"
            )
        if result > _MAX_CPUS[machine_type]:
            raise arguments.error(
                f"{result} CPUs; the machine {machine_type} has at most {_MAX_CPUS[machine_type]}"
            )
    return result


def _vga(option: Option) -> str | None:
    if option.value not in _VGAS:
        raise unknown("-vga type", option.value, _VGAS, option.where)
    return _VGAS[option.value]
