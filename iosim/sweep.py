"""Sweeps: the same paths at every point of a grid of settings, in parallel, into one table.

>>> result = sweep("vhost-net", ["workload.size=1,1000"], requests=100, workers=1)
>>> result.table.select(["model", "workload.size", "kicks"]).to_pydict()
{'model': ['vhost-net', 'vhost-net'], 'workload.size': [1, 1000], 'kicks': [1.0, 1.0]}
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from iosim.errors import IosimError, unknown
from iosim.files import write_aside
from iosim.host import hosts as host_files
from iosim.host.counters import NAMES as COUNTERS
from iosim.host.hosts import Host
from iosim.host.units import parse_rate_bits, parse_time
from iosim.model import find
from iosim.settings import RunSettings
from iosim.specification import specify, valid_keys
from iosim.sweep_values import MAX_VALUES, Value, Values, plain, shown, values_of
from iosim.sweep_workers import (
    BUSY,
    DROPPED_AT,
    ESTIMATES,
    LOCK_WAIT,
    POLLING,
    TOTALS,
    Row,
    Task,
    in_process,
    in_workers,
)
from iosim.version import __version__
from iosim.window import QUEUES

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

Progress = Callable[[int, int], None]
"""Called with the points that are finished and all there are."""

METADATA: Final = "iosim.sweep"
"""Where in a table's schema metadata the specification stands, as JSON."""
FORMAT: Final = 1
DEFAULT_SEED: Final = RunSettings.model_fields["seed"].default
SAVE_EVERY_S: Final = 60.0
"""Seconds after which finished points are written, should the machine and not the user end the sweep."""
SAVE_PART: Final = 20
"""Writing takes at most this part of the time: a large table is written less often."""

