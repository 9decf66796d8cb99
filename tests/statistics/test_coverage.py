"""How often the intervals cover what they should, counted over many simulated runs.

Each experiment states a band for the true probability of coverage at a nominal 95 %. The count of n runs
that cover is binomial, so a right implementation leaves the band, widened by the binomial quantiles at 1e-4,
with a probability below 2e-4. An end that is None is without bound and so covers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import signal, special, stats

from iosim.statistics import Estimate, mean, quantile, quantile_ratio, ratio, ratio_of_means

Array = npt.NDArray[np.float64]
RUNS = 600


def covers(estimate: Estimate, truth: float) -> bool:
    low = -math.inf if estimate.low is None else estimate.low
    high = math.inf if estimate.high is None else estimate.high
    return low <= truth <= high


def assert_coverage(found: list[bool], lowest: float, highest: float) -> None:
    runs, count = len(found), sum(found)
    assert stats.binom.ppf(1e-4, runs, lowest) <= count <= stats.binom.isf(1e-4, runs, highest), count / runs


def exponential(rng: np.random.Generator, runs: int, n: int) -> Array:
    return rng.exponential(size=(runs, n))


def autoregressive(rho: float) -> Callable[[np.random.Generator, int, int], Array]:
    """AR(1) with a mean of 20 and a variance of 1, from its stationary state."""

    def series(rng: np.random.Generator, runs: int, n: int) -> Array:
        noise = rng.normal(size=(runs, n)) * math.sqrt(1 - rho * rho)
        noise[:, 0] /= math.sqrt(1 - rho * rho)
        return 20 + np.asarray(signal.lfilter([1], [1, -rho], noise, axis=1))

    return series


def queue(rho: float) -> Callable[[np.random.Generator, int, int], Array]:
    """Waiting times of M/M/1 by Lindley's recursion, mean service 1, from its stationary state."""

    def series(rng: np.random.Generator, runs: int, n: int) -> Array:
        steps = rng.exponential(size=(n, runs)) - rng.exponential(1 / rho, size=(n, runs))
        waits = np.empty((n, runs))
        # P(W > t) = rho exp(-(1 - rho) t)
        waits[0] = np.where(rng.random(runs) < rho, rng.exponential(1 / (1 - rho), size=runs), 0)
        for i in range(n - 1):
            np.maximum(waits[i] + steps[i], 0, out=waits[i + 1])
        return np.ascontiguousarray(waits.T)

    return series


def queue_quantile(rho: float, q: float) -> float:
    return math.log(rho / (1 - q)) / (1 - rho)


MEANS = {
    # name: series, length, true mean, band of coverage
    "iid exponential": (exponential, 1000, 1.0, 0.925, 0.965),
    "AR(1) 0.5": (autoregressive(0.5), 2000, 20.0, 0.925, 0.97),
    "AR(1) 0.8": (autoregressive(0.8), 5000, 20.0, 0.925, 0.97),
    "M/M/1 0.5": (queue(0.5), 5000, 1.0, 0.92, 0.97),
    # At this load about 80 values count as one, so 20 000 have few batches that are independent.
    "M/M/1 0.8": (queue(0.8), 20000, 4.0, 0.90, 0.97),
}


@pytest.mark.parametrize("name", MEANS)
def test_mean(name: str) -> None:
    series, n, truth, lowest, highest = MEANS[name]
    runs = series(np.random.default_rng(11), RUNS, n)
    assert_coverage([covers(mean(x), truth) for x in runs], lowest, highest)


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_mean_at_other_confidences(confidence: float) -> None:
    runs = autoregressive(0.5)(np.random.default_rng(12), RUNS, 2000)
    found = [covers(mean(x, confidence), 20.0) for x in runs]
    assert_coverage(found, confidence - 0.025, min(confidence + 0.025, 0.999))


def test_the_experiment_can_fail() -> None:
    """The textbook interval of independent values covers as theory says it must: far too rarely.

    The variance of the mean of AR(1) is (1 + rho) / (1 - rho) = 9 times that of independent values.
    """
    runs = autoregressive(0.8)(np.random.default_rng(11), RUNS, 5000)
    half = 1.96 * runs.std(axis=1) / math.sqrt(5000)
    found = np.abs(runs.mean(axis=1) - 20) < half
    expected = 2 * stats.norm.cdf(1.96 / 3) - 1
    assert_coverage(found.tolist(), expected - 0.03, expected + 0.03)
    with pytest.raises(AssertionError):
        assert_coverage(found.tolist(), 0.90, 0.97)


