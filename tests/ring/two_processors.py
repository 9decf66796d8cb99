"""Two processors over one guest memory, each with a store buffer: what fences are for.

A store waits in its processor's buffer until a fence drains it; a load sees the processor's own waiting
stores first, then memory. That is the one reordering x86 does (a later load overtakes an earlier store),
at its worst: nothing drains before it must. A ring that loses no wake-up here has its fences where they
belong.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from iosim.ring.memory import GuestMemory

Side = Generator[None, None, None]


class _View:
    """One width of a processor's view on memory."""

    def __init__(self, processor: Processor, view: memoryview) -> None:
        self.processor, self.view = processor, view

    def __getitem__(self, index: int) -> int:
        for view, at, value in reversed(self.processor.stores):
            if view is self.view and at == index:
                return value
        return self.view[index]

    def __setitem__(self, index: int, value: int) -> None:
        self.processor.stores.append((self.view, index, value))


class Processor:
    """Guest memory as one processor sees it; goes wherever a `GuestMemory` goes."""

    def __init__(self, mem: GuestMemory) -> None:
        self.mem, self.size = mem, mem.size
        self.stores: list[tuple[memoryview, int, int]] = []
        self.u16, self.u32, self.u64 = _View(self, mem.u16), _View(self, mem.u32), _View(self, mem.u64)

    def drain(self) -> None:
        for view, index, value in self.stores:
            view[index] = value
        self.stores.clear()


def fence(mem: Any) -> None:
    """Stand in for `iosim.ring.memory.fence`."""
    if isinstance(mem, Processor):
        mem.drain()


def all_schedules(run: Callable[[Iterator[int]], list[int]]) -> int:
    """Call ``run`` once for every schedule; return how many there are.

    ``run`` takes its choices from the iterator it is given (0 once that is used up) and returns how many
    alternatives there were at each.
    """
    count = 0
    prefix: list[int] = []
    while True:
        count += 1
        alternatives = run(iter(prefix))
        choices = prefix + [0] * (len(alternatives) - len(prefix))
        while choices and choices[-1] == alternatives[len(choices) - 1] - 1:
            choices.pop()
        if not choices:
            return count
        choices[-1] += 1
        prefix = choices
