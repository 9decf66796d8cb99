"""Figures: paths side by side, and one path in full.

Everything is drawn with matplotlib's objects, never with pyplot: no global state, no window, no backend to
choose. A figure is laid out in inches before anything is drawn, so that a label is written into a bar only where
it fits.

Colour is the layer and gets lighter from the guest outwards, so that the order survives greyscale; hatching
is waiting. Small stages go unnamed in the bar and are counted in the table below it, which is the legend too.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from iosim.errors import IosimError
from iosim.files import write_aside
from iosim.kept import PERCENTILES, ordered
from iosim.result import Result, StageTime, number_text, time_text
from iosim.statistics import Estimate

if TYPE_CHECKING:
    from iosim.compare import Comparison

FORMATS: Final = ("png", "pdf", "svg")
COLOURS: Final = {
    "guest": "#1d3c70",
    "exit": "#a4263c",
    "interrupt": "#8a63b8",
    "host kernel": "#3d9c8c",
    "QEMU": "#e6913f",
    "back end": "#c3cc66",
    "device": "#cbd6df",
    "client": "#efefed",
}
"""The layers from the guest outwards, each lighter than the one before (CIE L* 25 to 94)."""
OTHER: Final = "#b0a090"
HATCH: Final = "////"
UNEQUAL: Final = 1.5
EXTREME: Final = 5.0
"""From this ratio of the longest mean latency to the shortest on, the bars are drawn again, each as 100 %, so
that the stages of the shorter ones can be read: `UNEQUAL` for up to four paths, `EXTREME` for more."""
WIDTH: Final = 13.0
LABELS: Final = 1.75
BARS: Final = 7.7
TEXT: Final = "#222222"
DIM: Final = "#555555"
POINT: Final = 1 / 72


class PathFigure(Figure):
    """A matplotlib figure that a notebook shows when it is a cell's value, whichever backend is active."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=100)
        return out.getvalue()


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, PDF or SVG, by the path's suffix; the file is written whole or not at all.

    The same figure gives the same bytes: no date is written into the file.

    Raises:
        IosimError: The suffix is another one, or the file cannot be written.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise IosimError(f"a figure cannot be written as '.{kind}'; name it {known}", str(path))
    metadata: dict[str, Any] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    rc = {"svg.hashsalt": "iosim", "pdf.fonttype": 42}
    with write_aside(path) as aside, matplotlib.rc_context(rc):  # type: ignore[arg-type]
        figure.savefig(aside, format=kind, dpi=150, metadata=metadata)
    return Path(path)


# -- the comparison ------------------------------------------------------------------------------------------


def plot_comparison(comparison: Comparison) -> Figure:
    """Draw each path's mean latency by stage as a stacked bar, its throughput beside it, its layers below.

    A bar reads from left to right as the request's life. Where one path takes much
    longer than another, the bars come a second time, each path as 100 %.

    Args:
        comparison: One path or more.

    Returns:
        The figure. Every segment's `gid` is ``stage/<path's number>/<stage>``, every throughput bar's
        ``throughput/<path's number>``.

    Example:
        >>> import iosim
        >>> figure = plot_comparison(iosim.compare("e1000", "vhost-net", requests=64))
        >>> figure.axes[0].get_xlabel()
        'mean latency (µs)'
    """
    results, labels = comparison.results, comparison.labels
    means = [r.latency["mean"] for r in results]
    stages = [r.breakdown() for r in results]
    scale, unit = _unit(max(e.value for e in means))
    totals = _by_layer(stages)
    longest, shortest = max(e.value for e in means), min(e.value for e in means)
    again = longest > (UNEQUAL if len(results) <= 4 else EXTREME) * shortest
    pitch = 1.15 if len(results) <= 3 else 1.0
    bars = pitch * len(results)
    foot = _footer(results, comparison.warnings)
    heads = [_wrapped(label, 18, 3) for label in labels]
    head = max(text.count("\n") for text in heads) + 1
    table = 0.34 + 0.15 * head + 0.19 * (len(totals) + 2)
    height = 0.7 + bars + 0.6 + (bars + 0.95 if again else 0) + table + 0.15 + 0.17 * len(foot) + 0.1
    with _page(WIDTH, height) as page:
        page.text(0.2, 0.3, _title(results[0]), size=13, weight="bold")
        page.text(LABELS, 0.62, "from left to right: a request's life, mean of each stage", size=9, colour=DIM)
        page.text(LABELS + BARS + 0.45, 0.62, "throughput", size=9, colour=DIM)
        axes = page.axes(LABELS, 0.7, BARS, bars)
        _names(axes, labels)
        _latency_bars(axes, stages, means, comparison, scale, unit)
        rates = page.axes(LABELS + BARS + 0.45, 0.7, WIDTH - LABELS - BARS - 0.8, bars)
        _throughput_bars(rates, comparison)
        top = 0.7 + bars + 0.6
        if again:
            page.text(LABELS, top + 0.27, "the same stages, each path's mean latency as 100 %", size=9, colour=DIM)
            shares = page.axes(LABELS, top + 0.35, BARS, bars)
            _names(shares, labels)
            for i, (row, e) in enumerate(zip(stages, means, strict=True)):
                _stack(shares, i, row, 100 / e.value, scale, unit, "share")
            shares.set_xlim(0, 100)
            shares.set_xlabel("share of the path's mean latency (%)", fontsize=9)
            top += bars + 0.95
        _layer_table(page, top, heads, head, totals, stages, means, scale, unit)
        for i, (line, colour) in enumerate(foot):
            page.text(0.2, top + table + 0.25 + 0.17 * i, line, size=8, colour=colour)
    return page.figure


