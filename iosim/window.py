"""The stop rules of a run: warm-up, measured window, drain.

The window opens when the warm-up's requests are complete and closes after the measured ones (or after a duration);
then no request is created any more, and those under way finish. Rates are divided by the window, and the measured
requests are those that complete in it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import Effect, notify
from iosim.engine.system import System
from iosim.fifo import Fifo, put
from iosim.requests import FOREIGN, RequestTable, create, give_up, mark
from iosim.summary import BINS, EXACT, Summary, add

NEVER: Final = 1 << 62
SENDER, QDISC, NIC_RING, TAP_FULL, DEVICE_RING, BACKLOG, SOCKET = range(7)
QUEUES: Final = {
    "sender": "at the sender, which has a backlog of an open loop",
    "qdisc": "at the host NIC's transmit queue",
    "nic_ring": "at the host NIC's receive ring",
    "tap_queue": "at the tap's queue",
    "device_ring": "at the receive ring that the driver fills",
    "backlog": "at the backlog of the guest's softirq",
    "socket": "at the socket's receive buffer",
}
"""Where a packet may be lost: the queues that are full then, in the order of the numbers above."""
LOST: Final = 1 << 12
"""More requests than can be lost at one instant."""


class Window:
    """Counts requests in and out, and wakes the observer at the boundaries it asks for.

    Attributes:
        boundary: The observer is notified on ``channel`` when this many requests are complete.
        completed: Requests completed so far.
        dropped_at: Requests lost on the way, by queue (`QUEUES`).
        draining: No more requests are to be created.
        keeps: Whether every request is kept: its row in `order`. Else it is added to `summary`, and its row used
            again.
        order: The rows in the order of their completion.
        summary: Sums over the requests, and a sketch of their latencies.
        segments_lost: Packets of streams lost on the way. What is lost counts as sent again and arrived.
        lost: The rows of dropped requests, for the load generator, which is notified on ``losses``.
        limit, overloaded: When so many requests have been created the path is taken to be overloaded, and the
            observer is told, so that the run ends.
    """

    __slots__ = (
        "boundary", "channel", "completed", "draining", "dropped_at", "keeps", "limit", "losses", "lost", "order",
        "overloaded", "segments_lost", "summary", "table",
    )  # fmt: skip

    def __init__(self, system: System, table: RequestTable) -> None:
        self.table = table
        self.channel = system.channel("window")
        self.completed = 0
        self.dropped_at = [0] * len(QUEUES)
        self.boundary = NEVER
        self.limit = NEVER
        self.draining = False
        self.overloaded = False
        self.segments_lost = 0
        self.losses = system.channel("lost requests")
        self.lost = Fifo(LOST)
        self.keeps = True
        self.order: list[int] = []
        self.summary = Summary(table.milestones)

    @property
    def dropped(self) -> int:
        """Requests lost on the way."""
        return sum(self.dropped_at)

    def summarize(self, rooms: int, exact: int = EXACT) -> None:
        """Keep no requests, only their summary, with room for so many under way. Before the first one."""
        self.keeps = False
        self.table.recycle(rooms)
        self.summary = Summary(self.table.milestones, exact, BINS)


def new_request(w: Window, now: int) -> Generator[Effect, None, int]:
    """Create a request; return its row. At the limit, tell the observer that the path is overloaded."""
    if w.table.created >= w.limit and not w.overloaded:
        w.overloaded = True
        yield notify(w.channel)
    return create(w.table, now)


def complete(w: Window, row: int, now: int) -> Generator[Effect, None, None]:
    """Stamp the last milestone of a request and count it."""
    mark(w.table, row, w.table.milestones - 1, now)
    w.completed += 1
    if w.keeps:
        w.order.append(row)
    elif w.summary.open:
        add(w.summary, w.table, row)
    if w.completed >= w.boundary or w.draining:
        yield notify(w.channel)


def drop(w: Window, row: int, queue: int) -> Generator[Effect, None, None]:
    """Count a request that a full queue has lost, and tell the load generator: a closed loop goes on at once."""
    if row < FOREIGN:
        w.dropped_at[queue] += 1
        give_up(w.table, row)
    else:
        w.segments_lost += 1
    put(w.lost, row)
    yield notify(w.losses)
    if w.draining:
        yield notify(w.channel)
