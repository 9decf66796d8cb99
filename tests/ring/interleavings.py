"""Every interleaving of two programs over one guest memory, access by access, on two processors.

Each program (`Program`) runs the ring functions as they are, on its own view of guest memory. A load, a store,
a fence, a notification and going to sleep are the only things that the other side can take part in, so a
program is to the checker a tree: what it does next depends on the values it has loaded. The checker grows
that tree by running the Python code again up to the first load whose value is new, and explores the product
of both trees, the memory and the store buffers, exhaustively; states met before are not explored again.

Three machines:

`SC`
    Every access is seen at once; no real processor. What goes wrong here is no matter of fences.
`TSO` (x86, SPARC)
    A store waits in its processor's buffer and reaches memory in order, at any later time. A load sees the
    processor's own waiting stores, then memory. So a load overtakes an earlier store, and nothing else.
`WEAK` (ARM, POWER, RISC-V, and then some)
    Stores to different addresses reach memory in any order. A load may also return a value that memory held
    earlier, as long as this processor has neither fenced nor been woken since it was replaced, nor read or
    written a newer one at that address: so loads overtake each other, even those whose address depends on
    an earlier one (as on Alpha). What it does not have: a load that returns a value stored *later* in time
    (load buffering, a store that overtakes an earlier load).

On all, a fence waits until the buffer is empty and forgets old values. A store of any width reaches memory
in one piece. Code that is right on `WEAK` is right on `TSO`, and what is right there is right on `SC`.

Being woken by a notification orders what follows behind it, as an interrupt, an exit or a futex does. Sending
one does not wait for earlier stores unless the machine is told so (``kick_orders``).
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from iosim.ring.memory import GuestMemory


class Machine(NamedTuple):
    """What the processors may do."""

    name: str
    #: A processor goes on while its stores wait.
    buffers: bool
    #: Stores reach memory out of order, loads may return older values.
    weak: bool
    #: A notification is sent only once the sender's stores have reached memory.
    kick_orders: bool = False


SC = Machine("sc", buffers=False, weak=False)
TSO = Machine("tso", buffers=True, weak=False)
WEAK = Machine("weak", buffers=True, weak=True)
#: The same where sending a notification is itself a fence. Fences that are needed here are needed anywhere.
TSO_KICK = TSO._replace(name="tso, kicks order", kick_orders=True)
WEAK_KICK = WEAK._replace(name="weak, kicks order", kick_orders=True)


# -- running a program up to a load whose value is not chosen yet

LOAD, STORE, FENCE, NOTIFY, SLEEP, STEP, END, FAIL = range(8)


class _NeedValueError(BaseException):
    """Leaves a ring function at a load; no ring function catches anything."""


class MixedWidthError(BaseException):
    """Two accesses of different width to the same bytes, which this checker does not model."""


class Node:
    """What one side does next; the local part of a state, told apart by identity."""

    __slots__ = ("children", "key", "kind", "next", "place", "responses", "value", "where")

    def __init__(self, kind: int, where: str = "", place: int = -1, value: Any = None) -> None:
        self.kind = kind
        #: The ring function that does it.
        self.where = where
        self.place = place
        self.value = value
        self.next: Node | None = None
        self.children: dict[int, Node] = {}
        #: Where to begin, and what to answer to each load, to come here again.
        self.key: Any = None
        self.responses: tuple[int, ...] = ()


class _View:
    def __init__(self, side: Side, width: int) -> None:
        self.side, self.width = side, width

    def __getitem__(self, index: int) -> int:
        return self.side.load(index * self.width, self.width)

    def __setitem__(self, index: int, value: int) -> None:
        self.side.store(index * self.width, self.width, value)


class Memory:
    """Guest memory as one side sees it; goes wherever a `GuestMemory` goes."""

    def __init__(self, side: Side, size: int) -> None:
        self.side, self.size = side, size
        self.regions, self.shared = [0, 0], False
        self.u8, self.u16, self.u32, self.u64 = (_View(side, width) for width in (1, 2, 4, 8))


def fence(mem: Any) -> None:
    """Stand in for `iosim.ring.memory.fence`; does nothing on a memory that is not a checker's."""
    if isinstance(mem, Memory):
        mem.side.note(FENCE)


class Place(NamedTuple):
    """What one access touches: some bits of a cell."""

    addr: int
    width: int
    cell: int
    shift: int
    mask: int