OWN_COLUMNS: Final = {
    "model": "model",
    "host": "host",
    "workload.name": "workload",
    "run.replication": "replication",
    "run.seed": "seed",
}
"""Keys that have a column under another name in every table, varied or not."""
_TIME, _RATE = "_ns", "_bit_per_s"


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Args:
        index: Its place in the order of the grid, from 0.
        values: The value of every varied key, ``model`` and ``host`` always among them.
        settings: All settings by dotted name: the varied ones and those the points have in common.
    """

    index: int
    values: Mapping[str, Value]
    settings: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.values["model"])

    @property
    def host(self) -> str:
        """The host, as it was asked for."""
        return str(self.values["host"])

    def __str__(self) -> str:
        others = [f"{k}={shown(v)}" for k, v in self.values.items() if k not in ("model", "host")]
        host = [] if self.host == host_files.DEFAULT else [f"host={self.host}"]
        return ", ".join([self.model, *host, *others])


@dataclass(frozen=True)
class Grid:
    """The product of the values of all keys, the last key changing fastest.

    Args:
        axes: The values of each key in order; ``model`` and ``host`` are always there, if with one value.
        settings: What all points have in common.
    """

    axes: Mapping[str, Values]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.axes.values())

    def __iter__(self) -> Iterator[Point]:
        for index, values in enumerate(itertools.product(*self.axes.values())):
            point = dict(zip(self.axes, values, strict=True))
            own = {key: value for key, value in point.items() if key not in ("model", "host")}
            yield Point(index, point, {**self.settings, **own})


@dataclass(frozen=True)
class Sweep:
    """What a sweep gave.

    Attributes:
        table: One row for each finished point, in the order of the grid. Times in ns, counts per request,
            CPU times as a fraction of the window; docs/guides/sweeps.md has every column. The sweep's
            specification is in its schema metadata.
    """

    table: pa.Table

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> Sweep:
        """Read a sweep that was written to a file, finished or not.

        Raises:
            IosimError: There is no such file, or it holds no sweep.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(os.fspath(path)).read()
        except FileNotFoundError:
            raise IosimError("there is no such file", str(path)) from None
        except OSError as error:
            raise IosimError(f"cannot be read: {error.strerror or error}", str(path)) from None
        except pa.ArrowException:
            raise IosimError("is no Parquet file", str(path)) from None
        if METADATA.encode() not in (table.schema.metadata or {}):
            raise IosimError("holds no sweep of iosim", str(path))
        return cls(table)

    @cached_property
    def specification(self) -> dict[str, Any]:
        """What the sweep was made from: ``axes``, ``settings``, ``hosts``, ``version``."""
        metadata = self.table.schema.metadata or {}
        if METADATA.encode() not in metadata:
            raise IosimError("this table holds no sweep of iosim")
        document: dict[str, Any] = json.loads(metadata[METADATA.encode()])
        return document

    @cached_property
    def grid(self) -> Grid:
        """The grid, with the points that are not finished."""
        axes = {key: tuple(values) for key, values in self.specification["axes"]}
        return Grid(axes, self.specification["settings"])

    @cached_property
    def points(self) -> list[Point]:
        """The finished points, one for each row of the table."""
        finished = set(self.table["point"].to_pylist())
        return [point for point in self.grid if point.index in finished]

    @property
    def complete(self) -> bool:
        """Whether every point of the grid is in the table."""
        return len(self.table) == len(self.grid)

    @cached_property
    def warnings(self) -> list[str]:
        """One line for each warning of a point, and for each point that could not be run."""
        lines: list[str] = []
        told = self.table.select(["warnings", "error"]).to_pylist()
        for point, row in zip(self.points, told, strict=True):
            lines += [f"{point}: {warning}" for warning in row["warnings"]]
            if row["error"] is not None:
                lines.append(f"{point}: could not be run: {row['error']}")
        return lines

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write the table to a Parquet file (aside, then renamed)."""
        import pyarrow.parquet as pq

        with write_aside(path) as aside:
            pq.write_table(self.table, aside)
        return Path(path)

    def plot(self, x: str | None = None, y: str = "latency_mean_ns") -> Figure:
        """Draw ``y`` and the throughput over a varied key; see `iosim.plot_sweep.plot_sweep`."""
        from iosim.plot_sweep import plot_sweep

        return plot_sweep(self, x, y)

    def __repr__(self) -> str:
        varied = [f"{key} ({len(values)})" for key, values in self.grid.axes.items() if len(values) > 1]
        return f"<Sweep: {len(self.table)} of {len(self.grid)} points, over {', '.join(varied) or 'nothing'}>"


def sweep(
    models: str | Sequence[str] = (),
    vary: Mapping[str, Any] | str | Sequence[str] = (),
    *,
    workload: str | None = None,
    host: str | Host = host_files.DEFAULT,
    requests: int | str | None = None,
    duration: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    replications: int = 1,
    workers: int | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """Run models at every point of a grid.

    All points have the same random numbers (seed and replication), so that what differs between them is not
    noise. The table does not depend on the number of workers.

    Args:
        models: One model or several; none where ``vary`` has the key ``model``.
        vary: The values of each key, ``{"workload.depth": [1, 16]}``, or texts as on the command line,
            ``["workload.depth=1..64*2"]``. A key is a setting, ``model`` or ``host``.
        workload, host, requests, duration, seed, settings: As in `iosim.simulate`, for every point.
        replications: Samples of each point, with ``run.replication`` 0, 1, ...
        workers: Processes; one for each CPU there is by default. With 1, points run in this process.
        out: A Parquet file for the table. Points that are finished when the sweep ends before its time
            (Ctrl-C, an error) are kept in it, and the same sweep with the same file goes on from there.
        overwrite: Begin anew, whatever file is at ``out``.
        progress: Called in this process with the number of finished points and of all.

    Raises:
        IosimError: Something given is unknown or impossible at some point (nothing has been run then), no
            point at all could be run, or ``out`` is the file of something else.

    A point that cannot be run, though nothing in it is wrong, is a row without values and its ``error``.
    """
    fixed = _fixed(workload, requests, duration, seed, settings)
    grid = _grid(models, vary, host, fixed, replications)
    names = [str(name) for name in grid.axes["host"]]
    loaded = {host.name: host} if isinstance(host, Host) else {name: host_files.load(name) for name in names}
    _check(grid, loaded)
    many = _workers(workers)
    store = _Store(grid, loaded, out)
    if out is not None:
        store.open(overwrite)
    return _run(store, loaded, many, progress)


def _run(store: _Store, loaded: Mapping[str, Host], workers: int, progress: Progress | None) -> Sweep:
    report = progress or (lambda *_: None)
    total = len(store.grid)
    report(len(store.rows), total)
    todo = total - len(store.rows)
    tasks = (_task(point) for point in store.grid if point.index not in store.rows)
    many = min(workers, todo)
    results = in_workers(tasks, loaded, many) if many > 1 else in_process(tasks, loaded)
    try:
        with contextlib.closing(results):
            for task, row in results:
                store.add(task, row)
                report(len(store.rows), total)
    except BaseException:
        # Ctrl-C above all: hours of finished points are not thrown away.
        store.save()
        raise
    store.require_some()
    store.save()
    return Sweep(store.table())


def _task(point: Point) -> Task:
    return Task(point.index, point.model, point.host, dict(point.settings))


# -- the grid ------------------------------------------------------------------------------------------


def _fixed(
    workload: str | None,
    requests: int | str | None,
    duration: str | None,
    seed: int | None,
    settings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What all points have in common, by dotted name."""
    fixed = dict(settings or {})
    named = {"workload.name": workload, "run.requests": requests, "run.duration": duration, "run.seed": seed}
    fixed.update({key: value for key, value in named.items() if value is not None})
    # A setting of a model may be None for "not given"; all others go into the file as they are.
    return {key: None if value is None else plain(key, value) for key, value in fixed.items()}


