"""Distributions of durations: what a cost table or a setting may hold, in picoseconds.

Every distribution here is one of non-negative times, and has closed forms for its quantiles and for its mean
between two quantiles, which is all that :mod:`iosim.engine.draws` needs to build a table of draws.

>>> distribution({"mean": 2.5, "spread": 0.5}, unit_ps=1000, where="vm_exit")
LogNormal(mean=2500.0, spread=500.0)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from iosim.errors import IosimError, unknown

# scipy.special is imported by the methods that use it: that takes longer than all the rest, and constant costs, the
# list of models and every error in what was typed do without.

FloatArray = npt.NDArray[np.float64]

#: The longest time a distribution may give, in ps (2.5 hours): up to here floats hold whole picoseconds.
LONGEST_PS = float(2**53)


@runtime_checkable
class Distribution(Hashable, Protocol):
    """What a distribution of times must offer; all times in ps, all probabilities in [0, 1].

    It must be immutable and hashable, and equal to another that gives the same times: tables are shared.
    """

    @property
    def mean(self) -> float:
        """The mean, in ps."""

    @property
    def std(self) -> float:
        """The standard deviation, in ps."""

    def ppf(self, p: float) -> float:
        """Return the quantile at probability ``p``, in ps (inf at 1 where the tail has no end)."""

    def partial_mean(self, p0: float, p1: float) -> float:
        """Return the mean of the values between the quantiles at ``p0 < p1``, in ps."""

    def cell_means(self, edges: FloatArray) -> FloatArray:
        """Return ``partial_mean`` between neighbours of increasing ``edges``: shape (n + 1,) to (n,)."""

    def scaled(self, factor: float) -> Distribution:
        """Return the distribution of ``factor`` times this time; the quantiles scale with it."""


class _Closed(ABC):
    """The scalar methods, from the two that each distribution defines on arrays."""

    @abstractmethod
    def _quantiles(self, p: FloatArray) -> FloatArray: ...

    @abstractmethod
    def cell_means(self, edges: FloatArray) -> FloatArray:
        """Return ``partial_mean`` between neighbours of increasing ``edges``: shape (n + 1,) to (n,)."""

    def ppf(self, p: float) -> float:
        """Return the quantile at probability ``p``, in ps (inf at 1 where the tail has no end)."""
        if not 0 <= p <= 1:
            raise IosimError(f"a probability lies between 0 and 1, not at {p}")
        return float(self._quantiles(np.array([p], dtype=np.float64))[0])

    def partial_mean(self, p0: float, p1: float) -> float:
        """Return the mean of the values between the quantiles at ``p0 < p1``, in ps."""
        if not 0 <= p0 < p1 <= 1:
            raise IosimError(f"probabilities must satisfy 0 <= p0 < p1 <= 1, not {p0} and {p1}")
        return float(self.cell_means(np.array([p0, p1], dtype=np.float64))[0])


@dataclass(frozen=True)
class Constant(_Closed):
    """Always the same time.

    Args:
        value: The time, in ps.
    """

    value: float

    def __post_init__(self) -> None:
        _check_times(value=self.value)

    @property
    def mean(self) -> float:
        """The value itself, in ps."""
        return self.value

    @property
    def std(self) -> float:
        """Zero."""
        return 0.0

    def _quantiles(self, p: FloatArray) -> FloatArray:
        return np.full(p.shape, float(self.value))

    def cell_means(self, edges: FloatArray) -> FloatArray:
        """Return the value for each pair of neighbouring ``edges``."""
        return np.full(len(edges) - 1, float(self.value))

    def scaled(self, factor: float) -> Constant:
        """Return the constant ``factor`` times as long."""
        return Constant(self.value * _checked_factor(factor))


@dataclass(frozen=True)
class Uniform(_Closed):
    """Every time between two bounds equally likely.

    Args:
        low: The shortest time, in ps.
        high: The longest time, in ps.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_times(low=self.low, high=self.high)
        if self.low > self.high:
            raise IosimError(f"low ({self.low:g}) must not exceed high ({self.high:g})")

    @property
    def mean(self) -> float:
        """The middle, in ps."""
        return (self.low + self.high) / 2

    @property
    def std(self) -> float:
        """The width over the square root of 12, in ps."""
        return (self.high - self.low) / math.sqrt(12)

    def _quantiles(self, p: FloatArray) -> FloatArray:
        return self.low + (self.high - self.low) * p

    def cell_means(self, edges: FloatArray) -> FloatArray:
        """Return the middle of each cell, in ps."""
        return self.low + (self.high - self.low) * (edges[:-1] + edges[1:]) / 2

    def scaled(self, factor: float) -> Uniform:
        """Return the distribution with both bounds multiplied by ``factor``."""
        factor = _checked_factor(factor)
        return Uniform(self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Exponential(_Closed):
    """Memoryless times, such as those between the arrivals of a Poisson process.

    Args:
        mean: The mean, in ps, above 0.
    """

    mean: float

    def __post_init__(self) -> None:
        _check_times(mean=self.mean)
        _check_positive(mean=self.mean)

    @property
    def std(self) -> float:
        """The standard deviation, which equals the mean, in ps."""
        return self.mean

    def _quantiles(self, p: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            return -self.mean * np.log1p(-p)

    def cell_means(self, edges: FloatArray) -> FloatArray:
        """Return the mean of each cell, in ps.

        With a > b the survival probabilities at the ends of the cell, the mean of -ln(s) over b < s < a is
        -ln(a) + 1 - ln(1 + d)/d, d = (a - b)/b: written so that nothing cancels in narrow cells.
        """
        a, b = 1 - edges[:-1], 1 - edges[1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            d = (a - b) / b
            within = np.where(b > 0, 1 - np.log1p(d) / d, 1.0)
        means: FloatArray = self.mean * (within - np.log1p(-edges[:-1]))
        return means

    def scaled(self, factor: float) -> Exponential | Constant:
        """Return the exponential distribution with ``factor`` times the mean."""
        factor = _checked_factor(factor)
        return Exponential(self.mean * factor) if factor else Constant(0.0)


@dataclass(frozen=True)
class LogNormal(_Closed):
    """Times whose logarithm is normal: never negative, skewed to the right, as costs of software paths are.

    Args:
        mean: The mean of the times themselves (not of their logarithms), in ps, above 0.
        spread: The standard deviation of the times, in ps, above 0, at most 1000 times the mean.
    """

    mean: float
    spread: float

    def __post_init__(self) -> None:
        _check_times(mean=self.mean, spread=self.spread)
        _check_positive(mean=self.mean, spread=self.spread)
        _check_spread(self.mean, self.spread, least=0)

    @property
    def std(self) -> float:
        """The standard deviation, in ps."""
        return self.spread

    @property
    def sigma(self) -> float:
        """The standard deviation of the logarithm: sigma² = ln(1 + (spread/mean)²)."""
        ratio = self.spread / self.mean
        # The square of a tiny ratio would be 0, and 0 times an infinite quantile is not a number.
        return math.sqrt(math.log1p(ratio * ratio)) if ratio > 1e-8 else max(ratio, 1e-300)

    @property
    def mu(self) -> float:
        """The mean of the logarithm of the time in ps: ln(mean) - sigma²/2."""
        return math.log(self.mean) - self.sigma**2 / 2

    def _quantiles(self, p: FloatArray) -> FloatArray:
        from scipy import special

        with np.errstate(over="ignore"):
            quantiles: FloatArray = np.exp(self.mu + self.sigma * special.ndtri(p))
        return quantiles

    def cell_means(self, edges: FloatArray) -> FloatArray:
        """Return the mean of each cell, in ps.

        E[X; z0 < Z < z1] = mean * (Phi(z1 - sigma) - Phi(z0 - sigma)), the partial expectation of the
        log-normal (Johnson, Kotz and Balakrishnan, Continuous Univariate Distributions 1, ch. 14).
        """
        from scipy import special

        z = special.ndtri(edges)
        shifted = z - self.sigma
        # Above the median differences of the upper tail, which is small there, lose no digits.
        upper = special.ndtr(-shifted[:-1]) - special.ndtr(-shifted[1:])
        lower = special.ndtr(shifted[1:]) - special.ndtr(shifted[:-1])
        share = np.where(shifted[:-1] > 0, upper, lower)
        return _within_cells(self.mean * share / np.diff(edges), self._quantiles(edges))

    def scaled(self, factor: float) -> LogNormal | Constant:
        """Return the log-normal distribution with ``factor`` times the mean and the spread."""
        factor = _checked_factor(factor)
        return LogNormal(self.mean * factor, self.spread * factor) if factor else Constant(0.0)


@dataclass(frozen=True)
class Gamma(_Closed):
    """Gamma-distributed times: like the log-normal for a small spread, with a lighter tail.

    Args:
        mean: The mean, in ps, above 0.
        spread: The standard deviation, in ps, from a millionth of the mean to 1000 times the mean.
    """

    mean: float
    spread: float

    def __post_init__(self) -> None:
        _check_times(mean=self.mean, spread=self.spread)
        _check_positive(mean=self.mean, spread=self.spread)
        _check_spread(self.mean, self.spread, least=1e-6)

    @property
    def std(self) -> float:
        """The standard deviation, in ps."""
        return self.spread

    @property
    def shape(self) -> float:
        """The shape parameter k = (mean/spread)²."""
        return (self.mean / self.spread) ** 2

    @property
    def scale(self) -> float:
        """The scale parameter mean/k, in ps."""
        return self.spread * (self.spread / self.mean)

    def _standard_quantiles(self, p: FloatArray) -> FloatArray:
        from scipy import special

        quantiles = np.empty(p.shape)
        upper = p > 0.5
        quantiles[upper] = special.gammainccinv(self.shape, 1 - p[upper])
        quantiles[~upper] = special.gammaincinv(self.shape, p[~upper])
        return quantiles

    def _quantiles(self, p: FloatArray) -> FloatArray:
        return self.scale * self._standard_quantiles(p)

    def cell_means(self, edges: FloatArray) -> FloatArray:
        """Return the mean of each cell, in ps.

        E[X; x0 < X < x1] = mean * (F(x1) - F(x0)), F being the gamma distribution of shape k + 1.
        """
        from scipy import special

        x = self._standard_quantiles(edges)
        below, above = special.gammainc(self.shape + 1, x), special.gammaincc(self.shape + 1, x)
        share = np.where(below[:-1] > 0.5, above[:-1] - above[1:], below[1:] - below[:-1])
        return _within_cells(self.mean * share / np.diff(edges), self.scale * x)

    def scaled(self, factor: float) -> Gamma | Constant:
        """Return the gamma distribution with ``factor`` times the mean and the spread."""
        factor = _checked_factor(factor)
        return Gamma(self.mean * factor, self.spread * factor) if factor else Constant(0.0)


def constant(dist: Distribution) -> Constant:
    """Return the mean of ``dist``, rounded to a whole ps: the same cost without its variation."""
    return Constant(float(round(dist.mean)))


_SPREAD_KINDS: Mapping[str, type[LogNormal] | type[Gamma]] = {"lognormal": LogNormal, "gamma": Gamma}
_KINDS = (*_SPREAD_KINDS, "exponential")
_KEYS = ("mean", "spread", "distribution", "low", "high")


def distribution(value: object, unit_ps: float, where: str) -> Distribution:
    """Read a distribution as a TOML file or a setting writes it.

    Args:
        value: A number (constant); or a table ``{mean}`` (constant), ``{mean, spread}`` (log-normal, or what
            ``distribution = "lognormal" | "gamma"`` says), ``{mean, distribution = "exponential"}``, or
            ``{low, high}`` (uniform). A distribution is returned as it is.
        unit_ps: The unit of the numbers, in ps: 1000 for ns.
        where: The place the value stands in, for the error message.

    Raises:
        IosimError: A number that is missing, negative, not finite or too large, or a key that does not exist.

    >>> distribution(3, unit_ps=1000, where="irq")
    Constant(value=3000.0)
    >>> distribution({"low": 1, "high": 2}, unit_ps=1000, where="irq")
    Uniform(low=1000.0, high=2000.0)
    >>> distribution({"mean": 1, "spred": 2}, unit_ps=1000, where="irq")
    Traceback (most recent call last):
    iosim.errors.IosimError: irq: unknown key 'spred'; did you mean 'spread'?
    """
    if not isinstance(value, Mapping):
        if isinstance(value, Distribution):
            return value
        return Constant(_time(value, "the value", unit_ps, where))
    for key in value:
        if key not in _KEYS:
            raise unknown("key", str(key), _KEYS, where)
    if "low" in value or "high" in value:
        return _uniform(value, unit_ps, where)
    if "mean" not in value:
        raise IosimError("a distribution needs 'mean', or 'low' and 'high'", where)
    mean = _time(value["mean"], "mean", unit_ps, where)
    kind = value.get("distribution")
    if kind is not None and (not isinstance(kind, str) or kind not in _KINDS):
        raise unknown("distribution", str(kind), _KINDS, where)
    if kind == "exponential":
        if "spread" in value:
            raise IosimError("an exponential distribution has no 'spread': it equals the mean", where)
        return _supported(Exponential(mean), where) if mean else Constant(0.0)
    if "spread" not in value:
        if kind is not None:
            raise IosimError(f"distribution '{kind}' needs 'spread', the standard deviation", where)
        return Constant(mean)
    spread = _time(value["spread"], "spread", unit_ps, where)
    if spread == 0:
        return Constant(mean)
    if mean == 0:
        raise IosimError("a mean of 0 leaves no room for a spread: times are not negative", where)
    try:
        found = _SPREAD_KINDS[kind or "lognormal"](mean, spread)
    except IosimError as error:
        raise IosimError(str(error), where) from None
    return _supported(found, where)


def _uniform(value: Mapping[object, object], unit_ps: float, where: str) -> Distribution:
    for key in value:
        if key not in ("low", "high"):
            raise IosimError(f"'low' and 'high' stand alone: remove '{key}'", where)
    for key in ("low", "high"):
        if key not in value:
            raise IosimError(f"a uniform distribution needs '{key}' too", where)
    low = _time(value["low"], "low", unit_ps, where)
    high = _time(value["high"], "high", unit_ps, where)
    if low > high:
        raise IosimError(f"low ({value['low']}) must not exceed high ({value['high']})", where)
    return Uniform(low, high) if low < high else Constant(low)


def _supported(dist: Distribution, where: str) -> Distribution:
    # The mean of the last of the 2**30 cells that draws distinguish: the longest time that can be drawn.
    if not dist.partial_mean(1 - 2**-30, 1) <= LONGEST_PS:
        raise IosimError("the spread is too large: times over 2.5 hours would be drawn", where)
    return dist


def _time(value: object, what: str, unit_ps: float, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise IosimError(f"{what} must be a number, not {value!r}", where)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    time = number * unit_ps
    if math.isnan(number) or number < 0:
        raise IosimError(f"{what} must be a time of 0 or more, not {number:g}", where)
    if not time <= LONGEST_PS:
        raise IosimError(f"{what} is too long ({number:g}): times end at 2.5 hours", where)
    return time


def _check_times(**times: float) -> None:
    for name, time in times.items():
        if not 0 <= time <= LONGEST_PS:
            raise IosimError(f"{name} must lie between 0 and {LONGEST_PS:g} ps, not at {time}")


def _check_positive(**times: float) -> None:
    for name, time in times.items():
        if not time > 0:
            raise IosimError(f"{name} must be above 0")


def _check_spread(mean: float, spread: float, least: float) -> None:
    # Beyond 1000 the mean itself rests on values too rare to be drawn. The allowance is for scaling, which
    # rounds.
    if not least * (1 - 1e-9) <= spread / mean <= 1000 * (1 + 1e-9):
        bound = f"below {least:g} times" if spread < mean else "over 1000 times"
        raise IosimError(f"a spread of {bound} the mean is not supported ({spread:g} and {mean:g} ps)")


def _checked_factor(factor: float) -> float:
    if not 0 <= factor < math.inf:
        raise IosimError(f"a factor must be 0 or more and finite, not {factor}")
    return float(factor)


def _within_cells(means: FloatArray, quantiles: FloatArray) -> FloatArray:
    """Keep each mean between the quantiles of its cell: rounding must not put neighbours out of order."""
    return np.clip(means, quantiles[:-1], quantiles[1:])
