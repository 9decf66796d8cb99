"""Runs that keep summaries only: the same figures, in constant memory, on either engine."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_compiled import settings_of

import iosim
from iosim import run as runs
from iosim import statistics
from iosim.compare import compare
from iosim.kept import PERCENTILES, Requests, Summaries
from iosim.requests import RequestTable, Stage, create, give_up, mark, mark_past, recycled
from iosim.result import Result
from iosim.statistics import Batches
from iosim.summary import BINS, CARRY, Summary, add, bin_of, edges
from iosim.window import Window

PATHS = (("e1000", "rr"), ("virtio-net", "tx"), ("vhost-net", "rx"), ("prodcons", "tx"))
KEEPS = ("requests", "summary")
SKETCHED = 100
"""Latencies kept in tests that want a sketch."""


def simulate(model: str, keep: str, **settings: Any) -> Result:
    given = {"run.keep": keep, **{name.replace("__", "."): value for name, value in settings.items()}}
    return iosim.simulate(model, settings=given)


def document(result: Result) -> str:
    found = result.to_dict()
    found.pop("engine")
    return json.dumps(found)


@pytest.fixture
def sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few latencies fit, and rows are soon used again."""
    original = Window.summarize
    monkeypatch.setattr(Window, "summarize", lambda window, rooms: original(window, rooms, SKETCHED))
    monkeypatch.setattr(runs, "ROOMS", 512)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workload"), PATHS)
def test_both_engines_give_the_same_document(sketch: None, model: str, workload: str) -> None:
    pytest.importorskip("llvmlite")
    for more in ({"run__requests": 2000}, {"run__duration": "30ms", "run__warmup": 0}):
        simpy, compiled = (
            simulate(model, "summary", workload__name=workload, run__engine=engine, **more)
            for engine in ("simpy", "compiled")
        )
        assert document(simpy) == document(compiled)
        assert simpy.kept.quantile_error == 2**-11


@pytest.mark.parametrize(("model", "workload"), PATHS)
def test_what_fits_is_exactly_what_a_run_that_keeps_all_says(model: str, workload: str) -> None:
    all_kept, summary = (simulate(model, keep, workload__name=workload, run__requests=1500) for keep in KEEPS)
    a, b = all_kept.to_dict(), summary.to_dict()
    assert (a.pop("settings").pop("run.keep"), b.pop("settings").pop("run.keep")) == KEEPS
    for name, stage in a.pop("breakdown_ns").items():
        other = b["breakdown_ns"][name]["mean"]
        for end in ("value", "low", "high"):
            assert other[end] == pytest.approx(stage["mean"][end], rel=1e-9, abs=1e-9)
    b.pop("breakdown_ns")
    assert a == b
    totals = np.diff(all_kept.stamps, axis=1).sum(axis=0)
    for stage, total in zip(summary.breakdown(), totals.tolist(), strict=True):
        assert stage.mean.value == float(Fraction(total, 1500)) / 1000


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workload"), PATHS)
def test_a_sketch_differs_by_no_more_than_it_says(sketch: None, model: str, workload: str) -> None:
    """Rows are used again many times here, and the trace is the same."""
    all_kept, summary = (simulate(model, keep, workload__name=workload, run__requests=4000) for keep in KEEPS)
    assert summary.snapshots == all_kept.snapshots
    error = summary.kept.quantile_error
    for name in PERCENTILES:
        exact, e = all_kept.latency[name], summary.latency[name]
        assert abs(e.value - exact.value) <= error * exact.value
        if exact.low is not None and e.low is not None:
            assert e.low <= exact.low * (1 + 1e-9) or e.low == pytest.approx(exact.low, rel=0.02)
        assert (e.low is None) == (exact.low is None)
        assert (e.high is None) == (exact.high is None)
    total = sum(int(x) for x in all_kept.latency_ps)
    assert summary.latency["mean"].value == float(Fraction(total, 4000)) / 1000
    assert summary.latency["max"] == all_kept.latency["max"]
    for end in ("low", "high"):
        exact_end = getattr(all_kept.latency["mean"], end)
        assert getattr(summary.latency["mean"], end) == pytest.approx(exact_end, rel=1e-3)


