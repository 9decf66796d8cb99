"""What ``KEY=VALUES`` means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.sweep_values import MAX_VALUES, parse_pair, values_of


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,16,64", (1, 16, 64)),
        ("1..3", (1, 2, 3)),
        ("1..10:3", (1, 4, 7, 10)),
        ("1..9:3", (1, 4, 7)),
        ("1..1024*4", (1, 4, 16, 64, 256, 1024)),
        ("1..3,8", (1, 2, 3, 8)),
        ("1k..4k*2", (1000, 2000, 4000)),
        ("0..0.3:0.1", (0, 0.1, 0.2, 0.3)),
        ("1..2.25*1.5", (1, 1.5, 2.25)),
        ("5..5", (5,)),
        ("1us,5us", ("1us", "5us")),
        ("0us..30us:10us", ("0us", "10us", "20us", "30us")),
        ("0..30us:10us", ("0us", "10us", "20us", "30us")),
        ("500ns..2us:500ns", ("500ns", "1000ns", "1500ns", "2000ns")),
        ("1us..1ms*10", ("1us", "10us", "100us", "1000us")),
        ("1Gbit/s..4Gbit/s*2", ("1Gbit/s", "2Gbit/s", "4Gbit/s")),
        ("on,off", (True, False)),
        ("rr,tx,rx", ("rr", "tx", "rx")),
        ("-1", (-1,)),
    ],
)
def test_values(text: str, values: tuple[object, ...]) -> None:
    found = parse_pair(f"k={text}")
    assert found == ("k", values)
    assert [type(v) for v in found[1]] == [type(v) for v in values]


def test_hosts_are_names_and_costs_may_be_intervals() -> None:
    assert parse_pair("host=../a.toml,composite") == ("host", ("../a.toml", "composite"))
    assert parse_pair("host.costs.tap=28us..32us,500ns±40ns")[1] == ("28us..32us", "500ns±40ns")
    assert parse_pair("host.costs.tap=1us..3us:1us")[1] == ("1us", "2us", "3us")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("depth", "write KEY=VALUES"),
        ("k=", "write KEY=VALUES"),
        ("k=1,,2", "k: has an empty value"),
        ("k=5..1", "k: '5..1' runs backwards"),
        ("k=1..2:0", "step of 0"),
        ("k=0..9*2", "never leaves 0"),
        ("k=1..9*1", "factor above 1"),
        ("k=1..9*2us", "factor above 1"),
        ("k=1us..5us", "needs its step or factor"),
        ("k=1us..5:1", "from a time to a number"),
        ("k=1..5:1us", "time as the step of a number"),
        ("k=1sec..5sec:1sec", "unknown unit 'sec'"),
        ("k=1..", "is no number"),
        ("k=1..1e7", f"more than {MAX_VALUES} values"),
        ("k=1..1e17*1.0000001", f"more than {MAX_VALUES} values"),
        ("k=0..1e9:1e-20", f"more than {MAX_VALUES} values"),
        ("k=1e999999999..2", "too large or too small"),
        ("k=1e9999999999999999999999", "too large or too small"),
        ("k=1,1", "the value 1 twice"),
        ("k=" + "9" * 5000, "too large or too small"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    with pytest.raises(IosimError) as error:
        parse_pair(text)
    assert says in str(error.value)
    assert len(str(error.value)) < 200


# Pieces of what people type, and of what they should not; and any text at all.
_PIECES = ["1", "0", "16", "2.5", "1e3", "1e-40", "9" * 30, "..", ":", "*", ",", "us", "ns", "Gbit/s", "on"]
_TYPED = st.lists(st.sampled_from(_PIECES), max_size=8).map("".join)


@settings(derandomize=True, deadline=None, max_examples=600)
@given(st.one_of(_TYPED, st.text(max_size=30)), st.sampled_from(["k", "host", "host.costs.tap"]))
def test_any_text_gives_values_or_an_iosim_error(text: str, key: str) -> None:
    try:
        _, values = parse_pair(f"{key}={text}")
    except IosimError:
        return
    assert 1 <= len(values) <= MAX_VALUES
    assert len({(isinstance(v, bool), v) for v in values}) == len(values)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 200), st.integers(1, 1000))
def test_a_range_is_that_of_python_with_its_end(low: int, count: int, step: int) -> None:
    high = low + count * step
    assert parse_pair(f"k={low}..{high}:{step}")[1] == tuple(range(low, high + 1, step))
    in_ns = parse_pair(f"k={low}ns..{high}ns:{step}ns")[1]
    assert in_ns == tuple(f"{v}ns" for v in range(low, high + 1, step))


def test_values_from_python() -> None:
    found = values_of({"workload": "rr,tx", "b": np.array([1, 2]), "c": range(2), "d": 4, "e": ["on", "1us"]})
    assert found == {"workload.name": ("rr", "tx"), "b": (1, 2), "c": (0, 1), "d": (4,), "e": (True, "1us")}
    assert type(found["b"][0]) is int
    assert values_of("a=1,2") == {"a": (1, 2)}
    assert list(values_of(["b=1", "a=2"])) == ["b", "a"]


@pytest.mark.parametrize(
    ("vary", "says"),
    [
        ({"k": []}, "k: has no values"),
        ({"k": [None]}, "None is no value"),
        ({"k": [float("nan")]}, "nan is too large or no number"),
        ({"k": [10**30]}, "too large"),
        ({"k": [np.array([1, 2])]}, "is no value"),
        ({5: [1]}, "5 is no key"),
        ([5], "5 is nothing to vary"),
        (["workload=rr", "workload.name=tx"], "workload.name: is varied twice"),
    ],
)
def test_wrong_values_from_python(vary: object, says: str) -> None:
    with pytest.raises(IosimError, match=says):
        values_of(vary)  # type: ignore[arg-type]
