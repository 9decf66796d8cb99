"""Small mistakes that somebody could make in the ring code, each of which the tests must notice.

A mutant replaces one piece of text, found exactly once in the file (or in the function that ``within``
names), by another. ``kills`` names the test file of `mutation.SUITE` that is expected to notice; that one
runs first, the rest of the suite after it.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake."""

    #: The module below ``iosim.ring``.
    module: str
    #: Where the text stands: a function, or "" for the whole file.
    within: str
    old: str
    new: str
    #: What is wrong with it.
    why: str
    #: The test file that should notice first.
    kills: str = "test_queue_model"


def without_fence(module: str, within: str, line: str, why: str) -> Mutant:
    return Mutant(module, within, line, "pass", f"no fence: {why}", "test_interleavings")


_DRIVER, _DEVICE = "split_driver", "split_device"

EVENT = [
    Mutant(
        "event",
        "vring_need_event",
        "((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)",
        "new == (event + 1) & 0xFFFF",
        "comparison by equality: a batch that passes the event index notifies nobody",
        "test_event",
    ),
    Mutant(
        "event",
        "vring_need_event",
        "(new - event - 1) & 0xFFFF",
        "(new - event) & 0xFFFF",
        "off by one: notifies one entry early or late",
        "test_event",
    ),
    Mutant(
        "event",
        "vring_need_event",
        "& 0xFFFF) < ((",
        "& 0xFFFF) <= ((",
        "the event index one before the batch counts as passed",
        "test_event",
    ),
    Mutant(
        "event",
        "vring_need_event",
        "((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)",
        "old <= event < new",
        "plain comparison: wrong once an index has wrapped",
        "test_event",
    ),
    Mutant(
        "event",
        "vring_need_event",
        "((new - old) & 0xFFFF)",
        "(new - old)",
        "a distance that is not taken modulo 2**16",
        "test_event",
    ),
]

LAYOUT = [
    Mutant(
        "layout", "", "used_bytes = 6 + 8 * size", "used_bytes = 4 + 8 * size", "no room for avail_event", "test_layout"
    ),
    Mutant(
        "layout",
        "",
        "avail_bytes = 6 + 2 * size",
        "avail_bytes = 4 + 2 * size",
        "no room for used_event",
        "test_layout",
    ),
    Mutant("layout", "", " or size & (size - 1)", "", "a size that is no power of two passes", "test_layout"),
    Mutant(
        "memory",
        "in_range",
        "addr <= mem.size - length",
        "addr < mem.size - length",
        "the last byte is refused",
        "test_layout",
    ),
    Mutant("memory", "in_range", "0 <= addr <=", "addr <=", "an address below zero passes", "test_ring_memory"),
]

