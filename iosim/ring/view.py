"""A virtqueue as it stands in memory, made readable: who owns each descriptor, and which notification is armed.

`look` reads and changes nothing, whatever bytes stand there: a memory image, a live guest's ring, a simulated one
between two events. Indexes carry QEMU's names.

What the bytes alone do not tell, `known` does: QEMU's own indexes, or the states of iosim's two sides. Without it the
chains in flight are found by their order, which is a guess where a device returns them out of order; then
`QueueView.exact` is False.

Example:
    >>> from iosim.ring.memory import GuestMemory
    >>> from iosim.ring.virtqueue import Buffer, new_virtqueue
    >>> mem = GuestMemory(1 << 16)
    >>> driver, device = new_virtqueue(mem, 4, event_idx=True)
    >>> driver.add([Buffer(0x1000, 64)], [Buffer(0x2000, 512)])
    >>> view = look_at(driver.q, device.q)
    >>> [(slot.owner, slot.length, slot.flags) for slot in view.slots[:3]]
    [('device', 64, ['NEXT']), ('device', 512, ['WRITE']), ('driver', 0, [])]
    >>> view.kick.text
    'avail_event 0 lies behind the avail index 1: a kick is due or was sent, and no more until the device arms it again'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

from iosim.ring.device import pop
from iosim.ring.device_queue import DeviceQueue
from iosim.ring.driver_queue import DriverQueue
from iosim.ring.errors import EMPTY, RingError, raise_for
from iosim.ring.layout import (
    DESC_SIZE,
    PACKED_EVENT_FLAGS,
    PACKED_MARKS,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_USED_F_NO_NOTIFY,
    check_ring,
)
from iosim.ring.memory import GuestMemory
from iosim.ring.queue import state

DRIVER: Final = "driver"
DEVICE: Final = "device"
_FLAGS: Final = {VRING_DESC_F_NEXT: "NEXT", VRING_DESC_F_WRITE: "WRITE", VRING_DESC_F_INDIRECT: "INDIRECT"}
_MARKS: Final = {VRING_PACKED_DESC_F_AVAIL: "AVAIL", VRING_PACKED_DESC_F_USED: "USED"}


class Place(NamedTuple):
    """Where a virtqueue stands, and what was negotiated for it."""

    #: Descriptors.
    size: int
    #: Guest-physical address of the descriptor table (packed: descriptor ring).
    desc: int
    #: The same of the available ring (packed: driver event suppression structure).
    avail: int
    #: The same of the used ring (packed: device event suppression structure).
    used: int
    event_idx: bool = False
    packed: bool = False
    indirect: bool = True


@dataclass(frozen=True)
class Slot:
    """One descriptor as it stands in the ring.

    Attributes:
        index: Its place in the table.
        addr: Guest-physical address of its buffer.
        length: Bytes.
        flags: Names of its flags: NEXT, WRITE, INDIRECT; packed: AVAIL and USED, too.
        link: Split: `next`; packed: the buffer id.
        owner: ``driver`` or ``device``.
        head: Head (packed: buffer id) of the chain in flight that it belongs to; None without.
    """

    index: int
    addr: int
    length: int
    flags: list[str]
    link: int
    owner: str
    head: int | None


@dataclass(frozen=True)
class Chain:
    """A chain that the device has, or may take.

    Attributes:
        head: The head's index; packed: the buffer id.
        slots: Its descriptors in the ring, in order.
        out_sg: Address and length of the buffers the device reads.
        in_sg: The same of those it writes.
        taken: Whether the device has taken it; None where that is not known.
        problem: What a device would refuse it for, or None.
    """

    head: int
    slots: list[int]
    out_sg: list[tuple[int, int]]
    in_sg: list[tuple[int, int]]
    taken: bool | None
    problem: str | None


@dataclass(frozen=True)
class Notification:
    """Whether one side wants to hear of the other's next step.

    Attributes:
        armed: It does, of something that can still come.
        text: How that stands in the ring, in a sentence.
    """

    armed: bool
    text: str


@dataclass(frozen=True)
class QueueView:
    """A virtqueue at one moment.

    Attributes:
        place: Where it stands.
        driver_area: What the driver has published: `flags`, `idx`, `used_event` (packed: `off`, `wrap`, `flags`).
        device_area: What the device has: `flags`, `idx`, `avail_event` (packed: `off`, `wrap`, `flags`).
        slots: Every descriptor.
        in_flight: Chains that are the device's, in the order in which they were made available.
        kick: When the driver is to notify the device.
        interrupt: When the device is to notify the driver.
        driver: What the driver's side knows, by Linux's names; empty where only memory is known.
        device: What the device's side knows, by QEMU's names.
        avail_ring: Split: the heads in the available ring, by place.
        used_ring: Split: id and length in the used ring, by place.
        exact: Whether the owners are known rather than guessed.
        problems: What breaks the rules, in sentences.
    """

    place: Place
    driver_area: dict[str, int]
    device_area: dict[str, int]
    slots: list[Slot]
    in_flight: list[Chain]
    kick: Notification
    interrupt: Notification
    driver: dict[str, int | bool] = field(default_factory=dict)
    device: dict[str, int | bool] = field(default_factory=dict)
    avail_ring: list[int] = field(default_factory=list)
    used_ring: list[tuple[int, int]] = field(default_factory=list)
    exact: bool = True
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in JSON."""
        found = asdict(self)
        found["place"] = self.place._asdict()
        return found


