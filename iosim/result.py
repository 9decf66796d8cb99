"""The result of one run: requests, latency, throughput, what each request cost, where its time went."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from iosim.engine.system import ProcessTime
from iosim.errors import IosimError
from iosim.files import write_aside
from iosim.host.counters import NAMES as COUNTERS
from iosim.kept import Kept, Requests, latencies
from iosim.requests import Stage
from iosim.specification import Specification
from iosim.statistics import Estimate, ratio
from iosim.version import __version__
from iosim.window import QUEUES

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure


SATURATED: Final = 0.95
"""The fraction of the window from which a thread that works, or waits for a lock, has no time to spare."""
CPUS: Final = "host CPUs"
WIRES: Final = {"out": "wire, outgoing", "in": "wire, incoming"}
"""What else may have none: the CPUs that threads share, and either direction of the wire."""
LOCK_WAIT: Final = "waiting for a lock"


@dataclass(frozen=True)
class Snapshot:
    """The state of all counters at one instant (times in ps).

    ``dropped_at`` is in the order of `QUEUES`, ``processes`` in that of the run's processes.
    """

    time: int
    completed: int
    created: int
    dropped_at: tuple[int, ...]
    counters: tuple[int, ...]
    processes: tuple[ProcessTime, ...]
    switches: int

    @property
    def dropped(self) -> int:
        """Requests lost so far."""
        return sum(self.dropped_at)


def lost_at(first: Snapshot, last: Snapshot) -> dict[str, int]:
    """Return how many packets each queue has lost between two moments."""
    return {name: last.dropped_at[i] - first.dropped_at[i] for i, name in enumerate(QUEUES)}


def saturated(
    first: Snapshot, last: Snapshot, threads: Sequence[str], processes: Sequence[tuple[str, int]], cpus: int = 0
) -> dict[str, list[tuple[str, float]]]:
    """Return what had no time to spare between two moments: threads and what they did (names, fractions), CPUs, wires.

    That a thread polls does not count: it would have time for work. That it waits for a lock does: nothing else can run
    on a thread that waits in QEMU or in the kernel. ``cpus``: how many all threads share, if they do (else 0).
    """
    elapsed = last.time - first.time
    found: dict[str, list[tuple[str, float]]] = {}
    busy = {}
    for thread, name in enumerate(threads):
        mine = [(p, last.processes[i], first.processes[i]) for i, (p, t) in enumerate(processes) if t == thread]
        shares = [(p, (a.ran - b.ran - a.polled + b.polled) / elapsed) for p, a, b in mine]
        busy[name] = sum(share for _, share in shares)
        shares.append((LOCK_WAIT, sum(a.locked - b.locked for _, a, b in mine) / elapsed))
        if sum(share for _, share in shares) > SATURATED:
            found[name] = sorted(shares, key=lambda s: -s[1])
    if cpus and sum(busy.values()) > SATURATED * cpus:
        found[CPUS] = sorted(busy.items(), key=lambda s: -s[1])
    for way, text in WIRES.items():
        place = COUNTERS.index(f"wire_busy.{way}")
        share = (last.counters[place] - first.counters[place]) / elapsed
        if share > SATURATED:
            found[text] = [("frames", share)]
    return found


@dataclass(frozen=True)
class StageTime:
    """One stage of the breakdown: its mean time in ns, its layer and its kind."""

    name: str
    layer: str
    kind: str
    mean: Estimate


@dataclass(repr=False)
class Result:
    """What one run gave.

    Attributes:
        specification: What was run.
        stages: The path's stages; stage ``i`` lies between milestones ``i`` and ``i + 1``.
        milestones: The milestones' names.
        kept: The measured requests, or summaries of them.
        snapshots: Counters at the ends of the window's batches.
        threads: Names of the threads.
        processes: Names of the processes that run on threads, and their threads, in the order of each snapshot's.
        events: Timers set by the engine, over the whole run.
        warnings: One line each.
        engine: Which engine played it: ``simpy`` or ``compiled``; all else is the same with either.
    """

    specification: Specification
    stages: list[Stage]
    milestones: list[str]
    kept: Kept
    snapshots: list[Snapshot]
    threads: list[str]
    processes: list[tuple[str, int]]
    events: int
    warnings: list[str]
    engine: str = "simpy"
    confidence: float = 0.95

    def __repr__(self) -> str:
        spec = self.specification
        return f"<Result of {spec.model.name}, {spec.workload.name}: {self.measured} requests, seed {spec.run.seed}>"

    # -- requests -----------------------------------------------------------------------------------------------

    @property
    def measured(self) -> int:
        """How many requests were measured."""
        return self.kept.measured

    @property
    def keeps_requests(self) -> bool:
        """Whether every request was kept, or summaries only."""
        return isinstance(self.kept, Requests)

    def _requests(self) -> Requests:
        if not isinstance(self.kept, Requests):
            raise IosimError("this run kept summaries only; run.keep=requests keeps every request")
        return self.kept

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The measured requests' rows, in the order of completion. Shape (n,)."""
        return self._requests().rows

    @property
    def stamps(self) -> npt.NDArray[np.int64]:
        """Their milestones in ps, skipped ones filled. Shape (n, milestones)."""
        return self._requests().stamps

    # -- latency ------------------------------------------------------------------------------------------------

    @property
    def latency_ps(self) -> npt.NDArray[np.int64]:
        """Latencies in ps, in the order of completion. Shape (n,)."""
        return self._requests().values

    @cached_property
    def latency(self) -> dict[str, Estimate]:
        """Mean and percentiles of the latency, in ns, with intervals; ``max`` has none."""
        return latencies(self.kept, self.confidence)

    def breakdown(self) -> list[StageTime]:
        """Return the mean time of each stage, in order; they sum to the mean latency."""
        means = self.kept.stages(self.confidence)
        return [
            StageTime(stage.name, stage.layer, stage.kind, e) for stage, e in zip(self.stages, means, strict=True)
        ]

    # -- rates and counts ---------------------------------------------------------------------------------------

    def _deltas(self, values: Sequence[int]) -> npt.NDArray[np.float64]:
        return np.diff(np.array(values, dtype=np.float64))

    @cached_property
    def _completed(self) -> npt.NDArray[np.float64]:
        return self._deltas([s.completed for s in self.snapshots])

    @cached_property
    def _elapsed(self) -> npt.NDArray[np.float64]:
        return self._deltas([s.time for s in self.snapshots])

    @property
    def duration_ns(self) -> float:
        """Length of the measured window, in ns."""
        return (self.snapshots[-1].time - self.snapshots[0].time) / 1000

    @cached_property
    def throughput(self) -> Estimate:
        """Requests per second, over the measured window."""
        return _scaled(ratio(self._completed, self._elapsed, self.confidence), 1e12)

    @property
    def bits_per_s(self) -> Estimate:
        """Payload bits per second, in one direction."""
        return _scaled(self.throughput, self.specification.workload.size * 8)

    def count(self, name: str) -> int:
        """Return how often something happened in the window, by its counter's name (``kicks``, ``exits.HLT``)."""
        place = COUNTERS.index(name)
        return self.snapshots[-1].counters[place] - self.snapshots[0].counters[place]

    def per_request(self, name: str) -> Estimate:
        """Return how often something happened per request of the window, by its counter's name."""
        place = COUNTERS.index(name)
        return ratio(self._deltas([s.counters[place] for s in self.snapshots]), self._completed, self.confidence)

    @property
    def kicks_per_request(self) -> Estimate:
        """Kicks that exited, per request."""
        return self.per_request("kicks")

    @cached_property
    def context_switches(self) -> Estimate:
        """Switches of CPUs to threads (from idle or another thread), per request."""
        return ratio(self._deltas([s.switches for s in self.snapshots]), self._completed, self.confidence)

    @cached_property
    def cpu_busy(self) -> dict[str, Estimate]:
        """The fraction of the window each thread ran, by its name."""
        return self._by_thread("ran")

    @cached_property
    def cpu_polling(self) -> dict[str, Estimate]:
        """The part of `cpu_busy` in which the thread polled: nothing it polls for was there."""
        return self._by_thread("polled")

    @cached_property
    def lock_wait(self) -> dict[str, Estimate]:
        """The fraction of the window each thread waited for a lock (the big QEMU lock); it is no part of `cpu_busy`."""
        return self._by_thread("locked")

    @cached_property
    def cpu_by_process(self) -> dict[str, dict[str, Estimate]]:
        """`cpu_busy` of each thread by what ran on it: application, softirq, interrupt handlers, idle loop..."""
        return {
            name: {p: self._share("ran", [i]) for i, (p, t) in enumerate(self.processes) if t == thread}
            for thread, name in enumerate(self.threads)
        }

    def _by_thread(self, what: str) -> dict[str, Estimate]:
        return {
            name: self._share(what, [i for i, (_, t) in enumerate(self.processes) if t == thread])
            for thread, name in enumerate(self.threads)
        }

    def _share(self, what: str, processes: list[int]) -> Estimate:
        totals = [sum(getattr(s.processes[i], what) for i in processes) for s in self.snapshots]
        return ratio(self._deltas(totals), self._elapsed, self.confidence)

    @property
    def saturated(self) -> list[str]:
        """What had no time to spare for over 95 % of the window.

        Threads, at work or waiting for a lock; ``host CPUs``, where threads share them; the wire, either way.
        """
        cpus = int(self.specification.host.properties["cpus"].value)
        return list(saturated(self.snapshots[0], self.snapshots[-1], self.threads, self.processes, cpus))

    @cached_property
    def wire_busy(self) -> dict[str, Estimate]:
        """The fraction of the window in which frames, preamble and gap included, were on the wire: ``out``, ``in``."""
        places = {way: COUNTERS.index(f"wire_busy.{way}") for way in WIRES}
        return {
            way: ratio(self._deltas([s.counters[place] for s in self.snapshots]), self._elapsed, self.confidence)
            for way, place in places.items()
        }

    @property
    def dropped(self) -> int:
        """Packets dropped at full queues in the window."""
        return sum(self.dropped_at.values())

    @property
    def dropped_at(self) -> dict[str, int]:
        """The same by queue (`iosim.window.QUEUES`)."""
        return lost_at(self.snapshots[0], self.snapshots[-1])

    # -- tables and documents -----------------------------------------------------------------------------------

    @cached_property
    def requests(self) -> pa.Table:
        """The measured requests as an Arrow table: row, latency in ns, and every milestone's stamp in ps."""
        import pyarrow as pa

        columns: dict[str, Any] = {"request": self.rows, "latency_ns": self.latency_ps / 1000}
        for i, name in enumerate(self.milestones):
            columns[f"{name}_ps"] = self.stamps[:, i]
        table = pa.table(columns)
        document = json.dumps(self.to_dict(), sort_keys=True)
        return table.replace_schema_metadata({"iosim": document})

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write `requests` to a Parquet file (aside, then renamed); the JSON document is in its metadata."""
        import pyarrow.parquet as pq

        with write_aside(path) as aside:
            pq.write_table(self.requests, aside)
        return Path(path)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of the run. Times are in ns, counts per request, fractions of the window."""
        per: dict[str, Any] = {"exits": {}, "register_accesses": {}, "syscalls": {}, "stream": {}}
        for name in COUNTERS:
            group, dot, item = name.partition(".")
            if dot and group in per:
                per[group][item] = self.per_request(name).to_dict()
        for name in ("userspace_exits", "kicks", "interrupts", "copied_bytes", "halts_polled"):
            per[name] = self.per_request(name).to_dict()
        for name in ("wire_frames", "background_bytes"):
            per[name] = self.per_request(name).to_dict()
        per["context_switches"] = self.context_switches.to_dict()
        w = self.specification.workload
        host = self.specification.host
        return {
            "model": self.specification.model.name,
            "host": host.name,
            "host_sources": host.describe(),
            "workload": w.name,
            "settings": self.specification.settings(),
            "seed": self.specification.run.seed,
            "engine": self.engine,
            "version": __version__,
            "requests": self.measured,
            "duration_ns": self.duration_ns,
            "latency_ns": {name: estimate.to_dict() for name, estimate in self.latency.items()},
            "quantile_error": self.kept.quantile_error,
            "throughput_per_s": self.throughput.to_dict(),
            "bits_per_s": self.bits_per_s.to_dict(),
            "per_request": per,
            "suppressed": {name: self.count(f"suppressed.{name}") for name in ("kicks", "interrupts")},
            "spurious": {name: self.count(f"spurious.{name}") for name in ("kicks", "interrupts")},
            "merged": {"interrupts": self.count("merged.interrupts")},
            "dropped": self.dropped,
            "dropped_at": self.dropped_at,
            "cpu_busy": {name: estimate.to_dict() for name, estimate in self.cpu_busy.items()},
            "cpu_polling": {name: estimate.to_dict() for name, estimate in self.cpu_polling.items()},
            "cpu_by_process": {
                thread: {name: estimate.to_dict() for name, estimate in shares.items()}
                for thread, shares in self.cpu_by_process.items()
            },
            "lock_wait": {name: estimate.to_dict() for name, estimate in self.lock_wait.items()},
            "wire_busy": {way: estimate.to_dict() for way, estimate in self.wire_busy.items()},
            "saturated": self.saturated,
            "breakdown_ns": {
                s.name: {"mean": s.mean.to_dict(), "layer": s.layer, "kind": s.kind} for s in self.breakdown()
            },
            "warnings": list(self.warnings),
        }

    def to_json(self) -> str:
        """Return the document as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def summary(self) -> Summary:
        """Return the main figures as a small table, for a terminal or a notebook."""
        rows = [(f"latency {_label(name)}", time_text(e)) for name, e in self.latency.items()]
        rows.append(("throughput", f"{number_text(self.throughput)} /s"))
        exits = [name for name in COUNTERS if name.startswith("exits.")]
        rows += [
            (f"{name.removeprefix('exits.')} exits", number_text(self.per_request(name)))
            for name in exits
            if self.count(name)
        ]
        rows.append(("exits to user space", number_text(self.per_request("userspace_exits"))))
        rows.append(("kicks", number_text(self.per_request("kicks"))))
        rows.append(("interrupts", number_text(self.per_request("interrupts"))))
        rows += [(f"CPU {name}", percent_text(e)) for name, e in self.cpu_busy.items()]
        title = f"{self.specification.model.name}, {self.specification.workload.name}, {self.measured} requests"
        return Summary(title, rows, [self.specification.host.describe(), *self.notes, *self.warnings])

    @property
    def notes(self) -> list[str]:
        """What to know about the figures, one line each."""
        error = self.kept.quantile_error
        return [f"percentiles are from a sketch of the latencies, within {100 * error:.2g} %"] if error else []

    def plot(self) -> Figure:
        """Draw the breakdown and the latency's distribution; returns a matplotlib figure."""
        from iosim.plot import plot_run

        return plot_run(self)


