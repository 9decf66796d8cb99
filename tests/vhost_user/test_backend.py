"""The device's end, driven by iosim's own front end and by raw messages."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import permutations, product
from pathlib import Path

import pytest
from devices import RING_FEATURES, QueueDevice, Reports, serving, upper

from iosim.ring.memory import allocate, read_bytes, write_bytes
from iosim.ring.queue import vring_base
from iosim.ring.virtqueue import Buffer, new_virtqueue
from iosim.vhost_user import messages as m
from iosim.vhost_user.backend import BUDGET, PROTOCOL_FEATURES, Backend
from iosim.vhost_user.blk_driver import BlkDriver
from iosim.vhost_user.channel import Channel
from iosim.vhost_user.errors import DisconnectedError, HungError, RefusedError, VhostUserError
from iosim.vhost_user.frontend import Frontend
from iosim.vhost_user.memory import SharedMemory
from iosim.virtio.blk import VIRTIO_BLK_T_IN, BlkDevice
from iosim.virtio.disk import MemoryDisk
from iosim.virtio.features import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    feature_names,
)

RING_BITS = (VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_F_IN_ORDER)
MIXES = [sum(1 << bit for bit in bits if bit) for bits in product(*((0, bit) for bit in RING_BITS))]
EVENT_IDX = 1 << VIRTIO_RING_F_EVENT_IDX
R = m.Request


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.0005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.mark.parametrize("features", MIXES, ids=lambda mix: "+".join(feature_names(mix)) or "plain")
def test_a_disk_of_our_own(path: Path, features: int) -> None:
    model = bytearray(os.urandom(512 * 64))
    disk = MemoryDisk(model)
    with (
        serving(BlkDevice(disk, "of our own", 2, ring_features=RING_FEATURES), path) as (_, reports),
        SharedMemory.create(1 << 20) as mem,
        Frontend.connect(path) as frontend,
    ):
        frontend.negotiate(features)
        frontend.share(mem)
        drivers = [BlkDriver(frontend, frontend.add_queue(i, 8), 2, 4096, segments=2) for i in range(2)]
        for i in range(60):
            driver = drivers[i % 2]
            driver.write(i, bytes([i]) * 1024)
            model[i * 512 : i * 512 + 1024] = bytes([i]) * 1024
            assert driver.read(i // 2, 2048) == model[i // 2 * 512 : i // 2 * 512 + 2048]
        drivers[0].flush()
        assert drivers[1].get_id() == "of our own"
        assert drivers[0].capacity() == disk.size
        for i in (0, 1):
            assert frontend.stop_queue(i) == vring_base(drivers[i].queue.driver.q)
    assert disk.data == model
    assert disk.flushes > 0
    assert reports == []


def test_a_driver_that_never_stops_does_not_keep_the_others_out(path: Path) -> None:
    """Its queue gets its turn again and again; the other queue and the messages get theirs."""
    stop = False
    turns = 0

    class Endless(MemoryDisk):
        """The next request is there before this one is done, as with a driver on a faster processor."""

        def read(self, offset: int, length: int) -> bytes:
            nonlocal turns
            if offset == 0 and not stop:
                turns += 1
                while endless.collect() is not None:
                    pass
                endless.submit(VIRTIO_BLK_T_IN, 0, read=512)
            return super().read(offset, length)

    with (
        serving(BlkDevice(Endless(4096), "", 2, ring_features=RING_FEATURES), path) as (_, reports),
        SharedMemory.create(1 << 20) as mem,
        Frontend.connect(path) as frontend,
    ):
        frontend.negotiate(EVENT_IDX)
        frontend.share(mem)
        endless, other = (BlkDriver(frontend, frontend.add_queue(i, 16), 4, 512) for i in range(2))
        endless.submit(VIRTIO_BLK_T_IN, 0, read=512)
        endless.queue.notify()
        wait_for(lambda: turns > BUDGET)  # it has come back to the queue at least once
        before = turns
        assert other.read(1, 512) == bytes(512)
        assert other.capacity() == 4096
        wait_for(lambda: turns > before + BUDGET)  # and goes on after the others' turn
        stop = True
    assert reports == []


class Raw:
    """A driver that sends what it likes, in the order it likes."""

    def __init__(self, path: Path, mem: SharedMemory, size: int = 4) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.fspath(path))
        self.channel = Channel(sock, 2)
        self.mem = mem
        self.size = size
        self.driver, _ = new_virtqueue(mem, size, False)
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)

    def tell(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 0) -> None:
        self.channel.send(request, payload, flags, fds)

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        self.tell(request, payload)
        return self.channel.receive().payload

    def sync(self) -> None:
        """Messages are served in order: once this one is answered, those before are done."""
        self.ask(R.GET_FEATURES)

    def steps(self, index: int = 0) -> dict[str, Callable[[], None]]:
        """The messages that make a queue run, in any order."""
        q = self.driver.q
        addr = m.VringAddr(index, 0, *(self.mem.to_user(part) for part in (q.desc, q.used, q.avail)), 0)
        return {
            "memory": lambda: self.tell(R.SET_MEM_TABLE, m.pack_memory_table(self.mem.table), tuple(self.mem.fds)),
            "num": lambda: self.tell(R.SET_VRING_NUM, m.VringState(index, self.size).pack()),
            "addr": lambda: self.tell(R.SET_VRING_ADDR, addr.pack()),
            "kick": lambda: self.tell(R.SET_VRING_KICK, m.pack_u64(index), (self.kick,)),
            "call": lambda: self.tell(R.SET_VRING_CALL, m.pack_u64(index), (self.call,)),
            "enable": lambda: self.tell(R.SET_VRING_ENABLE, m.VringState(index, 1).pack()),
            "notify": lambda: os.eventfd_write(self.kick, 1) or None,
        }

    def features(self, protocol: bool = True) -> None:
        self.tell(R.SET_FEATURES, m.pack_u64(1 << VIRTIO_F_VERSION_1 | protocol << 30))

    def add(self, text: bytes) -> int:
        out, back = allocate(self.mem, len(text), 1), allocate(self.mem, len(text), 1)
        write_bytes(self.mem, out, text)
        self.driver.add([Buffer(out, len(text))], [Buffer(back, len(text))], back)
        return back

    def wait_used(self) -> bytes:
        until = time.monotonic() + 2
        while (used := self.driver.get_buf()) is None:
            assert time.monotonic() < until, "the request was not served"
            time.sleep(0.0005)
        return read_bytes(self.mem, used.data, used.length)

    def close(self) -> None:
        self.channel.close()
        os.close(self.kick)
        os.close(self.call)


@pytest.fixture
def mem() -> Iterator[SharedMemory]:
    with SharedMemory.create(1 << 20) as memory:
        yield memory


def test_a_queue_runs_whatever_comes_last(path: Path, mem: SharedMemory) -> None:
    """Of the 720 orders in which a queue can be described and notified, each serves what was available before."""
    names = ["memory", "num", "addr", "kick", "enable", "notify"]
    with serving(QueueDevice(upper), path) as (backend, reports):
        for order in permutations(names):
            raw = Raw(path, mem)
            raw.features()
            raw.add(b"text")
            steps = raw.steps()
            for step in order:
                steps[step]()
            assert raw.wait_used() == b"TEXT", order
            raw.close()
        assert backend.sessions == 720
    assert reports == []


def test_without_protocol_features_rings_come_up_enabled(path: Path, mem: SharedMemory) -> None:
    with serving(QueueDevice(upper), path):
        raw = Raw(path, mem)
        raw.features(protocol=False)
        raw.add(b"x")
        for step in ("memory", "num", "addr", "kick", "notify"):
            raw.steps()[step]()
        assert raw.wait_used() == b"X"
        raw.close()


def test_a_new_call_descriptor_is_signalled_once(path: Path, mem: SharedMemory) -> None:
    """What was signalled to nobody would be missed."""
    with serving(QueueDevice(upper), path):
        raw = Raw(path, mem)
        raw.features()
        raw.add(b"x")
        steps = raw.steps()
        for step in ("memory", "num", "addr", "kick", "enable"):
            steps[step]()
        raw.wait_used()
        steps["call"]()
        raw.sync()
        assert os.eventfd_read(raw.call) == 1
        raw.close()


def test_a_stopped_ring_serves_nothing_and_goes_on_where_it_was(path: Path, mem: SharedMemory) -> None:
    device = QueueDevice(upper)
    with serving(device, path):
        raw = Raw(path, mem)
        raw.features()
        steps = raw.steps()
        for step in ("memory", "num", "addr", "kick", "call", "enable"):
            steps[step]()
        for i in range(7):
            raw.add(b"%d" % i)
            steps["notify"]()
            assert raw.wait_used() == b"%d" % i
        assert m.VringState.unpack(raw.ask(R.GET_VRING_BASE, m.VringState(0, 0).pack())) == (0, 7)
        raw.add(b"late")
        steps["notify"]()
        raw.sync()
        time.sleep(0.02)
        assert raw.driver.get_buf() is None
        raw.tell(R.SET_VRING_BASE, m.VringState(0, 7).pack())
        steps["kick"]()
        assert raw.wait_used() == b"LATE"
        # Disabled and enabled again, it goes on as well.
        raw.tell(R.SET_VRING_ENABLE, m.VringState(0, 0).pack())
        raw.sync()
        raw.add(b"more")
        raw.sync()
        assert raw.driver.get_buf() is None
        steps["enable"]()
        assert raw.wait_used() == b"MORE"
        raw.close()
    assert device.served == 9


def test_memory_can_be_added_while_rings_run(path: Path, mem: SharedMemory) -> None:
    """ADD_MEM_REG and REM_MEM_REG (CONFIGURE_MEM_SLOTS), as QEMU sends them when memory is plugged."""
    with serving(QueueDevice(upper), path) as (_, reports):
        raw = Raw(path, mem)
        raw.tell(R.SET_PROTOCOL_FEATURES, m.pack_u64(PROTOCOL_FEATURES))
        raw.features()
        steps = raw.steps()
        raw.tell(R.ADD_MEM_REG, m.pack_single_region(mem.table[0]), tuple(mem.fds))
        for step in ("num", "addr", "kick", "call", "enable"):
            steps[step]()
        raw.add(b"one")
        steps["notify"]()
        assert raw.wait_used() == b"ONE"
        with SharedMemory.create(8192, guest_addr=3 << 30) as second:
            second.u8[3 << 30 : (3 << 30) + 3] = b"two"
            region = m.pack_single_region(second.table[0])
            raw.tell(R.ADD_MEM_REG, region, tuple(second.fds))
            raw.driver.add([Buffer(3 << 30, 3)], [Buffer((3 << 30) + 8189, 3)], 0)
            steps["notify"]()
            raw.wait_used()
            assert bytes(second.u8[(3 << 30) + 8189 :]) == b"TWO"
            raw.tell(R.REM_MEM_REG, region)
            raw.add(b"three")
            steps["notify"]()
            assert raw.wait_used() == b"THREE"
            raw.sync()
            raw.driver.add([Buffer(3 << 30, 3)], [Buffer(8192, 3)], 0)
            steps["notify"]()
            wait_for(lambda: reports)
        raw.close()
    assert len(reports) == 1
    assert reports[0].startswith("queue 0: a descriptor points outside guest memory")


def test_2_1_2_a_broken_device_works_again_after_a_reset(path: Path, mem: SharedMemory) -> None:
    """On the same connection, as when the guest of a QEMU reboots."""
    with serving(BlkDevice(MemoryDisk(4096)), path) as (_, reports), Frontend.connect(path) as frontend:
        frontend.negotiate(0)
        frontend.share(mem)
        queue = frontend.add_queue(0, 8)
        mem.u16[(queue.driver.q.avail >> 1) + 1] = 1000
        queue.notify()
        wait_for(lambda: reports)
        frontend.stop_queue(0)
        assert BlkDriver(frontend, frontend.add_queue(0, 8), 1, 512).get_id() == "iosim"
    assert len(reports) == 1


def test_a_hostile_ring_breaks_the_device_and_nothing_else(path: Path, mem: SharedMemory) -> None:
    with serving(QueueDevice(upper), path) as (_, reports):
        raw = Raw(path, mem)
        raw.features()
        error_fd = os.eventfd(0)
        raw.tell(R.SET_VRING_ERR, m.pack_u64(0), (error_fd,))
        steps = raw.steps()
        for step in ("memory", "num", "addr", "kick", "call", "enable"):
            steps[step]()
        raw.add(b"x")
        mem.u16[raw.driver.q.desc + 12 >> 1] |= 1  # next: itself
        mem.u16[raw.driver.q.desc + 14 >> 1] = 0
        steps["notify"]()
        assert os.eventfd_read(error_fd) == 1
        os.close(error_fd)
        steps["notify"]()
        raw.sync()
        assert len(reports) == 1
        assert reports[0].startswith("queue 0: ")
        assert reports[0].endswith("; the device is broken until the driver resets it")
        assert "\n" not in reports[0]
        raw.close()
        again = Raw(path, mem)
        again.features()
        again.add(b"well")
        for step in again.steps().values():
            step()
        assert again.wait_used() == b"WELL"
        again.close()


def table(guest_addr: int) -> bytes:
    """SET_MEM_TABLE with one page."""
    return m.encode(R.SET_MEM_TABLE, m.pack_memory_table([m.MemoryRegion(guest_addr, 4096, 0, 0)]))


BAD: list[tuple[bytes, int, str]] = [
    (b"\x01" * 11 + b"", 0, "the other end closed the connection"),
    (m.Header(1, 2, 0).pack(), 0, "flags 0x2; the version in the lowest two bits must be 1"),
    (m.Header(1, 0x11, 0).pack(), 0, "flags 0x11; only version, reply (4) and need_reply (8) are defined"),
    (m.Header(1, 5, 0).pack(), 0, "GET_FEATURES is marked as a reply, but nothing was asked"),
    (m.Header(1, 1, 1 << 20).pack(), 0, "a payload of 1048576 bytes; there is none over 4096"),
    (m.Header(999, 1, 0).pack(), 0, "vhost-user request 999 is not supported"),
    (m.encode(R.SET_LOG_BASE, bytes(8)), 0, "vhost-user request SET_LOG_BASE is not supported"),
    (m.encode(R.SET_FEATURES, bytes(4)), 0, "SET_FEATURES has a payload of 8 bytes, not 4"),
    (m.encode(R.SET_FEATURES, b"\xff" * 8), 0, "the driver took features"),
    (m.encode(R.SET_PROTOCOL_FEATURES, b"\xff" * 8), 0, "the driver took protocol features"),
    (m.encode(R.SET_FEATURES, bytes(8)), 1, "SET_FEATURES has 0 file descriptors, not 1"),
    (m.encode(R.SET_VRING_NUM, m.VringState(7, 4).pack()), 0, "queue 7; the device has 1"),
    (m.encode(R.SET_VRING_KICK, m.pack_u64(3)), 1, "queue 3; the device has 1"),
    (m.encode(R.SET_VRING_KICK, m.pack_u64(0)), 0, "SET_VRING_KICK for queue 0: it says one thing"),
    (m.encode(R.SET_VRING_KICK, m.pack_u64(0x100)), 0, "queue 0 is to be polled"),
    (m.encode(R.SET_VRING_KICK, m.pack_u64(0)), 2, "SET_VRING_KICK has 0 to 1 file descriptors, not 2"),
    (table(0), 0, "SET_MEM_TABLE has 1 regions and 0"),
    (table(0), 1, "memory region at 0x0: its file has"),
    (table(1), 1, "must be multiples of 4096"),
    (table(1 << 63), 1, "at most 0x100000000000"),
    (m.encode(R.SET_MEM_TABLE, (9).to_bytes(8, "little")), 0, "a memory table of 9 regions; at most 8"),
    (m.encode(R.SET_MEM_TABLE, (2).to_bytes(8, "little")), 0, "a memory table of 2 regions in 8 bytes"),
    (m.encode(R.GET_CONFIG, m.Config(200, 0, bytes(57)).pack()), 0, "configuration bytes 200 to 257; there are 256"),
    (m.encode(R.REM_MEM_REG, m.pack_single_region(m.MemoryRegion(0, 1, 2, 3))), 0, "no memory region at 0x0"),
]


@pytest.mark.parametrize(("data", "fds", "line"), BAD, ids=[line for _, _, line in BAD])
def test_garbage_ends_the_connection_with_one_line(path: Path, data: bytes, fds: int, line: str) -> None:
    with serving(QueueDevice(upper), path) as (_, reports):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.fspath(path))
        sock.settimeout(2)
        plain = path.with_name("empty").open("w+b")
        socket.send_fds(sock, [data], [plain.fileno()] * fds)
        if len(data) < 12:
            sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""
        sock.close()
        plain.close()
        # The next one is served.
        with Frontend.connect(path):
            pass
    assert any(line in found for found in reports + reports.details)
    assert all("\n" not in found for found in reports)


def test_what_can_be_refused_is_refused_and_the_connection_stays(path: Path) -> None:
    with serving(QueueDevice(upper), path) as (_, reports), Frontend.connect(path) as frontend:
        with pytest.raises(RefusedError, match=r"refused SET_VRING_NUM"):
            frontend._tell(R.SET_VRING_NUM, m.VringState(5, 8).pack())
        assert frontend.queue_num() == 1
    assert reports == ["SET_VRING_NUM refused: queue 5; the device has 1"]


def test_addresses_in_no_region_and_sizes_of_no_ring(path: Path, mem: SharedMemory) -> None:
    with serving(QueueDevice(upper), path) as (_, reports), Frontend.connect(path) as frontend:
        frontend.negotiate(0)
        frontend.share(mem)
        frontend._tell(R.SET_VRING_NUM, m.VringState(0, 7).pack())
        kick = os.eventfd(0)
        frontend._tell(R.SET_VRING_KICK, m.pack_u64(0), [kick])
        frontend._tell(R.SET_VRING_ENABLE, m.VringState(0, 1).pack())
        with pytest.raises(RefusedError):
            frontend._tell(R.SET_VRING_ADDR, m.VringAddr(0, 0, 1, 2, 3, 0).pack())
        user = mem.table[0].user_addr
        with pytest.raises(RefusedError):
            frontend._tell(R.SET_VRING_ADDR, m.VringAddr(0, 0, user, user + 4096, user + 8192, 0).pack())
        os.close(kick)
    assert "user address 0x1 lies in none of the 1 memory regions" in reports[0]
    assert "queue size 7" in reports[1]


def test_configuration_space_can_be_read_and_written(path: Path) -> None:
    device = QueueDevice(upper)
    with serving(device, path), Frontend.connect(path) as frontend:
        assert frontend.get_config(3, 4) == b"\3\4\5\6"
        frontend._tell(R.SET_CONFIG, m.Config(2, 0, b"ab").pack())
        assert frontend.get_config(0, 5) == b"\0\1ab\4"


def test_a_driver_that_stops_in_the_middle_of_a_message_is_dropped(path: Path) -> None:
    with serving(QueueDevice(upper), path, timeout=0.2) as (_, reports):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.fspath(path))
        sock.send(m.encode(R.SET_FEATURES, bytes(8))[:15])
        with Frontend.connect(path, timeout=5):
            pass
        sock.close()
    assert reports == ["the other end sent no whole message in 0.2 s; hanging up"]


def test_a_back_end_that_never_answers_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with pytest.raises(HungError, match=r"sent no whole message in 0\.1 s"):
        Frontend(ours, 0.1)
    theirs.close()
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(DisconnectedError):
        Frontend(ours, 0.1)


def test_nobody_listens(path: Path) -> None:
    with pytest.raises(DisconnectedError, match="nobody listens there"):
        Frontend.connect(path, timeout=0.05)
    with pytest.raises(VhostUserError, match="cannot listen there"):
        Backend(QueueDevice(upper), path / "no" / "such", report=Reports())


def test_the_driver_is_told_of_a_new_configuration(path: Path) -> None:
    """BACKEND_REQ, as Linux's virtio_uml takes it."""
    with serving(QueueDevice(upper), path) as (backend, _), Frontend.connect(path) as frontend:
        ours, theirs = socket.socketpair()
        frontend._tell(R.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        theirs.close()
        assert backend.session is not None
        backend.session.config_changed()
        assert m.Header.unpack(ours.recv(100)) == (2, 1, 0)
        ours.close()


def test_descriptors_are_closed_whatever_happens(path: Path, mem: SharedMemory) -> None:
    def descriptors() -> list[str]:
        gc.collect()  # Other tests' leavings.
        links = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # The one that lists.
                links.append(os.readlink(f"/proc/self/fd/{fd}").split(":")[0])
        return sorted(links)

    def once() -> None:
        raw = Raw(path, mem)
        raw.features()
        for step in raw.steps().values():
            step()
        for step in raw.steps().values():
            step()
        raw.tell(R.SET_VRING_ERR, m.pack_u64(0), (raw.call,))
        raw.sync()
        raw.tell(R.SET_FEATURES, bytes(8), (raw.call, raw.kick))
        with pytest.raises(DisconnectedError):
            raw.sync()
        raw.close()

    with serving(QueueDevice(upper), path):
        once()
        with Frontend.connect(path):
            before = descriptors()
        for _ in range(3):
            once()
        with Frontend.connect(path):
            assert descriptors() == before


def test_memory_that_was_taken_stays_though_a_ring_cannot_go_on_in_it(path: Path, mem: SharedMemory) -> None:
    """Found by test_hostile_driver: the descriptors were closed twice, and the second time they were another's."""
    with serving(QueueDevice(upper), path) as (_, reports):
        raw = Raw(path, mem)
        raw.tell(R.SET_PROTOCOL_FEATURES, m.pack_u64(PROTOCOL_FEATURES))
        raw.features()
        steps = raw.steps()
        for step in steps.values():
            step()
        raw.tell(R.SET_VRING_NUM, m.VringState(0, 7).pack())
        raw.tell(R.SET_MEM_TABLE, m.pack_memory_table(mem.table), tuple(mem.fds), m.NEED_REPLY)
        assert m.unpack_u64(raw.channel.receive().payload) == 1
        others = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]
        raw.close()
        with Frontend.connect(path):
            pass
        for fd in others:
            os.close(fd)
    assert len(reports) == 1
    assert reports[0].startswith("SET_MEM_TABLE refused: queue size 7")