def look_at(driver: DriverQueue | None, device: DeviceQueue | None) -> QueueView:
    """Return the view of a queue of which one side's state is at hand, or both.

    Raises:
        RingError: Neither is.
    """
    q = driver if driver is not None else device
    if q is None:
        raise RingError("a view needs one side of the queue at least")
    place = Place(q.size, q.desc, q.avail, q.used, q.event_idx, q.packed, q.indirect)
    return look(
        q.mem,
        place,
        state(device) if device is not None else None,
        state(driver) if driver is not None else None,
    )


def look(
    mem: GuestMemory,
    place: Place,
    device: Mapping[str, int | bool] | None = None,
    driver: Mapping[str, int | bool] | None = None,
) -> QueueView:
    """Return the view of a queue in memory.

    Args:
        mem: The memory.
        place: Where the queue stands in it.
        device: What the device's side knows, by QEMU's names (`iosim.ring.queue.state`, or QEMU's
            ``x-query-virtio-queue-status``): `last_avail_idx`, `used_idx`, `inuse`, and what else there is.
        driver: What the driver's side knows, by Linux's names.

    Raises:
        SizeError: The size is none that such a queue can have.
        AddressError: A part is not aligned or not in memory.
    """
    check_ring(mem, place.size, place.desc, place.avail, place.used, place.packed)
    found = (_look_packed if place.packed else _look_split)(mem, place, dict(device or {}), dict(driver or {}))
    return found


def _flag_names(flags: int, packed: bool) -> list[str]:
    names = _FLAGS | _MARKS if packed else _FLAGS
    unknown = flags & ~sum(names)
    return [name for bit, name in names.items() if flags & bit] + ([f"{unknown:#x}"] if unknown else [])


def _slots(mem: GuestMemory, place: Place, owners: Mapping[int, int | None]) -> list[Slot]:
    """All descriptors; ``owners`` has those of the device, with the head of the chain each belongs to."""
    found = []
    for i in range(place.size):
        at = place.desc + DESC_SIZE * i
        words = mem.u16[(at + 12) >> 1], mem.u16[(at + 14) >> 1]
        link, flags = words if place.packed else (words[1], words[0])
        found.append(
            Slot(
                index=i,
                addr=mem.u64[at >> 3],
                length=mem.u32[(at + 8) >> 2],
                flags=_flag_names(flags, place.packed),
                link=link,
                owner=DEVICE if i in owners else DRIVER,
                head=owners.get(i),
            )
        )
    return found


