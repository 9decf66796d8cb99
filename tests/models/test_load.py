"""Offered load from idle to overload: what completes, what limits it, and what happens beyond capacity.

The rates are those of docs/background/load.md, which are checked here so: its tables are read, and played.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import test_depth_one as depth_one
from test_depth_one import COLD, FROM_HOST, HOST, POSTED, TO_HOST, VIRTIO_RECEIVE, VIRTIO_SEND, ps

import iosim
from iosim import model as registry
from iosim.host.packets import bytes_on_wire
from iosim.result import Result
from iosim.run import compiled_available
from iosim.window import DEVICE_RING

PAGE = (Path(__file__).parents[2] / "docs/background/load.md").read_text(encoding="utf-8")
REQUESTS = 4000
WARMUP = 1000
ROUNDED = 0.03
"""By so much may the page's figures be off."""
FLOOD = 1_200_000


def table(title: str) -> dict[str, list[str]]:
    """The rows of a section's table, by path."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:2] == "| "]
    return {name.strip("`"): cells for name, *cells in rows[2:]}


TX = table("Sending")


@dataclass(frozen=True)
class Receiving:
    """A row of the page's table, in packets/s."""

    capacity: float
    fall: float
    fallen: float
    flooded: float
    lost_at: tuple[str, ...]


RX = {
    path: Receiving(*map(float, cells[:4]), tuple(re.findall(r"`(\w+)`", cells[4])))
    for path, cells in table("Receiving").items()
}
QUICKER = ("virtio-net", "vhost-net", "vhost-user")
LIVELOCK = "ne2k_pci"
SURVIVE = [path for path in RX if path != LIVELOCK]


@cache
def play(path: str, workload: str, rate: float | None = None) -> Result:
    """A run at a rate, or of the closed loop: on the compiled engine, since there are many."""
    pytest.importorskip("llvmlite")
    model, settings = ("vfio", POSTED) if path == "vfio, posted" else (path, {})
    load = {} if rate is None else {"workload.rate": rate}
    settings = {"run.warmup": WARMUP, "run.engine": "compiled", **settings, **load}
    return iosim.simulate(model, workload=workload, requests=REQUESTS, settings=settings)


def everything_completes(result: Result, rate: float) -> bool:
    """Nothing lost, no backlog that grows, and as many done as a Poisson process of the rate has arrivals.

    At a level of 0.1 %: within 3.29 standard deviations, the square root of the number expected.
    """
    expected = rate * result.duration_ns / 1e9
    return result.warnings == [] and abs(result.measured - expected) < 3.29 * math.sqrt(expected)


def test_the_page_has_every_path() -> None:
    others = {"prodcons", "i82557b", "i82559er"}
    assert set(TX) == set(RX) == set(registry.names()) - others | {"vfio, posted"}


# -- sending ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TX)
class TestSending:
    """The application waits where the path is slow: nothing is lost on the way, no work is done in vain."""

    @pytest.mark.slow
    def test_below_capacity_all_is_sent(self, path: str) -> None:
        for part in (0.02, 0.5, 0.85):
            rate = part * float(TX[path][0])
            assert everything_completes(play(path, "tx", rate), rate)

    @pytest.mark.slow
    def test_beyond_capacity_it_stays_flat(self, path: str) -> None:
        capacity, thread = float(TX[path][0]), TX[path][1].strip("`")
        twice, four_times = (play(path, "tx", factor * capacity) for factor in (2, 4))
        assert twice.throughput.value == pytest.approx(capacity, rel=ROUNDED)
        assert four_times.throughput.value == pytest.approx(twice.throughput.value, rel=0.01)
        # The 32 packets of the closed loop are enough to reach it.
        assert twice.throughput.value == pytest.approx(play(path, "tx").throughput.value, rel=0.03)
        assert twice.saturated == four_times.saturated == [thread]
        assert any(line.startswith(f"{thread} is saturated: ") for line in twice.warnings)
        assert {queue for queue, lost in four_times.dropped_at.items() if lost} <= {"sender"}


