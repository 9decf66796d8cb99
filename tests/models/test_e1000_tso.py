"""Streams over the e1000: TSO as QEMU does it, segment by segment, in the write of TDT and on the vCPU's thread."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import iosim
from iosim.host.e1000 import REGISTER_NAMES, TXD_CMD_DEXT, TXD_CMD_EOP, TXD_CMD_TSE, TXD_DTYP_D, TXD_LENGTH
from iosim.host.frames import MSS, TCP_HEADERS
from iosim.host.hosts import load
from iosim.run import run as run_specification
from iosim.specification import specify

GSO = 45 * MSS
TSO: dict[str, Any] = {}
SOFTWARE = {"device.ethtool_tso": False}
NEITHER = {"device.ethtool_tso": False, "device.ethtool_gso": False}


def run(workload: str = "tx", requests: int = 40, **settings: Any) -> iosim.Result:
    fixed = {"run.engine": "simpy", "run.warmup": 20, "host.constant": True}
    return iosim.simulate("e1000", workload=workload, requests=requests, settings={**fixed, **settings})


@cache
def alone(size: int, *, how: str = "tso") -> iosim.Result:
    """One send call at a time."""
    chosen = {"tso": TSO, "software": SOFTWARE, "neither": NEITHER}[how]
    return run(**{"workload.size": size, "workload.depth": 1, **chosen})


def frames(size: int) -> int:
    """Frames of a GSO packet: QEMU sends an empty segment after the last that is full.

    process_tx_desc resets the buffer to the headers after each full segment, and at the packet's end sends what is in
    it unless that is less than the headers.
    """
    return size // MSS + 1


def test_frames_are_as_measured() -> None:
    """A packet of whole segments has an empty frame behind it, one with a rest has none; and one write of TDT each."""
    text = resources.files("iosim.models").joinpath("anchors/e1000_tso.toml").read_text(encoding="utf-8")
    measured = tomllib.loads(text)["file_served"]
    assert measured["of_these_followed_by_an_empty_frame"] == measured["gso_packets_of_whole_segments"] > 0
    assert measured["of_these_followed_by_an_empty_frame_too"] == 0 < measured["gso_packets_with_a_rest"]
    for segments in (2, 22, 45):
        assert alone(segments * MSS).count("wire_frames") == 40 * (segments + 1)
        assert alone(segments * MSS - 1).count("wire_frames") == 40 * segments
    packets = measured["packets_of_the_connection"] + measured["packets_besides"]
    assert 1 <= measured["tdt_writes"] / packets < 1.03 < measured["frames_of_the_connection"] / packets
    assert writes_of_tdt({"workload.size": GSO, "workload.depth": 1}) == [1] * 20


@pytest.mark.parametrize("size", [1473, 2 * MSS, 2 * MSS + 1, 30_000, 32768 + 4, GSO - 1, GSO])
def test_a_gso_packet_is_one_write_of_tdt_and_its_segments_are_qemu_s(size: int) -> None:
    result = alone(size)
    assert result.count("wire_frames") == 40 * frames(size)
    # Each segment is a packet to the tap, written by itself.
    assert result.per_request("syscalls.writev").value == frames(size)
    assert (np.diff(result.stamps, axis=1) >= 0).all()
    assert (result.stamps[:, -1] - result.stamps[:, 0] == result.latency_ps).all()
    # Read from the guest: the headers once and the data. Written to the tap: all with their headers.
    # The acknowledgement comes in by two copies.
    copied = size + TCP_HEADERS + size + frames(size) * TCP_HEADERS + 2 * TCP_HEADERS
    assert result.per_request("copied_bytes").value == copied


def installed(settings: dict[str, Any]) -> iosim.Installed:
    return iosim.install("e1000", workload="tx", **{key.replace(".", "__"): value for key, value in settings.items()})


def writes_of_tdt(settings: dict[str, Any], calls: int = 20) -> list[int]:
    """How many times the driver moves the tail, for each of some send calls."""
    path = installed({"host.constant": True, **settings})
    device = path.machine.parts["device"]
    done = []
    while path.machine.window.completed < 4:
        path.env.step()
    device.tracing = True
    for i in range(4, 4 + calls):
        before = device.trace.count(TDT)
        while path.machine.window.completed <= i:
            path.env.step()
        done.append(device.trace.count(TDT) - before)
    return done


TDT = REGISTER_NAMES.index("TDT") << 1 | 1


@pytest.mark.parametrize(("how", "writes"), [(TSO, 1), (SOFTWARE, 1), (NEITHER, 45)])
def test_writes_of_tdt_for_a_send_call(how: dict[str, Any], writes: int) -> None:
    """A GSO packet: one. Segments from skb_gso_segment come as a list (xmit_more): one. TCP's own: one each."""
    counts = writes_of_tdt({"workload.size": GSO, "workload.depth": 1, **how})
    assert counts == [writes] * len(counts)


