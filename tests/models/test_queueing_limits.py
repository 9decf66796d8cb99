"""Paths that reduce to one queue, against the formulas of queueing theory: M/M/1, M/D/1, M/G/1.

All costs are zero but one, packets arrive as a Poisson process, and what takes the time serves one packet after the
other, in the order of arrival, and never stops while there is one. So the mean wait is Pollaczek and Khinchine's

    W = rho * S * (1 + c²) / (2 * (1 - rho)),

with S the mean service time, c its standard deviation over its mean (1 if exponential, 0 if constant), and rho the
arrival rate times S (Kleinrock, Queueing Systems 1, 5.62; Cooper, Introduction to Queueing Theory, 5.8). What else
such a path has (batches, polls, vacations between them) shifts work, and with costs of zero takes none: a packet's
service begins when the server has finished the one before. That is checked packet by packet, exactly; the formulas,
which are about means, at a level of significance of 0.1 % for each comparison (`SIGNIFICANCE`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

import iosim
from iosim import statistics
from iosim.engine.distributions import Constant, Distribution, Exponential, Gamma, LogNormal, Uniform
from iosim.host.hosts import Host, load
from iosim.result import Result

SIGNIFICANCE = 0.001
SERVICE = 10_000_000.0
"""Mean service time in ps."""

GENERAL: dict[str, Distribution] = {
    "M/M/1": Exponential(SERVICE),
    "M/D/1": Constant(SERVICE),
    "M/U/1": Uniform(0.0, 2 * SERVICE),
    "M/G/1, gamma": Gamma(SERVICE, SERVICE / 2),
    "M/G/1, log-normal": LogNormal(SERVICE, 1.5 * SERVICE),
}


@dataclass(frozen=True)
class Server:
    """Where a path reduces to one queue.

    Args:
        model, workload: The path.
        cost: The one cost that is not zero.
        queued, begun, done: The milestones at which a packet is in the queue, its service begins, and its service is
            over; ``done`` empty where packets leave in batches, so that only the wait is that of the queue.
        thread: Who serves.
    """

    model: str
    workload: str
    cost: str
    queued: str
    begun: str
    done: str
    thread: str


SERVERS = {
    # The application reads one packet at a time from the socket, whose buffer holds 277; interrupt and softirq put
    # them there and take no time, nor does a halt.
    "application": Server("bare-metal", "rx", "sys_recvmsg", "arrived", "dequeued", "delivered", "cpu0"),
    # handle_rx takes packets from the tap one by one. It announces them in batches, so they leave in batches, but a
    # batch delays no service: the worker is at work until the tap is empty.
    "vhost worker, rx": Server("vhost-net", "rx", "vhost_packet", "arrived", "rx_seen", "", "vhost"),
    # handle_tx likewise, from the transmit ring; 256 descriptors are room enough for these loads.
    "vhost worker, tx": Server("vhost-net", "tx", "vhost_packet", "created", "tx_seen", "", "vhost"),
    # The vCPU's own thread is in QEMU until the packet is on its way; the next sendmsg comes after that.
    "QEMU on the vCPU": Server("e1000", "tx", "qemu_e1000_packet", "created", "sent", "processed", "vcpu0"),
    # The NIC sends one frame after the other, all of a length: 130 bytes with what Ethernet adds. 512
    # descriptors wait for it.
    "wire": Server("bare-metal", "tx", "", "created", "processed", "on_wire", ""),
}
WIRE_RATE = f"{130 * 8 / (SERVICE / 1e12):.0f}bit/s"
SOFTWARE = [name for name in SERVERS if name != "wire"]
LOADS = (0.3, 0.6, 0.9)
LONG = 300_000


@cache
def only(cost: str, service: Distribution) -> Host:
    """A host on which everything is free but one cost."""
    host = load("composite")
    costs = [replace(c, distribution=service if c.name == cost else Constant(0.0), per_byte=0.0) for c in host.costs]
    return replace(host, costs=tuple(costs))


def play(server: Server, service: Distribution, load: float, requests: int, **more: object) -> Result:
    settings = {
        "workload.rate": load * 1e12 / service.mean,
        "host.wire_rate": "1000Tbit/s" if server.cost else WIRE_RATE,
        "host.wire_propagation": "0ns",
        "run.warmup": requests // 10,
        "run.engine": "compiled" if requests > 5000 else "simpy",
        **more,
    }
    host = only(server.cost, service)
    return iosim.simulate(server.model, workload=server.workload, host=host, requests=requests, settings=settings)


def at(result: Result, milestone: str) -> npt.NDArray[np.int64]:
    return np.asarray(result.stamps[:, result.milestones.index(milestone)])


def waits(server: Server, result: Result) -> npt.NDArray[np.int64]:
    """The time each packet waited for its service, ps."""
    return at(result, server.begun) - at(result, server.queued)


def formula(service: Distribution, load: float) -> float:
    """Pollaczek-Khinchine: the mean wait in ps."""
    return load * service.mean * (1 + (service.std / service.mean) ** 2) / (2 * (1 - load))


def differs(waited: npt.NDArray[np.int64], expected: float) -> bool:
    """Whether the mean of successive waits is not as expected, by the run's own intervals."""
    estimate = statistics.mean(waited.astype(np.float64), confidence=1 - SIGNIFICANCE)
    assert estimate.low is not None
    assert estimate.high is not None
    return not estimate.low <= expected <= estimate.high