def _latency_bars(
    axes: Axes,
    stages: Sequence[Sequence[StageTime]],
    means: Sequence[Estimate],
    comparison: Comparison,
    scale: float,
    unit: str,
) -> None:
    notes = []
    for i, (e, r) in enumerate(zip(means, comparison.results, strict=True)):
        lines = [(time_text(e), 9.0, "bold", TEXT)]
        if i:
            lines.append((f"×{_short(comparison.ratios[i]['latency_mean'].value)}", 9.0, "normal", TEXT))
        if r.measured >= 100:
            lines.append((f"p99 {time_text(_bare(r.latency['p99']))}", 8.0, "normal", DIM))
        notes.append(lines)
    ends = [_end(e) * scale for e in means]
    room = max(_extent(text, size)[0] for lines in notes for text, size, _, _ in lines) + 18 * POINT
    right = max(ends) * BARS / (BARS - room)
    axes.set_xlim(0, right)
    for i, (row, e) in enumerate(zip(stages, means, strict=True)):
        _stack(axes, i, row, scale, scale, unit, "stage")
        _interval(axes, e, i + 0.44, scale)  # below the bar, where it hides no label
        _beside(axes, ends[i], i, notes[i])
    axes.set_xlabel(f"mean latency ({unit})", fontsize=9)


def _throughput_bars(axes: Axes, comparison: Comparison) -> None:
    rates = [r.throughput for r in comparison.results]
    notes = []
    for i, e in enumerate(rates):
        lines = [(number_text(e), 9.0, "bold", TEXT)]
        if i:
            lines.append((f"×{_short(comparison.ratios[i]['throughput'].value)}", 9.0, "normal", TEXT))
        notes.append(lines)
    width = axes.get_position().width * WIDTH
    room = max(_extent(text, size)[0] for lines in notes for text, size, _, _ in lines) + 18 * POINT
    axes.set_xlim(0, max(max(_end(e) for e in rates), 1e-9) * width / max(width - room, 0.3 * width))
    for i, e in enumerate(rates):
        (bar,) = axes.barh(i, e.value, height=0.5, color="#6b7480")
        bar.set_gid(f"throughput/{i}")
        _interval(axes, e, i, 1.0)
        _beside(axes, _end(e), i, notes[i])
    axes.set_yticks([])
    axes.set_ylim(len(rates) - 0.5, -0.5)
    _frame(axes)
    axes.xaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x:,.0f}".replace(",", "\u2009") if x >= 10 else f"{x:g}")
    )
    axes.set_xlabel("throughput (requests/s)", fontsize=9)


