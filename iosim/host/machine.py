"""One simulated machine room: what all its parts share."""

from __future__ import annotations

from typing import Any

from iosim.engine.system import Clock, System
from iosim.host.counters import Counters
from iosim.host.flows import Flows
from iosim.requests import RequestTable
from iosim.ring.memory import GuestMemory
from iosim.window import Window


class Machine:
    """What every part of a path refers to.

    Args:
        system: Threads, channels, locks and processes, to be installed in an engine.
        window: The requests, and the stop rules.
        memory: The guest's memory.
        flows: Flows that the requests belong to.

    Attributes:
        clock: The simulated time (ps).
        counters: What is counted.
        table: The requests' time stamps.
        flows: Which flow each request belongs to.
        parts: Parts of the path by name, for those who want to look inside (never used on the hot path).
    """

    __slots__ = ("clock", "counters", "flows", "memory", "parts", "system", "table", "window")

    def __init__(self, system: System, window: Window, memory: GuestMemory, flows: int = 1) -> None:
        self.system = system
        self.clock: Clock = system.clock
        self.window = window
        self.table: RequestTable = window.table
        self.memory = memory
        self.counters = Counters()
        self.flows = Flows(window.table, flows)
        self.parts: dict[str, Any] = {}
