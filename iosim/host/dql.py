"""Byte queue limits: how much the host's NIC may have before its queue is stopped (Linux lib/dynamic_queue_limits.c).

Whatever stands in the NIC's ring no queueing discipline can overtake. So Linux gives the NIC no more than keeps the
wire busy from one completion to the next, and finds out how much that is.
"""

from __future__ import annotations


class Dql:
    """The limit of one transmit queue, in bytes.

    Attributes:
        limit: What may be queued and not completed; it grows where the queue ran dry while more was waiting.
        num_queued, num_completed: Bytes given to the NIC and taken back, ever.
        prev_num_queued, prev_ovlimit: As of the last completion; ``prev_ovlimit`` is what was over the limit.
    """

    __slots__ = ("limit", "num_completed", "num_queued", "prev_num_queued", "prev_ovlimit")

    def __init__(self) -> None:
        self.limit = 0
        self.num_queued = 0
        self.num_completed = 0
        self.prev_num_queued = 0
        self.prev_ovlimit = 0


def dql_queued(d: Dql, size: int) -> None:
    """So many bytes were given to the NIC."""
    d.num_queued += size


def dql_avail(d: Dql) -> int:
    """Return how many bytes more may be queued; the queue is stopped while that is negative."""
    return d.limit + d.num_completed - d.num_queued


def dql_completed(d: Dql, completed: int) -> None:
    """The NIC has sent everything up to ``completed``; find the limit anew.

    The queue starved if all that was over the limit went out at once. The limit is lowered after a second of slack
    in Linux; runs here are shorter, and it is not.
    """
    ovlimit = d.num_queued - d.num_completed - d.limit
    if ovlimit < 0:
        ovlimit = 0
    inprogress = d.num_queued - completed
    if (ovlimit > 0 and inprogress == 0) or (d.prev_ovlimit > 0 and completed >= d.prev_num_queued):
        if completed > d.prev_num_queued:
            d.limit += completed - d.prev_num_queued
        d.limit += d.prev_ovlimit
    d.prev_ovlimit = ovlimit
    d.num_completed = completed
    d.prev_num_queued = d.num_queued
