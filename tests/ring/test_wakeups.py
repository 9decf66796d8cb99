"""No wake-up is lost: whatever the interleaving, whoever sleeps while there is work has been notified.

Every schedule of a few chains is tried, on two processors whose stores wait for a fence (`two_processors`).
Clauses: 2.7.13.4.1 and 2.7.10 for kicks, 2.7.14 and 2.7.7 for interrupts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import two_processors
from hypothesis import given, settings
from hypothesis import strategies as st
from two_processors import Processor, Side, all_schedules

from iosim.ring import packed_device, packed_driver, split_device, split_driver
from iosim.ring import queue as rings
from iosim.ring.memory import GuestMemory

STARTS = [0, 65534]
FORMATS = [False, True]
"""Split and packed."""


@pytest.fixture(autouse=True)
def _real_fences(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (split_driver, split_device, packed_driver, packed_device):
        monkeypatch.setattr(module, "fence", two_processors.fence)


class World:
    """One queue, its two sides on a processor each, and the notifications between them.

    With ``busy``, handling a chain takes so long that the stores before it have reached memory.
    """

    def __init__(
        self, size: int, event_idx: bool, start: int, busy: bool = False, packed: bool = False, in_order: bool = False
    ) -> None:
        self.busy = busy
        mem = GuestMemory(1 << 14)
        # Two before the end of the second lap, where split starts two before its indexes wrap.
        begin = 2 * size - 2 if packed and start else start
        self.driver, self.device = rings.new_queue(mem, size, event_idx, begin, packed=packed, in_order=in_order)
        self.guest, self.host = Processor(mem), Processor(mem)
        self.driver.mem, self.device.mem = self.guest, self.host  # type: ignore[assignment]
        self.driver.seg_addr[0], self.driver.seg_len[0] = 0x3000, 64
        self.kick = self.irq = False
        self.kicks = self.irqs = 0
        self.device_sleeps = self.driver_sleeps = False

    def drain(self) -> None:
        self.guest.drain()
        self.host.drain()

    def handle(self, processor: Processor) -> None:
        if self.busy:
            processor.drain()


def play(world: World, driver: Side, device: Side, choices: Iterator[int]) -> list[int]:
    """Run both sides until neither can go on; return how many alternatives there were at each step."""
    alternatives = []
    sides: list[tuple[Side, Any, Any]] = [
        (driver, lambda: not world.driver_sleeps or world.irq, None),
        (device, lambda: not world.device_sleeps or world.kick, None),
    ]
    finished: set[int] = set()
    while True:
        ready = [k for k, side in enumerate(sides) if k not in finished and side[1]()]
        if not ready:
            # Time passes: what still waits in a store buffer reaches memory.
            world.drain()
            return alternatives
        if len(ready) > 1:
            alternatives.append(len(ready))
        chosen = ready[next(choices, 0) if len(ready) > 1 else 0]
        if next(sides[chosen][0], "over") == "over":
            finished.add(chosen)


def sending_driver(world: World, chains: int, batch: int) -> Side:
    for token in range(chains):
        assert rings.add(world.driver, 1, 0, token) >= 0
        yield
        if token % batch == batch - 1 or token == chains - 1:
            if rings.kick_prepare(world.driver):
                world.kick = True
                world.kicks += 1
            yield


def consuming_device(world: World, taken: list[int], vhost: bool) -> Side:
    """Take all there is, re-arm, look again, sleep: QEMU's order; or vhost's, armed at what it last read."""
    device = world.device
    while True:
        head = rings.pop(device)
        yield
        while head >= 0:
            taken.append(device.elem_addr[0])
            world.handle(world.host)
            rings.push(device, head, 0)
            head = rings.pop(device)
            yield
        assert head == -1
        if vhost:
            rings.arm_avail_event(device, device.shadow_avail_idx)
        else:
            rings.set_notification(device, True)
        yield
        if rings.empty(device):
            world.device_sleeps = True
            yield
            world.device_sleeps = world.kick = False
        rings.set_notification(device, False)


def no_kick_lost(
    event_idx: bool, start: int, vhost: bool, busy: bool, chains: int, batch: int, packed: bool = False
) -> int:
    def run(choices: Iterator[int]) -> list[int]:
        world = World(4, event_idx, start, busy, packed)
        taken: list[int] = []
        driver = sending_driver(world, chains, batch)
        alternatives = play(world, driver, consuming_device(world, taken, vhost), choices)
        assert len(taken) == chains, "the device sleeps beside available chains and was not kicked"
        assert world.kicks <= chains
        return alternatives

    return all_schedules(run)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("vhost", [False, True])
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(("chains", "batch"), [(2, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("packed", FORMATS)
def test_2_7_13_4_1_2_8_21_3_1_no_kick_is_lost(event_idx, start, vhost, busy, chains, batch, packed) -> None:
    assert no_kick_lost(event_idx, start, vhost, busy, chains, batch, packed) > 20


@pytest.mark.parametrize("broken", [split_driver, split_device, packed_driver, packed_device])
@pytest.mark.parametrize("event_idx", [False, True])
def test_2_7_13_4_1_without_a_fence_a_kick_is_lost(
    broken: Any, event_idx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either side's fences matter, and the test above sees it when they are gone."""
    monkeypatch.setattr(broken, "fence", lambda mem: None)
    packed = broken in (packed_driver, packed_device)
    with pytest.raises(AssertionError, match="was not kicked"):
        no_kick_lost(event_idx, 0, vhost=False, busy=True, chains=2, batch=1, packed=packed)


