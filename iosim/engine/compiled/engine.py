"""A run on the compiled engine: memory filled from the objects, code fetched or made, the observer served."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator
from dataclasses import dataclass
from threading import Lock
from types import FunctionType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from iosim.effects import NO_COST, Effect
from iosim.engine.compiled import code
from iosim.engine.compiled import core as engine_core
from iosim.engine.compiled.core import Core
from iosim.engine.compiled.layout import INT, Function, Kind, Layout, Memory, Obj
from iosim.engine.compiled.translate import PERFORM, Module
from iosim.engine.costs import CostTable
from iosim.engine.distributions import Constant
from iosim.engine.draws import stream_key, table_for
from iosim.engine.system import ProcessTime, System
from iosim.requests import NEVER, UNSET, RequestTable, crowded, grow
from iosim.ring.memory import fence

ROOM: Final = 1 << 14
"""Requests the lists have room for to begin with."""
MARGIN: Final = 2048
"""Requests that may be created between two looks at the room left: more than are made at one instant."""
FOREVER: Final = (1 << 63) - 1
"""A time that never comes."""
GROWING: Final = {("Window", "order"): 0, ("Flows", "connection"): 0}
"""Lists that a request is appended to, by class and attribute."""
HEAP: Final = ("heap_time", "heap_sequence", "heap_what")


class CompiledEngine:
    """Plays a `System` as `SimpyEngine` does, compiled.

    Args:
        system, costs, seed, replication, cpus, timeslice, switch, granularity: As for `SimpyEngine`.
        table: The request table that the processes fill.
        state: The objects the processes work on (the machine).
        opaque: Classes of objects that the hot path does not look into.
        expected: Requests that will be made, if that is known: room for them from the start.
        check: A function that models call with a code and that raises for a bad one (below -1).
    """

    def __init__(
        self,
        system: System,
        costs: CostTable,
        *,
        table: RequestTable,
        state: list[Any],
        opaque: tuple[type, ...] = (),
        check: Callable[[int], int] | None = None,
        seed: int = 1,
        replication: int = 0,
        cpus: int = 0,
        timeslice: int = 3_000_000_000,
        switch: int = NO_COST,
        granularity: int = -1,
        expected: int = 0,
    ) -> None:
        system.check_pins(cpus)
        self.system = system
        self.clock = system.clock
        self.table = table
        self.state = state
        self.events = 0
        self._check = check
        observers = [i for i, p in enumerate(system.processes) if p.name == "observer"]
        self._observer = observers[0] if observers else -1
        core = Core(
            len(system.processes),
            len(system.threads),
            cpus if cpus else len(system.threads),
            len(system.channels),
            len(system.locks),
            len(costs.names),
        )
        self.core = core
        core.clock = system.clock
        core.observer = self._observer
        core.timeslice = timeslice
        core.switch = switch
        core.granularity = granularity
        self._contexts(cpus)
        self._streams(costs, seed, replication)
        calls = [self._call(i) for i in range(core.contexts)]
        given = [argument for _, arguments in calls for argument in arguments]
        roots = [core, *state, *(argument for argument in given if not isinstance(argument, FunctionType))]
        layout = Layout(roots, GROWING, (System, *opaque))
        signatures = [None if function is None else (function, _kinds(arguments)) for function, arguments in calls]
        translated = self._translate(layout, signatures, check)
        self._code = translated.code
        self._frames: list[tuple[int, list[Any]]] = []
        for i, (signature, (_, arguments)) in enumerate(zip(signatures, calls, strict=True)):
            if signature is not None:
                number, size = translated.processes[signature]
                place = layout.reserve(size)
                # The layout looks at the engine's own lists when the memory is made.
                core.process[i] = number
                core.frame[i] = place
                self._frames.append((place, arguments))
        self.memory = Memory(layout)
        if layout.guest is None:
            self._guest: Any = ctypes.create_string_buffer(8)
            self._guest_at = ctypes.addressof(self._guest)
        else:
            self._guest = (ctypes.c_char * len(layout.guest.buffer)).from_buffer(layout.guest.buffer)
            self._guest_at = ctypes.addressof(self._guest)
        for place, arguments in self._frames:
            for k, argument in enumerate(arguments):
                if not isinstance(argument, FunctionType):
                    value = argument if isinstance(argument, int) else layout.address(argument)
                    self.memory.words[place + 1 + k] = int(value)
        if table.full < NEVER:
            self._grow(max(ROOM, expected + expected // 16 + 2 * MARGIN))
        else:
            self.memory.grow(self._growing(len(self.table_last())))

    # -- preparation --------------------------------------------------------------------------------------------

    def _contexts(self, cpus: int) -> None:
        core, system = self.core, self.system
        by_thread: list[int] = []
        for thread, spec in enumerate(system.threads):
            core.priority[thread] = spec.priority
            core.own_cpu[thread] = -1 if cpus else thread
            if cpus and spec.cpus is not None:
                core.allowed[thread * cpus : (thread + 1) * cpus] = [cpu in spec.cpus for cpu in range(cpus)]
            core.first_context[thread] = len(by_thread)
            by_thread += [i for i, p in enumerate(system.processes) if p.thread == thread]
            core.last_context[thread] = len(by_thread)
        core.by_thread[: len(by_thread)] = by_thread
        for i, process in enumerate(system.processes):
            core.thread[i] = process.thread
            core.level[i] = process.level

    def _streams(self, costs: CostTable, seed: int, replication: int) -> None:
        core = self.core
        tables: dict[Any, int] = {}
        quantiles: list[int] = []
        drawn = []
        for cost, distribution in enumerate(costs.distributions):
            core.rate[cost] = costs.rates[cost]
            core.constant[cost] = -1
            if isinstance(distribution, Constant):
                core.constant[cost] = round(distribution.value)
                continue
            drawn.append(cost)
            if distribution not in tables:
                tables[distribution] = len(quantiles)
                quantiles += table_for(distribution).values.tolist()
            core.table[cost] = tables[distribution]
        core.quantiles = quantiles or [0]
        for i, process in enumerate(self.system.processes):
            for cost in drawn:
                key = stream_key(seed, replication, f"{process.name}/{costs.names[cost]}")
                core.stream_key[i * core.costs + cost] = _signed(key)
        if core.switch >= 0:
            for thread, spec in enumerate(self.system.threads):
                key = stream_key(seed, replication, f"{spec.name}/{costs.names[core.switch]}")
                core.switch_key[thread] = _signed(key)

    def _call(self, i: int) -> tuple[Any, list[Any]]:
        """The function and the arguments that a process was made from."""
        # A started or foreign generator has no call to look at; those of models are functions of a module.
        generator: Any = self.system.processes[i].generator
        if i == self._observer:
            return None, []
        frame = generator.gi_frame
        function = frame.f_globals[generator.__name__]
        assert function.__code__ is generator.gi_code
        names = generator.gi_code.co_varnames[: generator.gi_code.co_argcount]
        return function, [frame.f_locals[name] for name in names]

    def _translate(self, layout: Layout, signatures: list[Any], check: Any) -> _Translated:
        """The code for a structure: translated once in a process, since translating takes longer than a short run."""
        core, table = self.core, self.table
        kinds = tuple(dict.fromkeys(signature for signature in signatures if signature is not None))
        module = Module(layout, core, table, _intrinsics(layout, core, table, check))
        key = (tuple(layout.structure()), kinds, check)
        with _lock:
            if key not in _translations:
                processes = {signature: module.process(signature[0], list(signature[1])) for signature in kinds}
                entries: list[Any] = [engine_core.run, engine_core.start, *PERFORM.values()]
                _translations[key] = _Translated(code.fetch(module.text(entries)), processes)
            return _translations[key]

    # -- running ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until the observer ends the run.

        Raises:
            RuntimeError: Nothing is left to happen, or a model broke a rule of the engine.
        """
        self._call_code("start")
        observer = self.system.processes[self._observer].generator
        waiting = iter(observer)
        self._stopped = False
        while not self._stopped:
            status = self._call_code("run", FOREVER)
            if status == engine_core.OBSERVE:
                self._observe(waiting)
            elif status == engine_core.GROW:
                self._make_room()
            elif status == engine_core.NO_EVENTS:
                self._fetch()
                raise RuntimeError("No scheduled events left")
            else:
                self._raise()

    def _make_room(self) -> None:
        """Twice the room for requests, if that is what is short; timers are looked at in any case."""
        rooms = len(self.table_last())
        short = self.memory.get(self.table, "created") + MARGIN > self.memory.get(self.table, "full")
        self._grow(2 * rooms if short else rooms)

    def stop(self) -> None:
        """End the run: called by the observer."""
        self._stopped = True

    def busy(self) -> list[int]:
        """Return the time each thread has run so far (ps)."""
        memory, core = self.memory, self.core
        now = memory.get(self.clock, "now")
        out = []
        for thread, busy in enumerate(memory.items(core, "busy").tolist()):
            current = int(memory.items(core, "current")[thread])
            running = 0
            if current >= 0 and memory.items(core, "timer")[current]:
                running = now - int(memory.items(core, "started")[current])
            out.append(busy + running)
        return out

    def uses(self) -> list[ProcessTime]:
        """Return what each process has spent its time with so far, in the order of ``system.processes``."""
        now = self.memory.get(self.clock, "now")
        names = ("ran", "polled", "locked", "thread", "timer", "started", "spinning", "lined_up")
        items = {name: self.memory.items(self.core, name).tolist() for name in (*names, "current")}
        out = []
        for context, (ran, polled, locked, thread, timer, started, spinning, lined_up) in enumerate(
            zip(*(items[name] for name in names), strict=True)
        ):
            running = now - started if thread >= 0 and items["current"][thread] == context and timer else 0
            polling = running if spinning >= 0 else 0
            waiting = now - lined_up if lined_up >= 0 else 0
            out.append(ProcessTime(ran + running, polled + polling, locked + waiting))
        return out

    def switches(self) -> list[int]:
        """Return how often each thread was put on a CPU."""
        return [int(x) for x in self.memory.items(self.core, "switches")]

    def numbers(self, obj: Any, name: str) -> npt.NDArray[np.int64]:
        """Return a copy of an object's list of numbers as it is now."""
        return self.memory.items(obj, name).copy()

    def table_last(self) -> Any:
        """The request table's list of last milestones."""
        return self.memory.items(self.table, "_last")

    def _observe(self, waiting: Generator[Effect, None, None] | Any) -> None:
        """The observer's turn: it sees the present state, and what it sets is seen."""
        self._fetch()
        for effect in waiting:
            self._put_back()
            op, a, b, c = effect
            if self._call_code(PERFORM[op].__name__, self._observer, a, b, c):
                return
            self._fetch()
        self._put_back()
        if self._stopped:
            for obj in self.state:
                if "order" in self.memory.layout.slots[type(obj)]:
                    obj.order = self.memory.items(obj, "order")

    def _fetch(self) -> None:
        memory = self.memory
        memory.fetch(self.clock, ["now"])
        for obj in self.state:
            memory.fetch(obj, [n for n in memory.layout.slots[type(obj)] if n in FETCHED.get(type(obj).__name__, ())])
        created = memory.get(self.table, "created")
        self.table.created = created
        self.table.upcoming = memory.get(self.table, "upcoming")
        words = memory.items(self.table, "_stamps")
        self.table._table = words
        self.table._table_last = memory.items(self.table, "_last")

    def _put_back(self) -> None:
        for obj in self.state:
            for name in PUT_BACK.get(type(obj).__name__, ()):
                self.memory.put(obj, name, int(getattr(obj, name)))

    def _grow(self, rooms: int) -> None:
        """Make room for so many requests, and for twice the timers where they fill their queue."""
        memory = self.memory
        lists: list[tuple[Any, str, int]] = []
        if rooms > len(self.table_last()):
            lists += [(self.table, "_stamps", rooms * self.table.milestones), (self.table, "_last", rooms)]
            lists += self._growing(rooms)
            memory.put(self.table, "full", rooms)
        timers = len(memory.items(self.core, "heap_time"))
        full = memory.get(self.core, "heap_size") + MARGIN >= timers
        if full:
            lists += [(self.core, name, 2 * timers) for name in HEAP]
        memory.grow(lists)
        for obj, name, _ in lists:
            if name in ("_stamps", "_last", *HEAP):
                memory.lengthen(obj, name, UNSET if name == "_stamps" else 0)

    def _growing(self, rooms: int) -> list[tuple[Any, str, int]]:
        """The lists that requests are appended to, and the room they need."""
        found = self.memory.layout.found
        return [(obj, name, rooms) for obj in found for owner, name in GROWING if type(obj).__name__ == owner]

    def _raise(self) -> None:
        error = self.memory.get(self.core, "error")
        at = self.memory.get(self.core, "error_at")
        if error == engine_core.TWO_WAITERS:
            raise RuntimeError(f"two processes wait on '{self.system.channels[at]}': a channel has one waiter")
        if error == engine_core.NOT_OWNER:
            raise RuntimeError(f"a process gives back '{self.system.locks[at]}', which it has not")
        if error == engine_core.CROWDED:
            crowded(self.table)
        if error == engine_core.RING:
            assert self._check is not None
            self._check(at)
        raise RuntimeError(f"a list of the compiled engine is full ({error}, {at})")

    def _call_code(self, name: str, *arguments: int) -> int:
        function = self._code.function(name, len(arguments))
        return int(function(self.memory.words.ctypes.data, self._guest_at, *arguments))


