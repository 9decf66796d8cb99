"""The figure of a sweep."""

import io
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.axes import Axes

from iosim.errors import IosimError
from iosim.plot_sweep import plot_sweep
from iosim.sweep import Sweep, sweep


def run(vary: Any, models: Any = ("virtio-net", "vhost-net"), **more: Any) -> Sweep:
    return sweep(models, vary, **{"requests": 70, "workers": 1, **more})


@pytest.fixture(scope="module")
def depths() -> Sweep:
    return run("workload.depth=1..8*2")


def lines(axes: Axes) -> dict[str, tuple[Any, Any]]:
    """x and y by label, of the lines with error bars."""
    return {str(c.get_label()): c.lines[0].get_data() for c in axes.containers}  # type: ignore[attr-defined]


def test_values_units_and_scales(depths: Sweep) -> None:
    figure = depths.plot()
    left, right = figure.axes
    assert left.get_xscale() == "log"
    assert [t.get_text() for t in left.get_xticklabels()] == ["1", "2", "4", "8"]
    assert (left.get_ylabel(), right.get_ylabel()) == ("latency (µs)", "throughput (1/s)")
    assert left.get_xlabel() == "workload.depth"
    table = depths.table.to_pydict()
    x, y = lines(left)["virtio-net"]
    assert list(x) == [1, 2, 4, 8]
    assert np.allclose(y, np.array(table["latency_mean_ns"][:4]) / 1000)
    assert np.allclose(lines(right)["vhost-net"][1], table["throughput_per_s"][4:])
    assert "assumed" in figure.get_suptitle()


def test_lines_differ_without_colour(depths: Sweep) -> None:
    drawn = [c.lines[0] for c in depths.plot().axes[0].containers]  # type: ignore[attr-defined]
    assert len({line.get_marker() for line in drawn}) == len(drawn) == 2
    assert len({line.get_linestyle() for line in drawn}) == 2


def test_steps_are_on_a_linear_axis_and_times_have_a_unit() -> None:
    left, _ = run("workload.think_time=0us..30us:10us", "vhost-net").plot().axes
    assert left.get_xscale() == "linear"
    assert left.get_xlabel() == "workload.think_time (µs)"
    assert list(lines(left)["vhost-net"][0]) == [0, 10, 20, 30]
    assert left.get_legend() is None


def test_names_make_bars_with_hatches() -> None:
    figure = run(["workload=rr,rx"]).plot(x="workload")
    left, _ = figure.axes
    assert [t.get_text() for t in left.get_xticklabels()] == ["rr", "rx"]
    bars = [c for c in left.containers if hasattr(c, "patches")]
    assert len({c.patches[0].get_hatch() for c in bars}) == len(bars) == 2


def test_replications_are_averaged_with_an_interval_between_them() -> None:
    found = run("workload.depth=1,2", "vhost-net", replications=3)
    left, _ = found.plot().axes
    _, y = lines(left)["vhost-net"]
    means = np.array(found.table["latency_mean_ns"].to_pylist()).reshape(2, 3) / 1000
    assert np.allclose(y, means.mean(axis=1))
    # Student's t, 2 degrees of freedom, two-sided 95 %: 4.3027 (any table)
    half = 4.3027 * means.std(axis=1, ddof=1) / np.sqrt(3)
    segments = left.containers[0].lines[2][0].get_segments()  # type: ignore[attr-defined]
    assert np.allclose([(s[1, 1] - s[0, 1]) / 2 for s in segments], half, rtol=1e-4)


def test_other_columns_and_one_bar() -> None:
    found = run((), "vhost-net")
    assert plot_sweep(found.table, y="kicks").axes[0].get_ylabel() == "kicks"
    assert plot_sweep(found, y="latency_p99_9_ns").axes[0].get_ylabel() == "latency p99.9 (µs)"


def test_a_failed_point_is_a_gap() -> None:
    found = run({"run.duration": ["20us", "1ms", "2ms"]}, "vhost-net", requests=None)
    _, y = lines(found.plot().axes[0])["vhost-net"]
    assert list(np.isnan(y)) == [True, False, False]
    found.plot().savefig(io.BytesIO())


@pytest.mark.slow
def test_more_lines_than_can_be_told_apart() -> None:
    found = run(["workload.depth=1,2", "workload.size=1..40"], "vhost-net", requests=5)
    figure = found.plot(x="workload.depth")
    assert len(lines(figure.axes[0])) == 35
    assert figure.legends[0].get_title().get_text() == "5 more are not drawn"


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ("workload.dept", "kicks", "unknown varied key 'workload.dept'; did you mean 'workload.depth'?"),
        (None, "kick", "unknown column 'kick'; did you mean 'kicks'?"),
        (None, "error", "the column 'error' has no numbers"),
    ],
)
def test_errors(depths: Sweep, x: str | None, y: str, says: str) -> None:
    with pytest.raises(IosimError) as error:
        depths.plot(x, y)
    assert says in str(error.value)


def test_a_table_of_something_else() -> None:
    with pytest.raises(IosimError, match="holds no sweep"):
        plot_sweep(pa.table({"latency_mean_ns": [1.0]}))


def test_no_window_is_opened(depths: Sweep) -> None:
    before = sys.modules.get("matplotlib.pyplot")
    target = io.BytesIO()
    depths.plot().savefig(target, format="png")
    assert target.getvalue()[:4] == b"\x89PNG"
    assert sys.modules.get("matplotlib.pyplot") is before