def _grid(
    models: str | Sequence[str],
    vary: Mapping[str, Any] | str | Sequence[str],
    host: str | Host,
    fixed: Mapping[str, Any],
    replications: int,
) -> Grid:
    axes = values_of(vary)
    given = (models,) if isinstance(models, str) else tuple(models)
    if "model" in axes and given:
        raise IosimError("is varied, and models are given besides; leave one of them out", "model")
    if not given and "model" not in axes:
        raise IosimError("no model is given; name one, or vary it, as model=e1000,virtio-net,vhost-net")
    if "model" not in axes:
        axes = {**values_of({"model": given}), **axes}
    if "host" not in axes:
        axes["host"] = (host.name if isinstance(host, Host) else host,)
    elif host != host_files.DEFAULT:
        raise IosimError("is varied, and given besides; leave one of them out", "host")
    whole = isinstance(replications, int) and not isinstance(replications, bool)
    if not whole or not 1 <= replications <= MAX_VALUES:
        message = f"must be a whole number from 1 to {MAX_VALUES}, not {replications!r}"
        raise IosimError(message, "replications")
    if replications > 1:
        if "run.replication" in (*axes, *fixed):
            raise IosimError("is given, and replications besides; leave one of them out", "run.replication")
        axes["run.replication"] = tuple(range(replications))
    _check_keys(axes, fixed)
    grid = Grid(axes, dict(fixed))
    points = math.prod(len(values) for values in axes.values())
    if points > MAX_VALUES:
        raise IosimError(f"the grid has {points} points; {MAX_VALUES} are the most that can be run")
    return grid


def _check_keys(axes: Mapping[str, Values], fixed: Mapping[str, Any]) -> None:
    """Refuse keys that no model of the sweep knows, before a point's settings are looked at."""
    valid = {"model", "host", "workload"}
    for model in axes["model"]:
        valid.update(valid_keys(find(str(model))))
    for key in axes:
        if key not in valid:
            raise unknown("key to vary", key, valid)
        if key in fixed:
            raise IosimError("is varied, and set besides; leave one of them out", key)


