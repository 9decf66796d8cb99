"""The table and the document of a machine."""

from __future__ import annotations

import io
import json
from importlib.resources import files

import pytest
from rich.cells import cell_len
from rich.console import Console

from iosim.qemu import parse, read_file, render, to_dict

MACHINES = files("iosim.models") / "machines"


def shown(text: str, width: int) -> list[str]:
    file = io.StringIO()
    Console(width=width, file=file).print(render(parse(text, "f.sh")))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 200])
def test_every_device_has_its_line(width: int) -> None:
    lines = shown((MACHINES / "vhost-net-ide.sh").read_text(), width)
    assert all(cell_len(line) <= width for line in lines)
    assert lines[0] == "f.sh: pc, 1 vCPU, 2048 MiB, kvm"
    (nic,) = [line for line in lines if line.startswith("00:04.0")]
    assert nic.split()[1:3] == ["virtio-net-pci", "virtio_net"]
    slots = [line[:7] for line in lines if line.startswith("00:")]
    assert slots == [f"00:{slot}" for slot in ("00.0", "01.0", "01.1", "01.3", "02.0", "03.0", "04.0")]
    assert any(line.startswith("warning: f.sh:3: this is an IDE disk") for line in lines)
    assert any(line.startswith("note: of no matter") for line in lines)


def test_the_hub_and_the_image_are_told() -> None:
    text = "\n".join(shown("kvm -hda a.img -net nic,model=virtio -net tap", 200))
    assert "tap, rings served by QEMU, through QEMU's hub, no offloads" in text
    assert "a.img" in text


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    assert any("[bold]a.img[/]" in line for line in shown("kvm -hda '[bold]a.img[/]'", 200))


def test_the_document_is_json_with_the_fields_of_the_machine() -> None:
    machine = read_file(str(MACHINES / "vhost-net.sh"))
    document = json.loads(json.dumps(to_dict(machine)))
    assert document["memory_mib"] == 2048
    assert document["nics"][0]["slot"] == "00:04.0"
    assert document["nics"][0]["vhost"] is True
    assert document["disks"][0]["guest_driver"] == "virtio_blk"
    assert [device["model"] for device in document["others"]][-1] == "virtio-balloon-pci"
    assert document == to_dict(machine)
