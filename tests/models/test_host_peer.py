"""The other end as a process on the host itself: no NIC, no wire, the host's stack on the thread that writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_vm_streams import GSO, assert_identical
from test_vms import EMULATED, HOT_1, QEMU, RECEIVE, SEND, VHOST, VIRTIO, per_byte, ps

import iosim
from iosim.run import compiled_available
from iosim.specification import specify

WITH_HOST = {"workload.peer": "host"}


def play(model: str, workload: str = "rr", requests: int = 300, **chosen: Any) -> iosim.Result:
    """A run in which nothing is random."""
    fixed = {"host.constant": True, **WITH_HOST}
    return iosim.simulate(model, workload=workload, requests=requests, settings={**fixed, **chosen})


# -- what is on the way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "backends"), [("virtio-net", QEMU), ("vhost-net", VHOST)])
def test_a_round_trip_at_depth_one_is_the_sum_of_its_steps(model: str, backends: int) -> None:
    """From the host's send call to its reply: the tap once each way. The guest's checksum is nobody's business."""
    result = play(model, requests=50)
    to_tap = ps("sys_sendmsg guest_stack_tx bridge tap_queue") + HOT_1
    from_tap = ps("tap_write bridge guest_stack_rx thread_wakeup sys_recvmsg") + HOT_1
    values = [int(value) for value in np.unique(result.latency_ps)]
    assert values[0] == to_tap + backends + RECEIVE + SEND + from_tap
    assert values[1:] == [values[0] + 33 * ps("driver_refill")]


def test_a_checksum_that_the_guest_has_computed_is_verified() -> None:
    """Without CSUM the guest computes it, and the host's stack verifies what tun hands up (CHECKSUM_NONE)."""
    frame = 42 + 700
    with_host, guests = play("vhost-net", "tx", 60, **{"workload.size": 700, "workload.depth": 1}), {}
    for csum in (True, False):
        chosen = {"workload.size": 700, "workload.depth": 1, "device.csum": csum}
        guests[csum] = play("vhost-net", "tx", 60, **chosen)
    stage = "bridge, host's stack"
    mean = {csum: next(s.mean.value for s in r.breakdown() if s.name == stage) for csum, r in guests.items()}
    assert mean[True] == next(s.mean.value for s in with_host.breakdown() if s.name == stage)
    verified = (ps("host_checksum") + per_byte("host_checksum", frame)) / 1000
    assert mean[False] - mean[True] == pytest.approx(verified, abs=0.001)


@pytest.mark.parametrize("model", [*VIRTIO, *EMULATED])
@pytest.mark.parametrize("workload", ["rr", "tx", "rx"])
def test_stages_have_no_gap_and_no_wire(model: str, workload: str) -> None:
    result = play(model, workload, 80)
    assert sum(stage.mean.value for stage in result.breakdown()) == pytest.approx(result.latency["mean"].value)
    assert (np.diff(result.stamps, axis=1) >= 0).all()
    assert "host-softirq" not in result.threads
    assert "host-app" in result.threads
    assert result.count("wire_frames") == 0
    assert result.milestones[1] == ("sent" if workload == "tx" else "client_sent")
    assert result.milestones[-1] == ("delivered" if workload == "rx" else "client_received")


def test_the_process_has_a_cpu_to_share() -> None:
    deep = {"workload.depth": 200}
    free = play("vhost-net", "rx", 4000, **deep)
    pinned = play("vhost-net", "rx", 4000, **deep, **{"host.cpus": 2, "host.pin": "vcpu0:0,vhost:1,host-app:1"})
    assert pinned.throughput.value < 0.8 * free.throughput.value
    together = [sum(r.cpu_busy[name].value for name in ("host-app", "vhost")) for r in (free, pinned)]
    assert together[1] < 1 < together[0]


def test_each_flow_has_a_process_and_a_stream_too() -> None:
    result = play("vhost-net", "rr", 60, **{"guest.vms": 3, "workload.background": 65536})
    assert [name for name in result.threads if name.startswith("host")] == [f"host-app-{i}" for i in range(4)]


# -- streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", VIRTIO)
def test_a_gso_packet_passes_the_hosts_stack_once(model: str) -> None:
    sent, received = (play(model, way, 600, **{"workload.size": 65536}) for way in ("tx", "rx"))
    for result in (sent, received):
        assert result.per_request("stream.skbs").value == pytest.approx(2, rel=0.05)
        assert 15 < result.bits_per_s.value / 1e9 < 35
    assert received.per_request("stream.tap_packets").value == pytest.approx(2, rel=0.05)


def test_each_segment_of_an_e1000_passes_it_on_the_vcpus_thread() -> None:
    """With its checksum verified in software, for the tap of an e1000 has no header that could say anything of it."""
    result = play("e1000", "tx", 100, **{"workload.size": GSO})
    outside = iosim.simulate("e1000", workload="tx", requests=100, settings={
        "host.constant": True, "workload.size": GSO, "host.wire_rate": "100Gbit/s"})  # fmt: skip
    assert result.per_request("stream.skbs").value == pytest.approx(45, rel=0.05)
    assert result.per_request("stream.acks").value == pytest.approx(22.5, rel=0.1)
    assert result.bits_per_s.value < 0.7 * outside.bits_per_s.value
    assert result.saturated == ["vcpu0"]


