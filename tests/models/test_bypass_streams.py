"""Sent streams on the paths that bypass the host's kernel: TSO in the guest's own NIC, or the poll-mode process's."""

from __future__ import annotations

from collections.abc import Generator
from functools import cache
from typing import Any

import numpy as np
import pytest

import iosim
from iosim.guest import ixgbe
from iosim.host import ixgbe as nic
from iosim.host import nic_transmit
from iosim.host.frames import MSS, TCP_HEADERS
from iosim.host.hosts import load
from iosim.host.network import Network
from iosim.host.packets import bytes_on_wire, payload
from iosim.run import run as run_specification
from iosim.specification import specify

PHYSICAL = ("bare-metal", "vfio")
MODELS = (*PHYSICAL, "vhost-user")
GSO = 45 * MSS
"""A send call that is one GSO packet."""
GSO_SWITCH = {"bare-metal": "host.nic_gso", "vfio": "device.ethtool_gso", "vhost-user": "device.ethtool_gso"}
"""On bare metal the NIC's switches are the host's."""
HOW = ("tso", "software", "neither")


def chosen(model: str, how: str) -> dict[str, Any]:
    """Who segments: the NIC, the stack above the driver, or TCP itself."""
    return {
        "tso": {},
        "software": {"host.nic_tso": False},
        "neither": {"host.nic_tso": False, GSO_SWITCH[model]: False},
    }[how]


def run(model: str, workload: str = "tx", requests: int = 40, **settings: Any) -> iosim.Result:
    fixed = {"run.engine": "simpy", "run.warmup": 20, "host.constant": True}
    return iosim.simulate(model, workload=workload, requests=requests, settings={**fixed, **settings})


