"""Draws: the bits, the cells, the tables, and that every way to a draw gives the same draw.

Statistical bounds are 4.5 standard errors: exceeded with a probability below 1e-5 by a right generator.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iosim.engine.distributions import (
    LONGEST_PS,
    Constant,
    Distribution,
    Exponential,
    Gamma,
    LogNormal,
    Uniform,
)
from iosim.engine.draws import (
    BLOCKS,
    CELLS,
    FIRST_CHUNK,
    LARGEST_CHUNK,
    DrawStream,
    Table,
    cell,
    cell_weights,
    random_bits,
    random_bits_array,
    reference_draw,
    stream_key,
    table_for,
)
from iosim.errors import IosimError

DISTRIBUTIONS: list[Distribution] = [
    Exponential(1e6),
    LogNormal(1e6, 1e5),
    LogNormal(1e6, 1e6),
    Gamma(1e6, 4e5),
    Uniform(2e5, 9e5),
]
KEYS = st.integers(0, 2**64 - 1)

# First probability and width of a cell of each block, as the module's documentation has them.
LAYOUT = [
    (0.0, 2**-10),
    (0.0, 2**-15),
    (1 - 2**-5, 2**-15),
    (1 - 2**-10, 2**-20),
    (1 - 2**-15, 2**-25),
    (1 - 2**-20, 2**-30),
]


def draws(name: str, dist: Distribution, count: int, seed: int = 1) -> np.ndarray:
    return table_for(dist).look_up(random_bits_array(stream_key(seed, 0, name), 0, count))


# --- bits ----------------------------------------------------------------------------------------------


def test_bits_are_those_of_splitmix64() -> None:
    # The first outputs of Vigna's splitmix64.c seeded with 1234567; it steps before it mixes.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [random_bits(1234567, index) for index in range(1, 6)] == published


@given(key=KEYS, start=st.integers(0, 2**40))
def test_bits_of_numpy_equal_those_of_plain_integers(key: int, start: int) -> None:
    assert random_bits_array(key, start, 5).tolist() == [random_bits(key, start + i) for i in range(5)]


def test_keys_are_the_same_on_every_platform() -> None:
    assert stream_key(0, 0, "vm_exit") == 0x9440345185531315
    assert stream_key(-1, 2, "µ") == 0x234BEF29F4FDAD65


def test_keys_tell_seed_replication_and_name_apart() -> None:
    places = [*itertools.product((0, 1, 12, 123), (0, 3, 23), ("", "a", "b", "ab")), (1, 0, "3\0a")]
    assert len({stream_key(*place) for place in places}) == len(places)
    assert all(0 <= stream_key(*place) < 2**64 for place in places)


def test_cells_are_equally_likely() -> None:
    n = 1 << 20
    counts = np.bincount(random_bits_array(stream_key(1, 0, "x"), 0, n) >> np.uint64(54), minlength=1024)
    expected = n / 1024
    statistic = float(((counts - expected) ** 2 / expected).sum())
    # Chi-squared with 1023 degrees of freedom: mean 1023, variance 2046.
    assert abs(statistic - 1023) < 4.5 * math.sqrt(2046)


# --- cells ---------------------------------------------------------------------------------------------

BORDERS = [b + d for b in (0, 2**25, 2**30 - 2**25, 2**30 - 2**20, 2**30 - 2**15, 2**30 - 2**10, 2**30)
           for d in (-1, 0, 1) if 0 <= b + d < 2**30]  # fmt: skip


@given(u=st.sampled_from(BORDERS) | st.integers(0, 2**30 - 1), rest=st.integers(0, 2**34 - 1))
def test_a_draw_falls_in_the_narrowest_cell_that_holds_its_probability(u: int, rest: int) -> None:
    block, within = divmod(cell(u << 34 | rest), CELLS)
    first, width = LAYOUT[block]
    assert first + within * width <= u / 2**30 < first + (within + 1) * width
    covering = [w for f, w in LAYOUT if f <= u / 2**30 < f + CELLS * w]
    assert width == min(covering)


def test_weights_are_the_probabilities_of_the_cells() -> None:
    weights = cell_weights()
    assert weights.shape == (BLOCKS * CELLS,)
    assert math.fsum(weights) == 1.0
    # Steps no wider than the cells that are drawn there.
    places = [range(0, 2**30, 2**15), range(2**30 - 2**20, 2**30, 2**5), range(2**30 - 2**10, 2**30)]
    drawn = {cell(u << 34) for u in itertools.chain(*places)}
    assert drawn == set(np.flatnonzero(weights).tolist())


@given(bits=st.lists(st.sampled_from([u << 34 for u in BORDERS]) | KEYS, max_size=30))
def test_look_up_of_numpy_equals_the_reference(bits: list[int]) -> None:
    table = table_for(DISTRIBUTIONS[0])
    expected = [int(table.values[cell(b)]) for b in bits]
    assert table.look_up(np.array(bits, dtype=np.uint64)).tolist() == expected


# --- tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dist", [*DISTRIBUTIONS, Exponential(3.0), LogNormal(1e9, 1e10)], ids=repr)
def test_table_keeps_the_mean(dist: Distribution) -> None:
    table = table_for(dist)
    assert abs(table.mean - dist.mean) < 0.001 + 1e-12 * dist.mean
    assert table.mean == math.fsum(table.values * cell_weights())


@pytest.mark.parametrize("dist", DISTRIBUTIONS, ids=repr)
def test_table_keeps_the_spread(dist: Distribution) -> None:
    # Only the variance inside the cells is lost; rounding adds at most 1 ps.
    assert 0.9999 * dist.std < table_for(dist).std < dist.std + 1


@pytest.mark.parametrize("dist", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize("p", [0.001, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.9999999])
def test_quantiles_of_the_table_lie_in_the_cell_of_the_true_ones(dist: Distribution, p: float) -> None:
    width = min(w for first, w in LAYOUT if first <= p < first + CELLS * w)
    quantile = table_for(dist).quantile(p)
    assert dist.ppf(p - width) - 1 <= quantile <= dist.ppf(p + width) + 1
    if p >= 0.99:
        # A cell is at most a 32nd of the probability beyond it: under 0.5 % of these quantiles.
        assert quantile == pytest.approx(dist.ppf(p), rel=0.005)


@pytest.mark.parametrize("dist", DISTRIBUTIONS, ids=repr)
def test_values_ascend_with_the_probability(dist: Distribution) -> None:
    weights = cell_weights()
    middle = np.concatenate([first + (np.arange(CELLS) + 0.5) * width for first, width in LAYOUT])
    values = table_for(dist).values[weights > 0][np.argsort(middle[weights > 0])]
    # Rounding may put the last of one block 1 ps above the first of the next.
    assert np.diff(values).min() >= -1
    assert values.min() >= 0
    assert values.dtype == np.int64


def test_longest_draw_is_the_mean_beyond_the_last_cell() -> None:
    # Memoryless: beyond its quantile at 1 - 2**-30 an exponential has its whole mean left.
    assert table_for(Exponential(1e6)).values[-1] == pytest.approx(1e6 * (30 * math.log(2) + 1), abs=1)


def test_equal_distributions_share_one_table_that_nobody_can_change() -> None:
    table = table_for(LogNormal(5e5, 1e5))
    assert table_for(LogNormal(5e5, 1e5)) is table
    assert table_for(LogNormal(5e5, 2e5)) is not table
    with pytest.raises(ValueError, match="read-only"):
        table.values[0] = 1


def test_a_distribution_that_goes_too_far_is_refused() -> None:
    with pytest.raises(IosimError, match="hours"):
        table_for(Exponential(LONGEST_PS / 2))


# --- streams -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dist", DISTRIBUTIONS, ids=repr)
def test_drawn_values_have_the_moments_and_quantiles_of_the_distribution(dist: Distribution) -> None:
    n = 1_000_000
    x = draws("cost", dist, n)
    assert abs(x.mean() - dist.mean) < 4.5 * dist.std / math.sqrt(n)
    # Var(s²) = (fourth central moment - variance²) / n, the fourth moment taken from the sample.
    fourth = float(((x - dist.mean) ** 4).mean())
    assert abs(x.var() - dist.std**2) < 4.5 * math.sqrt((fourth - dist.std**4) / n)
    for p in (0.5, 0.99, 0.999, 0.9999):
        # Cells share their value: a draw is certain to lie below the quantile only one cell away.
        width = min(w for first, w in LAYOUT if first <= p < first + CELLS * w)
        below = float((x <= dist.ppf(p)).mean())
        assert abs(below - p) < 4.5 * math.sqrt(p * (1 - p) / n) + width


def test_draws_do_not_depend_on_how_they_are_chunked() -> None:
    dist, key = DISTRIBUTIONS[1], stream_key(3, 1, "kick")
    count = 3 * LARGEST_CHUNK
    stream = DrawStream(key, dist)
    drawn = [stream.draw() for _ in range(count)]
    assert drawn == draws_of(key, dist, 0, count)
    assert drawn == [x for start in range(0, count, 7) for x in draws_of(key, dist, start, 7)][:count]
    assert drawn[: 4 * FIRST_CHUNK] == [reference_draw(key, i, dist) for i in range(4 * FIRST_CHUNK)]
    assert all(type(x) is int for x in drawn[:100])


def draws_of(key: int, dist: Distribution, start: int, count: int) -> list[int]:
    values: list[int] = table_for(dist).look_up(random_bits_array(key, start, count)).tolist()
    return values


@given(key=KEYS, index=st.integers(0, 2**33))
def test_reference_draw_equals_that_of_numpy(key: int, index: int) -> None:
    for dist in DISTRIBUTIONS:
        assert DrawStream(key, dist).draw_at(index) == draws_of(key, dist, index, 1)[0]


def test_looking_at_a_draw_does_not_move_the_stream() -> None:
    stream = DrawStream(stream_key(0, 0, "x"), DISTRIBUTIONS[0])
    first = stream.draw_at(0)
    stream.draw_at(1000)
    assert stream.draw() == first
    assert stream.draw() == stream.draw_at(1)
    with pytest.raises(IosimError):
        stream.draw_at(-1)


def test_short_streams_make_few_draws_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    look_up = Table.look_up

    def counting(self: Table, bits: np.ndarray) -> np.ndarray:
        made.append(len(bits))
        return look_up(self, bits)

    monkeypatch.setattr(Table, "look_up", counting)
    stream = DrawStream(1, DISTRIBUTIONS[0])
    assert made == []
    for _ in range(FIRST_CHUNK):
        stream.draw()
    assert made == [FIRST_CHUNK]
    stream.draw()
    assert made == [FIRST_CHUNK, 2 * FIRST_CHUNK]
    for _ in range(6 * LARGEST_CHUNK):
        stream.draw()
    assert max(made) == LARGEST_CHUNK
    assert sum(made) < FIRST_CHUNK + 7 * LARGEST_CHUNK


def test_a_constant_is_drawn_as_a_whole_number_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iosim.engine.draws.table_for", None)
    stream = DrawStream(7, Constant(1499.6))
    assert [stream.draw() for _ in range(3)] == [1500] * 3
    assert stream.draw_at(12) == 1500


# --- common random numbers -----------------------------------------------------------------------------


def test_the_same_stream_gives_the_same_draws_whatever_else_is_drawn() -> None:
    dist = DISTRIBUTIONS[1]
    alone = DrawStream(stream_key(5, 0, "a"), dist)
    beside, other = DrawStream(stream_key(5, 0, "a"), dist), DrawStream(stream_key(5, 0, "b"), dist)
    together = []
    for i in range(500):
        together.append(beside.draw())
        for _ in range(i % 3):
            other.draw()
    assert together == [alone.draw() for _ in range(500)]


def test_a_cost_that_is_scaled_keeps_its_luck() -> None:
    dist = LogNormal(1e6, 5e5)
    base, scaled = draws("a", dist, 10_000), draws("a", dist.scaled(2.5), 10_000)
    # Each of the two values is within 1 ps of the mean of its cell.
    assert np.abs(scaled - 2.5 * base).max() <= 1 + 2.5


@pytest.mark.parametrize("other", [(1, 0, "b"), (2, 0, "a"), (1, 1, "a"), (1, 0, "a "), (0, 1, "a")], ids=str)
def test_other_streams_are_uncorrelated_at_every_small_lag(other: tuple[int, int, str]) -> None:
    n = 100_000
    x = random_bits_array(stream_key(1, 0, "a"), 0, n) / 2.0**64 - 0.5
    y = random_bits_array(stream_key(*other), 0, n) / 2.0**64 - 0.5
    for lag in range(-5, 6):
        a, b = x[5:-5], np.roll(y, lag)[5:-5]
        # A mean of products of independent uniforms of variance 1/12 each.
        assert abs(float((a * b).mean()) * 12) < 4.5 / math.sqrt(len(a))


def test_successive_draws_of_a_stream_are_uncorrelated() -> None:
    n = 1_000_000
    x = random_bits_array(stream_key(1, 0, "a"), 0, n) / 2.0**64 - 0.5
    for lag in (1, 2, 3, 5, 8, 64, 1024):
        assert abs(float((x[:-lag] * x[lag:]).mean()) * 12) < 4.5 / math.sqrt(n - lag)
