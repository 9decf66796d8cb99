"""The request table: the life of every request as a row of time stamps.

A path declares its milestones in order; each milestone but the first ends one stage. A request that skips a milestone
(a kick that was suppressed) has a stage of length zero there, and the time belongs to the stage that ends at the
next milestone it did pass. So the stages of every request have no gap and no overlap, and sum to its latency.

A run that keeps only summaries uses its rows again: row numbers go on counting, and a row's place is its number modulo
the rows there is room for, a power of two. Nobody else needs to know: only the functions here go from row to place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iosim.errors import IosimError

UNSET = -1
ROW_BITS = 36
"""Bits of a row's number; those above tell what a packet is besides (`iosim.host.packets`), and count for nothing."""
ALL = (1 << ROW_BITS) - 1
"""The mask of a table that uses no row again: every row is its own place."""
FOREIGN = 1 << 60
"""From here on numbers are of packets that belong to no request: nothing is stamped for them."""
NEVER = 1 << 62
"""A row that is never created."""


@dataclass(frozen=True)
class Stage:
    """A stage of a path, named by what happens in it; it ends when its milestone is stamped.

    Args:
        name: The stage's name, unique in its path.
        layer: Where: ``guest``, ``exit``, ``interrupt``, ``host kernel``, ``QEMU``, ``back end``, ``device``,
            ``client``.
        kind: ``work``, or what the request waits for (``wait: ...``).
    """

    name: str
    layer: str
    kind: str


class RequestTable:
    """Time stamps (ps) of requests; rows are numbered in the order of creation.

    Args:
        stages: The path's stages. Milestone 0 is the creation; milestone ``i`` ends ``stages[i - 1]``.
        names: The milestones' names, ``created`` first; numbered where they have none.
        capacity: Rows to begin with; the table doubles when it is full.

    Attributes:
        created: Requests created so far.
        upcoming: The number of the next row. The same, but where rows are used again: places of requests still under
            way are left out.
        mask: A row's place is ``row & mask``.
        full: The row at which the table must grow; never, if it uses rows again.
    """

    __slots__ = (
        "_last", "_owner", "_stamps", "_table", "_table_last", "_table_owner", "created", "full", "mask", "milestones",
        "names", "stages", "upcoming",
    )  # fmt: skip

    def __init__(self, stages: Sequence[Stage], names: Sequence[str] = (), capacity: int = 1024) -> None:
        self.stages = list(stages)
        self.milestones = len(self.stages) + 1
        self.names = list(names) if names else [f"milestone_{i}" for i in range(self.milestones)]
        self.created = 0
        self.upcoming = 0
        self.mask = ALL
        self.full = max(1, capacity)
        self._make(self.full)

    def _make(self, rooms: int) -> None:
        self._table = np.full(rooms * self.milestones, UNSET, dtype=np.int64)
        self._table_last = np.zeros(rooms, dtype=np.int64)
        self._stamps = self._table.data
        self._last = self._table_last.data
        # Whose place it is, where rows are used again.
        self._table_owner = np.arange(rooms if self.mask < ALL else 1, dtype=np.int64)
        self._owner = self._table_owner.data

    def recycle(self, rooms: int) -> None:
        """Use rows again, with room for so many, a power of two. Before the first request."""
        assert self.created == 0
        assert rooms & (rooms - 1) == 0
        self.mask = rooms - 1
        self.full = NEVER
        self._make(rooms)

    def rows(self) -> npt.NDArray[np.int64]:
        """Return the stamps as recorded: shape (created, milestones), ps, ``UNSET`` where skipped."""
        stamps: npt.NDArray[np.int64] = self._table[: self.created * self.milestones]
        return stamps.reshape(self.created, self.milestones)

    def completed_rows(self) -> npt.NDArray[np.bool_]:
        """Return which rows are complete: shape (created,), bool."""
        return np.equal(self._table_last[: self.created], self.milestones - 1)


