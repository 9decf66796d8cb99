"""Received streams on every NIC whose guest can send them: who merges, who verifies, who acknowledges, what is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iosim
from iosim.fifo import Fifo
from iosim.fifo import put as fifo_put
from iosim.guest import tcp_receive
from iosim.host.counters import NAMES
from iosim.host.frames import MSS, TCP_HEADERS
from iosim.host.hosts import load
from iosim.host.packets import acknowledgement, bytes_on_wire, segments
from iosim.model import find, names
from iosim.run import compiled_available, run
from iosim.specification import specify

HOST = load("composite")
PHYSICAL = ("bare-metal", "vfio")
MERGING = (*PHYSICAL, "vhost-user", "e1000", "rtl8139")
"""Their drivers call napi_gro_receive."""
SINGLY = ("pcnet", "i82551", "ne2k_pci")
"""Theirs netif_receive_skb or netif_rx."""
MODELS = (*MERGING, *SINGLY)
EMULATED = ("e1000", "rtl8139", *SINGLY)
BETWEEN = {"workload.peer": "guest"}
FITS = {"ne2k_pci": 4 * MSS, "pcnet": 20 * MSS}
"""Bytes of a send call that the device takes at once, where it takes fewer than a GSO packet's 45 segments."""


def fits(model: str) -> int:
    return FITS.get(model, 45 * MSS)


def play(model: str, workload: str = "rx", requests: int = 40, **chosen: Any) -> iosim.Result:
    """A run in which nothing is random."""
    fixed = {"host.constant": True, "run.warmup": 10}
    return iosim.simulate(model, workload=workload, requests=requests, settings={**fixed, **chosen})


def alone(model: str, **chosen: Any) -> iosim.Result:
    """One send call at a time, which no queue loses anything of."""
    return play(model, **{"workload.size": fits(model), "workload.depth": 1, **chosen})


@cache
def slow(model: str) -> iosim.Result:
    """Send calls of 64 KiB over a wire on which frames are far apart."""
    chosen = {"workload.size": 65536, "workload.depth": 2, "host.wire_rate": rate(model)}
    return play(model, requests=20, **chosen)


def rate(model: str) -> str:
    return "10Mbit/s" if model == "ne2k_pci" else "100Mbit/s"


def each(result: iosim.Result, name: str) -> float:
    return float(result.per_request(f"stream.{name}").value)


def ps(steps: str) -> int:
    return sum(round(HOST.cost(step).distribution.mean) for step in steps.split())


def per_byte(name: str, size: int) -> int:
    return size * round(HOST.cost(name).per_byte * 1024) >> 10


# -- who receives -----------------------------------------------------------------------------------------------


def test_every_nic_that_sends_streams_receives_them() -> None:
    sending = {name for name in names() if find(name).streams}
    assert sending == {name for name in names() if find(name).receives_streams}
    assert set(MODELS) < sending


@pytest.mark.parametrize(
    ("workload", "chosen", "message"),
    [
        ("rx", {"workload.size": 1473}, "workload.size: 1473 bytes do not fit one Ethernet frame, and own receives no "
         "TCP stream (bare-metal, e1000, "),
        ("rr", {"workload.background": 9, "workload.background_from": "client"},
         "workload.background_from: own sends TCP streams and receives none; bare-metal, e1000, "),
        ("rr", {**BETWEEN, "workload.background": 1000}, "workload.background: own sends TCP streams and receives "),
        ("tx", {**BETWEEN, "workload.size": 2000},
         "workload.size: 2000 bytes a send call are a TCP stream, and own receives none (bare-metal, e1000, "),
    ],
)  # fmt: skip
def test_a_model_that_receives_none_says_so_in_one_line(workload: str, chosen: dict[str, Any], message: str) -> None:
    """A model of one's own, say."""
    with pytest.raises(iosim.IosimError) as caught:
        specify(replace(find("e1000"), name="own", receives_streams=False), workload=workload, settings=chosen)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# -- counts -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_frames_that_come_far_apart_go_up_one_by_one(model: str) -> None:
    """And every second one is acknowledged. The e1000's mitigation lets two or three come together."""
    found = slow(model)
    assert each(found, "frames") == pytest.approx(46, rel=0.02)
    assert each(found, "skbs") == pytest.approx(46, rel=0.12 if model == "e1000" else 0.03)
    assert each(found, "acks") == pytest.approx(23, rel=0.06)
    assert found.dropped == 0


