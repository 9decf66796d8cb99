"""What a result keeps of its requests: every one, or summaries of the window's batches (``run.keep``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from iosim.errors import IosimError
from iosim.statistics import (
    Batches,
    Estimate,
    mean,
    mean_of_batches,
    middle,
    quantile,
    quantile_of_batches,
    quantile_ratio,
    quantile_ratio_of_batches,
    ratio_of_means,
    ratio_of_means_of_batches,
)
from iosim.summary import DIGITS

PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


@dataclass
class Requests:
    """Every measured request.

    Attributes:
        rows: In the order of completion. Shape (n,).
        stamps: Milestones in ps, skipped ones filled. Shape (n, milestones).
    """

    rows: npt.NDArray[np.int64]
    stamps: npt.NDArray[np.int64]

    @property
    def measured(self) -> int:
        """How many."""
        return len(self.rows)

    @property
    def quantile_error(self) -> float:
        """Quantiles are exact."""
        return 0.0

    @cached_property
    def values(self) -> npt.NDArray[np.int64]:
        """Latencies in ps, in the order of completion."""
        return np.subtract(self.stamps[:, -1], self.stamps[:, 0])

    def stages(self, confidence: float) -> list[Estimate]:
        """Return the mean time of each stage, ns."""
        # One stage after the other: all of them at once would take as much memory as the stamps.
        s = self.stamps
        return [mean(np.subtract(s[:, i], s[:, i - 1]) / 1000, confidence) for i in range(1, s.shape[1])]


@dataclass
class Summaries:
    """Summaries of the window's batches.

    Attributes:
        latency: Sums and sketch of the latencies, ps.
        stage_sums: The sum of each stage's times in each batch, ps. ``stage_sums[stage][batch]``.
        values: The latencies (ps), in the order of completion, if all of them were kept.
    """

    latency: Batches
    stage_sums: list[list[int]]
    values: npt.NDArray[np.int64] | None

    @property
    def measured(self) -> int:
        """How many requests."""
        return int(self.latency.sizes.sum())

    @property
    def quantile_error(self) -> float:
        """The bound of the relative error of quantiles: 0 where all latencies were kept."""
        return 0.0 if self.values is not None else float(2.0**-DIGITS)

    def stages(self, confidence: float) -> list[Estimate]:
        """Return the mean time of each stage, ns."""
        b = self.latency
        return [
            _in_ns(mean_of_batches(Batches(b.sizes, sums, b.low, b.high, b.counts, b.greatest), confidence))
            for sums in self.stage_sums
        ]


Kept: TypeAlias = Requests | Summaries


def latencies(kept: Kept, confidence: float) -> dict[str, Estimate]:
    """Return mean, percentiles and maximum of the latency, ns."""
    if kept.values is not None:
        values = kept.values / 1000
        out = {"mean": mean(values, confidence)}
        for name, q in PERCENTILES.items():
            out[name] = quantile(values, q, confidence)
        out["max"] = Estimate(float(values.max()), None, None, confidence)
        return out
    batches = kept.latency
    out = {"mean": _in_ns(mean_of_batches(batches, confidence))}
    for name, q in PERCENTILES.items():
        out[name] = _in_ns(quantile_of_batches(batches, q, confidence))
    out["max"] = Estimate(batches.greatest / 1000, None, None, confidence)
    return out


def latency_ratios(ours: Kept, theirs: Kept) -> dict[str, Estimate]:
    """Return the ratios of the latency's mean and percentiles.

    Raises:
        IosimError: One of the two has every request and the other a sketch.
    """
    if ours.values is not None and theirs.values is not None:
        a, b = ours.values / 1000, theirs.values / 1000
        out = {"latency_mean": ratio_of_means(a, b)}
        return out | {f"latency_{name}": quantile_ratio(a, b, q) for name, q in PERCENTILES.items()}
    if isinstance(ours, Requests) or isinstance(theirs, Requests):
        raise IosimError("a run that keeps its requests cannot be compared with one that kept summaries only")
    out = {"latency_mean": ratio_of_means_of_batches(ours.latency, theirs.latency)}
    return out | {
        f"latency_{name}": quantile_ratio_of_batches(ours.latency, theirs.latency, q) for name, q in PERCENTILES.items()
    }


def ordered(kept: Kept, ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the latencies (ps) of such ranks in ascending order, from 0; of a sketch the middle of their bins."""
    if kept.values is not None:
        return np.sort(kept.values)[ranks].astype(np.float64)
    totals = np.cumsum(kept.latency.counts.sum(axis=0))
    places = np.searchsorted(totals, ranks + 1)
    return np.array([middle(kept.latency, int(place)) for place in places])


def _in_ns(e: Estimate) -> Estimate:
    low = None if e.low is None else e.low / 1000
    high = None if e.high is None else e.high / 1000
    return Estimate(e.value / 1000, low, high, e.confidence)