def test_the_slower_back_end_lets_the_guest_send_more() -> None:
    """QEMU's is always at work and wants no kick; vhost's is told of each packet, and it and a poller tell of each."""
    virtio, vhost, poller = (play(path, "tx", 2 * float(TX[path][0])) for path in QUICKER)
    assert virtio.throughput.value > vhost.throughput.value
    kicks, interrupts = ([r.per_request(n).value for r in (virtio, vhost, poller)] for n in ("kicks", "interrupts"))
    assert kicks == pytest.approx([0, 1, 0], abs=0.01)
    assert interrupts == pytest.approx([0, 1, 1], abs=0.01)
    assert virtio.cpu_by_process["vcpu0"]["application"].value + shares(virtio)[1] == pytest.approx(2 / 3, abs=0.05)


# -- receiving --------------------------------------------------------------------------------------------------


def shares(result: Result) -> tuple[float, float]:
    """The application's part of its CPU, and that of the softirq, the interrupts' handlers and the wait for locks."""
    cpu = result.threads[0]
    parts = {name: share.value for name, share in result.cpu_by_process[cpu].items()}
    others = result.lock_wait[cpu].value
    others += sum(share for name, share in parts.items() if name not in ("application", "kvm idle", "cpu idle"))
    return parts["application"], others


class TestReceiving:
    @pytest.mark.slow
    @pytest.mark.parametrize("path", RX)
    def test_up_to_capacity_all_is_received(self, path: str) -> None:
        for part in (0.02, 0.5, 0.9, 1):
            rate = part * RX[path].capacity
            assert everything_completes(play(path, "rx", rate), rate)

    @pytest.mark.parametrize("path", SURVIVE)
    def test_above_it_the_application_starves(self, path: str) -> None:
        """Throughput falls since the softirq takes the application's time; the socket loses what it has no time for."""
        row = RX[path]
        before, fallen = play(path, "rx", row.capacity), play(path, "rx", row.fall)
        assert fallen.throughput.value == pytest.approx(row.fallen, rel=ROUNDED)
        assert fallen.throughput.value < 0.95 * before.throughput.value
        assert fallen.dropped_at["socket"] > 0.95 * fallen.dropped > 0
        assert fallen.threads[0] in fallen.saturated
        (application, others), (was, others_were) = shares(fallen), shares(before)
        assert application < was
        assert others > others_were
        # What an application gets through is its time: as much for each packet as before.
        ratio = fallen.throughput.value / before.throughput.value
        assert application / was == pytest.approx(ratio, rel=0.2)

    @pytest.mark.slow
    @pytest.mark.parametrize("path", SURVIVE)
    def test_in_a_flood_it_stays_flat(self, path: str) -> None:
        """Most is lost before anybody has worked on it: at queues outside of the guest."""
        row = RX[path]
        flood, twice = play(path, "rx", FLOOD), play(path, "rx", 2 * FLOOD)
        assert flood.throughput.value == pytest.approx(row.flooded, rel=ROUNDED)
        assert twice.throughput.value == pytest.approx(flood.throughput.value, rel=0.01)
        assert tuple(queue for queue, lost in flood.dropped_at.items() if lost) == row.lost_at
        assert flood.threads[0] in flood.saturated
        if "nic_ring" in row.lost_at:
            assert "host-softirq" in flood.saturated

    @pytest.mark.parametrize("path", ["vhost-net", "vhost-user", "vfio", "vfio, posted", "bare-metal"])
    def test_a_softirq_that_spends_its_budget_lets_the_application_run(self, path: str) -> None:
        """In the flood NAPI never ends, so there are hardly any interrupts; every 300 packets the socket is read."""
        fallen, flood = play(path, "rx", RX[path].fall), play(path, "rx", FLOOD)
        assert flood.per_request("interrupts").value < 0.01 < fallen.per_request("interrupts").value
        assert flood.throughput.value > fallen.throughput.value
        assert shares(flood)[0] > shares(fallen)[0]

    def test_a_saturated_main_loop_keeps_napi_from_spending_it(self) -> None:
        """virtio-net: polls end, since QEMU brings packets more slowly than the softirq takes them."""
        flood = play("virtio-net", "rx", FLOOD)
        assert "qemu-main" in flood.saturated
        assert flood.per_request("interrupts").value > 0.1
        assert shares(flood)[0] < 0.1

    @pytest.mark.parametrize("path", ["rtl8139", "pcnet", "i82551"])
    def test_more_packets_under_each_interrupt_help_until_the_lock_is_short(self, path: str) -> None:
        row = RX[path]
        fallen, between, flood = (play(path, "rx", rate) for rate in (row.fall, 4 * row.capacity, FLOOD))
        assert between.throughput.value > 2 * fallen.throughput.value
        interrupts = [result.per_request("interrupts").value for result in (fallen, between, flood)]
        assert interrupts[0] > 4 * interrupts[1] > 4 * interrupts[2]
        assert 0.55 < flood.lock_wait["vcpu0"].value < 0.7
        assert "qemu-main" in flood.saturated

    @pytest.mark.parametrize("rate", [RX[LIVELOCK].fall, FLOOD])
    def test_without_napi_it_is_a_livelock_and_the_error_names_it(self, rate: float) -> None:
        with pytest.raises(iosim.IosimError, match="overloaded: no request completed") as caught:
            play(LIVELOCK, "rx", rate)
        message = str(caught.value)
        assert "vcpu0 is saturated: " in message
        assert "application" not in message
        if rate < FLOOD:
            assert re.search(r"vcpu0 is saturated: ei_interrupt 9\d %", message)
            assert re.search(r"full queues: \d+ at the backlog of the guest's softirq", message)

    def test_shortly_before_the_livelock_the_handler_has_nearly_all(self) -> None:
        result = play(LIVELOCK, "rx", 1.3 * RX[LIVELOCK].capacity)
        assert result.throughput.value < 0.7 * RX[LIVELOCK].capacity
        assert result.cpu_by_process["vcpu0"]["ei_interrupt"].value > 0.93
        assert result.dropped_at["backlog"] > 0.8 * result.dropped


