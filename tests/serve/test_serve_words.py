"""What `iosim serve` says before any guest comes: paths it refuses, command lines it prints, how it shows rings."""

from __future__ import annotations

import io
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from iosim import qemu
from iosim.errors import IosimError
from iosim.serve.guests import qemu_options, uml_parameter
from iosim.serve.place import LONGEST, check_socket
from iosim.serve.view import DeviceState, idle_queue, line, render


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose sockets have short paths, whatever the tests' own directory is called."""
    monkeypatch.chdir(tmp_path)
    return Path(".")


def test_a_path_that_is_free_is_taken(here: Path) -> None:
    assert check_socket("s") == Path("s")


def test_the_longest_path_is_what_bind_takes(here: Path) -> None:
    name = "s" * LONGEST
    assert check_socket(name) == Path(name)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(name)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match="too long"):
        sock.bind(name + "s")
    with pytest.raises(IosimError, match=r"--socket: .* at most 107 bytes, this one has 108"):
        check_socket(name + "s")


def test_what_is_there_is_not_taken_over(here: Path) -> None:
    (here / "file").write_text("precious")
    with pytest.raises(IosimError, match="exists and is no socket"):
        check_socket("file")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("live")
        sock.listen()
        with pytest.raises(IosimError, match="somebody else listens"):
            check_socket("live")
    with pytest.raises(IosimError, match="nobody listens on it; remove it"):
        check_socket("live")
    (here / "dangling").symlink_to("nowhere")
    with pytest.raises(IosimError, match="exists"):
        check_socket("dangling")


def test_a_directory_has_to_be_there_and_writable(here: Path) -> None:
    with pytest.raises(IosimError, match="no directory nowhere"):
        check_socket("nowhere/s")
    with pytest.raises(IosimError, match="empty"):
        check_socket("")
    if os.geteuid() != 0:
        (here / "theirs").mkdir(mode=0o555)
        with pytest.raises(IosimError, match="not writable"):
            check_socket("theirs/s")


@pytest.mark.parametrize("kind", ["vhost-user-blk", "vhost-user-net"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("queues", "size"), [(1, None), (2, 256)])
def test_iosim_itself_understands_the_command_line(kind: str, packed: bool, queues: int, size: int | None) -> None:
    text = " ".join(qemu_options(kind, "/a/b,c d", queues=queues, queue_size=size, packed=packed))
    assert "path='/a/b,,c d'" in text
    machine = qemu.parse(f"qemu-system-x86_64 {text}\n", "test")
    if kind == "vhost-user-blk":
        assert [disk.model for disk in machine.disks] == ["vhost-user-blk-pci"]
    else:
        assert [(nic.model, nic.backend) for nic in machine.nics] == [("virtio-net-pci", "vhost-user")]


def test_user_mode_linux_is_told_the_device_number() -> None:
    assert uml_parameter("vhost-user-net", "/run/a b") == "virtio_uml.device='/run/a b':1"


IDLE = idle_queue("requests 0")
QUEUE = replace(IDLE, size=128, last_avail_idx=7, used_idx=6, inuse=1, kicks=3, calls=2, suppressed=4, elements=6)
STATE = DeviceState("running", ["VIRTIO_F_VERSION_1"], [QUEUE], {"in": 5, "out": 0, "flush": 1})


def test_the_table_has_qemus_names() -> None:
    out = io.StringIO()
    Console(file=out, width=140).print(render(STATE))
    text = out.getvalue()
    for name in ("last_avail_idx", "used_idx", "inuse", "signalled_used", "notification", "in 5   flush 1"):
        assert name in text
    assert "out" not in text


def test_the_line_is_one_line() -> None:
    assert line(STATE) == (
        "running; requests 0: last_avail_idx 7 used_idx 6 inuse 1 signalled_used - kicks 3 calls 2 suppressed 4;"
        " requests: in 5 flush 1"
    )


def test_a_queue_that_is_not_set_up_takes_no_room_in_the_line() -> None:
    assert line(DeviceState("waiting", [], [IDLE], {})) == "waiting"


def test_a_packed_queue_has_wrap_counters() -> None:
    packed = replace(QUEUE, packed=True, used_wrap_counter=0)
    assert "last_avail_idx 7 wrap 1 used_idx 6 wrap 0 inuse" in line(DeviceState("running", [], [packed], {}))
