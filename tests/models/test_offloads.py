"""Streams and their offloads: who cuts a send call into frames, where, and what that changes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import iosim
from iosim.fifo import take_first
from iosim.host.dql import Dql, dql_avail, dql_completed, dql_queued
from iosim.host.frames import MSS, TCP_HEADERS
from iosim.host.hosts import load
from iosim.host.packets import bytes_on_wire, payload, segments, sized, stream_packet
from iosim.host.qdisc import Qdisc, enqueue, next_flow
from iosim.run import run as run_specification
from iosim.specification import specify

MODELS = ("virtio-net", "vhost-net")
GSO = 45 * MSS
"""A send call that is one GSO packet."""
TSO: dict[str, Any] = {}
SOFTWARE = {"device.host_tso4": False}
NEITHER = {"device.ethtool_tso": False, "device.ethtool_gso": False}
HOST_OFF = {"host.nic_tso": False, "host.nic_gso": False}


def run(model: str, workload: str = "tx", requests: int = 60, **settings: Any) -> iosim.Result:
    fixed = {"run.engine": "simpy", "run.warmup": 20, "host.constant": True}
    return iosim.simulate(model, workload=workload, requests=requests, settings={**fixed, **settings})


@cache
def alone(model: str, size: int, *, how: str) -> iosim.Result:
    """One send call at a time."""
    chosen = {"tso": TSO, "software": SOFTWARE, "neither": NEITHER, "host off": HOST_OFF}[how]
    return run(model, **{"workload.size": size, "workload.depth": 1, **chosen})


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", ["tso", "software", "neither", "host off"])
@pytest.mark.parametrize("size", [1473, GSO, 65536])
def test_frames_on_the_wire(model: str, how: str, size: int) -> None:
    """Whoever segments: a send call is ceil(size / MSS) frames, and the stages of each sum to its latency."""
    result = alone(model, size, how=how)
    assert result.count("wire_frames") == 60 * -(-size // MSS)
    assert (np.diff(result.stamps, axis=1) >= 0).all()
    assert (result.stamps[:, -1] - result.stamps[:, 0] == result.latency_ps).all()


@pytest.mark.parametrize("model", MODELS)
def test_a_gso_packet_has_one_header_and_one_kick_where_segments_have_one_each(model: str) -> None:
    ack = TCP_HEADERS * (1 if model == "vhost-net" else 2)  # QEMU copies what it receives twice
    for how, packets in (("tso", 1), ("software", 45), ("neither", 45), ("host off", 1)):
        result = alone(model, GSO, how=how)
        assert result.per_request("copied_bytes").value == GSO + packets * TCP_HEADERS + ack
    # Segments of one packet come to the driver as a list, with one kick at its end. Segments of TCP's own do not; vhost
    # is done with one before the next, and QEMU is not.
    assert alone(model, GSO, how="tso").per_request("kicks").value == 1
    assert alone(model, GSO, how="software").per_request("kicks").value == 1
    kicks = alone(model, GSO, how="neither").per_request("kicks").value
    assert 1 < kicks <= 45 if model == "vhost-net" else kicks == 1


def test_depth_one_in_closed_form() -> None:
    """A GSO packet with TSO at both NICs: copied twice, one of everything else, 45 frames on the wire."""
    host = load("composite")
    steps = (
        "sys_sendmsg guest_stack_tx rearm_window driver_xmit vm_exit kvm_ioeventfd "
        "vhost_worker_wakeup vhost_packet tap_write bridge nic_tx"
    )
    fixed = sum(round(host.cost(name).distribution.mean) for name in steps.split())
    copies = (GSO * round(host.cost("copy_hot").per_byte * 1024) >> 10) + (
        (GSO + TCP_HEADERS) * round(host.cost("copy_cold").per_byte * 1024) >> 10
    )
    wire = 45 * (MSS + TCP_HEADERS + 24) * 800
    result = alone("vhost-net", GSO, how="tso")
    assert set(result.latency_ps) == {fixed + copies + wire}


@pytest.mark.parametrize("rate", [1, 10])
def test_a_wire_that_is_busy_carries_what_the_headers_leave(rate: int) -> None:
    """941 Mbit/s of 1 Gbit/s: 1448 bytes of each 1538."""
    settings = {"workload.size": GSO, "host.wire_rate": f"{rate}Gbit/s"}
    result = run("vhost-net", requests=300, **settings)
    assert result.bits_per_s.value == pytest.approx(rate * 1e9 * GSO / bytes_on_wire(GSO), rel=1e-3)
    assert rate * 1e9 * GSO / bytes_on_wire(GSO) == pytest.approx(rate * 0.9415e9, rel=1e-3)


@pytest.mark.slow
def test_gso_of_the_hosts_nic_is_not_asked() -> None:
    """A guest's packet is segmented for a NIC without TSO whether that has gso or not: skb_gso_segment either way."""
    for tso in (False, True):
        one, two = (
            run("vhost-net", "rr", **{"workload.background": 65536, "host.nic_tso": tso, "host.nic_gso": gso})
            for gso in (False, True)
        )
        assert one.stamps.tolist() == two.stamps.tolist()
        assert one.snapshots == two.snapshots


