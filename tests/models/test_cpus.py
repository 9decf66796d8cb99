"""Threads that share CPUs: vhost on the vCPU's core, overcommit, polling, other load (docs/guides/cpus.md)."""

from __future__ import annotations

from typing import Any

import pytest

import iosim
from iosim.errors import IosimError
from iosim.host.hosts import load
from iosim.host.pins import parse_pins
from iosim.specification import specify

HOST = load("composite")
SLICE = float(HOST.properties["timeslice"].value) / 1000
SWITCH = HOST.cost("context_switch").distribution.mean / 1000
APART = {"host.cpus": 3, "host.pin": "vcpu0:0,vhost:1,host-softirq:2"}
TOGETHER = {"host.cpus": 2, "host.pin": "vcpu0:0,vhost:0,host-softirq:1"}


def play(workload: str, model: str = "vhost-net", **chosen: Any) -> iosim.Result:
    """A run in which nothing is random; times in ns."""
    requests = 300 if workload == "rr" else 4000
    return iosim.simulate(model, workload=workload, requests=requests, settings={"host.constant": True, **chosen})


def latency(result: iosim.Result) -> float:
    return result.latency["mean"].value


def switches(result: iosim.Result) -> float:
    return float(result.to_dict()["per_request"]["context_switches"]["value"])


# -- the vhost worker on the vCPU's core ------------------------------------------------------------------------


def test_a_core_for_each_pinned_thread_is_the_default() -> None:
    for workload in ("rr", "tx"):
        free, pinned = play(workload), play(workload, **APART)
        assert pinned.latency_ps.tolist() == free.latency_ps.tolist()
        assert pinned.cpu_busy == free.cpu_busy


def test_on_the_vcpus_core_a_round_trip_pays_a_sleep_and_two_switches() -> None:
    """Halt polling gives up as soon as the worker wants the CPU, so the vCPU sleeps, and its wake-up is paid.

    A vCPU that does not poll at all leaves the CPU idle instead: then the worker takes it over without a switch.
    """
    own, shared = play("rr", **APART), play("rr", **TOGETHER)
    asleep = play("rr", **APART, **{"host.halt_poll_ns": "0ns"})
    assert latency(shared) == pytest.approx(latency(asleep) + 2 * SWITCH)
    assert latency(shared) > 1.5 * latency(own)
    assert (switches(own), switches(shared)) == (pytest.approx(3), pytest.approx(5))
    # To poll and to give up is dearer than not to poll.
    assert latency(play("rr", **TOGETHER, **{"host.halt_poll_ns": "0ns"})) == pytest.approx(latency(asleep))


def test_on_the_vcpus_core_the_worker_sees_whole_batches() -> None:
    """No preemption at wake-up: the vCPU sends until its 32 packets are under way, and only then the worker runs.

    So a kick and an interrupt serve 32 packets in place of one, which wins back most of what half the CPUs cost.
    """
    own, shared = play("tx", **APART), play("tx", **TOGETHER)
    assert own.kicks_per_request.value == pytest.approx(1, rel=0.01)
    assert shared.kicks_per_request.value == pytest.approx(1 / 32, rel=0.05)
    assert 0.6 * own.throughput.value < shared.throughput.value < 0.8 * own.throughput.value
    assert latency(shared) > 10 * latency(own)

    def work(result: iosim.Result) -> float:
        """CPU time of a packet, ns."""
        return sum(e.value for e in result.cpu_busy.values()) / result.throughput.value * 1e9

    assert work(shared) < 0.7 * work(own)


# -- overcommit -------------------------------------------------------------------------------------------------


def test_two_vcpus_on_one_cpu_get_what_one_has() -> None:
    """Two queue pairs, each worker with a CPU of its own: sending is limited by the one CPU of both vCPUs."""
    workers = "vhost-0:2,vhost-1:3,host-softirq:3"
    two = play("tx", **{"device.queues": 2, "host.cpus": 4, "host.pin": f"vcpu0:0,vcpu1:1,{workers}"})
    one = play("tx", **{"device.queues": 2, "host.cpus": 4, "host.pin": f"vcpu*:0,{workers}"})
    assert one.throughput.value == pytest.approx(two.throughput.value / 2, rel=0.02)
    assert sum(one.cpu_busy[name].value for name in ("vcpu0", "vcpu1")) == pytest.approx(1, abs=0.001)
    # What a packet meets does not change but for the slices of the other vCPU that it may have to wait.
    assert one.kicks_per_request.value == pytest.approx(two.kicks_per_request.value, rel=0.01)


