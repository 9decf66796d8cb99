"""Distributions: closed forms against scipy's own and against quadrature, and what a file may hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from iosim.engine.distributions import (
    LONGEST_PS,
    Constant,
    Distribution,
    Exponential,
    Gamma,
    LogNormal,
    Uniform,
    constant,
    distribution,
)
from iosim.engine.draws import Table
from iosim.errors import IosimError


def lognormal(mean: float, spread: float) -> Any:
    sigma = math.sqrt(math.log1p((spread / mean) ** 2))
    return stats.lognorm(s=sigma, scale=mean * math.exp(-(sigma**2) / 2))


def gamma(mean: float, spread: float) -> Any:
    return stats.gamma(a=(mean / spread) ** 2, scale=spread**2 / mean)


TWINS = [
    (Uniform(2e5, 9e5), stats.uniform(loc=2e5, scale=7e5)),
    (Exponential(1e6), stats.expon(scale=1e6)),
    (LogNormal(1e6, 1e5), lognormal(1e6, 1e5)),
    (LogNormal(1e6, 3e6), lognormal(1e6, 3e6)),
    (LogNormal(1e6, 1e3), lognormal(1e6, 1e3)),
    (Gamma(1e6, 3e5), gamma(1e6, 3e5)),
    (Gamma(1e6, 2e6), gamma(1e6, 2e6)),
]
IDS = [repr(dist) for dist, _ in TWINS]


@pytest.mark.parametrize(("dist", "twin"), TWINS, ids=IDS)
def test_moments_and_quantiles_equal_scipys(dist: Distribution, twin: Any) -> None:
    assert dist.mean == pytest.approx(twin.mean(), rel=1e-12)
    assert dist.std == pytest.approx(twin.std(), rel=1e-9)
    for p in (0.0, 2.0**-30, 0.01, 0.5, 0.99, 0.9999, 1 - 2.0**-30):
        assert dist.ppf(p) == pytest.approx(twin.ppf(p), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("dist", "twin"), TWINS, ids=IDS)
@pytest.mark.parametrize(
    ("p0", "p1"), [(0, 2**-10), (0.25, 0.75), (0.5, 0.5 + 2**-10), (1 - 2**-10, 1 - 2**-11), (0.999, 0.9999)]
)
def test_partial_mean_is_the_integral_of_the_quantiles(
    dist: Distribution, twin: Any, p0: float, p1: float
) -> None:
    area, _ = integrate.quad(twin.ppf, p0, p1, epsabs=0, epsrel=1e-10)
    assert dist.partial_mean(p0, p1) == pytest.approx(area / (p1 - p0), rel=1e-8)


@pytest.mark.parametrize(("dist", "twin"), TWINS, ids=IDS)
def test_mean_beyond_the_last_quantile_is_the_tail_expectation(dist: Distribution, twin: Any) -> None:
    x = twin.ppf(0.999)
    beyond, _ = integrate.quad(twin.sf, x, twin.ppf(1 - 1e-15), epsabs=0, epsrel=1e-8, limit=200)
    # E[X | X > x] = x + (integral of the survival function from x) / P(X > x)
    assert dist.partial_mean(0.999, 1) == pytest.approx(x + beyond / 0.001, rel=1e-6)


@pytest.mark.parametrize("dist", [dist for dist, _ in TWINS] + [Constant(3.5)], ids=repr)
@given(inner=st.lists(st.integers(1, 2**30 - 1), max_size=20, unique=True))
@settings(max_examples=25, deadline=None)
def test_cells_of_any_partition_average_to_the_mean(dist: Distribution, inner: list[int]) -> None:
    edges = np.array([0, *sorted(inner), 2**30]) / 2**30
    total = float(np.dot(dist.cell_means(edges), np.diff(edges)))
    assert total == pytest.approx(dist.mean, rel=1e-9)


@pytest.mark.parametrize("dist", [dist for dist, _ in TWINS] + [Constant(3.5)], ids=repr)
def test_scaling_scales_every_quantile(dist: Distribution) -> None:
    for factor in (0.25, 1.0, 7.5):
        scaled = dist.scaled(factor)
        assert scaled.mean == pytest.approx(factor * dist.mean)
        assert scaled.std == pytest.approx(factor * dist.std)
        assert scaled.ppf(0.999) == pytest.approx(factor * dist.ppf(0.999))
    assert dist.scaled(0).mean == 0
    # What is allowed stays so when scaled, whatever the rounding.
    assert LogNormal(0.1, 100.0).scaled(0.7).mean == pytest.approx(0.07)
    for factor in (-1.0, math.nan, math.inf):
        with pytest.raises(IosimError):
            dist.scaled(factor)


def test_constant_rounds_the_mean_to_a_whole_picosecond() -> None:
    assert constant(Exponential(1234.6)) == Constant(1235.0)
    assert constant(Uniform(0, 5)) == Constant(2.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Constant(-1.0),
        lambda: Constant(math.nan),
        lambda: Constant(LONGEST_PS * 2),
        lambda: Uniform(2.0, 1.0),
        lambda: Exponential(0.0),
        lambda: LogNormal(1.0, 0.0),
        lambda: LogNormal(0.0, 1.0),
        lambda: Gamma(1.0, math.inf),
        lambda: Gamma(1.0, 1e-9),
        lambda: Exponential(1.0).ppf(1.5),
        lambda: Exponential(1.0).partial_mean(0.5, 0.5),
    ],
)
def test_impossible_parameters_are_refused(build: Any) -> None:
    with pytest.raises(IosimError):
        build()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, Constant(7000.0)),
        (0, Constant(0.0)),
        ({"mean": 7}, Constant(7000.0)),
        ({"mean": 7, "spread": 0}, Constant(7000.0)),
        ({"mean": 7, "spread": 2}, LogNormal(7000.0, 2000.0)),
        ({"mean": 7, "spread": 2, "distribution": "lognormal"}, LogNormal(7000.0, 2000.0)),
        ({"mean": 7, "spread": 2, "distribution": "gamma"}, Gamma(7000.0, 2000.0)),
        ({"mean": 7, "distribution": "exponential"}, Exponential(7000.0)),
        ({"mean": 0, "distribution": "exponential"}, Constant(0.0)),
        ({"mean": 1e9, "spread": 1e-320}, LogNormal(1e12, 1e-320 * 1000)),
        ({"low": 1, "high": 2.5}, Uniform(1000.0, 2500.0)),
        ({"low": 2, "high": 2}, Constant(2000.0)),
        (Exponential(5.0), Exponential(5.0)),
        (np.float64(1.5), Constant(1500.0)),
    ],
)
def test_what_a_file_may_hold(value: object, expected: Distribution) -> None:
    assert distribution(value, unit_ps=1000, where="x") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "0 or more"),
        (math.nan, "0 or more"),
        (math.inf, "too long"),
        (10**400, "too long"),
        (True, "must be a number"),
        ("12", "must be a number"),
        (None, "must be a number"),
        ({}, "needs 'mean'"),
        ({"spread": 1}, "needs 'mean'"),
        ({"mean": 1, "spraed": 1}, "did you mean 'spread'"),
        ({"mean": 1, "spread": 1, "distribution": "log-normal"}, "did you mean 'lognormal'"),
        ({"mean": 1, "spread": 1, "distribution": 3}, "unknown distribution '3'"),
        ({"mean": 1, "distribution": "gamma"}, "needs 'spread'"),
        ({"mean": 1, "spread": 1, "distribution": "exponential"}, "has no 'spread'"),
        ({"mean": 0, "spread": 1}, "no room for a spread"),
        ({"mean": 1, "spread": -1}, "spread must be a time of 0 or more"),
        ({"mean": 1e7, "spread": 1e10}, "times over 2.5 hours would be drawn"),
        ({"mean": 1, "spread": 1001}, "over 1000 times the mean"),
        ({"mean": 1, "spread": 1001, "distribution": "gamma"}, "over 1000 times the mean"),
        ({"mean": 1, "spread": 1e-9, "distribution": "gamma"}, "below 1e-06 times the mean"),
        ({"low": 2, "high": 1}, "must not exceed"),
        ({"low": 2}, "needs 'high'"),
        ({"high": 2}, "needs 'low'"),
        ({"low": 1, "high": 2, "mean": 1}, "remove 'mean'"),
        ({1: 2}, "unknown key '1'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_place(value: object, message: str) -> None:
    with pytest.raises(IosimError) as caught:
        distribution(value, unit_ps=1000, where="host.toml: vm_exit")
    text = str(caught.value)
    assert text.startswith("host.toml: vm_exit: ")
    assert message in text
    assert "\n" not in text


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.floats(0, 1e6), st.text(max_size=12)
)
KINDS = st.sampled_from(["lognormal", "gamma", "exponential"])
TABLES = st.one_of(
    st.dictionaries(
        st.sampled_from(["mean", "spread", "low", "high", "distribution"]) | st.text(max_size=8),
        SCALARS | KINDS,
        max_size=4,
    ),
    st.fixed_dictionaries(
        {"mean": SCALARS | st.floats(0)}, optional={"spread": SCALARS | st.floats(0), "distribution": KINDS}
    ),
)


@pytest.mark.slow
@given(value=SCALARS | TABLES | st.lists(SCALARS, max_size=3), unit_ps=st.sampled_from([1, 1e3, 1e6, 1e9]))
@settings(max_examples=400, deadline=None)
def test_any_value_is_a_distribution_with_a_table_or_an_error_of_one_line(
    value: object, unit_ps: float
) -> None:
    try:
        dist = distribution(value, unit_ps, "here")
    except IosimError as error:
        message = str(error)
    else:
        table = Table(dist)
        assert table.values.min() >= 0
        assert table.mean == pytest.approx(dist.mean, rel=1e-9, abs=0.5)
        return
    assert message.startswith("here: ")
    assert len(message.splitlines()) == 1
