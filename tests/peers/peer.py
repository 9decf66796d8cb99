"""Starting programs of other people, and not outliving them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


def find(program: str, package: str) -> str:
    """Return the program's path, or skip the test."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian: {package})")
    return path


class Peer:
    """A running program; its output is in `log`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[Peer]:
    """Run a program in a process group of its own; kill it at the end, and show its output if the test failed."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    peer = Peer(process, log)
    try:
        yield peer
    except BaseException as error:
        status = process.poll()
        state = "is still running" if status is None else f"ended with status {status}"
        error.add_note(f"{os.path.basename(command[0])} {state}; its output:\n{peer.output()}")
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin:
            process.stdin.close()