def test_all_of_two_pairs_on_one_cpu_use_it_up() -> None:
    result = play("tx", **{"device.queues": 2, "host.cpus": 1, "host.pin": "*:0"})
    assert sum(e.value for e in result.cpu_busy.values()) == pytest.approx(1, abs=0.001)
    assert play("tx", **{"device.queues": 2, "host.cpus": 1}).latency_ps.tolist() == result.latency_ps.tolist()


# -- polling burns its CPU --------------------------------------------------------------------------------------


def test_a_polling_vcpu_is_busy_all_the_time() -> None:
    polls, sleeps = play("rr", **APART), play("rr", **APART, **{"host.halt_poll_ns": "0ns"})
    assert polls.cpu_busy["vcpu0"].value == pytest.approx(1)
    assert sleeps.cpu_busy["vcpu0"].value < 0.2
    assert latency(sleeps) > 1.5 * latency(polls)


def test_polling_takes_nothing_from_who_wants_the_cpu() -> None:
    """A hog beside a polling vCPU leaves it no time to poll: the hog has all that the vCPU does not work in."""
    beside = play("rr", **{**APART, "host.pin": f"{APART['host.pin']},hog:0", "host.hogs": 1})
    assert beside.cpu_busy["vcpu0"].value + beside.cpu_busy["hog"].value == pytest.approx(1, abs=0.001)
    assert beside.cpu_busy["vcpu0"].value < 0.01


# -- other load -------------------------------------------------------------------------------------------------


def test_a_hog_takes_half_of_a_vcpu_that_sends() -> None:
    free = play("tx", **APART)
    beside = play("tx", **{**APART, "host.pin": f"{APART['host.pin']},hog:0", "host.hogs": 1, "run.requests": 12_000})
    assert free.cpu_busy["vcpu0"].value == pytest.approx(1, abs=0.001)
    assert beside.throughput.value == pytest.approx(free.throughput.value / 2, rel=0.05)
    assert beside.cpu_busy["hog"].value == pytest.approx(0.5, abs=0.03)
    three = play("tx", **{**APART, "host.pin": f"{APART['host.pin']},hog*:0", "host.hogs": 3, "run.requests": 24_000})
    assert three.throughput.value == pytest.approx(free.throughput.value / 4, rel=0.1)


@pytest.mark.parametrize(("cpu", "slices"), [(0, 1), (1, 2)])
def test_a_wake_up_beside_a_hog_waits_for_its_slice(cpu: int, slices: int) -> None:
    """Two wake-ups a round trip. The worker waits at both; the vCPU's first slice ends after the reply has left it.

    The interrupt that its packet was sent wakes the vCPU, and while it waits the next request comes in.
    """
    asleep = {**APART, "host.halt_poll_ns": "0ns"}
    hog = {**asleep, "host.pin": f"{APART['host.pin']},hog:{cpu}", "host.hogs": 1}
    free, beside = latency(play("rr", **asleep)), play("rr", **hog)
    assert slices * SLICE < latency(beside) <= slices * SLICE + free + 4 * SWITCH
    quick = play("rr", **hog, **{"host.timeslice": "100us"})
    assert latency(beside) - latency(quick) == pytest.approx(slices * (SLICE - 100_000))


def test_a_hog_costs_a_thread_of_higher_priority_a_switch_and_no_wait() -> None:
    beside = play("rr", **{**APART, "host.pin": f"{APART['host.pin']},hog:2", "host.hogs": 1})
    assert latency(beside) == pytest.approx(latency(play("rr", **APART)) + SWITCH)


@pytest.mark.parametrize("cpu", [0, 1])
def test_with_fairness_at_wake_ups_a_hog_costs_microseconds(cpu: int) -> None:
    """CFS: who sleeps is behind who computes, by more than the granularity, and does not wait for a slice."""
    free = latency(play("rr", **APART, **{"host.halt_poll_ns": "0ns"}))
    hog = {**APART, "host.pin": f"{APART['host.pin']},hog:{cpu}", "host.hogs": 1}
    fair = play("rr", **hog, **{"host.wakeup_granularity": "1ms"})
    assert latency(fair) < free + 4 * SWITCH
    assert fair.cpu_busy["hog"].value > 0.8
    # Below the granularity is as without: the bonus of who slept is a slice, 3 ms.
    assert latency(play("rr", **hog, **{"host.wakeup_granularity": "3ms"})) > SLICE