def _layer_table(
    page: _Page,
    top: float,
    heads: Sequence[str],
    head: int,
    totals: dict[str, list[float]],
    stages: Sequence[Sequence[StageTime]],
    means: Sequence[Estimate],
    scale: float,
    unit: str,
) -> None:
    """The legend, with numbers: what each layer takes in each path, and what of it is waiting."""
    first = LABELS + 1.25
    column = min(1.75, (WIDTH - first - 0.2) / len(heads))
    page.text(LABELS, top + 0.2, f"mean time by layer ({unit})", size=9, weight="bold")
    y = top + 0.24 + 0.15 * head
    for i, text in enumerate(heads):
        page.text(first + column * (i + 1) - 0.15, y, text, size=8.5, align="right", weight="bold")
    waits = [sum(s.mean.value for s in row if _waits(s)) for row in stages]
    rows = [(layer, _colour(layer), "", values, "normal") for layer, values in totals.items()]
    rows.append(("of it waiting", "white", HATCH, waits, "normal"))
    rows.append(("mean latency", "", "", [e.value for e in means], "bold"))
    for layer, colour, hatch, values, weight in rows:
        y += 0.19
        if colour:
            page.swatch(LABELS, y, colour, hatch)
        page.text(LABELS + 0.38, y, layer, size=8.5, weight=weight)
        for i, value in enumerate(values):
            text = _short(value * scale) if value else "–"
            page.text(first + column * (i + 1) - 0.15, y, text, size=8.5, align="right", weight=weight)


# -- one run -------------------------------------------------------------------------------------------------


def plot_run(result: Result) -> Figure:
    """Draw one path: the bar of its mean latency, every stage at its place, and the latency's distribution.

    The distribution is drawn as the fraction of requests that took longer, on a logarithmic axis, so that the
    tail shows; percentiles that the run has requests for are marked, with their intervals.

    Returns:
        The figure. Segments' `gid` is ``stage/0/<stage>``, the single bars' ``step/<stage>``.
    """
    stages, mean = result.breakdown(), result.latency["mean"]
    scale, unit = _unit(mean.value)
    layers = list(_by_layer([stages]))
    foot = _footer([result], result.warnings)
    left, width, gap = 2.75, 4.95, 0.95
    rows = len(stages) + 2
    bars = max(0.235 * rows, 3.0)
    height = 0.85 + bars + 0.6 + 0.3 + 0.17 * len(foot) + 0.15
    with _page(WIDTH, height) as page:
        page.text(0.2, 0.3, f"{result.specification.model.name} · {_title(result)}", size=13, weight="bold")
        x = 0.2
        for layer in layers:
            page.swatch(x, 0.68, _colour(layer), "")
            page.text(x + 0.36, 0.68, layer, size=8.5)
            x += 0.36 + _extent(layer, 8.5)[0] + 0.2
        page.swatch(x, 0.68, "white", HATCH)
        page.text(x + 0.36, 0.68, "waiting", size=8.5)
        axes = page.axes(left, 0.85, width, bars)
        ends = [_end(mean) * scale]
        start = 0.0
        # The uppermost bar takes two rows.
        for i, s in enumerate(stages):
            length = s.mean.value * scale
            (bar,) = axes.barh(i + 2, length, left=start, height=0.72, **_look(s))
            bar.set_gid(f"step/{s.name}")
            edge = Rectangle((start, i + 1.64), length, 0.72, fill=False, edgecolor="#444444", linewidth=0.4)
            axes.add_patch(edge)
            text = f"{_short(length)} {unit}" if length else "–"
            axes.text(start + length, i + 2, "  " + text, fontsize=8, va="center", color=TEXT if length else DIM)
            label = axes.text(0, i + 2, s.name + "  ", fontsize=8, va="center", ha="right", parse_math=False)
            label.set_color(TEXT if length else DIM)
            if start > 0:
                axes.plot([start, start], [i + 1.36, i + 2.36], color="#999999", linewidth=0.5, zorder=0)
            start += length
        axes.text(0, 0.4, "mean latency  ", fontsize=9, weight="bold", va="center", ha="right")
        note = time_text(mean)
        room = _extent(note, 9)[0] + 18 * POINT
        axes.set_xlim(0, max(ends) * width / (width - room))
        axes.set_ylim(rows - 0.4, -0.5)
        _stack(axes, 0.4, stages, scale, scale, unit, "stage", path=0, height=1.2)
        _interval(axes, mean, 1.15, scale)
        _beside(axes, ends[0], 0.4, [(note, 9.0, "bold", TEXT)])
        axes.set_yticks([])
        _frame(axes)
        axes.set_xlabel(f"time since the request began, mean ({unit})", fontsize=9)
        _distribution(page.axes(left + width + gap, 0.85, WIDTH - left - width - gap - 0.2, bars), result, scale, unit)
        for i, (line, colour) in enumerate(foot):
            page.text(0.2, 0.85 + bars + 0.8 + 0.17 * i, line, size=8, colour=colour)
    return page.figure