@pytest.mark.parametrize("model", MERGING)
def test_gro_makes_one_packet_of_what_comes_together(model: str) -> None:
    size = 8 * MSS
    merged, singly = (alone(model, **{"workload.size": size, **off}) for off in ({}, without_gro(model)))
    # A poll-mode process hands over what it finds, and the guest may be at work by then.
    assert each(merged, "skbs") == pytest.approx(2 if model == "vhost-user" else 1)
    assert each(merged, "acks") == pytest.approx(each(merged, "skbs"), rel=0.1)
    assert each(singly, "skbs") == pytest.approx(8)
    # Every second one, and the first of a next call that has come when the last is read.
    assert 4 <= each(singly, "acks") <= 5.5
    # An e1000's pace is set by its mitigation, one call for each of its periods.
    assert model == "e1000" or merged.bits_per_s.value > singly.bits_per_s.value


def without_gro(model: str) -> dict[str, Any]:
    return {"host.nic_gro": False} if model == "bare-metal" else {"device.ethtool_gro": False}


@pytest.mark.parametrize("model", SINGLY)
def test_the_others_know_no_gro(model: str) -> None:
    found = alone(model)
    assert each(found, "skbs") == pytest.approx(segments(fits(model)))
    assert each(found, "acks") == pytest.approx(segments(fits(model)) / 2, abs=1.5)
    with pytest.raises(iosim.IosimError, match=r"device\.ethtool_gro"):
        specify(model, settings={"device.ethtool_gro": False})


COPIES = {"bare-metal": (0, 0), "vfio": (0, 0), "vhost-user": (1, 1), "pcnet": (3, 2), "ne2k_pci": (2, 1)}
"""Of a frame that comes in, and of an acknowledgement that goes out; two each, where it is not said. QEMU's pcnet has a
buffer of its own on the way in; what the guest of an ne2k_pci moves through its port is no copy."""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [1473, 5 * MSS])
def test_no_byte_is_lost_or_copied_twice(model: str, size: int) -> None:
    """At the end every call was read, and acknowledged."""
    size = min(size, fits(model))
    path = iosim.install(model, workload="rx", settings={
        "host.constant": True, "workload.size": size, "workload.depth": 1})  # fmt: skip
    machine = path.machine
    while machine.window.completed < 20:
        path.env.step()
    machine.window.draining = True
    path.env.run(until=path.env.now + 20_000_000_000)
    n = dict(zip(NAMES, machine.counters.n, strict=True))
    calls = machine.table.created
    assert (machine.window.completed, machine.window.dropped, machine.window.segments_lost) == (calls, 0, 0)
    assert n["stream.frames"] == calls * segments(size)
    assert n["stream.acks"] == n["wire_frames"]
    incoming, outgoing = COPIES.get(model, (2, 2))
    bytes_in = calls * (size + segments(size) * TCP_HEADERS)
    assert n["copied_bytes"] == incoming * bytes_in + outgoing * n["stream.acks"] * TCP_HEADERS


@pytest.mark.parametrize("model", MODELS)
def test_the_stages_of_a_send_call_have_no_gap(model: str) -> None:
    for found in (slow(model), alone(model)):
        assert (np.diff(found.stamps, axis=1) >= 0).all()
        assert (found.stamps[:, -1] - found.stamps[:, 0] == found.latency_ps).all()


# -- figures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_slow_wire_is_full(model: str) -> None:
    """94.1 Mbit/s of 100; of the ne2k_pci 9.41 of 10."""
    wire = 1e7 if model == "ne2k_pci" else 1e8
    assert slow(model).bits_per_s.value == pytest.approx(wire * 65536 / bytes_on_wire(65536), rel=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "gigabits"),
    [("bare-metal", 8.2), ("vfio", 8.3), ("vhost-user", 9.4), ("e1000", 4.3)],
)
def test_10_gbit_is_full_or_one_thread_is_busy(model: str, gigabits: float) -> None:
    """Without a loss: what has no descriptor waits in front of the e1000, and the other guests keep up."""
    found = play(model, requests=600, **{"workload.size": 65536, "run.warmup": 200})
    assert found.bits_per_s.value / 1e9 == pytest.approx(gigabits, rel=0.03)
    assert found.bits_per_s.value < 1.01 * 10e9 * 65536 / bytes_on_wire(65536)
    assert found.dropped == 0
    if model != "vhost-user":
        # The e1000's vCPU waits half of its time for the big lock: QEMU reads fifty packets before it gives that up.
        assert ("cpu0" if model == "bare-metal" else "vcpu0") in found.saturated