STREAM = {"workload.background": 3000, "workload.background_from": "client", "run.requests": 5}


class TestBesideAStream:
    """A stream never comes to its end by itself, as requests do: a run in which it takes all the time has to end."""

    @pytest.mark.slow
    def test_a_livelock_ends_the_run_and_the_error_names_it(self) -> None:
        chosen = {**STREAM, "host.cpus": 1, "host.timeslice": "100us", "host.tap_queue": 10}
        messages = set()
        for engine in ("simpy", *(["compiled"] if compiled_available() else [])):
            with pytest.raises(iosim.IosimError) as caught:
                iosim.simulate("vhost-net", settings={**chosen, "run.engine": engine})
            messages.add(str(caught.value))
        assert messages == {
            "vhost-net: overloaded: no request completed for 110 ms with 1 under way: the stream beside them "
            "leaves them nothing; host-softirq is saturated: host softirq 100 %; host CPUs are saturated: host-softirq "
            "100 %"
        }

    @pytest.mark.parametrize("sender", ["client", "guest"])
    def test_a_slow_wire_is_no_livelock(self, sender: str) -> None:
        """Longer than any patience between two requests, but nothing else happens in that time."""
        chosen = {**STREAM, "workload.background_from": sender, "host.wire_rate": "10kbit/s"}
        result = iosim.simulate("vhost-net", settings={**chosen, "run.warmup": 0})
        assert len(result.rows) == 5
        assert result.duration_ns > 4e9
        assert result.warnings == []


@pytest.mark.slow
def test_what_is_shared_may_be_what_is_short() -> None:
    """Threads that share CPUs, and frames that share the wire: none of them has to be busy all the time."""
    over = iosim.simulate("virtio-net", workload="tx", requests=3000, settings={"guest.vms": 3, "host.cpus": 2})
    assert over.saturated == ["host CPUs"]
    calls = {"workload.size": 65536, "host.wire_rate": "1Gbit/s"}
    slow = iosim.simulate("vhost-net", workload="tx", requests=300, settings=calls)
    assert slow.saturated == ["wire, outgoing"]
    assert slow.wire_busy["out"].value == pytest.approx(1, abs=0.001)
    # An acknowledgement of 66 and 24 bytes for each send call.
    assert slow.wire_busy["in"].value == pytest.approx(90 / bytes_on_wire(65536), rel=0.05)
    assert iosim.simulate("vhost-net", workload="rx", requests=300, settings=calls).saturated == ["wire, incoming"]
    paced = iosim.simulate("vhost-net", workload="rr", requests=500)
    # 84 bytes at 10 Gbit/s each way, once a round trip.
    each = 84 * 800e-12 * paced.throughput.value
    assert [paced.wire_busy[way].value for way in ("out", "in")] == pytest.approx([each, each], rel=0.01)


