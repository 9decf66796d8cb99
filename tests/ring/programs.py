"""What a driver and a device do with a queue, as programs for `interleavings`: sleep, wake, take, give, re-arm.

The driver sends requests like ``virtio_blk``, the device serves them like QEMU or like vhost. Every request
has buffers and lengths of its own, and what each side finds is compared with what the other wrote; what
nobody has written yet is poison.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

from interleavings import Cells, Checker, Found, Machine, Program, fence

from iosim.ring import device as device_functions
from iosim.ring import driver as driver_functions
from iosim.ring import packed_device, packed_driver, split_device, split_driver
from iosim.ring.memory import GuestMemory
from iosim.ring.queue import new_queue

BUFFERS = 0x3000
STRIDE = 64
#: In every byte that is to be written before it may be read.
POISON = 0xEE


class Case(NamedTuple):
    """One small world to explore."""

    #: Descriptors of the queue.
    size: int = 2
    packed: bool = False
    #: By request: how many buffers the device reads, and how many it writes.
    shapes: tuple[tuple[int, int], ...] = ((1, 0), (0, 1))
    event_idx: bool = True
    #: The index both sides begin with.
    start: int = 0
    #: The driver asks whether to kick only after so many requests.
    batch: int = 1
    #: How the driver re-arms: "enable_cb"; "delayed"; "beyond": delayed, counting what is used; "prepare": in two
    #: calls, as NAPI does; "get_used": it leaves that to `get_used`, whose last call is the second look.
    arm: str = "enable_cb"
    #: The driver disables callbacks while it takes used buffers.
    disable: bool = True
    #: How the device re-arms: "qemu" (set_notification), "vhost" (arm_avail_event), or "pop": it leaves that
    #: to `pop`, whose last call is the second look (as QEMU's virtio-rng does).
    device: str = "qemu"
    #: The device gives back so many at once.
    flush: int = 1
    #: All of a batch is published at once.
    publish: bool = False
    indirect: bool = False
    #: The device gives chains back in order, and ``flush`` of them by one entry.
    in_order: bool = False
    #: Buffers have contents.
    contents: bool = False
    #: So often each side is notified for nothing, at any time it sleeps.
    spurious: int = 0
    #: The device keeps what it takes, as virtio-net's receive queue does while nothing comes in.
    one_way: bool = False

    def __str__(self) -> str:
        changed = [f"{k}={getattr(self, k)}" for k in self._fields if getattr(self, k) != CASE_DEFAULTS[k]]
        return ",".join(changed).replace(" ", "") or "default"


CASE_DEFAULTS = Case._field_defaults


def buffer_of(token: int, k: int) -> tuple[int, int]:
    """Return address and length of buffer ``k`` of request ``token``: told apart by either."""
    return BUFFERS + STRIDE * (8 * token + k), 8 + 8 * token + k


class Driver(Program):
    """Make every request available, sleep whenever the queue is full or all is under way, take back, re-arm."""

    first = "send"

    def __init__(self, queue: Any, ops: Any, case: Case) -> None:
        super().__init__(queue, ops)
        self._case = case
        self.sent = 0
        self.unkicked = 0
        self.back: tuple[int, ...] = ()

    def send(self) -> Any:
        case, queue = self._case, self._queue
        if case.one_way and self.sent == len(case.shapes) and not self.unkicked:
            return None
        if self.sent == len(case.shapes) or sum(case.shapes[self.sent]) > queue.num_free:
            return "kick" if self.unkicked else self.wait()
        token = self.sent
        out_num, in_num = case.shapes[token]
        for k in range(out_num + in_num):
            addr, queue.seg_len[k] = buffer_of(token, k)
            queue.seg_addr[k] = addr
            if case.contents and k < out_num:
                queue.mem.u32[addr >> 2] = 0x1000 + token
        add = self._ops.add_batched if case.publish else self._ops.add
        code = add(queue, out_num, in_num, token)
        assert code >= 0, f"add returned {code}"
        self.sent += 1
        self.unkicked += 1
        return "kick" if self.unkicked == case.batch else "send"

    def kick(self) -> Any:
        self.unkicked = 0
        if self._case.publish:
            self._ops.publish(self._queue)
        if self._ops.kick_prepare(self._queue):
            self.notify()
        return "send"

    def wait(self) -> Any:
        return self.sleep("woken")

    def woken(self) -> Any:
        if not self._ops.vring_interrupt(self._queue):
            return self.wait()
        return self.begin_taking()

    def begin_taking(self) -> str:
        return "disable" if self._case.disable else "take"

    def disable(self) -> str:
        self._ops.disable_cb(self._queue)
        return "take"

    def take(self) -> str:
        queue = self._queue
        token = self._ops.get_used(queue)
        if token == -1:
            return self.armed(False) if self._case.arm == "get_used" else "arm"
        assert token >= 0, f"get_used returned {token}"
        assert token < self.sent, f"request {token} came back, which was not sent"
        assert token not in self.back, f"request {token} came back twice"
        out_num, in_num = self._case.shapes[token]
        lengths = {100 + token}
        if self._case.in_order and self._case.flush > 1:
            # Skipped by the device, so written in full.
            lengths.add(sum(buffer_of(token, k)[1] for k in range(out_num, out_num + in_num)))
        assert queue.used_len in lengths, f"request {token} came back with length {queue.used_len}"
        if self._case.contents and in_num:
            value = queue.mem.u32[buffer_of(token, out_num)[0] >> 2]
            assert value == 0x2000 + token, f"request {token} came back before its contents: {value:#x}"
        self.back = tuple(sorted((*self.back, token)))
        return "take"

    def arm(self) -> Any:
        queue, ops = self._queue, self._ops
        if self._case.arm == "delayed":
            return self.armed(not ops.enable_cb_delayed(queue))
        if self._case.arm == "beyond":
            bufs = ops.delayed_bufs(queue)
            ops.arm_used_event(queue, bufs)
            return self.armed(ops.used_beyond(queue, bufs))
        if self._case.arm == "prepare":
            return self.armed(ops.poll(queue, ops.enable_cb_prepare(queue)))
        return self.armed(not ops.enable_cb(queue))

    def armed(self, again: bool) -> Any:
        if again:
            return self.begin_taking()
        if len(self.back) == len(self._case.shapes):
            return None
        return "send"


class ForgetfulDriver(Driver):
    """Re-arms, and sleeps without a second look."""

    def armed(self, again: bool) -> Any:
        return super().armed(False)


class LateDriver(Driver):
    """Looks first and re-arms afterwards."""

    def arm(self) -> Any:
        if self._ops.more_used(self._queue):
            return self.begin_taking()
        return "arm_late"

    def arm_late(self) -> Any:
        super().arm()
        return self.armed(False)


class Device(Program):
    """When kicked: take all there is, serve it, re-arm, look again, sleep."""

    first = "wait"

    def __init__(self, queue: Any, ops: Any, case: Case) -> None:
        super().__init__(queue, ops)
        self._case = case
        self.taken = 0
        self.held: tuple[tuple[int, int], ...] = ()

    def wait(self) -> Any:
        done = not self._case.one_way or self.taken == len(self._case.shapes)
        return self.sleep("woken", done)

    def woken(self) -> Any:
        if self._case.device != "pop":
            self._ops.set_notification(self._queue, False)
        return "take"

    def take(self) -> Any:
        case, queue = self._case, self._queue
        head = self._ops.pop(queue)
        if head == -1:
            if self.held and not case.one_way:
                return "serve"
            return self.wait() if case.device == "pop" else "arm"
        assert head >= 0, f"pop returned {head}"
        token = self.taken
        assert token < len(case.shapes), "a chain that nobody sent"
        out_num, in_num = case.shapes[token]
        total = out_num + in_num
        seen = list(zip(queue.elem_addr[:total], queue.elem_len[:total], strict=True))
        assert (queue.elem_out_num, queue.elem_in_num) == (out_num, in_num), f"request {token} has the wrong shape"
        assert seen == [buffer_of(token, k) for k in range(total)], f"request {token} has the wrong buffers"
        if case.contents:
            for k in range(out_num):
                value = queue.mem.u32[buffer_of(token, k)[0] >> 2]
                assert value == 0x1000 + token, f"request {token} came before its contents: {value:#x}"
        self.taken += 1
        self.held = (*self.held, (head, token))
        return "serve" if len(self.held) == case.flush and not case.one_way else "take"

    def serve(self) -> str:
        """Give back all that is held, the last taken first (unless the order counts)."""
        case, queue, ops = self._case, self._queue, self._ops
        held = self.held if case.in_order else self.held[::-1]
        for k, (head, token) in enumerate(held):
            out_num, in_num = case.shapes[token]
            if case.contents and in_num:
                queue.mem.u32[buffer_of(token, out_num)[0] >> 2] = 0x2000 + token
            if case.flush == 1:
                ops.push(queue, head, 100 + token)
            elif not case.in_order:
                ops.fill(queue, head, 100 + token, k)
        if case.flush > 1 and case.in_order:
            head, token = held[-1]
            assert ops.push_batch(queue, head, 100 + token) == len(held), "push_batch has lost count"
        elif case.flush > 1:
            ops.flush(queue, len(held))
        self.held = ()
        return "signal"

    def signal(self) -> str:
        if self._ops.should_notify(self._queue):
            self.notify()
        return "take"

    def arm(self) -> str:
        if self._case.device == "vhost":
            self._ops.arm_avail_event(self._queue, self._queue.shadow_avail_idx)
        else:
            self._ops.set_notification(self._queue, True)
        return "look_again"

    def look_again(self) -> Any:
        return self.wait() if self._ops.empty(self._queue) else self.woken()


class ForgetfulDevice(Device):
    """Re-arms, and sleeps without a second look."""

    def look_again(self) -> Any:
        return self.wait()


class LateDevice(Device):
    """Looks first and re-arms afterwards."""

    def arm(self) -> Any:
        return "arm_late" if self._ops.empty(self._queue) else self.woken()

    def arm_late(self) -> Any:
        super().arm()
        return self.wait()


# -- the ring functions, with the checker's fence in place of the simulator's


class Fence(NamedTuple):
    """One fence in the ring code."""

    module: types.ModuleType
    function: str
    #: Which of that function's, from 0.
    number: int

    def __str__(self) -> str:
        name = self.module.__name__.rpartition(".")[2]
        return f"{name}.{self.function}" + (f" ({self.number + 1})" if self.number else "")


def ring_functions(without: Fence | None = None) -> tuple[Any, Any]:
    """Return what a driver and what a device does, as copies of `iosim.ring.driver` and `iosim.ring.device`.

    In the copies a fence is one of the checker, but for the one that is to be left out.
    """
    formats = {module.__name__.rpartition(".")[2]: _copy(module, without) for module in FORMATS}
    both = _copy(driver_functions), _copy(device_functions)
    for copy in both:
        vars(copy).update({name: module for name, module in formats.items() if name in vars(copy)})
    return both


FORMATS = (split_driver, packed_driver, split_device, packed_device)


def _copy(module: types.ModuleType, without: Fence | None = None) -> types.ModuleType:
    source = _source(module)
    if without is not None and without.module is module:
        source = without_fence(source, without.function, without.number)
    copy = types.ModuleType(module.__name__)
    copy.__file__ = module.__file__
    exec(compile(source, module.__file__ or "", "exec"), vars(copy))
    if "fence" in vars(copy):
        vars(copy)["fence"] = fence
    return copy


def fences() -> list[Fence]:
    """Return every fence of the ring code."""
    return [Fence(module, *place[1:]) for module in FORMATS for place in _fence_lines(_source(module))]


def _source(module: types.ModuleType) -> str:
    """Return what the module was made of, which need not be what stands in its file (`mutation`)."""
    assert module.__spec__ is not None
    loader: Any = module.__spec__.loader
    return str(loader.get_source(module.__name__))


def _fence_lines(source: str) -> list[tuple[int, str, int]]:
    function, number, found = "", 0, []
    for at, line in enumerate(source.splitlines()):
        if line.startswith("def "):
            function, number = line[4 : line.index("(")], 0
        if line.strip().startswith("fence("):
            found.append((at, function, number))
            number += 1
    return found


def without_fence(source: str, function: str, number: int) -> str:
    """Return ``source`` with one fence of ``function`` replaced by nothing."""
    lines = source.splitlines(keepends=True)
    (at,) = [at for at, name, n in _fence_lines(source) if (name, n) == (function, number)]
    lines[at] = lines[at].replace(lines[at].strip(), "pass")
    return "".join(lines)


FUNCTIONS = ring_functions()

Names = Callable[[int, int], str]


def ring_names(queue: Any) -> Names:
    """Return how to call an address of a ring (2.7, 2.8)."""
    size = queue.size
    single = {
        queue.avail: "avail.flags",
        queue.avail + 2: "avail.idx",
        queue.avail + 4 + 2 * size: "used_event",
        queue.used: "used.flags",
        queue.used + 2: "used.idx",
        queue.used + 4 + 8 * size: "avail_event",
    }
    fields = {0: "addr", 8: "len", 12: "flags+next"}
    if queue.packed:
        fields = {0: "addr", 8: "len", 12: "id", 14: "flags"}
        single = {
            queue.avail: "driver_event.off_wrap",
            queue.avail + 2: "driver_event.flags",
            queue.used: "device_event.off_wrap",
            queue.used + 2: "device_event.flags",
        }

    def name(addr: int, width: int) -> str:
        if queue.packed and width == 4 and addr in (queue.avail, queue.used):
            return single[addr].partition(".")[0]
        if addr in single:
            return single[addr]
        if queue.desc <= addr < queue.desc + 16 * size:
            i, field = divmod(addr - queue.desc, 16)
            return f"desc[{i}].{fields[field]}"
        if queue.indirect and queue.tables <= addr < queue.tables + 16 * size * queue.table_size:
            table, rest = divmod(addr - queue.tables, 16 * queue.table_size)
            return f"table[{table}][{rest // 16}].{fields.get(rest % 16, rest % 16)}"
        if not queue.packed and queue.avail <= addr < queue.used:
            return f"avail.ring[{(addr - queue.avail - 4) // 2}]"
        if not queue.packed and queue.used <= addr < queue.used + 4 + 8 * size:
            i, field = divmod(addr - queue.used - 4, 8)
            return f"used.ring[{i}].{'len' if field else 'id'}"
        return f"buffer {addr:#x}"

    return name


def world(case: Case) -> tuple[Any, Any, Cells]:
    """Return a queue's two sides and its memory, with poison wherever something is to be written first."""
    mem = GuestMemory(1 << 14)
    driver, device = new_queue(
        mem,
        case.size,
        case.event_idx,
        case.start,
        packed=case.packed,
        indirect=case.indirect,
        in_order=case.in_order,
    )
    size = case.size
    # A packed descriptor's flags are 0 at first, or nobody could tell whether it is available.
    stale = [(driver.desc + 16 * i, 14 if case.packed else 16) for i in range(size)]
    if not case.packed:
        stale += [(driver.avail + 4, 2 * size), (driver.used + 4, 8 * size)]
    if case.indirect:
        stale.append((driver.tables, 16 * size * driver.table_size))
    for addr, length in stale:
        mem.u8[addr : addr + length] = bytes([POISON]) * length
    if case.arm == "get_used":
        # Armed by an earlier life, so that it need not be done again.
        driver_functions.disable_cb(driver)
        assert driver_functions.enable_cb(driver)
    # As long as it need be: a state holds all of it.
    del device.elem_ndescs[size:], device.elem_addr[size:], device.elem_len[size:]
    words = [(driver.avail, 4), (driver.used, 4)] if case.packed else []
    return driver, device, Cells(mem, ring_names(driver), words)


def check(
    machine: Machine,
    case: Case,
    driver: type[Driver] = Driver,
    device: type[Device] = Device,
    functions: tuple[Any, Any] = FUNCTIONS,
    shortest: bool = False,
    count: bool = False,
) -> Found:
    """Explore one case."""
    driver_queue, device_queue, cells = world(case)
    programs = driver(driver_queue, functions[0], case), device(device_queue, functions[1], case)
    return Checker(machine, *programs, cells, case.spurious).explore(shortest, count)
