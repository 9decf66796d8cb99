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

from iosim.ring import split, split_device, split_driver
from iosim.ring.memory import GuestMemory

BUFFERS = 0x3000
STRIDE = 64
#: In every byte that is to be written before it may be read.
POISON = 0xEE


class Case(NamedTuple):
    """One small world to explore."""

    #: Descriptors of the queue.
    size: int = 2
    #: By request: how many buffers the device reads, and how many it writes.
    shapes: tuple[tuple[int, int], ...] = ((1, 0), (0, 1))
    event_idx: bool = True
    #: The index both sides begin with.
    start: int = 0
    #: The driver asks whether to kick only after so many requests.
    batch: int = 1
    #: How the driver re-arms: "enable_cb", "delayed", "prepare" (in two calls, as NAPI does), or "get_used":
    #: it leaves that to `get_used`, whose last call is the second look (as virtio_balloon does).
    arm: str = "enable_cb"
    #: The driver disables callbacks while it takes used buffers.
    disable: bool = True
    #: How the device re-arms: "qemu" (set_notification), "vhost" (arm_avail_event), or "pop": it leaves that
    #: to `pop`, whose last call is the second look (as QEMU's virtio-rng does).
    device: str = "qemu"
    #: The device gives back so many at once.
    flush: int = 1
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
        code = self._ops.add(queue, out_num, in_num, token)
        assert code >= 0, f"add returned {code}"
        self.sent += 1
        self.unkicked += 1
        return "kick" if self.unkicked == case.batch else "send"

    def kick(self) -> Any:
        self.unkicked = 0
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
        assert queue.used_len == 100 + token, f"request {token} came back with length {queue.used_len}"
        out_num, in_num = self._case.shapes[token]
        if self._case.contents and in_num:
            value = queue.mem.u32[buffer_of(token, out_num)[0] >> 2]
            assert value == 0x2000 + token, f"request {token} came back before its contents: {value:#x}"
        self.back = tuple(sorted((*self.back, token)))
        return "take"

    def arm(self) -> Any:
        queue, ops = self._queue, self._ops
        if self._case.arm == "delayed":
            return self.armed(not ops.enable_cb_delayed(queue))
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
        """Give back all that is held, the last taken first."""
        case, queue, ops = self._case, self._queue, self._ops
        for k, (head, token) in enumerate(reversed(self.held)):
            out_num, in_num = case.shapes[token]
            if case.contents and in_num:
                queue.mem.u32[buffer_of(token, out_num)[0] >> 2] = 0x2000 + token
            if case.flush == 1:
                ops.push(queue, head, 100 + token)
            else:
                ops.fill(queue, head, 100 + token, k)
        if case.flush > 1:
            ops.flush(queue, len(self.held))
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


def ring_module(module: types.ModuleType, without: tuple[str, int] | None = None) -> Any:
    """Return a copy of a module of ring functions whose fences reach the checker.

    Args:
        module: The module; nothing in it changes.
        without: A function and the number of the fence in it (from 0) that is to be left out.
    """
    source = _source(module)
    copy = types.ModuleType(module.__name__)
    copy.__file__ = module.__file__
    exec(compile(without_fence(source, *without) if without else source, module.__file__ or "", "exec"), vars(copy))
    vars(copy)["fence"] = fence
    return copy


def fences(module: types.ModuleType) -> list[tuple[str, int]]:
    """Return every fence of a module, as `ring_module` takes it: (function, number in it)."""
    found = []
    for _, function, number in _fence_lines(_source(module)):
        found.append((function, number))
    return found


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


SPLIT_DRIVER, SPLIT_DEVICE = ring_module(split_driver), ring_module(split_device)

Names = Callable[[int, int], str]


def split_names(queue: Any) -> Names:
    """Return how to call an address of a split ring (2.7)."""
    size = queue.size
    single = {
        queue.avail: "avail.flags",
        queue.avail + 2: "avail.idx",
        queue.avail + 4 + 2 * size: "used_event",
        queue.used: "used.flags",
        queue.used + 2: "used.idx",
        queue.used + 4 + 8 * size: "avail_event",
    }

    def name(addr: int, width: int) -> str:
        if addr in single:
            return single[addr]
        if queue.desc <= addr < queue.avail:
            i, field = divmod(addr - queue.desc, 16)
            return f"desc[{i}].{ {0: 'addr', 8: 'len', 12: 'flags+next'}.get(field, field)}"
        if queue.avail <= addr < queue.used:
            return f"avail.ring[{(addr - queue.avail - 4) // 2}]"
        if queue.used <= addr < queue.used + 4 + 8 * size:
            i, field = divmod(addr - queue.used - 4, 8)
            return f"used.ring[{i}].{'len' if field else 'id'}"
        return f"buffer {addr:#x}"

    return name


def split_world(case: Case) -> tuple[Any, Any, Cells]:
    mem = GuestMemory(1 << 14)
    driver, device = split.new_queue(mem, case.size, case.event_idx, case.start)
    size = case.size
    for addr, length in ((driver.desc, 16 * size), (driver.avail + 4, 2 * size), (driver.used + 4, 8 * size)):
        mem.u8[addr : addr + length] = bytes([POISON]) * length
    return driver, device, Cells(mem, split_names(driver))


def check(
    machine: Machine,
    case: Case,
    driver: type[Driver] = Driver,
    device: type[Device] = Device,
    driver_ops: Any = SPLIT_DRIVER,
    device_ops: Any = SPLIT_DEVICE,
    shortest: bool = False,
    count: bool = False,
) -> Found:
    """Explore one case."""
    driver_queue, device_queue, cells = split_world(case)
    programs = driver(driver_queue, driver_ops, case), device(device_queue, device_ops, case)
    return Checker(machine, *programs, cells, case.spurious).explore(shortest, count)