@pytest.mark.parametrize("off", ["device.vnet_hdr", "device.csum"])
def test_no_tso_without_header_or_checksums(off: str) -> None:
    """QEMU offers neither without the header, and Linux does no TSO without checksums."""
    both = {"device.csum": False, "device.host_tso4": False, "device.guest_csum": off != "device.vnet_hdr"}
    call = {"workload.size": GSO, "workload.depth": 1}
    one, two = (run("virtio-net", **call, **settings) for settings in ({off: False}, both))
    assert one.stamps.tolist() == two.stamps.tolist()


def test_the_hub_has_no_offloads() -> None:
    hub = run("virtio-net", **{"workload.size": GSO, "workload.depth": 1, "device.hub": True})
    segmented = alone("virtio-net", GSO, how="neither")
    assert hub.per_request("copied_bytes").value == segmented.per_request("copied_bytes").value


# -- queueing ---------------------------------------------------------------------------------------------------


def served(q: Qdisc, rounds: int) -> list[int]:
    """Flows in the order in which they are served, each packet paying for its bytes."""
    flows = []
    for _ in range(rounds):
        flow = next_flow(q)
        packet = take_first(q.queue[flow])
        q.deficit[flow] -= payload(packet)
        q.count -= 1
        flows.append(flow)
    return flows


def test_fair_queueing_is_by_bytes() -> None:
    """A flow of 15140 bytes a packet and one of 1514: ten of the second for one of the first."""
    q = Qdisc(True, 2)
    for _ in range(100):
        enqueue(q, sized(stream_packet(0), 15140), 0)
        enqueue(q, sized(stream_packet(1), 1514), 1)
    order = served(q, 99)
    assert order.count(1) == 10 * order.count(0)


def test_a_new_flow_goes_first() -> None:
    q = Qdisc(True, 2)
    for _ in range(10):
        enqueue(q, sized(stream_packet(0), GSO), 0)
    assert served(q, 3) == [0, 0, 0]
    enqueue(q, sized(stream_packet(1), 60), 1)
    assert served(q, 2) == [1, 0]


def test_one_queue_is_first_come_first_served_up_to_its_limit() -> None:
    q = Qdisc(False, 3)
    assert [enqueue(q, i, i % 3) for i in range(1001)] == [True] * 1000 + [False]
    assert [take_first(q.queue[0]) for _ in range(3)] == [0, 1, 2]


def test_the_byte_limit_grows_until_the_nic_does_not_starve() -> None:
    """Each time all that was over the limit is gone at once the NIC had run dry: it gets that much more."""
    d = Dql()
    limits = []
    for _ in range(4):
        while dql_avail(d) >= 0:
            dql_queued(d, 1514)
        dql_completed(d, d.num_queued)
        limits.append(d.limit)
    assert limits == sorted(limits)
    assert limits[0] < limits[-1]


@cache
def beside(model: str, rate: str, qdisc: str, how: str) -> iosim.Result:
    """Small requests, 1000 a second, while the guest sends a stream."""
    chosen = {"on": TSO, "host off": HOST_OFF, "guest off": NEITHER}[how]
    settings = {"workload.background": 65536, "host.wire_rate": rate, "host.qdisc": qdisc, "workload.rate": 1000}
    return run(model, "rr", requests=40, **settings, **chosen)