def _check(grid: Grid, loaded: Mapping[str, Host]) -> None:
    """Specify every point: one that makes no sense is not to be found out after an hour."""
    for point in grid:
        try:
            specify(point.model, host=loaded[point.host], settings=point.settings)
        except IosimError as error:
            place = "" if len(grid) == 1 else f" (at the point {point})"
            raise IosimError(f"{error}{place}") from None


def _workers(workers: int | None) -> int:
    if workers is None:
        # The CPUs this process may use, which in a container or under a batch system are not all.
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= 4096:
        raise IosimError(f"must be a whole number from 1 to 4096, not {workers!r}", "workers")
    return workers


def _document(grid: Grid, loaded: Mapping[str, Host]) -> dict[str, Any]:
    """The specification: all that the table's values depend on."""
    return {
        "format": FORMAT,
        "version": __version__,
        "axes": [[key, list(values)] for key, values in grid.axes.items()],
        "settings": dict(grid.settings),
        "seed": None if "run.seed" in grid.axes else grid.settings.get("run.seed", DEFAULT_SEED),
        "hosts": {
            name: {"sources": host.describe(), "digest": _digest(host)}
            for name, host in sorted(loaded.items())
        },
    }


def _digest(host: Host) -> str:
    """A fingerprint of a host's numbers: a file that was edited in between is another host."""
    content = repr((host.name, host.costs, sorted(host.properties.items())))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


# -- the table -----------------------------------------------------------------------------------------


class _Store:
    """The finished points, and the file they are kept in."""

    def __init__(self, grid: Grid, loaded: Mapping[str, Host], out: str | os.PathLike[str] | None) -> None:
        self.grid = grid
        self.out = out
        self.document = _document(grid, loaded)
        self.rows: dict[int, Row] = {}
        self.saved = time.monotonic()
        self.pause = SAVE_EVERY_S

    def add(self, task: Task, row: Row) -> None:
        self.rows[task.index] = row
        if self.out is not None and time.monotonic() - self.saved > self.pause:
            self.save()

    def open(self, overwrite: bool) -> None:
        """Find out now whether the file can be written, and take the points it has."""
        assert self.out is not None
        if Path(self.out).exists() and not overwrite:
            self._resume(self.out)
        with contextlib.suppress(_ProbeError), write_aside(self.out):
            raise _ProbeError

    def _resume(self, out: str | os.PathLike[str]) -> None:
        hint = "name another file, or overwrite it"
        try:
            earlier = Sweep.from_parquet(out)
            differs = [key for key, value in self.document.items() if earlier.specification.get(key) != value]
        except IosimError as error:
            raise IosimError(f"{error}; {hint}") from None
        if differs:
            raise IosimError(f"holds another sweep (with other {', '.join(differs)}); {hint}", str(out))
        # A point that could not be run is tried again: the reason may lie in a model that has been mended.
        self.rows = {row["point"]: row for row in earlier.table.to_pylist() if row["error"] is None}

    def save(self) -> None:
        if self.out is None or not self.rows:
            return
        begun = time.monotonic()
        Sweep(self.table()).to_parquet(self.out)
        self.saved = time.monotonic()
        self.pause = max(SAVE_EVERY_S, SAVE_PART * (self.saved - begun))

    def require_some(self) -> None:
        """Where no point could be run there is no table, but a reason."""
        if any(row["error"] is None for row in self.rows.values()):
            return
        first = self.rows[min(self.rows)]["error"]
        many = len(self.rows)
        raise IosimError(first if many == 1 else f"none of {many} points could be run; the first: {first}")

    def table(self) -> pa.Table:
        import pyarrow as pa

        points = [point for point in self.grid if point.index in self.rows]
        rows = [self.rows[point.index] for point in points]
        columns: dict[str, Any] = {
            "point": pa.array([point.index for point in points], pa.int64()),
            "model": pa.array([point.model for point in points], pa.string()),
            "host": pa.array([point.host for point in points], pa.string()),
            "workload": pa.array([row["workload"] for row in rows], pa.string()),
            "replication": pa.array([row["replication"] for row in rows], pa.int64()),
            "seed": pa.array([row["seed"] for row in rows], pa.int64()),
        }
        for key, values in self.grid.axes.items():
            if key not in OWN_COLUMNS:
                columns.update(_axis(key, values, [point.values[key] for point in points]))
        for name, kind in _measured(rows).items():
            columns[name] = pa.array([row.get(name) for row in rows], kind)
        return pa.table(columns).replace_schema_metadata({METADATA: json.dumps(self.document)})


