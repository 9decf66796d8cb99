"""A virtqueue driven by hand, one step at a time, each with its reason: what a lecture shows.

Steps are named after the functions of both sides. The driver's: ``add``, ``kick``, ``get``, ``irq``, ``disable_cb``,
``enable_cb``, ``enable_cb_delayed``. The device's: ``pop``, ``push``, ``interrupt``, ``notify``. And ``poke`` writes
into the ring's memory what neither side would.

Example:
    >>> session = Session(4, event_idx=True)
    >>> for text in session.play("add out 64 in 512; kick; pop; push 512; interrupt; get"):
    ...     print(text)
    add: buffer 0: head 0, 2 descriptors, 2 free
    kick: yes: the avail index went from 0 to 1, past avail_event 0
    pop: head 0: 64 bytes to read, 512 to write
    push: head 0, 512 bytes written
    interrupt: yes: nothing is known of the last interrupt, so one is sent
    get: buffer 0, 512 bytes written
    >>> print(session.do("add out 64"))
    add: buffer 1: head 0, 1 descriptor, 3 free
    >>> print(session.do("kick"))
    kick: yes: the avail index went from 1 to 2, past avail_event 1
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from iosim.errors import IosimError, unknown
from iosim.ring.errors import RingError
from iosim.ring.layout import (
    DESC_SIZE,
    PACKED_EVENT_FLAGS,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_USED_F_NO_NOTIFY,
)
from iosim.ring.memory import GuestMemory, allocate, write_u16, write_u32, write_u64
from iosim.ring.view import QueueView, look_at
from iosim.ring.virtqueue import Buffer, DeviceSide, DriverSide, Element, new_virtqueue

STEPS: Final = {
    "add": "add [out BYTES...] [in BYTES...] [indirect]: make a chain of buffers available",
    "kick": "kick: does the device want a notification of what was added?",
    "pop": "pop: the device takes the next chain",
    "push": "push [BYTES] [HEAD]: the device gives a chain back, the one taken first unless told otherwise",
    "interrupt": "interrupt: does the driver want an interrupt for what was given back?",
    "irq": "irq: the interrupt comes to the driver",
    "get": "get: the driver takes the next used chain",
    "disable_cb": "disable_cb: the driver wants no interrupts",
    "enable_cb": "enable_cb: the driver wants one again, and looks once more",
    "enable_cb_delayed": "enable_cb_delayed: the same, but when three quarters of what is in flight are used",
    "notify": "notify on|off: the device wants kicks, or not; after 'on' it looks once more",
    "poke": "poke FIELD VALUE: write into the ring, as avail.idx, used.idx, desc[2].next, avail.ring[0]",
}

_BUFFERS: Final = 1 << 20


class Session:
    """Both sides of a new virtqueue, and the steps that were played on it.

    Args:
        size: Descriptors.
        event_idx, packed, indirect, in_order: What is negotiated.

    Attributes:
        driver, device: The two sides.
        taken: Elements that the device has taken and not given back.
        failed: The device or the driver found the other breaking the rules.

    Raises:
        SizeError: The size is none that such a queue can have.
    """

    def __init__(
        self,
        size: int = 8,
        *,
        event_idx: bool = True,
        packed: bool = False,
        indirect: bool = False,
        in_order: bool = False,
    ) -> None:
        self.mem = GuestMemory(_BUFFERS + 64 * (size if 0 < size <= 1 << 15 else 1) * 33)
        self.driver: DriverSide
        self.device: DeviceSide
        self.driver, self.device = new_virtqueue(
            self.mem, size, event_idx=event_idx, packed=packed, indirect=indirect, in_order=in_order
        )
        self.taken: list[Element] = []
        self.failed = False
        self._buffers = 0
        self._at = allocate(self.mem, 0, 4096)
        self._first = self._at

    def view(self) -> QueueView:
        """Return the queue as it is now."""
        return look_at(self.driver.q, self.device.q)

    def play(self, text: str) -> Iterator[str]:
        """Play steps that are separated by ``;`` or line ends; ``#`` begins a comment. Yield what `do` returns.

        Raises:
            IosimError: A step is none, or makes no sense now.
        """
        for line in text.splitlines():
            for step in line.partition("#")[0].split(";"):
                if step.strip():
                    yield self.do(step)

    def do(self, step: str) -> str:
        """Play one step; return what came of it, in a line that begins with the step's name.

        What one side finds wrong with the other's bytes is such a line, too, and sets `failed`.

        Raises:
            IosimError: The step is none, or makes no sense now.
        """
        name, *words = step.split()
        if name not in STEPS:
            raise unknown("step", name, STEPS)
        method: Callable[[list[str]], str] = getattr(self, f"_{name}")
        try:
            return f"{name}: {method(words)}"
        except RingError as error:
            self.failed = True
            return f"{name}: {type(error).__name__}: {error}"

    # -- the driver's steps -------------------------------------------------------------------------------------

    def _add(self, words: list[str]) -> str:
        lengths: dict[str, list[int]] = {"out": [], "in": []}
        indirect = None
        side = None
        for word in words:
            if word in lengths:
                side = word
            elif word == "indirect":
                if not self.driver.q.indirect:
                    raise IosimError("this queue has no indirect tables; begin the session with --indirect", "add")
                indirect = True
            elif side is None:
                raise IosimError(f"'{word}': say 'out' or 'in' before the buffers' bytes", "add")
            else:
                lengths[side].append(_number(word, "add"))
        sg = {side: [self._buffer(length) for length in found] for side, found in lengths.items()}
        before = self.driver.num_free
        self.driver.add(sg["out"], sg["in"], data=self._buffers, indirect=indirect)
        self._buffers += 1
        q = self.driver.q
        used = before - q.num_free
        head = next(i for i in range(q.size) if q.desc_state[i] >= 0 and q.desc_seq[i] == q.added - 1)
        word = "head" if not q.packed else "id"
        return f"buffer {self._buffers - 1}: {word} {head}, {_count(used, 'descriptor')}, {q.num_free} free"

    def _buffer(self, length: int) -> Buffer:
        if self._at + length > self.mem.size:
            self._at = self._first
        if length > self.mem.size - self._first:
            raise IosimError(f"a buffer of {length} bytes; the session's memory holds {self.mem.size - self._first}")
        found = Buffer(self._at, length)
        self._at = min(self._at + max(64, (length + 63) & ~63), self.mem.size)
        return found

    def _kick(self, words: list[str]) -> str:
        _none(words, "kick")
        why = self._why_kick()
        return f"{'yes' if self.driver.kick_prepare() else 'no'}: {why}"

    def _why_kick(self) -> str:
        q = self.driver.q
        mem, added = q.mem, q.num_added
        if q.packed:
            new = q.pending_idx if q.num_pending else q.next_avail_idx
            return _why_packed(mem.u32[q.used >> 2], q.size, new - added, new, "made available", "device")
        if not q.event_idx:
            return _why_flag(mem.u16[q.used >> 1] & VRING_USED_F_NO_NOTIFY, "VIRTQ_USED_F_NO_NOTIFY")
        event = mem.u16[(q.used + 4 + 8 * q.size) >> 1]
        return _why_event("avail", event, (q.avail_idx_shadow - added) & 0xFFFF, q.avail_idx_shadow)

    def _irq(self, words: list[str]) -> str:
        _none(words, "irq")
        return "there is something to get" if self.driver.interrupt() else "nothing to get: spurious"

    def _get(self, words: list[str]) -> str:
        _none(words, "get")
        used = self.driver.get_buf()
        return "nothing used" if used is None else f"buffer {used.data}, {used.length} bytes written"

    def _disable_cb(self, words: list[str]) -> str:
        _none(words, "disable_cb")
        self.driver.disable_cb()
        return self.view().interrupt.text

    def _enable_cb(self, words: list[str]) -> str:
        _none(words, "enable_cb")
        return self._enabled(self.driver.enable_cb())

    def _enable_cb_delayed(self, words: list[str]) -> str:
        _none(words, "enable_cb_delayed")
        return self._enabled(self.driver.enable_cb_delayed())

    def _enabled(self, armed: bool) -> str:
        return self.view().interrupt.text if armed else "there is something to get already: go on polling"

    # -- the device's -------------------------------------------------------------------------------------------

    def _pop(self, words: list[str]) -> str:
        _none(words, "pop")
        if self.device.broken:
            return "the device is broken and takes nothing"
        element = self.device.pop()
        if element is None:
            return "nothing available"
        self.taken.append(element)
        word = "id" if self.device.q.packed else "head"
        return f"{word} {element.head}: {element.out_size} bytes to read, {element.in_size} to write"

    def _push(self, words: list[str]) -> str:
        if len(words) > 2:
            raise IosimError(f"too many words: {STEPS['push']}", "push")
        if not self.taken:
            raise IosimError("the device has taken nothing; 'pop' first", "push")
        element = self.taken[0]
        if len(words) == 2:
            head = _number(words[1], "push")
            found = [e for e in self.taken if e.head == head]
            if not found:
                heads = ", ".join(str(e.head) for e in self.taken)
                raise IosimError(f"the device has not taken {head}; it has {heads}", "push")
            element = found[0]
        length = _number(words[0], "push") if words else element.in_size
        if length > element.in_size:
            raise IosimError(f"{length} bytes written into buffers of {element.in_size}", "push")
        self.device.push(element, length)
        self.taken.remove(element)
        return f"{'id' if self.device.q.packed else 'head'} {element.head}, {length} bytes written"

    def _interrupt(self, words: list[str]) -> str:
        _none(words, "interrupt")
        why = self._why_interrupt()
        return f"{'yes' if self.device.should_notify() else 'no'}: {why}"

    def _why_interrupt(self) -> str:
        q = self.device.q
        mem = q.mem
        flags = mem.u16[(q.avail >> 1) + 1] & PACKED_EVENT_FLAGS
        if (flags == VRING_PACKED_EVENT_FLAG_DESC if q.packed else q.event_idx) and not q.signalled_used_valid:
            return "nothing is known of the last interrupt, so one is sent"
        if q.packed:
            return _why_packed(mem.u32[q.avail >> 2], q.size, q.signalled_used, q.used_idx, "used", "driver")
        if not q.event_idx:
            return _why_flag(mem.u16[q.avail >> 1] & VRING_AVAIL_F_NO_INTERRUPT, "VIRTQ_AVAIL_F_NO_INTERRUPT")
        return _why_event("used", mem.u16[(q.avail >> 1) + 2 + q.size], q.signalled_used, q.used_idx)

    def _notify(self, words: list[str]) -> str:
        if words not in (["on"], ["off"]):
            raise IosimError(f"'{' '.join(words)}' is neither: {STEPS['notify']}", "notify")
        self.device.set_notification(words == ["on"])
        if words == ["on"] and not self.device.empty():
            return "there is something to take already: go on"
        return self.view().kick.text

    # -- neither side's -----------------------------------------------------------------------------------------

    def _poke(self, words: list[str]) -> str:
        if len(words) != 2:
            raise IosimError(f"two words: {STEPS['poke']}", "poke")
        addr, width = self._field(words[0])
        value = _number(words[1], "poke")
        if value >> 8 * width:
            raise IosimError(f"{words[0]} has {8 * width} bits; {value} does not fit", "poke")
        {2: write_u16, 4: write_u32, 8: write_u64}[width](self.mem, addr, value)
        return f"{words[0]} = {value}"

    def _field(self, name: str) -> tuple[int, int]:
        """The address of a field by the specification's name, and its bytes."""
        q = self.driver.q
        size = q.size
        third, fourth = ("id", "flags") if q.packed else ("flags", "next")
        fields: dict[str, tuple[int, int]] = {}
        arrays: dict[str, tuple[int, int, int]] = {
            "desc.addr": (q.desc, DESC_SIZE, 8),
            "desc.len": (q.desc + 8, DESC_SIZE, 4),
            f"desc.{third}": (q.desc + 12, DESC_SIZE, 2),
            f"desc.{fourth}": (q.desc + 14, DESC_SIZE, 2),
        }
        if q.packed:
            for area, at in (("driver_event", q.avail), ("device_event", q.used)):
                fields[f"{area}.desc"] = at, 2
                fields[f"{area}.flags"] = at + 2, 2
        else:
            fields |= {
                "avail.flags": (q.avail, 2),
                "avail.idx": (q.avail + 2, 2),
                "used_event": (q.avail + 4 + 2 * size, 2),
                "used.flags": (q.used, 2),
                "used.idx": (q.used + 2, 2),
                "avail_event": (q.used + 4 + 8 * size, 2),
            }
            arrays |= {
                "avail.ring": (q.avail + 4, 2, 2),
                "used.ring.id": (q.used + 4, 8, 4),
                "used.ring.len": (q.used + 8, 8, 4),
            }
        if name in fields:
            return fields[name]
        indexes = re.findall(r"\[(\d+)\]", name)
        plain = re.sub(r"\[\d+\]", "", name)
        if plain not in arrays or len(indexes) != 1:
            known = [*fields, *(re.sub(r"^(desc|avail\.ring|used\.ring)", r"\1[0]", array) for array in arrays)]
            raise unknown("field", name, known)
        index = int(indexes[0])
        if index >= size:
            raise IosimError(f"{name}: the queue has entries 0 to {size - 1}", "poke")
        at, step, width = arrays[plain]
        return at + step * index, width


