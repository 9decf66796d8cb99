"""Several queue pairs of a poller, of a NIC of one's own, and of queues that interrupt together."""

from __future__ import annotations

from typing import Any

import pytest

import iosim
from iosim.host.flows import flow_hash, rss_queue
from iosim.host.virtio_pci import INTX, OWN, SHARED, interrupted

OWN_NIC = ("vhost-user", "vfio", "bare-metal")
"""Paths whose NIC is not the host kernel's: it spreads flows by their hash, and learns nothing."""
VIRTIO = ("virtio-net", "vhost-net", "vhost-user")
FOUR = {"device.queues": 4}
APART: dict[str, Any] = {
    "host.constant": True,
    "host.halt_poll_ns": "10ms",
    "workload.rate": 1_000,
    "workload.arrivals": "constant",
    "run.warmup": 100,
}
"""Nothing is random, no vCPU sleeps, and each packet is alone."""


def run(model: str, workload: str, requests: int = 4000, **settings: Any) -> iosim.Result:
    return iosim.simulate(model, workload=workload, requests=requests, settings=settings)


def elsewhere(flows: int, pairs: int) -> float:
    """The part of the flows whose frames the NIC puts into the queue of another vCPU than their application's."""
    return sum(rss_queue(flow_hash(flow), pairs) != flow % pairs for flow in range(flows)) / flows


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["rr", "tx", "rx"])
@pytest.mark.parametrize("chosen", [{}, {"device.vectors": 0}, {"device.vectors": 2}], ids=["own", "intx", "shared"])
@pytest.mark.parametrize("model", [*VIRTIO, "vfio", "bare-metal"])
def test_stages_have_no_gap(model: str, chosen: dict[str, Any], workload: str) -> None:
    if chosen and model not in VIRTIO:
        return
    several = {"device.queues": 3, "guest.vcpus": 2, "workload.flows": 4, "workload.depth": 6}
    result = run(model, workload, 200, **several, **chosen)
    assert (result.stamps[:, 1:] >= result.stamps[:, :-1]).all()
    assert sum(stage.mean.value for stage in result.breakdown()) == pytest.approx(result.latency["mean"].value)


# -- each pair by itself ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", OWN_NIC)
def test_sending_scales_with_the_pairs_until_the_wire_is_full(model: str) -> None:
    one, four = run(model, "tx"), run(model, "tx", **FOUR)
    assert four.throughput.value == pytest.approx(4 * one.throughput.value, rel=0.02)
    wire = run(model, "tx", **{"device.queues": 8, "host.wire_rate": "1Gbit/s"})
    assert wire.throughput.value == pytest.approx(1e9 / (8 * (64 + 42 + 24)), rel=0.001)


@pytest.mark.parametrize("model", ["vfio", "bare-metal"])
def test_alone_a_packet_to_send_takes_as_long_as_with_one_pair(model: str) -> None:
    one, four = run(model, "tx", 200, **APART), run(model, "tx", 200, **APART, **FOUR)
    assert set(four.latency_ps) == set(one.latency_ps)


def test_threads_of_each() -> None:
    cpus = [f"cpu{i}" for i in range(4)]
    vcpus = [f"vcpu{i}" for i in range(4)]
    assert run("bare-metal", "tx", 100, **FOUR).threads == cpus
    assert run("vfio", "tx", 100, **FOUR).threads == [*vcpus, *(f"host-irq-{i}" for i in range(4))]
    posted = {"host.apicv": True, "device.interrupts": "posted", "guest.vcpus": 2}
    assert run("vfio", "tx", 100, **FOUR, **posted).threads == [*vcpus[:2], "host-irq-0", "host-irq-1"]
    assert run("vhost-user", "tx", 100, **FOUR).threads == [*vcpus, *(f"pmd-{i}" for i in range(4))]
    assert run("vhost-user", "tx", 100, **FOUR, **{"device.pmd_threads": 1}).threads == [*vcpus, "pmd"]


def test_a_poller_s_work_limits_all_pairs_that_it_has() -> None:
    """3 us for each packet: one thread sends no more for eight pairs than for four, and half of what two do."""
    slow = {"host.costs.pmd_vhost": "3us"}

    def throughput(pairs: int, threads: int) -> float:
        chosen = {"device.queues": pairs, "device.pmd_threads": threads}
        return run("vhost-user", "tx", **slow, **chosen).throughput.value

    assert throughput(8, 1) == pytest.approx(throughput(4, 1), rel=0.02)
    assert throughput(8, 2) == pytest.approx(2 * throughput(8, 1), rel=0.02)
    assert throughput(8, 1) < 1 / 3e-6


def test_a_poller_that_comes_around_late_interrupts_less() -> None:
    """One thread of eight pairs finds several packets at each: one call for them, and senders are disturbed less."""
    one = run("vhost-user", "tx", **{"device.queues": 8, "device.pmd_threads": 1})
    each = run("vhost-user", "tx", **{"device.queues": 8})
    assert each.per_request("interrupts").value == pytest.approx(1, rel=0.01)
    assert one.per_request("interrupts").value < 0.3
    assert one.throughput.value > 1.2 * each.throughput.value


def test_a_poller_of_four_pairs_is_later_at_each() -> None:
    """An iteration that looks at four pairs takes four times as long, and a packet waits for half of one on average."""
    paced = {"host.constant": True, "workload.rate": 10_000, "workload.arrivals": "poisson", **FOUR}

    def delay(threads: int) -> float:
        result = run("vhost-user", "tx", 400, **paced, **{"device.pmd_threads": threads})
        return {stage.name: stage for stage in result.breakdown()}["until polled"].mean.value

    assert delay(4) == pytest.approx(25, rel=0.2)
    assert delay(1) == pytest.approx(100, rel=0.2)