class _ProbeError(Exception):
    """Ends an attempt to write that is not to succeed."""


def column(key: str) -> str:
    """Return the name of the column of a varied key."""
    return OWN_COLUMNS.get(key, "workload" if key == "workload" else key)


def number_column(key: str, values: Iterable[Value]) -> str | None:
    """Return the column that has a key's values as numbers, or None for names, on and off.

    Times are in ns, in ``KEY_ns`` beside the text; bit rates in bit/s, in ``KEY_bit_per_s``.
    """
    items = list(values)
    if any(isinstance(value, bool) for value in items):
        return None
    if not any(isinstance(value, str) for value in items):
        return column(key)
    for suffix, parse in _PARSERS.items():
        with contextlib.suppress(IosimError):
            for value in items:
                parse(value)
            return key + suffix
    return None


def axis_numbers(key: str, axis: Values, values: Sequence[Value]) -> list[float]:
    """Return some of a key's values as the numbers in its `number_column`, which all its values decide."""
    numbers = number_column(key, axis)
    parse = float if numbers == column(key) else _PARSERS[str(numbers).removeprefix(key)]
    return [float(parse(value)) for value in values]


_PARSERS: Final[Mapping[str, Callable[[Any], float]]] = {
    _TIME: lambda value: parse_time(value) / 1000,
    _RATE: parse_rate_bits,
}


def _axis(key: str, axis: Values, values: Sequence[Value]) -> dict[str, Any]:
    """The columns of a varied key: typed by the whole axis, so that a part of the points has the same."""
    import pyarrow as pa

    kinds = {type(value) for value in axis}
    if kinds == {bool}:
        return {key: pa.array(values, pa.bool_())}
    if kinds == {int}:
        return {key: pa.array(values, pa.int64())}
    if kinds <= {int, float}:
        return {key: pa.array([float(value) for value in values], pa.float64())}
    columns = {key: pa.array([shown(value) for value in values], pa.string())}
    numbers = number_column(key, axis)
    if numbers is not None:
        columns[numbers] = pa.array(axis_numbers(key, axis, values), pa.float64())
    return columns


def _measured(rows: Iterable[Row]) -> dict[str, Any]:
    """The measured columns and their types; threads differ between models, so theirs are sorted."""
    import pyarrow as pa

    real, whole = pa.float64(), pa.int64()
    kinds: dict[str, Any] = {}
    for name in ESTIMATES:
        kinds |= {name: real, f"{name}_low": real, f"{name}_high": real}
        if name == "latency_p99_9_ns":
            kinds["latency_max_ns"] = real
    kinds |= {"bits_per_s": real, "exits": real}
    kinds |= {name: whole if name.startswith(TOTALS) else real for name in COUNTERS}
    kinds |= {"context_switches": real, "cpu_cores_busy": real}
    kinds |= dict.fromkeys(sorted({name for row in rows for name in row if name.startswith(BUSY)}), real)
    for prefix in (POLLING, LOCK_WAIT):
        kinds |= dict.fromkeys(sorted({name for row in rows for name in row if name.startswith(prefix)}), real)
    kinds |= {DROPPED_AT + name: whole for name in QUEUES}
    kinds |= {"dropped": whole, "requests": whole, "duration_ns": real}
    # "element" is what Parquet calls it: a table that was read is the table that was written.
    return kinds | {"warnings": pa.list_(pa.field("element", pa.string())), "error": pa.string()}
