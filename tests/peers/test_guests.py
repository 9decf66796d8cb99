"""Linux's own virtio drivers in real guests: first against back ends of others, then against iosim's.

The guests run in user-mode Linux and in QEMU under TCG, each for at most a minute (`make test-peers`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import guest_backends as backends
import guest_kernel
import pytest
from guest import BLK, NET, GuestError, GuestRun, blk_device, net_device, run_qemu, run_uml
from guest_workloads import MB, DiskWorkload, Ping, check_net, disk_workload, net_script, pattern

pytestmark = pytest.mark.peers

UML = pytest.param("uml", id="uml")
QEMU = pytest.param("qemu", id="qemu")
DISK = 16 * MB
MARK = f"iosim.test={os.getpid()}"
PINGS = [Ping(100, 0), Ping(100, 56), Ping(100, 1000), Ping(100, 1472)]


def need(machine: str, *programs: str) -> None:
    """Skip, saying what is missing."""
    lacks = guest_kernel.missing(machine)
    if lacks:
        pytest.skip(lacks)
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def commandlines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        # Processes end while they are listed.
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def run_disk(machine: str, socket: str, work: DiskWorkload, properties: Mapping[str, object]) -> GuestRun:
    if machine == "uml":
        return run_uml(work.script(), [(socket, BLK)], files=work.files())
    return run_qemu(work.script(), blk_device(socket, **properties), files=work.files())


def run_net(machine: str, socket: str, script: str, properties: Mapping[str, object]) -> GuestRun:
    if machine == "uml":
        return run_uml(script, [(socket, NET)])
    return run_qemu(script, net_device(socket, **properties))


# -- back ends of others: do the guests work? --------------------------------------------------------------------


@pytest.mark.parametrize("machine", [UML, QEMU])
def test_disk_of_qemu_storage_daemon(machine: str, tmp_path: Path) -> None:
    need(machine, backends.STORAGE_DAEMON)
    initial = pattern(1, DISK)
    disk = tmp_path / "disk"
    disk.write_bytes(initial)
    work = disk_workload(initial)
    with backends.storage_daemon(disk) as served:
        run = run_disk(machine, served.socket, work, {})
    work.check(run)
    assert disk.read_bytes() == work.disk


# Not in user-mode Linux: DPDK offers a control queue and leaves it to QEMU, so that a driver without QEMU waits
# forever for an answer there.
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_network_of_dpdk(packed: bool) -> None:
    need("qemu", backends.TESTPMD)
    with backends.testpmd() as served:
        run = run_net("qemu", served.socket, net_script(PINGS), {"packed": packed})
    assert check_net(run, PINGS) == sum(ping.count for ping in PINGS)
    assert bool(run.features() >> 34 & 1) is packed


def test_a_guest_that_hangs_is_killed_with_all_it_started() -> None:
    need("uml")
    with pytest.raises(GuestError, match=r"(?s)hung: killed after 4 s.*@@ asleep"):
        run_uml("say asleep; sleep 1000", [], seconds=4, arguments=[MARK])
    assert not any(MARK.encode() in commandline for commandline in commandlines())


def test_a_guest_that_finds_no_device_says_so_at_once() -> None:
    need("uml")
    with pytest.raises(GuestError, match="no /dev/vda"):
        disk_workload(pattern(1, DISK)).check(run_uml(disk_workload(pattern(1, DISK)).script(), []))
