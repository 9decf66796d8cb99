"""Linux's own virtio drivers in real guests: first against back ends of others, then against iosim's.

The guests run in user-mode Linux and in QEMU under TCG, each for at most a minute (`make test-peers`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import guest_backends as backends
import guest_kernel
import pytest
from guest import BLK, NET, GuestError, GuestRun, blk_device, net_device, run_qemu, run_uml
from guest_workloads import KB, MB, DiskWorkload, Ping, check_net, disk_workload, net_script, pattern, rebind

from iosim.virtio.features import (
    VIRTIO_F_RING_PACKED,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    has_feature,
)

pytestmark = pytest.mark.peers

UML = pytest.param("uml", id="uml")
QEMU = pytest.param("qemu", id="qemu")
DISK = 16 * MB
MARK = f"iosim.test={os.getpid()}"
PINGS = [Ping(100, 0), Ping(100, 56), Ping(100, 1000), Ping(100, 1472)]


Report = Callable[[backends.Served, GuestRun], None]


@dataclass(frozen=True)
class Ring:
    """What the rings are to be like."""

    event_idx: bool = True
    indirect: bool = False
    packed: bool = False

    def options(self) -> list[str]:
        """For `iosim serve`."""
        return [
            "--event-idx" if self.event_idx else "--no-event-idx",
            "--indirect" if self.indirect else "--no-indirect",
            "--packed" if self.packed else "--split",
        ]

    def check(self, features: int) -> None:
        """The driver took just that."""
        assert has_feature(features, VIRTIO_RING_F_EVENT_IDX) is self.event_idx
        assert has_feature(features, VIRTIO_RING_F_INDIRECT_DESC) is self.indirect
        assert has_feature(features, VIRTIO_F_RING_PACKED) is self.packed


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
    assert check_net(run, PINGS) >= sum(ping.count for ping in PINGS)
    assert bool(run.features() >> 34 & 1) is packed


def test_a_guest_that_hangs_is_killed_with_all_it_started() -> None:
    need("uml")
    with pytest.raises(GuestError, match=r"(?s)hung: killed after 12 s.*@@ asleep"):
        run_uml("say asleep; sleep 1000", [], seconds=12, arguments=[MARK])
    # A process that was killed takes a moment to be gone.
    deadline = time.monotonic() + 5
    while left := [line for line in commandlines() if MARK.encode() in line]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_a_guest_that_finds_no_device_says_so_at_once() -> None:
    need("uml")
    with pytest.raises(GuestError, match="no /dev/vda"):
        disk_workload(pattern(1, DISK)).check(run_uml(disk_workload(pattern(1, DISK)).script(), []))


# -- iosim's back end: do the rings work? -------------------------------------------------------------------------

#: What is offered, as options of `iosim serve`: for a driver that takes everything, as user-mode Linux's does.
RINGS = [
    pytest.param(Ring(event_idx=True), id="split-event_idx"),
    pytest.param(Ring(event_idx=False), id="split-flags"),
    pytest.param(Ring(event_idx=True, indirect=True), id="split-event_idx-indirect"),
    pytest.param(Ring(event_idx=False, indirect=True), id="split-flags-indirect"),
    pytest.param(Ring(event_idx=True, packed=True), id="packed-event_idx"),
    pytest.param(Ring(event_idx=False, packed=True), id="packed-flags"),
    pytest.param(Ring(event_idx=True, packed=True, indirect=True), id="packed-event_idx-indirect"),
    pytest.param(Ring(event_idx=False, packed=True, indirect=True), id="packed-flags-indirect"),
]


@pytest.mark.parametrize("machine", [UML, QEMU])
@pytest.mark.parametrize("ring", RINGS)
def test_disk_of_iosim(machine: str, ring: Ring, tmp_path: Path, report: Report) -> None:
    need(machine)
    initial = pattern(1, DISK)
    disk = tmp_path / "disk"
    disk.write_bytes(initial)
    work = disk_workload(initial)
    with backends.iosim("vhost-user-blk", "--disk", str(disk), "--serial", "peer test", *ring.options()) as served:
        # QEMU takes packed rings only when it is told to.
        run = run_disk(machine, served.socket, work, {"packed": True} if ring.packed else {})
    work.check(run)
    assert run.one("serial") == ["peer", "test"]
    assert disk.read_bytes() == work.disk
    ring.check(run.features())
    report(served, run)


def test_disk_with_two_queues_and_processors(tmp_path: Path, report: Report) -> None:
    need("qemu")
    initial = pattern(1, DISK)
    disk = tmp_path / "disk"
    disk.write_bytes(initial)
    work = disk_workload(initial, filesystem=True)
    ring = Ring(event_idx=True)
    with backends.iosim("vhost-user-blk", "--disk", str(disk), "--queues", "2", *ring.options()) as served:
        device = blk_device(served.socket, num_queues=2, queue_size=64)
        run = run_qemu(work.script(), device, files=work.files(), cpus=2)
    work.check(run)
    assert run.one("queues") == ["2"]
    # The files went through the page cache to the disk; their contents were compared in the guest.
    assert len(run.all("fs")) == 3
    assert disk.read_bytes() != work.disk
    report(served, run)


@pytest.mark.parametrize("machine", [UML, QEMU])
def test_a_disk_that_is_read_only_stays_as_it_is(machine: str, tmp_path: Path) -> None:
    need(machine)
    initial = pattern(1, 1 * MB)
    disk = tmp_path / "disk"
    disk.write_bytes(initial)
    work = DiskWorkload(initial)
    work.read(0, 1 * MB, 4 * KB)
    work.lines += [
        "say ro $(cat /sys/block/vda/ro)",
        "dd if=/dev/zero of=/dev/vda bs=512 count=1 oflag=direct 2>/dev/null && say wrote",
    ]
    with backends.iosim("vhost-user-blk", "--disk", str(disk), "--read-only", *Ring().options()) as served:
        run = run_disk(machine, served.socket, work, {})
    work.check(run)
    assert run.one("ro") == ["1"]
    assert not run.all("wrote")
    assert disk.read_bytes() == initial


@pytest.mark.parametrize("machine", [UML, QEMU])
@pytest.mark.parametrize("ring", RINGS)
def test_network_of_iosim(machine: str, ring: Ring, report: Report) -> None:
    need(machine)
    # Whole packets, and packets that several receive buffers hold together (MRG_RXBUF), and fragments.
    pings = [*PINGS, Ping(50, 8000), Ping(20, 20000)]
    with backends.iosim("vhost-user-net", *ring.options()) as served:
        script = net_script(pings, mtu=9000)
        run = run_net(machine, served.socket, script, {"packed": True} if ring.packed else {})
    count = check_net(run, pings)
    # The peer saw each echo once, and took none for damaged.
    counted = served.requests()
    assert counted["peer_echo"] == count
    assert "peer_bad_checksum" not in counted
    # An echo of 20028 bytes goes in three packets of 9000.
    assert counted["peer_fragment"] == 2 * 20
    # The driver counts what it sends and receives before a packet's header, and so does iosim.
    statistics = {name: int(value) for name, value in run.all("net")}
    for way in ("rx", "tx"):
        assert counted[f"{way}_packets"] == statistics[f"{way}_packets"]
        assert counted[f"{way}_bytes"] == statistics[f"{way}_bytes"]
    ring.check(run.features())
    report(served, run)


@pytest.mark.parametrize("machine", [UML, QEMU])
def test_many_packets_are_on_their_way_at_once(machine: str, report: Report) -> None:
    need(machine)
    pings = [Ping(100, 56), Ping(100, 1400)]
    with backends.iosim("vhost-user-net", *Ring().options()) as served:
        run = run_net(machine, served.socket, net_script(pings, at_once=8), {})
    assert served.requests()["peer_echo"] == check_net(run, pings, at_once=8) >= 1600
    report(served, run)


@pytest.mark.parametrize("machine", [UML, QEMU])
def test_a_network_driver_that_comes_again_finds_its_rings_fresh(machine: str, report: Report) -> None:
    need(machine)
    pings = [Ping(30, 56), Ping(30, 1400), Ping(30, 56)]
    script = net_script(pings, between=rebind("virtio_net"))
    with backends.iosim("vhost-user-net", *Ring().options()) as served:
        run = run_net(machine, served.socket, script, {})
    assert served.requests()["peer_echo"] == check_net(run, pings) >= 90
    assert len(run.all("bound")) == 2
    report(served, run)


@pytest.mark.parametrize("machine", [UML, QEMU])
def test_a_disk_driver_that_comes_again_finds_its_rings_fresh(machine: str, tmp_path: Path, report: Report) -> None:
    need(machine)
    initial = pattern(1, DISK)
    disk = tmp_path / "disk"
    disk.write_bytes(initial)
    work = disk_workload(initial)
    for start in (0, 2 * MB):
        work.lines += [rebind("virtio_blk"), "need /dev/vda"]
        work.write(3 * MB + start, 0, 1 * MB, 16 * KB)
        work.read(2 * MB, 4 * MB, 64 * KB)
    with backends.iosim("vhost-user-blk", "--disk", str(disk), *Ring().options()) as served:
        run = run_disk(machine, served.socket, work, {})
    work.check(run)
    assert len(run.all("bound")) == 2
    assert disk.read_bytes() == work.disk
    report(served, run)
