"""Driver and device against a model made of Python lists: nothing lost, doubled, reordered or resized."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iosim.ring import queue as rings
from iosim.ring.errors import BAD_TOKEN, CHAIN_TOO_LONG, EMPTY, EMPTY_CHAIN, NO_SPACE
from iosim.ring.memory import GuestMemory, read_bytes
from iosim.ring.queue import add, new_queue, off_wrap, pop, push

Segments = list[tuple[int, int]]


class QueueMachine(RuleBasedStateMachine):
    """Random calls on both sides; the model knows what each must answer, for both formats.

    Notifications are checked against 2.7.7.2, 2.7.10.1 and 2.8.10 word by word: with EVENT_IDX one is due if an entry
    (packed: a descriptor) was placed at the event index since the last look; without, if the flag says so.
    """

    @initialize(
        size=st.sampled_from([1, 2, 4, 8, 16, 3, 5, 13]),
        event_idx=st.booleans(),
        start=st.sampled_from([0, 65533, 65535, 32766, 1, 7]),
        packed=st.booleans(),
        indirect=st.booleans(),
        in_order=st.booleans(),
    )
    def begin(
        self, size: int, event_idx: bool, start: int, packed: bool, indirect: bool, in_order: bool
    ) -> None:
        if not packed:
            size = 1 << (size.bit_length() - 1)
        self.size, self.event_idx = size, event_idx
        self.packed, self.indirect, self.in_order = packed, indirect, in_order
        self.mem = GuestMemory(1 << 16)
        self.driver, self.device = new_queue(
            self.mem, size, event_idx, start, packed=packed, indirect=indirect, in_order=in_order
        )
        if packed:
            start %= 2 * size
        self.token = 0
        # Where the next entry stands; of a packed ring, where the next descriptor does, counted on without end.
        self.added = start
        self.used = start
        self.taken = start
        self.unkicked: list[int] = []
        self.unsignalled: list[int] | None = None if event_idx or packed else []
        self.pending: list[tuple[int, int, Segments, int, int]] = []
        self.available: deque[tuple[int, int, Segments, int, int]] = deque()
        self.inflight: list[tuple[int, int, int, int]] = []
        self.done: deque[tuple[int, int, int, int]] = deque()
        self.callbacks = True
        self.notification = True

    def event(self, area: int) -> int:
        """What an event suppression structure holds, as the number that `place` gives; -1: all, -2: none."""
        if not self.packed:
            return self.mem.u16[area >> 1]
        flags = self.mem.u16[(area >> 1) + 1]
        return (-1, -2, self.mem.u16[area >> 1])[flags]

    def place(self, number: int) -> int:
        return off_wrap(self.size, number) if self.packed else number & 0xFFFF

    def due(self, event: int, since: list[int]) -> bool:
        return event == -1 or event in [self.place(number) for number in since]

    @property
    def avail_event(self) -> int:
        return self.event(self.driver.used if self.packed else self.driver.used + 4 + 8 * self.size)

    @property
    def used_event(self) -> int:
        return self.event(self.driver.avail if self.packed else self.driver.avail + 4 + 2 * self.size)

    # -- the driver

    @rule(in_num=st.integers(0, 1), data=st.data())
    def add_one(self, in_num: int, data: st.DataObject) -> None:
        self.add(1 - in_num, in_num, data, True)

    @rule(out_num=st.integers(0, 5), in_num=st.integers(0, 5), data=st.data(), publish=st.booleans())
    def add_some(self, out_num: int, in_num: int, data: st.DataObject, publish: bool) -> None:
        self.add(out_num, in_num, data, publish)

    def add(self, out_num: int, in_num: int, data: st.DataObject, publish: bool) -> None:
        total = out_num + in_num
        segments = []
        for k in range(min(total, self.size)):
            length = data.draw(st.integers(1, 5000))
            segments.append((data.draw(st.integers(0, self.mem.size - length)), length))
            self.driver.seg_addr[k], self.driver.seg_len[k] = segments[-1]
        before = (rings.state(self.driver), read_bytes(self.mem, 0, 16384))
        free = self.driver.num_free
        needed = 1 if self.indirect and total > 1 else total
        head = (add if publish else rings.add_batched)(self.driver, out_num, in_num, self.token)
        if total == 0 or total > self.size or needed > free:
            expected = EMPTY_CHAIN if total == 0 else CHAIN_TOO_LONG if total > self.size else NO_SPACE
            assert head == expected
            assert before == (rings.state(self.driver), read_bytes(self.mem, 0, 16384))
            return
        assert 0 <= head < self.size
        known = [*self.pending, *self.available]
        assert head not in [entry[0] for entry in self.inflight] + [entry[3] for entry in known]
        self.pending.append((self.token, out_num, segments, head, needed))
        self.token += 1
        if publish:
            self.published()

    @rule()
    def publish(self) -> None:
        rings.publish(self.driver)
        self.published()

    def published(self) -> None:
        for entry in self.pending:
            step = entry[4] if self.packed else 1
            self.unkicked += range(self.added, self.added + step)
            self.added += step
            self.available.append(entry)
        self.pending = []

    @rule()
    def kick_prepare(self) -> None:
        since = self.unkicked
        if self.packed or self.event_idx:
            due = self.due(self.avail_event, since)
        else:
            due = not self.mem.u16[self.driver.used >> 1] & 1
        found = rings.kick_prepare(self.driver)
        # More than a whole ring since the last look: a packed event offset no longer says which lap it means.
        assert found == due or (self.packed and len(since) > self.size)
        assert self.driver.num_added == 0
        self.unkicked = []

    @rule()
    def get_used(self) -> None:
        token = rings.get_used(self.driver)
        if not self.done:
            assert token == EMPTY
            return
        expected, head, length, descs = self.done.popleft()
        assert (token, self.driver.used_head, self.driver.used_len) == (expected, head, length)
        self.taken += descs if self.packed else 1
        if self.callbacks and (not self.packed or self.used_event >= 0):
            assert self.used_event == self.place(self.taken)

    @rule()
    def disable_cb(self) -> None:
        rings.disable_cb(self.driver)
        self.callbacks = False

    @rule()
    def vring_interrupt(self) -> None:
        assert rings.vring_interrupt(self.driver) == bool(self.done)

    @rule()
    def enable_cb(self) -> None:
        assert rings.enable_cb(self.driver) == (not self.done)
        self.callbacks = True

    @rule()
    def enable_cb_in_two_steps(self) -> None:
        opaque = rings.enable_cb_prepare(self.driver)
        assert rings.poll(self.driver, opaque) == bool(self.done)
        self.callbacks = True

    @rule()
    def enable_cb_delayed(self) -> None:
        bufs = rings.delayed_bufs(self.driver)
        if self.packed:
            assert bufs == (self.size - self.driver.num_free) * 3 // 4
            assert rings.enable_cb_delayed(self.driver) == (not self.done)
        else:
            outstanding = len(self.pending) + len(self.available) + len(self.inflight) + len(self.done)
            assert bufs == outstanding * 3 // 4
            assert rings.enable_cb_delayed(self.driver) == (len(self.done) <= bufs)
        if self.used_event >= 0:
            assert self.used_event == self.place(self.taken + bufs)
        self.callbacks = True

    @rule(bufs=st.integers(0, 9))
    def arm_used_event(self, bufs: int) -> None:
        if self.packed:
            bufs = min(bufs, self.size - 1)
        rings.arm_used_event(self.driver, bufs)
        waiting = sum(entry[3] for entry in self.done) if self.packed else len(self.done)
        batched = self.driver.batch_head >= 0
        assert rings.used_beyond(self.driver, bufs) == (waiting > bufs or (self.packed and batched))
        self.callbacks = True

    # -- the device

    @rule()
    def pop(self) -> None:
        head = pop(self.device)
        if not self.available:
            assert head == EMPTY
            return
        token, out_num, segments, expected, descs = self.available.popleft()
        assert head == expected
        assert (self.device.elem_out_num, self.device.elem_in_num) == (out_num, len(segments) - out_num)
        total = len(segments)
        assert list(zip(self.device.elem_addr[:total], self.device.elem_len[:total], strict=True)) == segments
        self.inflight.append((head, token, descs, sum(length for _, length in segments[out_num:])))
        if not self.packed and self.event_idx and self.notification:
            assert self.avail_event == self.device.last_avail_idx

    @precondition(lambda self: self.inflight)
    @rule(count=st.integers(1, 4), data=st.data())
    def use(self, count: int, data: st.DataObject) -> None:
        count = min(count, len(self.inflight))
        entries = []
        batch = self.in_order and data.draw(st.booleans())
        for k in range(count):
            at = 0 if self.in_order else data.draw(st.integers(0, len(self.inflight) - 1))
            head, token, descs, writable = self.inflight.pop(at)
            length = data.draw(st.sampled_from([0, 1, 4097, 0xFFFFFFFF]))
            # The driver takes skipped chains as written in full.
            entries.append((token, head, writable if batch and k < count - 1 else length, descs))
            if batch and k == count - 1:
                assert rings.push_batch(self.device, head, length) == count
            elif not batch and count == 1:
                push(self.device, head, length)
            elif not batch:
                rings.fill(self.device, head, length, k)
        if not batch and count > 1:
            assert rings.more_used(self.driver) == bool(self.done), "fill alone publishes nothing"
            rings.flush(self.device, count)
        self.done.extend(entries)
        lap = self.used // self.size
        for entry in entries:
            step = entry[3] if self.packed else 1
            if self.unsignalled is not None:
                self.unsignalled += range(self.used, self.used + step)
            self.used += step
        if self.packed and self.used // self.size != lap:
            # QEMU relies on signalled_used no longer, once around.
            self.unsignalled = None

    @rule()
    def should_notify(self) -> None:
        event = self.used_event
        if self.packed:
            due = event != -2 and (self.unsignalled is None or self.due(event, self.unsignalled))
        elif self.event_idx:
            # The first look always notifies: nothing is known of what came before (QEMU).
            due = self.unsignalled is None or self.due(event, self.unsignalled)
        else:
            due = not self.mem.u16[self.driver.avail >> 1] & 1
        assert rings.should_notify(self.device) == due
        self.unsignalled = []

    @rule(enable=st.booleans())
    def set_notification(self, enable: bool) -> None:
        rings.set_notification(self.device, enable)
        self.notification = enable
        if enable and self.packed:
            assert self.avail_event == (self.place(self.device.last_avail_idx) if self.event_idx else -1)
        elif self.packed:
            assert self.avail_event == -2
        elif enable and self.event_idx:
            assert self.avail_event == self.place(self.added)

    @rule(ahead=st.integers(0, 5))
    def arm_avail_event(self, ahead: int) -> None:
        if self.packed:
            ahead = min(ahead, self.size - 1)
        rings.arm_avail_event(self.device, self.device.last_avail_idx + ahead)
        self.notification = True

    # -- always

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "size"):
            return
        held = (
            sum(entry[4] for entry in [*self.pending, *self.available])
            + sum(descs for _, _, descs, _ in self.inflight)
            + sum(entry[3] for entry in self.done)
        )
        assert self.driver.num_free == self.size - held
        free = []
        i = self.driver.free_head
        for _ in range(self.driver.num_free):
            free.append(i)
            i = self.driver.desc_next[i]
        assert len(set(free)) == len(free), "the free list meets itself"
        heads = {entry[3] for entry in [*self.pending, *self.available]} | {entry[0] for entry in self.inflight}
        assert not heads & set(free)
        assert rings.more_used(self.driver) == bool(self.done)
        assert self.device.notification == self.notification
        if self.packed:
            assert self.device.inuse == sum(descs for _, _, descs, _ in self.inflight)
            assert self.place(self.device.used_idx) == self.place(self.used)
        else:
            assert self.device.inuse == len(self.inflight)
            assert self.driver.avail_idx_shadow == (self.added + len(self.pending)) & 0xFFFF
            assert self.device.used_idx == self.used & 0xFFFF

    @rule()
    def look(self) -> None:
        assert rings.avail_in_ring(self.device) == len(self.available)
        assert rings.empty(self.device) == (not self.available)

    @precondition(lambda self: self.available)
    @rule()
    def pop_and_unpop(self) -> None:
        before = rings.state(self.device) | {"shadow_avail_idx": None}
        head = pop(self.device)
        assert head == self.available[0][3]
        rings.unpop(self.device, head)
        assert rings.state(self.device) | {"shadow_avail_idx": None} == before


QueueMachine.TestCase.settings = settings(
    derandomize=True, deadline=None, max_examples=300, stateful_step_count=60
)
TestQueueModel = QueueMachine.TestCase


@pytest.mark.parametrize("event_idx", [False, True])
def test_2_7_13_3_indexes_wrap_at_65536_and_everything_goes_on(event_idx: bool) -> None:
    """Once around and further, in order, chains of one to three buffers."""
    mem = GuestMemory(4096)
    driver, device = new_queue(mem, 4, event_idx)
    driver.seg_addr[:], driver.seg_len[:] = [256, 512, 768, 1024], [1, 2, 3, 4]
    for token in range(66000):
        assert add(driver, 1, token % 3, token) >= 0
        assert rings.kick_prepare(driver)
        head = pop(device)
        push(device, head, token % 1000)
        assert rings.should_notify(device)
        assert rings.get_used(driver) == token
        assert driver.used_len == token % 1000
    assert driver.last_used_idx == device.used_idx == device.last_avail_idx == 66000 - 65536
    assert driver.num_free == 4


def test_add_refuses_without_side_effects() -> None:
    driver, _ = new_queue(GuestMemory(4096), 2, event_idx=True)
    before = rings.state(driver)
    assert add(driver, 0, 0, 1) == EMPTY_CHAIN
    assert add(driver, 2, 1, 1) == CHAIN_TOO_LONG
    assert add(driver, 1, 0, -1) == BAD_TOKEN
    assert rings.state(driver) == before


def test_2_7_8_a_batch_is_published_at_once_and_in_order() -> None:
    """Across the end of the ring and of the indexes."""
    driver, device = new_queue(GuestMemory(4096), 4, event_idx=True, start=65534)
    driver.seg_addr[0], driver.seg_len[0] = 256, 1
    for token in range(4):
        add(driver, 1, 0, token)
    heads = [pop(device) for _ in range(4)]
    for k, head in enumerate(reversed(heads)):
        rings.fill(device, head, 10 + k, k)
    assert rings.get_used(driver) == EMPTY
    rings.flush(device, 4)
    assert (device.used_idx, device.inuse) == (2, 0)
    taken = [(rings.get_used(driver), driver.used_len) for _ in range(4)]
    assert not rings.more_used(driver)
    assert taken == [(3, 10), (2, 11), (1, 12), (0, 13)]


def test_linux_waits_for_three_quarters_of_what_is_in_flight() -> None:
    """``virtqueue_enable_cb_delayed``, with the indexes across the wrap."""
    driver, _ = new_queue(GuestMemory(4096), 8, event_idx=True, start=65533)
    driver.seg_addr[0], driver.seg_len[0] = 256, 1
    bufs = [rings.delayed_bufs(driver)]
    for token in range(8):
        add(driver, 1, 0, token)
        bufs.append(rings.delayed_bufs(driver))
    assert bufs == [0, 0, 1, 2, 3, 3, 4, 5, 6]


def test_2_7_13_4_65536_chains_without_a_look_still_kick() -> None:
    """The indexes come around to where they were; Linux kicks before it comes to that."""
    driver, device = new_queue(GuestMemory(4096), 1, event_idx=True)
    driver.seg_addr[0], driver.seg_len[0] = 256, 1
    for _ in range(65536):
        add(driver, 1, 0, 0)
        push(device, pop(device), 0)
        rings.get_used(driver)
    rings.arm_avail_event(device, 100)
    assert rings.kick_prepare(driver)


def test_2_7_10_a_threshold_lets_the_driver_collect() -> None:
    """`avail_event` three ahead: the fourth chain kicks, the others do not."""
    driver, device = new_queue(GuestMemory(4096), 8, event_idx=True, start=65534)
    driver.seg_addr[0], driver.seg_len[0] = 256, 1
    rings.arm_avail_event(device, 65534 + 3)
    kicks = []
    for token in range(8):
        add(driver, 1, 0, token)
        kicks.append(rings.kick_prepare(driver))
    assert kicks == [False, False, False, True, False, False, False, False]


def test_2_7_7_a_threshold_lets_the_device_collect() -> None:
    """`used_event` two ahead: the third chain interrupts."""
    driver, device = new_queue(GuestMemory(4096), 8, event_idx=True, start=65534)
    driver.seg_addr[0], driver.seg_len[0] = 256, 1
    for token in range(6):
        add(driver, 1, 0, token)
    rings.should_notify(device)
    rings.arm_used_event(driver, 2)
    interrupts = []
    for _ in range(6):
        push(device, pop(device), 0)
        interrupts.append(rings.should_notify(device))
    assert interrupts == [False, False, True, False, False, False]


@pytest.mark.parametrize("triggered", [False, True])
def test_2_7_7_disable_cb_under_event_idx_is_only_a_hint(triggered: bool) -> None:
    """Linux parks `used_event` at 0, or leaves it where the last interrupt was: both come around again."""
    driver, device = new_queue(GuestMemory(4096), 1, event_idx=True)
    driver.seg_addr[0], driver.seg_len[0] = 256, 1

    def one() -> bool:
        add(driver, 1, 0, 0)
        push(device, pop(device), 0)
        notified = rings.should_notify(device)
        assert rings.get_used(driver) == 0
        return notified

    for _ in range(3):
        assert one()
    add(driver, 1, 0, 0)
    push(device, pop(device), 0)
    assert rings.should_notify(device)
    if triggered:
        assert rings.vring_interrupt(driver)
    rings.disable_cb(driver)
    parked = 3 if triggered else 0
    assert driver.mem.u16[(driver.avail >> 1) + 2 + driver.size] == parked
    rings.get_used(driver)
    interrupts = [one() for _ in range(2 * 65536)]
    came = [4 + n for n, notified in enumerate(interrupts) if notified]
    assert came == [65536 + parked, 2 * 65536 + parked]


@pytest.mark.parametrize("enable", [rings.enable_cb, rings.enable_cb_prepare, rings.enable_cb_delayed])
def test_an_interrupt_counts_only_until_callbacks_are_enabled_again(enable) -> None:
    """Linux's `event_triggered`: after it `disable_cb` writes nothing, after re-arming it writes 0 again."""
    driver, device = new_queue(GuestMemory(4096), 4, event_idx=True, start=100)
    driver.seg_addr[0], driver.seg_len[0] = 256, 1
    used_event = (driver.avail >> 1) + 2 + driver.size
    add(driver, 1, 0, 0)
    push(device, pop(device), 0)
    assert rings.vring_interrupt(driver)
    rings.disable_cb(driver)
    assert driver.mem.u16[used_event] == 100, "none is due, so nothing is written"
    rings.get_used(driver)
    assert driver.mem.u16[used_event] == 100, "get_used does not arm while callbacks are disabled"
    assert not rings.vring_interrupt(driver), "spurious: nothing to take"
    enable(driver)
    assert driver.mem.u16[used_event] == 101
    rings.disable_cb(driver)
    assert driver.mem.u16[used_event] == 0


def test_signalled_used_is_given_up_after_32768_entries_without_a_look() -> None:
    """QEMU's ``virtqueue_split_flush``; the next look then notifies whatever the event index says."""
    driver, device = new_queue(GuestMemory(4096), 1, event_idx=True)
    driver.seg_addr[0], driver.seg_len[0] = 256, 1
    rings.should_notify(device)
    rings.disable_cb(driver)
    for count in range(32768):
        assert device.signalled_used_valid, count
        add(driver, 1, 0, 0)
        push(device, pop(device), 0)
        rings.get_used(driver)
    assert not device.signalled_used_valid
    rings.arm_used_event(driver, 100)
    assert rings.should_notify(device)