@pytest.mark.parametrize(
    ("model", "gigabits"), [("rtl8139", 2.18), ("i82551", 0.92), ("pcnet", 0.58), ("ne2k_pci", 0.042)]
)
def test_a_call_at_a_time(model: str, gigabits: float) -> None:
    assert alone(model).bits_per_s.value / 1e9 == pytest.approx(gigabits, rel=0.03)
    assert alone(model).dropped == 0


# -- by hand ----------------------------------------------------------------------------------------------------


def test_two_segments_on_bare_metal() -> None:
    """Both in one poll, which GRO makes one packet of: acknowledged, then read."""
    size = 2 * MSS
    found = alone("bare-metal", **{"workload.size": size, "workload.peer_delay": "1ms"})
    first_frame = bytes_on_wire(MSS) * 800 + 1_000_000
    irq = ps("nic_rx_delay cpu_idle_exit irq_entry driver_irq softirq_entry")
    napi = ps("host_receive gro_receive host_receive gro_receive guest_stack_rx guest_stack_tx nic_tx")
    assert set(found.latency_ps.tolist()) == {
        first_frame + irq + napi + ps("guest_wakeup sys_recvmsg") + per_byte("copy_cold", size)
    }


def test_the_second_segment_on_an_e1000() -> None:
    """It comes when the first is in its socket. QEMU tells the guest nothing of the checksum (IXSM), so GRO verifies.

    Both are acknowledged then: one write of TDT, in which QEMU reads a context and a data descriptor, sums what is
    behind the IP header, and sends. Its interrupt has to wait: NAPI is under way.
    """
    chosen = {"workload.size": 2 * MSS, "workload.peer_delay": "10ms", "host.wire_rate": "100Mbit/s",
              "device.mitigation": False, "host.halt_poll_ns": "100ms"}  # fmt: skip
    found = alone("e1000", **chosen)
    frame = MSS + TCP_HEADERS
    access = "vm_exit kvm_mmio_decode kvm_run_return qemu_dispatch qemu_e1000_register"
    write, read = f"{access} kvm_run_enter vm_entry", f"{access} mmio_read_result kvm_run_enter vm_entry"
    arrives = 2 * bytes_on_wire(MSS) * 80_000 + 1_000_000
    to_tap = ps("nic_rx_delay host_irq host_receive gro_receive bridge tap_queue")
    device = ps("thread_wakeup sys_ppoll sys_read qemu_net_queue qemu_e1000_packet")
    device += per_byte("copy_cold", frame) + per_byte("copy_hot", frame)
    line = ps("sys_ioctl irq_injection")
    handler = ps(f"vm_entry irq_entry driver_irq {read} {write} {read} vm_exit kvm_eoi vm_entry")
    napi = ps("softirq_entry driver_receive guest_checksum gro_receive guest_stack_rx")
    napi += per_byte("guest_checksum", frame)
    ack = ps(f"guest_stack_tx driver_xmit {write} qemu_e1000_descriptor qemu_e1000_packet qemu_checksum")
    ack += per_byte("copy_cold", TCP_HEADERS) + per_byte("qemu_checksum", TCP_HEADERS - 34)
    ack += ps("qemu_net_queue sys_write tap_write bridge nic_tx") + per_byte("copy_hot", TCP_HEADERS)
    received = found.stamps[:, found.milestones.index("received")] - found.stamps[:, 0]
    assert set(received.tolist()) == {arrives + to_tap + device + line + handler + line + napi + ack}


# -- losses -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", EMULATED)
def test_a_tap_of_few_frames_loses_segments_and_the_run_ends(model: str) -> None:
    wire, depth = ("100Mbit/s", 4) if model == "ne2k_pci" else ("4Gbit/s", 1)
    chosen = {"workload.size": 20_000, "workload.depth": depth, "host.tap_queue": 3, "host.wire_rate": wire}
    found = play(model, requests=20, **chosen)
    assert len(found.rows) == 20
    assert any("packets of streams were lost" in line for line in found.warnings)
    beside = {"workload.background": 20_000, "workload.background_depth": 2, "workload.background_from": "client",
              "host.tap_queue": 20}  # fmt: skip
    assert len(play(model, "rr", requests=5, **{"host.wire_rate": rate(model), **beside}).rows) == 5


