"""Received streams: who merges segments, who cuts them again, what the tap takes, and what that changes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

import iosim
from iosim.fifo import take_first
from iosim.host.counters import NAMES
from iosim.host.gro import GRO_MAX_SIZE, IP_HEADERS, Gro, gro_flush, gro_receive
from iosim.host.hosts import load
from iosim.host.packets import (
    LAST,
    MSS,
    TCP_HEADERS,
    bytes_on_wire,
    calls_acknowledged,
    payload,
    segments,
    sized,
    stream_packet,
)
from iosim.host.rx_buffers import RxBuffers, enough, get_rx_bufs
from iosim.host.tcp_receiver import tcp_ack, tcp_cleanup_rbuf, tcp_queue_rcv, tcp_select_window
from iosim.ring.memory import GuestMemory, allocate
from iosim.ring.queue import DeviceQueue, add, new_queue
from iosim.run import run as run_specification
from iosim.specification import specify

MODELS = ("virtio-net", "vhost-net")
GSO = 45 * MSS
"""A send call that may be one GSO packet."""
ON: dict[str, Any] = {}
NO_GRO = {"host.nic_gro": False}
NO_TSO4 = {"device.guest_tso4": False}
NO_MERGING = {"host.nic_gro": False, "device.ethtool_gro": False}
COUNTERS = ("frames", "tap_packets", "buffers", "skbs", "acks")


def run(model: str, workload: str = "rx", requests: int = 60, **settings: Any) -> iosim.Result:
    fixed = {"run.engine": "simpy", "run.warmup": 20, "host.constant": True}
    return iosim.simulate(model, workload=workload, requests=requests, settings={**fixed, **settings})


@cache
def bulk(model: str, how: str, rate: str = "10Gbit/s") -> iosim.Result:
    """Send calls of 64 KiB, 16 of them unacknowledged."""
    chosen = {"on": ON, "no gro": NO_GRO, "no tso4": NO_TSO4, "no merging": NO_MERGING,
              "no csum": {"device.guest_csum": False}}[how]  # fmt: skip
    return run(model, requests=150, **{"workload.size": 65536, "host.wire_rate": rate, **chosen})


def counts(result: iosim.Result) -> dict[str, float]:
    return {name: result.per_request(f"stream.{name}").value for name in COUNTERS}


def drained(model: str, calls: int, **settings: Any) -> tuple[Any, dict[str, int]]:
    """Play at least so many send calls, then let all end; return the machine and its counters since the start."""
    path = iosim.install(model, workload="rx", settings={"host.constant": True, **settings})
    while path.machine.window.completed < calls:
        path.env.step()
    path.machine.window.draining = True
    path.env.run(until=path.env.now + 20_000_000_000)
    return path.machine, dict(zip(NAMES, path.machine.counters.n, strict=True))


# -- GRO --------------------------------------------------------------------------------------------------------


def let_go(g: Gro) -> list[int]:
    """Payloads of the packets that may go up."""
    return [payload(take_first(g.done)) for _ in range(g.done.count)]


def segment(flow: int = 0, size: int = MSS, push: bool = False) -> int:
    return sized(stream_packet(flow) | (LAST if push else 0), size)


def test_a_gro_packet_is_no_longer_than_64_kib_with_its_headers() -> None:
    g = Gro(1)
    for _ in range(100):
        gro_receive(g, segment(), 0)
    assert let_go(g) == [45 * MSS, 45 * MSS]
    assert 45 * MSS + IP_HEADERS < GRO_MAX_SIZE <= 46 * MSS + IP_HEADERS
    gro_flush(g)
    assert let_go(g) == [10 * MSS]


def test_psh_ends_a_gro_packet() -> None:
    """So no packet has data of two send calls."""
    g = Gro(1)
    for size, push in ((MSS, False), (100, True), (MSS, True), (MSS, False)):
        gro_receive(g, segment(size=size, push=push), 0)
    assert let_go(g) == [MSS + 100, MSS]
    assert g.held == [0]


def test_flows_are_merged_each_for_itself() -> None:
    g = Gro(3)
    for i in range(30):
        gro_receive(g, segment(i % 3), i % 3)
    assert g.done.count == 0
    gro_flush(g)
    assert let_go(g) == [10 * MSS] * 3


def test_eight_packets_are_held_in_a_bucket_and_the_oldest_makes_room() -> None:
    flows = 64
    g = Gro(flows)
    crowded = max(set(g.bucket), key=g.bucket.count)
    mine = [flow for flow in range(flows) if g.bucket[flow] == crowded]
    assert len(mine) > 8
    for n, flow in enumerate(mine):
        gro_receive(g, segment(flow, size=n + 1), flow)
    assert let_go(g) == list(range(1, len(mine) - 8 + 1))
    assert g.held == mine[-8:]


def test_what_the_host_has_merged_the_guest_does_not_merge_further() -> None:
    g = Gro(1)
    gro_receive(g, segment(), 0)
    gro_receive(g, segment(size=10 * MSS), 0)
    assert let_go(g) == [MSS, 10 * MSS]


# -- receive buffers ----------------------------------------------------------------------------------------------


def posted(packed: bool, buffers: int, size: int) -> DeviceQueue:
    mem = GuestMemory(1 << 20)
    driver, device = new_queue(mem, 16, event_idx=True, packed=packed)
    for i in range(buffers):
        driver.seg_addr[0], driver.seg_len[0] = allocate(mem, size, 64), size
        assert add(driver, 0, 1, i) >= 0
    return device


@pytest.mark.parametrize("packed", [False, True])
def test_a_packet_takes_as_many_buffers_as_it_needs(packed: bool) -> None:
    """num_buffers (virtio 1.2, 5.1.6.4): the first has the header too."""
    device = posted(packed, 10, 1536)
    b = RxBuffers(mergeable=True)
    assert [get_rx_bufs(b, device, size) for size in (60, 1524, 1525, 5000)] == [1, 1, 2, 4]
    assert b.lens == [1524, 1536, 1536, 404]


@pytest.mark.parametrize("packed", [False, True])
def test_too_few_buffers_stay_in_the_ring(packed: bool) -> None:
    device = posted(packed, 3, 1536)
    b = RxBuffers(mergeable=True)
    before = device.last_avail_idx
    assert not enough(b, device, 3 * 1536)
    assert get_rx_bufs(b, device, 3 * 1536) == 0
    assert (device.last_avail_idx, device.inuse) == (before, 0)
    assert b.end == before + 3
    assert get_rx_bufs(b, device, 3 * 1536 - 12) == 3


def test_buffers_grow_with_the_packets() -> None:
    """get_mergeable_buf_len: a frame's at first, a page's in bulk; GSO packets take less than half as many then."""
    path = iosim.install("vhost-net", workload="rx", settings={"workload.size": 65536})
    driver = path.machine.parts["driver"]
    lengths = []
    for calls in (1, 200):
        while path.machine.window.completed < calls:
            path.env.step()
        lengths.append(driver.mrg_avg_pkt_len)
    assert 1518 < lengths[1] < 65226
    assert max(driver.rx.seg_len) == 4096
    assert counts(bulk("vhost-net", "on"))["buffers"] < 65536 / 1536


@pytest.mark.parametrize(
    ("settings", "packets"),
    [
        ({}, 256),
        ({"device.mrg_rxbuf": False}, 256 // 19),
        ({"device.mrg_rxbuf": False, "device.guest_tso4": False}, 256),
        ({"device.mrg_rxbuf": False, "device.guest_csum": False}, 256),
        ({"device.mrg_rxbuf": False, "device.vnet_hdr": False}, 256),
    ],
)
def test_chains_for_gso_packets_only_where_such_may_come(settings: dict[str, Any], packets: int) -> None:
    """virtnet_probe: big_packets follows from the guest's GSO features."""
    for model in MODELS:
        path = iosim.install(model, settings=settings)
        assert path.machine.parts["driver"].rx.added == packets


