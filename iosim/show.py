"""Tables: paths side by side, and one path in full, for terminals (rich) and notebooks (HTML).

A table is first worked out as sections of rows of cells, which know nothing of terminals; then it is laid out
for the width there is. Where the paths do not fit beside each other, intervals lose their asymmetry, then several
tables stand one above the other; nothing is cut off. On a terminal without UTF-8 everything is ASCII.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from iosim.host.counters import NAMES as COUNTERS
from iosim.kept import PERCENTILES
from iosim.result import Result, half_width, number_text, percent_text, time_text
from iosim.statistics import Estimate, ratio

if TYPE_CHECKING:
    from iosim.compare import Comparison

ACCESSES: Final = "register_accesses."
EXITS: Final = "exits."
SYSCALLS: Final = "syscalls."
_ASCII: Final = str.maketrans(
    {"µ": "u", "±": "+-", "×": "x", "−": "-", "–": "-", "…": "...", "·": "-"}
    | dict.fromkeys("█▉▊▋▌", "#")
    | dict.fromkeys("▍▎▏", ".")
)
GAP: Final = 2
"""Characters between two columns: the box's divider, a space here, and padding."""
_ASCII_HEAD: Final = box.Box("\n".join(["    ", "    ", " -- ", *["    "] * 5]) + "\n", ascii=True)


@dataclass(frozen=True)
class Cell:
    """One figure of a table: an estimate and how it is written; ``None`` where the path has no such thing."""

    estimate: Estimate | None
    write: Callable[[Estimate], str]

    def text(self, short: bool = False) -> tuple[str, str]:
        """The value, and its unit and interval; an asymmetric interval is shortened to its larger side."""
        if self.estimate is None:
            return "-", ""
        value, _, rest = self.write(_symmetric(self.estimate) if short else self.estimate).partition(" ")
        return value, rest


@dataclass(frozen=True)
class Row:
    """One metric of all paths."""

    label: str
    cells: list[Cell]


@dataclass(frozen=True)
class Section:
    """Metrics of one kind, under a heading."""

    title: str
    rows: list[Row]


# -- what the tables say -------------------------------------------------------------------------------------


def sections(comparison: Comparison) -> list[Section]:
    """Return the figures of a comparison, metrics as rows and paths as columns."""
    results = comparison.results
    found = _sections(results, ("mean", "p50", "p99", "p99_9"))
    if len(results) > 1:
        names = {"latency_mean": "latency mean", "latency_p99": "latency p99", "throughput": "throughput"}
        one = Cell(Estimate(1.0, 1.0, 1.0, results[0].confidence), _times)
        rows = [
            Row(label, [one, *(Cell(ratios[name], _times) for ratios in comparison.ratios[1:])])
            for name, label in names.items()
        ]
        found.append(Section(f"ratio to {comparison.labels[0]}", rows))
    return found


def _sections(results: Sequence[Result], latencies: Sequence[str]) -> list[Section]:
    def counted(label: str, name: str) -> Row:
        return Row(label, [Cell(r.per_request(name), number_text) for r in results])

    def total(label: str, prefix: str) -> Row:
        return Row(label, [Cell(total_per_request(r, prefix), number_text) for r in results])

    exits = [n for n in COUNTERS if n.startswith(EXITS)]
    calls = [n for n in COUNTERS if n.startswith(SYSCALLS)]
    latency = [Row(name.replace("_", "."), [Cell(r.latency[name], time_text) for r in results]) for name in latencies]

    def happened(label: str, name: str) -> list[Row]:
        return [counted(label, name)] if any(r.count(name) for r in results) else []

    notifications = [
        counted("kicks", "kicks"),
        counted("suppressed kicks", "suppressed.kicks"),
        *happened("spurious kicks", "spurious.kicks"),
        counted("interrupts", "interrupts"),
        counted("suppressed interrupts", "suppressed.interrupts"),
        *happened("spurious interrupts", "spurious.interrupts"),
        *happened("merged interrupts", "merged.interrupts"),
    ]
    work = [
        total("register accesses", ACCESSES),
        *(row for n in calls for row in happened(f"syscall {n.removeprefix(SYSCALLS)}", n)),
        Row("context switches", [Cell(r.context_switches, number_text) for r in results]),
        counted("copied bytes", "copied_bytes"),
        *happened("polled halts", "halts_polled"),
    ]
    threads = list(dict.fromkeys(name for r in results for name in r.threads))
    return [
        Section("latency", latency),
        Section("throughput", [Row("requests/s", [Cell(r.throughput, number_text) for r in results])]),
        Section(
            "exits per request",
            [
                *(row for n in exits for row in happened(n.removeprefix(EXITS), n)),
                total("total", EXITS),
                counted("to user space", "userspace_exits"),
            ],
        ),
        Section("notifications per request", notifications),
        Section("work per request", work),
        Section(
            "CPU use by thread",
            [Row(n, [Cell(r.cpu_busy.get(n), percent_text) for r in results]) for n in threads],
        ),
    ]