class Cells:
    """The places in memory that are accessed, numbered as they are met.

    A cell is what is loaded in one piece. The accesses of a place have one width; only of the cells in ``words``
    parts may be stored (and loaded) by themselves.

    Args:
        mem: Memory with its first contents.
        name: What a trace calls an address and a width.
        words: Address and width of the cells that are accessed in parts, too.
    """

    def __init__(
        self, mem: GuestMemory, name: Callable[[int, int], str], words: Iterable[tuple[int, int]] = ()
    ) -> None:
        self.mem, self.name = mem, name
        self.places: list[Place] = []
        #: By cell, its first value.
        self.initial: list[int] = []
        self._numbers: dict[tuple[int, int], int] = {}
        self._owner: dict[int, tuple[int, int, int]] = {}
        self._words = set(words)
        for addr, width in self._words:
            self.number(addr, width)

    def number(self, addr: int, width: int) -> int:
        """Return the number of a place."""
        found = self._numbers.get((addr, width))
        if found is not None:
            return found
        if addr not in self._owner:
            owner = (addr, width, len(self.initial))
            self.initial.append(int.from_bytes(self.mem.buffer[addr : addr + width], "little"))
            for byte in range(addr, addr + width):
                if self._owner.setdefault(byte, owner) != owner:
                    raise MixedWidthError(f"{self.name(addr, width)}: {width} bytes at {addr:#x}")
        start, size, cell = self._owner[addr]
        if addr + width > start + size or (width < size and (start, size) not in self._words):
            raise MixedWidthError(f"{self.name(addr, width)}: {width} bytes at {addr:#x}")
        number = self._numbers[addr, width] = len(self.places)
        self.places.append(Place(addr, width, cell, 8 * (addr - start), (1 << 8 * width) - 1))
        return number

    def label(self, place: int) -> str:
        return self.name(*self.places[place][:2])


class Program:
    """One side's software. Methods are steps: short, and each returns what comes next.

    A step returns the name of the next step; ``self.sleep(name)`` to sleep until notified and go on there
    (with ``done=True`` where it may do so for ever); or None at the end. Between steps everything a program
    knows must stand in its queue's slots or in its own attributes (numbers and tuples), so that two histories
    that lead to the same state are one.
    A failed assertion, a code or any exception is a finding.
    """

    def __init__(self, queue: Any, ops: Any) -> None:
        self._queue, self._ops = queue, ops
        self._side: Side

    first = "begin"

    def notify(self) -> None:
        """Notify the other side."""
        self._side.note(NOTIFY)

    def sleep(self, then: str, done: bool = False) -> tuple[str, bool]:
        """Sleep until notified (no time at all if that has happened since)."""
        return (then, done)

    def freeze(self) -> tuple[Any, ...]:
        own = tuple(v for k, v in self.__dict__.items() if k[0] != "_")
        return own, _frozen(self._queue)

    def thaw(self, frozen: tuple[Any, ...]) -> None:
        own, queue = frozen
        for name, value in zip([k for k in self.__dict__ if k[0] != "_"], own, strict=True):
            setattr(self, name, value)
        for name, value in queue:
            setattr(self._queue, name, list(value) if isinstance(value, tuple) else value)


def _frozen(queue: Any) -> tuple[tuple[str, Any], ...]:
    slots: Iterable[str] = [name for kind in type(queue).__mro__ for name in getattr(kind, "__slots__", ())]
    values = [(name, getattr(queue, name)) for name in slots if name != "mem"]
    return tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in values)


