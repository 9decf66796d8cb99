"""`vring_need_event` against what the specification says in words (2.7.7.2, 2.7.10.1)."""

from __future__ import annotations

import random

from iosim.ring.event import vring_need_event


def published(new: int, old: int) -> set[int]:
    """Return the indexes at which entries were placed when the index went from ``old`` to ``new``."""
    entries = set()
    while old != new:
        entries.add(old)
        old = (old + 1) & 0xFFFF
    return entries


def test_2_7_7_2_notify_if_an_entry_was_placed_at_the_event_index() -> None:
    """Every event index, for distances and starts on both sides of the wrap, against the set itself."""
    for old in (0, 1, 255, 32767, 32768, 65530, 65535):
        for distance in (0, 1, 2, 3, 5, 100, 32767, 32768, 40000, 65535):
            new = (old + distance) & 0xFFFF
            placed = published(new, old)
            near = [(index + k) & 0xFFFF for index in (old, new) for k in range(-3, 4)]
            for event in near:
                assert vring_need_event(event, new, old) == (event in placed), (event, new, old)


def test_2_7_7_2_every_event_index_once() -> None:
    for old, new in ((65500, 30), (10, 10), (10, 9), (0, 256)):
        placed = published(new, old)
        assert {event for event in range(65536) if vring_need_event(event, new, old)} == placed


def test_2_7_7_used_event_0_notifies_after_the_first_and_the_65536th_later() -> None:
    """The note in 2.7.7.2: with `used_event` 0 the first buffer notifies, then one in 65536."""
    hits = [n for n in range(3 * 65536) if vring_need_event(0, (n + 1) & 0xFFFF, n & 0xFFFF)]
    assert hits == [0, 65536, 2 * 65536]


def test_indexes_of_any_offset_behave_alike() -> None:
    """Only distances count: shifting all three indexes changes nothing."""
    rng = random.Random(7)
    for _ in range(2000):
        event, new, old, shift = (rng.randrange(65536) for _ in range(4))
        moved = [(index + shift) & 0xFFFF for index in (event, new, old)]
        assert vring_need_event(event, new, old) == vring_need_event(*moved)
