"""The figure of a sweep: latency and throughput over a varied key, a line for each value of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt

from iosim.errors import IosimError, unknown
from iosim.statistics import Estimate
from iosim.sweep import Point, Sweep, axis_numbers, number_column
from iosim.sweep_values import Value, shown
from iosim.sweep_workers import ESTIMATES

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

THROUGHPUT: Final = "throughput_per_s"
MEAN, TAIL = "latency_mean_ns", "latency_p99_ns"
# Dark to light by turns, so that neighbours differ in grey as well (after Okabe and Ito, 2008).
COLOURS: Final = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#8c6d00")
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
DASHES: Final = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
HATCHES: Final = ("", "//", "..", "xx", "\\\\", "++", "oo")
MOST_LINES: Final = len(MARKERS) * len(DASHES)
DECADES: Final = 2
WIDE_LATENCY, WIDE_RATE = 15.0, 100.0
"""Largest over smallest value from which on an axis is logarithmic: below, the eye compares lengths."""
MOST_TICKS: Final = 12


@dataclass(frozen=True)
class _Line:
    """One line: y at each x, NaN where there is no point; its interval and its tail likewise. Shape (x,)."""

    label: str
    y: Floats
    low: Floats
    high: Floats
    tail: Floats
    rate: Floats
    rate_low: Floats
    rate_high: Floats


@dataclass(frozen=True)
class _Across:
    """The x axis: the key, its values as text and, unless they are names, as numbers in a unit."""

    key: str
    names: list[str]
    numbers: Floats | None
    unit: str

    @property
    def log(self) -> bool:
        """Whether values are spread by factors rather than by steps, or over more than two decades."""
        x = self.numbers
        if x is None or len(x) < 3 or x.min() <= 0:
            return False
        ordered = np.sort(x)
        steps = ordered[1:] / ordered[:-1]
        return bool(ordered[-1] / ordered[0] > 10**DECADES or np.allclose(steps, steps[0], rtol=1e-6))


def plot_sweep(sweep: Sweep | pa.Table, x: str | None = None, y: str = MEAN) -> Figure:
    """Draw a sweep: ``y`` over a varied key on the left, the throughput on the right.

    There is a line for each combination of the other keys that vary (a model, a second setting);
    replications are averaged. Bars are 95 % confidence intervals: each point's own, or between replications
    where there are three or more. With the mean latency the 99th percentile is drawn too, thin and hollow. An
    axis is logarithmic where its values are spread by factors. Names on the x axis make grouped bars.

    Args:
        sweep: A sweep, or its table.
        x: The key along the x axis; by default the first that varies by numbers, else the first that varies.
        y: The column on the left.

    Returns:
        A matplotlib figure that belongs to no window: show it in a notebook, or ``savefig`` it.

    Raises:
        IosimError: No such key or column, one that has no numbers, or an empty table.
    """
    from iosim.plot import PathFigure

    given = sweep if isinstance(sweep, Sweep) else Sweep(sweep)
    _check_column(given, y)
    across = _across(given, x)
    lines = _lines(given, across.key, y)
    hidden = len(lines) - MOST_LINES
    lines = lines[:MOST_LINES]
    figure = PathFigure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw = _draw_bars if across.numbers is None else _draw_lines
    text, scale = _y_label(y, lines)
    latencies = [(line.label, line.y, line.low, line.high, line.tail) for line in lines]
    draw(left, across, latencies, scale)
    none = np.full(len(across.names), np.nan)
    rates = [(line.label, line.rate, line.rate_low, line.rate_high, none) for line in lines]
    draw(right, across, rates, 1.0)
    if across.numbers is not None:
        _scale_y(left, latencies, WIDE_LATENCY)
        _scale_y(right, rates, WIDE_RATE)
    for axes, label in ((left, text), (right, "throughput (1/s)")):
        axes.set_ylabel(label)
        _finish(axes, across)
        _plain_thousands(axes)
    if y == MEAN:
        drawn = "mean (filled) and p99 (hollow)" if across.numbers is not None else "mean (bar), p99 (line)"
        left.set_title(drawn, fontsize=10)
    _legend(figure, left, lines, hidden)
    figure.suptitle(_title(given, across), fontsize=10)
    return figure


def _check_column(sweep: Sweep, y: str) -> None:
    import pyarrow as pa

    table = sweep.table
    if len(table) == 0:
        raise IosimError("there is nothing to draw: no point is finished")
    numeric = [f.name for f in table.schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
    if y not in numeric:
        if y in table.schema.names:
            raise IosimError(f"the column '{y}' has no numbers to draw")
        raise unknown("column", y, numeric)


# -- what is drawn ------------------------------------------------------------------------------------------


def _varying(sweep: Sweep) -> dict[str, tuple[Value, ...]]:
    """The keys that have more than one value, without replications, which are averaged."""
    return {k: v for k, v in sweep.grid.axes.items() if len(v) > 1 and k != "run.replication"}


def _across(sweep: Sweep, key: str | None) -> _Across:
    axes, varying = sweep.grid.axes, _varying(sweep)
    if key == "workload":
        key = "workload.name"
    if key is None:
        by_numbers = [k for k, v in varying.items() if number_column(k, v) is not None]
        key = (by_numbers or list(varying) or ["model"])[0]
    if key not in axes:
        raise unknown("varied key", key, axes)
    values = axes[key]
    numbers, unit = _as_numbers(sweep, key)
    return _Across(key, [shown(value) for value in values], numbers, unit)


def _as_numbers(sweep: Sweep, key: str) -> tuple[Floats | None, str]:
    """The values of a key as numbers in a unit that suits them, or None where they are names."""
    values = sweep.grid.axes[key]
    column = number_column(key, values)
    if column is None:
        return None, ""
    numbers = np.array(axis_numbers(key, values, values))
    if column.endswith("_ns") and column != key:
        scale, unit = _time_unit(numbers)
        return numbers / scale, unit
    if column != key and column.endswith("_bit_per_s"):
        return numbers / 1e9, "Gbit/s"
    return numbers, {"workload.size": "bytes", "workload.rate": "1/s"}.get(key, "")


def _time_unit(ns: Floats) -> tuple[float, str]:
    """The unit that suits times in ns: the largest that leaves the largest of them at 1 or more."""
    largest = float(np.nanmax(ns)) if np.isfinite(ns).any() else 0.0
    for limit, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if largest >= limit:
            return limit, unit
    return 1.0, "ns"


def _lines(sweep: Sweep, x: str, y: str) -> list[_Line]:
    others = [key for key in _varying(sweep) if key != x]
    places = {_same(value): i for i, value in enumerate(sweep.grid.axes[x])}
    cells: dict[tuple[Any, ...], dict[int, list[int]]] = {}
    for row, point in enumerate(sweep.points):
        group = tuple(point.values[key] for key in others)
        cells.setdefault(group, {}).setdefault(places[_same(point.values[x])], []).append(row)
    columns = _columns(sweep.table, y)
    return [
        _line(_label(others, group) or _only(sweep.points[0]), members, columns, y, len(places))
        for group, members in cells.items()
    ]


def _same(value: Value) -> tuple[bool, Value]:
    return isinstance(value, bool), value  # True == 1 in Python


def _only(point: Point) -> str:
    return point.model


def _label(keys: Sequence[str], group: Sequence[Value]) -> str:
    parts = []
    for key, value in zip(keys, group, strict=True):
        name = key.rpartition(".")[2]
        parts.append(shown(value) if key in ("model", "host", "workload.name") else f"{name} {shown(value)}")
    return ", ".join(parts)


def _columns(table: pa.Table, y: str) -> dict[str, Floats]:
    wanted = {y, THROUGHPUT, TAIL}
    for name in (y, THROUGHPUT):
        if name in ESTIMATES:
            wanted |= {f"{name}_low", f"{name}_high"}
    return {
        name: np.array([math.nan if v is None else v for v in table[name].to_pylist()], dtype=np.float64)
        for name in wanted
    }


def _line(label: str, members: Mapping[int, list[int]], columns: dict[str, Floats], y: str, n: int) -> _Line:
    line = _Line(label, *(np.full(n, np.nan) for _ in range(7)))
    for place, rows in members.items():
        e = _average(columns, y, rows)
        line.y[place], line.low[place], line.high[place] = e
        rate = _average(columns, THROUGHPUT, rows)
        line.rate[place], line.rate_low[place], line.rate_high[place] = rate
        if y == MEAN:
            line.tail[place] = float(np.mean(columns[TAIL][rows]))
    return line


def _average(columns: dict[str, Floats], name: str, rows: list[int]) -> tuple[float, float, float]:
    """The mean over replications with its interval; of a single run, its own interval. NaN for none."""
    values = columns[name][rows]
    value = float(np.mean(values))
    if len(rows) == 1 and f"{name}_low" in columns:
        return value, float(columns[f"{name}_low"][rows[0]]), float(columns[f"{name}_high"][rows[0]])
    if len(rows) < 3 or not np.isfinite(value):
        return value, math.nan, math.nan
    e = _between(values)
    return value, cast(float, e.low), cast(float, e.high)


def _between(values: Floats) -> Estimate:
    """Student's t interval on independent replications."""
    from scipy import special

    n = len(values)
    half = float(special.stdtrit(n - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(n)
    value = float(values.mean())
    return Estimate(value, value - half, value + half, 0.95)


# -- how it is drawn ----------------------------------------------------------------------------------------

_Series = list[tuple[str, Floats, Floats, Floats, Floats]]


def _draw_lines(axes: Axes, across: _Across, series: _Series, scale: float) -> None:
    x = cast(Floats, across.numbers)
    order = np.argsort(x)
    for i, (label, *values) in enumerate(series):
        y, low, high, tail = (v[order] / scale for v in values)
        colour, marker, dash = _style(i)
        errors = _errors(y, low, high)
        # Finer from line to line: of lines on top of each other all are seen.
        fine = i / max(1, len(series) - 1)
        axes.errorbar(
            x[order], y, errors, color=colour, marker=marker, ls=dash, ms=8 - 3 * fine, lw=2.4 - 1.2 * fine,
            capsize=3, label=label,
        )  # fmt: skip
        if np.isfinite(tail).any():
            axes.plot(x[order], tail, color=colour, marker=marker, ls=dash, ms=4.5, lw=0.7, mfc="white")
    if across.log:
        axes.set_xscale("log")


def _draw_bars(axes: Axes, across: _Across, series: _Series, scale: float) -> None:
    width = 0.8 / len(series)
    places = np.arange(len(across.names), dtype=np.float64)
    for i, (label, *values) in enumerate(series):
        y, low, high, tail = (v / scale for v in values)
        centre = places + (i - (len(series) - 1) / 2) * width
        colour, _, _ = _style(i + 1)
        axes.bar(
            centre, y, width * 0.94, color=_light(colour), edgecolor="black", lw=0.8,
            hatch=HATCHES[i % len(HATCHES)], yerr=_errors(y, low, high), capsize=3, label=label,
        )  # fmt: skip
        axes.hlines(tail, centre - width * 0.47, centre + width * 0.47, color="black", lw=2)


def _light(colour: str) -> tuple[float, float, float]:
    """A colour mixed with white: hatches and error bars stand out against it."""
    from matplotlib.colors import to_rgb

    r, g, b = to_rgb(colour)
    return (0.55 * r + 0.45, 0.55 * g + 0.45, 0.55 * b + 0.45)


def _style(i: int) -> tuple[str, str, Any]:
    return COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)]


