"""vhost-user: a poll-mode back end. Nobody tells it anything, and its CPU is always busy."""

from __future__ import annotations

import pytest
import simpy

import iosim


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("workload", ["rr", "tx", "rx"])
def test_the_guest_never_kicks_and_the_poller_never_rests(workload: str, event_idx: bool) -> None:
    settings = {"device.event_idx": event_idx}
    result = iosim.simulate("vhost-user", workload=workload, requests=1000, settings=settings)
    assert result.count("kicks") == 0
    assert result.count("exits.EPT_MISCONFIG") == 0
    assert result.cpu_busy["pmd"].value == pytest.approx(1)
    assert set(result.cpu_busy) == {"vcpu0", "pmd"}


def test_an_event_index_that_nobody_moves_is_passed_once_in_65536_packets() -> None:
    """With EVENT_IDX the driver cannot be told never to kick; DPDK's index stands, and each lap of 2**16 passes it."""
    path = iosim.install("vhost-user", simpy.Environment(), workload="tx")
    while path.machine.window.completed < 100:
        path.env.step()
    kicks = path.machine.counters.n[list(iosim.host.counters.NAMES).index("kicks")]
    assert kicks == 1


def test_an_idle_poller_burns_its_cpu_but_no_events() -> None:
    """One packet a second: some 20 million iterations between two of them, and an event for each 100 us."""
    paced = {"workload__rate": 1, "workload__arrivals": "constant"}
    path = iosim.install("vhost-user", simpy.Environment(), workload="rx", **paced)
    path.env.run(until=4_000_000_000_000)
    iterations = 4e12 / 50_000
    assert path.machine.window.completed == 3
    assert path.engine.events < iterations / 1000
    assert path.engine.busy()[[t.name for t in path.system.threads].index("pmd")] == 4_000_000_000_000


@pytest.mark.parametrize("period", [1_000, 50_000, 333_000])
def test_a_frame_is_seen_at_the_end_of_the_iteration_in_which_it_came(period: int) -> None:
    settings = {
        "host.constant": True,
        "host.pmd_poll": f"{period // 1000}ns",
        "workload.rate": 10_000,
        "workload.arrivals": "poisson",
    }
    result = iosim.simulate("vhost-user", workload="rx", requests=300, settings=settings)
    seen = result.stamps[:, result.milestones.index("rx_seen")]
    visible = result.stamps[:, result.milestones.index("arrived")] + 500_000
    delays = seen - visible
    # Another packet's work may be in the way; most packets are alone.
    alone = delays[delays < period]
    assert (delays >= 0).all()
    assert len(alone) > 250
    # Uniform over an iteration, as a poller's delay is.
    assert alone.mean() == pytest.approx(period / 2, rel=0.2)


def test_interrupts_only_if_the_guest_asks() -> None:
    """A stream to the guest: NAPI polls with its callbacks off, and the call eventfd is left alone."""
    result = iosim.simulate("vhost-user", workload="rx", requests=3000)
    assert result.per_request("interrupts").value < 0.5
    assert result.count("suppressed.interrupts") > 0
    assert result.count("syscalls.write") == result.count("interrupts")


def test_polling_is_faster_than_being_woken() -> None:
    user, vhost, qemu = (iosim.simulate(m, requests=500) for m in ("vhost-user", "vhost-net", "virtio-net"))
    assert user.latency["mean"].value < vhost.latency["mean"].value < qemu.latency["mean"].value


def test_bursts_share_a_notification() -> None:
    """Frames of one burst are announced together; one at a time, each may have its own call."""
    many = iosim.simulate("vhost-user", workload="rx", requests=2000)
    single = iosim.simulate("vhost-user", workload="rx", requests=2000, settings={"device.burst": 1})
    told = [r.count("interrupts") + r.count("suppressed.interrupts") for r in (many, single)]
    assert told[0] < told[1]


def test_a_poller_on_a_shared_cpu_takes_its_slices() -> None:
    """One CPU for all: the guest runs when the poller's slice is over, not because the guest has work."""
    shared = iosim.simulate("vhost-user", requests=40, settings={"host.cpus": 1, "host.timeslice": "100us"})
    assert shared.latency["mean"].value > 100_000
    assert shared.cpu_busy["pmd"].value < 1


def test_frames_without_a_buffer_are_lost() -> None:
    settings = {"workload.rate": 1_000_000, "device.rx_queue_size": 16}
    assert iosim.simulate("vhost-user", workload="rx", requests=1000, settings=settings).dropped > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device.burst": 0}, "device.burst: must be at least 1, not 0"),
        ({"host.pmd_poll": "0ns"}, "host.pmd_poll: an iteration of the poll-mode loop takes time: at least 1ns"),
        ({"device.queues": 9}, "device.queues: must be at most 8, not 9"),
        (
            {"device.pmd_threads": 2},
            "device.pmd_threads: 2 threads for 1 queue pair: each pair is polled by one of them",
        ),
        ({"device.queues": 4, "device.pmd_threads": 5}, "device.pmd_threads: 5 threads for 4 queue pairs"),
        ({"device.pmd_threads": 0}, "device.pmd_threads: must be at least 1, not 0"),
        ({"device.tx_queue_size": 16}, "device.tx_queue_size: a chain of 19 descriptors"),
    ],
)
def test_bad_values(settings: dict[str, object], message: str) -> None:
    with pytest.raises(iosim.IosimError) as caught:
        iosim.simulate("vhost-user", requests=10, settings=settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