def test_stages_sum_to_the_latency_and_counts_are_those_of_the_run(sketch: None) -> None:
    summary, all_kept = (simulate("vhost-net", keep, workload__rate=30_000, run__requests=2000) for keep in KEEPS[::-1])
    assert sum(s.mean.value for s in summary.breakdown()) == pytest.approx(summary.latency["mean"].value, rel=1e-12)
    assert summary.throughput == all_kept.throughput
    assert summary.kicks_per_request == all_kept.kicks_per_request
    assert summary.measured == all_kept.measured
    assert not summary.keeps_requests
    assert any("sketch" in note for note in summary.notes)
    assert "sketch" in str(summary.summary())


def test_requests_are_not_there_and_the_error_says_so() -> None:
    result = simulate("vhost-net", "summary", run__requests=50)
    for ask in (lambda: result.requests, lambda: result.stamps, lambda: result.rows, lambda: result.latency_ps,
                lambda: result.to_parquet("nowhere.parquet")):  # fmt: skip
        with pytest.raises(iosim.IosimError, match=r"^this run kept summaries only; run.keep=requests keeps every"):
            ask()


def test_too_many_under_way_is_one_line_on_either_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ROOMS", 64)
    chosen: dict[str, Any] = {"workload__rate": 1_000_000, "run__requests": 1000}
    messages = set()
    for engine in ("simpy", *(["compiled"] if runs.compiled_available() else [])):
        with pytest.raises(iosim.IosimError, match="64 requests are under way at a time") as caught:
            simulate("virtio-net", "summary", run__engine=engine, **chosen)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert "\n" not in messages.pop()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["e1000", "virtio-net", "vhost-net"])
