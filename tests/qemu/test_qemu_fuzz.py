"""Whatever a file holds, the reader gives a machine or one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from iosim import model as registry
from iosim.errors import IosimError
from iosim.qemu import Machine, network_path, parse, render, to_dict
from iosim.qemu.devices import DEVICES, NIC_MODELS
from iosim.qemu.keys import BACKENDS, DEVICE_PROPERTIES
from iosim.qemu.option_table import OPTIONS

FUZZ = settings(derandomize=True, max_examples=400, deadline=None)


T = TypeVar("T")


def outcome(action: Callable[[], T]) -> T | str:
    """Return what ``action`` gives, or the message of its IosimError; anything else is raised."""
    try:
        return action()
    except IosimError as error:
        return str(error)


def attempt(text: str) -> Machine | None:
    """Read ``text``, check the machine or the message, and return the machine."""
    machine = outcome(lambda: parse(text, "f.sh"))
    if isinstance(machine, str):
        assert machine.startswith("f.sh")
        assert len(machine.splitlines()) == 1
        return None
    json.dumps(to_dict(machine))
    slots = [nic.slot for nic in machine.nics] + [device.slot for device in machine.others]
    assert len(slots) == len(set(slots))
    assert all(re.fullmatch(r"[\w.-]+:[01][0-9a-f]\.[0-7]", slot) for slot in slots)
    path = outcome(lambda: network_path(machine))
    if isinstance(path, str):
        assert len(path.splitlines()) == 1
    else:
        assert path.model in registry.names()
    return machine


@FUZZ
@given(st.text())
def test_any_text(text: str) -> None:
    attempt(text)


@FUZZ
@given(st.text(alphabet=" \t\n\\'\"`$(){}<>|&;#=,-.0123456789kvmnetdiaprx\u0661\u2028", max_size=60))
def test_text_of_what_shells_and_qemu_care_about(text: str) -> None:
    attempt("kvm " + text)


_VALUE = st.one_of(
    st.sampled_from(["on", "off", "", "0", "1", "2", "256", "-1", "n0", "1f.7", "?", "help", "pci.0"]),
    st.text(alphabet="abn019.,-:{}[]\"", max_size=8),
)  # fmt: skip


@st.composite
def key_list(draw: st.DrawFn, head: str, keys: list[str]) -> str:
    chosen = draw(st.lists(st.sampled_from(keys), max_size=4))
    return ",".join([head, *(f"{key}={draw(_VALUE)}" for key in chosen)])


@st.composite
def option(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(["net", "netdev", "nic", "device", "drive", "any", "json"]))
    if name == "device":
        model = draw(st.sampled_from(sorted(DEVICES)))
        keys = sorted(DEVICE_PROPERTIES.get(model, {"addr", "id", "bus", "drive"}))
        argument = draw(key_list(model, keys))
    elif name == "drive":
        interface = draw(st.sampled_from(["if=virtio", "if=ide", "if=none", "media=cdrom"]))
        argument = draw(
            key_list(f"file=a,{interface}", ["id", "index", "bus", "unit", "format", "addr", "cache"])
        )
    elif name == "any":
        name = draw(st.sampled_from(sorted(OPTIONS)))
        argument = draw(_VALUE) if OPTIONS[name] else ""
    elif name == "json":
        name = draw(st.sampled_from(["device", "netdev", "blockdev"]))
        leaf = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
        names = st.sampled_from(["driver", "type", "id", "node-name", "netdev", "file"])
        argument = json.dumps(
            draw(st.dictionaries(names, st.recursive(leaf, lambda x: st.lists(x, max_size=2))))
        )
    else:
        kind = draw(st.sampled_from([*BACKENDS, "nic", "none"]))
        keys = [*sorted(BACKENDS.get(kind, {"model", "netdev", "addr", "macaddr"})), "id", "vlan"]
        argument = draw(key_list(kind, keys))
    # An argument that an option does not take is its own word, which is a disk image.
    return f"-{name} '" + argument.replace("'", "") + "'"


@FUZZ
@given(st.lists(option(), max_size=6))
def test_any_options(options: list[str]) -> None:
    attempt("kvm " + " \\\n  ".join(options))


@st.composite
def well_formed(draw: st.DrawFn) -> tuple[str, int, int]:
    """A command line QEMU takes, with the number of its NICs and virtio-blk disks."""
    words = []
    direct = draw(st.integers(0, 3))
    for index in range(direct):
        vhost = draw(st.sampled_from(["", ",vhost=on", ",vhost=off,script=no"]))
        model = draw(st.sampled_from(["virtio-net-pci", "e1000", "rtl8139", "virtio-net"]))
        words.append(f"-netdev tap,id=n{index}{vhost}")
        words.append(f"-device {model},netdev=n{index}")
    hub = draw(st.integers(0, 2))
    words += [f"-net nic,model={draw(st.sampled_from(sorted(NIC_MODELS)))}" for _ in range(hub)]
    words += ["-net tap"] * bool(hub)
    disks = draw(st.integers(0, 4))
    words += [f"-drive file=d{index}.img,if=virtio,format=raw" for index in range(disks)]
    words += draw(
        st.lists(st.sampled_from(["-usb", "-m 1G", "-smp 2", "-vga none", "-nographic"]), unique=True)
    )
    default = 0 if direct or hub else 1
    return "kvm " + " ".join(draw(st.permutations(words))), direct + hub + default, disks


@FUZZ
@given(well_formed())
def test_well_formed_lines_build_what_they_ask_for(line: tuple[str, int, int]) -> None:
    text, nics, disks = line
    machine = attempt(text)
    assert machine is not None
    assert len(machine.nics) == nics
    assert [disk.model for disk in machine.disks] == ["virtio-blk-pci"] * disks
    # -net NICs are made with the machine, -device NICs after it, if=virtio disks last.
    through_hub = [nic.slot for nic in machine.nics if nic.through_hub]
    direct = [nic.slot for nic in machine.nics if not nic.through_hub]
    slots = through_hub + direct + sorted(disk.slot for disk in machine.disks)
    assert slots == sorted(slots)
    first = 2 if "-vga none" in text else 3
    assert slots == [f"00:{slot:02x}.0" for slot in range(first, first + len(slots))]
    Console(quiet=True, width=80).print(render(machine))