def _errors(y: Floats, low: Floats, high: Floats) -> Floats:
    """Lengths of the bars below and above; none where an interval has no such end."""
    lengths: Floats = np.clip(np.nan_to_num(np.array([y - low, high - y])), 0, None)
    return lengths


def _scale_y(axes: Axes, series: _Series, limit: float) -> None:
    """A logarithmic axis where values differ so much that the small ones would lie on it; else one from 0."""
    from matplotlib.ticker import LogLocator

    values = np.concatenate([v for _, y, _, _, tail in series for v in (y, tail)])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() / values.min() > limit:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axes.set_ylim(bottom=0)


def _finish(axes: Axes, across: _Across) -> None:
    axes.grid(True, axis="y", lw=0.4, color="0.8")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{across.key} ({across.unit})" if across.unit else across.key)
    if across.numbers is None:
        rotate = max(map(len, across.names)) * len(across.names) > 60
        turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if rotate else {}
        axes.set_xticks(range(len(across.names)), across.names, **turned)
        if len(across.names) < 3:
            axes.set_xlim(-1, len(across.names))
    elif len(across.numbers) <= MOST_TICKS and (across.log or len(across.numbers) <= 6):
        from matplotlib.ticker import NullLocator

        axes.set_xticks(list(across.numbers), [_short(v) for v in across.numbers])
        axes.xaxis.set_minor_locator(NullLocator())