@pytest.mark.parametrize(
    ("model", "ring"),
    [("bare-metal", {"device.rx_descriptors": 64}), ("vfio", {"device.rx_descriptors": 64}),
     ("vhost-user", {"device.rx_queue_size": 32})],
)  # fmt: skip
def test_a_ring_without_room_loses_segments_and_the_run_ends(model: str, ring: dict[str, Any]) -> None:
    found = play(model, **{"workload.size": 65536, "host.costs.guest_stack_rx": "60us", **ring})
    assert len(found.rows) == 40
    assert any("packets of streams were lost" in line for line in found.warnings)


@pytest.mark.parametrize(
    ("model", "chosen"),
    [("e1000", {"device.tx_descriptors": 48, "device.ethtool_gro": False}),
     ("vfio", {"device.tx_descriptors": 64, "device.ethtool_gro": False}),
     ("bare-metal", {"device.tx_descriptors": 64, "host.nic_gro": False})],
)  # fmt: skip
def test_an_acknowledgement_waits_where_the_queue_is_stopped(
    model: str, chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One poll acknowledges 32 pairs of segments, at two descriptors each; it is another that frees them."""
    waited = []

    def put(q: Fifo, item: int) -> bool:
        waited.append(item)
        return fifo_put(q, item)

    monkeypatch.setattr(tcp_receive, "put", put)
    engine = {"run.engine": "simpy", "run.warmup": 40}
    found = play(model, requests=100, **{"workload.size": 65536, **engine, **chosen})
    assert waited
    # None is lost for that: the sender's window is open at the end, and every second segment was acknowledged.
    assert each(found, "acks") == pytest.approx(each(found, "skbs") / 2, rel=0.1)
    assert found.dropped == 0


def stop_rtl8139(d: Any) -> bool:
    d.stopped = d.tx_tail != d.tx_head
    return bool(d.stopped)


def stop_pcnet(d: Any) -> bool:
    d.stopped = d.tx_full = d.dirty_tx != d.cur_tx
    return bool(d.stopped)


def stop_i82551(d: Any) -> bool:
    d.stopped = d.cbs_avail < 128
    return bool(d.stopped)


def stop_ne2k_pci(d: Any) -> bool:
    d.stopped = d.txing
    return bool(d.stopped)


@pytest.mark.parametrize(
    ("model", "module", "driver", "stop"),
    [("rtl8139", "rtl8139", "CpPrivate", stop_rtl8139), ("pcnet", "pcnet", "Pcnet32Private", stop_pcnet),
     ("i82551", "eepro100", "Nic", stop_i82551), ("ne2k_pci", "ne2k_pci", "EiDevice", stop_ne2k_pci)],
)  # fmt: skip
def test_what_waits_above_a_stopped_queue_goes_out_when_it_opens(
    model: str, module: str, driver: str, stop: Callable[[Any], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queues of these hardly ever stop, since QEMU sends at once. Here one does, with a packet on its way."""
    made: list[Any] = []
    there = import_module(f"iosim.models.{module}")
    original = getattr(there, driver)
    monkeypatch.setattr(there, driver, lambda *given: made.append(original(*given)) or made[-1])
    beside = {"workload.background": 3000, "workload.background_depth": 1, "workload.background_from": "client"}
    path = iosim.install(model, workload="rr", settings={"host.wire_rate": rate(model), **beside})
    d = made[0]
    while path.machine.window.completed < 3 or not stop(d):
        path.env.step()
    for _ in range(3):
        assert fifo_put(d.qdisc, acknowledgement(1, 0))
    sent = path.machine.counters.n[NAMES.index("wire_frames")]
    while path.machine.window.completed < 6:
        path.env.step()
    assert (d.qdisc.count, d.stopped) == (0, False)
    assert path.machine.counters.n[NAMES.index("wire_frames")] >= sent + 3


# -- beside requests, and between guests -------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_requests_beside_a_received_stream(model: str) -> None:
    beside = {"workload.background": 6000, "workload.background_from": "client", "workload.background_depth": 1}
    without, found = play(model, "rr", 20), play(model, "rr", 20, **beside)
    assert found.count("background_bytes") >= 60_000
    assert found.dropped == 0
    # Where an e1000 waits for its mitigation anyhow, a stream is nothing to it.
    assert model == "e1000" or found.latency["mean"].value > without.latency["mean"].value
    assert (found.stamps[:, -1] - found.stamps[:, 0] == found.latency_ps).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "gigabits"), [("e1000", 2.5), ("rtl8139", 0.36), ("i82551", 0.27), ("pcnet", 0.078), ("ne2k_pci", 0.0084)]
)
def test_from_guest_to_guest(model: str, gigabits: float) -> None:
    """46 frames a call cross the bridge; no frame, no wire. What the sender's vCPU does by itself limits it."""
    found = play(model, "tx", requests=8 if model == "ne2k_pci" else 40, **{"workload.size": 65536, **BETWEEN})
    assert found.bits_per_s.value / 1e9 == pytest.approx(gigabits, rel=0.05)
    assert each(found, "tap_packets") == pytest.approx(46, rel=0.05)
    assert (each(found, "frames"), found.count("wire_frames"), found.dropped) == (0, 0, 0)
    assert (found.stamps[:, -1] - found.stamps[:, 0] == found.latency_ps).all()