# -- what is shown ----------------------------------------------------------------------------------------------


def test_lost_packets_and_threads_are_accounted_for() -> None:
    result = play("virtio-net", "rx", FLOOD)
    first, last = result.snapshots[0], result.snapshots[-1]
    assert result.dropped == sum(result.dropped_at.values()) == last.dropped - first.dropped
    for thread, busy in result.cpu_busy.items():
        assert sum(e.value for e in result.cpu_by_process[thread].values()) == pytest.approx(busy.value, rel=1e-9)
        assert 0 <= result.cpu_polling[thread].value <= busy.value
        assert busy.value + result.lock_wait[thread].value <= 1 + 1e-9
    document = result.to_dict()
    assert document["saturated"] == ["vcpu0", "host-softirq", "qemu-main"]
    assert document["dropped_at"] == result.dropped_at


def test_a_poller_is_not_saturated_by_polling() -> None:
    idle = play("vhost-user", "rx", 9000)
    assert idle.cpu_busy["pmd"].value == pytest.approx(1)
    assert idle.cpu_polling["pmd"].value > 0.9
    assert idle.saturated == []
    halted = play("virtio-net", "rx", 100_000)
    assert 0.3 < halted.cpu_polling["vcpu0"].value < halted.cpu_by_process["vcpu0"]["kvm idle"].value


@pytest.mark.slow
@pytest.mark.parametrize(("path", "workload", "rate"), [
    ("vhost-net", "rx", 900_000),
    ("rtl8139", "rx", 150_000),
    ("i82551", "rx", 480_000),
    ("pcnet", "tx", 40_000),
    ("ne2k_pci", "rx", 13_000),
    ("bare-metal", "rx", 900_000),
    ("virtio-net", "rr", 900_000),
])  # fmt: skip
def test_both_engines_and_both_ways_to_keep_say_the_same_of_an_overload(path: str, workload: str, rate: float) -> None:
    """Requests, counters, what threads did, what was lost where, warnings; with summaries kept, the same figures."""
    pytest.importorskip("llvmlite")
    documents = []
    for engine, keep in (("simpy", "requests"), ("compiled", "requests"), ("compiled", "summary")):
        settings = {"workload.rate": rate, "run.engine": engine, "run.keep": keep}
        document = iosim.simulate(path, workload=workload, requests=600, settings=settings).to_dict()
        assert document.pop("engine") == engine
        assert document["settings"].pop("run.keep") == keep
        documents.append(document)
    assert documents[0]["warnings"]
    assert documents[0] == documents[1]
    assert documents[2].pop("breakdown_ns").keys() == documents[1].pop("breakdown_ns").keys()
    assert documents[2] == documents[1]


@pytest.mark.slow
def test_a_summary_of_an_overload_warns_where_one_request_outlives_a_hundred_thousand() -> None:
    """More are dropped while one waits than a summary has rows: they are used again, but for those under way."""
    pytest.importorskip("llvmlite")
    documents = []
    for keep in ("requests", "summary"):
        settings = {"workload.rate": 2_000_000, "run.engine": "compiled", "run.keep": keep}
        result = iosim.simulate("ne2k_pci", workload="tx", requests=8000, settings=settings)
        assert result.snapshots[-1].created > 150_000
        documents.append(result.to_dict())
    for key in ("warnings", "dropped_at", "throughput_per_s", "cpu_by_process"):
        assert documents[0][key] == documents[1][key]
    assert any("overloaded" in line for line in documents[1]["warnings"])