QUANTILES = {
    # Independent values have at least the nominal coverage, as the binomial ranks are exact.
    "iid p50": (exponential, 1000, 0.5, math.log(2), 0.945, 0.99),
    "iid p99": (exponential, 1000, 0.99, math.log(100), 0.945, 0.995),
    "iid p99.9": (exponential, 10000, 0.999, math.log(1000), 0.945, 0.995),
    "AR(1) 0.5 p90": (autoregressive(0.5), 2000, 0.9, 20 + special.ndtri(0.9), 0.93, 0.985),
    "AR(1) 0.8 p50": (autoregressive(0.8), 5000, 0.5, 20.0, 0.925, 0.98),
    "AR(1) 0.8 p99": (autoregressive(0.8), 10000, 0.99, 20 + special.ndtri(0.99), 0.92, 0.98),
    "M/M/1 0.5 p90": (queue(0.5), 5000, 0.9, queue_quantile(0.5, 0.9), 0.92, 0.985),
    "M/M/1 0.8 p99": (queue(0.8), 20000, 0.99, queue_quantile(0.8, 0.99), 0.88, 0.975),
}


@pytest.mark.parametrize("name", QUANTILES)
def test_quantile(name: str) -> None:
    series, n, q, truth, lowest, highest = QUANTILES[name]
    runs = series(np.random.default_rng(13), RUNS, n)
    assert_coverage([covers(quantile(x, q), truth) for x in runs], lowest, highest)


@pytest.mark.parametrize("batches", [10, 20, 40, 500])
def test_ratio_of_totals_per_batch(batches: int) -> None:
    """Exits per request: each batch has Poisson(30) requests, each request 1 + Poisson(1) exits."""
    rng = np.random.default_rng(14)
    found = []
    for _ in range(RUNS):
        requests = rng.poisson(30, size=batches)
        found.append(covers(ratio(requests + rng.poisson(requests), requests), 2.0))
    assert_coverage(found, 0.92, 0.97)


def test_ratio_of_totals_of_short_batches_that_are_correlated() -> None:
    """Fraction of the time busy, from 400 windows: busy time is AR(1) around half of the window."""
    busy = autoregressive(0.7)(np.random.default_rng(15), RUNS, 400)
    assert_coverage([covers(ratio(b / 40, np.ones(400)), 0.5) for b in busy], 0.91, 0.97)


def pairs(rng: np.random.Generator, n: int, common: float) -> tuple[Array, Array]:
    """Latencies of two paths, the first 1.2 times the second: gamma, correlated by a common part."""
    shared = rng.gamma(9 * common, size=n)
    a = shared + rng.gamma(9 * (1 - common), size=n)
    b = shared + rng.gamma(9 * (1 - common), size=n)
    return 1.2 * a, b


@pytest.mark.parametrize("common", [0.1, 0.9])
@pytest.mark.parametrize("lengths", [(1000, 1000), (1000, 700), (300, 2000)])
def test_ratio_of_means(common: float, lengths: tuple[int, int]) -> None:
    rng = np.random.default_rng(16)
    found = []
    for _ in range(RUNS):
        a, b = pairs(rng, max(lengths), common)
        found.append(covers(ratio_of_means(a[: lengths[0]], b[: lengths[1]]), 1.2))
    # Runs of different lengths are treated as independent: with a common part that is only too careful.
    assert_coverage(found, 0.925, 0.97 if lengths[0] == lengths[1] or common < 0.5 else 1.0)


@pytest.mark.parametrize(
    ("n", "q", "common", "highest"),
    [
        (400, 0.5, 0.5, 0.975),
        (4000, 0.9, 0.9, 0.975),
        (16000, 0.99, 0.5, 0.975),
        # Too short for sections: Bonferroni's inequality only promises the lower bound.
        (800, 0.99, 0.1, 1.0),
    ],
)
def test_quantile_ratio(n: int, q: float, common: float, highest: float) -> None:
    rng = np.random.default_rng(17)
    found = [covers(quantile_ratio(*pairs(rng, n, common), q), 1.2) for _ in range(RUNS)]
    assert_coverage(found, 0.925, highest)


def test_quantile_ratio_of_queues() -> None:
    """Two queues at different loads, both too correlated for 16 short sections."""
    a = queue(0.6)(np.random.default_rng(18), RUNS, 8000)
    b = queue(0.5)(np.random.default_rng(19), RUNS, 8000)
    truth = queue_quantile(0.6, 0.9) / queue_quantile(0.5, 0.9)
    found = [covers(quantile_ratio(x, y, 0.9), truth) for x, y in zip(a, b, strict=True)]
    assert_coverage(found, 0.91, 0.975)