# -- settings ---------------------------------------------------------------------------------------------------


def test_a_vhost_user_buffer_for_gso_packets_has_the_packet_behind_its_header() -> None:
    """Without mergeable buffers the header has a descriptor of its own. (All packets were the first one once.)"""
    found = play("vhost-user", **{"device.mrg_rxbuf": False})
    assert len(set(found.rows.tolist())) == 40


# -- both engines -----------------------------------------------------------------------------------------------


def assert_identical(model: str, workload: str, chosen: dict[str, Any]) -> None:
    """Every time stamp, counter and busy time, or the same error."""
    results = []
    for engine in ("simpy", "compiled"):
        try:
            results.append(run(specify(model, workload=workload, settings={**chosen, "run.engine": engine})))
        except iosim.IosimError as error:
            results.append(str(error))
    one, two = results
    if isinstance(one, str) or isinstance(two, str):
        assert one == two
        return
    assert one.stamps.tolist() == two.stamps.tolist()
    assert one.rows.tolist() == two.rows.tolist()
    assert one.snapshots == two.snapshots


@st.composite
def drawn(draw: st.DrawFn) -> tuple[str, str, dict[str, Any]]:
    flag = st.booleans()
    model = draw(st.sampled_from(MODELS))
    between = model in EMULATED and draw(flag)
    workload = draw(st.sampled_from(["rr", "tx"])) if between else draw(st.sampled_from(["rr", "rx"]))
    chosen: dict[str, Any] = {
        "run.requests": draw(st.sampled_from([1, 20])),
        "run.seed": draw(st.integers(0, 2**63 - 1)),
        "workload.depth": draw(st.sampled_from([1, 4])),
        "host.cpus": draw(st.sampled_from([0, 2, 3])),
        "host.wire_rate": draw(st.sampled_from(["100Mbit/s", "1Gbit/s"])),
        "host.tap_queue": draw(st.sampled_from([3, 1000])),
        "host.nic_gro": draw(flag),
        **(BETWEEN if between else {}),
    }
    if workload == "rr":
        chosen["workload.background"] = draw(st.sampled_from([3000, 20_000]))
        chosen["workload.background_depth"] = draw(st.sampled_from([1, 4]))
        chosen["workload.background_from"] = draw(st.sampled_from(["guest", "client"]))
    else:
        chosen["workload.size"] = draw(st.sampled_from([1473, 9000, 65536]))
    if model in (*PHYSICAL, "vhost-user"):
        chosen["device.queues"] = draw(st.sampled_from([1, 3]))
        chosen["guest.vcpus"] = min(chosen["device.queues"], draw(st.sampled_from([1, 2])))
    if model in MERGING and model != "bare-metal":
        chosen["device.ethtool_gro"] = draw(flag)
    return model, workload, chosen


@pytest.mark.slow
@pytest.mark.skipif(not compiled_available(), reason="no compiled engine here")
def test_identical_on_both_engines() -> None:
    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(drawn())
    def check(one: tuple[str, str, dict[str, Any]]) -> None:
        assert_identical(*one)

    check()


@pytest.mark.skipif(not compiled_available(), reason="no compiled engine here")
@pytest.mark.parametrize("model", MODELS)
def test_a_stream_is_the_same_on_both_engines(model: str) -> None:
    assert_identical(model, "rx", {"run.requests": 20, "workload.size": fits(model), "workload.depth": 1})
