"""Two sides that act only on notifications, with contents: whatever gets lost shows as a standstill or a wrong byte."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from iosim.ring.errors import NoSpaceError
from iosim.ring.memory import GuestMemory, allocate, read_bytes, write_bytes
from iosim.ring.virtqueue import Buffer, DeviceSide, DriverSide, Element, new_virtqueue

SLOT = 32


@dataclass
class Pump:
    """One queue and what is going on around it."""

    driver: DriverSide
    device: DeviceSide
    rnd: Random
    count: int
    longest: int
    mem: GuestMemory
    free: list[int]
    kick: bool = False
    irq: bool = False
    kicks: int = 0
    irqs: int = 0
    sent: int = 0
    received: int = 0
    in_flight: set[int] = field(default_factory=set)
    asleep: set[str] = field(default_factory=set)


def payload(n: int, length: int) -> bytes:
    return bytes((n * 7 + k * 13) & 0xFF for k in range(length))


def answer(data: bytes, length: int) -> bytes:
    return bytes((sum(data) + k * 5) & 0xFF for k in range(length))


def send(p: Pump) -> bool:
    """Add one chain; False if there is no room."""
    total = p.rnd.randint(1, p.longest)
    outs = p.rnd.randint(0, total)
    if len(p.free) < total:
        return False
    slots = [p.free.pop() for _ in range(total)]
    sizes = [p.rnd.randint(1, SLOT) for _ in range(total)]
    sg = [Buffer(slot, size) for slot, size in zip(slots, sizes, strict=True)]
    data = payload(p.sent, sum(sizes[:outs]))
    at = 0
    for addr, size in sg[:outs]:
        write_bytes(p.mem, addr, data[at : at + size])
        at += size
    free, needed = p.driver.num_free, 1 if p.driver.q.indirect and total > 1 else total
    try:
        p.driver.add(sg[:outs], sg[outs:], (p.sent, slots, sg, outs), publish=p.rnd.random() < 0.5)
    except NoSpaceError:
        assert free < needed, "full too early"
        p.free += slots
        return False
    assert free >= needed, "not full when it must be"
    p.in_flight.add(p.sent)
    p.sent += 1
    return True


def receive(p: Pump) -> bool:
    used = p.driver.get_buf()
    if used is None:
        return False
    n, slots, sg, outs = used.data
    p.in_flight.remove(n)
    sizes = [size for _, size in sg]
    data = payload(n, sum(sizes[:outs]))
    wanted = answer(data, sum(sizes[outs:]))
    assert used.length == len(wanted)
    assert b"".join(read_bytes(p.mem, *buffer) for buffer in sg[:outs]) == data, "a readable buffer was written"
    assert b"".join(read_bytes(p.mem, *buffer) for buffer in sg[outs:]) == wanted
    if p.driver.q.in_order:
        assert n == p.received
    p.free += slots
    p.received += 1
    return True


def driver(p: Pump) -> Generator[None, None, None]:
    d = p.driver
    d.disable_cb()
    while p.received < p.count:
        room = True
        while room and p.sent < p.count and p.rnd.random() < 0.9:
            room = send(p)
            yield
        d.publish()
        yield
        if d.kick_prepare():
            p.kick = True
            p.kicks += 1
        yield
        while receive(p):
            yield
        if p.sent == p.count or not room:
            armed = d.enable_cb() if p.rnd.random() < 0.5 else d.enable_cb_delayed()
            yield
            if armed and p.in_flight:
                p.asleep.add("driver")
                while not p.irq:
                    yield
                p.asleep.discard("driver")
            p.irq = False
            d.interrupt()
            d.disable_cb()


def serve(p: Pump, element: Element) -> int:
    assert element.out_size + element.in_size > 0
    return element.write(answer(element.read(), element.in_size))


def device(p: Pump) -> Generator[None, None, None]:
    q = p.device
    held: list[tuple[Element, int]] = []
    while True:
        q.set_notification(False)
        yield
        again = True
        while again or held:
            element = q.pop() if again else None
            again = element is not None
            if element is not None:
                held.append((element, serve(p, element)))
                if p.rnd.random() < 0.1:
                    q.unpop(element)
                    held.pop()
            yield
            if held and (element is None or p.rnd.random() < 0.5):
                give_back(p, held)
                yield
                if q.should_notify():
                    p.irq = True
                    p.irqs += 1
        q.set_notification(True)
        yield
        if q.empty():
            p.asleep.add("device")
            while not p.kick:
                yield
            p.asleep.discard("device")
            p.kick = False


def give_back(p: Pump, held: list[tuple[Element, int]]) -> None:
    count = p.rnd.randint(1, len(held))
    if p.device.q.in_order and p.rnd.random() < 0.5:
        assert p.device.push_batch(*held[count - 1]) == count
        del held[:count]
        return
    for k in range(count):
        at = 0 if p.device.q.in_order else p.rnd.randrange(len(held))
        p.device.fill(*held.pop(at), k)
    p.device.flush(count)


def run(
    count: int, size: int, seed: int, *, longest: int = 4, start: int = 0, event_idx: bool = True, **features: Any
) -> Pump:
    """Pass ``count`` chains and check all of them."""
    slots = 4 * size + 8
    mem = GuestMemory(8192 + 64 * size + slots * SLOT + size * size * 32)
    sides = new_virtqueue(mem, size, event_idx, start, **features)
    free = [allocate(mem, SLOT, 1) for _ in range(slots)]
    p = Pump(*sides, Random(seed), count, min(longest, size), mem, free)
    # unpop takes back what was taken last, so the device may have given nothing else back since.
    sides_running = {"driver": driver(p), "device": device(p)}
    while p.received < count:
        ready = [name for name in sides_running if name not in p.asleep or (p.irq if name == "driver" else p.kick)]
        assert ready, f"both sleep with {len(p.in_flight)} chains in flight"
        name = p.rnd.choice(ready)
        next(sides_running[name], None)
    assert not p.in_flight
    assert p.driver.num_free == size
    assert p.device.q.inuse == 0
    return p