@dataclass(frozen=True)
class Summary:
    """A titled table of labels and values, readable as text and in a notebook."""

    title: str
    rows: list[tuple[str, str]]
    notes: list[str]

    def __str__(self) -> str:
        width = max(len(label) for label, _ in self.rows)
        lines = [self.title, *(f"  {label:<{width}}  {value}" for label, value in self.rows), *self.notes]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = "".join(f"<tr><th style='text-align:left'>{a}</th><td>{b}</td></tr>" for a, b in self.rows)
        notes = "".join(f"<p>{note}</p>" for note in self.notes)
        return f"<table><caption>{self.title}</caption>{body}</table>{notes}"


def _scaled(e: Estimate, factor: float) -> Estimate:
    low = None if e.low is None else e.low * factor
    high = None if e.high is None else e.high * factor
    return Estimate(e.value * factor, low, high, e.confidence)


def _label(name: str) -> str:
    return name.replace("_", ".")


def half_width(e: Estimate) -> float | None:
    """Return the larger distance from the value to an end of its interval, or None without one."""
    if e.low is None or e.high is None:
        return None
    return max(e.high - e.value, e.value - e.low)


def time_text(e: Estimate) -> str:
    """A time (an estimate in ns) for people: ``87.3 µs ±0.2``, ``87.30 µs`` where there is no interval."""
    scale, unit = 1.0, "ns"
    for limit, name in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if abs(e.value) >= limit:
            scale, unit = limit, name
            break
    value, interval = _rounded(e, 1 / scale, 2)
    return f"{value} {unit}{interval}"


