"""Several queue pairs: what each has for itself, what they share, and to which of them a packet goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iosim
from iosim.host.flows import flow_hash, reciprocal_scale
from iosim.host.hosts import load
from iosim.show import comparison_html
from iosim.specification import specify

HOST = load("composite")
POLLING = {"host.constant": True, "host.halt_poll_ns": "10ms"}
"""Nothing is random, and no vCPU sleeps."""


def tx(**settings: object) -> iosim.Result:
    return iosim.simulate("vhost-net", workload="tx", requests=10_000, settings=settings)


def ps(steps: str) -> int:
    return sum(round(HOST.cost(step).distribution.mean) for step in steps.split())


# -- what each has for itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["virtio-net", "vhost-net"])
def test_at_low_load_a_request_takes_as_long_as_with_one_pair(model: str) -> None:
    """One request at a time, dealt out to four flows: to the picosecond the latencies of a single pair."""
    apart = {**POLLING, "workload.rate": 1_000, "workload.arrivals": "constant", "run.warmup": 100}
    one = iosim.simulate(model, requests=200, settings=apart)
    four = iosim.simulate(model, requests=200, settings={**apart, "device.queues": 4})
    assert set(four.latency_ps) == set(one.latency_ps)
    assert len(set(one.latency_ps)) == 2  # with the refill of the receive queue, and without


def test_a_request_at_a_time_in_each_flow_costs_the_same_notifications() -> None:
    one = iosim.simulate("vhost-net", requests=2000)
    four = iosim.simulate("vhost-net", requests=2000, settings={"device.queues": 4})
    for name in ("kicks", "interrupts", "copied_bytes", "exits.EPT_MISCONFIG"):
        assert four.per_request(name).value == pytest.approx(one.per_request(name).value, rel=0.005), name
    # The four meet at the host's softirq and on the wire, for less than a twentieth of the latency.
    assert four.latency["mean"].value == pytest.approx(one.latency["mean"].value, rel=0.05)
    assert four.throughput.value == pytest.approx(4 * one.throughput.value, rel=0.05)


def test_sending_scales_with_the_pairs() -> None:
    """The vCPU is what limits one pair; four have four."""
    one, four = tx(), tx(**{"device.queues": 4})
    assert one.cpu_busy["vcpu0"].value > 0.99
    assert four.throughput.value == pytest.approx(4 * one.throughput.value, rel=0.02)
    assert four.kicks_per_request.value == pytest.approx(one.kicks_per_request.value, rel=0.02)
    shares = [four.cpu_busy[f"vhost-{i}"].value for i in range(4)]
    assert shares == pytest.approx([one.cpu_busy["vhost"].value] * 4, rel=0.05)


def test_threads_have_numbers_only_where_there_are_several() -> None:
    assert tx().threads == ["vcpu0", "host-softirq", "vhost"]
    two = tx(**{"device.queues": 2})
    assert two.threads == ["vcpu0", "vcpu1", "host-softirq", "vhost-0", "vhost-1"]
    shared = tx(**{"device.queues": 2, "guest.vcpus": 1})
    assert shared.threads == ["vcpu0", "host-softirq", "vhost-0", "vhost-1"]


@pytest.mark.parametrize("model", ["virtio-net", "vhost-net"])
@pytest.mark.parametrize("workload", ["rr", "tx", "rx"])
def test_the_first_of_several_draws_as_the_only_one(model: str, workload: str) -> None:
    """Streams are keyed by the process's name: those of one pair are among those of four, and no two are the same."""

    def names(**settings: object) -> list[str]:
        path = iosim.install(model, workload=workload, workload__rate=20_000, settings=settings)
        return [process.name for process in path.system.processes]

    one, four = names(), names(**{"device.queues": 4})
    assert set(one) < set(four)
    assert len(set(four)) == len(four)


# -- what they share --------------------------------------------------------------------------------------------


def test_the_wire_limits_all_together() -> None:
    """1 Gbit/s and 84 bytes a frame of 64 bytes of payload (42 more of headers, 24 on the wire): no more, no less."""
    result = tx(**{"device.queues": 8, "host.wire_rate": "1Gbit/s"})
    assert result.throughput.value == pytest.approx(1e9 / (8 * (64 + 42 + 24)), rel=0.001)


def test_cpus_of_the_host_limit_all_together() -> None:
    free, shared = tx(**{"device.queues": 4}), tx(**{"device.queues": 4, "host.cpus": 2})
    assert sum(e.value for e in free.cpu_busy.values()) > 6
    assert 1.9 < sum(e.value for e in shared.cpu_busy.values()) <= 2
    assert shared.throughput.value < 0.5 * free.throughput.value


