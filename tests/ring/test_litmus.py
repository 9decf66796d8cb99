"""The checker's machines allow what real processors allow, and no more: the classic litmus tests.

Each runs two programs of a few accesses to the words x and y (both 0 at first), and asks whether one outcome
can come about. Names as in the literature on memory models (Alglave, Maranget, Tautschnig 2014).
"""

from __future__ import annotations

from typing import Any

import pytest
from interleavings import SC, TSO, WEAK, Cells, Checker, Machine, MixedWidthError, Program, fence

from iosim.ring.memory import GuestMemory

X, Y = 0, 1


class NoQueue:
    __slots__ = ("mem",)


class Accesses(Program):
    """Runs "x=1", "fence", "y" (a load), ... and remembers what it loaded."""

    def __init__(self, accesses: str) -> None:
        super().__init__(NoQueue(), None)
        self._accesses = [access.strip() for access in accesses.split(";")]
        self.loaded: tuple[int, ...] = ()

    def begin(self) -> Any:
        words = self._queue.mem.u32
        for access in self._accesses:
            name, _, value = access.partition("=")
            if access == "fence":
                fence(self._queue.mem)
            elif value:
                words["xy".index(name)] = int(value)
            else:
                self.loaded = (*self.loaded, words["xy".index(name)])


def outcomes(machine: Machine, left: str, right: str) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    cells = Cells(GuestMemory(4096), lambda addr, width: "xy"[addr // 4])
    found = Checker(machine, Accesses(left), Accesses(right), cells).explore()
    assert found.failure is None
    return {(a[0], b[0]) for a, b in found.outcomes}


# name, left, right, what the left and the right loaded, machines that allow it
LITMUS = [
    ("SB", "x=1; y", "y=1; x", (0,), (0,), {TSO, WEAK}),
    ("SB+fence+po", "x=1; fence; y", "y=1; x", (0,), (0,), {TSO, WEAK}),
    ("SB+fences", "x=1; fence; y", "y=1; fence; x", (0,), (0,), set()),
    ("MP", "x=1; y=1", "y; x", (), (1, 0), {WEAK}),
    ("MP+fence+po", "x=1; fence; y=1", "y; x", (), (1, 0), {WEAK}),
    ("MP+po+fence", "x=1; y=1", "y; fence; x", (), (1, 0), {WEAK}),
    ("MP+fences", "x=1; fence; y=1", "y; fence; x", (), (1, 0), set()),
    ("CoRR", "x=1; x=2", "x; x", (), (2, 1), set()),
    ("CoRR, one store", "x=1", "x; x", (), (1, 0), set()),
    ("CoWR", "x=1; x", "x=2", (0,), (), set()),
    ("CoRW and CoWW: own stores in order", "x=1; x=2; x", "x; x", (1,), (0, 0), set()),
    ("R: own store seen early", "x=1; x; y", "y=1; y; x", (1, 0), (1, 0), {TSO, WEAK}),
    ("LB", "x; y=1", "y; x=1", (1,), (1,), set()),
    ("an old value is forgotten at a fence only", "x=1; x=2", "x; x; x", (), (0, 0, 2), {SC, TSO, WEAK}),
]


@pytest.mark.parametrize(("left", "right", "loaded_left", "loaded_right", "allowed"), [
    pytest.param(*test[1:], id=test[0]) for test in LITMUS
])  # fmt: skip
def test_a_machine_allows_exactly_its_reorderings(left, right, loaded_left, loaded_right, allowed) -> None:
    for machine in (SC, TSO, WEAK):
        assert ((loaded_left, loaded_right) in outcomes(machine, left, right)) == (machine in allowed), machine.name


@pytest.mark.parametrize(("left", "right"), [test[1:3] for test in LITMUS])
def test_each_machine_allows_all_that_a_stronger_one_does(left, right) -> None:
    """So what holds on `WEAK` need not be tried on the others."""
    assert outcomes(SC, left, right) <= outcomes(TSO, left, right) <= outcomes(WEAK, left, right)


def test_executions_are_counted() -> None:
    """Two programs of two stores each, seen at once: 4 over 2 orders."""
    cells = Cells(GuestMemory(4096), lambda addr, width: "xy"[addr // 4])
    found = Checker(SC, Accesses("x=1; x=2"), Accesses("y=1; y=2"), cells).explore(count=True)
    assert found.executions == 6
    assert found.states == 9


def test_accesses_of_two_widths_to_one_place_are_refused() -> None:
    class Mixed(Accesses):
        def begin(self) -> None:
            self._queue.mem.u32[0] = 1
            self._queue.mem.u16[1] = 1

    cells = Cells(GuestMemory(4096), lambda addr, width: "x")
    with pytest.raises(MixedWidthError):
        Checker(SC, Mixed(""), Accesses("y"), cells).explore()