def number_text(e: Estimate) -> str:
    """A count or rate for people, with its interval where one matters: ``1.33 ±0.02``, ``7``."""
    if half_width(e) == 0 and e.value == math.floor(e.value):
        return f"{e.value:.0f}"
    size = abs(e.value)
    most = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 0.1 or size == 0 else 4
    value, interval = _rounded(e, 1.0, most)
    return value + interval


def percent_text(e: Estimate) -> str:
    """A fraction for people, in percent: ``4.5 %``, ``12.1 % ±0.3``."""
    value, interval = _rounded(e, 100.0, 1)
    half = half_width(e)
    return f"{value} %" if half is None or half < 5e-4 else f"{value} %{interval}"


def _rounded(e: Estimate, factor: float, most: int) -> tuple[str, str]:
    """A scaled value with the decimals that its interval makes meaningful, ``most`` at most; and the interval.

    The interval is ``±h``, or ``-a +b`` if one side is over twice the other. It is rounded up, never to none.
    """
    if not math.isfinite(e.value):
        return f"{e.value}", ""
    if e.low is None or e.high is None or not math.isfinite(e.high - e.low):
        return f"{e.value * factor:.{most}f}", ""
    below, above = max(0.0, e.value - e.low) * factor, max(0.0, e.high - e.value) * factor
    half = max(below, above)
    if half <= abs(e.value) * factor * 1e-6:
        return f"{e.value * factor:.{most}f}", ""
    # One digit of the interval, two where the first is 1.
    wanted = -math.floor(math.log10(half)) + (half < 2 * 10 ** math.floor(math.log10(half)))
    decimals = min(most, max(0, wanted))
    value = f"{e.value * factor:.{decimals}f}"
    if max(below, above) > 2 * min(below, above):
        return value, f" −{_up(below, decimals)} +{_up(above, decimals)}"
    return value, f" ±{_up(half, decimals)}"


def _up(x: float, decimals: int) -> str:
    return f"{math.ceil(x * 10**decimals - 1e-9) / 10**decimals:.{decimals}f}"