def test_whatever_the_settings(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """On both engines, and with every row used again: the figures of a run that keeps all."""
    pytest.importorskip("llvmlite")
    played = []

    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(settings_of(model))
    def check(drawn: tuple[str, dict[str, Any]]) -> None:
        workload, chosen = drawn
        closed = "workload.rate" not in chosen
        # An open loop may be overloaded: room for all that it makes then.
        monkeypatch.setattr(runs, "ROOMS", 512 if closed else 1 << 14)
        streams = "workload.background" in chosen or chosen["workload.size"] > 1472
        chosen = {**chosen, "run.requests": 1200 if closed and not streams else 150, "workload.name": workload}
        chosen["run.seed"] %= 1 << 53  # larger ones are rounded
        given = [{**chosen, "run.keep": keep, "run.engine": e} for keep in KEEPS for e in ("simpy", "compiled")][1:]
        try:
            documents = [iosim.simulate(model, settings=one).to_dict() for one in given]
        except iosim.IosimError as error:
            # A queue of one drops hundreds of requests while one is under way.
            if ": overloaded" not in str(error) and "under way at a time" not in str(error):
                raise
            return
        played.append(drawn)
        breakdowns = [d.pop("breakdown_ns") for d in documents]
        stages = [{name: s["mean"]["value"] for name, s in b.items()} for b in breakdowns]
        for d in documents:
            d.pop("engine")
            d["settings"].pop("run.keep")
        assert documents[1] == documents[0]
        assert documents[2] == documents[0]
        assert stages[2] == stages[1]
        assert stages[1] == pytest.approx(stages[0], rel=1e-9)

    check()
    assert len(played) >= 3


class TestComparisons:
    @pytest.mark.slow
    @pytest.mark.parametrize("more", [{}, {"run.duration": "40ms"}])
    def test_of_sketches(self, sketch: None, more: dict[str, Any]) -> None:
        a, b = (
            compare("virtio-net", "vhost-net", settings={"run.keep": keep, "run.requests": 4000, **more}, workers=1)
            for keep in KEEPS
        )
        for name, e in a.ratios[1].items():
            other = b.ratios[1][name]
            assert other.value == pytest.approx(e.value, rel=2**-10)
            if name in ("latency_mean", "latency_p50", "latency_p90"):
                assert other.low is not None
                assert other.high is not None
                assert other.low < other.value < other.high
        assert b.plot() is not None
        assert b.results[0].plot() is not None
        assert b.table.num_rows == a.table.num_rows

    @pytest.mark.slow
    def test_means_are_paired_by_common_random_numbers(self, sketch: None) -> None:
        a, b = (
            compare("virtio-net", "vhost-net", settings={"run.keep": keep, "run.requests": 4000}, workers=1)
            for keep in KEEPS
        )
        widths = [c.ratios[1]["latency_mean"].high - c.ratios[1]["latency_mean"].low for c in (a, b)]  # type: ignore[operator]
        assert widths[1] == pytest.approx(widths[0], rel=0.05)

    def test_with_one_that_keeps_its_requests_is_refused(self, sketch: None) -> None:
        ours, theirs = (simulate("vhost-net", keep, run__requests=300) for keep in KEEPS)
        with pytest.raises(iosim.IosimError, match="cannot be compared"):
            iosim.kept.latency_ratios(ours.kept, theirs.kept)
        assert isinstance(ours.kept, Requests)
        assert isinstance(theirs.kept, Summaries)


class TestTheSketch:
    @given(st.integers(0, (1 << 62) - 1))
    def test_a_value_is_in_its_bin_and_near_its_middle(self, value: int) -> None:
        place = bin_of(value)
        assert 0 <= place < BINS
        low, high = (int(edge[0]) for edge in edges(np.array([place])))
        assert low <= value <= high
        assert abs(Fraction(low + high, 2) - value) <= Fraction(value, 2048)

    def test_bins_have_no_gap_and_no_overlap(self) -> None:
        low, high = edges(np.arange(BINS))
        assert low[0] == 0
        assert (low[1:] == high[:-1] + 1).all()
        assert high[-1] == (1 << 62) - 1

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.lists(st.integers(1, 10**12), max_size=30), min_size=8, max_size=32).filter(any),
        st.floats(0.001, 0.999),
    )
    def test_quantiles_are_within_the_error_of_the_exact_ones(self, parts: list[list[int]], q: float) -> None:
        found = batches(parts)
        values = [value for part in parts for value in part]
        exact, e = statistics.quantile(values, q), statistics.quantile_of_batches(found, q)
        assert abs(e.value - exact.value) <= exact.value * 2**-11
        assert e.low is None or e.low <= e.value
        assert e.high is None or e.value <= e.high
        mean = statistics.mean_of_batches(found)
        assert mean.value == sum(values) / len(values)


def batches(parts: list[list[int]]) -> Batches:
    bins = np.unique([bin_of(value) for part in parts for value in part])
    low, high = edges(bins)
    counts = np.zeros((len(parts), len(bins)), dtype=np.int64)
    for i, part in enumerate(parts):
        for value in part:
            counts[i, np.searchsorted(bins, bin_of(value))] += 1
    return Batches(
        sizes=np.array([len(part) for part in parts]),
        sums=[sum(part) for part in parts],
        low=low.astype(float),
        high=high.astype(float),
        counts=counts,
        greatest=float(max(max(part) for part in parts if part)),
    )


