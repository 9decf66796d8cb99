"""Flows: which packets belong together, as their headers say. One flow is one socket of the guest and its peer."""

from __future__ import annotations

from typing import Final

from iosim.host.packets import flow_number
from iosim.requests import FOREIGN, RequestTable

MASK: Final = 0xFFFFFFFF
RETA: Final = 128
"""Entries of a NIC's redirection table, filled with its queues in turn (82599 datasheet, 7.1.2.8; Linux ethtool -x)."""


class Flows:
    """Which flow each request belongs to: what the addresses and ports of its packets would tell.

    Args:
        table: The requests.
        count: How many flows there are.

    Attributes:
        connection: The connection of each request, by its place in the table. Connection ``i`` is of flow ``i`` modulo
            ``count``; where there is one flow only, nobody need ask, and most workloads leave this empty.
    """

    __slots__ = ("connection", "count", "table")

    def __init__(self, table: RequestTable, count: int) -> None:
        self.table = table
        self.count = count
        self.connection: list[int] = []


def remember(f: Flows, row: int, connection: int) -> None:
    """A new request is of this connection."""
    place = row & f.table.mask
    if place < len(f.connection):
        f.connection[place] = connection
    else:
        f.connection.append(connection)


def flow_of(f: Flows, row: int) -> int:
    """Return the flow of a request that is under way."""
    flow = 0
    if row >= FOREIGN:
        flow = flow_number(row)
    elif f.count > 1:
        flow = f.connection[row & f.table.mask] % f.count
    return flow


def flow_hash(flow: int) -> int:
    """Return the hash of a flow's headers, 32 bits that look random (MurmurHash3's last step, for Linux's siphash).

    It is the same in every run, as if its key and the ports were: where flows meet in one queue, they always do.
    """
    h = flow + 1
    h = (h ^ h >> 16) * 0x85EBCA6B & MASK
    h = (h ^ h >> 13) * 0xC2B2AE35 & MASK
    return h ^ h >> 16


def reciprocal_scale(value: int, end: int) -> int:
    """Return a 32-bit value scaled to 0 .. ``end`` - 1 (Linux include/linux/math.h)."""
    return value * end >> 32


def rss_queue(value: int, queues: int) -> int:
    """Return the queue that a NIC's receive side scaling puts a hash into: by the low bits, through its table."""
    return value % RETA % queues