def _distribution(axes: Axes, result: Result, scale: float, unit: str) -> None:
    n = result.measured
    # Every request of the tail, and of the body as many as can be told apart.
    ranks = np.unique(np.concatenate([np.linspace(0, n - 1, 1500), n - np.geomspace(1, n, 1500)]).astype(int))
    values = ordered(result.kept, ranks) / 1000 * scale
    steps = np.concatenate([values[:1], values])
    above = np.concatenate([[1.0], (n - 1 - ranks) / n])
    floor = 0.5 / n
    axes.step(steps, np.maximum(above, floor), where="post", color="#1d3c70", linewidth=1.4)
    low, high = float(values[0]), float(values[-1])
    axes.set_yscale("log")
    axes.set_ylim(floor, 1.4)
    logarithmic = low > 0 and high > 20 * low
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.2, high * (high / low) ** 0.55)
    else:
        spread = max(high - low, 0.02 * high, 1e-9)
        axes.set_xlim(low - 0.06 * spread, high + 0.62 * spread)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.ticklabel_format(axis="x", useOffset=False)
    mean = result.latency["mean"].value * scale
    axes.axvline(mean, color=DIM, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        "mean",
        (mean, floor),
        (3, 4),
        textcoords="offset points",
        fontsize=8,
        color=DIM,
        rotation=90,
        va="bottom",
    )
    for name, q in PERCENTILES.items():
        if n * (1 - q) < 1:
            continue
        e = result.latency[name]
        axes.errorbar(
            e.value * scale,
            1 - q,
            xerr=_arms(e, scale),
            fmt="o",
            color="#a4263c",
            markersize=4.5,
            capsize=3,
            zorder=5,
        )
        text = f"{name.replace('_', '.')}  {time_text(e)}"
        reach = (e.high if e.high is not None else e.value) * scale
        axes.annotate(text, (reach, 1 - q), (7, 2), textcoords="offset points", fontsize=8.5, va="center")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    _frame(axes)
    axes.spines["left"].set_visible(True)
    axes.tick_params(axis="y", which="major", length=3, labelsize=8)
    axes.set_xlabel(f"latency ({unit}{', logarithmic' if logarithmic else ''})", fontsize=9)
    axes.set_ylabel("fraction of requests that took longer", fontsize=9)


# -- bars ----------------------------------------------------------------------------------------------------


def _stack(
    axes: Axes,
    y: float,
    stages: Sequence[StageTime],
    factor: float,
    scale: float,
    unit: str,
    group: str,
    path: int | None = None,
    height: float = 0.74,
) -> None:
    """Draw the stages one after the other, ``factor`` units of the axis to the ns; name those with the room."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    box = axes.get_position()
    inches_x = box.width * figure.get_figwidth() / _span(axes, group)
    rows = axes.get_ylim()
    tall = box.height * figure.get_figheight() / abs(rows[1] - rows[0]) * height
    left = 0.0
    previous = 0.0
    for s in stages:
        length = s.mean.value * factor
        (bar,) = axes.barh(y, length, left=left, height=height, **_look(s))
        bar.set_gid(f"{group}/{int(y) if path is None else path}/{s.name}")
        wide = length * inches_x
        if min(wide, previous) > 2.5 * POINT:
            axes.plot(
                [left, left],
                [y - height / 2, y + height / 2],
                color="white",
                linewidth=0.9,
                solid_capstyle="butt",
            )
        label = _fit(s.name, f"{_short(s.mean.value * scale)} {unit}", wide - 5 * POINT, tall - 4 * POINT)
        if label is not None:
            colour = _colour(s.layer)
            axes.text(
                left + length / 2,
                y,
                label.text,
                fontsize=label.size,
                rotation=90 if label.upright else 0,
                ha="center",
                va="center",
                linespacing=1.1,
                color="white" if _lightness(colour) < 58 else TEXT,
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.2} if _waits(s) else None,
                parse_math=False,
            )
        left += length
        if length:
            previous = wide
    axes.plot(
        [0, left, left, 0, 0],
        [y - height / 2, y - height / 2, y + height / 2, y + height / 2, y - height / 2],
        color="#444444",
        linewidth=0.6,
    )


def _span(axes: Axes, group: str) -> float:
    """The width of the axis in its own units; shares have theirs before the limits are set."""
    if group == "share":
        return 100.0
    low, high = axes.get_xlim()
    return high - low


@dataclass(frozen=True)
class _Label:
    text: str
    size: float
    upright: bool


@lru_cache(maxsize=4096)
def _fit(name: str, value: str, wide: float, tall: float) -> _Label | None:
    """The largest way to write a stage's name and value into so many inches; the value alone; or nothing."""
    for upright, sizes in ((False, (8.5, 7.5, 7.0)), (True, (8.0, 7.0, 6.5))):
        along, across = (tall, wide) if upright else (wide, tall)
        for size in sizes:
            for lines in _breaks(name):
                text = "\n".join([*lines, value])
                if _fits(text, size, along, across):
                    return _Label(text, size, upright)
                if upright:
                    text = "\n".join([*lines[:-1], f"{lines[-1]} {value}"])
                    if _fits(text, size, along, across):
                        return _Label(text, size, upright)
    for upright in (False, True):
        along, across = (tall, wide) if upright else (wide, tall)
        if _fits(value, 6.5, along, across):
            return _Label(value, 6.5, upright)
    return None


