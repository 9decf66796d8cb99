"""The guest's softirq limits: a flood of packets must not keep the application from running for ever."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import KSOFTIRQD, SOFTIRQ, Effect, level

NETDEV_BUDGET: Final = 300
"""Packets that net_rx_action takes at a time (Linux net.core.netdev_budget)."""


def ksoftirqd() -> Generator[Effect, None, None]:
    """The budget is spent and there is more: the rest is ksoftirqd's, and tasks that are ready run first.

    Linux hands over when the budget is spent and a task wants the CPU, or after ten rounds (__do_softirq). Its
    scheduler then shares the CPU between the two; here the tasks run until they sleep, and then the softirq goes on.
    """
    yield level(KSOFTIRQD)
    yield level(SOFTIRQ)