def test_qemu_has_one_main_loop_however_many_pairs() -> None:
    one = iosim.simulate("virtio-net", workload="tx", requests=5000)
    four = iosim.simulate("virtio-net", workload="tx", requests=5000, settings={"device.queues": 4})
    assert four.cpu_busy["qemu-main"].value > 0.99
    assert four.throughput.value < 1.1 * one.throughput.value


def test_applications_on_one_vcpu_share_it_by_time_slices() -> None:
    result = iosim.simulate(
        "vhost-net", workload="tx", requests=60_000, settings={"device.queues": 4, "guest.vcpus": 1}
    )
    shares = [result.cpu_busy[f"vhost-{i}"].value for i in range(4)]
    assert shares == pytest.approx([sum(shares) / 4] * 4, rel=0.1)
    # Each waits for the three others' slices of 3 ms now and then, and no packet is under way meanwhile.
    assert result.throughput.value == pytest.approx(tx().throughput.value, rel=0.01)


def test_flows_on_one_pair_share_its_rings() -> None:
    """A queue that was stopped opens for all of them: three applications send more packets than the ring has room for.

    The host has one CPU, so the ring fills while vhost waits for it.
    """
    chosen = {"workload.flows": 3, "workload.depth": 200, "device.tx_queue_size": 32, "host.cpus": 1}
    stopped = {stage.name: stage for stage in tx(**chosen).breakdown()}["tx queue stopped"]
    assert stopped.mean.value > 0
    path = iosim.install("vhost-net", workload="tx", settings=chosen)
    path.env.run(until=30_000_000_000)
    assert (np.bincount(path.machine.flows.connection, minlength=3) > 500).all()


# -- to which of them a packet goes -----------------------------------------------------------------------------


def steering(workload: str, **settings: Any) -> list[int]:
    """Where the tap puts the packets of each flow, after a while."""
    path = iosim.install("vhost-net", workload=workload, settings={"device.queues": 4, **settings})
    path.env.run(until=2_000_000_000)
    assert path.machine.window.completed > 50
    return list(path.machine.parts["network"].steering)


def test_a_flow_comes_back_by_the_queue_it_was_sent_by() -> None:
    """automq (tun_flow_update): the answer decides; a flow that only receives stays where its hash says."""
    hashed = [reciprocal_scale(flow_hash(flow), 4) for flow in range(6)]
    assert hashed[:4] != [0, 1, 2, 3]
    assert steering("rr", **{"workload.flows": 6}) == [0, 1, 2, 3, 0, 1]
    assert steering("rx", **{"workload.flows": 6}) == hashed


def test_hashes_are_spread() -> None:
    """So many flows that their numbers in each queue are within three standard deviations of the mean."""
    counts = np.bincount([reciprocal_scale(flow_hash(flow), 8) for flow in range(8000)], minlength=8)
    assert (abs(counts - 1000) < 3 * np.sqrt(1000 * 7 / 8)).all()


def test_the_application_on_another_vcpu_is_woken_by_an_interrupt() -> None:
    """Two flows whose hashes meet: flow 1 is received on vCPU 0, and its application is on vCPU 1.

    It pays for the exit that the write to the ICR is, the interrupt's way and the entry of a polling vCPU; that of
    flow 0, on the vCPU that received, waits until NAPI has re-armed its interrupt.
    """
    assert [reciprocal_scale(flow_hash(flow), 2) for flow in (0, 1)] == [0, 0]
    chosen = {**POLLING, "workload.rate": 1_000, "workload.arrivals": "constant", "run.warmup": 100}
    result = iosim.simulate("vhost-net", workload="rx", requests=200, settings={"device.queues": 2, **chosen})
    taken, latency = result.rows % 2, result.latency_ps
    here, there = min(latency[taken == 0]), latency[taken == 1]
    assert len(set(there)) == 1
    assert there[0] - here == ps("vm_exit kvm_eoi irq_injection vm_entry irq_entry") - ps("rearm_window")
    assert result.per_request("exits.MSR_WRITE").value == 0.5
    assert result.per_request("interrupts").value == 1.5


def test_no_interrupts_between_vcpus_once_the_tap_has_learned() -> None:
    result = iosim.simulate("vhost-net", requests=2000, settings={"device.queues": 4})
    assert result.count("exits.MSR_WRITE") == 0


# -- settings ---------------------------------------------------------------------------------------------------


