"""`iosim serve` as people run it: in a process of its own, with a driver on its socket, ended by Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iosim import cli
from iosim.vhost_user.blk_driver import BlkDriver
from iosim.vhost_user.frontend import Frontend
from iosim.vhost_user.memory import SharedMemory
from iosim.virtio.features import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX

SECONDS = 30.0
FEATURES = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX
DISK = bytes(range(256)) * 256


@pytest.fixture
def here() -> Iterator[Path]:
    # Not tmp_path: with a long directory in front, a socket's path would be too long.
    with tempfile.TemporaryDirectory(prefix="iosim-") as directory:
        (Path(directory) / "disk").write_bytes(DISK)
        yield Path(directory)


class Serving:
    """A running `iosim serve`; `end` gives its status and what it said."""

    def __init__(self, *arguments: str, terminal: bool = False) -> None:
        # Wide enough for the table.
        environment = {**os.environ, "COLUMNS": "150", "LINES": "40", "TERM": "xterm"}
        self._master, out = pty.openpty() if terminal else os.pipe()
        command = [sys.executable, "-m", "iosim", "serve", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
        )
        os.close(out)
        self.output = ""

    def end(self, number: signal.Signals | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                break  # So a terminal says that nobody holds its other end.
            if not data:
                break
            self.output += data.decode()
        return self.process.wait(SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@contextmanager
def serving(socket: Path, *arguments: str, terminal: bool = False) -> Iterator[Serving]:
    served = Serving(*arguments, "--socket", str(socket), terminal=terminal)
    try:
        deadline = time.monotonic() + SECONDS
        while not socket.exists():
            assert served.process.poll() is None, served.end()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield served
    finally:
        served.close()


@contextmanager
def driving(socket: Path) -> Iterator[BlkDriver]:
    with SharedMemory.create(4 << 20) as mem, Frontend.connect(socket) as frontend:
        frontend.negotiate(FEATURES)
        frontend.share(mem)
        yield BlkDriver(frontend, frontend.add_queue(0, 64))


def test_a_disk_is_served_shown_and_gone(here: Path) -> None:
    socket = here / "s"
    with serving(socket, "vhost-user-blk", "--disk", str(here / "disk"), "--serial", "it") as served:
        with driving(socket) as disk:
            assert disk.capacity() == len(DISK)
            assert disk.read(1, 1024) == DISK[512:1536]
            disk.write(3, b"x" * 512)
            disk.flush()
            assert disk.get_id() == "it"
        with driving(socket) as disk:
            assert disk.read(3, 512) == b"x" * 512
        assert served.end(signal.SIGINT) == 130
        assert not socket.exists()
    lines = served.output.splitlines()
    assert lines[0].startswith(f"vhost-user-blk on {socket}; Ctrl-C ends it")
    assert f"-chardev socket,id=iosim,path={socket}" in served.output
    assert lines[-1] == "iosim: interrupted"
    last = [line for line in lines if "requests: " in line][-1]
    # The queue is the second driver's; what passed is counted over both.
    assert "requestq 0: last_avail_idx 1 used_idx 1 inuse 0 signalled_used 1" in last
    assert last.endswith("requests: in 2 out 1 flush 1 get_id 1") or "in 2" in last
    kicks, calls = re.search(r"kicks (\d+) calls (\d+)", last).groups()  # type: ignore[union-attr]
    assert (kicks, calls) == ("5", "5")
    assert (here / "disk").read_bytes() == DISK[:1536] + b"x" * 512 + DISK[2048:]


def test_a_terminal_gets_a_picture(here: Path) -> None:
    socket = here / "s"
    with serving(socket, "vhost-user-blk", "--size", "1M", terminal=True) as served:
        with driving(socket) as disk:
            assert disk.read(0, 512) == bytes(512)
        assert served.end(signal.SIGINT) == 130
        assert not socket.exists()
    assert "\x1b[" in served.output
    for name in ("last_avail_idx", "used_idx", "inuse", "signalled_used", "notification", "kicks"):
        assert name in served.output
    assert "in 1" in served.output


def test_once_ends_with_the_first_driver(here: Path) -> None:
    socket = here / "s"
    with serving(socket, "vhost-user-blk", "--once") as served:
        with driving(socket) as disk:
            assert disk.capacity() == 64 << 20
        assert served.end() == 0
        assert not socket.exists()


def test_terminated_it_removes_its_socket(here: Path) -> None:
    socket = here / "s"
    with serving(socket, "vhost-user-net") as served:
        assert served.end(signal.SIGTERM) == 143
        assert not socket.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vhost-user-bkl", "--socket", "s"], "did you mean 'vhost-user-blk'?"),
        (["vhost-user-blk"], "--socket"),
        (["vhost-user-blk", "--socket", "x" * 200], "at most 107 bytes"),
        (["vhost-user-blk", "--socket", "disk"], "exists and is no socket"),
        (["vhost-user-blk", "--socket", "no/where"], "there is no directory no"),
        (["vhost-user-blk", "--socket", "s", "--disk", "none"], "none: cannot open the disk image"),
        (["vhost-user-blk", "--socket", "s", "--disk", "."], "is a directory"),
        (["vhost-user-blk", "--socket", "s", "--disk", "empty"], "0 bytes; a disk has at least 512"),
        (["vhost-user-blk", "--socket", "s", "--size", "1000"], "whole sectors"),
        (["vhost-user-blk", "--socket", "s", "--size", "0"], "a disk of 0"),
        (["vhost-user-blk", "--socket", "s", "--size", "9E"], "up to 1T"),
        (["vhost-user-blk", "--socket", "s", "--size", "big"], "'big' is no size"),
        (["vhost-user-blk", "--socket", "s", "--size", "1M", "--disk", "disk"], "leave out --size or --disk"),
        (["vhost-user-blk", "--socket", "s", "--serial", "x" * 21], "at most 20 letters"),
        (["vhost-user-blk", "--socket", "s", "--queues", "0"], "choose 1 to 64"),
        (["vhost-user-blk", "--socket", "s", "--queue-size", "100"], "power of two"),
        (["vhost-user-net", "--socket", "s", "--disk", "disk"], "only vhost-user-blk has"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    words: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(here)
    Path("empty").touch()
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", *arguments])
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert not Path("s").exists()
