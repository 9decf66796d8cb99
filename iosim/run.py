"""One run: from a specification to a result. Warm-up, measured window in batches, drain."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import simpy

from iosim.effects import NO_COST, Effect, sleep_until, wait, wait_until
from iosim.engine.costs import CostTable
from iosim.engine.simpy_engine import SimpyEngine
from iosim.engine.system import ProcessTime, System
from iosim.errors import IosimError
from iosim.host import costs, hosts
from iosim.host.counters import STREAM_FRAMES, STREAM_TAP_PACKETS, WIRE_FRAMES
from iosim.host.hosts import Host
from iosim.host.machine import Machine
from iosim.kept import Requests, Summaries
from iosim.model import Model
from iosim.requests import filled
from iosim.result import CPUS, Result, Snapshot, lost_at, saturated
from iosim.ring.errors import raise_for
from iosim.specification import Specification, specify
from iosim.statistics import Batches
from iosim.summary import CARRY, edges
from iosim.window import NEVER, QUEUES
from iosim.workload.spec import Workload

if TYPE_CHECKING:
    from iosim.engine.compiled.engine import CompiledEngine

BATCHES: Final = 32
"""Batches of the measured window, at whose ends counters are read: what intervals of rates and counts rest on."""
OVERLOAD: Final = 20
"""A run ends when it has created this many times the requests it was asked for: the path is overloaded."""
PATIENCE: Final = 100_000_000_000
"""ps for which, beside a stream, no request may complete though some are under way; time slices and more are added."""
STREAM_GOES_ON: Final = 1_000
"""Packets of the stream in that time: with fewer everything is slow, and there is reason to wait for longer."""

COMPILED_FROM: Final = 5_000
"""Requests from which `auto` takes the compiled engine: about where making the code pays off."""
ROOMS: Final = 1 << 17
"""Requests that can be under way in a run that keeps summaries only."""
COMPILED_DURATION: Final = 100_000_000_000
"""ps of measured window from which it does."""
OBSERVER: Final = "observer"
FASTER: Final = "pip install 'iosim[fast]' runs this up to a hundred times faster, with the same result"

announce: Callable[[str], None] | None = None
"""Called with one line before something that takes seconds but happens once (compiling a path); a user interface's."""


class FasterEngineHint(UserWarning):
    """A long run on SimPy, where the compiled engine is not installed. Given once."""


Progress = Callable[[float], None]
"""Called with the fraction of the run that is done."""


@dataclass
class Installed:
    """A path in a SimPy environment, with everything to look at.

    Attributes:
        specification: What it was made from.
        machine: The machine room: counters, request table, guest memory, parts.
        engine: The engine; ``engine.notified("vhost worker")`` is a SimPy event.
        env: The SimPy environment; time in ps.
    """

    specification: Specification
    machine: Machine
    engine: SimpyEngine
    env: simpy.Environment

    @property
    def system(self) -> System:
        """Threads, channels and processes by name."""
        return self.machine.system


