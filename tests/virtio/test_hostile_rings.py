"""Whatever bytes stand in a queue: every device answers or stops with a named error, and writes where it may."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.ring.layout import PACKED_MARKS
from iosim.ring.memory import GuestMemory, read_bytes, write_bytes
from iosim.ring.virtqueue import new_virtqueue
from iosim.virtio.balloon import BalloonDevice
from iosim.virtio.blk import BlkDevice
from iosim.virtio.console import ConsoleDevice
from iosim.virtio.device import VirtioDevice
from iosim.virtio.disk import MemoryDisk
from iosim.virtio.input import EV_SYN, InputDevice, InputEvent, keyboard
from iosim.virtio.net_device import NetDevice
from iosim.virtio.rng import RngDevice
from iosim.virtio.scsi import ScsiDevice
from iosim.virtio.scsi_disk import ScsiDisk
from iosim.virtio.transport import Driver

SIZE, MEM = 8, 1 << 14
DEVICES: dict[str, Callable[[], VirtioDevice]] = {
    "blk": lambda: BlkDevice(MemoryDisk(1 << 14)),
    "net": NetDevice,
    "scsi": lambda: ScsiDevice({(0, 0): ScsiDisk(MemoryDisk(1 << 14))}),
    "balloon": lambda: BalloonDevice(1 << 20),
    "console": lambda: ConsoleDevice(lambda port, data: None, ("", "two")),
    "rng": RngDevice,
    "input": keyboard,
}
descriptors = st.tuples(
    st.one_of(st.integers(0, MEM), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 200), st.integers(0, (1 << 32) - 1)),
    st.integers(0, 7),
    st.one_of(st.integers(0, SIZE - 1), st.integers(0, 0xFFFF)),
)


def host_side(device: VirtioDevice) -> None:
    """What makes a device use buffers of its own accord."""
    if isinstance(device, NetDevice):
        device.receive(bytes(100))
    elif isinstance(device, ScsiDevice):
        device.unplug(0, 0)
    elif isinstance(device, BalloonDevice):
        device.request_statistics()
    elif isinstance(device, ConsoleDevice):
        device.input(b"input")
    elif isinstance(device, InputDevice):
        device.send([InputEvent(EV_SYN, 0, 0)])


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
@given(
    st.data(),
    st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    st.lists(st.integers(0, SIZE), min_size=SIZE, max_size=SIZE),
    st.one_of(st.integers(0, SIZE + 1), st.integers(0, 0xFFFF)),
)
@settings(derandomize=True, deadline=None, max_examples=120)
def test_any_bytes_in_a_queue(
    name: str, data: st.DataObject, table: list[tuple[int, int, int, int]], heads: list[int], avail_idx: int
) -> None:
    device = DEVICES[name]()
    mem = GuestMemory(MEM)
    index = data.draw(st.integers(0, device.num_queues - 1))
    _, side = new_virtqueue(mem, SIZE)
    write_bytes(mem, side.q.desc, b"".join(struct.pack("<QIHH", *d) for d in table))
    write_bytes(mem, side.q.avail, struct.pack(f"<HH{SIZE}HH", 0, avail_idx, *heads, 0))
    write_bytes(mem, 8192, data.draw(st.binary(max_size=256)))
    before = read_bytes(mem, 0, MEM)
    device.set_queue(index, side)
    # Not `acceptable`: the control queues of console and network device shall be among those that work.
    device.start(device.host_features)
    device.handle_queue(index)
    host_side(device)
    device.handle_queue(index)
    after = bytearray(read_bytes(mem, 0, MEM))
    writable = [(addr, length) for addr, length, flags, _ in table if flags & 2 and addr + length <= MEM]
    for addr, length in [*writable, (side.q.used, 6 + 8 * SIZE)]:
        after[addr : addr + length] = before[addr : addr + length]
    assert bytes(after) == before
    if not device.status.running:
        assert isinstance(device.error, IosimError)
        assert device.status.needs_reset


@pytest.mark.parametrize("name", DEVICES)
def test_2_1_2_a_device_that_stopped_works_again_after_a_reset(name: str) -> None:
    device = DEVICES[name]()
    driver = Driver(device, GuestMemory(1 << 20))
    index = 1 if name == "console" else 0  # its first queue is not looked at before the port is open
    q = device.queues[index].q
    if q.packed:
        driver.mem.u16[(q.desc >> 1) + 7] = PACKED_MARKS  # the driver says that its descriptor was used already
    else:
        driver.mem.u16[(q.avail >> 1) + 1] = 999
    device.handle_queue(index)
    host_side(device)
    assert device.status.needs_reset, "at the latest when it has something to give"
    assert driver.config_changes == 1
    again = Driver(device, GuestMemory(1 << 20))
    assert device.status.running
    assert again.config_changes == 0
    device.handle_queue(index)
    assert device.error is None