def create(table: RequestTable, now: int) -> int:
    """Add a request created at ``now`` (ps); return its row."""
    row = table.upcoming
    if row == table.full:
        grow(table)
    if row > table.mask:
        row = vacant(table, row)
        clear(table, row)
    table.upcoming = row + 1
    table.created += 1
    table._stamps[(row & table.mask) * table.milestones] = now
    return row


def grow(table: RequestTable) -> None:
    """Double the table's room."""
    rooms = table.full
    used = rooms * table.milestones
    stamps = np.full(2 * used, UNSET, dtype=np.int64)
    stamps[:used] = table._table
    last = np.zeros(2 * rooms, dtype=np.int64)
    last[:rooms] = table._table_last
    table.full = 2 * rooms
    table._table, table._table_last = stamps, last
    table._stamps, table._last = stamps.data, last.data


def vacant(table: RequestTable, row: int) -> int:
    """Return the first row from ``row`` on whose place is not that of a request under way."""
    passed = 0
    while table._last[row & table.mask] < table.milestones - 1 and passed <= table.mask:
        row += 1
        passed += 1
    if passed > table.mask:
        crowded(table)
    return row


def clear(table: RequestTable, row: int) -> None:
    """Make the place of a row that is used again that of a new request."""
    place = row & table.mask
    table._owner[place] = row
    table._last[place] = 0
    at = place * table.milestones
    for i in range(table.milestones):
        table._stamps[at + i] = UNSET


def crowded(table: RequestTable) -> None:
    """Stop: every place is that of a request under way."""
    raise IosimError(
        f"{table.mask + 1} requests are under way at a time (overloaded?): more than a run that keeps only summaries "
        "has room for; run.keep=requests has no such limit",
        "run.keep",
    )


def recycled(table: RequestTable, row: int) -> bool:
    """Whether a later request has the row's place already: this one was complete, or dropped, long ago; or is none."""
    return row >= FOREIGN or (table.mask < ALL and table._owner[row & table.mask] != row & ALL)


def mark(table: RequestTable, row: int, milestone: int, now: int) -> None:
    """Stamp a milestone of a request, once, and never behind one that it has passed already.

    A stamp that comes late (the worker has seen the request before the kick's eventfd write was over) is dropped: the
    time is in the stage of the later milestone.
    """
    last = table._last
    place = row & table.mask
    if milestone > last[place] and not recycled(table, row):
        table._stamps[place * table.milestones + milestone] = now
        last[place] = milestone


def mark_past(table: RequestTable, row: int, milestone: int, then: int) -> None:
    """Stamp a milestone that was passed at ``then``, unless the request was not yet that far at the time.

    A driver that takes a packet from the ring learns only then that an earlier interrupt was about it.
    """
    place = row & table.mask
    last = table._last[place]
    if milestone > last and then >= table._stamps[place * table.milestones + last] and not recycled(table, row):
        table._stamps[place * table.milestones + milestone] = then
        table._last[place] = milestone


def give_up(table: RequestTable, row: int) -> None:
    """A request was dropped on the way: nothing more is stamped, and its row may be used again."""
    table._last[row & table.mask] = table.milestones


def stamp(table: RequestTable, row: int, milestone: int) -> int:
    """Return a request's stamp (ps), or ``UNSET``."""
    return table._stamps[(row & table.mask) * table.milestones + milestone]


def last_milestone(table: RequestTable, row: int) -> int:
    """Return the last milestone a request has passed."""
    return table._last[row & table.mask]


def filled(stamps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give every skipped milestone the time of the one before it, in place. Shape (n, milestones), ps."""
    for first in range(0, len(stamps), 4096):  # rows that stay in the cache from column to column
        rows = stamps[first : first + 4096]
        for i in range(1, stamps.shape[1]):
            np.maximum(rows[:, i], rows[:, i - 1], out=rows[:, i])
    return stamps
