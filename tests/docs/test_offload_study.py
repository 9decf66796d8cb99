"""The page on offloads says what the study gives, in its table and in its words."""

from __future__ import annotations

import pytest

pytest.importorskip("iosim.engine.compiled.code")  # minutes on SimPy

from offload_study import PAGE, QDISCS, RATES, SWITCHES, busy, gigabits, renewed, run

pytestmark = pytest.mark.slow
ON, HOST, GUEST_TSO, GUEST = SWITCHES


def latency(rate: str, qdisc: str, switch: str) -> float:
    return run(rate, qdisc, switch).latency["mean"].value


def total(rate: str, qdisc: str, switch: str) -> float:
    return sum(busy(run(rate, qdisc, switch), name) for name in ("vcpu0", "vhost", "host-softirq"))


def test_the_table_is_the_study_s() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == renewed(text), "write it anew: python tests/docs/offload_study.py"


def test_in_a_fifo_no_switch_helps_at_1_gbit() -> None:
    for switch in SWITCHES:
        assert latency("1Gbit/s", "fifo", switch) == pytest.approx(latency("1Gbit/s", "fifo", ON), rel=0.02)


def test_off_at_the_host_costs_the_host_s_cpu_and_no_throughput() -> None:
    for rate in RATES:
        for qdisc in QDISCS:
            on, off = run(rate, qdisc, ON), run(rate, qdisc, HOST)
            assert gigabits(off) == pytest.approx(gigabits(on), rel=0.01)
            assert busy(off, "host-softirq") > 5 * busy(on, "host-softirq")
            for thread in ("vcpu0", "vhost"):
                assert busy(off, thread) == pytest.approx(busy(on, thread), rel=0.1)


def test_off_in_the_guest_costs_more_and_at_10_gbit_throughput() -> None:
    for qdisc in QDISCS:
        for rate in RATES:
            assert total(rate, qdisc, GUEST) > 2 * total(rate, qdisc, HOST)
            assert total(rate, qdisc, HOST) > 2 * total(rate, qdisc, ON)
        assert gigabits(run("10Gbit/s", qdisc, GUEST)) < 0.5 * gigabits(run("10Gbit/s", qdisc, ON))


def test_with_fair_queueing_smaller_packets_are_less_to_wait_for_at_1_gbit() -> None:
    assert latency("1Gbit/s", "fq", ON) < 0.25 * latency("1Gbit/s", "fifo", ON)
    assert latency("1Gbit/s", "fq", HOST) < 0.5 * latency("1Gbit/s", "fq", ON)
    assert latency("1Gbit/s", "fq", GUEST) < 0.5 * latency("1Gbit/s", "fq", HOST)


def test_where_vhost_is_the_bottleneck_the_qdisc_is_empty_and_changes_nothing() -> None:
    for switch in (GUEST, GUEST_TSO):
        assert latency("10Gbit/s", "fq", switch) == latency("10Gbit/s", "fifo", switch)
