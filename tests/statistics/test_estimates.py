"""Estimates: the values, when there is an interval and when not, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from iosim.errors import IosimError
from iosim.statistics import (
    FEWEST_VALUES,
    MERGE_LEVEL,
    Estimate,
    _correlated,
    mean,
    quantile,
    quantile_ratio,
    ratio,
    ratio_of_means,
)

TIMES = st.lists(st.integers(0, 2**40), min_size=1, max_size=200)


def spread_evenly(n: int) -> list[int]:
    """1 to n in an order that spreads every value over the run, so that no batch differs from another."""
    golden = (math.sqrt(5) - 1) / 2
    order = np.argsort(np.arange(n) * golden % 1)
    ranks: list[int] = (np.argsort(order) + 1).tolist()
    return ranks


def test_an_estimate_is_a_value_with_an_interval() -> None:
    estimate = Estimate(2.0, 1.0, None, 0.9)
    assert estimate.to_dict() == {"value": 2.0, "low": 1.0, "high": None, "confidence": 0.9}
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.value = 3.0  # type: ignore[misc]


# --- means ---------------------------------------------------------------------------------------------


@given(TIMES)
def test_mean_is_the_mean_of_all_values(values: list[int]) -> None:
    estimate = mean(values)
    assert estimate.value == pytest.approx(sum(values) / len(values))
    assert (estimate.low is None) == (estimate.high is None) == (len(values) < FEWEST_VALUES)
    if estimate.low is not None and estimate.high is not None:
        assert estimate.low <= estimate.value <= estimate.high


def test_mean_of_independent_batches_is_the_t_interval_of_their_means() -> None:
    # Means of 32 batches of 10 that alternate: negatively correlated, so none are merged.
    batch_means = np.array([1.0, 4.0, 2.0, 3.0] * 8)
    estimate = mean(np.repeat(batch_means, 10))
    half = stats.t.isf(0.025, 31) * batch_means.std(ddof=1) / math.sqrt(32)
    assert estimate.low == pytest.approx(2.5 - half)
    assert estimate.high == pytest.approx(2.5 + half)


def test_mean_of_correlated_batches_is_the_t_interval_of_the_last_8() -> None:
    values = np.sin(np.arange(3200) * 2 * math.pi / 3200)
    estimate = mean(values)
    batch_means = values.reshape(8, 400).mean(axis=1)
    assert estimate.high == pytest.approx(stats.t.isf(0.025, 7) * batch_means.std(ddof=1) / math.sqrt(8))


@pytest.mark.parametrize("n", [64, 65, 95, 1000, 1023])
def test_batches_use_every_value(n: int) -> None:
    rng = np.random.default_rng(n)
    values = rng.normal(size=n)
    widths = []
    for place in (0, n // 2, n - 1):
        changed = values.copy()
        changed[place] += 1000
        estimate = mean(changed)
        assert estimate.high is not None
        widths.append(estimate.high - estimate.value)
    # One value that is 1000 off gives the mean a standard error of about 1000 / n, wherever it stands; in
    # batches of m and of m + 1 >= 3 values its weight differs by a factor of sqrt(3 / 2) at most.
    assert min(widths) > 1000 / n
    assert max(widths) < 1.3 * min(widths)


@pytest.mark.parametrize("b", [8, 16, 32])
def test_independent_batches_are_found_correlated_as_often_as_the_level_says(b: int) -> None:
    runs = np.random.default_rng(b).normal(size=(4000, b))
    found = sum(_correlated(x - x.mean()) for x in runs)
    # The normal approximation to von Neumann's ratio is good for 0.01; the rest is the binomial's.
    assert stats.binom.ppf(1e-4, 4000, MERGE_LEVEL - 0.01) <= found
    assert found <= stats.binom.isf(1e-4, 4000, MERGE_LEVEL + 0.01)


def test_equal_values_have_an_interval_of_no_width() -> None:
    for value in (0.0, 0.1, 1e15 + 1):
        assert mean([value] * 100) == Estimate(value, value, value, 0.95)
    assert mean([5.0] * 63) == Estimate(5.0, None, None, 0.95)


def test_more_confidence_is_a_wider_interval() -> None:
    values = np.random.default_rng(0).exponential(size=500)
    for narrow, wide in (
        (mean(values, 0.8), mean(values, 0.99)),
        (quantile(values, 0.5, 0.8), quantile(values, 0.5, 0.99)),
    ):
        ends = [wide.low, narrow.low, narrow.value, narrow.high, wide.high]
        found = [end for end in ends if end is not None]
        assert len(found) == 5
        assert found == sorted(set(found))
        assert wide.confidence == 0.99


# --- quantiles -----------------------------------------------------------------------------------------


@given(TIMES, st.sampled_from([0.01, 0.07, 0.29, 0.5, 0.57, 0.9, 0.99, 0.999]))
def test_quantile_is_the_smallest_value_that_a_fraction_q_does_not_exceed(
    values: list[int], q: float
) -> None:
    value = quantile(values, q).value
    assert value in values
    # In thousandths, so that the definition is checked in whole numbers.
    needed = round(1000 * q) * len(values)
    assert 1000 * sum(v <= value for v in values) >= needed
    assert 1000 * sum(v < value for v in values) < needed


def test_quantile_ranks_are_exact() -> None:
    # 0.07 * 100 and 0.57 * 100 in floats are not 7 and 57.
    values = spread_evenly(100)
    assert [quantile(values, q).value for q in (0.07, 0.5, 0.57, 0.99, 0.999)] == [7, 50, 57, 99, 100]


@pytest.mark.parametrize(("n", "q"), [(100, 0.5), (1000, 0.9), (5000, 0.99), (5000, 0.01)])
def test_interval_of_independent_values_has_binomial_ranks(n: int, q: float) -> None:
    estimate = quantile(spread_evenly(n), q)
    # In 1..n the value is the rank: P(low <= B < high) is the coverage of the interval.
    assert estimate.low is not None
    assert estimate.high is not None
    coverage = stats.binom.cdf(estimate.high - 1, n, q) - stats.binom.cdf(estimate.low - 1, n, q)
    narrower = stats.binom.cdf(estimate.high - 2, n, q) - stats.binom.cdf(estimate.low, n, q)
    assert narrower < 0.95 <= coverage


@pytest.mark.parametrize(("q", "needed"), [(0.99, 368), (0.999, 3688)])
def test_the_tail_has_no_upper_end_in_a_run_that_is_too_short(q: float, needed: int) -> None:
    # All of the values lie below the quantile with a probability of q**n: more than 2.5 % for shorter runs.
    assert q**needed <= 0.025 < q ** (needed - 1)
    assert quantile(spread_evenly(needed), q).high == needed
    short = quantile(spread_evenly(needed - 1), q)
    assert short.high is None
    assert short.low is not None


def test_neighbours_that_agree_widen_the_interval_of_a_quantile() -> None:
    values = np.random.default_rng(3).normal(size=200)
    alone, thrice = quantile(values, 0.5), quantile(np.repeat(values, 50), 0.5)
    assert thrice.value == alone.value
    # Fifty copies of each value say no more than one.
    width = (thrice.high or 0) - (thrice.low or 0)
    assert 0.7 < width / ((alone.high or 0) - (alone.low or 0)) < 1.6


def test_neighbours_that_agree_widen_the_interval_where_many_values_are_equal() -> None:
    # How many values exceed the median, or how many reach it, varies from one stretch of the run to the next.
    assert quantile([5] * 250 + [9] * 150, 0.5).high == 9
    runs = [0] * 150 + [5] * 250
    assert quantile(runs, 0.5).low == 0
    mixed = [runs[i - 1] for i in spread_evenly(400)]
    assert quantile(mixed, 0.5) == Estimate(5.0, 5.0, 5.0, 0.95)


def test_a_quantile_of_equal_values_is_that_value() -> None:
    assert quantile([7] * 100, 0.5) == Estimate(7.0, 7.0, 7.0, 0.95)
    assert quantile([7] * 63, 0.5) == Estimate(7.0, None, None, 0.95)


# --- ratios --------------------------------------------------------------------------------------------


def test_ratio_is_the_ratio_of_the_sums() -> None:
    estimate = ratio([1, 2, 3], [1, 1, 2])
    assert estimate == Estimate(1.5, None, None, 0.95)


def test_ratio_has_cochrans_standard_error() -> None:
    rng = np.random.default_rng(4)
    x = rng.uniform(5, 10, size=8)
    y = 3 * x + rng.normal(size=8)
    value = y.sum() / x.sum()
    error = math.sqrt(((y - value * x) ** 2).sum() / 7 / 8) / x.mean()
    estimate = ratio(y, x)
    assert estimate.value == pytest.approx(value)
    assert estimate.high == pytest.approx(value + stats.t.isf(0.025, 7) * error)
    assert estimate.low == pytest.approx(value - stats.t.isf(0.025, 7) * error)
    assert ratio(y[:7], x[:7]).low is None


def test_totals_in_proportion_have_a_ratio_without_error() -> None:
    x = np.arange(1, 41)
    assert ratio(3 * x, x) == Estimate(3.0, 3.0, 3.0, 0.95)
    assert ratio(0 * x, x) == Estimate(0.0, 0.0, 0.0, 0.95)


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_common_random_numbers_make_ratios_narrow() -> None:
    rng = np.random.default_rng(5)
    b = rng.exponential(size=2000) + 1
    a, apart = b + 0.5, rng.exponential(size=2000) + 1.5
    # The runs differ by a constant, so only its weight against the mean varies.
    assert width(ratio_of_means(a, b)) < 0.5 * width(ratio_of_means(apart, b))
    assert width(quantile_ratio(a, b, 0.9)) < 0.5 * width(quantile_ratio(apart, b, 0.9))
    # Without the last request the runs can no longer be paired: the interval is that of independent runs.
    assert width(ratio_of_means(a[:-1], b)) == pytest.approx(width(ratio_of_means(apart[:-1], b)), rel=0.3)


def test_a_run_against_itself_is_1_without_error() -> None:
    values = np.random.default_rng(6).integers(1, 10**9, size=2000)
    assert ratio_of_means(values, values) == Estimate(1.0, 1.0, 1.0, 0.95)
    assert quantile_ratio(values, values, 0.9) == Estimate(1.0, 1.0, 1.0, 0.95)


def test_ratio_of_independent_means_has_the_error_of_both() -> None:
    # Batch means that alternate, as above; with 32 batches each Welch's degrees of freedom are known.
    a, b = np.repeat([9.0, 11.0] * 16, 10), np.repeat([3.0, 5.0] * 16, 20)
    error_a, error_b = (math.sqrt(32 / 31) / math.sqrt(32),) * 2
    value, parts = 10 / 4, ((error_a / 4) ** 2, (10 / 4 * error_b / 4) ** 2)
    freedom = sum(parts) ** 2 / (sum(p**2 for p in parts) / 31)
    half = stats.t.isf(0.025, freedom) * math.sqrt(sum(parts))
    estimate = ratio_of_means(a, b)
    assert estimate.value == pytest.approx(value)
    assert width(estimate) == pytest.approx(2 * half)
    assert ratio_of_means(a, b[:63]).low is None
    assert ratio_of_means(a[:63], b[:63]).low is None


def test_quantile_ratio_is_that_of_the_order_statistics() -> None:
    a, b = [2 * v for v in spread_evenly(101)], spread_evenly(1000)
    assert quantile_ratio(a, b, 0.5).value == 2 * 51 / 500
    assert quantile_ratio(a[:50], b, 0.5).low is None


@pytest.mark.parametrize(
    ("factors", "length", "q", "sections"),
    [
        # Sections of `length` values, each as many times the baseline's as its factor says.
        ([2, 8] * 8, 20, 0.5, 16),
        # 100 * (1 - 0.9) in floats is less than the 10 that it is.
        ([2, 8] * 8, 100, 0.9, 16),
        # One value less in each leaves fewer than 10 beyond the quantile.
        ([2, 8] * 8, 99, 0.9, 8),
        # Sections that go together are merged.
        ([2] * 8 + [8] * 8, 20, 0.5, 8),
    ],
)
def test_quantile_ratio_of_sections_of_known_ratios(
    factors: list[int], length: int, q: float, sections: int
) -> None:
    section = np.array(spread_evenly(length), dtype=float)
    a, b = np.concatenate([f * section for f in factors]), np.tile(section, 16)
    estimate = quantile_ratio(a, b, q)
    own = [
        np.quantile(x, q, method="inverted_cdf") / np.quantile(y, q, method="inverted_cdf")
        for x, y in zip(np.split(a, sections), np.split(b, sections), strict=True)
    ]
    half = stats.t.isf(0.025, sections - 1) * np.log(own).std(ddof=1) / math.sqrt(sections)
    assert estimate.low == pytest.approx(estimate.value * math.exp(-half))
    assert estimate.high == pytest.approx(estimate.value * math.exp(half))


def test_quantile_ratio_of_zeros_needs_no_logarithm() -> None:
    b = spread_evenly(400)
    assert quantile_ratio([0] * 400, b, 0.5) == Estimate(0.0, 0.0, 0.0, 0.95)
    # Some of the sections have a median of 0, the run has not.
    some = quantile_ratio([0] * 30 + [5] * 370, b, 0.5)
    assert some.value == 5 / 200
    assert some.low is not None
    assert 0 <= some.low < 5 / 200


def test_quantile_ratio_of_short_runs_is_between_the_extremes_of_both() -> None:
    a, b = [3 * v for v in spread_evenly(500)], spread_evenly(600)
    ours, theirs, estimate = quantile(a, 0.99, 0.975), quantile(b, 0.99, 0.975), quantile_ratio(a, b, 0.99)
    assert ours.low is not None
    assert theirs.high is not None
    assert estimate.low == ours.low / theirs.high
    assert quantile_ratio(a, b, 0.999).high is None


# --- what is refused -----------------------------------------------------------------------------------

ESTIMATORS: dict[str, Callable[[Any], Estimate]] = {
    "mean": mean,
    "quantile": lambda x: quantile(x, 0.9),
    "ratio": lambda x: ratio(x, x),
    "ratio_of_means": lambda x: ratio_of_means(x, x),
    "quantile_ratio": lambda x: quantile_ratio(x, x, 0.9),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    "values", [[], [1.0, math.nan], [math.inf] * 100, [[1.0, 2.0]], ["a"], None, 3.0], ids=repr
)
def test_no_estimate_from_nothing_or_from_what_is_no_number(name: str, values: object) -> None:
    with pytest.raises(IosimError) as caught:
        ESTIMATORS[name](values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "estimate",
    [
        *(lambda c=c: mean([1], c) for c in (0, 1, -0.5, math.nan)),
        *(lambda q=q: quantile([1], q) for q in (0, 1, 1.5, math.nan)),
        lambda: ratio([1, 2], [1]),
        lambda: ratio([1, 2], [0, 0]),
        lambda: ratio([1, 2], [3, -1]),
        lambda: ratio_of_means([1, 2], [0, 0]),
        lambda: quantile_ratio([1, 2], [0, 0], 0.5),
        lambda: quantile_ratio([1, -2], [1, 1], 0.5),
        lambda: quantile_ratio([1], [1], 2),
    ],
)
def test_what_has_no_estimate_is_refused(estimate: Callable[[], Estimate]) -> None:
    with pytest.raises(IosimError):
        estimate()


@given(st.lists(st.floats(0, 1e15), min_size=64, max_size=200), st.floats(0.001, 0.999))
@settings(max_examples=100, deadline=None)
def test_intervals_of_any_times_are_ordered_around_the_value(values: Sequence[float], q: float) -> None:
    for estimate in (mean(values), quantile(values, q), ratio(values, [v + 1 for v in values])):
        assert estimate.low is None or estimate.low <= estimate.value
        assert estimate.high is None or estimate.value <= estimate.high
        assert math.isfinite(estimate.value)