# -- TCP ----------------------------------------------------------------------------------------------------------


def receiver(window: int) -> Any:
    machine = iosim.install("vhost-net", workload="rx", settings={"workload.size": GSO, "workload.depth": window})
    return machine.machine.parts["driver"].sockets[0]


def test_what_is_acknowledged_at_once() -> None:
    """Every second segment, and every GSO packet (__tcp_ack_snd_check)."""
    s = receiver(4)
    assert not tcp_queue_rcv(s, segment())
    assert tcp_queue_rcv(s, segment())
    tcp_ack(s)
    assert tcp_queue_rcv(s, segment(size=2 * MSS))
    tcp_ack(s)
    assert not tcp_queue_rcv(s, segment(size=376, push=True))
    assert tcp_cleanup_rbuf(s), "the end of a call that came by itself is acknowledged when it is read"
    assert calls_acknowledged(tcp_ack(s)) == 1


def test_the_window_shuts_where_the_application_does_not_read() -> None:
    s = receiver(2)
    for _ in range(4):
        tcp_queue_rcv(s, segment(size=GSO, push=True))
    assert tcp_select_window(s) == 2
    assert calls_acknowledged(tcp_ack(s)) == 2
    s.read += 1
    assert tcp_cleanup_rbuf(s)
    assert calls_acknowledged(tcp_ack(s)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", [ON, NO_GRO, NO_TSO4, {**NO_MERGING, "device.mrg_rxbuf": False}])
@pytest.mark.parametrize("size", [1473, 20_000, 65536])
def test_no_byte_is_lost_or_copied_twice(model: str, how: dict[str, Any], size: int) -> None:
    """At the end every call was read, and acknowledged, and the client's window is open again."""
    machine, n = drained(model, 30, **{"workload.size": size, "workload.depth": 5, **how})
    calls = machine.table.created
    s = machine.parts["driver"].sockets[0]
    assert machine.window.completed == s.calls == s.read == s.acked == calls
    assert machine.window.dropped == 0
    assert n["stream.frames"] == calls * segments(size)
    copies = 1 if model == "vhost-net" else 2
    incoming = calls * size + n["stream.tap_packets"] * TCP_HEADERS
    assert n["copied_bytes"] == copies * incoming + n["stream.acks"] * TCP_HEADERS
    assert n["wire_frames"] == n["stream.acks"] <= n["stream.skbs"] + calls
    assert segments(size) * calls >= n["stream.tap_packets"] >= n["stream.skbs"] >= calls


def test_a_slow_reader_slows_the_sender() -> None:
    """No more than its window and the receive buffer are under way: 2 x depth calls, and their latency is theirs."""
    settings = {"workload.size": GSO, "workload.depth": 4, "workload.think_time": "500us"}
    result = run("vhost-net", **settings)
    # 511 us to think and to read, and what the vCPU does in interrupts meanwhile.
    assert 1e9 / 560_000 < result.throughput.value < 1e9 / 511_000
    assert result.dropped == 0
    assert result.latency_ps.max() < 9 * 560_000_000


# -- who does what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_with_all_on_the_tap_has_few_large_packets(model: str) -> None:
    n = counts(bulk(model, "on"))
    assert n["frames"] == pytest.approx(46, rel=0.02)
    assert 2 <= n["tap_packets"] < 5
    assert n["skbs"] == pytest.approx(n["tap_packets"], rel=0.05)
    assert 65536 / 4096 < n["buffers"] < 20


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", ["no gro", "no tso4", "no csum"])
def test_without_gro_or_guest_tso4_or_guest_csum_the_tap_has_frames(model: str, how: str) -> None:
    """And each takes one buffer; what the guest's GRO makes of them depends on how many come at once."""
    n = counts(bulk(model, how))
    assert n["tap_packets"] == pytest.approx(n["frames"], rel=0.02)
    assert n["buffers"] == pytest.approx(n["tap_packets"], rel=0.02)
    assert n["skbs"] < n["frames"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_where_nobody_merges_every_segment_goes_up_and_every_second_is_acknowledged(model: str) -> None:
    n = counts(bulk(model, "no merging"))
    assert n["skbs"] == pytest.approx(n["frames"], rel=0.02)
    assert n["acks"] == pytest.approx(n["skbs"] / 2, rel=0.05)


def test_depth_one_in_closed_form() -> None:
    """A call of two segments: both in one poll, one packet in two buffers, one acknowledgement before it is read."""
    host = load("composite")

    def ps(steps: str) -> int:
        return sum(round(host.cost(name).distribution.mean) for name in steps.split())

    def cold(size: int) -> int:
        return size * round(host.cost("copy_cold").per_byte * 1024) >> 10

    size = 2 * MSS
    first_frame = bytes_on_wire(MSS) * 800 + 1_000_000
    to_tap = ps("nic_rx_delay host_irq host_receive gro_receive host_receive gro_receive bridge tap_queue")
    vhost = ps("vhost_worker_wakeup vhost_packet rx_buffer_more vhost_signal irq_injection") + cold(size + TCP_HEADERS)
    ack = ps("guest_stack_tx rearm_window driver_xmit vm_exit kvm_ioeventfd vm_entry")
    guest = ps(
        "vm_entry irq_entry driver_irq softirq_entry rearm_window "
        "driver_receive driver_receive_frag gro_receive guest_stack_rx rearm_window guest_wakeup sys_recvmsg"
    )
    result = run("vhost-net", requests=68, **{"workload.size": size, "workload.depth": 1, "run.warmup": 5})
    latencies, how_often = np.unique(result.latency_ps, return_counts=True)
    assert latencies[0] == first_frame + to_tap + vhost + guest + ack + cold(size)
    # Every 17th refills 34 buffers before the application is woken, and is interrupted for the acknowledgement sent.
    assert list(how_often) == [64, 4]
    assert latencies[1] > latencies[0] + 34 * ps("driver_refill")
    assert (np.diff(result.stamps, axis=1) >= 0).all()
    assert (result.stamps[:, -1] - result.stamps[:, 0] == result.latency_ps).all()


# -- who limits ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", ["on", "no gro", "no tso4", "no merging"])
def test_1_gbit_is_the_wire_s_goodput_whatever_is_off(model: str, how: str) -> None:
    goodput = 1e9 * 65536 / bytes_on_wire(65536)
    assert bulk(model, how, "1Gbit/s").bits_per_s.value == pytest.approx(goodput, rel=2e-3)


@pytest.mark.parametrize("model", MODELS)
def test_10_gbit_is_the_wire_s_with_all_on_and_the_slowest_thread_s_without(model: str) -> None:
    goodput = 10e9 * 65536 / bytes_on_wire(65536)
    assert bulk(model, "on").bits_per_s.value == pytest.approx(goodput, rel=5e-3)
    for how in ("no gro", "no tso4"):
        slow = bulk(model, how)
        assert slow.bits_per_s.value < 0.85 * goodput
        # Frame by frame: the host's softirq is what limits vhost, and QEMU limits itself long before.
        busy = {name: slow.cpu_busy[name].value for name in slow.cpu_busy if name != "vcpu0"}
        assert max(busy, key=lambda name: busy[name]) == ("host-softirq" if model == "vhost-net" else "qemu-main")
        assert max(busy.values()) > 0.98
    assert bulk("virtio-net", "no gro").bits_per_s.value < 0.5 * bulk("vhost-net", "no gro").bits_per_s.value
    # Where nobody merges, the guest is the limit.
    nobody = bulk("vhost-net", "no merging")
    assert nobody.bits_per_s.value < 0.5 * bulk("vhost-net", "no gro").bits_per_s.value
    assert max(nobody.cpu_busy[name].value for name in ("host-softirq", "vhost")) < 0.7


def test_at_1_gbit_frames_come_too_far_apart_to_be_merged() -> None:
    """12.3 us from frame to frame, and an interrupt after 5: each is a poll of its own, unless the NIC waits longer."""
    assert counts(bulk("vhost-net", "on", "1Gbit/s"))["tap_packets"] > 44
    slow = {"workload.size": 65536, "host.wire_rate": "1Gbit/s", "host.costs.nic_rx_delay": "100us"}
    assert counts(run("vhost-net", **slow))["tap_packets"] < 10


@pytest.mark.slow
def test_small_requests_beside_a_received_stream() -> None:
    settings = {"workload.background": 65536, "workload.background_from": "client", "workload.rate": 1000}
    result = run("vhost-net", "rr", requests=40, **settings)
    assert result.count("background_bytes") * 8 / result.duration_ns == pytest.approx(9.41, rel=0.02)
    assert (result.stamps[:, -1] - result.stamps[:, 0] == result.latency_ps).all()


def test_an_acknowledgement_has_its_own_size_on_the_wire() -> None:
    """66 bytes and 24 around them, beside replies of 1000 (they went as those once): out of two sums, how many each."""
    settings = {"workload.size": 1000, "workload.background": 65536, "workload.background_from": "client"}
    path = iosim.install("vhost-net", workload="rr", settings={"host.constant": True, **settings})
    path.env.run(until=5_000_000_000)
    n = dict(zip(NAMES, path.machine.counters.n, strict=True))
    reply, ack = 1000 + 42 + 24, TCP_HEADERS + 24
    acks, rest = divmod(n["wire_frames"] * reply - n["wire_busy.out"] // 800, reply - ack)
    assert rest == 0
    assert 50 < n["stream.acks"] - 3 < acks <= n["stream.acks"]
    assert abs(n["wire_frames"] - acks - path.machine.window.completed) < 3


# -- engines ------------------------------------------------------------------------------------------------------


@st.composite
def receiving(draw: st.DrawFn, model: str) -> dict[str, Any]:
    flag = st.booleans()
    csum = draw(flag)
    chosen: dict[str, Any] = {
        "run.requests": draw(st.sampled_from([1, 40, 120])),
        "run.seed": draw(st.integers(0, 2**63 - 1)),
        "workload.size": draw(st.sampled_from([1473, 2896, 9000, GSO, 65536])),
        "workload.depth": draw(st.sampled_from([1, 2, 16])),
        "workload.think_time": draw(st.sampled_from(["0us", "80us"])),
        "host.cpus": draw(st.sampled_from([0, 2, 3])),
        "host.wire_rate": draw(st.sampled_from(["1Gbit/s", "10Gbit/s", "40Gbit/s"])),
        "host.tap_queue": draw(st.sampled_from([3, 1000])),
        "host.nic_gro": draw(flag),
        "host.qdisc": draw(st.sampled_from(["fifo", "fq"])),
        "device.guest_csum": csum,
        "device.ethtool_gro": draw(flag),
        "device.mrg_rxbuf": draw(flag),
        "device.vnet_hdr": draw(st.sampled_from([True, True, False])),
        "device.event_idx": draw(flag),
        "device.packed": draw(flag),
        "device.indirect": draw(flag),
        "device.rx_queue_size": draw(st.sampled_from([128, 256])),
        "device.tx_queue_size": draw(st.sampled_from([32, 256])),
        "device.queues": draw(st.sampled_from([1, 1, 3])),
    }
    if csum:
        chosen["device.guest_tso4"] = draw(flag)
    chosen["guest.vcpus"] = min(chosen["device.queues"], draw(st.sampled_from([1, 2])))
    chosen["workload.flows"] = chosen["device.queues"] + draw(st.sampled_from([0, 2]))
    if model == "vhost-net":
        chosen["device.poll_us"] = draw(st.sampled_from([0, 20]))
    else:
        chosen["device.ioeventfd"] = draw(flag)
    return chosen


def test_acknowledgements_that_one_vcpu_sends_for_all_pairs_kick_from_it() -> None:
    """One interrupt for eight pairs: vCPU 0 polls for all, and acknowledges what the applications of vCPU 1 get.

    The exit for that kick is vCPU 0's. (It was vCPU 1's once, which lay in HLT then and was never woken again.)
    """
    settings = {"workload.size": 1473, "workload.depth": 1, "device.queues": 8, "guest.vcpus": 2, "device.vectors": 0,
                "host.halt_poll_ns": "0ns", "run.engine": "simpy", "run.requests": 200}  # fmt: skip
    result = iosim.simulate("vhost-net", workload="rx", settings=settings)
    assert len(result.rows) == 200
    assert result.dropped == 0


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_engines_agree(model: str) -> None:
    pytest.importorskip("iosim.engine.compiled.code")

    @hypothesis(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(receiving(model))
    def check(chosen: dict[str, Any]) -> None:
        one, two = (
            run_specification(specify(model, workload="rx", settings={**chosen, "run.engine": engine}))
            for engine in ("simpy", "compiled")
        )
        assert one.stamps.tolist() == two.stamps.tolist()
        assert one.snapshots == two.snapshots
        assert {**one.to_dict(), "engine": ""} == {**two.to_dict(), "engine": ""}
        assert (one.stamps[:, -1] - one.stamps[:, 0] == one.latency_ps).all()

    check()


# -- bad values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "workload", "settings", "message"),
    [
        ("vhost-net", "rx", {"workload.size": 65537}, "workload.size: 65537 bytes in a send call; the most is 65536"),
        ("vhost-net", "rx", {"workload.size": 9000, "workload.rate": 9}, "workload.rate: 9000 bytes a send call are"),
        ("vhost-net", "tx", {"workload.background": 9, "workload.background_from": "client"},
         "workload.background_from: the client sends a stream beside rr, not beside tx"),
        ("vhost-net", "rr", {"workload.background_from": "host"}, "workload.background_from: unknown value 'host'"),
        ("vhost-net", "rr", {"device.guest_csum": False, "device.guest_tso4": True},
         "device: guest_tso4=on needs guest_csum=on (virtio 1.2, 5.1.3.1)"),
        ("vhost-net", "rr", {"host.nic_gro": "maybe"}, "host.nic_gro: 'maybe' is neither"),
    ],
)  # fmt: skip
def test_wrong_values_in_one_line(model: str, workload: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(iosim.IosimError) as caught:
        specify(model, workload=workload, settings=settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_gso_packet_s_buffers_must_be_there_when_the_driver_sees_no_need_to_refill() -> None:
    """With half a poll's weight free it does not: in a queue of 64 a packet could wait for ever."""
    settings = {"workload.size": 65536, "device.rx_queue_size": 64}
    with pytest.raises(iosim.IosimError, match="takes up to 43 receive buffers, and the driver does not keep as many"):
        iosim.install("vhost-net", workload="rx", settings=settings)
    iosim.install("vhost-net", workload="rx", settings={**settings, "device.guest_tso4": False})
