"""A run on the compiled engine: memory filled from the objects, code fetched or made, the observer served."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator
from typing import Any, Final

from iosim.effects import NO_COST, Effect
from iosim.engine.compiled import code
from iosim.engine.compiled import core as engine_core
from iosim.engine.compiled.core import Core
from iosim.engine.compiled.layout import INT, Kind, Layout, Memory, Obj
from iosim.engine.compiled.translate import PERFORM, Module
from iosim.engine.costs import CostTable
from iosim.engine.distributions import Constant
from iosim.engine.draws import stream_key, table_for
from iosim.engine.system import System
from iosim.requests import UNSET, RequestTable, grow

ROOM: Final = 1 << 14
"""Requests the lists have room for to begin with."""
MARGIN: Final = 2048
"""Requests that may be created between two looks at the room left: more than are made at one instant."""
FOREVER: Final = (1 << 63) - 1
"""A time that never comes."""
GROWING: Final = {("Window", "order"): ROOM, ("Client", "connection"): ROOM}


class CompiledEngine:
    """Plays a `System` as `SimpyEngine` does, compiled.

    Args:
        system, costs, seed, replication, cpus, timeslice, switch: As for `SimpyEngine`.
        table: The request table that the processes fill.
        state: The objects the processes work on (the machine).
        opaque: Classes of objects that the hot path does not look into.
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
    ) -> None:
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
        self._contexts(cpus)
        self._streams(costs, seed, replication)
        calls = [self._call(i) for i in range(core.contexts)]
        roots = [core, *state, *(argument for _, arguments in calls for argument in arguments)]
        layout = Layout(roots, GROWING, (System, *opaque))
        module = Module(layout, core, table, _intrinsics(layout, core, table, check))
        self._frames: list[tuple[int, list[Any]]] = []
        self._frame_list = layout.words[layout.words[layout.attribute(core, "frame")]]
        self._process_list = layout.words[layout.words[layout.attribute(core, "process")]]
        for i, (function, arguments) in enumerate(calls):
            self._frame(module, layout, i, function, arguments)
        entries: list[Any] = [engine_core.run, engine_core.start, *PERFORM.values()]
        self._code = code.fetch(module.text(entries))
        self.memory = Memory(layout)
        if layout.guest is None:
            self._guest: Any = ctypes.create_string_buffer(8)
            self._guest_at = ctypes.addressof(self._guest)
        else:
            self._guest = (ctypes.c_char * layout.guest.size).from_buffer(layout.guest.buffer)
            self._guest_at = ctypes.addressof(self._guest)
        for i, (place, arguments) in enumerate(self._frames):
            self.memory.words[self._frame_list + i] = place
            for k, argument in enumerate(arguments):
                value = argument if isinstance(argument, int) else layout.address(argument)
                self.memory.words[place + 1 + k] = int(value)
        self._grow(ROOM)

    # -- preparation --------------------------------------------------------------------------------------------

    def _contexts(self, cpus: int) -> None:
        core, system = self.core, self.system
        by_thread: list[int] = []
        for thread, spec in enumerate(system.threads):
            core.priority[thread] = spec.priority
            core.own_cpu[thread] = -1 if cpus else thread
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

    def _frame(self, module: Module, layout: Layout, i: int, function: Any, arguments: list[Any]) -> None:
        if function is None:
            self._frames.append((0, []))
            return
        kinds: list[Kind] = [INT if isinstance(a, (bool, int)) else Obj(type(a)) for a in arguments]
        number, size = module.process(function, kinds)
        place = layout.reserve(size)
        layout.words[self._process_list + i] = number
        self._frames.append((place, arguments))

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
                self._grow(2 * len(self.table_last()))
            elif status == engine_core.NO_EVENTS:
                self._fetch()
                raise RuntimeError("No scheduled events left")
            else:
                self._raise()

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

    def switches(self) -> list[int]:
        """Return how often each thread was put on a CPU."""
        return [int(x) for x in self.memory.items(self.core, "switches")]

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

    def _fetch(self) -> None:
        memory = self.memory
        memory.fetch(self.clock, ["now"])
        for obj in self.state:
            memory.fetch(obj, [n for n in memory.layout.slots[type(obj)] if n in FETCHED.get(type(obj).__name__, ())])
        created = memory.get(self.table, "created")
        self.table.created = created
        words = memory.items(self.table, "_stamps")
        self.table._table = words
        self.table._table_last = memory.items(self.table, "_last")

    def _put_back(self) -> None:
        for obj in self.state:
            for name in PUT_BACK.get(type(obj).__name__, ()):
                self.memory.put(obj, name, int(getattr(obj, name)))

    def _grow(self, rooms: int) -> None:
        """Make room for so many requests, and for twice the timers."""
        memory = self.memory
        old = len(self.table_last())
        if rooms > old:
            milestones = self.table.milestones
            for name, size, new in (("_stamps", milestones, UNSET), ("_last", 1, 0)):
                memory.grow(self.table, name, rooms * size)
                header = memory.words[memory.layout.attribute(self.table, name)]
                memory.words[header + 1] = rooms * size
                memory.items(self.table, name)[old * size :] = new
            memory.put(self.table, "_capacity", rooms)
            for obj in memory.layout._kept:
                for (owner, name) in GROWING:
                    if type(obj).__name__ == owner:
                        memory.grow(obj, name, rooms)
        if memory.get(self.core, "heap_size") + 2 * MARGIN > len(memory.items(self.core, "heap_time")):
            for name in ("heap_time", "heap_sequence", "heap_what"):
                room = 2 * len(memory.items(self.core, name))
                memory.grow(self.core, name, room)
                memory.words[memory.words[memory.layout.attribute(self.core, name)] + 1] = room

    def _raise(self) -> None:
        error = self.memory.get(self.core, "error")
        at = self.memory.get(self.core, "error_at")
        if error == engine_core.TWO_WAITERS:
            raise RuntimeError(f"two processes wait on '{self.system.channels[at]}': a channel has one waiter")
        if error == engine_core.NOT_OWNER:
            raise RuntimeError(f"a process gives back '{self.system.locks[at]}', which it has not")
        if error == engine_core.RING:
            assert self._check is not None
            self._check(at)
        raise RuntimeError(f"a list of the compiled engine is full ({error}, {at})")

    def _call_code(self, name: str, *arguments: int) -> int:
        function = self._code.function(name, len(arguments))
        return int(function(self.memory.words.ctypes.data, self._guest_at, *arguments))


FETCHED: Final = {
    "Window": ("completed", "dropped", "draining", "overloaded", "boundary", "limit", "order"),
    "Counters": ("n",),
}
PUT_BACK: Final = {"Window": ("boundary", "limit", "draining", "overloaded")}


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
        """grow: `run` has seen to it that there is room."""
        return INT, "0"

    def resume(e: Any, arguments: Any) -> Any:
        return INT, e.temp(f"call i64 @resume(ptr %M, ptr %G, i64 {arguments[1][1]})")

    def nearly_full(e: Any, _arguments: Any) -> Any:
        place = (Obj(RequestTable), str(layout.address(table)))
        created = e.attribute(place, "created")[1]
        capacity = e.attribute(place, "_capacity")[1]
        test = e.temp(f"icmp sgt i64 {e.add(created, str(MARGIN))}, {capacity}")
        return INT, e.temp(f"zext i1 {test} to i64")

    return {
        check: ring_error,
        grow: nothing,
        engine_core.resume: resume,
        engine_core.requests_nearly_full: nearly_full,
    }