SPLIT_DRIVER = [
    Mutant(_DRIVER, "add", "if total > d.num_free", "if total >= d.num_free", "full one descriptor early"),
    Mutant(_DRIVER, "add", "if total > d.size", "if total >= d.size", "the longest legal chain is refused"),
    Mutant(
        _DRIVER,
        "add",
        "flags -= VRING_DESC_F_NEXT",
        "pass",
        "the last descriptor says that another follows",
    ),
    Mutant(_DRIVER, "add", "if k >= out_num", "if k > out_num", "the first writable buffer is not marked"),
    Mutant(
        _DRIVER, "add", "flags | following << 16", "flags | i << 16", "a descriptor's next is the descriptor itself"
    ),
    Mutant(_DRIVER, "add", "d.free_head = i", "d.free_head = desc_next[head]", "the free list keeps a chain's tail"),
    Mutant(_DRIVER, "add", "d.num_free -= total", "d.num_free -= 1", "a chain counts as one descriptor"),
    Mutant(_DRIVER, "add", "d.desc_last[head] = last", "d.desc_last[head] = head", "only the head is freed"),
    Mutant(_DRIVER, "add", "d.desc_num[head] = total", "d.desc_num[head] = 1", "one descriptor is counted free"),
    Mutant(_DRIVER, "add", "2 + (idx & (d.size - 1))", "2 + ((idx + 1) & (d.size - 1))", "entry off by one"),
    Mutant(_DRIVER, "add", "2 + (idx & (d.size - 1))", "2 + (idx & d.size)", "wrong mask for the ring"),
    Mutant(
        _DRIVER,
        "add",
        "u16[avail16 + 2 + (idx & (d.size - 1))] = head",
        "u16[avail16 + 1] = (idx + 1) & 0xFFFF; u16[avail16 + 2 + (idx & (d.size - 1))] = head",
        "the index is published before the entry",
        "test_interleavings",
    ),
    Mutant(_DRIVER, "add", "idx = (idx + 1) & 0xFFFF", "idx = idx + 1", "an index that does not wrap"),
    Mutant(_DRIVER, "add", "u16[avail16 + 1] = idx", "pass", "nothing is published"),
    Mutant(_DRIVER, "add", "d.num_added += 1", "d.num_added = 1", "a batch kicks as if it were one chain"),
    Mutant(_DRIVER, "add", "d.num_added += 1", "d.num_added += total", "descriptors counted as chains"),
    Mutant(_DRIVER, "kick_prepare", "d.num_added = 0", "pass", "old chains count again: kicks for nothing"),
    Mutant(
        _DRIVER, "kick_prepare", "if added > 0xFFFF", "if added > 0x1FFFF", "65536 chains without a look look like none"
    ),
    Mutant(
        _DRIVER,
        "kick_prepare",
        "(d.used + 4 + 8 * d.size)",
        "(d.used + 2 + 8 * d.size)",
        "avail_event at the wrong place",
    ),
    Mutant(
        _DRIVER,
        "kick_prepare",
        "VRING_USED_F_NO_NOTIFY) == 0",
        "VRING_USED_F_NO_NOTIFY) != 0",
        "the flag the wrong way round",
    ),
    Mutant(
        _DRIVER,
        "kick_prepare",
        "(new - added) & 0xFFFF",
        "(new - 1) & 0xFFFF",
        "only the last chain of a batch is considered",
    ),
    Mutant(
        _DRIVER,
        "get_used",
        "if pending > size - d.num_free",
        "if pending > size",
        "an index that jumped within the size is believed",
        "test_hostile",
    ),
    Mutant(
        _DRIVER,
        "get_used",
        "if pending > size - d.num_free",
        "if pending >= size - d.num_free",
        "what comes back all at once is refused",
    ),
    Mutant(
        _DRIVER,
        "get_used",
        "if head >= size",
        "if head > size",
        "an id just beyond the table is believed",
        "test_hostile",
    ),
    Mutant(
        _DRIVER,
        "get_used",
        "if token < 0",
        "if token < -1",
        "an id that is no chain's head is believed",
        "test_hostile",
    ),
    Mutant(_DRIVER, "get_used", "(last_used & (size - 1))", "((last_used + 1) & (size - 1))", "entry off by one"),
    Mutant(_DRIVER, "get_used", "d.desc_state[head] = -1", "pass", "a chain can come back twice", "test_hostile"),
    Mutant(
        _DRIVER,
        "get_used",
        "d.desc_next[d.desc_last[head]] = d.free_head",
        "pass",
        "the free list loses all behind a freed chain",
    ),
    Mutant(_DRIVER, "get_used", "d.num_free += d.desc_num[head]", "d.num_free += 1", "descriptors leak"),
    Mutant(
        _DRIVER,
        "get_used",
        "last_used = (last_used + 1) & 0xFFFF",
        "last_used = last_used + 1",
        "an index that does not wrap",
    ),
    Mutant(_DRIVER, "get_used", "mem.u16[(d.avail >> 1) + 2 + size] = last_used", "pass", "used_event stays behind"),
    Mutant(
        _DRIVER,
        "get_used",
        "if (d.avail_flags_shadow & VRING_AVAIL_F_NO_INTERRUPT) == 0",
        "if True",
        "used_event is armed while callbacks are disabled",
    ),
    Mutant(_DRIVER, "get_used", "if pending == 0", "if pending <= 1", "the last chain is never taken"),
    Mutant(
        _DRIVER,
        "vring_interrupt",
        "d.event_triggered = True",
        "pass",
        "an interrupt is forgotten: disable_cb parks used_event",
    ),
    Mutant(
        _DRIVER,
        "disable_cb",
        "if d.event_idx:\n                d.mem",
        "if not d.event_idx:\n                d.mem",
        "the flag is written where EVENT_IDX rules",
    ),
    Mutant(
        _DRIVER, "disable_cb", "d.avail_flags_shadow |= VRING_AVAIL_F_NO_INTERRUPT", "pass", "callbacks stay enabled"
    ),
    Mutant(
        _DRIVER,
        "_enable_at",
        "d.event_triggered = False",
        "pass",
        "after the first interrupt disable_cb never writes again",
    ),
    Mutant(
        _DRIVER,
        "_enable_at",
        "d.mem.u16[d.avail >> 1] = d.avail_flags_shadow",
        "pass",
        "the flag stays set: no interrupt ever",
    ),
    Mutant(_DRIVER, "_enable_at", "= event & 0xFFFF", "= (event + 1) & 0xFFFF", "armed one entry late"),
    Mutant(
        _DRIVER, "poll", "!= last_used_idx & 0xFFFF", "== last_used_idx & 0xFFFF", "the second look the wrong way round"
    ),
    Mutant(
        _DRIVER,
        "enable_cb",
        "not poll(d, enable_cb_prepare(d))",
        "enable_cb_prepare(d) >= 0",
        "no second look after re-arming",
    ),
    Mutant(_DRIVER, "enable_cb_delayed", "not used_beyond(d, bufs)", "True", "no second look after delayed re-arming"),
    Mutant(_DRIVER, "delayed_bufs", "* 3 // 4", "* 4 // 3", "waits for more than is in flight"),
    Mutant(_DRIVER, "arm_used_event", "d.last_used_idx + bufs", "d.last_used_idx + bufs + 1", "armed one entry late"),
    Mutant(_DRIVER, "used_beyond", "> bufs", ">= bufs", "sees what is not there yet"),
    without_fence(_DRIVER, "add", "fence(mem)", "the index overtakes the descriptors"),
    without_fence(_DRIVER, "kick_prepare", "fence(d.mem)", "avail_event is read before the index is out"),
    without_fence(_DRIVER, "get_used", "fence(mem)\n    entry", "the entry is read before the index"),
    without_fence(_DRIVER, "get_used", "fence(mem)\n    return", "the used index is read before used_event is out"),
    without_fence(_DRIVER, "poll", "fence(d.mem)", "the used index is read before the arming is out"),
    without_fence(_DRIVER, "arm_used_event", "fence(d.mem)", "the used index is read before the arming is out"),
]