def total_per_request(result: Result, prefix: str) -> Estimate:
    """Return how often all that is counted under a prefix (``exits.``) happened per request, with its interval."""
    places = [i for i, name in enumerate(COUNTERS) if name.startswith(prefix)]
    sums = np.diff([sum(s.counters[i] for i in places) for s in result.snapshots])
    completed = np.diff([s.completed for s in result.snapshots])
    return ratio(sums, completed, result.confidence)


def _times(e: Estimate) -> str:
    """A ratio: ``×0.50 ±0.01``."""
    return f"×{number_text(e)}"


def _symmetric(e: Estimate) -> Estimate:
    half = half_width(e)
    return e if half is None else Estimate(e.value, e.value - half, e.value + half, e.confidence)


def _load(result: Result) -> str:
    w, run = result.specification.workload, result.specification.run
    load = f"{w.rate:g}/s {w.arrivals}" if w.open_loop else f"depth {w.depth}"
    load += f", {w.flows} flows" if w.flows > 1 else ""
    load += {"guest": ", guest to guest", "host": ", with the host"}.get(w.peer, "")
    return f"{w.name}, {w.size} B, {load} · seed {run.seed} · {100 * result.confidence:g} % intervals"


def _title(comparison: Comparison) -> str:
    counts = sorted({r.measured for r in comparison.results})
    requests = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{_load(comparison.results[0])} · {requests} requests"


def _remarks(comparison: Comparison) -> list[tuple[str, str, str]]:
    """What stands below the table: label, text, style."""
    hosts = dict.fromkeys(r.specification.host.describe() for r in comparison.results)
    lines = [("host", line, "") for line in hosts]
    lines += [("note", line, "dim") for line in dict.fromkeys(n for r in comparison.results for n in r.notes)]
    lines += [("warning", line, "yellow") for line in comparison.warnings]
    lines += [(a.label, note, "dim") for a in comparison.asked for note in a.notes]
    return lines


# -- terminals -----------------------------------------------------------------------------------------------


class ComparisonTable:
    """The comparison as a rich renderable; see `comparison_table`."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        c, say = self.comparison, _voice(options)
        yield Text(say(_title(c)), style="bold", overflow="fold")
        rows = sections(c)
        yield from _chunks(rows, c.labels, options.max_width, say)
        yield from _notes(_remarks(c), say)


class RunTable:
    """One run as a rich renderable; see `run_table`."""

    def __init__(self, result: Result) -> None:
        self.result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        r, say = self.result, _voice(options)
        name = r.specification.model.name
        yield Text(say(f"{name} · {_load(r)} · {r.measured} requests"), style="bold", overflow="fold")
        rows = run_sections(r)
        yield from _chunks(rows, [name], options.max_width, say)
        yield _breakdown(r, options.max_width, say)
        yield _layers(r, options.max_width, say)
        lines = [("host", r.specification.host.describe(), "")]
        lines += [("note", line, "dim") for line in r.notes]
        lines += [("warning", line, "yellow") for line in r.warnings]
        yield from _notes(lines, say)


def comparison_table(comparison: Comparison) -> ComparisonTable:
    """Return the comparison as one table, metrics as rows and paths as columns, to be printed by a rich console.

    Example:
        >>> import iosim
        >>> from rich.console import Console
        >>> from iosim.show import comparison_table
        >>> comparison = iosim.compare("e1000", "vhost-net", requests=64)
        >>> Console(width=80, no_color=True).print(comparison_table(comparison))  # doctest: +ELLIPSIS
        rr, 1 B, depth 1 · seed 1 · 95 % intervals · 64 requests
        ...
    """
    return ComparisonTable(comparison)


def run_table(result: Result) -> RunTable:
    """Return all figures of one run and the breakdown of its latency, to be printed by a rich console."""
    return RunTable(result)


def run_sections(result: Result) -> list[Section]:
    """Return all figures of one run, under headings."""
    found = _sections([result], ("mean", *PERCENTILES, "max"))
    found[1].rows.append(Row("bits/s", [Cell(result.bits_per_s, number_text)]))
    accesses = [
        Row(n.removeprefix(ACCESSES), [Cell(result.per_request(n), number_text)])
        for n in COUNTERS
        if n.startswith(ACCESSES)
    ]
    found.insert(-1, Section("register accesses per request", accesses))
    found[-1] = Section("CPU use by thread", list(_cpu_rows(result)))
    window = [
        Row("length", [Cell(_plain(result.duration_ns), time_text)]),
        Row("dropped packets", [Cell(_plain(result.dropped), _whole)]),
        *(Row(f"  {name}", [Cell(_plain(n), _whole)]) for name, n in result.dropped_at.items() if n),
    ]
    found.append(Section("measured window", window))
    return found


def _cpu_rows(result: Result) -> Iterable[Row]:
    """Each thread's use of its CPU, then its parts by process; what it polled and waited for locks beside them."""
    for thread, busy in result.cpu_busy.items():
        yield Row(thread, [Cell(busy, percent_text)])
        parts = {f"  {name}": e for name, e in result.cpu_by_process[thread].items()}
        if len(parts) == 1:
            parts = {}
        parts |= {"  of it polling": result.cpu_polling[thread], "  besides: lock wait": result.lock_wait[thread]}
        for name, e in parts.items():
            if e.value >= 5e-4:
                yield Row(name, [Cell(e, percent_text)])