def latency(*which: str) -> float:
    return beside("vhost-net", *which).latency["mean"].value


def test_in_a_fifo_requests_wait_for_the_window_however_it_is_cut() -> None:
    window = 16 * bytes_on_wire(65536) * 8  # ns at 1 Gbit/s
    for how in ("on", "host off", "guest off"):
        assert latency("1Gbit/s", "fifo", how) == pytest.approx(window, rel=0.1)


def test_in_fair_queueing_they_wait_for_what_the_nic_has() -> None:
    """The smaller the packets that the limit of the NIC's queue counts, the less that is."""
    waits = [latency("1Gbit/s", "fq", how) for how in ("on", "host off", "guest off")]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > 2 * waits[1] > 3 * waits[2]


@pytest.mark.slow
def test_a_dropped_segment_of_a_stream_is_no_request_s() -> None:
    """24 send calls of 64 KiB do not fit the 1000 frames of the queueing discipline. A request's place in the closed
    loop is given back for a request, and not for a segment: never more than 4 under way."""
    settings = {"workload.background": 65536, "workload.background_depth": 24, "host.wire_rate": "1Gbit/s", **SOFTWARE}
    result = run("vhost-net", "rr", 20, **{"workload.depth": 4, **settings})
    assert result.dropped > 0
    made, left = result.stamps[:, 0], result.stamps[:, -1]
    assert max(((made <= now) & (left > now)).sum() for now in made) <= 4


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("workload", "chosen"),
    [
        ("tx", {"workload.size": 65536, **SOFTWARE, "device.queues": 2}),
        ("rr", {"workload.background": 65536, "host.qdisc": "fq", "host.nic_tso": False}),
        ("rr", {"workload.background": 3000, "device.csum": False, **NEITHER, "host.tap_queue": 1, "run.requests": 60}),
        ("tx", {"workload.background": 65536, "host.qdisc": "fq", "run.keep": "summary"}),
    ],
)
@pytest.mark.slow
def test_engines_agree(model: str, workload: str, chosen: dict[str, Any]) -> None:
    pytest.importorskip("iosim.engine.compiled.code")
    one, two = (
        run_specification(
            specify(model, workload=workload, settings={"run.requests": 300, **chosen, "run.engine": engine})
        )
        for engine in ("simpy", "compiled")
    )
    assert one.snapshots == two.snapshots
    assert {**one.to_dict(), "engine": ""} == {**two.to_dict(), "engine": ""}


@pytest.mark.parametrize(
    ("model", "workload", "settings", "message"),
    [
        ("vhost-net", "tx", {"workload.size": 65537}, "workload.size: 65537 bytes in a send call; the most is 65536"),
        ("vhost-net", "rr", {"workload.size": 1473}, "workload.size: 1473 bytes do not fit one Ethernet frame"),
        ("vhost-net", "rx", {"workload.background": 9}, "workload.background: the guest sends a stream beside"),
        ("vhost-net", "rr", {"workload.background": 65537}, "workload.background: must be at most 65536, not 65537"),
        ("vhost-net", "tx", {"workload.size": 9000, "workload.rate": 9}, "workload.rate: 9000 bytes a send call are"),
        ("vhost-net", "rr", {"host.qdisc": "fair"}, "host.qdisc: unknown qdisc 'fair'"),
        ("vhost-net", "rr", {"device.host_tso4": "maybe"}, "device.host_tso4: 'maybe' is neither on nor off"),
    ],
)
def test_wrong_values_in_one_line(model: str, workload: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(iosim.IosimError) as caught:
        specify(model, workload=workload, settings=settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_acknowledgement_is_small_however_large_the_requests_are() -> None:
    """Beside requests of 1000 bytes: what vhost copies is theirs, the stream's, and 66 bytes for each send call."""
    result = run("vhost-net", "rr", **{"workload.size": 1000, "workload.background": GSO, "host.qdisc": "fq"})
    calls = result.per_request("background_bytes").value / GSO
    expected = 2 * (1000 + 42) + calls * (GSO + 2 * TCP_HEADERS)
    assert result.per_request("copied_bytes").value == pytest.approx(expected, rel=0.01)


def test_segments() -> None:
    assert [segments(size) for size in (1, MSS, MSS + 1, 65536)] == [1, 1, 2, 46]
