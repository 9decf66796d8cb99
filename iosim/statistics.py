"""Estimates from one run, or from two under common random numbers, each with a confidence interval.

The latencies of consecutive requests depend on each other, so no interval here treats them as independent:
all rest on *batches*, stretches of consecutive values long enough that their means nearly are independent.
An interval that the data cannot support is ``None``, not a guess.

>>> mean([5, 5, 5, 5] * 16)
Estimate(value=5.0, low=5.0, high=5.0, confidence=0.95)
>>> quantile([37 * k % 101 for k in range(1, 101)], 0.5)
Estimate(value=50.0, low=40.0, high=61.0, confidence=0.95)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from iosim.errors import IosimError

# scipy.special is imported by the functions that use it: that takes longer than all the rest, and only a result with
# intervals needs it.

FloatArray = npt.NDArray[np.float64]

#: Batches to begin with, and the fewest that correlated neighbours are merged into.
MOST_BATCHES = 32
FEWEST_BATCHES = 8
#: With fewer values than this nothing can be said about their dependence, and no interval is given.
FEWEST_VALUES = 2 * MOST_BATCHES
#: Neighbouring batches are merged if, were they independent, so much correlation had a lower probability.
MERGE_LEVEL = 0.2
#: The fewest values on either side of a quantile in each section (:func:`quantile_ratio`).
SECTION_TAIL = 10


@dataclass(frozen=True, eq=False)
class Batches:
    """Successive batches of values that are not kept: their sums, and how many lie in each of some bins.

    Attributes:
        sizes: Values in each batch. Shape (b,).
        sums: Their exact sums, as many.
        low, high: The smallest and the largest value that a bin may hold, bins in ascending order. Shape (k,).
        counts: Values of each batch in each bin. Shape (b, k).
        greatest: The greatest of all values.
    """

    sizes: npt.NDArray[np.int64]
    sums: list[int]
    low: FloatArray
    high: FloatArray
    counts: npt.NDArray[np.int64]
    greatest: float


@dataclass(frozen=True)
class Estimate:
    """A value and its confidence interval.

    Attributes:
        value: The point estimate, in the unit of the data.
        low: The lower end of the interval, or None where the data cannot support one.
        high: The upper end, or None.
        confidence: The probability with which such an interval covers the true value, in (0, 1).
    """

    value: float
    low: float | None
    high: float | None
    confidence: float

    def to_dict(self) -> dict[str, float | None]:
        """Return the four numbers by name, as they stand in JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "confidence": self.confidence}


