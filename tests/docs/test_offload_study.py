"""The page on offloads says what the study gives, in its table and in its words."""

from __future__ import annotations

import pytest

pytest.importorskip("iosim.engine.compiled.code")  # minutes on SimPy

from offload_study import (
    BACK_END,
    GUESTS_SWITCHES,
    PAGE,
    PATIENT,
    QDISCS,
    RATES,
    RECEIVE_SWITCHES,
    SWITCHES,
    WIRES,
    busy,
    busy_with_call,
    gigabits,
    guests,
    receive,
    renewed,
    run,
)

pytestmark = pytest.mark.slow
ON, HOST, GUEST_TSO, GUEST = SWITCHES
ALL, NO_GRO, NO_TSO4, NO_CSUM, NO_GUEST_GRO, NO_MERGING = RECEIVE_SWITCHES


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


# -- receiving --------------------------------------------------------------------------------------------------


def receive_sum(model: str, wire: str, switch: str) -> float:
    return sum(busy(receive(model, wire, switch), name) for name in ("vcpu0", BACK_END[model], "host-softirq"))


def request(model: str, wire: str, switch: str) -> float:
    return receive(model, wire, switch).latency["mean"].value


@pytest.mark.parametrize("model", BACK_END)
def test_at_10_gbit_everything_hangs_on_gro(model: str) -> None:
    full = gigabits(receive(model, "10Gbit/s", ALL))
    assert full == pytest.approx(9.41, abs=0.02)
    assert gigabits(receive(model, "10Gbit/s", NO_GUEST_GRO)) == pytest.approx(full, rel=0.01)
    low, high = (0.55, 0.85) if model == "vhost-net" else (0.3, 0.4)
    for switch in (NO_GRO, NO_TSO4, NO_CSUM):
        assert low < gigabits(receive(model, "10Gbit/s", switch)) / full < high
        assert request(model, "10Gbit/s", switch) > 10 * request(model, "10Gbit/s", ALL)


def test_who_limits_at_10_gbit() -> None:
    for model, switch, thread in (
        ("vhost-net", NO_TSO4, "host-softirq"),
        ("vhost-net", NO_CSUM, "host-softirq"),
        ("vhost-net", NO_GRO, "vcpu0"),
        ("vhost-net", NO_MERGING, "vcpu0"),
        ("virtio-net", NO_TSO4, "qemu-main"),
        ("virtio-net", NO_GRO, "qemu-main"),
    ):
        shares = {name: each.value for name, each in receive(model, "10Gbit/s", switch).cpu_busy.items()}
        assert [name for name, share in shares.items() if share > 0.98] == [thread]


def test_what_vhost_hands_over_together_the_guest_merges_again() -> None:
    result = receive("vhost-net", "10Gbit/s", NO_TSO4)
    assert result.count("stream.tap_packets") > 20 * result.count("stream.skbs")
    on = receive("vhost-net", "10Gbit/s", ALL)
    assert busy(result, "host-softirq") - busy(on, "host-softirq") > busy(result, "vcpu0") - busy(on, "vcpu0") > 0


@pytest.mark.parametrize("model", BACK_END)
def test_at_1_gbit_interrupts_matter_more_than_switches(model: str) -> None:
    for switch in (NO_GRO, NO_TSO4, NO_CSUM):
        assert receive_sum(model, "1Gbit/s", switch) == pytest.approx(receive_sum(model, "1Gbit/s", ALL), rel=0.03)
    for wire in ("1Gbit/s", PATIENT):
        latencies = [request(model, wire, switch) for switch in RECEIVE_SWITCHES]
        assert latencies[0] - min(latencies) < 8_000
    assert 2 < receive_sum(model, "1Gbit/s", ALL) / receive_sum(model, PATIENT, ALL) < 3.1
    assert request(model, PATIENT, ALL) - request(model, "1Gbit/s", ALL) == pytest.approx(63_000, abs=3_000)
    assert all(gigabits(receive(model, wire, switch)) == pytest.approx(0.941, abs=0.003)
               for wire in list(WIRES)[:2] for switch in RECEIVE_SWITCHES)  # fmt: skip


# -- from guest to guest ----------------------------------------------------------------------------------------


def guests_gigabits(model: str, switch: str) -> float:
    return guests(model, switch).bits_per_s.value / 1e9


@pytest.mark.parametrize("model", BACK_END)
def test_the_hosts_nic_is_not_on_the_way_from_guest_to_guest(model: str) -> None:
    on, advice = (guests(model, switch) for switch in ("all on", "host NIC: tso, gso, gro off"))
    assert (on.stamps == advice.stamps).all()


@pytest.mark.parametrize("model", BACK_END)
def test_every_other_switch_costs_throughput_from_guest_to_guest(model: str) -> None:
    for switch in list(GUESTS_SWITCHES)[2:]:
        assert guests_gigabits(model, switch) < 0.7 * guests_gigabits(model, "all on")


def test_cutting_late_is_better_than_cutting_early() -> None:
    """At the receiver's tap vhost hands over what it cuts together; segments from the guest come singly."""
    late, early = (guests("vhost-net", switch) for switch in ("guest_tso4=off", "guests: tso off"))
    assert late.bits_per_s.value > 2 * early.bits_per_s.value
    assert busy_with_call(late, "vm0-vcpu0") < 0.5 * busy_with_call(early, "vm0-vcpu0")


def test_qemu_reads_segments_singly_and_is_the_limit() -> None:
    for switch in ("guest_tso4=off", "guest_csum=off"):
        assert guests("virtio-net", switch).saturated == ["vm1-qemu-main"]
    assert "vm1-vcpu0" in guests("vhost-net", "guest_tso4=off").saturated