def _fits(text: str, size: float, along: float, across: float) -> bool:
    width, height = _extent(text, size)
    return width <= along and height <= across


@lru_cache(maxsize=1024)
def _breaks(name: str) -> list[list[str]]:
    """The ways to break a name into lines between words, the fewest lines first."""
    found: list[list[str]] = []
    for width in range(len(name), 4, -1):
        lines = textwrap.wrap(name, width, break_long_words=False, break_on_hyphens=False)
        if lines not in found and len(lines) <= 5:
            found.append(lines)
    return found or [[name]]


@lru_cache(maxsize=8192)
def _line_width(text: str) -> float:
    """Width in inches at 1 point."""
    # Measured large, as hinting rounds small sizes; a renderer of its own, since figures come and go.
    width, _, _ = _ruler().get_text_width_height_descent(text, FontProperties(family="DejaVu Sans", size=50), False)
    return float(width) * POINT / 50


@lru_cache(maxsize=1)
def _ruler() -> Any:
    renderer: Any = RendererAgg  # matplotlib does not type it
    return renderer(10, 10, 72)


def _extent(text: str, size: float) -> tuple[float, float]:
    """Width and height of a text in inches."""
    lines = text.split("\n")
    width = max((_line_width(line) for line in lines if line.strip()), default=0.0)
    return width * size * 1.03, len(lines) * size * 1.3 * POINT


def _look(s: StageTime) -> dict[str, Any]:
    colour = _colour(s.layer)
    look: dict[str, Any] = {"facecolor": colour, "linewidth": 0}
    if _waits(s):
        dark = _lightness(colour) < 58
        look |= {"hatch": HATCH, "edgecolor": "#ffffff" if dark else "#444444"}
    return look


def _waits(s: StageTime) -> bool:
    return s.kind != "work"


def _colour(layer: str) -> str:
    return COLOURS.get(layer, OTHER)


def _lightness(colour: str) -> float:
    """CIE L* of a colour ``#rrggbb``."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] if len(colour) == 7 else [1.0, 1.0, 1.0]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def _by_layer(stages: Sequence[Sequence[StageTime]]) -> dict[str, list[float]]:
    """Each layer's total in ns, by path, in the order of `COLOURS`; only layers that take time somewhere."""
    found = {s.layer for row in stages for s in row}
    order = [layer for layer in COLOURS if layer in found] + sorted(found - set(COLOURS))
    totals = {layer: [math.fsum(s.mean.value for s in row if s.layer == layer) for row in stages] for layer in order}
    return {layer: values for layer, values in totals.items() if any(values)}


def _end(e: Estimate) -> float:
    return e.value if e.high is None else max(e.high, e.value)


def _arms(e: Estimate, scale: float) -> list[list[float]] | None:
    if e.low is None or e.high is None:
        return None
    return [[max(0.0, e.value - e.low) * scale], [max(0.0, e.high - e.value) * scale]]


def _interval(axes: Axes, e: Estimate, y: float, scale: float) -> None:
    arms = _arms(e, scale)
    if arms is not None:
        axes.errorbar(e.value * scale, y, xerr=arms, fmt="none", ecolor="black", elinewidth=1.1, capsize=4, zorder=6)