@pytest.mark.slow
@pytest.mark.parametrize("sender", ["guest", "client"])
def test_a_stream_beside_requests(sender: str) -> None:
    chosen = {"workload.background": 65536, "workload.background_from": sender}
    alone, found = play("vhost-net", requests=20), play("vhost-net", requests=20, **chosen)
    assert found.latency["mean"].value > 2 * alone.latency["mean"].value
    assert found.count("background_bytes") * 8 / found.duration_ns > 10


@pytest.mark.slow
@pytest.mark.parametrize(("workload", "chosen"), [
    ("rx", {"workload.size": 65536, "device.guest_tso4": False}),
    ("rx", {"workload.depth": 64}),
    ("rr", {"workload.depth": 16}),
    ("rr", {"workload.background": 65536, "workload.background_from": "client"}),
    ("rr", {"workload.background": 65536}),
    ("rx", {"workload.rate": 300_000}),
])  # fmt: skip
def test_losses_hold_nothing_up(workload: str, chosen: dict[str, Any]) -> None:
    """A tap of a few frames. What is lost in a closed loop times out at once, and goes on."""
    room = 20 if "workload.background" in chosen else 2
    result = play("virtio-net", workload, 60, **chosen, **{"host.tap_queue": room})
    assert len(result.rows) == 60


# -- open loops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", ["rr", "rx", "tx"])
def test_an_open_loop_keeps_its_rate(workload: str) -> None:
    rate = {"workload.rate": 5_000, "workload.arrivals": "constant"}
    assert play("vhost-net", workload, 200, **rate).throughput.value == pytest.approx(5_000, rel=0.001)


# -- both engines -------------------------------------------------------------------------------------------------


@st.composite
def drawn(draw: st.DrawFn, model: str) -> tuple[str, dict[str, Any]]:
    flag = st.booleans()
    workload = draw(st.sampled_from(["rr", "tx", "rx"]))
    chosen: dict[str, Any] = {
        **WITH_HOST,
        "guest.vms": draw(st.sampled_from([1, 2])),
        "run.requests": draw(st.sampled_from([1, 60, 200])),
        "run.seed": draw(st.integers(0, 2**63 - 1)),
        "host.cpus": draw(st.sampled_from([0, 2, 4])),
        "host.tap_queue": draw(st.sampled_from([3, 1000])),
    }
    if draw(flag):
        chosen["workload.rate"] = draw(st.sampled_from([1_000, 50_000]))
    else:
        chosen["workload.depth"] = draw(st.sampled_from([1, 3, 16]))
    if model in VIRTIO:
        chosen["device.csum"] = draw(flag)
        chosen["device.guest_csum"] = draw(flag)
        chosen["device.queues"] = draw(st.sampled_from([1, 1, 2]))
        chosen["workload.flows"] = chosen["device.queues"] * chosen["guest.vms"] + draw(st.sampled_from([0, 1]))
        streams = ["guest", "client"]
    else:
        streams = ["guest"]
    if workload != "rx" and draw(flag):
        chosen["workload.background"] = draw(st.sampled_from([3000, 65536]))
        chosen["run.requests"] = min(chosen["run.requests"], 40)
        if workload == "rr":
            chosen["workload.background_from"] = draw(st.sampled_from(streams))
    elif "workload.depth" in chosen and (workload == "tx" or (workload == "rx" and model in VIRTIO)):
        chosen["workload.size"] = draw(st.sampled_from([64, 1473, 65536]))
    return workload, chosen


@pytest.mark.slow
@pytest.mark.skipif(not compiled_available(), reason="no compiled engine here")
@pytest.mark.parametrize("model", [*VIRTIO, "e1000"])
def test_identical_on_both_engines(model: str) -> None:
    @settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(drawn(model))
    def check(one: tuple[str, dict[str, Any]]) -> None:
        assert_identical(model, *one)

    check()


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "workload", "chosen", "expected"),
    [
        ("vfio", "rr", {}, "workload.peer: vfio bypasses the host's bridge; e1000, i82551, i82557b, i82559er, "
         "ne2k_pci, pcnet, rtl8139, vhost-net and virtio-net have a tap there"),
        ("vhost-net", "rr", {"workload.peer_delay": "1us"},
         "workload.peer_delay: a client on the host does not wait after a reply; leave this out"),
        ("vhost-net", "rr", {"workload.peer": "hots"}, "workload.peer: unknown value 'hots'; did you mean 'host'?"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_in_one_line(model: str, workload: str, chosen: dict[str, Any], expected: str) -> None:
    with pytest.raises(iosim.IosimError) as caught:
        specify(model, workload=workload, settings={**WITH_HOST, **chosen})
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