SPLIT_DEVICE = [
    Mutant(
        _DEVICE,
        "empty",
        "q.shadow_avail_idx = q.mem.u16[(q.avail >> 1) + 1]",
        "pass",
        "the second look looks at the shadow only",
    ),
    Mutant(_DEVICE, "avail_in_ring", "if heads > q.size", "if heads >= q.size", "a full ring counts as a jump"),
    Mutant(
        _DEVICE, "pop", "& 0xFFFF) > size", "& 0xFFFF) > 0x8000", "an index beyond the ring is believed", "test_hostile"
    ),
    Mutant(_DEVICE, "pop", "& 0xFFFF) > size", "& 0xFFFF) >= size", "a full ring counts as a jump"),
    Mutant(
        _DEVICE,
        "pop",
        "if q.inuse >= size",
        "if q.inuse > size",
        "one chain more in use than the queue holds",
        "test_hostile",
    ),
    Mutant(_DEVICE, "pop", "(last_avail & (size - 1))", "((last_avail + 1) & (size - 1))", "entry off by one"),
    Mutant(
        _DEVICE, "pop", "if head >= size", "if head > size", "a head just beyond the table is believed", "test_hostile"
    ),
    Mutant(
        _DEVICE, "pop", "if count >= size", "if count > size", "a circle is noticed one descriptor late", "test_hostile"
    ),
    Mutant(_DEVICE, "pop", "if i >= size", "if i > size", "a next just beyond the table is believed", "test_hostile"),
    Mutant(_DEVICE, "pop", "elif in_num > 0", "elif in_num > size", "readable after writable passes", "test_hostile"),
    Mutant(_DEVICE, "pop", "if length == 0", "if length < 0", "a descriptor of length zero passes", "test_hostile"),
    Mutant(
        _DEVICE,
        "pop",
        "if not 0 <= addr <= mem_size - length",
        "if not 0 <= addr < mem_size",
        "a buffer may end outside memory",
        "test_hostile",
    ),
    Mutant(
        _DEVICE,
        "pop",
        "<= mem_size - length",
        "< mem_size - length",
        "the last byte of memory is refused",
        "test_hostile",
    ),
    Mutant(_DEVICE, "pop", "i = flags_next >> 16", "i = (i + 1) & (size - 1)", "chains are taken to be contiguous"),
    Mutant(_DEVICE, "pop", "elem_addr[count] = addr", "elem_addr[0] = addr", "buffers overwrite each other"),
    Mutant(
        _DEVICE,
        "pop",
        "last_avail = (last_avail + 1) & 0xFFFF",
        "last_avail = last_avail + 1",
        "an index that does not wrap",
    ),
    Mutant(_DEVICE, "pop", "q.inuse += 1", "pass", "in use is not counted"),
    Mutant(
        _DEVICE,
        "pop",
        "q.elem_out_num = count - in_num",
        "q.elem_out_num = count",
        "writable buffers count as readable",
    ),
    Mutant(
        _DEVICE,
        "pop",
        "if q.event_idx and q.notification",
        "if q.event_idx",
        "avail_event moves while notifications are off",
    ),
    Mutant(_DEVICE, "pop", "] = last_avail\n", "] = (last_avail - 1) & 0xFFFF\n", "avail_event stays one behind"),
    Mutant(
        _DEVICE,
        "pop",
        "q.shadow_avail_idx = u16[avail16 + 1]\n        if",
        "head = u16[avail16 + 2 + (last_avail & (size - 1))]; q.shadow_avail_idx = u16[avail16 + 1]\n        if",
        "the entry is read before the index",
        "test_interleavings",
    ),
    Mutant(
        _DEVICE,
        "fill",
        "(q.used_idx + idx) & (q.size - 1)",
        "q.used_idx & (q.size - 1)",
        "a batch overwrites its first entry",
    ),
    Mutant(
        _DEVICE,
        "fill",
        "(q.used_idx + idx) & (q.size - 1)",
        "(q.used_idx + idx + 1) & (q.size - 1)",
        "entry off by one",
    ),
    Mutant(_DEVICE, "fill", "u32[entry + 1] = length", "pass", "no length"),
    Mutant(_DEVICE, "flush", "new = (old + count) & 0xFFFF", "new = (old + 1) & 0xFFFF", "a batch publishes one entry"),
    Mutant(_DEVICE, "flush", "new = (old + count) & 0xFFFF", "new = old + count", "an index that does not wrap"),
    Mutant(_DEVICE, "flush", "q.inuse -= count", "q.inuse -= 1", "a batch leaves chains in use"),
    Mutant(
        _DEVICE, "flush", "q.signalled_used_valid = False", "pass", "signalled_used is believed after 32768 entries"
    ),
    Mutant(_DEVICE, "flush", "distance >= 0x8000", "distance > 0x8000", "given up one entry late"),
    Mutant(
        _DEVICE,
        "push",
        "fill(q, head, length, 0)\n    flush(q, 1)",
        "flush(q, 1)\n    fill(q, head, length, -1)",
        "the used index is published before the element",
        "test_interleavings",
    ),
    Mutant(_DEVICE, "set_notification", "q.notification = enable", "q.notification = True", "disabling is forgotten"),
    Mutant(
        _DEVICE,
        "set_notification",
        "] = q.shadow_avail_idx",
        "] = (q.shadow_avail_idx + 1) & 0xFFFF",
        "armed one entry late",
    ),
    Mutant(
        _DEVICE,
        "set_notification",
        "        if enable:\n            q.mem",
        "        if not enable:\n            q.mem",
        "arms when it disables",
    ),
    Mutant(_DEVICE, "set_notification", "&= ~VRING_USED_F_NO_NOTIFY", "|= VRING_USED_F_NO_NOTIFY", "enabling disables"),
    Mutant(_DEVICE, "arm_avail_event", "] = index & 0xFFFF", "] = (index + 1) & 0xFFFF", "armed one entry late"),
    Mutant(
        _DEVICE,
        "arm_avail_event",
        "&= ~VRING_USED_F_NO_NOTIFY",
        "&= VRING_USED_F_NO_NOTIFY",
        "the flag stays set",
        "test_interleavings",
    ),
    Mutant(
        _DEVICE,
        "should_notify",
        "VRING_AVAIL_F_NO_INTERRUPT) == 0",
        "VRING_AVAIL_F_NO_INTERRUPT) != 0",
        "the flag the wrong way round",
    ),
    Mutant(
        _DEVICE, "should_notify", "q.signalled_used = new", "pass", "old entries count again: interrupts for nothing"
    ),
    Mutant(
        _DEVICE, "should_notify", "old = q.signalled_used", "old = (new - 1) & 0xFFFF", "uses what is not there yet"
    ),
    Mutant(_DEVICE, "should_notify", "not valid or ", "", "the first entries are weighed against nothing"),
    Mutant(
        _DEVICE,
        "should_notify",
        "(q.avail >> 1) + 2 + q.size",
        "(q.avail >> 1) + 1 + q.size",
        "used_event at the wrong place",
    ),
    without_fence(_DEVICE, "pop", "fence(mem)", "the entry is read before the index"),
    without_fence(_DEVICE, "flush", "fence(q.mem)", "the index overtakes the entry"),
    without_fence(_DEVICE, "set_notification", "fence(q.mem)", "the available index is read before the arming is out"),
    without_fence(_DEVICE, "arm_avail_event", "fence(q.mem)", "the available index is read before the arming is out"),
    without_fence(_DEVICE, "should_notify", "fence(q.mem)", "used_event is read before the index is out"),
]

MUTANTS = [*EVENT, *LAYOUT, *SPLIT_DRIVER, *SPLIT_DEVICE]