def descriptors(size: int, settings: dict[str, Any]) -> list[tuple[int, int]]:
    """The descriptors of the first send call: command bits and length."""
    path = installed({"workload.size": size, **settings})
    e = path.machine.parts["device"]
    while path.machine.window.completed < 1:
        path.env.step()
    lower = [path.machine.memory.u32[((e.tx_ring + i * 16) >> 2) + 2] for i in range(e.tx_size)]
    ends = [i for i, word in enumerate(lower) if word & TXD_CMD_EOP]
    return [(word & ~0xFFFFF, word & TXD_LENGTH) for word in lower[: ends[0] + 1]]


def test_descriptors_of_a_gso_packet() -> None:
    """Context, headers, fragments of 32 KiB in pieces of 4 KiB, and 4 bytes by themselves (e1000_tx_map)."""
    written = descriptors(GSO, TSO)
    context, data = TXD_CMD_DEXT | TXD_CMD_TSE, TXD_CMD_DEXT | TXD_DTYP_D | TXD_CMD_TSE
    assert written[0] == (context, GSO & 0xFFFF)
    lengths = [length for _, length in written[1:]]
    assert lengths == [TCP_HEADERS] + 15 * [4096] + [GSO - 15 * 4096 - 4, 4]
    assert all(command & data == data for command, _ in written[1:])


def test_descriptors_of_a_segment() -> None:
    """Without TSO: a context for the checksum, headers, data."""
    written = descriptors(GSO, SOFTWARE)
    assert written[0] == (TXD_CMD_DEXT, 0)
    assert [length for _, length in written[1:]] == [TCP_HEADERS, MSS]
    assert not any(command & TXD_CMD_TSE for command, _ in written)


STEPS = (
    "sys_sendmsg guest_stack_tx driver_xmit vm_exit kvm_mmio_decode kvm_run_return qemu_dispatch qemu_e1000_register"
)
SEGMENT = "qemu_e1000_packet qemu_net_queue sys_write tap_write bridge nic_tx"


def per_byte(name: str, size: int) -> int:
    return size * round(load("composite").cost(name).per_byte * 1024) >> 10


def ps(steps: str) -> int:
    return sum(round(load("composite").cost(name).distribution.mean) for name in steps.split())


@pytest.mark.parametrize("segments", [2, 7, 45])
def test_depth_one_in_closed_form(segments: int) -> None:
    """Everything is on one thread, one after the other; the wire works beside, and has the last segment left to send.

    Each frame is on the wire before the next is written. The last byte is in a full segment; the empty one behind it is
    nobody's.
    """
    size = segments * MSS
    descriptors = 2 + size // 4096 + (size % 4096 > 8)
    checksum = per_byte("qemu_checksum", MSS + TCP_HEADERS - 14)
    full = ps(SEGMENT) + checksum + per_byte("copy_hot", MSS + TCP_HEADERS)
    copied = (segments - 1) * per_byte("copy_cold", MSS) + per_byte("copy_cold", MSS + TCP_HEADERS)
    wire = (MSS + TCP_HEADERS + 24) * 800
    expected = (
        ps(STEPS)
        + per_byte("copy_hot", size)
        + descriptors * ps("qemu_e1000_descriptor")
        + segments * full
        + copied
        + wire
    )
    assert set(alone(size).latency_ps) == {expected}


def test_the_vcpu_is_busy_with_what_qemu_does() -> None:
    """Segmenting is the vCPU's time: more than everything else together, and most of a send call's life."""
    result = run(requests=60, **{"workload.size": GSO})
    busy = result.to_dict()["cpu_busy"]
    assert busy["vcpu0"]["value"] > 0.95
    assert busy["qemu-main"]["value"] < 0.05
    qemu = alone(GSO).to_dict()["breakdown_ns"]["device copies, writev(tap)"]["mean"]["value"]
    assert qemu > 0.9 * alone(GSO).latency["mean"].value
    # Per segment what QEMU and the host's kernel spend on it, to the last ns.
    per_segment = ps(SEGMENT) + per_byte("qemu_checksum", 1500) + per_byte("copy_hot", 1514)
    assert qemu * 1000 == pytest.approx(45 * (per_segment + per_byte("copy_cold", MSS)), rel=0.02)


