"""The tables on the pages that are made from the code; run this file to write them anew.

A page marks its place with ``<!-- table: NAME -->`` and ``<!-- end of table -->``; a test compares what stands between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from iosim import model as registry
from iosim.engine.distributions import Constant, LogNormal, Uniform
from iosim.host import costs, hosts
from iosim.host.units import show_time
from iosim.settings import GuestSettings, RunSettings, Settings, WorkloadSettings
from iosim.specification import CONSTANT_COSTS

DOCS = Path(__file__).parents[2] / "docs"
MARKED = re.compile(r"(<!-- table: (?P<name>[\w .-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

UNITS = {
    "workload.name": "name",
    "workload.size": "bytes",
    "workload.depth": "requests",
    "workload.flows": "flows",
    "workload.rate": "1/s",
    "workload.arrivals": "name",
    "workload.background": "bytes",
    "workload.background_depth": "send calls",
    "workload.background_from": "name",
    "workload.peer": "name",
    "workload.think_time": "time",
    "workload.peer_delay": "time",
    "run.requests": "requests",
    "run.warmup": "requests",
    "run.duration": "time",
    "run.seed": "number",
    "run.replication": "number",
    "run.engine": "name",
    "run.keep": "name",
    "guest.vcpus": "vCPUs",
    "guest.vms": "guests",
    "device.queues": "queue pairs",
    "device.hub": "on, off",
    "device.mmio": "on, off",
    "device.event_idx": "on, off",
    "device.packed": "on, off",
    "device.vectors": "vectors",
    "device.disable_modern": "on, off",
    "device.ioeventfd": "on, off",
    "device.tx": "name",
    "device.tx_timer": "time",
    "device.poll_us": "µs",
    "device.indirect": "on, off",
    "device.mrg_rxbuf": "on, off",
    "device.csum": "on, off",
    "device.host_tso4": "on, off",
    "device.vnet_hdr": "on, off",
    "device.ethtool_tso": "on, off",
    "device.ethtool_gso": "on, off",
    "device.guest_csum": "on, off",
    "device.guest_tso4": "on, off",
    "device.ethtool_gro": "on, off",
    "device.mitigation": "on, off",
    "device.interrupts": "name",
    "device.poll": "on, off",
    "device.tx_descriptors": "descriptors",
    "device.rx_descriptors": "descriptors",
    "device.tx_queue_size": "descriptors",
    "device.rx_queue_size": "descriptors",
    "device.queue_size": "descriptors",
    "device.tx_burst": "packets",
    "device.burst": "packets",
    "device.pmd_threads": "threads",
    "device.packet_weight": "packets",
    "device.kp": "items",
    "device.kc": "items",
    **{f"device.{name}": "cost" for name in ("wp", "wc", "np", "nc", "sp", "sc", "rearm")},
}
PROPERTIES = {
    "halt_poll_ns": ("time", "KVM's module parameter: how long a halted vCPU polls at most; 0 turns polling off"),
    "halt_poll_grow": ("factor", "`halt_poll_ns_grow`: what the time grows by after a halt too long for it"),
    "halt_poll_grow_start": ("time", "`halt_poll_ns_grow_start`: where it grows from"),
    "halt_poll_shrink": ("divisor", "`halt_poll_ns_shrink`: what it shrinks by after a long halt; 0: back to nothing"),
    "apicv": ("on, off", "virtual APIC and posted interrupts: no exit to deliver an interrupt or to end an MSI"),
    "pv_eoi": ("on, off", "`kvm_pv_eoi`: without APICv, no exit to end an MSI while nothing else is pending"),
    "cpus": ("CPUs", "CPUs that all threads of the host share; 0 gives each thread one of its own"),
    "timeslice": ("time", "after which a thread hands a shared CPU to another of its priority"),
    "pin": ("thread:cpus, ...", hosts.LOAD_MEANINGS["pin"]),
    "hogs": ("threads", hosts.LOAD_MEANINGS["hogs"]),
    "wakeup_granularity": ("time, none", hosts.LOAD_MEANINGS["wakeup_granularity"]),
    "wire_rate": ("bit rate", "of the wire between host and client"),
    "wire_propagation": ("time", "from one end of the wire to the other, switch included"),
    "nic_dma": ("time", "from a frame's last bit until it is in memory, for who polls the NIC's ring"),
    "pmd_poll": ("time", "one iteration of a poll-mode driver's loop that finds nothing; at least 1 ns"),
    "nic_tso": ("on, off", "`ethtool -K tso`: the NIC segments GSO packets; off: the host's or guest's kernel does"),
    "nic_gso": ("on, off", "`ethtool -K gso`: for the host's own sockets, as `bare-metal`'s; no guest's packets"),
    "nic_gro": ("on, off", "`ethtool -K gro`: its driver merges the segments of a stream that came together"),
    "qdisc": ("fifo, fq", "of the NIC: one queue for all, or one for each flow in turn (fq_codel without CoDel)"),
    "tap_queue": ("frames", "that the tap's queue towards the guest holds (`tx_queue_len`)"),
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: object) -> str:
    return f"`{text}`"


def default(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def group(settings: type[Settings], prefix: str) -> str:
    rows = []
    for name, field in settings.model_fields.items():
        key = f"{prefix}.{name}"
        assert field.description, f"{key} has no description"
        rows.append([code(key), default(field.default), UNITS[key], field.description])
    return table(("setting", "default", "unit", "meaning"), rows)


def properties() -> str:
    host = hosts.load(hosts.DEFAULT)
    rows = []
    for name, kind in hosts.PROPERTY_PARSERS.items():
        unit, meaning = PROPERTIES[name]
        value = host.properties[name].value
        if kind == "time":
            shown = show_time(value).replace(" ", "")
        elif kind == "rate":
            shown = f"{value / 1e9:g}Gbit/s"
        else:
            shown = default(value)
        rows.append([code(f"host.{name}"), shown, unit, meaning])
    rows.append([code("host.pin"), "none", *PROPERTIES["pin"]])
    rows.append([code("host.hogs"), "0", *PROPERTIES["hogs"]])
    rows.append([code("host.wakeup_granularity"), "none", *PROPERTIES["wakeup_granularity"]])
    meaning = "replace every cost by its mean: nothing is random"
    rows.append([code(f"host.{CONSTANT_COSTS}"), "false", "true, false", meaning])
    return table(("setting", "default", "unit", "meaning"), rows)


def amount(cost: hosts.Cost) -> str:
    """A cost in ns, as it is drawn."""
    if cost.name == "wire":
        return "by `host.wire_rate`"
    d = cost.distribution
    parts = []
    if isinstance(d, LogNormal):
        parts.append(f"{d.mean / 1000:.0f} ± {d.spread / 1000:.0f}")
    elif isinstance(d, Uniform):
        parts.append(f"{d.low / 1000:.0f} to {d.high / 1000:.0f}")
    else:
        assert isinstance(d, Constant), d
        if d.value or not cost.per_byte:
            parts.append(f"{d.value / 1000:.0f}")
    if cost.per_byte:
        parts.append(f"{cost.per_byte / 1000:.3f} a byte")
    return ", ".join(parts)


def composite() -> str:
    host = hosts.load(hosts.DEFAULT)
    rows = []
    for number, name in enumerate(costs.NAMES[: costs.HOST_COSTS]):
        cost = host.cost(name)
        # A published figure is named by its section; the section's own source stands in published.toml.
        sources = [code(section) for section in hosts.published() if f"{section}: " in cost.source]
        source = f"{cost.kind}: {', '.join(sources)}" if sources else cost.kind
        rows.append([code(name), amount(cost), costs.MEANINGS[number], source])
    return table(("cost", "ns", "meaning", "kind and source"), rows)


def cost_settings() -> str:
    names = costs.NAMES[: costs.HOST_COSTS]
    return table(
        ("setting", "meaning"),
        ([code(f"host.costs.{name}"), costs.MEANINGS[number]] for number, name in enumerate(names)),
    )


TABLES: dict[str, Callable[[], str]] = {
    "workload": lambda: group(WorkloadSettings, "workload"),
    "run": lambda: group(RunSettings, "run"),
    "guest": lambda: group(GuestSettings, "guest"),
    "properties": properties,
    "host costs": cost_settings,
    "composite": composite,
    **{
        f"device {name}": (lambda name=name: group(registry.find(name).settings, "device"))  # type: ignore[misc]
        for name in registry.names()
    },
}


def renewed(text: str) -> str:
    """A page's text with its tables as they should be."""
    return MARKED.sub(lambda m: f"{m[1]}{TABLES[m['name']]()}{m[3]}", text)


if __name__ == "__main__":
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = renewed(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrote {page}")
