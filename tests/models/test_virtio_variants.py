"""virtio-net and vhost-net with other rings, notifications and interrupts than the default: what each changes."""

from __future__ import annotations

import re
from typing import Any

import pytest

import iosim
from iosim.host.virtio_pci import INTX, OWN, SHARED, interrupt_mode
from iosim.specification import specify

CONSTANT = {"host.constant": True}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("virtio-net", {"device.packed": True, "device.indirect": True}),
    ("virtio-net", {"device.event_idx": False}),
    ("virtio-net", {"device.ioeventfd": False}),
    ("virtio-net", {"device.vectors": 2}),
    ("virtio-net", {"device.vectors": 0, "device.disable_modern": True, "device.ioeventfd": False}),
    ("virtio-net", {"device.tx": "timer", "device.tx_burst": 3, "device.ioeventfd": False}),
    ("vhost-net", {"device.packed": True, "device.event_idx": False}),
    ("vhost-net", {"device.vectors": 0}),
    ("vhost-net", {"device.poll_us": 50}),
    ("vhost-net", {"device.mrg_rxbuf": False}),
    ("virtio-net", {"device.mrg_rxbuf": False, "device.indirect": True, "device.packed": True}),
]
IDS = [f"{model} {' '.join(f'{k[7:]}={v}' for k, v in chosen.items())}" for model, chosen in VARIANTS]


@pytest.mark.parametrize("workload", ["rr", "tx", "rx"])
@pytest.mark.parametrize(("model", "chosen"), VARIANTS, ids=IDS)
def test_stages_have_no_gap(model: str, chosen: dict[str, Any], workload: str) -> None:
    """Milestones never go back, so the parts of each request sum to its latency."""
    result = iosim.simulate(model, workload=workload, requests=300, settings={**chosen, "workload.depth": 6})
    assert (result.stamps[:, 1:] >= result.stamps[:, :-1]).all()
    assert sum(stage.mean.value for stage in result.breakdown()) == pytest.approx(result.latency["mean"].value)


# -- kicks that QEMU serves ---------------------------------------------------------------------------------------


def test_without_ioeventfd_every_kick_is_an_exit_to_qemu() -> None:
    """The vCPU pays for it; the main loop reads no ioeventfd, but its own, and that only where it slept."""
    on = iosim.simulate("virtio-net", requests=1000)
    off = iosim.simulate("virtio-net", requests=1000, settings={"device.ioeventfd": False})
    assert on.kicks_per_request.value == off.kicks_per_request.value == 1
    assert on.per_request("exits.EPT_MISCONFIG").value == off.per_request("exits.EPT_MISCONFIG").value
    assert (on.count("userspace_exits"), off.per_request("userspace_exits").value) == (0, 1)
    assert (on.count("syscalls.write"), off.per_request("syscalls.write").value) == (0, 1)
    # One KVM_RUN more; one ppoll less, since the bottom half is there when the first returns.
    assert off.per_request("syscalls.ioctl").value - on.per_request("syscalls.ioctl").value == 1
    assert on.per_request("syscalls.ppoll").value - off.per_request("syscalls.ppoll").value == 1


def test_a_vcpu_waits_for_the_main_loop_s_lock() -> None:
    """Sending at full speed the main loop has the big QEMU lock most of the time; each kick stands in line for it."""
    busy: dict[str, Any] = {"workload.depth": 64, **CONSTANT}
    on = iosim.simulate("virtio-net", workload="tx", requests=3000, settings=busy)
    off = iosim.simulate("virtio-net", workload="tx", requests=3000, settings={**busy, "device.ioeventfd": False})
    assert off.throughput.value <= on.throughput.value


# -- event index --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["virtio-net", "vhost-net"])
def test_without_the_event_index_interrupts_are_more_and_kicks_are_not(model: str) -> None:
    """Without it a sent packet is announced at once, not when three quarters of those outstanding are used.

    Up to one message a packet: what is announced while NAPI has callbacks off is suppressed, what finds its vector
    pending merges.
    """
    chosen = {"workload.depth": 32}
    with_it = iosim.simulate(model, workload="tx", requests=5000, settings=chosen)
    without = iosim.simulate(model, workload="tx", requests=5000, settings={**chosen, "device.event_idx": False})

    def messages(result: iosim.Result) -> float:
        return result.per_request("interrupts").value + result.per_request("merged.interrupts").value

    assert messages(with_it) <= messages(without) <= 1.01
    assert without.kicks_per_request.value <= 1


