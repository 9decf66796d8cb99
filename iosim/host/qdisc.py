"""The queueing discipline of the host's NIC: one queue for all, or one for each flow in turn."""

from __future__ import annotations

from typing import Final

from iosim.fifo import Fifo, first, put, take_first

FIFO_LIMIT: Final = 1000
"""Packets that pfifo holds: Linux's default txqueuelen."""
FQ_LIMIT: Final = 10240
"""Packets that fq_codel holds."""
QUANTUM: Final = 1514
"""Bytes a flow may send in its turn: psched_mtu, one full frame (Linux fq_codel_init)."""


class Qdisc:
    """Packets that wait for the NIC: a GSO packet is one of them, whatever its size.

    ``fq`` is fq_codel's deficit round robin (RFC 8290, section 4.2; Linux net/sched/sch_fq_codel.c) with a queue for
    each flow, as if no two hashes met, and without CoDel: it drops nothing but what is over the limit.

    Args:
        fair: ``fq``, else ``fifo``.
        flows: Flows there are.

    Attributes:
        count: Packets in it.
        queue: Those of each flow (fifo: of all).
        deficit: Bytes each flow may still send in this turn.
        listed: Whether a flow is in one of the lists.
        new_flows, old_flows: Whose turn it is: flows that had nothing waiting come first, once.
    """

    __slots__ = ("count", "deficit", "fair", "limit", "listed", "new_flows", "old_flows", "queue")

    def __init__(self, fair: bool, flows: int) -> None:
        self.fair = fair
        self.limit = FQ_LIMIT if fair else FIFO_LIMIT
        queues = flows if fair else 1
        self.count = 0
        self.queue = [Fifo(self.limit) for _ in range(queues)]
        self.deficit = [0] * queues
        self.listed = [False] * queues
        self.new_flows = Fifo(queues)
        self.old_flows = Fifo(queues)


def enqueue(q: Qdisc, packet: int, flow: int) -> bool:
    """Put a packet into its queue; return False where the limit is reached."""
    room = q.count < q.limit
    if room:
        q.count += 1
        if q.fair:
            put(q.queue[flow], packet)
            if not q.listed[flow]:
                q.listed[flow] = True
                q.deficit[flow] = QUANTUM
                put(q.new_flows, flow)
        else:
            put(q.queue[0], packet)
    return room


def next_flow(q: Qdisc) -> int:
    """Return the flow whose turn it is to send. There is a packet in one of them."""
    found = -1
    while found < 0:
        new = q.new_flows.count > 0
        flow = first(q.old_flows)
        if new:
            flow = first(q.new_flows)
        if q.deficit[flow] <= 0:
            q.deficit[flow] += QUANTUM
            rotate(q, new, flow)
        elif q.queue[flow].count == 0:
            if new and q.old_flows.count > 0:
                # It must not be new again at once, and starve the old ones so.
                rotate(q, new, flow)
            else:
                leave(q, new)
                q.listed[flow] = False
        else:
            found = flow
    return found


def leave(q: Qdisc, new: bool) -> None:
    """Take the first flow from its list."""
    if new:
        take_first(q.new_flows)
    else:
        take_first(q.old_flows)


def rotate(q: Qdisc, new: bool, flow: int) -> None:
    """Put the first flow at the end of the old ones."""
    leave(q, new)
    put(q.old_flows, flow)