def test_segmenting_in_the_guest_costs_more_than_in_qemu_and_exits_no_more() -> None:
    tso, software, neither = (alone(GSO, how=how) for how in ("tso", "software", "neither"))
    assert tso.latency["mean"].value < software.latency["mean"].value < neither.latency["mean"].value
    exits = [result.per_request("exits.EPT_MISCONFIG").value for result in (tso, software, neither)]
    assert exits[0] == exits[1]
    assert exits[2] > exits[0] + 44


def test_virtio_leaves_to_the_nic_what_the_e1000_does_by_itself() -> None:
    """One packet through ring, tap and bridge against 46: the stream is faster by a multiple."""
    stream = {"workload.size": GSO}
    fast = iosim.simulate("virtio-net", workload="tx", requests=60, settings={"run.engine": "simpy", **stream})
    assert fast.bits_per_s.value > 3 * run(requests=60, **stream).bits_per_s.value


def test_a_request_beside_a_stream() -> None:
    """The request's frame after a GSO packet has its last 4 bytes by themselves; it arrives as ever."""
    result = run("rr", requests=30, **{"workload.background": 65536})
    assert result.per_request("background_bytes").value > 65536
    assert (np.diff(result.stamps, axis=1) >= 0).all()
    alone_rr = run("rr", requests=30)
    assert result.latency["mean"].value > 2 * alone_rr.latency["mean"].value


def test_a_ring_that_a_gso_packet_almost_fills() -> None:
    """48 descriptors: one packet of 19 leaves room for another, two do not; the queue stops and opens."""
    small = run(**{"workload.size": GSO, "workload.depth": 16, "device.tx_descriptors": 48})
    large = run(**{"workload.size": GSO, "workload.depth": 16})
    assert small.count("wire_frames") == pytest.approx(large.count("wire_frames"), rel=0.1)
    assert small.throughput.value < large.throughput.value


@st.composite
def drawn(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    workload = draw(st.sampled_from(["tx", "rr"]))
    chosen: dict[str, Any] = {
        "run.requests": draw(st.sampled_from([20, 60])),
        "run.seed": draw(st.integers(0, 2**63 - 1)),
        "device.ethtool_tso": draw(st.booleans()),
        "device.ethtool_gso": draw(st.booleans()),
        "device.tx_descriptors": draw(st.sampled_from([48, 256])),
        "device.mitigation": draw(st.booleans()),
        "device.hub": draw(st.booleans()),
        "host.nic_tso": draw(st.booleans()),
        "host.qdisc": draw(st.sampled_from(["fifo", "fq"])),
        "host.wire_rate": draw(st.sampled_from(["1Gbit/s", "10Gbit/s"])),
        "host.cpus": draw(st.sampled_from([0, 2])),
        "host.tap_queue": draw(st.sampled_from([1, 1000])),
        "workload.depth": draw(st.sampled_from([1, 4])),
    }
    if workload == "tx":
        chosen["workload.size"] = draw(st.sampled_from([1473, 2 * MSS, 32768, GSO, 65536]))
    else:
        chosen["workload.background"] = draw(st.sampled_from([1, MSS, 9000, 65536]))
        chosen["workload.background_depth"] = draw(st.sampled_from([1, 8]))
    return workload, chosen


def same(workload: str, chosen: dict[str, Any]) -> None:
    one, two = (
        run_specification(specify("e1000", workload=workload, settings={**chosen, "run.engine": engine}))
        for engine in ("simpy", "compiled")
    )
    assert one.stamps.tolist() == two.stamps.tolist()
    assert one.snapshots == two.snapshots
    assert {**one.to_dict(), "engine": ""} == {**two.to_dict(), "engine": ""}


@pytest.mark.parametrize("how", [TSO, SOFTWARE])
def test_engines_agree(how: dict[str, Any]) -> None:
    pytest.importorskip("iosim.engine.compiled.code")
    same("tx", {"run.requests": 40, "workload.size": 65536, **how})


@pytest.mark.slow
def test_engines_agree_whatever_the_settings() -> None:
    pytest.importorskip("iosim.engine.compiled.code")

    @hypothesis_settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(drawn())
    def check(chosen: tuple[str, dict[str, Any]]) -> None:
        same(*chosen)

    check()
