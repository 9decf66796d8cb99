"""Figures show what the results say: read from the drawn patches, not from the code that drew them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from iosim.compare import Comparison, compare
from iosim.errors import IosimError
from iosim.plot import COLOURS, _lightness, plot_comparison, plot_run, save


@pytest.fixture(scope="module")
def three() -> Comparison:
    return compare("e1000", "virtio-net", "vhost-net", requests=300, workers=1)


def rectangles(figure: Figure, axes: int, group: str) -> dict[str, Rectangle]:
    found = {}
    for patch in figure.axes[axes].patches:
        gid = patch.get_gid()
        if gid is not None and gid.startswith(f"{group}/"):
            assert isinstance(patch, Rectangle)
            found[gid.removeprefix(f"{group}/")] = patch
    return found


def several(comparison: Comparison, count: int) -> Comparison:
    places = [i % len(comparison.asked) for i in range(count)]
    asked = [replace(comparison.asked[p], label=f"path number {i} with a long name") for i, p in enumerate(places)]
    return Comparison(asked, [comparison.results[p] for p in places], [])


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_one_bar_per_path_whose_segments_adjoin_and_sum_to_the_mean_latency(three: Comparison, count: int) -> None:
    comparison = several(three, count)
    figure = plot_comparison(comparison)
    found = rectangles(figure, 0, "stage")
    assert {name.split("/")[0] for name in found} == {str(i) for i in range(count)}
    for i, result in enumerate(comparison.results):
        end = 0.0
        for stage in result.breakdown():
            patch = found[f"{i}/{stage.name}"]
            assert patch.get_x() == pytest.approx(end, abs=1e-9)
            assert patch.get_width() == pytest.approx(stage.mean.value / 1000)
            end += patch.get_width()
        assert end == pytest.approx(result.latency["mean"].value / 1000)


def test_throughput_bars_are_the_throughputs(three: Comparison) -> None:
    found = rectangles(plot_comparison(three), 1, "throughput")
    assert [found[str(i)].get_width() for i in range(3)] == [r.throughput.value for r in three.results]


def test_axes_name_their_units(three: Comparison) -> None:
    figure = plot_comparison(three)
    assert figure.axes[0].get_xlabel() == "mean latency (µs)"
    assert figure.axes[1].get_xlabel() == "throughput (requests/s)"
    run = plot_run(three.results[0])
    assert "(µs)" in run.axes[0].get_xlabel()
    assert "(µs)" in run.axes[1].get_xlabel()


def test_a_stage_of_no_length_has_no_width_and_no_label(three: Comparison) -> None:
    figure = plot_comparison(three)
    assert rectangles(figure, 0, "stage")["0/no kick"].get_width() == 0
    assert not any("no kick" in text.get_text() for text in figure.axes[0].texts)


def test_where_latencies_differ_much_each_path_is_drawn_again_as_100_percent(three: Comparison) -> None:
    latencies = [r.latency["mean"].value for r in three.results]
    assert max(latencies) > 1.5 * min(latencies)
    found = rectangles(plot_comparison(three), 2, "share")
    for i in range(3):
        assert sum(p.get_width() for name, p in found.items() if name.startswith(f"{i}/")) == pytest.approx(100)
    alike = Comparison([three.asked[1]] * 2, [three.results[1]] * 2, [])
    assert len(plot_comparison(alike).axes) == 2


def test_every_text_lies_within_the_figure(three: Comparison) -> None:
    for figure in (plot_comparison(several(three, 6)), plot_comparison(three), plot_run(three.results[0])):
        figure.draw_without_rendering()
        box = figure.bbox
        texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
        for text in texts:
            extent = text.get_window_extent()
            assert extent.x0 >= box.x0, text
            assert extent.x1 <= box.x1, text


def test_a_label_in_a_bar_stays_within_its_segment(three: Comparison) -> None:
    figure = plot_comparison(three)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    found = rectangles(figure, 0, "stage")
    checked = 0
    for text in axes.texts:
        for name, patch in found.items():
            if text.get_text().replace("\n", " ").startswith(name.split("/")[1]) and patch.contains_point(
                axes.transData.transform(text.get_position())
            ):
                inner, outer = text.get_window_extent(), patch.get_window_extent()
                assert inner.x0 >= outer.x0 - 1, name
                assert inner.x1 <= outer.x1 + 1, name
                assert inner.y0 >= outer.y0 - 1, name
                assert inner.y1 <= outer.y1 + 1, name
                checked += 1
    assert checked >= 4


def test_waiting_is_hatched_and_work_is_not(three: Comparison) -> None:
    found = rectangles(plot_comparison(three), 0, "stage")
    for i, result in enumerate(three.results):
        for stage in result.breakdown():
            assert bool(found[f"{i}/{stage.name}"].get_hatch()) == (stage.kind != "work")


def test_colours_get_lighter_from_the_guest_outwards() -> None:
    lightness = [_lightness(colour) for colour in COLOURS.values()]
    assert min(np.diff(lightness)) > 5
    assert _lightness("#ffffff") == pytest.approx(100, abs=0.01)
    assert _lightness("#000000") == 0


def test_the_steps_of_a_run_stand_at_their_place_and_sum_to_the_mean(three: Comparison) -> None:
    result = three.results[1]
    steps = rectangles(plot_run(result), 0, "step")
    assert list(steps) == [s.name for s in result.breakdown()]
    last = list(steps.values())[-1]
    assert last.get_x() + last.get_width() == pytest.approx(result.latency["mean"].value / 1000)


def test_the_tail_is_the_fraction_of_requests_that_took_longer(three: Comparison) -> None:
    result = three.results[0]
    x, y = next(line.get_data() for line in plot_run(result).axes[1].lines if len(line.get_xdata()) > 10)
    latencies = result.latency_ps / 1e6
    for value, above in zip(np.asarray(x)[1:-1], np.asarray(y)[1:-1], strict=True):
        assert above == pytest.approx(np.mean(latencies > value * (1 + 1e-12)))


def test_percentiles_that_the_run_has_no_requests_for_are_not_marked(three: Comparison) -> None:
    texts = [text.get_text() for text in plot_run(three.results[0]).axes[1].texts]
    assert any(text.startswith("p99 ") for text in texts)
    assert not any(text.startswith("p99.9") for text in texts)


def test_constant_latencies_can_be_drawn() -> None:
    comparison = compare("vhost-net", requests=20, workers=1, settings={"host.constant": True})
    plot_run(comparison.results[0]).draw_without_rendering()
    plot_comparison(comparison).draw_without_rendering()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_a_saved_figure_is_whole_and_the_same_each_time(three: Comparison, tmp_path: Path, suffix: str) -> None:
    magic = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    first, second = (save(plot_comparison(three), tmp_path / f"{name}.{suffix}") for name in "ab")
    assert first.read_bytes().startswith(magic)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a.{suffix}", f"b.{suffix}"]


@pytest.mark.parametrize("name", ["figure.bmp", "figure"])
def test_an_unknown_suffix_is_one_line_and_writes_nothing(three: Comparison, tmp_path: Path, name: str) -> None:
    with pytest.raises(IosimError, match=r"\.png, \.pdf, \.svg") as caught:
        save(plot_comparison(three), tmp_path / name)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_fails_while_being_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_text("old")

    class Broken(Figure):
        def savefig(self, fname: object, **_: object) -> None:
            Path(str(fname)).write_text("half")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        save(Broken(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_notebook_shows_the_figure(three: Comparison) -> None:
    from IPython.core.formatters import DisplayFormatter

    data, _ = DisplayFormatter().format(plot_comparison(three))
    assert data["image/png"]


def test_the_users_style_does_not_change_the_figure(three: Comparison) -> None:
    with matplotlib.rc_context({"text.color": "red", "axes.labelcolor": "red", "xtick.color": "red"}):
        figure = plot_comparison(three)
    assert all(matplotlib.colors.to_hex(text.get_color()) != "#ff0000" for text in figure.axes[0].texts)
    assert figure.axes[0].xaxis.label.get_color() == "black"


@pytest.mark.slow
def test_neither_importing_iosim_loads_matplotlib_nor_plotting_loads_pyplot() -> None:
    program = (
        "import sys, iosim; assert 'matplotlib' not in sys.modules, 'matplotlib'\n"
        "iosim.simulate('vhost-net', requests=10).plot()\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