FETCHED: Final = {
    "Window": ("completed", "dropped_at", "segments_lost", "draining", "overloaded", "boundary", "limit"),
    "Summary": ("count", "longest", "open"),
    "Counters": ("n",),
}
PUT_BACK: Final = {"Window": ("boundary", "limit", "draining", "overloaded"), "Summary": ("open",)}


@dataclass(frozen=True)
class _Translated:
    """The code of a structure, and the number and the frame's size of each kind of process in it."""

    code: code.Code
    processes: dict[Any, tuple[int, int]]


_lock = Lock()
_translations: dict[Any, _Translated] = {}


def _kinds(arguments: list[Any]) -> tuple[Kind, ...]:
    def kind(argument: Any) -> Kind:
        if isinstance(argument, FunctionType):
            return Function(argument)
        return INT if isinstance(argument, (bool, int)) else Obj(type(argument))

    return tuple(kind(argument) for argument in arguments)


def _signed(key: int) -> int:
    return key - (1 << 64) if key >> 63 else key


def _intrinsics(layout: Layout, core: Core, table: RequestTable, check: Any) -> dict[Any, Any]:
    """Functions that mean something else when compiled."""

    def ring_error(e: Any, arguments: Any) -> Any:
        """A check: a code below EMPTY stops the run; the exception is raised outside."""
        code_, place = arguments[0][1], (Obj(Core), str(layout.address(core)))
        bad = e.temp(f"icmp slt i64 {code_}, -1")
        yes, no = e.label("ringerror"), e.label("ringok")
        e.emit(f"br i1 {bad}, label %{yes}, label %{no}")
        e.emit_label(yes)
        e.store(e.slot(place, "error")[0], str(engine_core.RING))
        e.store(e.slot(place, "error_at")[0], code_)
        e.emit_label(no)
        return INT, code_

    def nothing(_e: Any, _arguments: Any) -> Any:
        """grow: `run` has seen to it that there is room. fence: one processor runs both sides of a ring."""
        return INT, "0"

    def resume(e: Any, arguments: Any) -> Any:
        return INT, e.temp(f"call i64 @resume(ptr %M, ptr %G, i64 {arguments[1][1]})")

    def nearly_full(e: Any, _arguments: Any) -> Any:
        place = (Obj(RequestTable), str(layout.address(table)))
        created = e.attribute(place, "created")[1]
        full = e.attribute(place, "full")[1]
        test = e.temp(f"icmp sgt i64 {e.add(created, str(MARGIN))}, {full}")
        return INT, e.temp(f"zext i1 {test} to i64")

    def too_many(e: Any, _arguments: Any) -> Any:
        """crowded: stops the run; the exception is raised outside."""
        e.store(e.slot((Obj(Core), str(layout.address(core))), "error")[0], str(engine_core.CROWDED))
        return INT, "0"

    return {
        check: ring_error,
        grow: nothing,
        fence: nothing,
        crowded: too_many,
        engine_core.resume: resume,
        engine_core.requests_nearly_full: nearly_full,
    }