def _short(value: float) -> str:
    """A number for an axis: ``4``, ``0.5``, ``20k``."""
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit and value % (limit / 10) == 0:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def _plain_thousands(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.7g}".replace(",", " ")))


def _y_label(y: str, lines: Sequence[_Line]) -> tuple[str, float]:
    if y.endswith("_ns"):
        scale, unit = _time_unit(np.concatenate([line.y for line in lines]) / 10)
        name = "latency" if y == MEAN else y.removesuffix("_ns").replace("p99_9", "p99.9").replace("_", " ")
        return f"{name} ({unit})", scale
    if y.endswith("_per_s"):
        return f"{y.removesuffix('_per_s')} ({'bit/s' if y.startswith('bits') else '1/s'})", 1.0
    if y.startswith("cpu_"):
        return f"{y.replace('_', ' ').replace('.', ' ')} (CPUs)", 1.0
    return y, 1.0


def _legend(figure: Figure, axes: Axes, lines: Sequence[_Line], hidden: int) -> None:
    if len(lines) < 2:
        return
    handles, labels = axes.get_legend_handles_labels()
    title = f"{hidden} more are not drawn" if hidden > 0 else None
    columns = min(4, len(lines)) if len(lines) <= 8 else 1
    figure.legend(
        handles, labels, loc="outside lower center" if len(lines) <= 8 else "outside right upper",
        ncols=columns, frameon=False, title=title, handlelength=3.5,
    )  # fmt: skip


def _title(sweep: Sweep, across: _Across) -> str:
    """What all points have in common; of a host, how well founded its costs are, as every output says."""
    table, varying = sweep.table, _varying(sweep)
    parts = []
    for key, column in (("model", "model"), ("workload.name", "workload")):
        if key not in varying and across.key != key:
            parts.append(str(table[column][0].as_py()))
    if "host" not in varying:
        parts += [f"host {host['sources']}" for host in sweep.specification["hosts"].values()]
    replications = len(sweep.grid.axes.get("run.replication", ()))
    if replications > 1:
        parts.append(f"{replications} replications")
    if not sweep.complete:
        parts.append(f"{len(sweep.table)} of {len(sweep.grid)} points")
    return "; ".join(parts)