def test_one_vcpu_and_one_flow_for_each_pair_unless_told_otherwise() -> None:
    spec = specify("vhost-net", settings={"device.queues": 4})
    assert (spec.vcpus, spec.workload.flows, spec.workload.depth) == (4, 4, 1)
    told = specify("vhost-net", settings={"device.queues": 4, "guest.vcpus": 2, "workload.flows": 8})
    assert (told.vcpus, told.workload.flows) == (2, 8)
    settings = iosim.simulate("vhost-net", requests=50, settings={"device.queues": 2}).to_dict()["settings"]
    assert (settings["device.queues"], settings["guest.vcpus"], settings["workload.flows"]) == (2, 2, 2)


@pytest.mark.slow
def test_the_rate_is_of_all_flows_and_the_depth_of_each() -> None:
    rate = {"workload.rate": 200_000, "workload.arrivals": "constant"}
    for workload in ("tx", "rx", "rr"):
        result = iosim.simulate("vhost-net", workload=workload, requests=4000, settings={"device.queues": 4, **rate})
        assert result.throughput.value == pytest.approx(200_000, rel=0.005), workload
    path = iosim.install("vhost-net", settings={"device.queues": 4, "workload.depth": 3})
    path.env.run(until=200_000_000)
    window, table = path.machine.window, path.machine.table
    assert table.created - window.completed == 12


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        ("vhost-net", {"device.queues": 9}, "device.queues: must be at most 8, not 9"),
        ("vhost-net", {"device.queues": 0}, "device.queues: must be at least 1, not 0"),
        ("vhost-net", {"device.queues": 4, "workload.flows": 3},
         "workload.flows: 3 flows for 4 queue pairs: a flow is sent by one of them, others would do nothing; "
         "give 4 or more, or fewer device.queues"),
        ("vhost-net", {"guest.vcpus": 2},
         "guest.vcpus: 2 vCPUs, and 1 queue pair: what is sent, received and run is on the vCPUs of the pairs, "
         "others would do nothing; give 1, or more device.queues"),
        ("vhost-net", {"guest.vcpus": 0}, "guest.vcpus: must be at least 1, not 0"),
        ("vhost-net", {"workload.flows": 64, "workload.depth": 1000},
         "workload.depth: 1000 requests in each of 64 flows are 64000 under way; the most is 8192"),
        ("vhost-net", {"workload.flows": 65}, "workload.flows: must be at most 64, not 65"),
        ("e1000", {"workload.flows": 2}, "workload.flows: e1000 plays one flow, not 2"),
        ("e1000", {"guest.vcpus": 2}, "unknown setting 'guest.vcpus'; did you mean 'guest.vms'?"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_in_one_line(model: str, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(iosim.IosimError) as caught:
        specify(model, settings=settings)
    assert str(caught.value) == expected


@pytest.mark.parametrize("model", ["virtio-net", "vhost-net"])
@pytest.mark.parametrize("workload", ["rr", "tx", "rx"])
def test_the_largest_rings_of_eight_pairs_fit_guest_memory(model: str, workload: str) -> None:
    largest = {"device.queues": 8, "device.tx_queue_size": 1024, "device.rx_queue_size": 1024}
    assert len(iosim.simulate(model, workload=workload, requests=200, settings=largest).rows) == 200


def test_compared_with_a_model_that_has_one_pair() -> None:
    """A ``guest.`` setting goes to the models that have it."""
    found = iosim.compare("e1000", "vhost-net", requests=50, settings={"guest.vcpus": 2, "device.queues": 2})
    assert found.results[1].specification.vcpus == 2
    assert "the paths play different numbers of flows (e1000 1, vhost-net 2), so not the same load" in found.warnings
    same = iosim.compare("virtio-net", "vhost-net", requests=50, settings={"device.queues": 2})
    assert same.warnings == []
    assert "rr, 1 B, depth 1, 2 flows" in comparison_html(same)


def test_command_lines_with_different_numbers_of_pairs(tmp_path: Path) -> None:
    for name, pairs in (("one", ""), ("four", ",queues=4")):
        line = f"kvm -enable-kvm -smp 4 -netdev tap,id=n,vhost=on{pairs} -device virtio-net-pci,netdev=n,mq=on\n"
        (tmp_path / f"{name}.sh").write_text(line)
    files = [str(tmp_path / "one.sh"), str(tmp_path / "four.sh")]
    found = iosim.compare(*files, requests=50)
    assert [r.specification.workload.flows for r in found.results] == [1, 4]
    assert "different numbers of flows (one 1, four 4)" in found.warnings[0]
    assert "workload.flows=4 gives each the same load" in found.warnings[0]
    alike = iosim.compare(*files, requests=50, settings={"workload.flows": 4})
    assert [len(r.threads) for r in alike.results] == [3, 9]
    assert alike.warnings == []