def test_intervals_of_batches_are_those_of_the_values() -> None:
    """Of equal batches, where bins hold one value each, nothing is lost."""
    rng = np.random.default_rng(7)
    x = np.cumsum(rng.integers(-3, 4, 32 * 200)) % 997 + 1
    found = batches([part.tolist() for part in np.split(x, 32)])
    for q in (0.1, 0.5, 0.9, 0.99):
        assert statistics.quantile_of_batches(found, q) == statistics.quantile(x, q)
    a, b = statistics.mean_of_batches(found), statistics.mean(x)
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), rel=1e-12)
    y = rng.integers(100, 200, 32 * 200)
    other = batches([part.tolist() for part in np.split(y, 32)])
    for q in (0.5, 0.9):
        ours, theirs = statistics.quantile_ratio_of_batches(found, other, q), statistics.quantile_ratio(x, y, q)
        assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), rel=1e-12)
    ours, theirs = statistics.ratio_of_means_of_batches(found, other), statistics.ratio_of_means(x, y)
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), rel=1e-9)


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = batches([[1_234_567] * 10 for _ in range(32)])
    assert statistics.mean_of_batches(found) == statistics.Estimate(1_234_567.0, 1_234_567.0, 1_234_567.0, 0.95)


class TestRowsUsedAgain:
    def table(self) -> RequestTable:
        table = RequestTable([Stage("a", "guest", "work"), Stage("b", "guest", "work")])
        table.recycle(4)
        return table

    def test_only_rows_that_are_done(self) -> None:
        table = self.table()
        for now in range(4):
            create(table, now)
        with pytest.raises(iosim.IosimError, match="4 requests are under way at a time"):
            create(table, 4)
        table = self.table()
        for now in range(4):
            create(table, now)
        mark(table, 0, 2, 10)
        give_up(table, 1)
        assert create(table, 11) == 4
        assert create(table, 12) == 5
        with pytest.raises(iosim.IosimError, match="4 requests are under way"):
            create(table, 13)

    def test_the_place_of_an_old_request_that_is_still_under_way_is_left_out(self) -> None:
        """An overloaded open loop: most are dropped at once while one waits. It keeps its place and its stamps."""
        table = self.table()
        create(table, 0)
        for now in range(1, 40):
            row = create(table, now)
            assert row & table.mask
            give_up(table, row)
        assert table.created == 40
        assert not recycled(table, 0)
        mark(table, 0, 2, 100)
        assert table._table[:3].tolist() == [0, -1, 100]
        assert [create(table, now) & table.mask for now in range(4)] == [0, 1, 2, 3]
        assert recycled(table, 0)

    def test_a_late_stamp_of_an_old_row_does_not_touch_the_new_one(self) -> None:
        table = self.table()
        for now in range(4):
            create(table, now)
        give_up(table, 0)
        assert not recycled(table, 0)
        create(table, 20)
        assert recycled(table, 0)
        mark(table, 0, 1, 30)
        mark_past(table, 0, 1, 30)
        assert table._table[:3].tolist() == [20, -1, -1]
        mark(table, 4, 1, 31)
        assert table._table[:3].tolist() == [20, 31, -1]

    def test_sums_larger_than_a_word_are_exact(self) -> None:
        table = self.table()
        s = Summary(3, 1, BINS)
        longest = 1 << 61
        row = create(table, 0)
        mark(table, row, 2, longest)
        for _ in range(100):
            add(s, table, row)
        assert s.sums[0] + (s.carries[0] << CARRY) == 0
        assert s.sums[1] + (s.carries[1] << CARRY) == 100 * longest


PEAK = """
import resource, sys
import iosim
chosen = {"run.keep": "summary", "run.engine": "compiled", "run.requests": int(sys.argv[1])}
iosim.simulate("virtio-net", workload="tx", settings=chosen).to_dict()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_ten_times_the_requests_take_no_more_memory() -> None:
    pytest.importorskip("llvmlite")
    peaks = [
        int(subprocess.run([sys.executable, "-c", PEAK, str(n)], capture_output=True, text=True, check=True).stdout)
        for n in (6_000, 300_000, 3_000_000)
    ]
    # What the sketch's bins take, and what estimating from them does: KiB.
    assert peaks[2] - peaks[1] < 8 * 1024
