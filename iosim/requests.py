"""The request table: the life of every request as a row of time stamps.

A path declares its milestones in order; each milestone but the first ends one stage. A request that skips a milestone
(a kick that was suppressed) has a stage of length zero there, and the time belongs to the stage that ends at the
next milestone it did pass. So the stages of every request have no gap and no overlap, and sum to its latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UNSET = -1


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
    """

    __slots__ = ("_capacity", "_last", "_stamps", "_table", "_table_last", "created", "milestones", "names", "stages")

    def __init__(self, stages: Sequence[Stage], names: Sequence[str] = (), capacity: int = 1024) -> None:
        self.stages = list(stages)
        self.milestones = len(self.stages) + 1
        self.names = list(names) if names else [f"milestone_{i}" for i in range(self.milestones)]
        self.created = 0
        self._capacity = max(1, capacity)
        self._table = np.full(self._capacity * self.milestones, UNSET, dtype=np.int64)
        self._table_last = np.zeros(self._capacity, dtype=np.int64)
        self._stamps = self._table.data
        self._last = self._table_last.data

    def rows(self) -> npt.NDArray[np.int64]:
        """Return the stamps as recorded: shape (created, milestones), ps, ``UNSET`` where skipped."""
        stamps: npt.NDArray[np.int64] = self._table[: self.created * self.milestones]
        return stamps.reshape(self.created, self.milestones)

    def completed_rows(self) -> npt.NDArray[np.bool_]:
        """Return which rows are complete: shape (created,), bool."""
        return np.equal(self._table_last[: self.created], self.milestones - 1)


def create(table: RequestTable, now: int) -> int:
    """Add a request created at ``now`` (ps); return its row."""
    if table.created == table._capacity:
        grow(table)
    row = table.created
    table.created = row + 1
    table._stamps[row * table.milestones] = now
    return row


def grow(table: RequestTable) -> None:
    """Double the table's room."""
    used = table._capacity * table.milestones
    stamps = np.full(2 * used, UNSET, dtype=np.int64)
    stamps[:used] = table._table
    last = np.zeros(2 * table._capacity, dtype=np.int64)
    last[: table._capacity] = table._table_last
    table._capacity *= 2
    table._table, table._table_last = stamps, last
    table._stamps, table._last = stamps.data, last.data


def mark(table: RequestTable, row: int, milestone: int, now: int) -> None:
    """Stamp a milestone of a request, once, and never behind one that it has passed already.

    A stamp that comes late (the worker has seen the request before the kick's eventfd write was over) is dropped: the
    time is in the stage of the later milestone.
    """
    last = table._last
    if milestone > last[row]:
        table._stamps[row * table.milestones + milestone] = now
        last[row] = milestone


def mark_past(table: RequestTable, row: int, milestone: int, then: int) -> None:
    """Stamp a milestone that was passed at ``then``, unless the request was not yet that far at the time.

    A driver that takes a packet from the ring learns only then that an earlier interrupt was about it.
    """
    last = table._last[row]
    if milestone > last and then >= table._stamps[row * table.milestones + last]:
        table._stamps[row * table.milestones + milestone] = then
        table._last[row] = milestone


def stamp(table: RequestTable, row: int, milestone: int) -> int:
    """Return a request's stamp (ps), or ``UNSET``."""
    return table._stamps[row * table.milestones + milestone]


def last_milestone(table: RequestTable, row: int) -> int:
    """Return the last milestone a request has passed."""
    return table._last[row]


def filled(stamps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give every skipped milestone the time of the one before it, in place. Shape (n, milestones), ps."""
    for i in range(1, stamps.shape[1]):
        np.maximum(stamps[:, i], stamps[:, i - 1], out=stamps[:, i])
    return stamps
