"""A queue of work items for one thread: what a thread that serves several sources sleeps on.

The vhost worker's list of works and the set of file descriptors that QEMU's main loop polls are both of this form:
a source that is ready stands in line once, however often it is signalled, until it is taken.
"""

from __future__ import annotations

from collections.abc import Generator

from iosim.effects import Effect, notify
from iosim.engine.system import System
from iosim.fifo import Fifo, put, take_first


class WorkQueue:
    """Work for one thread.

    Args:
        system: Where the channel is made.
        name: The channel's name.
        items: How many sources there are.

    Attributes:
        polling: The thread polls at present, and sees whatever is put into its rings and sockets without being told.
        seen: Something was, since it began to.
    """

    __slots__ = ("channel", "fifo", "polling", "queued", "seen")

    def __init__(self, system: System, name: str, items: int) -> None:
        self.channel = system.channel(name)
        self.queued = [False] * items
        self.fifo = Fifo(items)
        self.polling = False
        self.seen = False


def queue_work(q: WorkQueue, item: int) -> Generator[Effect, None, None]:
    """Make ``item`` ready and wake the thread; nothing happens where it was ready already."""
    if not q.queued[item]:
        q.queued[item] = True
        put(q.fifo, item)
        yield notify(q.channel)


def show_poller(q: WorkQueue) -> Generator[Effect, None, None]:
    """Something was put into a ring or a socket of the thread: it sees it at once if it polls, else not at all."""
    if q.polling:
        q.seen = True
        yield notify(q.channel)


def take_work(q: WorkQueue) -> int:
    """Take the item that was ready first, or -1."""
    item = take_first(q.fifo)
    if item >= 0:
        q.queued[item] = False
    return item