def _plain(value: float) -> Estimate:
    return Estimate(float(value), None, None, 0.95)


def _whole(e: Estimate) -> str:
    return f"{e.value:.0f}"


def _voice(options: ConsoleOptions) -> Callable[[str], str]:
    """How text is written for a terminal: as it is, or in ASCII."""

    def ascii_only(text: str) -> str:
        return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")

    return ascii_only if options.ascii_only else str


def _chunks(rows: Sequence[Section], labels: Sequence[str], width: int, say: Callable[[str], str]) -> Iterable[Padding]:
    """Lay the paths out in as few tables as the width allows."""
    label = max(len(say(f"  {r.label}")) for s in rows for r in s.rows)
    label = max(label, min(30, max(len(say(s.title)) for s in rows)))
    for short in (False, True):
        columns = [_column(rows, i, short, say) for i in range(len(labels))]
        widths = [
            max(len(max(column, key=len)), min(len(say(name)), 16))
            for column, name in zip(columns, labels, strict=True)
        ]
        if label + sum(w + GAP for w in widths) <= width:
            break
    room, groups, used = width - label, [[0]], widths[0] + GAP
    for i in range(1, len(labels)):
        if used + widths[i] + GAP > room:
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += widths[i] + GAP
    for group in _even(groups, len(labels), widths, room):
        table = _plain_table(say)
        table.add_column("", overflow="fold", width=min(label, max(8, width - GAP - max(widths))))
        for i in group:
            head = "\n".join(textwrap.wrap(say(labels[i]), widths[i])) or say(labels[i])
            table.add_column(Text(head, overflow="fold"), overflow="fold", width=widths[i])
        line = 0
        for s in rows:
            table.add_row(Text(say(s.title), style="bold cyan"))
            line += 1
            for r in s.rows:
                table.add_row(say(f"  {r.label}"), *[Text(columns[i][line], overflow="fold") for i in group])
                line += 1
        yield Padding(table, (1, 0, 0, 0))