def using_device(world: World, heads: list[int], batch: int) -> Side:
    for k, head in enumerate(heads):
        if world.device.in_order:
            if k % batch == batch - 1:
                assert rings.push_batch(world.device, head, 0) == batch
        else:
            rings.push(world.device, head, 0)
        yield
        if k % batch == batch - 1 or k == len(heads) - 1:
            if rings.should_notify(world.device):
                world.irq = True
                world.irqs += 1
            yield


def receiving_driver(world: World, taken: list[int], delayed: bool, napi: bool) -> Side:
    """Sleep until interrupted, take all there is, re-arm, look again."""
    driver = world.driver
    while True:
        world.driver_sleeps = True
        yield
        world.driver_sleeps = world.irq = False
        rings.vring_interrupt(driver)
        if napi:
            rings.disable_cb(driver)
            yield
        again = True
        while again:
            token = rings.get_used(driver)
            while token >= 0:
                taken.append(token)
                world.handle(world.guest)
                yield
                token = rings.get_used(driver)
            yield
            assert token == -1
            if delayed:
                bufs = rings.delayed_bufs(driver)
                rings.arm_used_event(driver, bufs)
                yield
                again = rings.poll_delayed(driver, bufs)
            else:
                opaque = rings.enable_cb_prepare(driver)
                yield
                again = rings.poll(driver, opaque)
            if again and napi:
                rings.disable_cb(driver)
                yield


def no_interrupt_lost(
    event_idx: bool, start: int, delayed: bool, napi: bool, busy: bool, chains: int, batch: int,
    packed: bool = False, in_order: bool = False,
) -> int:  # fmt: skip
    def run(choices: Iterator[int]) -> list[int]:
        world = World(4, event_idx, start, busy, packed, in_order)
        for token in range(chains):
            rings.add(world.driver, 0, 1, token)
        # Once off and on, so that a packed queue's flags say DESC (Linux leaves a new one's at ENABLE).
        rings.disable_cb(world.driver)
        rings.enable_cb(world.driver)
        world.drain()
        heads = [rings.pop(world.device) for _ in range(chains)]
        taken: list[int] = []
        driver = receiving_driver(world, taken, delayed, napi)
        alternatives = play(world, driver, using_device(world, heads, batch), choices)
        assert taken == list(range(chains)), "the driver sleeps beside used chains and was not interrupted"
        return alternatives

    return all_schedules(run)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("napi", [False, True])
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(("chains", "batch"), [(2, 1), (3, 3)])
@pytest.mark.parametrize("packed", FORMATS)
def test_2_7_14_2_8_22_no_interrupt_is_lost(event_idx, start, delayed, napi, busy, chains, batch, packed) -> None:
    assert no_interrupt_lost(event_idx, start, delayed, napi, busy, chains, batch, packed) > 5


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("packed", FORMATS)
def test_2_7_9_2_8_8_no_interrupt_is_lost_in_order(event_idx: bool, delayed: bool, packed: bool) -> None:
    """Three chains given back by one used entry; the driver finds the skipped ones before it sleeps."""
    assert no_interrupt_lost(event_idx, 1, delayed, True, False, 3, 3, packed, in_order=True) > 5