# -- to which of them a frame goes ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", OWN_NIC)
def test_a_frame_goes_where_its_hash_says_and_no_answer_changes_that(model: str) -> None:
    path = iosim.install(model, settings={**FOUR, "workload.flows": 6})
    path.env.run(until=2_000_000_000)
    assert path.machine.window.completed > 50
    hashed = [rss_queue(flow_hash(flow), 4) for flow in range(6)]
    assert path.machine.parts["network"].steering == hashed


@pytest.mark.parametrize(("model", "exits"), [("vhost-user", True), ("vfio", True), ("bare-metal", False)])
def test_an_application_on_another_vcpu_is_woken_by_an_interrupt(model: str, exits: bool) -> None:
    """One interrupt for each frame on the vCPU that the hash chose, one more where the application is on another.

    On bare metal that one too is a register's write without an exit.
    """
    result = run(model, "rx", 200, **APART, **FOUR, **{"workload.flows": 8})
    away = elsewhere(8, 4)
    assert 0 < away < 1
    assert result.per_request("interrupts").value == 1 + away
    assert result.per_request("exits.MSR_WRITE").value == (away if exits else 0)


# -- all queues by one interrupt --------------------------------------------------------------------------------


def test_who_is_interrupted_for_all() -> None:
    """A shared vector has the affinity that the last queue asked for (vp_set_vq_affinity); the line has none."""
    assert [interrupted(SHARED, 4, vcpus) for vcpus in (1, 2, 4)] == [0, 1, 3]
    assert [interrupted(INTX, 4, vcpus) for vcpus in (1, 2, 4)] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("vectors", "one"), [(2, "vcpu3"), (0, "vcpu0")])
@pytest.mark.parametrize("model", VIRTIO)
def test_one_vcpu_receives_for_all(model: str, vectors: int, one: str) -> None:
    """Interrupt, softirq and NAPI of all pairs are on one vCPU, which is what limits them; the others just deliver."""
    together = run(model, "rx", **FOUR, **{"device.vectors": vectors, "workload.depth": 64})
    apart = run(model, "rx", **FOUR, **{"workload.depth": 64})
    busy = {name: e.value for name, e in together.cpu_busy.items() if name.startswith("vcpu")}
    assert busy.pop(one) > 0.85
    assert max(busy.values()) < 0.6
    # QEMU's one main loop is a limit of its own, whichever vCPU it interrupts.
    if model != "virtio-net":
        assert together.throughput.value < 0.95 * apart.throughput.value


@pytest.mark.parametrize("model", VIRTIO)
def test_a_frame_has_one_interrupt_on_that_vcpu_and_one_where_its_application_is(model: str) -> None:
    shared = run(model, "rx", 200, **APART, **FOUR, **{"device.vectors": 2})
    assert shared.per_request("interrupts").value == 1 + 3 / 4
    assert shared.per_request("exits.MSR_WRITE").value == 3 / 4
    assert shared.count("userspace_exits") == 0
    line = run(model, "rx", 200, **APART, **FOUR, **{"device.vectors": 0})
    assert line.per_request("interrupts").value == 1 + 3 / 4
    # The end of a level-triggered interrupt is an exit too, and the read of ISR one to QEMU.
    assert line.per_request("exits.MSR_WRITE").value == 1 + 3 / 4
    assert line.per_request("register_accesses.mmio_read").value == 1
    assert line.per_request("userspace_exits").value == 1


@pytest.mark.parametrize("model", ["vhost-net", "vhost-user"])
def test_without_msi_x_every_call_goes_through_qemu_s_main_loop(model: str) -> None:
    """One main loop for all pairs, one read of the call eventfd and one raising of the line for each frame."""
    shared = run(model, "rx", 200, **APART, **FOUR, **{"device.vectors": 2})
    line = run(model, "rx", 200, **APART, **FOUR, **{"device.vectors": 0})
    assert set(line.threads) - set(shared.threads) == {"qemu-main"}
    assert (shared.count("syscalls.read"), line.per_request("syscalls.read").value) == (0, 1)
    # Line up, line down, and KVM_RUN after the read of ISR.
    assert line.per_request("syscalls.ioctl").value == 3
    assert line.latency["mean"].value > shared.latency["mean"].value


@pytest.mark.parametrize("model", ["vhost-net", "vhost-user"])
def test_who_only_sends_is_better_off_where_another_is_interrupted(model: str) -> None:
    """A fast back end has each packet announced. With one vector three of four senders have no interrupt at all."""
    own, shared = run(model, "tx", **FOUR), run(model, "tx", **FOUR, **{"device.vectors": 2})
    assert own.per_request("interrupts").value > 0.9
    assert shared.per_request("interrupts").value < 0.5
    assert shared.throughput.value > 1.2 * own.throughput.value


def test_sharing_a_vcpu_leaves_nothing_to_contend_for() -> None:
    """With one vCPU the shared vector is the one of one pair, but for the walk over the queues of all."""
    one = run("vhost-net", "rx", 200, **APART, **{"device.vectors": 2})
    four = run("vhost-net", "rx", 200, **APART, **FOUR, **{"device.vectors": 2, "guest.vcpus": 1})
    assert set(four.latency_ps) == set(one.latency_ps)
    assert four.per_request("exits.MSR_WRITE").value == 0


def test_own_vectors_are_what_there_is_without_a_word() -> None:
    assert interrupted(OWN, 4, 4) == 0
    told = run("vhost-net", "rr", 300, **FOUR, **{"device.vectors": 9})
    untold = run("vhost-net", "rr", 300, **FOUR)
    assert told.latency_ps.tolist() == untold.latency_ps.tolist()
