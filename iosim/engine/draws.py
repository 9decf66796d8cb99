"""Random draws in whole picoseconds: the one place where chance enters a run, the same in every engine.

A draw needs no state but its place: draw number ``index`` of the stream ``key`` is made of the 64 bits
``splitmix64(key + index * GOLDEN_GAMMA)``, which select a cell of a table of quantiles. So a stream gives
the same draws whatever other streams do and in whatever order events happen (common random numbers), and an
engine needs only 64-bit integer arithmetic and the table: no logarithm whose last bit may differ.

The table is ``BLOCKS * CELLS`` values of int64, in ps, flat, in six blocks of ``CELLS`` = 1024. The top 30
of the 64 bits are a number ``u`` that stands for a probability of ``u / 2**30``; most draws take the cell
``u >> 20`` of block 0, but the first and the last 32nd of the probabilities have blocks of narrower cells, so
that the cells of the upper tail stay narrow in proportion to the probability beyond them, down to 2**-30:

====== =========================== ============== ======================================
block  covers the probabilities    width of cell  where ``u`` selects the cell
====== =========================== ============== ======================================
0      0 to 1                      2**-10         ``u >> 20``
1      0 to 2**-5                  2**-15         ``u >> 15``, if u < 2**25
2      1 - 2**-5 to 1              2**-15         ``(u >> 15) & 1023``, if 2**30 - u <= 2**25
3      1 - 2**-10 to 1             2**-20         ``(u >> 10) & 1023``, if 2**30 - u <= 2**20
4      1 - 2**-15 to 1             2**-25         ``(u >> 5) & 1023``, if 2**30 - u <= 2**15
5      1 - 2**-20 to 1             2**-30         ``u & 1023``, if 2**30 - u <= 2**10
====== =========================== ============== ======================================

The last condition that holds decides. (With a single refined cell at each end, the 99.9th percentile of an
exponential distribution would be 5 % too low.)

>>> from iosim.engine.distributions import Exponential
>>> stream = DrawStream(stream_key(seed=1, replication=0, name="vm_exit"), Exponential(mean=1e6))
>>> [stream.draw() for _ in range(3)] == [stream.draw_at(index) for index in range(3)]
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt

from iosim.engine.distributions import LONGEST_PS, Constant, Distribution
from iosim.errors import IosimError

IntArray = npt.NDArray[np.int64]
BitsArray = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float64]

#: The odd number closest to 2**64 divided by the golden ratio: what splitmix64 steps by.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
#: Cells of a block, and blocks of a table.
CELLS = 1024
BLOCKS = 6
#: How many draws a stream makes ahead: few at first, for short runs, then more.
FIRST_CHUNK = 64
LARGEST_CHUNK = 4096

_MASK = (1 << 64) - 1
#: For each block: the first probability it covers and the width of its cells; floats hold both exactly.
_COVERS = (
    (0.0, 2.0**-10),
    (0.0, 2.0**-15),
    (1 - 2.0**-5, 2.0**-15),
    (1 - 2.0**-10, 2.0**-20),
    (1 - 2.0**-15, 2.0**-25),
    (1 - 2.0**-20, 2.0**-30),
)


def stream_key(seed: int, replication: int, name: str) -> int:
    """Return the 64-bit key of a stream: the same in every process, on every platform.

    Args:
        seed: The seed of the experiment, any integer.
        replication: The number of the run under that seed, any integer.
        name: The name of the stream, such as that of the cost it draws.

    Two keys are as good as independent: BLAKE2b (RFC 7693) with an 8-byte digest. Two of m streams of n draws
    each share a stretch of draws with a probability of about m² n / 2**64.
    """
    text = f"{int(seed)}\0{int(replication)}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8, person=b"iosim.draws").digest(), "little")


def random_bits(key: int, index: int) -> int:
    """Return the 64 random bits of draw ``index`` of the stream ``key``, in plain integers.

    splitmix64's output function (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014, with the constants of Vigna's splitmix64.c) at the state key + index * GOLDEN_GAMMA.
    """
    z = (key + index * GOLDEN_GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * MIX_2) & _MASK
    return z ^ (z >> 31)


def random_bits_array(key: int, start: int, count: int) -> BitsArray:
    """Return the random bits of draws ``start`` to ``start + count - 1``, uint64, shape (count,)."""
    z = np.arange(start, start + count, dtype=np.uint64)
    # In-place arithmetic on arrays wraps modulo 2**64, as the definition wants, without a warning.
    z *= np.uint64(GOLDEN_GAMMA)
    z += np.uint64(key)
    z ^= z >> np.uint64(30)
    z *= np.uint64(MIX_1)
    z ^= z >> np.uint64(27)
    z *= np.uint64(MIX_2)
    z ^= z >> np.uint64(31)
    return z


def cell(bits: int) -> int:
    """Return the place in the flat table that 64 random bits select, in plain integers."""
    u = bits >> 34
    beyond = (1 << 30) - u
    if u < 1 << 25:
        return CELLS + (u >> 15)
    if beyond > 1 << 25:
        return u >> 20
    if beyond > 1 << 20:
        return 2 * CELLS + ((u >> 15) & (CELLS - 1))
    if beyond > 1 << 15:
        return 3 * CELLS + ((u >> 10) & (CELLS - 1))
    if beyond > 1 << 10:
        return 4 * CELLS + ((u >> 5) & (CELLS - 1))
    return 5 * CELLS + (u & (CELLS - 1))


class Table:
    """The values that a distribution's draws take, in ps, each the mean of the distribution over its cell.

    Attributes:
        values: int64, shape (BLOCKS * CELLS,), read-only, laid out as the module says. A cell that another
            block refines holds the mean of all of it, rounded; it is never drawn.
        mean: The exact mean of a draw, in ps. It differs from the distribution's by less than 0.001 ps, plus
            the rounding error of a float.
    """

    __slots__ = ("mean", "values")

    values: IntArray
    mean: float

    def __init__(self, dist: Distribution) -> None:
        """Build the table of ``dist``; IosimError if it reaches beyond ``LONGEST_PS``."""
        grid = np.arange(CELLS + 1, dtype=np.float64)
        self.values = np.empty(BLOCKS * CELLS, dtype=np.int64)
        for block, (first, width) in enumerate(_COVERS):
            means = dist.cell_means(first + grid * width)
            if not (means.min() >= 0 and means.max() <= LONGEST_PS):
                raise IosimError(f"{dist} gives times outside 0 to 2.5 hours")
            here = self.values[block * CELLS : (block + 1) * CELLS]
            here[:] = np.rint(means)
            drawn = cell_weights()[block * CELLS : (block + 1) * CELLS] > 0
            here[drawn] = _whole(means[drawn])
        self.values.setflags(write=False)
        self.mean = math.fsum(self.values * cell_weights())

    def quantile(self, p: float) -> int:
        """Return the smallest value, in ps, that a draw does not exceed with probability ``p`` or more."""
        order = np.argsort(self.values, kind="stable")
        reached = np.cumsum(cell_weights()[order])
        return int(self.values[order][min(int(np.searchsorted(reached, p)), len(order) - 1)])

    @property
    def std(self) -> float:
        """The standard deviation of a draw, in ps."""
        return math.sqrt(math.fsum((self.values - self.mean) ** 2 * cell_weights()))

    def look_up(self, bits: BitsArray) -> IntArray:
        """Return the draws that random bits select: uint64 of shape (n,) to int64 ps of shape (n,)."""
        u = (bits >> np.uint64(34)).astype(np.int64)
        place = u >> 20
        low = np.flatnonzero(u < 1 << 25)
        place[low] = CELLS + (u[low] >> 15)
        beyond = (1 << 30) - u
        high = np.flatnonzero(beyond <= 1 << 25)
        place[high] = 2 * CELLS + ((u[high] >> 15) & (CELLS - 1))
        # One draw in 1024 lies further out, so these few are looked up one by one.
        for i in high[beyond[high] <= 1 << 20].tolist():
            place[i] = cell(int(bits[i]))
        draws: IntArray = self.values[place]
        return draws


@lru_cache(maxsize=1)
def cell_weights() -> FloatArray:
    """Return the probability that each place of the flat table is drawn; 0 where a block refines it."""
    weights = np.repeat([width for _, width in _COVERS], CELLS)
    refined = CELLS // 32
    weights[:refined] = 0.0
    for block in (0, 2, 3, 4):
        weights[(block + 1) * CELLS - refined : (block + 1) * CELLS] = 0.0
    weights.setflags(write=False)
    return weights


def _whole(means: FloatArray) -> IntArray:
    """Round to integers so that their sum is the rounded sum, by largest remainders: sorted stays sorted."""
    low = np.floor(means)
    rest = means - low
    up = round(math.fsum(rest))
    if up:
        low[np.argsort(rest, kind="stable")[len(rest) - up :]] += 1
    return low.astype(np.int64)


@lru_cache(maxsize=512)
def _cached_table(dist: Distribution) -> Table:
    return Table(dist)


def table_for(dist: Distribution) -> Table:
    """Return the table of ``dist``, built once for all equal distributions."""
    return _cached_table(dist)


def _chunks(key: int, table: Table) -> Iterator[list[int]]:
    start, count = 0, FIRST_CHUNK
    while True:
        yield table.look_up(random_bits_array(key, start, count)).tolist()
        start += count
        count = min(2 * count, LARGEST_CHUNK)


class DrawStream:
    """The draws of one cost, in order.

    Args:
        key: What :func:`stream_key` gives.
        dist: The distribution of the cost.

    Attributes:
        draw: Call it without arguments for the next draw, a whole number of ps.
    """

    # `draw` is the iterator's own method: a draw costs one call in C, and a refill now and then.
    __slots__ = ("dist", "draw", "key")

    key: int
    dist: Distribution
    draw: Callable[[], int]

    def __init__(self, key: int, dist: Distribution) -> None:
        self.key = key
        self.dist = dist
        if isinstance(dist, Constant):
            self.draw = repeat(round(dist.value)).__next__
        else:
            self.draw = chain.from_iterable(_chunks(key, table_for(dist))).__next__

    def draw_at(self, index: int) -> int:
        """Return draw number ``index`` (from 0), in ps: the reference definition, in plain integers.

        It neither depends on ``draw`` nor moves it.
        """
        return reference_draw(self.key, index, self.dist)


def reference_draw(key: int, index: int, dist: Distribution) -> int:
    """Return draw ``index`` of the stream ``key`` from ``dist``, in ps, one step after the other.

    >>> from iosim.engine.distributions import Uniform
    >>> reference_draw(key=0, index=1, dist=Uniform(low=0.0, high=10240.0))
    9045
    """
    if index < 0:
        raise IosimError(f"draws are numbered from 0, there is no draw {index}")
    if isinstance(dist, Constant):
        return round(dist.value)
    return int(table_for(dist).values[cell(random_bits(key, index))])