def test_fairness_at_wake_ups_leaves_the_shares_of_who_always_works() -> None:
    beside = {**APART, "host.pin": f"{APART['host.pin']},hog:0", "host.hogs": 1, "run.requests": 12_000}
    fair = play("tx", **beside, **{"host.wakeup_granularity": "1ms"})
    assert fair.cpu_busy["hog"].value == pytest.approx(0.5, abs=0.03)


# -- how it is asked for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"host.pin": "vhst:0", "host.cpus": 2}, "host.pin: unknown thread 'vhst'; did you mean 'vhost'?"),
        ({"host.pin": "hog:0", "host.cpus": 2}, "host.pin: unknown thread 'hog'"),
        ({"host.pin": "vhost:2", "host.cpus": 2}, "host.pin: 'vhost:2' asks for CPU 2; with host.cpus=2 there is"),
        ({"host.pin": "vhost:0-1", "host.cpus": 1}, "with host.cpus=1 there is CPU 0 only"),
        ({"host.pin": "vhost:0"}, "host.pin: each thread has a CPU of its own; give host.cpus too"),
        ({"host.pin": "vhost", "host.cpus": 2}, "'vhost' pins nothing; write THREAD:CPUS, as vcpu0:0,vhost:0-1"),
        ({"host.pin": "vhost:", "host.cpus": 2}, "'vhost:' names no CPUs"),
        ({"host.pin": "vhost:a", "host.cpus": 2}, "'vhost:a' names no CPUs"),
        ({"host.pin": "vhost:0,", "host.cpus": 2}, "'' names no CPUs"),
        ({"host.pin": "vhost:1-0", "host.cpus": 2}, "'vhost:1-0' runs backwards"),
        ({"host.pin": 3, "host.cpus": 2}, "3 pins nothing"),
        ({"host.hogs": 1}, "host.hogs: each thread has a CPU of its own, a hog too"),
        ({"host.hogs": -1, "host.cpus": 1}, "host.hogs: -1 is no count; write a whole number from 0 to 64"),
        ({"host.hogs": True, "host.cpus": 1}, "host.hogs: True is no count"),
        ({"host.wakeup_granularity": "1"}, "host.wakeup_granularity"),
        ({"host.pins": "vhost:0"}, "unknown setting 'host.pins'; did you mean 'host.pin'?"),
    ],
)
def test_errors_are_one_line_that_names_the_key(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(IosimError) as caught:
        specify("vhost-net", settings=chosen)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_last_pin_of_a_thread_counts() -> None:
    chosen = {"device.queues": 2, "host.cpus": 4, "host.pin": "*:0,vhost*:1-3,vhost-1:2", "host.hogs": 2}
    threads = specify("vhost-net", settings=chosen).build().system.threads
    found = {thread.name: sorted(thread.cpus or ()) for thread in threads}
    assert (found.pop("vhost-0"), found.pop("vhost-1")) == ([1, 2, 3], [2])
    assert found == {name: [0] for name in ("vcpu0", "vcpu1", "host-softirq", "hog-0", "hog-1")}


def test_plus_separates_as_well_so_that_pins_can_be_varied() -> None:
    assert parse_pins("vcpu0:0+vhost:0,2", 3, "host.pin") == parse_pins("vcpu0:0,vhost:0,2", 3, "host.pin")
    assert parse_pins("none", 0, "host.pin") == ()
    vary = {"host.pin": "none,vcpu0:0+vhost:0,vcpu0:0+vhost:1"}
    sweep = iosim.sweep("vhost-net", vary, requests=100, settings={"host.cpus": 2, "host.constant": True}, workers=1)
    together, apart = sweep.table.to_pylist()[1:]
    assert together["latency_mean_ns"] > 1.5 * apart["latency_mean_ns"]


def test_what_was_pinned_stands_in_the_document() -> None:
    document = play("rr", **{"host.cpus": 2, "host.hogs": 1, "host.pin": "vcpu*:0,hog:1"}).to_dict()
    assert document["settings"]["host.pin"] == "vcpu*:0,hog:1"
    assert document["settings"]["host.hogs"] == 1
    assert 0.9 < document["cpu_busy"]["hog"]["value"] <= 1
    assert not {"host.pin", "host.hogs"} & set(play("rr").to_dict()["settings"])