def _even(groups: list[list[int]], count: int, widths: Sequence[int], room: int) -> list[list[int]]:
    """Spread paths evenly over the tables they need (3 and 3 rather than 4 and 2), where they fit that way."""
    size = -(-count // len(groups))
    even = [list(range(i, min(i + size, count))) for i in range(0, count, size)]
    return even if all(sum(widths[i] + GAP for i in group) <= room for group in even) else groups


def _column(rows: Sequence[Section], path: int, short: bool, say: Callable[[str], str]) -> list[str]:
    """One path's cells, one a line: values flush right, units and intervals flush left behind them."""
    texts: list[tuple[str, str]] = []
    for s in rows:
        texts.append(("", ""))
        for r in s.rows:
            value, rest = r.cells[path].text(short)
            texts.append((say(value), say(rest)))
    width = max(len(value) for value, _ in texts)
    return [f"{value:>{width}} {rest}".rstrip() for value, rest in texts]


def _breakdown(result: Result, width: int, say: Callable[[str], str]) -> Padding:
    """Every stage with its layer, what it waits for, mean, share of the mean latency, and a bar."""
    stages = result.breakdown()
    whole = result.latency["mean"].value
    longest = max(s.mean.value for s in stages)
    waits = [say("" if s.kind == "work" else s.kind.removeprefix("wait: ")) for s in stages]
    layer = max(len("layer"), *(len(say(s.layer)) for s in stages))
    kind = max(len("waits for"), *(len(text) for text in waits))
    name = max(len(say(s.name)) for s in stages)
    # With intervals where there is room; else long names are folded before the bar goes.
    for cells in (
        [Cell(s.mean, _stage_time) for s in stages],
        [Cell(_plain(s.mean.value), _stage_time) for s in stages],
    ):
        times = [(say(value), say(rest)) for value, rest in (cell.text() for cell in cells)]
        values, rests = max(len(value) for value, _ in times), max(len(rest) for _, rest in times)
        shown = [f"{value:>{values}} {rest:<{rests}}" for value, rest in times]
        left = width - layer - kind - len(shown[0]) - len("100.0 %") - 5 * GAP
        if left >= name + 12:
            break
    name = min(name, max(16, left - 10))
    bar = min(40, left - name)
    table = _plain_table(say)
    table.add_column("stage", overflow="fold", width=name)
    table.add_column("layer", width=layer)
    table.add_column("waits for", width=kind, overflow="fold")
    table.add_column("mean", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True, width=len("100.0 %"))
    if bar >= 4:
        table.add_column("", no_wrap=True, width=bar)
    for s, wait, text in zip(stages, waits, shown, strict=True):
        style = "" if s.mean.value else "dim"
        share = s.mean.value / whole if whole else 0.0
        texts = [say(s.name), say(s.layer), wait, text, f"{100 * share:.1f} %"]
        row = [Text(item, style, overflow="fold") for item in texts]
        if bar >= 4:
            row.append(Text(say(_bar(s.mean.value / longest if longest else 0.0, bar)), "cyan"))
        table.add_row(*row)
    return Padding(_under(say("where the time goes"), table), (1, 0, 0, 0))


def _layers(result: Result, width: int, say: Callable[[str], str]) -> Padding:
    """The same by layer, and what of it is work and what is waiting for what."""
    stages, whole = result.breakdown(), result.latency["mean"].value
    sums: dict[str, dict[str, float]] = {"by layer": {}, "by kind": {}}
    for s in stages:
        for key, name in (("by layer", s.layer), ("by kind", s.kind)):
            sums[key][name] = sums[key].get(name, 0.0) + s.mean.value
    table = _plain_table(say)
    for name in ("", "mean", "share"):
        table.add_column(name, no_wrap=True, justify="right" if name else "left")
    bar = min(40, width - 48)
    if bar >= 4:
        table.add_column("", no_wrap=True, width=bar)
    for title, values in sums.items():
        table.add_row(Text(say(title), "bold cyan"))
        for name, value in values.items():
            share = value / whole if whole else 0.0
            cells = [
                Text(say(f"  {name}")),
                Text(say(_stage_time(_plain(value)))),
                Text(f"{100 * share:.1f} %"),
            ]
            if bar >= 4:
                cells.append(Text(say(_bar(share, bar)), "cyan"))
            table.add_row(*cells)
    return Padding(table, (1, 0, 0, 0))


def _stage_time(e: Estimate) -> str:
    """A time in µs to the ns, whatever its size, so that stages can be compared down the column."""
    half = half_width(e)
    interval = f" ±{half / 1000:.3f}" if half is not None and half >= 0.5 else ""
    return f"{e.value / 1000:.3f} µs{interval}"


def _bar(share: float, width: int) -> str:
    """A bar in eighths of a character; what is not nothing shows."""
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")


def _plain_table(say: Callable[[str], str]) -> Table:
    """A table with a line below its head and nothing else; columns are `GAP` characters apart."""
    lines = _ASCII_HEAD if say is not str else box.SIMPLE_HEAD
    return Table(box=lines, padding=(0, 0, 0, GAP - 1), show_edge=False, pad_edge=False)


def _under(title: str, table: Table) -> Table:
    grid = Table.grid()
    grid.add_column()
    grid.add_row(Text(title, "bold cyan"))
    grid.add_row(table)
    return grid


def _notes(lines: Sequence[tuple[str, str, str]], say: Callable[[str], str]) -> Iterable[Padding]:
    if lines:
        text = Text(overflow="fold")
        for i, (label, line, style) in enumerate(lines):
            text.append(say(f"{label}: {line}" + ("\n" if i + 1 < len(lines) else "")), style)
        yield Padding(text, (1, 0, 0, 0))


# -- notebooks -----------------------------------------------------------------------------------------------


def comparison_html(comparison: Comparison) -> str:
    """Return the comparison as an HTML table, as a notebook shows it; every text in it is escaped."""
    right, left = "text-align:right", "text-align:left"
    head = "".join(f"<th style='{right}'>{html.escape(label)}</th>" for label in comparison.labels)
    body = []
    for s in sections(comparison):
        span = 1 + len(comparison.labels)
        body.append(f"<tr><th colspan='{span}' style='{left}'>{html.escape(s.title)}</th></tr>")
        for r in s.rows:
            texts = [" ".join(cell.text()).strip() for cell in r.cells]
            cells = "".join(f"<td style='{right};white-space:nowrap'>{html.escape(text)}</td>" for text in texts)
            body.append(f"<tr><td style='{left};padding-left:1.5em'>{html.escape(r.label)}</td>{cells}</tr>")
    notes = "<br>".join(f"{html.escape(label)}: {html.escape(line)}" for label, line, _ in _remarks(comparison))
    return (
        f"<table><caption style='{left}'>{html.escape(_title(comparison))}</caption>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        f"<p style='{left};font-size:smaller'>{notes}</p>"
    )