def _number(word: str, step: str) -> int:
    try:
        value = int(word, 0)
    except ValueError:
        raise IosimError(f"'{word}' is no number: {STEPS[step]}", step) from None
    if value < 0:
        raise IosimError(f"{value} is negative: {STEPS[step]}", step)
    return value


def _none(words: list[str], step: str) -> None:
    if words:
        raise IosimError(f"'{' '.join(words)}' means nothing here: {STEPS[step]}", step)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _why_flag(suppressed: int, name: str) -> str:
    return f"{name} is {'set' if suppressed else 'clear'}"


def _why_event(side: str, event: int, old: int, new: int) -> str:
    if old == new:
        return f"the {side} index is still {new}"
    if (event - old) & 0xFFFF < (new - old) & 0xFFFF:
        return f"the {side} index went from {old} to {new}, past {side}_event {event}"
    return f"the {side} index went from {old} to {new}, not past {side}_event {event}"


def _why_packed(word: int, size: int, old: int, new: int, done: str, who: str) -> str:
    flags = word >> 16 & PACKED_EVENT_FLAGS
    if flags == VRING_PACKED_EVENT_FLAG_DISABLE:
        return f"the {who}'s flags are DISABLE"
    if flags != VRING_PACKED_EVENT_FLAG_DESC:
        return f"the {who}'s flags are ENABLE"
    if old == new:
        return f"nothing was {done}"
    slot, wrap = word & 0x7FFF, word >> 15 & 1
    wanted = f"slot {slot} with wrap counter {wrap}"
    among = any(p % size == slot and (p // size) & 1 == 1 - wrap for p in range(old, new))
    slots = f"slot {old % size}" if new == old + 1 else f"slots {old % size} to {(new - 1) % size}"
    was = "was" if new == old + 1 else "were"
    return f"{slots} {was} {done}, and {wanted} is {'' if among else 'not '}among them"