class Side:
    """A program, and as much of its tree as has been needed."""

    def __init__(self, name: str, program: Program, cells: Cells) -> None:
        self.name, self.program, self.cells = name, program, cells
        program._side = self
        program._queue.mem = Memory(self, cells.mem.size)
        self._boundaries: dict[Any, Node] = {}
        self._responses: tuple[int, ...] = ()
        self._position = 0
        self._last: Node | None = None
        #: Runs of a step from its beginning.
        self.replays = 0
        self.root = self._boundary(program.first)

    # called by the program, through its memory

    def load(self, addr: int, width: int) -> int:
        if self._position < len(self._responses):
            self._position += 1
            self._last = None
            if self._position == len(self._responses):
                self._last = self._head
            return self._responses[self._position - 1]
        node = Node(LOAD, _caller(3), self.cells.number(addr, width))
        node.key, node.responses = self._key, self._responses
        self._append(node)
        raise _NeedValueError

    def store(self, addr: int, width: int, value: int) -> None:
        if not 0 <= value < 1 << 8 * width:
            raise ValueError(f"{value:#x} does not fit into {8 * width} bits")
        if self._last is not None:
            self._append(Node(STORE, _caller(3), self.cells.number(addr, width), value))

    def note(self, kind: int) -> None:
        if self._last is not None:
            self._append(Node(kind, _caller(3)))

    def _append(self, node: Node) -> None:
        assert self._last is not None
        self._last.next = node
        self._last = node

    # called by the checker

    def _boundary(self, step: str) -> Node:
        key = (step, self.program.freeze())
        node = self._boundaries.get(key)
        if node is None:
            node = self._boundaries[key] = Node(STEP, step)
            node.key = key
        return node

    def advance(self, node: Node) -> Node:
        """Return what follows ``node``, which is no load and no end."""
        if node.next is None:
            self._run(node.key, ())
            first = self._head.next
            assert first is not None
            node.next = first
        return node.next

    def answer(self, node: Node, value: int) -> Node:
        """Return what follows the load ``node`` if it gives ``value``."""
        child = node.children.get(value)
        if child is None:
            self._run(node.key, (*node.responses, value))
            assert self._head.next is not None
            child = node.children[value] = self._head.next
        return child

    def _run(self, key: Any, responses: tuple[int, ...]) -> None:
        """Run one step; what it does after the last of ``responses`` hangs below ``self._head``."""
        self.replays += 1
        step, frozen = key
        self.program.thaw(frozen)
        self._key, self._responses, self._position = key, responses, 0
        self._head = Node(STEP)
        self._last = None if responses else self._head
        try:
            then = getattr(self.program, step)()
        except _NeedValueError:
            return
        except Exception as error:
            self._append(Node(FAIL, step, value=f"{type(error).__name__}: {error}".removeprefix("AssertionError: ")))
            return
        if then is None:
            self._append(Node(END, step, value=self.program.freeze()[0]))
        elif isinstance(then, tuple):
            self._append(Node(SLEEP, step, value=then[1]))
            self._append(self._boundary(then[0]))
        else:
            self._append(self._boundary(then))


def _caller(depth: int) -> str:
    """Return the ring function that made an access; not the helpers of `iosim.ring.memory`."""
    frame: Any = sys._getframe(depth)
    while frame.f_code.co_name.startswith(("read_u", "write_u")):
        frame = frame.f_back
    return str(frame.f_code.co_name)


# -- the product

#: So many old values of one cell may still be read; two sides that never come to rest would give ever more.
OLD_VALUES = 6


class Found(NamedTuple):
    """What an exploration found out."""

    #: What is wrong, or None.
    failure: str | None
    #: Every access on the way there.
    trace: list[str]
    #: Distinct states, and ways from one to another.
    states: int
    transitions: int
    #: States in which nothing can happen any more.
    ends: int
    #: Ways from the beginning to an end, if they were counted; -1 if some way leads in a circle.
    executions: int = 0
    #: What both programs knew (their own attributes) where both had ended.
    outcomes: frozenset[tuple[Any, Any]] = frozenset()

    def __str__(self) -> str:
        head = f"{self.failure or 'nothing wrong'} ({self.states} states)"
        return "\n".join([head, *self.trace])


class _Local(NamedTuple):
    """One processor: where its program stands, the stores that wait, old values it may still read."""

    node: Node
    buffer: tuple[tuple[int, int], ...]
    stale: tuple[tuple[int, tuple[int, ...]], ...]
    notified: bool
    #: How often it may yet be notified for nothing.
    spurious: int


State = tuple[tuple[int, ...], _Local, _Local]