def _beside(axes: Axes, x: float, y: float, lines: Sequence[tuple[str, float, str, str]]) -> None:
    """Write lines to the right of a point, one below the other."""
    first = 6.0 * (len(lines) - 1)
    for i, (text, size, weight, colour) in enumerate(lines):
        axes.annotate(
            text,
            (x, y),
            (8, first - 12.0 * i),
            textcoords="offset points",
            fontsize=size,
            weight=weight,
            color=colour,
            va="center",
            annotation_clip=False,
        )


def _names(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks([])
    _frame(axes)
    for i, label in enumerate(labels):
        axes.annotate(
            _wrapped(label, 20, 4),
            (0, i),
            (-7, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=9.5,
            ha="right",
            va="center",
            parse_math=False,
        )


def _frame(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="x", labelsize=8.5)


# -- text ----------------------------------------------------------------------------------------------------


def _wrapped(text: str, width: int, lines: int) -> str:
    """Break a label into lines; of one too long the middle is left out, as names often differ at the end."""
    if len(text) > width * lines:
        keep = width * lines - 3
        text = f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}"
    found = textwrap.wrap(text, width) or [text]
    if len(found) > lines:
        found = [text[i : i + width] for i in range(0, len(text), width)]
    return "\n".join(found)


def _title(result: Result) -> str:
    w = result.specification.workload
    what = {"rr": "one round trip", "tx": "one packet sent", "rx": "one packet received"}.get(w.name, "one request")
    load = f"{w.arrivals}, {w.rate:g}/s" if w.open_loop else f"depth {w.depth}"
    load += f", {w.flows} flows" if w.flows > 1 else ""
    load += {"guest": ", guest to guest", "host": ", with the host"}.get(w.peer, "")
    return f"Where the time of {what} goes ({w.name}, {w.size} B, {load})"


def _footer(results: Sequence[Result], warnings: Sequence[str]) -> list[tuple[str, str]]:
    counts = sorted({r.measured for r in results})
    requests = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    run = results[0].specification.run
    interval = f"error bars: {100 * results[0].confidence:g} % intervals" if _has_interval(results) else "no intervals"
    each = " in each path" if len(results) > 1 else ""
    lines = [(f"{requests} requests measured{each}, seed {run.seed}; {interval}", DIM)]
    hosts = list(dict.fromkeys(r.specification.host.describe() for r in results))
    lines += [(f"host {line}", DIM) for line in hosts]
    for warning in warnings:
        lines += [(line, "#a4263c") for line in textwrap.wrap(f"warning: {warning}", 190)]
    return lines


def _has_interval(results: Sequence[Result]) -> bool:
    return any(_arms(e, 1.0) is not None for r in results for e in (r.latency["mean"], r.throughput))


def _unit(largest: float) -> tuple[float, str]:
    """Factor and unit for times up to ``largest`` ns: µs, unless they are very long."""
    return (1e-6, "ms") if largest >= 2e7 else (1e-3, "µs")


def _short(value: float) -> str:
    """Three digits or so, never an exponent."""
    size = abs(value)
    if size == 0:
        return "0"
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:.{decimals}f}"


def _bare(e: Estimate) -> Estimate:
    return Estimate(e.value, None, None, e.confidence)


# -- the page ------------------------------------------------------------------------------------------------


class _Page:
    """A figure measured in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width = width
        self.height = height
        self.figure = PathFigure(figsize=(width, height), dpi=100, facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        place = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        weight: str = "normal",
        colour: str = TEXT,
        align: str = "left",
    ) -> None:
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=size,
            weight=weight,
            color=colour,
            ha=align,
            va="baseline",
            parse_math=False,
        )

    def swatch(self, x: float, y: float, colour: str, hatch: str) -> None:
        self.figure.add_artist(
            Rectangle(
                (x / self.width, 1 - (y + 0.015) / self.height),
                0.29 / self.width,
                0.13 / self.height,
                facecolor=colour,
                edgecolor="#444444",
                linewidth=0.5,
                hatch=hatch or None,
                transform=self.figure.transFigure,
            )
        )


@contextmanager
def _page(width: float, height: float) -> Iterator[_Page]:
    """A page under matplotlib's own defaults, whatever style the user's session has set."""
    with style.context("default"):
        yield _Page(width, height)
