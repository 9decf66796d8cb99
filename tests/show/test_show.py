"""Tables hold the figures of the results and keep to the width they are given."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from iosim.compare import Comparison, compare
from iosim.host.counters import NAMES as COUNTERS
from iosim.result import number_text, percent_text, time_text
from iosim.show import comparison_html, comparison_table, run_table, sections, total_per_request
from iosim.statistics import Estimate


@pytest.fixture(scope="module")
def three() -> Comparison:
    return compare("e1000", "virtio-net", "vhost-net", requests=300, workers=1)


def printed(what: RenderableType, width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as out:
        Console(file=out, width=width, no_color=True).print(what)
        out.flush()
        return raw.getvalue().decode(encoding)


def row(text: str, label: str) -> str:
    return next(line.strip() for line in text.splitlines() if re.match(rf"\s*{re.escape(label)}\s", line))


def several(comparison: Comparison, count: int) -> Comparison:
    places = [i % len(comparison.asked) for i in range(count)]
    asked = [replace(comparison.asked[p], label=f"path {i}") for i, p in enumerate(places)]
    return Comparison(asked, [comparison.results[p] for p in places], ["one: a warning"])


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_has_the_figures_of_every_path(three: Comparison, width: int) -> None:
    text = printed(comparison_table(three), width)
    results = three.results
    assert " ".join(row(text, "mean").split()).startswith("mean " + time_text(results[0].latency["mean"]))
    for result in results:
        assert time_text(result.latency["p50"]).split()[0] in row(text, "p50")
        assert number_text(result.throughput) in row(text, "requests/s")
    exits = [str(round(r.per_request("userspace_exits").value)) for r in results]
    assert row(text, "to user space").split() == ["to", "user", "space", *exits]
    assert exits[1:] == ["0", "0"]
    assert row(text, "throughput  ").startswith("throughput") or "throughput" in text
    assert f"×{number_text(three.ratios[2]['latency_mean'])}" in row(text, "latency mean")


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_no_line_is_wider_than_the_terminal(three: Comparison, width: int, count: int) -> None:
    for what in (comparison_table(several(three, count)), run_table(three.results[0])):
        assert max(cell_len(line) for line in printed(what, width).splitlines()) <= width


def test_three_paths_are_one_table_at_80_columns_and_six_are_two_of_three(three: Comparison) -> None:
    heads = [line.split() for line in printed(comparison_table(three), 80).splitlines() if "e1000 " in line]
    assert heads[0] == ["e1000", "virtio-net", "vhost-net"]
    lines = printed(comparison_table(several(three, 6)), 80).splitlines()
    heads = [line.split() for line in lines if re.match(r"\s+path \d", line)]
    assert [" ".join(head).count("path") for head in heads] == [3, 3]
    wide = printed(comparison_table(several(three, 6)), 200).splitlines()
    assert sum(bool(re.match(r"\s+path \d", line)) for line in wide) == 1


def test_no_label_is_folded_at_80_columns(three: Comparison) -> None:
    text = printed(comparison_table(three), 80)
    for section in sections(three):
        assert re.search(rf"^{re.escape(section.title)}\s*$", text, re.MULTILINE), section.title
        for item in section.rows:
            assert re.search(rf"^  {re.escape(item.label)}\s", text, re.MULTILINE), item.label


def test_only_exit_reasons_that_occur_are_listed_and_they_sum_to_the_total(three: Comparison) -> None:
    exits = next(s for s in sections(three) if s.title == "exits per request")
    labels = [r.label for r in exits.rows]
    reasons = [n.removeprefix("exits.") for n in COUNTERS if n.startswith("exits.")]
    assert labels == [
        *(n for n in reasons if any(r.count(f"exits.{n}") for r in three.results)),
        "total",
        "to user space",
    ]
    assert "IO_INSTRUCTION" not in labels
    for path in range(3):
        values = {r.label: r.cells[path].estimate for r in exits.rows}
        parts = sum(e.value for name, e in values.items() if name in reasons and e is not None)
        assert values["total"] is not None
        assert values["total"].value == pytest.approx(parts)


def test_a_thread_that_a_path_lacks_is_a_dash(three: Comparison) -> None:
    text = printed(comparison_table(three), 80)
    assert row(text, "vhost").split()[:3] == ["vhost", "-", "-"]
    assert row(text, "qemu-main").split()[-1] == "-"


def test_the_first_path_is_exactly_once_itself(three: Comparison) -> None:
    ratios = sections(three)[-1]
    assert ratios.title == "ratio to e1000"
    assert [r.cells[0].text() for r in ratios.rows] == [("×1", "")] * 3
    assert not any(s.title.startswith("ratio") for s in sections(several(three, 1)))


def test_without_an_interval_none_is_printed() -> None:
    few = compare("e1000", "vhost-net", requests=7, workers=1)
    assert few.results[0].latency["mean"].low is None
    for text in (
        printed(comparison_table(few), 80),
        printed(run_table(few.results[0]), 120),
        comparison_html(few),
    ):
        assert "±" not in text
        assert "None" not in text


def test_remarks_stand_below(three: Comparison) -> None:
    asked = [replace(a, notes=("a note of the command line",)) for a in three.asked]
    text = printed(comparison_table(Comparison(asked, three.results, ["something odd"])), 100)
    assert "composite, 38 of 58 costs assumed" in text or three.results[0].specification.host.describe() in text
    assert "seed 1" in text
    assert "rr, 1 B, depth 1" in text
    assert "warning: something odd" in text
    assert "virtio-net: a note of the command line" in text


def test_a_terminal_without_utf_8_gets_ascii(three: Comparison) -> None:
    text = printed(comparison_table(three), 80, "ascii") + printed(run_table(three.results[0]), 80, "ascii")
    assert text.isascii()
    assert "?" not in text
    assert "us +-" in text
    assert "####" in text
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("width", [80, 140])
def test_the_breakdown_of_a_run_lists_every_stage_and_its_share(three: Comparison, width: int) -> None:
    result = three.results[1]
    text = printed(run_table(result), width)
    body = text[text.index("where the time goes") :]
    whole = result.latency["mean"].value
    longest = max(result.breakdown(), key=lambda s: s.mean.value)
    for stage in result.breakdown():
        first = stage.name if width > 100 else stage.name.split()[0]
        lines = [line for line in body.splitlines() if line.startswith(first)]
        assert any(f"{stage.mean.value / 1000:.3f} µs" in line for line in lines), stage.name
        assert any(f"{100 * stage.mean.value / whole:.1f} %" in line for line in lines), stage.name
    bars = {line.split()[0]: line.count("█") for line in body[: body.index("by layer")].splitlines() if "█" in line}
    assert bars[longest.name.split()[0]] == max(bars.values()) >= 8


def test_layers_and_kinds_sum_to_the_mean_latency(three: Comparison) -> None:
    text = printed(run_table(three.results[0]), 100)
    tail = text[text.index("by layer") :]
    for part in (tail[: tail.index("by kind")], tail[tail.index("by kind") :]):
        total = sum(float(x) for x in re.findall(r"([\d.]+) µs", part))
        assert total == pytest.approx(three.results[0].latency["mean"].value / 1000, abs=0.01)


def test_totals_are_the_sum_of_their_counters(three: Comparison) -> None:
    result = three.results[0]
    accesses = [n for n in COUNTERS if n.startswith("register_accesses.")]
    completed = result.snapshots[-1].completed - result.snapshots[0].completed
    total = sum(result.count(n) for n in accesses) / completed
    assert total_per_request(result, "register_accesses.").value == pytest.approx(total)


def test_html_has_the_figures_and_escapes_every_text(three: Comparison) -> None:
    asked = [replace(three.asked[0], label="<b>&amp;", notes=("<script>",)), *three.asked[1:]]
    text = comparison_html(Comparison(asked, three.results, ["a < b"]))
    assert "<b>" not in text
    assert "<script>" not in text
    assert "&lt;b&gt;&amp;amp;" in text
    assert "a &lt; b" in text
    for result in three.results:
        assert time_text(result.latency["mean"]) in text
    assert three._repr_html_() == comparison_html(three)


@pytest.mark.parametrize(
    ("write", "value", "low", "high", "text"),
    [
        (time_text, 64_900, 64_700, 65_100, "64.9 µs ±0.2"),
        (time_text, 131_898, 131_885, 131_911, "131.90 µs ±0.02"),
        (time_text, 1_940_000, 1_750_000, 2_130_000, "1.94 ms ±0.19"),
        (time_text, 139_956, 139_571, 141_891, "140.0 µs −0.4 +2.0"),
        (time_text, 64_900, 64_700, None, "64.90 µs"),
        (time_text, 250.0, 250.0, 250.0, "250.00 ns"),
        (number_text, 63_934, 62_034, 65_834, "63934 ±1900"),
        (number_text, 7, 7, 7, "7"),
        (number_text, 1.333, 1.313, 1.353, "1.33 ±0.02"),
        (number_text, float("nan"), None, None, "nan"),
        (percent_text, 0.5, 0.3, 0.7, "50 % ±20"),
        (percent_text, 1, 1, 1, "100.0 %"),
    ],
)
def test_an_interval_decides_how_many_digits_are_shown(
    write: object, value: float, low: float | None, high: float | None, text: str
) -> None:
    assert callable(write)
    assert write(Estimate(value, low, high, 0.95)) == text