def mean(values: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Estimate the mean of a stationary series by batch means.

    32 batches of consecutive values, of equal length but for one value; while the means of neighbouring
    batches are positively correlated (von Neumann's ratio, at the level ``MERGE_LEVEL``) neighbours are
    merged, down to 8. The interval is Student's t on the means of the batches.
    Source: Law, Simulation Modeling and Analysis (5th ed.), section 9.5.3; Fishman, Grouping observations in
    digital simulation, Management Science 24 (1978), for the test.

    Args:
        values: Shape (n,), in the order of the simulation.
        confidence: Of the interval.

    Returns:
        The estimate; no interval below 64 values. Equal values give an interval of no width.

    Raises:
        IosimError: No values, values that are not finite, or a confidence outside (0, 1).
    """
    x = _checked(values, "values")
    _check_confidence(confidence)
    # Differences from the first value: the mean of equal values is then exact.
    first = float(x[0])
    rest = x - first
    offset = float(rest.mean())
    value = first + offset
    if len(x) < FEWEST_VALUES:
        return Estimate(value, None, None, confidence)
    error, batches = _batched_error(rest - offset)
    return _t_interval(value, error, batches - 1, confidence)


def quantile(values: npt.ArrayLike, q: float, confidence: float = 0.95) -> Estimate:
    """Estimate a quantile of a stationary series by an order statistic, its interval by two others.

    The value is the smallest of the values that at least a fraction q of them do not exceed: number
    ceil(n q) in ascending order, always one of the values, never between two. Of independent values, those
    numbered l and u, with l <= B < u for a binomial(n, q) variable B at the given confidence or more, enclose
    the true quantile as often (Conover, Practical Nonparametric Statistics, section 3.2). If the batches of
    :func:`mean` show a larger standard error than the binomial one, for the fraction of values above the
    estimate or for that of values not below it, the distances of l and u from n q are widened in proportion.

    Args:
        values: Shape (n,), in the order of the simulation.
        q: The probability, in (0, 1): 0.99 for the 99th percentile.
        confidence: Of the interval.

    Returns:
        The estimate. An end that would lie beyond the smallest or largest value is None, which stands for an
        end without bound: at 95 % confidence the upper end of the 99th percentile takes at least 368 values,
        of the 99.9th 3688, and more if the values are correlated. Below 64 values there is no interval.

    Raises:
        IosimError: No values, values that are not finite, q or confidence outside (0, 1).
    """
    x = _checked(values, "values")
    _check_confidence(confidence)
    _check_probability(q)
    n = len(x)
    rank = _rank(n, q)
    value = float(np.partition(x, rank - 1)[rank - 1])
    if n < FEWEST_VALUES:
        return Estimate(value, None, None, confidence)
    errors = []
    # The two differ where many values are equal, as times are when all costs are constant.
    for beyond in (x > value, x >= value):
        share = float(beyond.mean())
        if share not in (0, 1):
            errors.append((share, *_batched_error(beyond.astype(np.float64) - share)))
    low, high = _ranks(n, q, errors, confidence)
    return Estimate(
        value,
        float(np.partition(x, low - 1)[low - 1]) if low >= 1 else None,
        float(np.partition(x, high - 1)[high - 1]) if high <= n else None,
        confidence,
    )


def mean_of_batches(given: Batches, confidence: float = 0.95) -> Estimate:
    """Estimate the mean of a stationary series of which only batches are kept; as `mean`, the value exact.

    Args:
        given: The batches, in the order of the simulation; empty ones do not count.
        confidence: Of the interval.

    Returns:
        The estimate; no interval below 64 values or 8 batches.
    """
    _check_confidence(confidence)
    n, total = int(given.sizes.sum()), sum(given.sums)
    sizes, sums = _filled(given)
    if n < FEWEST_VALUES or len(sizes) < FEWEST_BATCHES:
        return Estimate(total / n, None, None, confidence)
    # Times n, the deviations are whole numbers: those of equal values are 0.
    deviations = np.array([(part * n - total * int(size)) / n for part, size in zip(sums, sizes, strict=True)])
    error, batches = _merged_error(deviations, sizes)
    return _t_interval(total / n, error, batches - 1, confidence)


def quantile_of_batches(given: Batches, q: float, confidence: float = 0.95) -> Estimate:
    """Estimate a quantile of a stationary series of which only counts in bins are kept; see `quantile`.

    The value is the middle of the bin that the order statistic is in. The ends of the interval are the far edges of
    the bins that theirs are in, so that it covers what the exact one would.

    Args:
        given: The batches, in the order of the simulation.
        q: The probability, in (0, 1).
        confidence: Of the interval.

    Returns:
        The estimate; ends are None as in `quantile`, both of them below 8 batches.
    """
    _check_confidence(confidence)
    _check_probability(q)
    n = int(given.sizes.sum())
    totals = np.cumsum(given.counts.sum(axis=0))
    place = _bin_at(totals, _rank(n, q))
    value = middle(given, place)
    kept = given.sizes > 0
    sizes = given.sizes[kept]
    if n < FEWEST_VALUES or len(sizes) < FEWEST_BATCHES:
        return Estimate(value, None, None, confidence)
    errors = []
    for first in (place + 1, place):
        beyond = given.counts[kept, first:].sum(axis=1)
        share = float(beyond.sum() / n)
        if share not in (0, 1):
            errors.append((share, *_merged_error(beyond - share * sizes, sizes)))
    low, high = _ranks(n, q, errors, confidence)
    return Estimate(
        value,
        float(given.low[_bin_at(totals, low)]) if low >= 1 else None,
        min(float(given.high[_bin_at(totals, high)]), given.greatest) if high <= n else None,
        confidence,
    )


def middle(given: Batches, place: int) -> float:
    """Return the middle of a bin, as far as it is not above the greatest value."""
    return float(given.low[place] + min(float(given.high[place]), given.greatest)) / 2


def ratio_of_means_of_batches(a: Batches, b: Batches, confidence: float = 0.95) -> Estimate:
    """Estimate the ratio of the means of two runs of which only batches are kept; see `ratio_of_means`.

    Batch is paired with batch. The deviations are those of two ratio estimates, each of sums to sizes. Where the runs
    have not as many batches, fewer than 8 or an empty one, there is no interval.
    """
    _check_confidence(confidence)
    sizes_a, sizes_b = a.sizes.astype(np.float64), b.sizes.astype(np.float64)
    value = sum(a.sums) / sizes_a.sum() / (sum(b.sums) / sizes_b.sum())
    if len(sizes_a) != len(sizes_b) or len(sizes_a) < FEWEST_BATCHES or 0 in sizes_a or 0 in sizes_b:
        return Estimate(float(value), None, None, confidence)
    # Deviations of the batches' means, weighted so that they sum to 0.
    top = np.array(a.sums, dtype=np.float64) / sizes_a.mean()
    bottom = np.array(b.sums, dtype=np.float64) / sizes_b.mean()
    deviations = top - sizes_a / sizes_a.mean() * float(top.mean())
    deviations -= value * (bottom - sizes_b / sizes_b.mean() * float(bottom.mean()))
    error, batches = _batched_error(deviations)
    return _t_interval(float(value), error / float(bottom.mean()), batches - 1, confidence)


def quantile_ratio_of_batches(a: Batches, b: Batches, q: float, confidence: float = 0.95) -> Estimate:
    """Estimate the ratio of the quantiles of two runs of which only batches are kept; see `quantile_ratio`.

    Sections are made of whole batches: 16 of two, or 8 of four, where both runs have 32.
    """
    ours, theirs = quantile_of_batches(a, q, confidence), quantile_of_batches(b, q, confidence)
    if theirs.value == 0:
        raise IosimError(f"the quantile of the baseline at {q:g} is 0, so there is no ratio to it")
    value = ours.value / theirs.value
    for sections in (2 * FEWEST_BATCHES, FEWEST_BATCHES):
        pairs = list(zip(_sections(a, sections), _sections(b, sections), strict=False))
        tail = min((int(s.sizes.sum()) for pair in pairs for s in pair), default=0) * min(q, 1 - q)
        if len(pairs) < sections or tail < SECTION_TAIL - 1e-6:
            continue
        quantiles = np.array([[_binned_quantile(s, q) for s in pair] for pair in pairs])
        interval = _section_interval(quantiles, value, sections, confidence) if quantiles.all() and value > 0 else None
        if interval is not None:
            return interval
    each = 1 - (1 - confidence) / 2
    return _ratio_of_intervals(quantile_of_batches(a, q, each), quantile_of_batches(b, q, each), value, confidence)


def _sections(given: Batches, sections: int) -> list[Batches]:
    """Neighbouring batches together; none where they cannot be divided so."""
    n = len(given.sizes)
    if n % sections:
        return []
    width = n // sections
    return [
        Batches(given.sizes[i : i + width], given.sums[i : i + width], given.low, given.high,
                given.counts[i : i + width], given.greatest)
        for i in range(0, n, width)
    ]  # fmt: skip


def _binned_quantile(given: Batches, q: float) -> float:
    totals = np.cumsum(given.counts.sum(axis=0))
    return middle(given, _bin_at(totals, _rank(int(totals[-1]), q)))


def _bin_at(totals: npt.NDArray[np.int64], rank: int) -> int:
    """Return the bin of the value that is number ``rank`` in ascending order."""
    return int(np.searchsorted(totals, rank))


def _filled(given: Batches) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Return sizes and sums of the batches that are not empty."""
    places = np.flatnonzero(given.sizes)
    return given.sizes[places], [given.sums[i] for i in places]


def ratio(numerators: npt.ArrayLike, denominators: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Estimate a ratio of two rates, such as exits per request, from their totals in successive batches.

    The value is sum(numerators) / sum(denominators). Its standard error is that of the mean of
    numerator - value * denominator over the mean denominator (the delta method: Cochran, Sampling Techniques
    (3rd ed.), equation 6.13; Law, section 9.5.3, for its use on output), by batch means as in :func:`mean`.

    Args:
        numerators: Shape (b,), one total for each batch, in the order of the simulation.
        denominators: Shape (b,), 0 or more, for the same batches.
        confidence: Of the interval.

    Returns:
        The estimate; no interval below 8 batches.

    Raises:
        IosimError: No values, lengths that differ, values that are not finite, a negative denominator or
            only zeros, or a confidence outside (0, 1).
    """
    a, b = _checked(numerators, "numerators"), _checked(denominators, "denominators")
    _check_confidence(confidence)
    if len(a) != len(b):
        raise IosimError(f"a ratio needs as many numerators as denominators, not {len(a)} and {len(b)}")
    if b.min() < 0 or not b.any():
        raise IosimError("the denominators of a ratio must be 0 or more, and not all 0")
    return _paired_ratio(a, b, FEWEST_BATCHES, confidence)


def ratio_of_means(a: npt.ArrayLike, b: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Estimate mean(a) / mean(b) for two runs, such as the latency of one path relative to another.

    Runs of equal length are compared request by request, as in :func:`ratio`: what common random numbers give
    both cancels, and if they have nothing in common the interval is right all the same. Runs of unequal
    length count as independent: the squared relative errors of the means add up, with the degrees of freedom
    of Welch and Satterthwaite.

    Args:
        a: Shape (n,), in the order of the simulation.
        b: Shape (m,), of the baseline.
        confidence: Of the interval.

    Returns:
        The estimate; no interval if either run has fewer than 64 values.

    Raises:
        IosimError: No values, values that are not finite, a baseline whose mean is not above 0, or a
            confidence outside (0, 1).
    """
    x, y = _checked(a, "values"), _checked(b, "values of the baseline")
    _check_confidence(confidence)
    mean_x, mean_y = float(x.mean()), float(y.mean())
    if mean_y <= 0:
        raise IosimError(f"a ratio needs a baseline with a mean above 0, not {mean_y:g}")
    if len(x) == len(y):
        return _paired_ratio(x, y, FEWEST_VALUES, confidence)
    value = mean_x / mean_y
    if min(len(x), len(y)) < FEWEST_VALUES:
        return Estimate(value, None, None, confidence)
    error_x, batches_x = _batched_error(x - mean_x)
    error_y, batches_y = _batched_error(y - mean_y)
    part_x, part_y = (error_x / mean_y) ** 2, (value * error_y / mean_y) ** 2
    spread = part_x**2 / (batches_x - 1) + part_y**2 / (batches_y - 1)
    freedom = (part_x + part_y) ** 2 / spread if spread > 0 else 1.0
    return _t_interval(value, math.sqrt(part_x + part_y), freedom, confidence)


def quantile_ratio(a: npt.ArrayLike, b: npt.ArrayLike, q: float, confidence: float = 0.95) -> Estimate:
    """Estimate the ratio of the quantiles of two runs, such as the tail latency of one path over another's.

    The value is the ratio of the order statistics of :func:`quantile`. The interval comes from sectioning:
    both runs are cut into 16 sections (8, if sections are too short or correlated), and the logarithms of the
    ratios of the sections' own quantiles give a t interval around the logarithm of the value, so sections
    that share their random numbers cancel what they share. Source: Asmussen and Glynn, Stochastic
    Simulation, section III.5a; Nakayama, Confidence intervals for quantiles using sectioning when applying
    variance-reduction techniques, ACM TOMACS 24 (2014). Where a section has fewer than 10 values beyond its
    quantile, the interval is that between the extreme ratios of the two runs' own intervals, each with half
    the probability of error: right by Bonferroni's inequality, but wide.

    Args:
        a: Shape (n,), in the order of the simulation.
        b: Shape (m,), of the baseline.
        q: The probability, in (0, 1).
        confidence: Of the interval.

    Returns:
        The estimate; an end is None where the runs are too short for it.

    Raises:
        IosimError: No values, negative or not finite values, a baseline whose quantile is 0, or q or
            confidence outside (0, 1).
    """
    x, y = _checked(a, "values"), _checked(b, "values of the baseline")
    _check_confidence(confidence)
    _check_probability(q)
    if min(x.min(), y.min()) < 0:
        raise IosimError("a ratio of quantiles needs values of 0 or more")
    top, bottom = _order_statistic(x, q), _order_statistic(y, q)
    if bottom == 0:
        raise IosimError(f"the quantile of the baseline at {q:g} is 0, so there is no ratio to it")
    value = top / bottom
    for sections in (2 * FEWEST_BATCHES, FEWEST_BATCHES):
        tail = min(len(x), len(y)) // sections * min(q, 1 - q)
        # A product such as 100 * (1 - 0.9) may fall short of 10 by a rounding error.
        if tail < SECTION_TAIL - 1e-6:
            continue
        pairs = zip(np.array_split(x, sections), np.array_split(y, sections), strict=True)
        quantiles = np.array([(_order_statistic(s, q), _order_statistic(t, q)) for s, t in pairs])
        if top == 0 or not quantiles.all():
            break
        interval = _section_interval(quantiles, value, sections, confidence)
        if interval is not None:
            return interval
    each = 1 - (1 - confidence) / 2
    return _ratio_of_intervals(quantile(x, q, each), quantile(y, q, each), value, confidence)


def _section_interval(quantiles: FloatArray, value: float, sections: int, confidence: float) -> Estimate | None:
    """The interval from sections' quantiles, shape (sections, 2); None where they are correlated, and can be fewer."""
    # Around the value of the whole run: quantiles of sections are biased more than that of the run.
    logs = np.log(quantiles[:, 0] / quantiles[:, 1] / value)
    if sections > FEWEST_BATCHES and _correlated(logs - logs.mean()):
        return None
    half = _t_factor(sections - 1, confidence) * float(logs.std(ddof=1)) / math.sqrt(sections)
    return Estimate(value, value * math.exp(-half), value * math.exp(half), confidence)


def _ratio_of_intervals(ours: Estimate, theirs: Estimate, value: float, confidence: float) -> Estimate:
    """Bonferroni: each of the two misses with half the probability."""
    low = ours.low / theirs.high if ours.low is not None and theirs.high else None
    high = ours.high / theirs.low if ours.high is not None and theirs.low else None
    return Estimate(value, low, high, confidence)


def _paired_ratio(a: FloatArray, b: FloatArray, fewest: int, confidence: float) -> Estimate:
    value = float(a.sum() / b.sum())
    if len(a) < fewest:
        return Estimate(value, None, None, confidence)
    error, batches = _batched_error(a - value * b)
    return _t_interval(value, error / float(b.mean()), batches - 1, confidence)


def _batched_error(deviations: FloatArray) -> tuple[float, int]:
    """Return the standard error of the mean of a series, and the number of batches it was found from.

    Args:
        deviations: Shape (n,), n >= 8, from the mean of the series.

    Batches differ in length, by one value at first, so each counts by its length: with m values in a batch
    of mean d, the variance of the mean of all n is sum(m d²) / (b - 1) / n.
    """
    n = len(deviations)
    count = min(MOST_BATCHES, n)
    starts = np.arange(count) * n // count
    sums = np.add.reduceat(deviations, starts)
    sizes = np.diff(starts, append=n)
    return _merged_error(sums, sizes)


def _merged_error(sums: FloatArray, sizes: npt.NDArray[np.int64]) -> tuple[float, int]:
    """Return what `_batched_error` does, from the batches' sums of deviations and their sizes."""
    n = int(sizes.sum())
    scaled: FloatArray = sums / np.sqrt(sizes)
    while len(sums) >= 2 * FEWEST_BATCHES and _correlated(scaled):
        pairs = np.arange(0, len(sums), 2)
        sums, sizes = np.add.reduceat(sums, pairs), np.add.reduceat(sizes, pairs)
        scaled = sums / np.sqrt(sizes)
    batches = len(sums)
    return math.sqrt(float(scaled @ scaled) / (batches - 1) / n), batches


def _ranks(n: int, q: float, errors: list[tuple[float, float, int]], confidence: float) -> tuple[int, int]:
    """Return the numbers of the order statistics that enclose a quantile.

    Args:
        n: Values.
        q: The probability.
        errors: Of shares of the values near q: the share, its standard error by batches, and their number.
        confidence: Of the interval.
    """
    miss = (1 - confidence) / 2
    widen = 1.0
    for share, error, batches in errors:
        relative = error / math.sqrt(share * (1 - share) / n)
        if relative > 1:
            widen = max(widen, relative * _t_factor(batches - 1, confidence) / _normal_factor(miss))
    centre = n * q
    # The greatest k with P(B >= k) >= miss, from the binomial(n, 1 - q) variable n - B.
    most = n - _binomial_quantile(miss, n, 1 - q)
    low = math.floor(centre - widen * (centre - _binomial_quantile(miss, n, q)))
    high = math.ceil(centre + widen * (most + 1 - centre))
    return low, high


def _correlated(deviations: FloatArray) -> bool:
    """Tell whether neighbours are positively correlated, by von Neumann's ratio.

    1 - (sum of squared differences of neighbours) / (2 * sum of squares) has, for b independent normal
    values, a mean of 0, a variance of (b - 2) / (b² - 1) and nearly a normal distribution from b = 8 on.
    """
    b = len(deviations)
    squares = float(deviations @ deviations)
    if squares == 0:
        return False
    steps = np.diff(deviations)
    statistic = 1 - float(steps @ steps) / (2 * squares)
    return statistic > _normal_factor(MERGE_LEVEL) * math.sqrt((b - 2) / (b * b - 1))


def _t_interval(value: float, error: float, freedom: float, confidence: float) -> Estimate:
    half = _t_factor(freedom, confidence) * error
    return Estimate(value, value - half, value + half, confidence)


def _normal_factor(above: float) -> float:
    """Return the quantile of the standard normal distribution that leaves the probability ``above`` above it."""
    from scipy import special

    return -float(special.ndtri(above))


def _t_factor(freedom: float, confidence: float) -> float:
    """Return the quantile of Student's t that leaves half of what ``confidence`` leaves above it."""
    from scipy import special

    return -float(special.stdtrit(freedom, (1 - confidence) / 2))


def _binomial_quantile(p: float, n: int, q: float) -> int:
    """Return the smallest k with P(B <= k) >= p for a binomial(n, q) variable B.

    From ``scipy.special``, since importing ``scipy.stats`` alone takes longer than a short run.
    """
    from scipy import special

    k = max(0, math.ceil(float(special.bdtrik(p, n, q))))
    while k > 0 and special.bdtr(k - 1, n, q) >= p:
        k -= 1
    return k


def _rank(n: int, q: float) -> int:
    # The shortest decimal that q prints as is what was meant: 0.07 * 100 in floats is above 7.
    return max(1, math.ceil(n * Fraction(repr(float(q)))))


def _order_statistic(x: FloatArray, q: float) -> float:
    rank = _rank(len(x), q)
    return float(np.partition(x, rank - 1)[rank - 1])


def _checked(values: npt.ArrayLike, what: str) -> FloatArray:
    try:
        x = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise IosimError(f"{what} must be a sequence of numbers") from None
    if x.ndim != 1:
        raise IosimError(f"{what} must have one dimension, not {x.ndim}")
    if len(x) == 0:
        raise IosimError(f"there are no {what} to estimate from")
    if not np.isfinite(x).all():
        raise IosimError(f"{what} must be finite: one is nan or infinite")
    return x


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise IosimError(f"a confidence lies between 0 and 1, not at {confidence}")


def _check_probability(q: float) -> None:
    if not 0 < q < 1:
        raise IosimError(f"a quantile's probability lies between 0 and 1, not at {q}")
