"""What a run accumulates that does not keep its requests: sums of stages, and a sketch of the latencies.

All is in whole numbers, and in functions that can be compiled: every complete request is added at once, on either
engine alike. The first latencies are kept as they are, in order, as long as they fit: then quantiles are exact.

The sketch is a histogram whose bins grow with the value (as HdrHistogram's do). A latency below 2048 ps has a bin of
its own; above, each octave has 1024 bins of equal width. So the middle of a bin is off from any value in it by less
than 1/2048 of that value.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from iosim.requests import RequestTable

EXACT: Final = 1 << 20
"""Latencies kept as they are."""
DIGITS: Final = 11
"""Binary digits of a latency that its bin tells: the error is below 2^-11."""
BINS: Final = (62 - DIGITS + 2) << (DIGITS - 1)
"""For latencies of up to 2^62 ps, over 50 days."""
CARRY: Final = 60
"""Sums are of two words: what reaches 2^60 is counted in the second."""


class Summary:
    """Sums and sketch of one run, from its beginning.

    Args:
        milestones: Of the path.
        exact: Latencies that are kept as they are.
        bins: Of the sketch. Both 1 where the run keeps its requests.

    Attributes:
        open: Whether complete requests are added.
        count: Requests added.
        longest: The longest latency (ps).
        sums, carries: For each stage the sum of its times (ps) is ``sums + carries * 2**60``.
        values: The first latencies (ps), in the order of completion.
        counts: Latencies in each bin of the sketch.
    """

    __slots__ = ("carries", "count", "counts", "exact", "longest", "open", "sums", "values")

    def __init__(self, milestones: int, exact: int = 1, bins: int = 1) -> None:
        self.open = False
        self.count = 0
        self.longest = 0
        self.exact = exact
        self.sums = np.zeros(max(1, milestones - 1), dtype=np.int64).data
        self.carries = np.zeros(max(1, milestones - 1), dtype=np.int64).data
        self.values = np.zeros(exact, dtype=np.int64).data
        self.counts = np.zeros(bins, dtype=np.int64).data


def bin_of(value: int) -> int:
    """Return the bin of a latency."""
    top = value >> DIGITS
    shift = 0
    step = 32
    while step > 0:
        if top >> step > 0:
            top = top >> step
            shift += step
        step = step >> 1
    shift += top
    return (shift << (DIGITS - 1)) + (value >> shift)


def add(s: Summary, table: RequestTable, row: int) -> None:
    """Add a complete request: a skipped milestone has the time of the one before."""
    at = (row & table.mask) * table.milestones
    created = table._stamps[at]
    before = created
    for i in range(1, table.milestones):
        now = table._stamps[at + i]
        if now > before:
            total = s.sums[i - 1] + now - before
            s.sums[i - 1] = total & ((1 << CARRY) - 1)
            s.carries[i - 1] += total >> CARRY
            before = now
    latency = before - created
    if s.count < s.exact:
        s.values[s.count] = latency
    s.count += 1
    s.longest = max(s.longest, latency)
    s.counts[bin_of(latency)] += 1


def edges(bins: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the smallest and the largest value of each bin, ps."""
    shifts = np.maximum((bins >> (DIGITS - 1)) - 1, 0)
    low = (bins - (shifts << (DIGITS - 1))) << shifts
    return low, low + (np.int64(1) << shifts) - 1
