"""A first-in-first-out queue of integers with a limit, in a preallocated ring (a socket's, a tap's, a NIC's queue)."""

from __future__ import annotations

EMPTY = -1


class Fifo:
    """A queue of at most ``limit`` integers.

    Example:
        >>> q = Fifo(2)
        >>> put(q, 7), put(q, 8), put(q, 9)
        (True, True, False)
        >>> take_first(q), q.count
        (7, 1)
    """

    __slots__ = ("count", "head", "items", "limit")

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a queue needs room for at least one item, not {limit}")
        self.limit = limit
        self.items = [0] * limit
        self.head = 0
        self.count = 0


def put(q: Fifo, item: int) -> bool:
    """Append an item; return False, and drop it, where the queue is full."""
    room = q.count < q.limit
    if room:
        position = q.head + q.count
        if position >= q.limit:
            position -= q.limit
        q.items[position] = item
        q.count += 1
    return room


def take_first(q: Fifo) -> int:
    """Remove and return the first item, or ``EMPTY``."""
    item = EMPTY
    if q.count > 0:
        item = q.items[q.head]
        q.head += 1
        if q.head == q.limit:
            q.head = 0
        q.count -= 1
    return item


def first(q: Fifo) -> int:
    """Return the first item without removing it, or ``EMPTY``."""
    item = EMPTY
    if q.count > 0:
        item = q.items[q.head]
    return item