class Checker:
    """Explores what ``driver`` and ``device`` can do on ``machine``.

    Args:
        machine: `TSO` or `WEAK`.
        driver: The one side's program.
        device: The other's.
        cells: Memory, in the state both begin with.
        spurious: How often each side may be notified for nothing, at any time it sleeps.

    If nothing can happen any more, both programs must have ended or sleep as those who are done.
    """

    def __init__(self, machine: Machine, driver: Program, device: Program, cells: Cells, spurious: int = 0) -> None:
        self.machine, self.cells, self.spurious = machine, cells, spurious
        self.sides = (Side("driver", driver, cells), Side("device", device, cells))

    # one side's own business: nobody else can see it, so it needs no choice

    def _settle(self, who: int, local: _Local, say: Callable[[str], None] | None = None) -> _Local:
        side = self.sides[who]
        node, buffer, stale, notified, spurious = local
        while True:
            kind = node.kind
            if kind == STEP:
                node = side.advance(node)
            elif kind == STORE:
                if buffer and not self.machine.buffers:
                    break
                if say:
                    say(f"{side.name} {node.where}: store {self._is(node.place, node.value)} (buffered)")
                buffer = (*buffer, (node.place, node.value))
                node = side.advance(node)
            elif kind == FENCE:
                if buffer:
                    break
                if say:
                    say(f"{side.name} {node.where}: fence")
                stale = ()
                node = side.advance(node)
            elif kind == LOAD:
                for place, value in reversed(buffer):
                    if place == node.place:
                        if say:
                            say(f"{side.name} {node.where}: load {self._is(place, value, '->')} (its own store)")
                        node = side.answer(node, value)
                        break
                else:
                    break
            else:
                break
        return _Local(node, buffer, stale, notified, spurious)

    def _is(self, place: int, value: int, sign: str = "=") -> str:
        number = str(value) if value < 0x1000 else f"{value:#x}"
        return f"{self.cells.label(place)} {sign} {number}"

    def _value(self, mem: tuple[int, ...], cell: int) -> int:
        return mem[cell] if cell < len(mem) else self.cells.initial[cell]

    def _merged(self, word: int, number: int, value: int) -> int:
        place = self.cells.places[number]
        return word & ~(place.mask << place.shift) | value << place.shift

    def _choices(self, state: State) -> list[tuple[int, str, int]]:
        """Return (who, what, which) of everything that can happen next."""
        found: list[tuple[int, str, int]] = []
        for who in (0, 1):
            node, buffer, stale, notified, spurious = state[who + 1]
            kind = node.kind
            if spurious and kind == SLEEP and not notified:
                found.append((who, "spurious", 0))
            if buffer and not self.machine.buffers:
                found.append((who, "drain", 0))
                continue
            if kind == LOAD:
                at = self.cells.places[node.place].cell
                old = next((values for cell, values in stale if cell == at), ())
                # The same value read earlier allows all that follows it read later, and more.
                found += [(who, "load", k) for k, value in enumerate(old) if value not in old[:k]]
                if not old or self._value(state[0], at) not in old:
                    found.append((who, "load", -1))
            elif (kind == NOTIFY and not (self.machine.kick_orders and buffer)) or (kind == SLEEP and notified):
                found.append((who, "go", 0))
            if buffer:
                if not self.machine.weak:
                    found.append((who, "drain", 0))
                else:
                    # Overlapping stores keep their order.
                    seen: dict[int, int] = {}
                    for k, (number, _) in enumerate(buffer):
                        place = self.cells.places[number]
                        before, bits = seen.get(place.cell, 0), place.mask << place.shift
                        if not before & bits:
                            found.append((who, "drain", k))
                        seen[place.cell] = before | bits
        return found

    def _apply(self, state: State, choice: tuple[int, str, int], say: Callable[[str], None] | None = None) -> State:
        who, what, which = choice
        mem = state[0]
        mine, other = state[who + 1], state[2 - who]
        node, buffer, stale, _, spurious = mine
        side = self.sides[who]
        if what == "load":
            place = self.cells.places[node.place]
            cell = place.cell
            word = self._value(mem, cell)
            note = ""
            if which >= 0:
                old = dict(stale)[cell][which]
                if say and old != word:
                    note = f" (old; memory has {word >> place.shift & place.mask:#x})"
                word = old
                stale = tuple((c, v[which:] if c == cell else v) for c, v in stale)
            elif stale:
                stale = tuple(entry for entry in stale if entry[0] != cell)
            for number, value in buffer:
                # Its own waiting stores to other parts of the word.
                word = self._merged(word, number, value) if self.cells.places[number].cell == cell else word
            value = word >> place.shift & place.mask
            if say:
                say(f"{side.name} {node.where}: load {self._is(node.place, value, '->')}{note}")
            mine = mine._replace(node=side.answer(node, value), stale=stale)
        elif what == "drain":
            number, value = buffer[which]
            cell = self.cells.places[number].cell
            old = self._value(mem, cell)
            new = self._merged(old, number, value)
            if cell >= len(mem):
                mem = (*mem, *self.cells.initial[len(mem) : cell + 1])
            if say:
                say(f"{' ' * 12}memory: {self._is(number, value)} (from the {side.name})")
            mem = (*mem[:cell], new, *mem[cell + 1 :])
            if self.machine.weak:
                stale = tuple(entry for entry in stale if entry[0] != cell)
                if old != new:
                    known = dict(other.stale)
                    known[cell] = (*known.get(cell, ()), old)[-OLD_VALUES:]
                    other = other._replace(stale=tuple(sorted(known.items())))
            mine = mine._replace(buffer=buffer[:which] + buffer[which + 1 :], stale=stale)
        elif what == "spurious":
            if say:
                say(f"{side.name} is notified for nothing")
            mine = mine._replace(notified=True, spurious=spurious - 1)
        elif node.kind == NOTIFY:
            if say:
                say(f"{side.name} notifies")
            other = other._replace(notified=True)
            mine = mine._replace(node=side.advance(node))
        else:
            if say:
                say(f"{side.name} is woken")
            mine = _Local(side.advance(node), buffer, (), False, spurious)
        mine = self._settle(who, mine, say)
        return (mem, mine, other) if who == 0 else (mem, other, mine)

    def _begin(self, say: Callable[[str], None] | None = None) -> State:
        locals_ = [_Local(side.root, (), (), False, self.spurious) for side in self.sides]
        return ((), self._settle(0, locals_[0], say), self._settle(1, locals_[1], say))

    def _wrong(self, state: State, stuck: bool) -> str | None:
        for who in (0, 1):
            if state[who + 1].node.kind == FAIL:
                return f"{self.sides[who].name}: {state[who + 1].node.value}"
        if stuck:
            for side, local in zip(self.sides, state[1:], strict=True):
                if local.node.kind == SLEEP and not local.node.value:
                    return f"the {side.name} sleeps for ever, but there is work left"
        return None

    def explore(self, shortest: bool = False, count: bool = False, limit: int = 500_000) -> Found:
        """Visit every state; stop at the first that is wrong.

        Args:
            shortest: Find the shortest way to something wrong (nearest states first).
            count: Count the executions, too.
            limit: States after which to give up (a `RuntimeError`).
        """
        start = self._begin()
        came_from: dict[State, tuple[State, tuple[int, str, int]] | None] = {start: None}
        todo = deque([start])
        take = todo.popleft if shortest else todo.pop
        transitions = ends = 0
        edges: dict[State, list[State]] = {}
        outcomes = set()
        while todo:
            state = take()
            choices = self._choices(state)
            # A wake-up for nothing must not be what saves them.
            failure = self._wrong(state, all(what == "spurious" for _, what, _ in choices))
            if failure:
                return Found(failure, self._retrace(state, came_from), len(came_from), transitions, ends)
            if not choices:
                ends += 1
                outcomes.add((state[1].node.value, state[2].node.value))
            if count:
                edges[state] = []
            for choice in choices:
                following = self._apply(state, choice)
                transitions += 1
                if count:
                    edges[state].append(following)
                if following not in came_from:
                    came_from[following] = (state, choice)
                    todo.append(following)
            if len(came_from) > limit:
                raise RuntimeError(f"more than {limit} states")
        executions = _count_ways(start, edges) if count else 0
        return Found(None, [], len(came_from), transitions, ends, executions, frozenset(outcomes))

    def _retrace(self, state: State, came_from: dict[State, Any]) -> list[str]:
        way = []
        at: State = state
        while (step := came_from[at]) is not None:
            way.append(step[1])
            at = step[0]
        lines: list[str] = []
        state = self._begin(lines.append)
        for choice in reversed(way):
            state = self._apply(state, choice, lines.append)
        for who in (0, 1):
            if state[who + 1].node.kind == SLEEP:
                lines.append(f"{self.sides[who].name} sleeps")
        return lines


def _count_ways(start: State, edges: dict[State, list[State]]) -> int:
    """Return how many ways lead from ``start`` to a state without a successor; -1 if there is a circle."""
    ways: dict[int, int] = {}
    number = {state: k for k, state in enumerate(edges)}
    following = [[number[state] for state in states] for states in edges.values()]
    open_: set[int] = set()
    stack = [number[start]]
    while stack:
        at = stack[-1]
        if at in ways:
            stack.pop()
            continue
        todo = [n for n in following[at] if n not in ways]
        if not todo:
            ways[at] = sum(ways[n] for n in following[at]) or 1
            open_.discard(at)
            stack.pop()
            continue
        open_.add(at)
        if any(n in open_ for n in todo):
            return -1
        stack += todo
    return ways[number[start]]