@pytest.mark.parametrize("broken", [split_driver, split_device, packed_driver, packed_device])
@pytest.mark.parametrize("event_idx", [False, True])
def test_2_7_14_without_a_fence_an_interrupt_is_lost(
    broken: Any, event_idx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broken, "fence", lambda mem: None)
    packed = broken in (packed_driver, packed_device)
    with pytest.raises(AssertionError, match="was not interrupted"):
        no_interrupt_lost(event_idx, 0, delayed=False, napi=True, busy=True, chains=2, batch=1, packed=packed)


@given(
    event_idx=st.booleans(),
    start=st.sampled_from([0, 65530, 32767]),
    chains=st.integers(1, 12),
    batch=st.integers(1, 4),
    vhost=st.booleans(),
    choices=st.lists(st.integers(0, 1), max_size=80),
    packed=st.booleans(),
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_longer_runs_lose_no_kick_either(event_idx, start, chains, batch, vhost, choices, packed) -> None:
    world = World(16, event_idx, start, packed=packed)
    taken: list[int] = []
    driver = sending_driver(world, chains, batch)
    play(world, driver, consuming_device(world, taken, vhost), iter(choices))
    assert len(taken) == chains


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("packed", FORMATS)
def test_2_7_10_2_8_10_a_device_preempted_anywhere_loses_no_kick(event_idx: bool, packed: bool) -> None:
    """The driver runs in the middle of the device's functions, too, before each of its accesses."""

    def run(choices: Iterator[int]) -> list[int]:
        world = World(4, event_idx, 65535, packed=packed)
        taken: list[int] = []
        driver = sending_driver(world, 2, 1)
        alternatives: list[int] = []
        state = {"over": False}

        class Preempted(two_processors._View):
            def __getitem__(self, index: int) -> int:
                interrupt()
                return super().__getitem__(index)

            def __setitem__(self, index: int, value: int) -> None:
                interrupt()
                super().__setitem__(index, value)

        def interrupt() -> None:
            while not state["over"]:
                alternatives.append(2)
                if next(choices, 0) == 0:
                    return
                if next(driver, "over") == "over":
                    state["over"] = True

        world.host.u16 = Preempted(world.host, world.host.u16.view)
        device = consuming_device(world, taken, vhost=False)
        while not world.device_sleeps or world.kick:
            next(device)
            if world.device_sleeps and not world.kick:
                # Nobody left to preempt: the driver does the rest of its work.
                for _ in driver:
                    pass
                state["over"] = True
                world.drain()
        assert len(taken) == 2, "the device sleeps beside available chains and was not kicked"
        return alternatives

    assert all_schedules(run) > 100


def trace(queue: Any, call: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the ring accesses and fences of one call, in order."""
    mem = queue.mem
    size = queue.size
    names = {
        queue.desc + 14: "desc.flags",
        queue.avail: "driver.off",
        queue.avail + 2: "driver.flags",
        queue.used: "device.off",
        queue.used + 2: "device.flags",
    }
    if not queue.packed:
        names = {
            queue.avail: "avail.flags",
            queue.avail + 2: "avail.idx",
            queue.avail + 4 + 2 * size: "used_event",
            queue.used: "used.flags",
            queue.used + 2: "used.idx",
            queue.used + 4 + 8 * size: "avail_event",
        }
    seen: list[str] = []

    class Spy:
        def __init__(self, view: memoryview, width: int) -> None:
            self.view, self.width = view, width

        def note(self, what: str, index: int) -> None:
            addr = index * self.width
            area = "desc" if addr < queue.avail else "avail.ring" if addr < queue.used else "used.ring"
            seen.append(f"{what} {names.get(addr, area)}")

        def __getitem__(self, index: int) -> int:
            self.note("read", index)
            return self.view[index]

        def __setitem__(self, index: int, value: int) -> None:
            self.note("write", index)
            self.view[index] = value

    class Spied:
        size, regions = mem.size, mem.regions
        u16, u32, u64 = Spy(mem.u16, 2), Spy(mem.u32, 4), Spy(mem.u64, 8)

    for module in (split_driver, split_device, packed_driver, packed_device):
        monkeypatch.setattr(module, "fence", lambda mem: seen.append("fence"))
    queue.mem = Spied()
    try:
        call()
    finally:
        queue.mem = mem
    return seen


def test_2_7_13_fences_stand_where_the_specification_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.7.13 steps 4 to 7, 2.7.13.3.1, 2.7.13.4.1, 2.7.8.2, 2.7.14: the order of every access."""
    mem = GuestMemory(1 << 14)
    d, q = rings.new_queue(mem, 4, event_idx=True)
    d.seg_addr[0], d.seg_len[0] = 0x3000, 64
    order = trace(d, lambda: rings.add(d, 1, 0, 0), monkeypatch)
    assert order == ["write desc"] * 3 + ["write avail.ring", "fence", "write avail.idx"]
    assert trace(d, lambda: rings.kick_prepare(d), monkeypatch) == ["fence", "read avail_event"]
    order = trace(q, lambda: rings.pop(q), monkeypatch)
    assert order == ["read avail.idx", "fence", "read avail.ring"] + ["read desc"] * 3 + ["write avail_event"]
    order = trace(q, lambda: rings.push(q, 0, 0), monkeypatch)
    assert order == ["write used.ring"] * 2 + ["fence", "write used.idx"]
    # The first look always notifies and reads nothing.
    assert trace(q, lambda: rings.should_notify(q), monkeypatch) == ["fence"]
    assert trace(q, lambda: rings.should_notify(q), monkeypatch) == ["fence", "read used_event"]
    order = trace(d, lambda: rings.get_used(d), monkeypatch)
    assert order == ["read used.idx", "fence"] + ["read used.ring"] * 2 + ["write used_event", "fence"]
    order = trace(d, lambda: rings.enable_cb(d), monkeypatch)
    assert order == ["write used_event", "fence", "read used.idx"]
    order = trace(d, lambda: rings.enable_cb_delayed(d), monkeypatch)
    assert order == ["write used_event", "fence", "read used.idx"]
    order = trace(q, lambda: rings.set_notification(q, True), monkeypatch)
    assert order == ["read avail.idx", "write avail_event", "fence"]
    assert trace(q, lambda: rings.arm_avail_event(q, 0), monkeypatch) == ["write avail_event", "fence"]


def test_2_8_21_fences_stand_where_the_specification_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.8.21 steps 1 to 3, 2.8.21.1.1, 2.8.21.3.1, 2.8.22: flags are written last and alone, and read first."""
    mem = GuestMemory(1 << 14)
    d, q = rings.new_queue(mem, 1, event_idx=True, packed=True)
    d.seg_addr[0], d.seg_len[0] = 0x3000, 64
    order = trace(d, lambda: rings.add(d, 1, 0, 0), monkeypatch)
    assert order == ["write desc"] * 3 + ["fence", "write desc.flags"]
    assert trace(d, lambda: rings.kick_prepare(d), monkeypatch) == ["fence", "read device.off"]
    order = trace(q, lambda: rings.pop(q), monkeypatch)
    assert order == ["read desc.flags", "fence"] + ["read desc"] * 3
    order = trace(q, lambda: rings.push(q, 0, 0), monkeypatch)
    assert order == ["write desc"] * 2 + ["fence", "write desc.flags"]
    assert trace(q, lambda: rings.should_notify(q), monkeypatch) == ["fence", "read driver.off"]
    rings.disable_cb(d)
    rings.enable_cb(d)
    order = trace(d, lambda: rings.get_used(d), monkeypatch)
    assert order == ["read desc.flags", "fence"] + ["read desc"] * 2 + ["write driver.off", "fence"]
    rings.disable_cb(d)
    order = trace(d, lambda: rings.enable_cb(d), monkeypatch)
    assert order == ["write driver.off", "fence", "write driver.flags", "fence", "read desc.flags"]
    order = trace(q, lambda: rings.set_notification(q, True), monkeypatch)
    assert order == ["write device.off", "fence", "write device.flags", "fence"]
    assert trace(q, lambda: rings.set_notification(q, False), monkeypatch) == ["write device.flags"]


def test_2_8_6_the_head_s_flags_are_the_last_store_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains added without publishing stay invisible until one store of flags makes all of them available."""
    mem = GuestMemory(1 << 14)
    d, q = rings.new_queue(mem, 8, event_idx=True, packed=True)
    d.seg_addr[:], d.seg_len[:] = [0x3000] * 8, [64] * 8
    for token in range(3):
        rings.add_batched(d, 1, 1, token)
        assert rings.empty(q)
        assert rings.pop(q) == -1
    assert trace(d, lambda: rings.publish(d), monkeypatch) == ["fence", "write desc.flags"]
    assert [rings.pop(q) for _ in range(4)] == [0, 2, 4, -1]