def install(
    model: str | Model,
    env: simpy.Environment | None = None,
    *,
    workload: str | None = None,
    host: str | Host = hosts.DEFAULT,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> Installed:
    """Install a model in a SimPy environment, to be run, watched and continued as one likes.

    Args:
        model: A registered name, or a model.
        env: The environment; a new one by default. Its time is in ps, and must be a whole number.
        workload, host, seed, settings: As in `simulate`.
        more: Settings too; ``__`` stands for the dot (``workload__depth=4``).

    Example:
        >>> import iosim
        >>> path = iosim.install("vhost-net", workload="rr")
        >>> path.env.run(until=200_000_000)     # 200 µs
        >>> path.machine.window.completed > 0
        True
    """
    given = {**dotted(more), **(settings or {})}
    if seed is not None:
        given["run.seed"] = seed
    spec = specify(model, workload=workload, host=host, settings=given)
    return install_specification(spec, env)


def install_specification(spec: Specification, env: simpy.Environment | None = None) -> Installed:
    """Install a run in an environment, without an observer: it goes on until the environment stops."""
    machine = spec.build()
    engine = _engine(spec, machine, env)
    return Installed(spec, machine, engine, engine.env)


def _engine(spec: Specification, machine: Machine, env: simpy.Environment | None) -> SimpyEngine:
    return SimpyEngine(machine.system, _costs(spec), env=env, **_engine_options(spec))


def _costs(spec: Specification) -> CostTable:
    return CostTable(costs.NAMES, spec.cost_distributions(), spec.cost_rates())


def _engine_options(spec: Specification) -> dict[str, int]:
    p = spec.host.properties
    return {
        "seed": spec.run.seed,
        "replication": spec.run.replication,
        "cpus": int(p["cpus"].value),
        "timeslice": max(1, int(p["timeslice"].value)),
        "switch": costs.CONTEXT_SWITCH if p["cpus"].value else NO_COST,
        "granularity": spec.wakeup_granularity,
    }


def dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name, where Python's keyword arguments have ``__`` for the dot."""
    return {name.replace("__", "."): value for name, value in settings.items()}


def simulate(
    model: str | Model,
    *,
    workload: str | None = None,
    host: str | Host = hosts.DEFAULT,
    requests: int | str | None = None,
    duration: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **more: Any,
) -> Result:
    """Simulate one path and return its result.

    Args:
        model: A registered name (``iosim models`` lists them), or a model.
        workload: ``rr`` (default), ``tx`` or ``rx``.
        host: A host's name or a TOML file.
        requests: Requests to measure; the same as the setting ``run.requests``.
        duration: Length of the measured window instead, as ``"100ms"``.
        seed: Keys the random numbers.
        settings: Any settings by dotted name, ``{"workload.size": 1000}``.
        progress: Called now and then with the fraction that is done.
        more: Settings too, ``__`` for the dot: ``workload__size=1000``.

    Raises:
        IosimError: Something given is unknown or impossible; the message is one line.

    Example:
        >>> import iosim
        >>> result = iosim.simulate("virtio-net", requests=200, seed=7)
        >>> result.kicks_per_request.value
        1.0
    """
    given = {**dotted(more), **(settings or {})}
    for name, value in (("requests", requests), ("duration", duration), ("seed", seed)):
        if value is not None:
            given[f"run.{name}"] = value
    return run(specify(model, workload=workload, host=host, settings=given), progress)


def run(spec: Specification, progress: Progress | None = None) -> Result:
    """Run a specification, on the engine that it names or that suits its length; the result is the same."""
    machine = spec.build()
    observer = _Observer(spec, machine, progress)
    machine.system.process(OBSERVER, observer.watch())
    engine: SimpyEngine | CompiledEngine
    name = engine_for(spec)
    if name == "compiled":
        engine = _compiled_engine(spec, machine)
    else:
        engine = _engine(spec, machine, None)
    observer.engine = engine
    try:
        engine.run()
    except RuntimeError as error:
        if "No scheduled events" not in str(error):
            raise
        window = machine.window
        under_way = machine.table.created - window.completed - window.dropped
        raise IosimError(
            f"{spec.model.name}: the run stands still at {machine.clock.now / 1e6:.3f} us with {under_way} requests "
            "under way: a notification was lost, which is an error in the model"
        ) from None
    return observer.result(name)


def engine_for(spec: Specification) -> str:
    """Return the engine for a run: ``simpy`` or ``compiled``.

    Raises:
        IosimError: The compiled engine was asked for and cannot be had.
    """
    if spec.run.engine == "simpy":
        return "simpy"
    available = compiled_available()
    if spec.run.engine == "compiled":
        if not available:
            raise IosimError("the compiled engine needs llvmlite: pip install 'iosim[fast]'", "run.engine")
        return "compiled"
    duration = spec.run.duration
    long = spec.run.requests >= COMPILED_FROM if duration is None else duration >= COMPILED_DURATION
    if long and not available:
        warnings.warn(FASTER, FasterEngineHint, stacklevel=4)
    return "compiled" if available and long else "simpy"


def compiled_available() -> bool:
    """Whether the compiled engine can be used here."""
    return importlib.util.find_spec("llvmlite") is not None


def _compiled_engine(spec: Specification, machine: Machine) -> CompiledEngine:
    # Loading LLVM takes a while: only who uses it waits for it.
    from iosim.engine.compiled import code
    from iosim.engine.compiled.engine import CompiledEngine

    code.announce = announce
    return CompiledEngine(
        machine.system,
        _costs(spec),
        table=machine.table,
        state=[machine, machine.window, machine.window.summary, machine.counters],
        opaque=(Host, Workload),
        check=raise_for,
        expected=0 if spec.run.duration is not None else spec.run.requests + spec.warmup,
        **_engine_options(spec),
    )


@dataclass(frozen=True, eq=False)
class _Totals:
    """What the summary of a run has come to at the end of a batch; the sketch without its empty bins."""

    count: int
    longest: int
    sums: list[int]
    bins: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    def at(self, bins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The counts of more bins, as those of a later time."""
        out = np.zeros(len(bins), dtype=np.int64)
        out[np.searchsorted(bins, self.bins)] = self.counts
        return out


def _where(first: Snapshot, last: Snapshot) -> str:
    """The queues that lost packets between two moments, for a line about them."""
    lost = sorted(((n, QUEUES[name]) for name, n in lost_at(first, last).items() if n), reverse=True)
    return "" if not lost else ": " + ", ".join(f"{n} {where}" for n, where in lost)


class _Observer:
    """Watches a run from outside: opens and closes the window, reads the counters at the batches' ends."""

    def __init__(self, spec: Specification, machine: Machine, progress: Progress | None) -> None:
        self.spec = spec
        self.machine = machine
        self.progress = progress
        self.engine: SimpyEngine | CompiledEngine
        self.snapshots: list[Snapshot] = []
        self.warnings: list[str] = []
        self.totals: list[_Totals] = []
        w, p = spec.workload, spec.host.properties
        slices = 100 * int(p["timeslice"].value) if p["cpus"].value else 0
        self.patience = PATIENCE + slices + 10 * (w.think_time + w.peer_delay)
        self.starved = False
        self.values: npt.NDArray[np.int64]
        if spec.run.keep == "summary":
            machine.window.summarize(ROOMS)

    def watch(self) -> Generator[Effect, None, None]:
        spec, window, clock = self.spec, self.machine.window, self.machine.clock
        target = spec.run.requests
        self._allow(spec.warmup)
        yield from self._until(spec.warmup)
        if window.overloaded:
            self.warnings.append(f"overloaded: the warm-up's {spec.warmup} requests did not complete")
        self._snapshot()
        if spec.run.duration is not None:
            window.limit = NEVER
            opened = clock.now
            for i in range(1, BATCHES + 1):
                yield sleep_until(opened + spec.run.duration * i // BATCHES)
                self._snapshot()
                self._report(i / BATCHES)
        else:
            self._allow(target)
            batches = min(BATCHES, target)
            opened_at = window.completed
            for i in range(1, batches + 1):
                yield from self._until(opened_at + target * i // batches)
                self._snapshot()
                self._report(i / batches)
                if window.overloaded or self.starved:
                    break
        if not window.keeps:
            window.summary.open = False
            self.values = self.engine.numbers(window.summary, "values")[: window.summary.count]
        window.draining = True
        window.boundary = NEVER
        while self._under_way() > 0 and not self.starved:
            yield from self._news()
        self.engine.stop()

    def _allow(self, requests: int) -> None:
        """Let so many times the requests be created as are asked for, and no more: an overloaded run ends."""
        self.machine.window.overloaded = False
        self.machine.window.limit = self.machine.table.created + OVERLOAD * requests + 1000

    def _until(self, completed: int) -> Generator[Effect, None, None]:
        """Wait until so many requests are complete, or until an overloaded run has used up its requests."""
        window = self.machine.window
        window.boundary = completed
        while window.completed < completed and not window.overloaded and not self.starved:
            yield from self._news()

    def _news(self) -> Generator[Effect, None, None]:
        """Wait for the window to tell of something; beside a stream, not for ever.

        Requests alone come to an end: each is finished or lost, and so many are created and no more. A stream does not.
        If all time goes into that (livelock), no request ever completes, and there is always a next event.
        """
        window, clock = self.machine.window, self.machine.clock
        if not self.spec.workload.background:
            yield wait(window.channel)
            return

        def ended() -> int:
            return window.completed + window.dropped

        def packets() -> int:
            n = self.machine.counters.n
            return n[STREAM_FRAMES] + n[STREAM_TAP_PACKETS] + n[WIRE_FRAMES]

        under_way, ended_before, packets_before = self._under_way(), ended(), packets()
        deadline = clock.now + self.patience
        yield wait_until(window.channel, NO_COST, deadline)
        if clock.now < deadline or ended() > ended_before or under_way == 0:
            return
        if packets() - packets_before >= STREAM_GOES_ON:
            self.starved = True
            self.warnings.append(
                f"overloaded: no request completed for {self.patience / 1e9:g} ms with {under_way} under way: "
                "the stream beside them leaves them nothing"
            )
        else:
            self.patience *= 2

    def _under_way(self) -> int:
        window = self.machine.window
        return self.machine.table.created - window.completed - window.dropped

    def _snapshot(self) -> None:
        window, processes = self.machine.window, self.machine.system.processes
        self.snapshots.append(
            Snapshot(
                time=self.machine.clock.now,
                completed=window.completed,
                created=self.machine.table.created,
                dropped_at=tuple(window.dropped_at),
                counters=tuple(self.machine.counters.n),
                processes=tuple(use for use, p in zip(self.engine.uses(), processes, strict=True) if p.thread >= 0),
                switches=sum(self.engine.switches()),
            )
        )

        if not window.keeps:
            window.summary.open = True
            self.totals.append(self._totals())

    def _totals(self) -> _Totals:
        summary, numbers = self.machine.window.summary, self.engine.numbers
        words = zip(numbers(summary, "sums").tolist(), numbers(summary, "carries").tolist(), strict=True)
        counts = numbers(summary, "counts")
        bins = np.flatnonzero(counts)
        sums = [low + (high << CARRY) for low, high in words]
        return _Totals(summary.count, summary.longest, sums, bins, counts[bins])

    def _report(self, fraction: float) -> None:
        if self.progress is not None:
            self.progress(fraction)

    def result(self, engine: str) -> Result:
        first, last = self.snapshots[0], self.snapshots[-1]
        table, window, system = self.machine.table, self.machine.window, self.machine.system
        if self._under_way() != 0 and not self.starved:
            raise IosimError(f"{self.spec.model.name}: requests were lost and not counted: an error in the model")
        wanted = self.spec.run.requests
        measured = last.completed - first.completed
        if self.spec.run.duration is None and measured < wanted and not self.starved:
            lower = "workload.rate" if self.spec.workload.open_loop else "workload.depth or host.wire_rate"
            self.warnings.append(
                f"overloaded: only {measured} of {wanted} requests completed while {table.created} arrived; "
                f"lower {lower}"
            )
        if measured == 0:
            if self.spec.run.duration is not None:
                span = (last.time - first.time) / 1e6
                raise IosimError(f"no request completed in the window of {span:g} us", "run.duration")
            raise IosimError(
                "; ".join(
                    [
                        f"{self.spec.model.name}: "
                        + (
                            self.warnings[-1]
                            if self.starved
                            else f"overloaded: no request completed while {table.created} were made and "
                            f"{window.dropped} of them dropped at full queues{_where(first, last)}"
                        ),
                        *self._busy(first, last),
                    ]
                )
            )
        if last.dropped > first.dropped:
            lost = last.dropped - first.dropped
            self.warnings.append(f"{lost} packets dropped at full queues in the window{_where(first, last)}")
        if window.segments_lost:
            self.warnings.append(
                f"{window.segments_lost} packets of streams were lost at full queues; they count as sent again and "
                "arrived, so a stream's throughput is an upper bound"
            )
        if self.spec.workload.open_loop and measured >= 100:
            self._check_stationary()
        if self.warnings:
            self.warnings += self._busy(first, last)
        return Result(
            specification=self.spec,
            stages=table.stages,
            milestones=table.names,
            kept=self._summaries() if self.totals else self._requests(first.completed, last.completed),
            snapshots=self.snapshots,
            threads=[thread.name for thread in system.threads],
            processes=self._processes(),
            events=self.engine.events,
            warnings=self.warnings,
            engine=engine,
        )

    def _processes(self) -> list[tuple[str, int]]:
        """The processes that run on threads, with those; others are hardware, or the client."""
        return [(p.name, p.thread) for p in self.machine.system.processes if p.thread >= 0]

    def _busy(self, first: Snapshot, last: Snapshot) -> list[str]:
        """A line for each thread, or CPUs or wire, that has no time to spare: what an overloaded path is short of."""
        if first.time == last.time:  # It came to nothing already in the warm-up.
            first = replace(first, time=0, processes=tuple(ProcessTime(0, 0, 0) for _ in first.processes))
        threads = [t.name for t in self.machine.system.threads]
        cpus = int(self.spec.host.properties["cpus"].value)
        found = saturated(first, last, threads, self._processes(), cpus)
        return [
            f"{name} {'are' if name == CPUS else 'is'} saturated: "
            + ", ".join(f"{part} {100 * share:.0f} %" for part, share in shares[:4] if share >= 0.005)
            for name, shares in found.items()
        ]

    def _requests(self, first: int, last: int) -> Requests:
        order = np.array(self.machine.window.order[first:last], dtype=np.int64)
        rows = self.machine.table.rows()
        if np.all(np.diff(order) == 1):
            # Completed as they were made: the table itself will do, and nobody else needs it any more. A copy would
            # be as large again, and the kernel's time to clear its pages a good part of a long run.
            return Requests(order, filled(rows[order[0] : order[0] + len(order)]))
        return Requests(order, filled(rows[order]))

    def _summaries(self) -> Summaries:
        """The differences of the totals read at the batches' ends."""
        totals, summary = self.totals, self.machine.window.summary
        pairs = list(itertools.pairwise(totals))
        stage_sums = [
            [after.sums[stage] - before.sums[stage] for before, after in pairs]
            for stage in range(len(self.machine.table.stages))
        ]
        used = totals[-1].bins
        low, high = edges(used)
        latency = Batches(
            sizes=np.array([after.count - before.count for before, after in pairs], dtype=np.int64),
            sums=[sum(parts) for parts in zip(*stage_sums, strict=True)],
            low=low.astype(np.float64),
            high=high.astype(np.float64),
            counts=np.diff([t.at(used) for t in totals], axis=0),
            greatest=float(totals[-1].longest),
        )
        return Summaries(latency, stage_sums, self.values if totals[-1].count <= summary.exact else None)

    def _check_stationary(self) -> None:
        """Warn where the backlog of an open loop grew through the window: its latencies are of no steady state."""
        first, last = self.snapshots[0], self.snapshots[-1]
        before = first.created - first.completed - first.dropped
        after = last.created - last.completed - last.dropped
        arrived = last.created - first.created
        if after - before > max(50, 0.05 * arrived):
            self.warnings.append(
                f"overloaded: requests arrive faster than they complete (backlog {before} to {after} in the window)"
            )