# -- packet by packet -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVERS)
def test_a_service_begins_with_the_packet_or_with_the_end_of_the_one_before(name: str) -> None:
    """Lindley's recursion, to the picosecond: no batch, poll, interrupt or halt delays a service. 70 % load."""
    server = SERVERS[name]
    constant = not server.done or not server.cost
    service: Distribution = Constant(SERVICE) if constant else Gamma(SERVICE, SERVICE / 2)
    result = play(server, service, 0.7, 2000)
    queued, begun = at(result, server.queued), at(result, server.begun)
    done = begun + int(SERVICE) if not server.done else at(result, server.done)
    assert (begun[1:] == np.maximum(queued[1:], done[:-1])).all()
    assert (begun[1:] > queued[1:]).sum() > 1000
    assert result.warnings == []


# -- means ------------------------------------------------------------------------------------------------------


@cache
def long_run(name: str, service: str, load: float) -> Result:
    pytest.importorskip("llvmlite")
    result = play(SERVERS[name], GENERAL[service], load, LONG)
    assert result.dropped == 0
    return result


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("service", GENERAL)
def test_the_wait_of_a_socket_is_that_of_the_formula(service: str, load: float) -> None:
    result = long_run("application", service, load)
    assert not differs(waits(SERVERS["application"], result), formula(GENERAL[service], load))


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("service", ["M/M/1", "M/D/1"])
@pytest.mark.parametrize("name", [name for name in SOFTWARE if name != "application"])
def test_the_wait_for_a_thread_is_that_of_the_formula(name: str, service: str, load: float) -> None:
    result = long_run(name, service, load)
    assert not differs(waits(SERVERS[name], result), formula(GENERAL[service], load))


@pytest.mark.parametrize("load", LOADS)
def test_the_wait_for_the_wire_is_that_of_frames_of_one_length(load: float) -> None:
    result = long_run("wire", "M/D/1", load)
    assert not differs(waits(SERVERS["wire"], result), formula(Constant(SERVICE), load))


class TestTheComparisonCanFail:
    """The same data against formulas and paths that are wrong: each is noticed."""

    @pytest.mark.parametrize("load", LOADS)
    def test_constant_service_is_no_exponential_one(self, load: float) -> None:
        waited = waits(SERVERS["application"], long_run("application", "M/M/1", load))
        assert differs(waited, formula(Constant(SERVICE), load))
        waited = waits(SERVERS["application"], long_run("application", "M/D/1", load))
        assert differs(waited, formula(Exponential(SERVICE), load))

    @pytest.mark.parametrize("load", [0.3, 0.6])
    def test_a_load_that_is_five_percent_off(self, load: float) -> None:
        waited = waits(SERVERS["application"], long_run("application", "M/D/1", load))
        assert differs(waited, formula(Constant(SERVICE), 1.05 * load))
        assert differs(waited, formula(Constant(SERVICE), 0.95 * load))

    def test_a_server_that_must_wake_up_first(self) -> None:
        """A tenth of a service for the wake-up: an M/G/1 queue with setup times, whose wait is longer."""
        pytest.importorskip("llvmlite")
        server = SERVERS["application"]
        result = play(server, Constant(SERVICE), 0.3, LONG, **{"host.costs.guest_wakeup": "1us"})
        assert differs(waits(server, result), formula(Constant(SERVICE), 0.3))


# -- more than means --------------------------------------------------------------------------------------------


def share_differs(happened: npt.NDArray[np.bool_], expected: float) -> bool:
    return differs(happened.astype(np.int64), expected)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("service", ["M/M/1", "M/D/1", "M/G/1, log-normal"])
def test_an_arrival_finds_the_server_idle_as_often_as_it_is(service: str, load: float) -> None:
    """Poisson arrivals see time averages: P(no wait) = 1 - rho, for any service."""
    result = long_run("application", service, load)
    assert not share_differs(waits(SERVERS["application"], result) == 0, 1 - load)
    busy = result.cpu_by_process["cpu0"]["application"]
    assert busy.value == pytest.approx(load, rel=0.02)


def found_by_arrivals(server: Server, result: Result) -> npt.NDArray[np.int64]:
    """How many packets each finds there, of which one is in service."""
    arrived, done = at(result, server.queued), at(result, server.done)
    return np.arange(len(arrived)) - np.searchsorted(done, arrived, side="right")


@pytest.mark.parametrize("load", LOADS)
def test_the_depth_of_the_queue_is_geometric(load: float) -> None:
    """M/M/1: P(N >= k) = rho^k (Kleinrock, 3.23)."""
    depth = found_by_arrivals(SERVERS["application"], long_run("application", "M/M/1", load))
    for k in (1, 2, 5):
        assert not share_differs(depth >= k, load**k)
    assert share_differs(depth >= 2, load**3)


@pytest.mark.parametrize("name", ["application", "QEMU on the vCPU", "wire"])
def test_littles_law(name: str) -> None:
    """L = lambda * W: the mean number in the system, as an outside observer counts it, is throughput times latency."""
    result = long_run(name, "M/D/1", 0.6)
    arrived, done = at(result, "created"), at(result, SERVERS[name].done)
    rng = np.random.default_rng(5)
    looks = rng.integers(arrived[1000], arrived[-1000], LONG)
    number = np.searchsorted(arrived, looks) - np.searchsorted(done, looks)
    expected = result.throughput.value * result.latency["mean"].value / 1e9
    assert number.mean() == pytest.approx(expected, rel=0.01)