def _reader(mem: GuestMemory, place: Place) -> DeviceQueue:
    """A device side of our own: with notifications off, `pop` writes nothing."""
    q = DeviceQueue(
        mem, place.size, place.desc, place.avail, place.used, place.event_idx, place.packed, place.indirect
    )
    q.notification = False
    return q


def _take(q: DeviceQueue) -> tuple[list[tuple[int, int]], list[tuple[int, int]], str | None]:
    """The next chain's buffers as a device would see them, or why it would refuse it."""
    try:
        if raise_for(pop(q)) == EMPTY:
            return [], [], "it is not available"
    except RingError as error:
        return [], [], str(error)
    buffers = [(q.elem_addr[i], q.elem_len[i]) for i in range(q.elem_out_num + q.elem_in_num)]
    return buffers[: q.elem_out_num], buffers[q.elem_out_num :], None


# -- split ------------------------------------------------------------------------------------------------------


def _look_split(
    mem: GuestMemory, place: Place, device: dict[str, int | bool], driver: dict[str, int | bool]
) -> QueueView:
    size = place.size
    avail16, used16 = place.avail >> 1, place.used >> 1
    driver_area = {"flags": mem.u16[avail16], "idx": mem.u16[avail16 + 1], "used_event": mem.u16[avail16 + 2 + size]}
    device_area = {
        "flags": mem.u16[used16],
        "idx": mem.u16[used16 + 1],
        "avail_event": mem.u16[used16 + 2 + 4 * size],
    }
    avail_idx, used_idx = driver_area["idx"], device_area["idx"]
    problems = []
    flying = (avail_idx - used_idx) & 0xFFFF
    if flying > size:
        problems.append(
            f"the avail index {avail_idx} is {flying} ahead of the used index {used_idx}, on a queue of {size}"
        )
        flying = 0
    # A head was made available last at `added`, and last used at `returned`, both counted back from the index.
    added: dict[int, int] = {}
    returned: dict[int, int] = {}
    for back in range(1, size + 1):
        head = mem.u16[avail16 + 2 + ((avail_idx - back) & (size - 1))]
        if head < size and back <= avail_idx + (0x10000 if used_idx > avail_idx else 0):
            added.setdefault(head, back)
        id_ = mem.u32[(place.used >> 2) + 1 + 2 * ((used_idx - back) & (size - 1))]
        if id_ < size and back <= used_idx:
            returned.setdefault(id_, back)
    # It is in flight if it was added after it came back. Neither ring says which was first; where the device keeps
    # the order, it is so for the heads added last, and a head that never came back is in flight for certain.
    heads = sorted(added, key=lambda head: (head in returned, added[head] + flying - returned.get(head, 0)))[:flying]
    exact = all(added[head] <= flying for head in heads)
    heads.sort(key=lambda head: -added[head])
    q = _reader(mem, place)
    owners: dict[int, int | None] = {}
    chains = []
    last_avail = device.get("last_avail_idx")
    for head in heads:
        position = (avail_idx - added[head]) & 0xFFFF
        q.last_avail_idx, q.shadow_avail_idx, q.inuse = position, avail_idx, 0
        out_sg, in_sg, problem = _take(q)
        slots = _walk(mem, place, head)
        owners.update(dict.fromkeys(slots, head))
        # Taken unless its entry is one of those between the device's index and the driver's.
        taken = None if last_avail is None else added[head] > (avail_idx - last_avail) & 0xFFFF
        chains.append(Chain(head, slots, out_sg, in_sg, taken, problem))
        if problem is not None:
            problems.append(f"chain {head}: {problem}")
    if place.event_idx:
        kick = _event("avail", device_area["avail_event"], avail_idx, size, "kick", DEVICE)
        interrupt = _event("used", driver_area["used_event"], used_idx, size, "interrupt", DRIVER)
    else:
        kick = _flag(device_area["flags"] & VRING_USED_F_NO_NOTIFY, "VIRTQ_USED_F_NO_NOTIFY", "kick", DEVICE)
        flag = driver_area["flags"] & VRING_AVAIL_F_NO_INTERRUPT
        interrupt = _flag(flag, "VIRTQ_AVAIL_F_NO_INTERRUPT", "interrupt", DRIVER)
    used32 = (place.used >> 2) + 1
    return QueueView(
        place,
        driver_area,
        device_area,
        _slots(mem, place, owners),
        chains,
        kick,
        interrupt,
        driver,
        device,
        avail_ring=[mem.u16[avail16 + 2 + i] for i in range(size)],
        used_ring=[(mem.u32[used32 + 2 * i], mem.u32[used32 + 2 * i + 1]) for i in range(size)],
        exact=exact,
        problems=problems,
    )


