"""A driver that sends anything: the back end answers, refuses or hangs up, and serves the next one."""

from __future__ import annotations

import os
import socket
from itertools import count
from pathlib import Path

from devices import RING_FEATURES, Reports
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iosim.vhost_user import messages as m
from iosim.vhost_user.backend import PROTOCOL_FEATURES, Backend
from iosim.vhost_user.memory import SharedMemory
from iosim.virtio.blk import BlkDevice
from iosim.virtio.disk import MemoryDisk

R = m.Request
SIZE = 1 << 16
NUMBERS = count()
INDEX = st.sampled_from([0, 0, 0, 1, 1, 2, 255])
NUMBER = st.one_of(st.sampled_from([0, 1, 4, 8, 256, 0x8000, 0x80008000]), st.integers(0, (1 << 32) - 1))
#: User addresses begin here; most are meant to be right.
USER = 1 << 40
PLACE = st.one_of(st.integers(0, SIZE // 64 - 1).map(lambda i: USER + 64 * i), st.integers(0, (1 << 64) - 1))
REGION = st.one_of(
    st.just(m.MemoryRegion(0, SIZE, USER, 0)),
    st.builds(m.MemoryRegion, *[st.sampled_from([0, 4096, 8192, SIZE, 1 << 32, 1 << 63])] * 4),
)
FEATURES = st.sampled_from([1 << 32, RING_FEATURES, RING_FEATURES | 1 << 30, 1 << 30 | 1 << 32, (1 << 64) - 1])
STATE = st.builds(lambda i, n: m.VringState(i, n).pack(), INDEX, NUMBER)
FILE = st.builds(lambda i, nofd: m.pack_u64(i | nofd << 8), INDEX, st.booleans())
PAYLOADS: dict[int, st.SearchStrategy[bytes]] = {
    R.SET_FEATURES: FEATURES.map(m.pack_u64),
    R.SET_PROTOCOL_FEATURES: st.sampled_from([0, PROTOCOL_FEATURES, 1 << 60]).map(m.pack_u64),
    R.SET_MEM_TABLE: st.lists(REGION, max_size=3).map(m.pack_memory_table),
    R.ADD_MEM_REG: REGION.map(m.pack_single_region),
    R.REM_MEM_REG: REGION.map(m.pack_single_region),
    R.SET_VRING_NUM: STATE,
    R.SET_VRING_BASE: STATE,
    R.GET_VRING_BASE: STATE,
    R.SET_VRING_ENABLE: STATE,
    R.SET_VRING_ADDR: st.builds(
        lambda i, d, u, a: m.VringAddr(i, 0, d, u, a, 0).pack(), INDEX, PLACE, PLACE, PLACE
    ),
    R.SET_VRING_KICK: FILE,
    R.SET_VRING_CALL: FILE,
    R.SET_VRING_ERR: FILE,
    R.GET_CONFIG: st.builds(lambda o, n: m.Config(o, 0, bytes(n)).pack(), st.integers(0, 255), st.integers(0, 256)),
    R.SET_CONFIG: st.builds(lambda o, d: m.Config(o, 0, d).pack(), st.integers(0, 255), st.binary(max_size=80)),
}
BARE = [R.GET_FEATURES, R.SET_OWNER, R.SET_BACKEND_REQ_FD, R.GET_QUEUE_NUM]
#: Descriptors that a message should have, mostly.
FDS = {R.SET_MEM_TABLE: 1, R.ADD_MEM_REG: 1, R.SET_VRING_KICK: 1, R.SET_VRING_CALL: 1, R.SET_VRING_ERR: 1}
KINDS = ["memory", "event", "event", "pipe", "directory", "null", "socket", "path"]


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    if draw(st.integers(0, 20)) == 0:
        return draw(st.binary(min_size=1, max_size=60)), draw(st.lists(st.sampled_from(KINDS), max_size=3))
    request = draw(st.sampled_from([*PAYLOADS, *BARE]))
    payload = draw(PAYLOADS.get(request, st.just(b"")))
    # Refused, not hung up on: so the driver gets further.
    flags = draw(st.sampled_from([m.NEED_REPLY, m.NEED_REPLY, m.NEED_REPLY, 0]))
    number = FDS.get(request, 1 if request == R.SET_BACKEND_REQ_FD else 0)
    if request == R.SET_MEM_TABLE:
        number = len(m.unpack_memory_table(payload))
    kinds = [
        draw(st.sampled_from(KINDS)) if draw(st.integers(0, 4)) == 0 else
        "memory" if request in (R.SET_MEM_TABLE, R.ADD_MEM_REG) else "event"
        for _ in range(number)
    ]  # fmt: skip
    return m.encode(request, payload, flags), kinds


def start(index: int, features: int) -> list[tuple[bytes, list[str]]]:
    """All it takes to run a queue, so that what is drawn comes to rings that run."""
    at = USER + 0x1000 * (index + 1)
    return [
        (m.encode(R.SET_PROTOCOL_FEATURES, m.pack_u64(PROTOCOL_FEATURES)), []),
        (m.encode(R.SET_FEATURES, m.pack_u64(features | 1 << 30 | 1 << 32)), []),
        (m.encode(R.SET_MEM_TABLE, m.pack_memory_table([m.MemoryRegion(0, SIZE, USER, 0)])), ["memory"]),
        (m.encode(R.SET_VRING_NUM, m.VringState(index, 8).pack()), []),
        (m.encode(R.SET_VRING_ADDR, m.VringAddr(index, 0, at, at + 0x400, at + 0x200, 0).pack()), []),
        (m.encode(R.SET_VRING_KICK, m.pack_u64(index)), ["event"]),
        (m.encode(R.SET_VRING_CALL, m.pack_u64(index)), ["event"]),
        (m.encode(R.SET_VRING_ENABLE, m.VringState(index, 1).pack()), []),
    ]


class Descriptors:
    """One of each kind."""

    def __init__(self, mem: SharedMemory, directory: Path) -> None:
        self.pipe = os.pipe()
        self.sockets = socket.socketpair()
        self.by_kind = {
            "memory": mem.fds[0],
            "event": os.eventfd(1),
            "pipe": self.pipe[0],
            "directory": os.open(directory, os.O_RDONLY),
            "null": os.open("/dev/null", os.O_RDWR),
            "socket": self.sockets[0].fileno(),
            "path": os.open(directory, os.O_PATH),
        }

    def close(self) -> None:
        for kind in ("event", "directory", "null", "path"):
            os.close(self.by_kind[kind])
        for fd in self.pipe:
            os.close(fd)
        for sock in self.sockets:
            sock.close()


def serve(backend: Backend, limit: int = 200) -> None:
    """Let the back end do what there is to do, but not for ever."""
    while limit and backend.poll(0):
        limit -= 1


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    running=st.booleans(),
    features=st.sampled_from([0, RING_FEATURES]),
    garbage=st.binary(max_size=1024),
    sent=st.lists(messages(), max_size=25),
)
def test_whatever_is_sent(
    tmp_path: Path, running: bool, features: int, garbage: bytes, sent: list[tuple[bytes, list[str]]]
) -> None:
    path = tmp_path / f"{next(NUMBERS)}"
    reports = Reports()
    descriptors_before = len(os.listdir("/proc/self/fd"))
    device = BlkDevice(MemoryDisk(1 << 16), num_queues=2, ring_features=RING_FEATURES)
    with SharedMemory.create(SIZE) as mem, Backend(device, path, 0.01, reports) as backend:
        fds = Descriptors(mem, tmp_path)
        mem.u8[0x1000 : 0x1000 + len(garbage)] = garbage
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        client.setblocking(False)
        for data, kinds in [*(start(0, features) if running else []), *sent]:
            try:
                socket.send_fds(client, [data], [fds.by_kind[kind] for kind in kinds])
            except OSError:
                break
            serve(backend)
        client.close()
        serve(backend)
        # The next driver finds a device that works.
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        client.send(m.encode(R.GET_FEATURES))
        serve(backend)
        client.settimeout(1)
        assert m.unpack_u64(client.recv(100)[12:]) == device.host_features | 1 << 30
        client.close()
        fds.close()
    assert all("\n" not in line for line in reports)
    assert len(os.listdir("/proc/self/fd")) == descriptors_before