def test_a_receive_unit_that_is_started_twice_loses_packets_and_says_so() -> None:
    """i82551: RNR once more between its acknowledgement and the start; the next start goes back over packets not taken.

    They used to be forgotten, and the run stood still.
    """
    result = play("i82551", "rx", 480_000)
    assert result.measured == REQUESTS
    assert result.snapshots[-1].dropped_at[DEVICE_RING] > 0


# -- low load: the closed forms ---------------------------------------------------------------------------------

SPARSE = {
    "host.constant": True,
    "workload.rate": 500,
    "workload.arrivals": "constant",
    # Long enough to poll from one request to the next, as a closed loop does: a vCPU that sleeps pays its wake-up.
    "host.halt_poll_ns": "10ms",
}


def sparse_latency(model: str, **settings: object) -> int:
    """What test_depth_one's `latency` finds in a closed loop, in an open one that leaves 2 ms between requests."""
    result = iosim.simulate(model, requests=50, settings={"run.warmup": 40, **SPARSE, **settings})
    values = [int(value) for value in np.unique(result.latency_ps)]
    if model in ("virtio-net", "vhost-net"):
        # Every 33rd packet pays for the refill of the receive queue (see test_depth_one).
        assert values[1:] == [values[0] + 33 * ps(HOST, "driver_refill")]
    else:
        assert len(values) == 1, values
    return values[0]


CLOSED_FORMS: dict[str, Callable[[], None]] = {
    "vhost-net": depth_one.test_vhost_net,
    "virtio-net": depth_one.test_virtio_net,
    "e1000, mitigation off": depth_one.test_e1000_without_mitigation,
    "e1000": depth_one.test_e1000_outside_the_mitigation_window,
    "rtl8139": depth_one.test_rtl8139,
    "ne2k_pci": depth_one.test_ne2k_pci,
    "pcnet": depth_one.test_pcnet,
    "i82551": lambda: depth_one.test_eepro100("i82551"),
    "i82557b": lambda: depth_one.test_eepro100("i82557b"),
    "i82559er": lambda: depth_one.test_eepro100("i82559er"),
    "bare-metal": depth_one.test_bare_metal,
    "vfio, remapped": depth_one.test_vfio_remapped,
    "vfio, posted": depth_one.test_vfio_posted,
    "vfio, posted, asleep": depth_one.test_vfio_posted_to_a_sleeping_vcpu,
    "vhost-net, asleep": depth_one.test_sleeping_vcpu_pays_its_wake_up,
    "vhost-net, INTx": depth_one.test_vhost_net_with_intx,
    "virtio-net, INTx": lambda: depth_one.test_virtio_net_with_intx(False),
    "virtio-net, timer": depth_one.test_virtio_net_with_a_timer,
}


@pytest.mark.parametrize("path", CLOSED_FORMS)
def test_at_low_load_latency_is_the_closed_form(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of test_depth_one, written by hand there for a closed loop of depth 1, hold in the open loop."""
    monkeypatch.setattr(depth_one, "latency", sparse_latency)
    CLOSED_FORMS[path]()


def test_at_low_load_a_poller_is_late_by_less_than_two_iterations() -> None:
    """vhost-user: the sum of its steps, and until each of its two looks what is left of an iteration."""
    period = 50_000
    call = ps(HOST, "vhost_signal sys_write irq_injection")
    there = TO_HOST + 500_000 + ps(HOST, "pmd_nic pmd_vhost") + COLD + call
    guest = VIRTIO_RECEIVE + VIRTIO_SEND - ps(HOST, "vm_exit kvm_ioeventfd")
    back = ps(HOST, "pmd_vhost pmd_nic") + COLD + call + FROM_HOST
    refill = 33 * ps(HOST, "driver_refill")
    settings = {"run.warmup": 40, **SPARSE, "host.pmd_poll": f"{period // 1000}ns"}
    result = iosim.simulate("vhost-user", requests=50, settings=settings)
    late = result.latency_ps - (there + guest + back)
    late = np.where(late >= refill, late - refill, late)
    assert (late >= 0).all()
    assert (late < 2 * period).all()
