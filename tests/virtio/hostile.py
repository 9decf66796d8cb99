"""A driver that keeps to no rule, and what must hold of a device all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.ring.memory import GuestMemory, allocate, read_bytes, write_bytes
from iosim.ring.virtqueue import Buffer
from iosim.virtio.device import VirtioDevice
from iosim.virtio.transport import Driver, cut

ARENA = 1 << 14


class Chain(NamedTuple):
    """What one chain holds: bytes to read, bytes to write, and where descriptors end."""

    out: bytes
    in_size: int
    out_cuts: Sequence[int] = ()
    in_cuts: Sequence[int] = ()


def chains(out: st.SearchStrategy[bytes], max_in: int = 600) -> st.SearchStrategy[Chain]:
    """Chains that hold some of ``out``: whole, cut short, or with something behind; never empty on both sides."""
    cuts = st.lists(st.integers(0, 80), max_size=4)
    mangled = st.one_of(
        out,
        st.tuples(out, st.integers(0, 80)).map(lambda pair: pair[0][: pair[1]]),
        st.tuples(out, st.binary(max_size=600)).map(b"".join),
        st.binary(max_size=80),
    )
    in_size = st.one_of(st.integers(0, 4), st.integers(0, max_in))
    return st.builds(Chain, mangled, in_size, cuts, cuts).filter(lambda c: c.out or c.in_size)


def attack(device: VirtioDevice, sequence: Sequence[tuple[int, Chain]]) -> Driver:
    """Send chains and check what must hold of any device, whatever they are.

    No exception but the named ones; nothing written outside the writable buffers and the used rings; every chain
    is answered, kept, or has stopped the device with a named error.
    """
    mem = GuestMemory(1 << 17)
    driver = Driver(device, mem, queue_size=64, arena=64)
    for index, chain in sequence:
        base = allocate(mem, len(chain.out) + chain.in_size, 1)
        write_bytes(mem, base, chain.out)
        out_sg = cut(base, len(chain.out), chain.out_cuts)
        in_sg = cut(base + len(chain.out), chain.in_size, chain.in_cuts)
        before = read_bytes(mem, 0, mem.size)
        driver.queues[index].add(out_sg, in_sg, (in_sg, None))
        driver.kick(index)
        check_untouched(driver, before, in_sg)
        if not device.status.running:
            assert isinstance(device.error, IosimError), "a device that stops says why"
            assert "\n" not in str(device.error)
            assert device.handle_queue(index) == []
            break
        for reply in driver.collect(index):
            assert 0 <= reply.length <= len(reply.contents)
    return driver


def check_untouched(driver: Driver, before: bytes, in_sg: Sequence[Buffer]) -> None:
    """Nothing has changed in guest memory but these buffers, buffers given earlier, and the rings."""
    mem = driver.mem
    after = bytearray(read_bytes(mem, 0, mem.size))
    allowed = list(in_sg)
    for queue in driver.queues.values():
        allowed += [buffer for data in queue._data.values() for buffer in data[0]]
        # Descriptor table and available ring are the driver's, the used ring the device's: from the first to the last.
        start = queue.q.desc
        allowed.append(Buffer(start, queue.q.used + 6 + 8 * queue.q.size - start))
    for addr, length in allowed:
        after[addr : addr + length] = before[addr : addr + length]
    assert bytes(after) == before, "a device wrote where it may not"
