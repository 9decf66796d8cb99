"""The notification regimes: the shipped ring between a saturated producer and consumer, against the closed forms.

The closed forms are those of models/anchors/published.toml, section ``notification_regimes``, evaluated as they stand
there (Rizzo, Garzarella, Lettieri, Maffione: A Study of Speed Mismatches Between Communicating Virtual Machines,
ANCS 2016). Their derivation is in docs/background/notification.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import iosim
from iosim.errors import IosimError
from iosim.host import hosts
from iosim.result import Result

REGIMES = hosts.published()["notification_regimes"]
MEASURED = REGIMES["measured_example"]
Parameters = dict[str, int]
"""By the paper's names; times in ns."""

examples = settings(
    derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.filter_too_much]
)


def simulated(p: Parameters, **more: Any) -> Result:
    given = {"device.queue_size": p["L"], "device.kp": p["Kp"], "device.kc": p["Kc"], "device.rearm": 0}
    times = {f"device.{name.lower()}": f"{p[name]}ns" for name in ("Wp", "Wc", "Np", "Nc", "Sp", "Sc")}
    return iosim.simulate("prodcons", settings={**given, **times, **more})


def formula(text: str, p: Parameters, **more: int) -> float:
    return float(eval(text, {"floor": math.floor, "max": max}, {**p, **more}))


def item_time(r: Result) -> float:
    return r.duration_ns / len(r.rows)


def away_from_whole(quotient: float) -> bool:
    return 0.05 < quotient % 1 < 0.95


def mirrored(p: Parameters) -> Parameters:
    """What the producer was is the consumer now, and the other way round."""
    swap = {"p": "c", "c": "p"}
    return {name[0] + swap.get(name[1:], ""): value for name, value in p.items()}


@st.composite
def pairs(draw: st.DrawFn, slow_producer: bool, slow_consumer: bool) -> Parameters:
    """Parameters of a regime with a fast consumer (`mirrored`: a fast producer): which sides start too slowly?

    A side does when the other has come to the end of the ring before its first item is done.
    """
    size = draw(st.sampled_from([64, 128, 256]))
    wc = draw(st.integers(200, 4000))
    wp = wc + draw(st.integers(wc // 30 + 1, 2 * wc))
    kp, kc = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    sc_limit = (size - kp) * wp - wc
    sp_limit = (size - kc) * wc - wp
    late = st.integers(1, 300_000)
    assert min(sc_limit, sp_limit) > 0
    return {
        "L": size,
        "Wp": wp,
        "Wc": wc,
        "Np": draw(st.integers(0, 6000)),
        "Nc": draw(st.integers(0, 6000)),
        "Sp": sp_limit + draw(late) if slow_producer else draw(st.integers(0, sp_limit - 1)),
        "Sc": sc_limit + draw(late) if slow_consumer else draw(st.integers(0, sc_limit - 1)),
        "Kp": kp,
        "Kc": kc,
    }


def either_faster(slow_producer: bool, slow_consumer: bool) -> st.SearchStrategy[Parameters]:
    consumer = pairs(slow_producer=slow_producer, slow_consumer=slow_consumer)
    return consumer | pairs(slow_producer=slow_consumer, slow_consumer=slow_producer).map(mirrored)


def settled(p: Parameters) -> int:
    """Items until the faster side has caught up with the slower, wherever both began, and a little more.

    (At Wp = Wc it never does: both go on side by side, as they began. Such a pair has no regime.)
    """
    caught_up = p["L"] * max(p["Wp"], p["Wc"]) // abs(p["Wp"] - p["Wc"])
    return caught_up + 2 * p["L"]


def check_period(p: Parameters, expected: float, period: int, before: int, kicks: int, interrupts: int) -> None:
    """Simulate whole periods, so many items each, and compare time per item and notifications per period."""
    periods = max(3, -(-1500 // period))
    r = simulated(p, **{"run.requests": periods * period, "run.warmup": before})
    assert item_time(r) == pytest.approx(expected, rel=0.01)
    # Whole periods of a constant run repeat exactly, so the closed form does not merely come near.
    assert item_time(r) == pytest.approx(expected, rel=1e-9)
    assert r.count("kicks") == periods * kicks
    assert r.count("interrupts") == periods * interrupts
    assert r.count("spurious.kicks") == r.count("spurious.interrupts") == 0
    assert r.count("kicks") + r.count("suppressed.kicks") == pytest.approx(periods * period, abs=1)
    assert r.count("interrupts") + r.count("suppressed.interrupts") == pytest.approx(periods * period, abs=1)


@examples
@given(either_faster(slow_producer=True, slow_consumer=True))
def test_ss_both_start_too_slowly(p: Parameters) -> None:
    assert formula(REGIMES["SS"]["when"], p)
    check_period(p, formula(REGIMES["SS"]["T"], p), p["L"], settled(p), kicks=1, interrupts=1)


def check_fc(p: Parameters) -> None:
    m = round(formula(REGIMES["FC"]["m"], p))
    assume(away_from_whole((p["Sc"] + (p["Kp"] - 1) * p["Wc"]) / (p["Wp"] - p["Wc"])))
    assume(m <= 1500)
    check_period(p, formula(REGIMES["FC"]["T"], p, m=m), m, settled(p) + 2 * m, kicks=1, interrupts=0)


@examples
@given(st.booleans().flatmap(lambda slow: pairs(slow_producer=slow, slow_consumer=False)))
def test_fc_fast_consumer(p: Parameters) -> None:
    """The ring never fills, so how slowly the producer would start does not matter."""
    check_fc(p)


@examples
@given(st.booleans().flatmap(lambda slow: pairs(slow_producer=slow, slow_consumer=False)).map(mirrored))
def test_fp_fast_producer(p: Parameters) -> None:
    m = round(formula(REGIMES["FP"]["m"], p))
    assume(away_from_whole((p["Sp"] + (p["Kc"] - 1) * p["Wp"]) / (p["Wc"] - p["Wp"])))
    assume(m <= 1500)
    check_period(p, formula(REGIMES["FP"]["T"], p, m=m), m, settled(p) + 2 * m, kicks=0, interrupts=1)


@examples
@given(pairs(slow_producer=False, slow_consumer=True))
def test_sc_only_the_consumer_starts_too_slowly(p: Parameters) -> None:
    m = round(formula(REGIMES["SC"]["m"], p))
    assume(away_from_whole(((p["L"] - p["Kc"]) * p["Wc"] - (p["Sp"] + p["Wp"])) / (p["Wp"] - p["Wc"])))
    period = p["L"] + m
    check_period(p, formula(REGIMES["SC"]["T"], p, m=m), period, settled(p) + period, kicks=1, interrupts=1)


@examples
@given(pairs(slow_producer=False, slow_consumer=True).map(mirrored))
def test_sp_only_the_producer_starts_too_slowly(p: Parameters) -> None:
    m = round(formula(REGIMES["SP"]["m"], p))
    assume(away_from_whole(((p["L"] - p["Kp"]) * p["Wp"] - (p["Sc"] + p["Wc"])) / (p["Wc"] - p["Wp"])))
    period = p["L"] + m
    check_period(p, formula(REGIMES["SP"]["T"], p, m=m), period, settled(p) + period, kicks=1, interrupts=1)