@cache
def alone(model: str, size: int, how: str) -> iosim.Result:
    """One send call at a time."""
    return run(model, **{"workload.size": size, "workload.depth": 1, **chosen(model, how)})


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("size", [1473, GSO, 65536])
def test_frames_on_the_wire_and_stages(model: str, how: str, size: int) -> None:
    """Whoever segments: a send call is ceil(size / MSS) frames, and the stages of each sum to its latency."""
    result = alone(model, size, how)
    assert result.count("wire_frames") == 40 * -(-size // MSS)
    assert (np.diff(result.stamps, axis=1) >= 0).all()
    assert (result.stamps[:, -1] - result.stamps[:, 0] == result.latency_ps).all()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", HOW)
def test_every_byte_is_on_the_wire_once(model: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def put_on_wire(net: Network, row: int) -> Generator[Any, Any, None]:
        sizes.append(payload(row))
        yield from original(net, row)

    original = nic_transmit.put_on_wire
    for module in (nic, nic_transmit):
        monkeypatch.setattr(module, "put_on_wire", put_on_wire)
    result = run(model, requests=5, **{"workload.size": 65536, "run.warmup": 0, **chosen(model, how)})
    # What was sent while the run came to its end is there in full as well.
    per_call = [GSO, 65536 - GSO] if how == "tso" else [MSS] * 45 + [65536 - GSO]
    assert len(result.rows) == 5 <= len(sizes) // len(per_call)
    assert sizes == per_call * (len(sizes) // len(per_call))


def exits(result: iosim.Result) -> float:
    return sum(each["value"] for each in result.to_dict()["per_request"]["exits"].values())


@pytest.mark.parametrize("how", HOW)
def test_to_send_is_no_exit(how: str) -> None:
    """Bare metal has none at all; a guest none for a register or a kick, whatever a send call is cut into."""
    assert exits(alone("bare-metal", GSO, how)) == 0
    for model in ("vfio", "vhost-user"):
        result = alone(model, GSO, how)
        assert result.count("exits.EPT_MISCONFIG") == result.count("exits.IO_INSTRUCTION") == 0
        assert result.count("kicks") == 0
    posted = {"device.interrupts": "posted", "host.apicv": True, "host.wire_rate": "100Gbit/s"}
    assert exits(run("vfio", **{"workload.size": GSO, **posted, **chosen("vfio", how)})) < 1


def writes_of_tdt(model: str, how: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """How many times the driver moves the tail for a send call."""
    tails: list[int] = []

    def write_tdt(queue: nic.IxgbeQueue, tail: int) -> Generator[Any, Any, None]:
        tails.append(tail)
        yield from original(queue, tail)

    original = nic.write_tdt
    monkeypatch.setattr(ixgbe, "write_tdt", write_tdt)
    run(model, **{"workload.size": GSO, "workload.depth": 1, "run.warmup": 0, **chosen(model, how)})
    return len(tails) / 40


@pytest.mark.parametrize("model", PHYSICAL)
@pytest.mark.parametrize(("how", "writes"), [("tso", 1), ("software", 1), ("neither", 45)])
def test_writes_of_tdt_for_a_send_call(
    model: str, how: str, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GSO packet: one. Segments from skb_gso_segment come as a list (xmit_more): one. TCP's own: one each."""
    assert writes_of_tdt(model, how, monkeypatch) == writes


def descriptors(how: str, size: int = GSO) -> list[tuple[int, int, int]]:
    """The descriptors up to the end of the first packet: command, length, the upper word before it is written back."""
    path = iosim.install("vfio", workload="tx", settings={"workload.size": size, **chosen("vfio", how)})
    queue = path.machine.parts["device"].queues[0]
    while queue.tdt == 0:
        path.env.step()
    words = [
        tuple(path.machine.memory.u32[((queue.tx_ring + i * nic.DESCRIPTOR) >> 2) + word] for word in (2, 3))
        for i in range(queue.tdt)
    ]
    ends = [i for i, (lower, _) in enumerate(words) if lower & nic.TXD_CMD_EOP]
    return [(lower & ~nic.TXD_LENGTH, lower & nic.TXD_LENGTH, upper) for lower, upper in words[: ends[0] + 1]]


def test_descriptors_of_a_gso_packet() -> None:
    """A context with the lengths, headers, fragments of 32 KiB in pieces of 16 KiB (ixgbe_tso, ixgbe_tx_map)."""
    context, *data = descriptors("tso")
    assert context == (nic.TXD_CMD_DEXT | nic.TXD_DTYP_CTXT, 0, MSS << 16 | 32 << 8)
    assert [length for _, length, _ in data] == [TCP_HEADERS, 16384, 16384, 16384, GSO - 3 * 16384]
    for command, _, upper in data:
        assert command & nic.TXD_CMD_TSE
        assert command & nic.TXD_DTYP_DATA == nic.TXD_DTYP_DATA
        assert upper == GSO << nic.TXD_PAYLEN_SHIFT | nic.TXD_POPTS_TXSM


def test_descriptors_of_a_segment() -> None:
    """Without TSO: a context for the checksum, headers, data."""
    context, *data = descriptors("software")
    assert context == (nic.TXD_CMD_DEXT | nic.TXD_DTYP_CTXT, 0, 0)
    assert [length for _, length, _ in data] == [TCP_HEADERS, MSS]
    assert not any(command & nic.TXD_CMD_TSE for command, _, _ in data)


def per_byte(name: str, size: int) -> int:
    return size * round(load("composite").cost(name).per_byte * 1024) >> 10


def ps(steps: str) -> int:
    return sum(round(load("composite").cost(name).distribution.mean) for name in steps.split())


@pytest.mark.parametrize("size", [2 * MSS, 32769, GSO])
def test_depth_one_in_closed_form(size: int) -> None:
    """A send call on bare metal: the system call with its copy, the stack, the driver, the frames on the wire."""
    steps = ps("sys_sendmsg guest_stack_tx nic_tx") + per_byte("copy_hot", size)
    assert set(alone("bare-metal", size, "tso").latency_ps) == {steps + bytes_on_wire(size) * 800}


def test_segmented_in_software_the_list_is_one_doorbell() -> None:
    """All 45 segments go through the driver before the NIC has the first."""
    each = ps("gso_segment nic_tx")
    steps = ps("sys_sendmsg guest_stack_tx") + per_byte("copy_hot", GSO)
    assert set(alone("bare-metal", GSO, "software").latency_ps) == {steps + 45 * each + bytes_on_wire(GSO) * 800}


def test_the_process_copies_a_gso_packet_once() -> None:
    """Its headers once, with the data; a segment has its own. The acknowledgement comes by one copy."""
    for how, packets in (("tso", 1), ("software", 45), ("neither", 45)):
        assert alone("vhost-user", GSO, how).per_request("copied_bytes").value == GSO + (packets + 1) * TCP_HEADERS


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rate", [1, 10])
def test_a_wire_that_is_busy_carries_what_the_headers_leave(model: str, rate: int) -> None:
    """941 Mbit/s of 1 Gbit/s, 9.41 of 10: 1448 bytes of each 1538."""
    result = run(model, requests=200, **{"workload.size": GSO, "host.wire_rate": f"{rate}Gbit/s"})
    assert result.bits_per_s.value == pytest.approx(rate * 0.9415e9, rel=1e-3)


def test_cutting_late_saves_time() -> None:
    """But a process that polls sends the first segments while the guest makes the others: less of it is on the way."""
    for model in PHYSICAL:
        means = [alone(model, GSO, how).latency["mean"].value for how in HOW]
        assert means[0] < means[1] < means[2]
    tso, software, neither = (alone("vhost-user", GSO, how) for how in HOW)
    assert software.latency["mean"].value < tso.latency["mean"].value < neither.latency["mean"].value
    fast = {"workload.size": GSO, "host.wire_rate": "100Gbit/s"}
    rates = [run("vhost-user", **fast, **chosen("vhost-user", how)).bits_per_s.value for how in HOW]
    assert rates[0] > rates[1] > rates[2]


@pytest.mark.parametrize(
    ("model", "off"),
    [
        ("vfio", {"device.ethtool_tso": False}),
        ("vhost-user", {"device.ethtool_tso": False}),
        ("vhost-user", {"device.host_tso4": False}),
    ],
)
def test_the_nic_without_tso_is_as_the_guest_without(model: str, off: dict[str, Any]) -> None:
    """host.nic_tso=off: the passed-through NIC has none, the process offers none."""
    result = run(model, **{"workload.size": GSO, "workload.depth": 1, **off})
    assert result.stamps.tolist() == alone(model, GSO, "software").stamps.tolist()


def test_without_checksums_no_tso_and_the_guest_sums() -> None:
    """VIRTIO_NET_F_HOST_TSO4 needs VIRTIO_NET_F_CSUM."""
    result = run("vhost-user", **{"workload.size": GSO, "workload.depth": 1, "device.csum": False})
    more = result.latency["mean"].value - alone("vhost-user", GSO, "software").latency["mean"].value
    assert result.per_request("copied_bytes").value == GSO + 46 * TCP_HEADERS
    assert more > 0


@pytest.mark.parametrize("model", MODELS)
def test_requests_beside_a_stream_wait_for_its_window(model: str) -> None:
    """One ring, first come, first served: 16 send calls of 64 KiB at 10 Gbit/s are 0.9 ms."""
    result = run(model, "rr", 20, **{"workload.background": 65536})
    assert result.latency["mean"].value == pytest.approx(16 * bytes_on_wire(65536) * 0.8, rel=0.1)
    assert result.per_request("background_bytes").value > 65536
    assert (np.diff(result.stamps, axis=1) >= 0).all()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("model", "ring"),
    [("vfio", {"device.tx_descriptors": 64}), ("vhost-user", {"device.tx_queue_size": 32})],
)
def test_a_small_ring_stops_and_opens(model: str, ring: dict[str, Any], how: str) -> None:
    result = run(model, **{"workload.size": GSO, "workload.depth": 16, **ring, **chosen(model, how)})
    # A GSO packet at the boundary of the window may have been begun before it.
    assert result.count("wire_frames") == pytest.approx(40 * 45, abs=90)
    assert result.dropped == 0


# -- bad values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "workload", "settings", "message"),
    [
        ("bare-metal", "tx", {"device.ethtool_tso": False}, "unknown setting 'device.ethtool_tso'"),
        ("vfio", "tx", {"device.csum": False}, "unknown setting 'device.csum'"),
        ("vhost-user", "tx", {"device.vnet_hdr": False}, "unknown setting 'device.vnet_hdr'"),
        ("prodcons", "tx", {"workload.background": 9}, "workload.background: prodcons carries no TCP stream; the"),
    ],
)  # fmt: skip
def test_wrong_values_in_one_line(model: str, workload: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(iosim.IosimError) as caught:
        specify(model, workload=workload, settings=settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# -- the compiled engine ------------------------------------------------------------------------------------------


def same(model: str, workload: str, settings: dict[str, Any]) -> None:
    one, two = (
        run_specification(specify(model, workload=workload, settings={**settings, "run.engine": engine}))
        for engine in ("simpy", "compiled")
    )
    assert one.stamps.tolist() == two.stamps.tolist()
    assert one.snapshots == two.snapshots
    assert {**one.to_dict(), "engine": ""} == {**two.to_dict(), "engine": ""}


@pytest.mark.parametrize("model", ["bare-metal", "vhost-user"])
def test_engines_agree(model: str) -> None:
    pytest.importorskip("iosim.engine.compiled.code")
    for how in HOW:
        same(model, "tx", {"run.requests": 60, "workload.size": 65536, **chosen(model, how)})


@pytest.mark.slow
def test_engines_agree_with_several_queue_pairs() -> None:
    pytest.importorskip("iosim.engine.compiled.code")
    small = {"device.tx_descriptors": 64}
    same("vfio", "tx", {"run.requests": 100, "workload.size": 65536, "device.queues": 2, **small})
