"""The studies on docs/background/offloads.md: run this file to write their tables anew.

Small requests (1 byte each way, Poisson, 1000 a second) while the guest sends a TCP stream (64 KiB a send call, 16 of
them unacknowledged) through vhost-net and the same NIC; and while it receives one. Then such a stream by itself, from
guest to guest.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from tables import table

import iosim

PAGE = Path(__file__).parents[2] / "docs" / "background" / "offloads.md"
MARKED = re.compile(r"(<!-- (?P<name>(?:receive |guests )?study) -->\n).*?(<!-- end of study -->)", re.DOTALL)

RATES = ("1Gbit/s", "10Gbit/s")
QDISCS = ("fifo", "fq")
SWITCHES: dict[str, dict[str, Any]] = {
    "all on": {},
    "host NIC: tso, gso off": {"host.nic_tso": False, "host.nic_gso": False},
    "guest: tso off": {"device.ethtool_tso": False},
    "guest: tso, gso off": {"device.ethtool_tso": False, "device.ethtool_gso": False},
}
SETTINGS: dict[str, Any] = {
    "workload.background": 65536,
    "workload.rate": 1000,
    # A vCPU that polls in HLT burns a CPU for nothing, and the figures for CPU would be that.
    "host.halt_poll_ns": "0ns",
    "run.duration": "400ms",
}
RECEIVE_SWITCHES: dict[str, dict[str, Any]] = {
    "all on": {},
    "host NIC: gro off": {"host.nic_gro": False},
    "guest_tso4=off": {"device.guest_tso4": False},
    "guest_csum=off": {"device.guest_csum": False},
    "guest: gro off": {"device.ethtool_gro": False},
    "host NIC and guest: gro off": {"host.nic_gro": False, "device.ethtool_gro": False},
}
PATIENT = "1Gbit/s, interrupts 100 µs late"
WIRES: dict[str, dict[str, Any]] = {
    "1Gbit/s": {"host.wire_rate": "1Gbit/s"},
    PATIENT: {"host.wire_rate": "1Gbit/s", "host.costs.nic_rx_delay": "100us"},
    "10Gbit/s": {"host.wire_rate": "10Gbit/s"},
}


GUESTS_SWITCHES: dict[str, dict[str, Any]] = {
    "all on": {},
    "host NIC: tso, gso, gro off": {"host.nic_tso": False, "host.nic_gso": False, "host.nic_gro": False},
    "guest_tso4=off": {"device.guest_tso4": False},
    "guest_csum=off": {"device.guest_csum": False},
    "guests: tso off": {"device.ethtool_tso": False},
    "guests: tso, gso off": {"device.ethtool_tso": False, "device.ethtool_gso": False},
}
BACK_END = {"vhost-net": "vhost", "virtio-net": "qemu-main"}


@cache
def guests(model: str, switch: str) -> iosim.Result:
    fixed = {"workload.peer": "guest", "workload.size": 65536, "host.halt_poll_ns": "0ns"}
    settings = {**fixed, "run.requests": 3000, "run.engine": "compiled", **GUESTS_SWITCHES[switch]}
    return iosim.simulate(model, workload="tx", settings=settings)


@cache
def receive(model: str, wire: str, switch: str) -> iosim.Result:
    stream = {"workload.background_from": "client"}
    settings = {**SETTINGS, **stream, **WIRES[wire], **RECEIVE_SWITCHES[switch]}
    return iosim.simulate(model, workload="rr", settings=settings)


@cache
def run(rate: str, qdisc: str, switch: str) -> iosim.Result:
    settings = {**SETTINGS, "host.wire_rate": rate, "host.qdisc": qdisc, **SWITCHES[switch]}
    return iosim.simulate("vhost-net", workload="rr", settings=settings)


def gigabits(result: iosim.Result) -> float:
    """Payload of the stream, Gbit/s."""
    return result.count("background_bytes") * 8 / result.duration_ns


def busy(result: iosim.Result, thread: str) -> float:
    """Time a thread ran for each KiB of the stream, ns."""
    return result.cpu_busy[thread].value * result.duration_ns / (result.count("background_bytes") / 1024)


def study() -> str:
    rows = []
    for rate in RATES:
        for qdisc in QDISCS:
            for switch in SWITCHES:
                r = run(rate, qdisc, switch)
                threads = [busy(r, name) for name in ("vcpu0", "vhost", "host-softirq")]
                rows.append([
                    rate.replace("Gbit/s", " Gbit/s"),
                    f"`{qdisc}`",
                    switch,
                    f"{r.latency['mean'].value / 1000:.0f}",
                    f"{r.latency['p99'].value / 1000:.0f}",
                    f"{gigabits(r):.2f}",
                    *(f"{each:.0f}" for each in threads),
                    f"{sum(threads):.0f}",
                ])  # fmt: skip
    head = ("wire", "qdisc", "switches", "request µs", "p99 µs", "stream Gbit/s", "vCPU", "vhost", "softirq", "sum")
    return table(head, rows)


def receive_study() -> str:
    rows = []
    for model in ("vhost-net", "virtio-net"):
        back_end = "vhost" if model == "vhost-net" else "qemu-main"
        for wire in WIRES:
            for switch in RECEIVE_SWITCHES:
                r = receive(model, wire, switch)
                threads = [busy(r, name) for name in ("vcpu0", back_end, "host-softirq")]
                rows.append([
                    f"`{model}`",
                    wire.replace("Gbit/s", " Gbit/s"),
                    switch,
                    f"{r.latency['mean'].value / 1000:.0f}",
                    f"{r.latency['p99'].value / 1000:.0f}",
                    f"{gigabits(r):.2f}",
                    *(f"{each:.0f}" for each in threads),
                    f"{sum(threads):.0f}",
                ])  # fmt: skip
    names = ("path", "wire", "switches", "request µs", "p99 µs", "stream Gbit/s", "vCPU", "back end", "softirq", "sum")
    return table(names, rows)


def busy_with_call(result: iosim.Result, thread: str) -> float:
    """Time a thread ran for each KiB of the stream whose send calls are the requests, ns."""
    return result.cpu_busy[thread].value * 1e9 / (result.throughput.value * 64)


def guests_study() -> str:
    rows = []
    for model, back_end in BACK_END.items():
        for switch in GUESTS_SWITCHES:
            r = guests(model, switch)
            names = [f"vm{guest}-{name}" for name in ("vcpu0", back_end) for guest in (0, 1)]
            threads = [busy_with_call(r, name) for name in (names[0], names[2], names[3], names[1])]
            rows.append([
                f"`{model}`",
                switch,
                f"{r.bits_per_s.value / 1e9:.1f}",
                f"{r.per_request('stream.tap_packets').value:.0f}",
                f"{r.per_request('stream.skbs').value:.1f}",
                *(f"{each:.0f}" for each in threads),
                f"{sum(threads):.0f}",
            ])  # fmt: skip
    names = ["path", "switches", "Gbit/s", "packets a call", "to TCP", "sender", "its back end", "back end", "receiver"]
    return table((*names, "sum"), rows)


def renewed(text: str) -> str:
    """The page's text with its tables as they should be."""
    tables = {"study": study, "receive study": receive_study, "guests study": guests_study}
    return MARKED.sub(lambda m: f"{m[1]}{tables[m['name']]()}{m[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