# -- the transmit timer -------------------------------------------------------------------------------------------


def test_timer_gathers_packets_for_one_kick() -> None:
    """Everything sent within 150 us of a kick goes with it; more than x-txburst waits for the next timer."""
    chosen: dict[str, Any] = {"workload.rate": 100_000, "workload.arrivals": "constant", "device.tx": "timer"}
    result = iosim.simulate("virtio-net", workload="tx", requests=3000, settings=chosen)
    bh = iosim.simulate("virtio-net", workload="tx", requests=3000, settings={**chosen, "device.tx": "bh"})
    assert result.kicks_per_request.value < 0.1 < bh.kicks_per_request.value
    assert result.latency["mean"].value > 150_000 / 2
    assert bh.latency["mean"].value < 150_000 / 2


def test_a_burst_is_the_most_that_a_timer_sends() -> None:
    """128 under way and 8 sent every 150 us: no more than 8 / 150 us, however fast the guest is."""
    chosen: dict[str, Any] = {"device.tx": "timer", "device.tx_burst": 8, "workload.depth": 128, **CONSTANT}
    result = iosim.simulate("virtio-net", workload="tx", requests=2000, settings=chosen)
    assert result.throughput.value <= 8 / 150e-6
    assert result.throughput.value > 0.8 * 8 / 150e-6


# -- interrupts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectors", "queues", "mode"),
    [(0, 2, INTX), (1, 2, INTX), (2, 2, SHARED), (3, 2, OWN), (4, 2, OWN), (8, 8, SHARED), (9, 8, OWN)],
)
def test_what_linux_makes_of_the_vectors(vectors: int, queues: int, mode: int) -> None:
    """vp_find_vqs: a vector a queue and one for the configuration; else two in all; else the line."""
    assert interrupt_mode(vectors, queues) == mode


@pytest.mark.parametrize(("model", "threads"), [("virtio-net", 3), ("vhost-net", 4)])
def test_with_intx_vhost_needs_qemu_s_main_loop(model: str, threads: int) -> None:
    result = iosim.simulate(model, requests=100, settings={"device.vectors": 0})
    assert len(result.threads) == threads
    assert result.cpu_busy["qemu-main"].value > 0


@pytest.mark.parametrize("model", ["virtio-net", "vhost-net"])
def test_the_line_costs_an_exit_to_qemu_for_each_interrupt(model: str) -> None:
    result = iosim.simulate(model, workload="rx", requests=2000, settings={"device.vectors": 0})
    assert result.count("register_accesses.mmio_read") == pytest.approx(result.count("interrupts"), abs=2)
    assert result.count("userspace_exits") == pytest.approx(result.count("interrupts"), abs=2)


# -- busy polling -------------------------------------------------------------------------------------------------


def test_a_poller_that_is_always_in_time_needs_no_kick_and_no_wake_up() -> None:
    """To the picosecond: both wake-ups of the worker, the kick's exit, and re-arming before the batch are saved."""
    results = [
        iosim.simulate("vhost-net", requests=30, settings={**CONSTANT, "device.poll_us": us}) for us in (0, 1000)
    ]
    host = results[0].specification.host
    saved = sum(
        round(host.cost(name).distribution.mean)
        for name in ("vhost_worker_wakeup", "vhost_worker_wakeup", "vm_exit", "kvm_ioeventfd", "rearm_window")
    )
    without, polling = (int(min(result.latency_ps)) for result in results)
    assert without - polling == saved
    assert results[1].kicks_per_request.value < 0.1
    assert results[1].cpu_busy["vhost"].value == pytest.approx(1, abs=0.001)


def test_polling_burns_as_long_as_it_is_told_to() -> None:
    """One packet a millisecond: the worker polls for its time at the end of each work, and then sleeps."""
    apart = {"workload.rate": 1000, "workload.arrivals": "constant", **CONSTANT}
    busy = [
        iosim.simulate("vhost-net", workload="rx", requests=100, settings={**apart, "device.poll_us": us})
        .cpu_busy["vhost"].value
        for us in (0, 20, 100)
    ]
    assert busy[1] - busy[0] == pytest.approx(0.020, rel=0.1)
    assert busy[2] - busy[0] == pytest.approx(0.100, rel=0.1)


