"""Small mistakes that somebody could make in the ring code, each of which the tests must notice.

A mutant replaces one piece of text, found exactly once in the file (or in the function that ``within``
names), by another. ``kills`` names the test file of `mutation.SUITE` that is expected to notice, with ``::`` and
a piece of the test's name where it helps: that runs first, the rest of the suite after it.
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
    kills: str = "test_pump"


def without_fence(module: str, within: str, line: str, why: str) -> Mutant:
    return Mutant(module, within, line, "pass", f"no fence: {why}", "test_interleavings")


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
        "test_hostile_packed::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant("memory", "in_range", "0 <= addr <=", "addr <=", "an address below zero passes", "test_ring_memory"),
]

SPLIT_DRIVER = [
    Mutant(
        "split_driver", "add_direct", "if total > d.num_free", "if total >= d.num_free", "full one descriptor early"
    ),
    Mutant(
        "split_driver", "add_direct", "if total > d.size", "if total >= d.size", "the longest legal chain is refused"
    ),
    Mutant(
        "split_driver",
        "add_direct",
        "flags -= VRING_DESC_F_NEXT",
        "pass",
        "the last descriptor says that another follows",
    ),
    Mutant(
        "split_driver", "add_direct", "if k >= out_num", "if k > out_num", "the first writable buffer is not marked"
    ),
    Mutant(
        "split_driver",
        "add_direct",
        "flags | following << 16",
        "flags | i << 16",
        "a descriptor's next is the descriptor itself",
    ),
    Mutant(
        "split_driver",
        "enqueue",
        "d.free_head = d.desc_next[last]",
        "d.free_head = d.desc_next[head]",
        "the free list keeps a chain's tail",
    ),
    Mutant("split_driver", "enqueue", "d.num_free -= descs", "d.num_free -= 1", "a chain counts as one descriptor"),
    Mutant("split_driver", "enqueue", "d.desc_last[head] = last", "d.desc_last[head] = head", "only the head is freed"),
    Mutant(
        "split_driver", "enqueue", "d.desc_num[head] = descs", "d.desc_num[head] = 1", "one descriptor is counted free"
    ),
    Mutant("split_driver", "enqueue", "2 + (idx & (d.size - 1))", "2 + ((idx + 1) & (d.size - 1))", "entry off by one"),
    Mutant("split_driver", "enqueue", "2 + (idx & (d.size - 1))", "2 + (idx & d.size)", "wrong mask for the ring"),
    Mutant(
        "split_driver",
        "enqueue",
        "d.mem.u16[(d.avail >> 1) + 2 + (idx & (d.size - 1))] = head",
        "d.mem.u16[(d.avail >> 1) + 1] = (idx + 1) & 0xFFFF; "
        "d.mem.u16[(d.avail >> 1) + 2 + (idx & (d.size - 1))] = head",
        "the index is published before the entry",
        "test_interleavings",
    ),
    Mutant(
        "split_driver",
        "enqueue",
        "d.avail_idx_shadow = (idx + 1) & 0xFFFF",
        "d.avail_idx_shadow = idx + 1",
        "an index that does not wrap",
    ),
    Mutant(
        "split_driver", "publish", "d.mem.u16[(d.avail >> 1) + 1] = d.avail_idx_shadow", "pass", "nothing is published"
    ),
    Mutant(
        "split_driver",
        "publish",
        "d.num_added += d.num_pending",
        "d.num_added = d.num_pending",
        "a batch kicks as if it were one chain",
    ),
    Mutant(
        "split_driver",
        "publish",
        "d.num_added += d.num_pending",
        "d.num_added += d.num_pending + 1",
        "one chain too many is considered",
        "test_queue_model::test_2_7_10_a_threshold_lets_the_driver_",
    ),
    Mutant(
        "split_driver",
        "kick_prepare",
        "d.num_added = 0",
        "pass",
        "old chains count again: kicks for nothing",
        "test_queue_sides::test_2_7_10_2_8_10_suppression_really_su",
    ),
    Mutant(
        "split_driver",
        "kick_prepare",
        "if added > 0xFFFF",
        "if added > 0x1FFFF",
        "65536 chains without a look look like none",
        "test_queue_model::test_2_7_13_4_65536_chains_without_a_loo",
    ),
    Mutant(
        "split_driver",
        "kick_prepare",
        "(d.used + 4 + 8 * d.size)",
        "(d.used + 2 + 8 * d.size)",
        "avail_event at the wrong place",
    ),
    Mutant(
        "split_driver",
        "kick_prepare",
        "VRING_USED_F_NO_NOTIFY) == 0",
        "VRING_USED_F_NO_NOTIFY) != 0",
        "the flag the wrong way round",
    ),
    Mutant(
        "split_driver",
        "kick_prepare",
        "(new - added) & 0xFFFF",
        "(new - 1) & 0xFFFF",
        "only the last chain of a batch is considered",
    ),
    Mutant(
        "split_driver",
        "get_used",
        "if pending > size - d.num_free",
        "if pending > size",
        "an index that jumped within the size is believed",
        "test_hostile::test_each_mistake_of_the_device_has_its_",
    ),
    Mutant(
        "split_driver",
        "get_used",
        "if pending > size - d.num_free",
        "if pending >= size - d.num_free",
        "what comes back all at once is refused",
    ),
    Mutant(
        "split_driver",
        "get_used",
        "if not 0 <= head < size",
        "if not 0 <= head <= size",
        "an id just beyond the table is believed",
        "test_hostile::test_each_mistake_of_the_device_has_its_",
    ),
    Mutant(
        "split_driver",
        "get_used",
        "d.desc_state[head] < 0 or ",
        "",
        "an id that is no chain's head is believed",
        "test_hostile::test_each_mistake_of_the_device_has_its_",
    ),
    Mutant(
        "split_driver", "get_used", "(last_used & (size - 1))", "((last_used + 1) & (size - 1))", "entry off by one"
    ),
    Mutant(
        "split_driver",
        "detach",
        "d.desc_state[head] = -1",
        "pass",
        "a chain can come back twice",
        "test_hostile::test_a_chain_comes_back_only_once",
    ),
    Mutant(
        "split_driver",
        "detach",
        "d.desc_next[d.desc_last[head]] = d.free_head",
        "pass",
        "the free list loses all behind a freed chain",
    ),
    Mutant("split_driver", "detach", "d.num_free += d.desc_num[head]", "d.num_free += 1", "descriptors leak"),
    Mutant(
        "split_driver",
        "get_used",
        "last_used = (last_used + 1) & 0xFFFF",
        "last_used = last_used + 1",
        "an index that does not wrap",
        "test_interleavings",
    ),
    Mutant(
        "split_driver",
        "get_used",
        "mem.u16[(d.avail >> 1) + 2 + size] = last_used",
        "pass",
        "used_event stays behind",
        "test_interleavings",
    ),
    Mutant(
        "split_driver",
        "get_used",
        "if (d.avail_flags_shadow & VRING_AVAIL_F_NO_INTERRUPT) == 0",
        "if True",
        "used_event is armed while callbacks are disabled",
        "test_queue_model::test_2_7_7_disable_cb_under_event_idx_is",
    ),
    Mutant(
        "split_driver",
        "get_used",
        "if pending == 0",
        "if pending <= 1",
        "the last chain is never taken",
        "test_interleavings",
    ),
    Mutant(
        "driver",
        "vring_interrupt",
        "d.event_triggered = True",
        "pass",
        "an interrupt is forgotten: disable_cb parks used_event",
        "test_queue_model::test_2_7_7_disable_cb_under_event_idx_is",
    ),
    Mutant(
        "split_driver",
        "disable_cb",
        "if d.event_idx:\n                d.mem",
        "if not d.event_idx:\n                d.mem",
        "the flag is written where EVENT_IDX rules",
        "test_queue_sides::test_2_7_10_2_8_10_suppression_really_su",
    ),
    Mutant(
        "split_driver",
        "disable_cb",
        "d.avail_flags_shadow |= VRING_AVAIL_F_NO_INTERRUPT",
        "pass",
        "callbacks stay enabled",
        "test_queue_sides::test_2_7_10_2_8_10_suppression_really_su",
    ),
    Mutant(
        "driver",
        "enable_cb_prepare",
        "d.event_triggered = False",
        "pass",
        "after the first interrupt disable_cb never writes again",
        "test_queue_model::test_an_interrupt_counts_only_until_call",
    ),
    Mutant(
        "split_driver",
        "_enable_at",
        "d.mem.u16[d.avail >> 1] = d.avail_flags_shadow",
        "pass",
        "the flag stays set: no interrupt ever",
    ),
    Mutant("split_driver", "_enable_at", "= event & 0xFFFF", "= (event + 1) & 0xFFFF", "armed one entry late"),
    Mutant(
        "split_driver",
        "poll",
        "!= last_used_idx & 0xFFFF",
        "== last_used_idx & 0xFFFF",
        "the second look the wrong way round",
        "test_queue_model",
    ),
    Mutant(
        "driver",
        "enable_cb",
        "not poll(d, enable_cb_prepare(d))",
        "enable_cb_prepare(d) >= 0",
        "no second look after re-arming",
        "test_interleavings",
    ),
    Mutant(
        "driver",
        "enable_cb_delayed",
        "not poll_delayed(d, bufs)",
        "True",
        "no second look after delayed re-arming",
        "test_interleavings",
    ),
    Mutant("split_driver", "delayed_bufs", "* 3 // 4", "* 4 // 3", "waits for more than is in flight"),
    Mutant(
        "split_driver", "arm_used_event", "d.last_used_idx + bufs", "d.last_used_idx + bufs + 1", "armed one entry late"
    ),
    Mutant("split_driver", "used_beyond", "> bufs", ">= bufs", "sees what is not there yet", "test_queue_model"),
    without_fence("split_driver", "publish", "fence(d.mem)", "the index overtakes the descriptors"),
    without_fence("split_driver", "kick_prepare", "fence(d.mem)", "avail_event is read before the index is out"),
    without_fence("split_driver", "get_used", "fence(mem)\n        entry", "the entry is read before the index"),
    without_fence(
        "split_driver", "get_used", "fence(mem)\n    return", "the used index is read before used_event is out"
    ),
    without_fence("split_driver", "poll", "fence(d.mem)", "the used index is read before the arming is out"),
    without_fence("split_driver", "arm_used_event", "fence(d.mem)", "the used index is read before the arming is out"),
]

SPLIT_DEVICE = [
    Mutant(
        "split_device",
        "empty",
        "q.shadow_avail_idx = q.mem.u16[(q.avail >> 1) + 1]",
        "pass",
        "the second look looks at the shadow only",
    ),
    Mutant(
        "split_device",
        "avail_in_ring",
        "if heads > q.size",
        "if heads >= q.size",
        "a full ring counts as a jump",
        "test_hostile::test_avail_in_ring_names_a_jump_too",
    ),
    Mutant(
        "split_device",
        "pop",
        "& 0xFFFF) > size",
        "& 0xFFFF) > 0x8000",
        "an index beyond the ring is believed",
        "test_hostile::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant("split_device", "pop", "& 0xFFFF) > size", "& 0xFFFF) >= size", "a full ring counts as a jump"),
    Mutant(
        "split_device",
        "pop",
        "if q.inuse >= size",
        "if q.inuse > size",
        "one chain more in use than the queue holds",
        "test_hostile::test_a_driver_cannot_have_more_in_use_th",
    ),
    Mutant("split_device", "pop", "(last_avail & (size - 1))", "((last_avail + 1) & (size - 1))", "entry off by one"),
    Mutant(
        "split_device",
        "pop",
        "if head >= size",
        "if head > size",
        "a head just beyond the table is believed",
        "test_hostile::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant(
        "split_device",
        "pop",
        "if count >= size",
        "if count > size",
        "a circle is noticed one descriptor late",
        "test_hostile::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant(
        "split_device",
        "pop",
        "if i >= size",
        "if i > size",
        "a next just beyond the table is believed",
        "test_hostile::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant(
        "split_device",
        "pop",
        "elif in_num > 0",
        "elif in_num > size",
        "readable after writable passes",
        "test_hostile::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant(
        "split_device",
        "pop",
        "if length == 0",
        "if length < 0",
        "a descriptor of length zero passes",
        "test_hostile::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant(
        "split_device",
        "pop",
        "if not 0 <= addr <= mem_size - length",
        "if not 0 <= addr < mem_size",
        "a buffer may end outside memory",
        "test_hostile::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant(
        "split_device",
        "pop",
        "<= mem_size - length",
        "< mem_size - length",
        "the last byte of memory is refused",
        "test_hostile::test_the_last_byte_of_memory_is_memory",
    ),
    Mutant(
        "split_device", "pop", "i = flags_next >> 16", "i = (i + 1) & (size - 1)", "chains are taken to be contiguous"
    ),
    Mutant("split_device", "pop", "elem_addr[count] = addr", "elem_addr[0] = addr", "buffers overwrite each other"),
    Mutant(
        "split_device",
        "pop",
        "last_avail = (last_avail + 1) & 0xFFFF",
        "last_avail = last_avail + 1",
        "an index that does not wrap",
    ),
    Mutant("split_device", "pop", "q.inuse += 1", "pass", "in use is not counted"),
    Mutant(
        "split_device",
        "pop",
        "q.elem_out_num = count - in_num",
        "q.elem_out_num = count",
        "writable buffers count as readable",
    ),
    Mutant(
        "split_device",
        "pop",
        "if q.event_idx and q.notification",
        "if q.event_idx",
        "avail_event moves while notifications are off",
        "test_small_print",
    ),
    Mutant(
        "split_device",
        "pop",
        "] = last_avail\n",
        "] = (last_avail - 1) & 0xFFFF\n",
        "avail_event stays one behind",
        "test_layout",
    ),
    Mutant(
        "split_device",
        "pop",
        "q.shadow_avail_idx = u16[avail16 + 1]\n        if",
        "head = u16[avail16 + 2 + (last_avail & (size - 1))]; q.shadow_avail_idx = u16[avail16 + 1]\n        if",
        "the entry is read before the index",
        "test_interleavings",
    ),
    Mutant(
        "split_device",
        "fill",
        "(q.used_idx + idx) & (q.size - 1)",
        "q.used_idx & (q.size - 1)",
        "a batch overwrites its first entry",
    ),
    Mutant(
        "split_device",
        "fill",
        "(q.used_idx + idx) & (q.size - 1)",
        "(q.used_idx + idx + 1) & (q.size - 1)",
        "entry off by one",
    ),
    Mutant("split_device", "fill", "u32[entry + 1] = length", "pass", "no length"),
    Mutant(
        "split_device",
        "flush",
        "new = (old + count) & 0xFFFF",
        "new = (old + 1) & 0xFFFF",
        "a batch publishes one entry",
    ),
    Mutant("split_device", "flush", "new = (old + count) & 0xFFFF", "new = old + count", "an index that does not wrap"),
    Mutant("split_device", "flush", "q.inuse -= count", "q.inuse -= 1", "a batch leaves chains in use"),
    Mutant(
        "split_device",
        "flush",
        "q.signalled_used_valid = False",
        "pass",
        "signalled_used is believed after 32768 entries",
        "test_queue_model::test_signalled_used_is_given_up_after_32",
    ),
    Mutant(
        "split_device",
        "flush",
        "distance >= 0x8000",
        "distance > 0x8000",
        "given up one entry late",
        "test_queue_model::test_signalled_used_is_given_up_after_32",
    ),
    Mutant(
        "device",
        "push",
        "fill(q, head, length, 0)\n    flush(q, 1)",
        "flush(q, 1)\n    fill(q, head, length, -1)",
        "the used index is published before the element",
        "test_interleavings",
    ),
    Mutant(
        "split_device",
        "set_notification",
        "q.notification = enable",
        "q.notification = True",
        "disabling is forgotten",
        "test_queue_model",
    ),
    Mutant(
        "split_device",
        "set_notification",
        "] = q.shadow_avail_idx",
        "] = (q.shadow_avail_idx + 1) & 0xFFFF",
        "armed one entry late",
    ),
    Mutant(
        "split_device",
        "set_notification",
        "        if enable:\n            q.mem",
        "        if not enable:\n            q.mem",
        "arms when it disables",
        "test_queue_sides::test_2_7_10_2_8_10_suppression_really_su",
    ),
    Mutant(
        "split_device",
        "set_notification",
        "&= ~VRING_USED_F_NO_NOTIFY",
        "|= VRING_USED_F_NO_NOTIFY",
        "enabling disables",
    ),
    Mutant(
        "split_device",
        "arm_avail_event",
        "] = index & 0xFFFF",
        "] = (index + 1) & 0xFFFF",
        "armed one entry late",
        "test_interleavings",
    ),
    Mutant(
        "split_device",
        "arm_avail_event",
        "&= ~VRING_USED_F_NO_NOTIFY",
        "&= VRING_USED_F_NO_NOTIFY",
        "the flag stays set",
        "test_interleavings",
    ),
    Mutant(
        "split_device",
        "should_notify",
        "VRING_AVAIL_F_NO_INTERRUPT) == 0",
        "VRING_AVAIL_F_NO_INTERRUPT) != 0",
        "the flag the wrong way round",
    ),
    Mutant(
        "split_device",
        "should_notify",
        "q.signalled_used = new",
        "pass",
        "old entries count again: interrupts for nothing",
        "test_queue_sides::test_2_7_10_2_8_10_suppression_really_su",
    ),
    Mutant(
        "split_device",
        "should_notify",
        "old = q.signalled_used",
        "old = (new - 1) & 0xFFFF",
        "uses what is not there yet",
    ),
    Mutant(
        "split_device",
        "should_notify",
        "not valid or ",
        "",
        "the first entries are weighed against nothing",
        "test_queue_model",
    ),
    Mutant(
        "split_device",
        "should_notify",
        "(q.avail >> 1) + 2 + q.size",
        "(q.avail >> 1) + 1 + q.size",
        "used_event at the wrong place",
    ),
    without_fence("split_device", "pop", "fence(mem)", "the entry is read before the index"),
    without_fence("split_device", "flush", "fence(q.mem)", "the index overtakes the entry"),
    without_fence(
        "split_device", "set_notification", "fence(q.mem)", "the available index is read before the arming is out"
    ),
    without_fence(
        "split_device", "arm_avail_event", "fence(q.mem)", "the available index is read before the arming is out"
    ),
    without_fence("split_device", "should_notify", "fence(q.mem)", "used_event is read before the index is out"),
]

COMMON = [
    Mutant(
        "event",
        "off_wrap",
        "1 - ((place // size) & 1)",
        "(place // size) & 1",
        "wrap counter the wrong way round",
        "test_queue_sides::test_2_8_13_2_8_14_bytes_of_a_packed_rin",
    ),
    Mutant(
        "event",
        "off_wrap",
        "place % size |",
        "place |",
        "an offset that does not wrap",
        "test_queue_sides::test_2_8_13_2_8_14_bytes_of_a_packed_rin",
    ),
    Mutant(
        "event",
        "vring_packed_need_event",
        "if (event >> 15) + (lap & 1) != 1",
        "if (event >> 15) + (lap & 1) == 1",
        "an event of the other lap",
        "test_queue_sides::test_2_8_10_a_packed_event_is_passed_exa",
    ),
    Mutant(
        "event",
        "vring_packed_need_event",
        "lap -= 1",
        "pass",
        "events of the lap before are taken for this one",
        "test_queue_sides::test_2_8_10_a_packed_event_is_passed_exa",
    ),
    Mutant(
        "event",
        "vring_packed_need_event",
        "event & 0x7FFF",
        "event",
        "the wrap counter counts as offset",
        "test_queue_sides::test_2_8_10_a_packed_event_is_passed_exa",
    ),
    Mutant(
        "driver",
        "add_batched",
        "out_num + in_num > 1 and ",
        "",
        "a single buffer goes into a table",
        "test_small_print",
    ),
    Mutant(
        "driver",
        "add_batched",
        "d.table_size * d.free_head",
        "d.table_size",
        "all chains share one table",
        "test_queue_model",
    ),
    Mutant("device", "push_batch", "found = one == head", "found = True", "a batch ends at its first chain"),
    Mutant(
        "device",
        "push_batch",
        "q.given + count >= q.taken",
        "q.given + count > q.taken",
        "a chain that was never taken goes back",
        "test_small_print",
    ),
]

PACKED_DRIVER = [
    Mutant(
        "packed_driver",
        "add_direct",
        "if (d.next_avail_idx // size) & 1",
        "if d.next_avail_idx < 0",
        "the wrap counter is never toggled",
    ),
    Mutant("packed_driver", "add_direct", "marks ^= PACKED_MARKS", "pass", "wrap not toggled inside a chain"),
    Mutant(
        "packed_driver", "add_direct", "if total > d.num_free", "if total >= d.num_free", "full one descriptor early"
    ),
    Mutant(
        "packed_driver",
        "add_direct",
        "if k < total - 1",
        "if k < total",
        "the last descriptor says that another follows",
    ),
    Mutant(
        "packed_driver", "add_direct", "if k >= out_num", "if k > out_num", "the first writable buffer is not marked"
    ),
    Mutant(
        "packed_driver",
        "add_direct",
        "if k == 0",
        "if k < 0",
        "the head is published while the rest is being written",
        "test_interleavings",
    ),
    Mutant(
        "packed_driver",
        "add_direct",
        "        u64[desc64 + 2 * i] = d.seg_addr[k]\n        u32[desc32 + 4 * i + 2] = d.seg_len[k]\n",
        "        u16[desc16 + 8 * i + 7] = flags\n"
        "        u64[desc64 + 2 * i] = d.seg_addr[k]\n        u32[desc32 + 4 * i + 2] = d.seg_len[k]\n",
        "flags before address and length",
        "test_interleavings",
    ),
    Mutant(
        "packed_driver",
        "add_direct",
        "last = d.desc_next[last]",
        "pass",
        "a chain takes one id and frees many",
        "test_hostile_packed::test_2_8_22_each_mistake_of_the_device_h",
    ),
    Mutant("packed_driver", "add_indirect", "16 * total", "total", "the length of a table in descriptors"),
    Mutant(
        "packed_driver",
        "add_indirect",
        "VRING_DESC_F_INDIRECT | VRING_PACKED_DESC_F_USED",
        "VRING_DESC_F_INDIRECT | VRING_PACKED_DESC_F_AVAIL",
        "wrap not toggled for indirect descriptors",
    ),
    Mutant(
        "packed_driver",
        "write_table",
        "flags = VRING_DESC_F_WRITE",
        "pass",
        "writable buffers of a table are not marked",
    ),
    Mutant(
        "packed_driver",
        "enqueue",
        "if d.num_pending == 0",
        "if d.num_pending < 0",
        "a chain is visible before it is published",
        "test_queue_sides::test_2_8_13_2_8_14_bytes_of_a_packed_rin",
    ),
    Mutant(
        "packed_driver",
        "enqueue",
        "d.next_avail_idx = first + descs",
        "d.next_avail_idx = first + 1",
        "a chain takes one place",
    ),
    Mutant("packed_driver", "enqueue", "d.num_free -= descs", "d.num_free -= 1", "a chain counts as one descriptor"),
    Mutant(
        "packed_driver",
        "publish",
        "d.pending_idx % d.size",
        "(d.next_avail_idx - 1) % d.size",
        "the last descriptor is published instead of the first",
    ),
    Mutant(
        "packed_driver",
        "publish",
        "d.num_added += d.next_avail_idx - d.pending_idx",
        "d.num_added += d.num_pending",
        "chains counted as descriptors",
    ),
    Mutant(
        "packed_driver",
        "kick_prepare",
        "flags != VRING_PACKED_EVENT_FLAG_DISABLE",
        "flags == VRING_PACKED_EVENT_FLAG_DISABLE",
        "the flag the wrong way round",
    ),
    Mutant(
        "packed_driver",
        "kick_prepare",
        "event >> 16 & PACKED_EVENT_FLAGS",
        "event & PACKED_EVENT_FLAGS",
        "the offset is taken for the flags",
    ),
    Mutant(
        "packed_driver", "kick_prepare", "new - added", "new - 1", "only the last descriptor of a batch is considered"
    ),
    Mutant(
        "packed_driver",
        "kick_prepare",
        "d.num_added = 0",
        "pass",
        "old descriptors count again: kicks for nothing",
        "test_queue_sides::test_2_7_10_2_8_10_suppression_really_su",
    ),
    Mutant(
        "packed_driver", "kick_prepare", "d.mem.u32[d.used >> 2]", "d.mem.u32[d.avail >> 2]", "its own event structure"
    ),
    Mutant(
        "packed_driver",
        "is_used",
        "return marks == 0",
        "return marks == PACKED_MARKS",
        "the wrap counter is not looked at",
        "test_interleavings",
    ),
    Mutant("packed_driver", "get_used", "place += d.desc_num[head]", "place += 1", "a used chain takes one place"),
    Mutant(
        "packed_driver", "get_used", "            used = 0\n", "            pass\n", "the wrap counter is not looked at"
    ),
    Mutant(
        "packed_driver",
        "get_used",
        "if place >= end",
        "if place > end",
        "a mark where nothing is in flight is believed",
        "test_hostile_packed::test_2_8_1_a_used_mark_where_nothing_is_",
    ),
    Mutant(
        "packed_driver",
        "get_used",
        "if head >= size",
        "if head > size",
        "an id just beyond the ring is believed",
        "test_hostile_packed::test_2_8_22_each_mistake_of_the_device_h",
    ),
    Mutant(
        "packed_driver",
        "get_used",
        "d.desc_state[head] < 0 or ",
        "",
        "an id that is not in flight is believed",
        "test_hostile_packed::test_a_hostile_device_cannot_corrupt_the",
    ),
    Mutant(
        "packed_driver",
        "get_used",
        "mem.u16[d.avail >> 1] = off_wrap(size, place)",
        "pass",
        "the event offset stays behind",
        "test_interleavings",
    ),
    Mutant(
        "packed_driver",
        "detach",
        "d.desc_next[d.desc_last[head]] = d.free_head",
        "pass",
        "the list of ids loses all behind a freed chain",
    ),
    Mutant("packed_driver", "detach", "d.num_free += d.desc_num[head]", "d.num_free += 1", "descriptors leak"),
    Mutant(
        "packed_driver",
        "detach",
        "d.desc_state[head] = -1",
        "pass",
        "a chain can come back twice",
        "test_hostile_packed::test_a_hostile_device_cannot_corrupt_the",
    ),
    Mutant(
        "packed_driver",
        "enable_at",
        "off_wrap(d.size, place)",
        "off_wrap(d.size, place + 1)",
        "armed one descriptor late",
    ),
    Mutant(
        "packed_driver",
        "enable_at",
        "flags = VRING_PACKED_EVENT_FLAG_DESC",
        "pass",
        "the event offset is not used",
        "test_queue_sides::test_2_8_13_2_8_14_bytes_of_a_packed_rin",
    ),
    Mutant(
        "packed_driver",
        "enable_at",
        "d.mem.u16[(d.avail >> 1) + 1] = flags",
        "pass",
        "the flags stay: no interrupt ever",
    ),
    Mutant(
        "packed_driver",
        "poll",
        "is_used(d, last_used_idx)",
        "False",
        "no second look after re-arming",
        "test_interleavings",
    ),
    Mutant(
        "packed_driver",
        "poll_delayed",
        "is_used(d, d.last_used_idx)",
        "False",
        "no second look after delayed re-arming",
        "test_interleavings",
    ),
    Mutant(
        "packed_driver",
        "used_beyond",
        "return place > wanted",
        "return place >= wanted",
        "sees what is not there yet",
        "test_queue_model",
    ),
    Mutant(
        "packed_driver",
        "disable_cb",
        "d.mem.u16[(d.avail >> 1) + 1] = VRING_PACKED_EVENT_FLAG_DISABLE",
        "pass",
        "nothing is disabled",
        "test_queue_sides::test_2_8_13_2_8_14_bytes_of_a_packed_rin",
    ),
    without_fence("packed_driver", "publish", "fence(d.mem)", "the flags overtake the descriptor"),
    without_fence(
        "packed_driver", "kick_prepare", "fence(d.mem)", "the event structure is read before the flags are out"
    ),
    without_fence("packed_driver", "get_used", "fence(mem)\n        head", "the id is read before the flags"),
    without_fence(
        "packed_driver", "get_used", "fence(mem)\n    return", "the next flags are read before the offset is out"
    ),
    without_fence("packed_driver", "poll", "fence(d.mem)", "the flags are read before the arming is out"),
    without_fence("packed_driver", "arm_used_event", "fence(d.mem)", "the flags are read before the arming is out"),
]

PACKED_DEVICE = [
    Mutant(
        "packed_device",
        "is_available",
        "return marks == VRING_PACKED_DESC_F_USED",
        "return marks == VRING_PACKED_DESC_F_AVAIL",
        "the wrap counter is not looked at",
    ),
    Mutant(
        "packed_device",
        "pop",
        "        marks = VRING_PACKED_DESC_F_USED\n",
        "        pass\n",
        "the wrap counter is not looked at",
        "test_interleavings",
    ),
    Mutant("packed_device", "pop", "marks ^= PACKED_MARKS", "pass", "wrap not toggled inside a chain"),
    Mutant("packed_device", "pop", "place += ndescs", "place += 1", "a chain takes one place"),
    Mutant("packed_device", "pop", "q.inuse += ndescs", "q.inuse += 1", "a chain counts as one descriptor"),
    Mutant(
        "packed_device",
        "pop",
        "head = u16[desc16 + 8 * i + 6]",
        "head = u16[desc16 + 8 * (place % size) + 6]",
        "the id of the first descriptor instead of the last",
        "test_small_print",
    ),
    Mutant(
        "packed_device",
        "pop",
        "if ndescs + q.inuse >= size",
        "if ndescs + q.inuse > size",
        "one descriptor more than the ring holds",
        "test_hostile_packed::test_2_8_more_in_flight_than_the_queue_h",
    ),
    Mutant(
        "packed_device",
        "pop",
        "elif in_num > 0",
        "elif in_num > size",
        "readable after writable passes",
        "test_hostile_packed::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant(
        "packed_device",
        "pop",
        "if length == 0",
        "if length < 0",
        "a descriptor of length zero passes",
        "test_hostile_packed::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant(
        "packed_device",
        "pop",
        "if ndescs > 0 or flags & VRING_DESC_F_NEXT",
        "if ndescs > 0",
        "INDIRECT with NEXT passes",
        "test_hostile_packed::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant(
        "packed_device",
        "pop",
        "if q.elem_ndescs[head] > 0",
        "if q.elem_ndescs[head] < 0",
        "an id is given twice",
        "test_hostile_packed::test_2_8_an_id_given_again_while_in_flig",
    ),
    Mutant(
        "packed_device", "pop", "        if i == size", "        if i > size", "the ring has one place more than it has"
    ),
    Mutant(
        "packed_device",
        "read_table",
        "length == 0 or length & 15",
        "length == 0",
        "a table that ends inside a descriptor passes",
        "test_hostile_packed::test_each_mistake_of_the_driver_has_its_",
    ),
    Mutant(
        "packed_device", "write_used", "if (place // q.size) & 1", "if place < 0", "the wrap counter is never toggled"
    ),
    Mutant(
        "packed_device",
        "write_used",
        "    mem.u32[(q.desc >> 2) + 4 * slot + 2] = length\n",
        "    mem.u16[(q.desc >> 1) + 8 * slot + 7] = PACKED_MARKS ^ (PACKED_MARKS * ((place // q.size) & 1))\n"
        "    mem.u32[(q.desc >> 2) + 4 * slot + 2] = length\n",
        "flags before length",
        "test_interleavings",
    ),
    Mutant("packed_device", "write_used", "mem.u16[(q.desc >> 1) + 8 * slot + 6] = head", "pass", "no id"),
    Mutant("packed_device", "flush", "q.used_idx + ndescs)", "q.used_idx + k)", "a chain takes one place in the batch"),
    Mutant(
        "packed_device",
        "flush",
        "            ndescs += q.elem_ndescs[head]\n",
        "            ndescs += 1\n",
        "a chain counts as one descriptor",
    ),
    Mutant(
        "packed_device",
        "flush",
        "        for k in range(1, count)",
        "        write_used(q, first, q.fill_len[0], q.used_idx)\n        for k in range(1, count)",
        "the first of a batch is published before the others",
        "test_interleavings::slot_given_back",
    ),
    Mutant("packed_device", "advance", "q.used_idx += ndescs", "q.used_idx += 1", "a chain takes one place"),
    Mutant("packed_device", "advance", "q.inuse -= ndescs", "q.inuse -= 1", "descriptors stay in use"),
    Mutant(
        "packed_device",
        "advance",
        "q.signalled_used_valid = False",
        "pass",
        "signalled_used is believed for ever",
        "test_small_print",
    ),
    Mutant(
        "packed_device", "arm", "off_wrap(q.size, place)", "off_wrap(q.size, place + 1)", "armed one descriptor late"
    ),
    Mutant(
        "packed_device",
        "arm",
        "= VRING_PACKED_EVENT_FLAG_ENABLE",
        "= VRING_PACKED_EVENT_FLAG_DISABLE",
        "enabling disables",
    ),
    Mutant(
        "packed_device",
        "set_notification",
        "q.notification = enable",
        "q.notification = True",
        "disabling is forgotten",
        "test_queue_model",
    ),
    Mutant(
        "packed_device",
        "should_notify",
        "q.signalled_used = new",
        "pass",
        "old descriptors count again: interrupts for nothing",
        "test_queue_sides::test_2_7_10_2_8_10_suppression_really_su",
    ),
    Mutant(
        "packed_device",
        "should_notify",
        "event >> 16 & PACKED_EVENT_FLAGS",
        "event & PACKED_EVENT_FLAGS",
        "the offset is taken for the flags",
    ),
    Mutant(
        "packed_device",
        "should_notify",
        "return False",
        "return True",
        "interrupts although they are disabled",
        "test_queue_sides::test_2_7_10_2_8_10_suppression_really_su",
    ),
    Mutant(
        "packed_device",
        "should_notify",
        "not valid or ",
        "",
        "the first descriptors are weighed against nothing",
        "test_queue_model",
    ),
    without_fence("packed_device", "pop", "fence(mem)", "the descriptor is read before its flags"),
    without_fence("packed_device", "write_used", "fence(mem)", "the flags overtake the descriptor"),
    without_fence("packed_device", "arm", "fence(q.mem)\n\n", "the ring is read before the arming is out"),
    without_fence(
        "packed_device", "should_notify", "fence(q.mem)", "the event structure is read before the flags are out"
    ),
]

MUTANTS = [*EVENT, *LAYOUT, *COMMON, *SPLIT_DRIVER, *SPLIT_DEVICE, *PACKED_DRIVER, *PACKED_DEVICE]
