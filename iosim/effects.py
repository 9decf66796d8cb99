"""What a process may yield: the effects of which every model is made.

An execution context of the real system (the guest driver on its vCPU, an interrupt handler, QEMU's main loop, a
vhost worker, the wire) is one generator that yields effects and nothing else. An engine plays them; the generator
resumes when the effect is over, at `Clock.now`. No effect has a result: what happened is read from shared state.

Every effect is four integers ``(operation, a, b, c)``. Channels, locks and costs are named by the integers that
`iosim.engine.system.System` and `iosim.host.costs` give out.
"""

from __future__ import annotations

from typing import Final, TypeAlias

Effect: TypeAlias = tuple[int, int, int, int]

SPEND: Final = 0
NOTIFY: Final = 1
WAIT: Final = 2
TAKE: Final = 3
GIVE: Final = 4
LEAVE_GUEST: Final = 5
ENTER_GUEST: Final = 6
LEVEL: Final = 7
SPIN: Final = 8
SLEEP_UNTIL: Final = 9
WAIT_UNTIL: Final = 10
NOTIFY_AFTER: Final = 11

NO_COST: Final = -1
"""In place of a cost: nothing is drawn and no time passes."""

# The levels of what runs on a vCPU, lowest first; a higher one preempts a lower one, equals take turns.
IDLE: Final = 0
KSOFTIRQD: Final = 1
TASK: Final = 2
SOFTIRQ: Final = 3
HARDIRQ: Final = 4
HOST_INTERRUPT: Final = 5


def spend(cost: int, amount: int = 0) -> Effect:
    """Run on this process's thread for one draw of ``cost``, plus its rate per byte for ``amount`` bytes.

    The thread may be preempted meanwhile; the remainder is continued. A process without a thread (hardware, or a
    machine whose CPUs are not simulated) lets the time pass.
    """
    return (SPEND, cost, amount, 0)


def wait(channel: int, wake: int = NO_COST) -> Effect:
    """Sleep until ``channel`` is notified; continue at once if it was since the last wait returned.

    Notifications before the process runs again merge into one, as in an eventfd. A process that slept runs one draw
    of ``wake`` after the notification: the latency of the wake-up, in which its thread is not busy.
    """
    return (WAIT, channel, wake, 0)


def wait_until(channel: int, wake: int, deadline: int) -> Effect:
    """As `wait`, but no longer than until ``deadline`` (ps); a wake-up by the deadline costs ``wake`` too."""
    return (WAIT_UNTIL, channel, wake, deadline)


def spin(channel: int, limit: int) -> Effect:
    """Poll ``channel`` on the CPU, busily, until it is notified or ``limit`` ps of running have passed.

    A poller gives up at once when another thread waits for a CPU.
    """
    return (SPIN, channel, limit, 0)


def busy_poll(channel: int, limit: int) -> Effect:
    """As `spin`, by a thread that keeps its CPU whoever waits for it, until the scheduler takes it away.

    It may end early all the same, as another thread gets in line or the CPU is taken away: poll again.
    """
    return (SPIN, channel, limit, 1)


def sleep_until(time: int) -> Effect:
    """Continue at ``time`` (ps); at once if that is past. For load generators and hardware timers."""
    return (SLEEP_UNTIL, time, 0, 0)


def notify(channel: int) -> Effect:
    """Notify ``channel``; takes no time."""
    return (NOTIFY, channel, 0, 0)


def notify_after(channel: int, cost: int, amount: int = 0) -> Effect:
    """Notify ``channel`` one draw of ``cost`` from now, and go on meanwhile: a signal on its way."""
    return (NOTIFY_AFTER, channel, cost, amount)


def take(lock: int, wake: int = NO_COST) -> Effect:
    """Take ``lock``; while another process holds it, sleep in line, first come first served (``wake``: see `wait`)."""
    return (TAKE, lock, wake, 0)


def give(lock: int) -> Effect:
    """Give ``lock`` back; it passes to the first in line."""
    return (GIVE, lock, 0, 0)


def leave_guest() -> Effect:
    """A VM exit: until `enter_guest`, this process is the only one that may run on its vCPU thread."""
    return (LEAVE_GUEST, 0, 0, 0)


def enter_guest() -> Effect:
    """The VM entry: guest processes may run on the thread again, those of a higher level first."""
    return (ENTER_GUEST, 0, 0, 0)


def level(value: int) -> Effect:
    """Run at another level from now on (``SOFTIRQ``: what ``local_bh_disable`` does; back to ``TASK``: enable)."""
    return (LEVEL, value, 0, 0)