def test_polling_gives_way_to_a_thread_that_wants_the_cpu() -> None:
    """On one CPU the guest would otherwise wait for the end of each poll (need_resched)."""
    alone = iosim.simulate("vhost-net", requests=300, settings={"host.cpus": 1})
    polling = iosim.simulate("vhost-net", requests=300, settings={"host.cpus": 1, "device.poll_us": 1000})
    assert polling.latency["mean"].value < 1.5 * alone.latency["mean"].value


# -- receive buffers ----------------------------------------------------------------------------------------------


def posted(**settings: Any) -> int:
    """Packets for which the driver has posted buffers at the start."""
    path = iosim.install("virtio-net", settings={f"device.{name}": value for name, value in settings.items()})
    driver = path.machine.parts["driver"]
    return int(driver.rx.added)


@pytest.mark.parametrize(
    ("settings", "packets"),
    [
        ({}, 256),
        ({"mrg_rxbuf": False}, 256 // 19),
        ({"mrg_rxbuf": False, "indirect": True}, 256),
        ({"mrg_rxbuf": False, "packed": True}, 256 // 19),
        ({"mrg_rxbuf": False, "packed": True, "indirect": True}, 256),
        ({"mrg_rxbuf": False, "hub": True}, 256),
        ({"mrg_rxbuf": False, "rx_queue_size": 32}, 1),
    ],
)
def test_packets_that_the_receive_queue_has_buffers_for(settings: dict[str, Any], packets: int) -> None:
    """Without mergeable buffers a packet may need MAX_SKB_FRAGS + 2 = 19 descriptors, or one with a table."""
    assert posted(**settings) == packets


@pytest.mark.parametrize("model", ["virtio-net", "vhost-net"])
def test_big_chains_make_bursts_wait_and_indirect_tables_cure_it(model: str) -> None:
    """A ring with 13 packets' buffers runs dry under 64 packets at once; vhost then waits for the refill's kick."""
    chosen: dict[str, Any] = {"workload.depth": 64, **CONSTANT}
    mergeable, big, tables = (
        iosim.simulate(model, workload="rx", requests=3000, settings={**chosen, **more})
        for more in ({}, {"device.mrg_rxbuf": False}, {"device.mrg_rxbuf": False, "device.indirect": True})
    )
    assert mergeable.kicks_per_request.value == tables.kicks_per_request.value == 0
    assert mergeable.latency_ps.tolist() == tables.latency_ps.tolist()
    if model == "vhost-net":
        assert big.throughput.value < mergeable.throughput.value
        assert big.kicks_per_request.value > 0.02


# -- bad values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        ("virtio-net", {"device.tx": "tasklet"}, "device.tx: unknown value 'tasklet'"),
        ("virtio-net", {"device.tx_timer": "0ns"}, "device.tx_timer: must be above 0"),
        ("virtio-net", {"device.ioeventfd": "maybe"}, "device.ioeventfd: 'maybe' is neither on nor off"),
        ("virtio-net", {"device.vectors": 2049}, "device.vectors: must be at most 2048, not 2049"),
        ("vhost-net", {"device.packed": True, "device.disable_modern": True},
         "device: packed=on needs VIRTIO_F_VERSION_1, which a device with disable_modern=on does not have"),
        ("vhost-net", {"device.mrg_rxbuf": "no buffers"}, "device.mrg_rxbuf: 'no buffers' is neither on nor off"),
        ("vhost-net", {"device.poll_us": -1}, "device.poll_us: must be at least 0, not -1"),
        ("vhost-net", {"device.ioeventfd": False}, "unknown setting 'device.ioeventfd'"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_in_one_line(model: str, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(iosim.IosimError, match=f"^{re.escape(expected)}") as caught:
        specify(model, settings=settings)
    assert "\n" not in str(caught.value)


def test_a_chain_for_gso_packets_must_fit_the_queue() -> None:
    with pytest.raises(iosim.IosimError, match="a chain of 19 descriptors, which does not fit a queue of 16"):
        iosim.simulate("vhost-net", settings={"device.mrg_rxbuf": False, "device.rx_queue_size": 16})