def _walk(mem: GuestMemory, place: Place, head: int) -> list[int]:
    """The descriptors of a chain, as far as they go on."""
    found: list[int] = []
    i = head
    while i < place.size and i not in found:
        found.append(i)
        at = place.desc + DESC_SIZE * i
        if not mem.u16[(at + 12) >> 1] & VRING_DESC_F_NEXT:
            break
        i = mem.u16[(at + 14) >> 1]
    return found


def _flag(suppressed: int, name: str, what: str, who: str) -> Notification:
    if suppressed:
        return Notification(False, f"{name} is set: the {who} wants no {what}")
    return Notification(True, f"{name} is clear: the {who} wants {_a(what)} whenever there is something new")


def _a(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def _event(side: str, event: int, idx: int, size: int, what: str, who: str) -> Notification:
    """How `used_event` or `avail_event` stands to the index that it is about."""
    name = f"{side}_event"
    steps = ((event - idx) & 0xFFFF) + 1
    if steps == 1:
        return Notification(True, f"{name} {event} is the {side} index: the next chain brings {_a(what)}")
    if steps <= size:
        return Notification(
            True,
            f"{name} {event} lies {steps - 1} ahead of the {side} index {idx}: "
            f"chain {steps} from here brings {_a(what)}",
        )
    text = f"{name} {event} lies behind the {side} index {idx}"
    quiet = f"no {what}"
    if (idx - event) & 0xFFFF <= size:
        quiet = f"{_a(what)} is due or was sent, and no more"
    return Notification(False, f"{text}: {quiet} until the {who} arms it again")


# -- packed -----------------------------------------------------------------------------------------------------


def _look_packed(
    mem: GuestMemory, place: Place, device: dict[str, int | bool], driver: dict[str, int | bool]
) -> QueueView:
    size = place.size
    driver_area, device_area = _event_area(mem, place.avail), _event_area(mem, place.used)
    marks = [mem.u16[(place.desc >> 1) + 8 * i + 7] & PACKED_MARKS for i in range(size)]
    # Places as `iosim.ring.device_queue.DeviceQueue` counts them: lap 2 (even: wrap counter 1) or 3.
    used_place, exact = _used_place(mem, place, marks, device)
    end = used_place
    while end - used_place < size and marks[end % size] == _available(size, end):
        end += 1
    q = _reader(mem, place)
    chains = []
    problems = []
    owners: dict[int, int | None] = {}
    last_avail = device.get("last_avail_idx")
    taken_until = used_place
    if last_avail is not None:
        taken_until += (int(last_avail) - used_place) % size
        if taken_until == used_place and int(device.get("inuse", 0)) > 0:
            taken_until += size
    at = used_place
    while at < end:
        q.last_avail_idx, q.inuse = at, 0
        q.elem_ndescs[:] = [0] * len(q.elem_ndescs)
        out_sg, in_sg, problem = _take(q)
        places = [at]
        while _u16(mem, place, places[-1], 7) & VRING_DESC_F_NEXT and places[-1] + 1 < end:
            places.append(places[-1] + 1)
        head = _u16(mem, place, places[-1], 6)
        slots = [p % size for p in places]
        owners.update(dict.fromkeys(slots, head))
        chains.append(Chain(head, slots, out_sg, in_sg, None if last_avail is None else at < taken_until, problem))
        if problem is not None:
            problems.append(f"chain at {at % size}: {problem}")
        at = places[-1] + 1
    kick = _packed_event(device_area, size, end, "kick", DEVICE, "made available")
    interrupt = _packed_event(driver_area, size, used_place, "interrupt", DRIVER, "used")
    return QueueView(
        place,
        driver_area,
        device_area,
        _slots(mem, place, owners),
        chains,
        kick,
        interrupt,
        driver,
        device,
        exact=exact,
        problems=problems,
    )


def _u16(mem: GuestMemory, place: Place, at: int, word: int) -> int:
    return mem.u16[(place.desc >> 1) + 8 * (at % place.size) + word]


def _event_area(mem: GuestMemory, addr: int) -> dict[str, int]:
    word = mem.u16[addr >> 1]
    return {"off": word & 0x7FFF, "wrap": word >> 15, "flags": mem.u16[(addr >> 1) + 1] & PACKED_EVENT_FLAGS}


def _available(size: int, at: int) -> int:
    return VRING_PACKED_DESC_F_USED if (at // size) & 1 else VRING_PACKED_DESC_F_AVAIL


def _used_place(
    mem: GuestMemory, place: Place, marks: list[int], device: dict[str, int | bool]
) -> tuple[int, bool]:
    """The place where the device writes next, and whether it is known rather than guessed."""
    size = place.size
    # The AVAIL bit of a slot is the wrap counter of the lap in which it was written last, by whichever side.
    laps = [1 if mark & VRING_PACKED_DESC_F_AVAIL else 0 for mark in marks]
    if "used_idx" in device:
        slot = int(device["used_idx"])
        if 0 <= slot < size:
            wrap = device.get("used_wrap_counter")
            if wrap is None:
                # QEMU's status has none. The slot before was written in this lap, or, for slot 0, in the one before.
                wrap = laps[slot - 1] if slot else 1 - laps[-1]
            return slot + size * (2 if wrap else 3), True
    # Where the bit changes the driver goes on. What stands before it, back to the last used descriptor, is the
    # device's, or the rest of that descriptor's chain.
    end = next((i for i in range(1, size) if laps[i] != laps[0]), 0)
    at = end + size * (2 if laps[end - 1] == 1 else 3) if end else size * (3 if laps[0] else 2)
    first = at
    while first > at - size and first > size and marks[(first - 1) % size] == _available(size, first - 1):
        first -= 1
    # Linux writes a chain's id into each of its descriptors: those that bear the used one's id came back with it.
    if first > size:
        came_back = _u16(mem, place, first - 1, 6)
        while first < at and _u16(mem, place, first, 6) == came_back:
            first += 1
    return first, first == at


def _packed_event(area: dict[str, int], size: int, at: int, what: str, who: str, done: str) -> Notification:
    if area["flags"] == VRING_PACKED_EVENT_FLAG_DISABLE:
        return Notification(False, f"the flags are DISABLE: the {who} wants no {what}")
    if area["flags"] != VRING_PACKED_EVENT_FLAG_DESC:
        return Notification(True, f"the flags are ENABLE: the {who} wants {_a(what)} whenever there is something new")
    slot, wrap = area["off"], area["wrap"]
    if slot >= size:
        return Notification(False, f"the flags are DESC for slot {slot}, which a queue of {size} does not have")
    ahead = (slot + size * (0 if wrap else 1) - at) % (2 * size)
    where = f"slot {slot} with wrap counter {wrap}"
    if ahead < size:
        near = "the next one" if ahead == 0 else f"{ahead} ahead"
        return Notification(True, f"the flags are DESC for {where}, {near}: {_a(what)} when it is {done}")
    return Notification(
        False, f"the flags are DESC for {where}, which lies behind: no {what} until the {who} arms it again"
    )
