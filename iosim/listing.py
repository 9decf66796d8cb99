"""Tables of what there is: a host's numbers with their sources, a model's settings; and a sweep's points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iosim.host import costs, hosts
from iosim.host.hosts import Host
from iosim.host.units import show_time
from iosim.model import Model
from iosim.settings import GuestSettings, RunSettings, Settings, WorkloadSettings
from iosim.specification import guest_settings

if TYPE_CHECKING:
    from iosim.engine.distributions import Distribution
    from iosim.sweep import Sweep

GROUPS = (("workload", WorkloadSettings), ("run", RunSettings))


def _plain(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


# -- hosts ------------------------------------------------------------------------------------------------------


def host_table(host: Host) -> RenderableType:
    """Each cost and property of a host: value, kind, source, and what it stands for."""
    table = _plain("cost", "value", "kind", "source", "what it is")
    meanings = dict(zip(costs.NAMES, costs.MEANINGS, strict=True))
    sources: dict[str, str] = {}
    for cost in host.costs:
        origin = f" (from {cost.origin})" if cost.origin not in (host.name, "setting") else ""
        names: list[str] = []
        for source in cost.source.split(" | "):
            name, colon, text = source.partition(": ")
            if colon:
                sources[name] = text
            names.append(name if colon or not names else "")
        meaning = f"{meanings[cost.name]}; {cost.note}" if cost.note else meanings[cost.name]
        said = ", ".join(dict.fromkeys(name for name in names if name))
        table.add_row(
            cost.name, _amount(cost.distribution, cost.per_byte), cost.kind, Text(said + origin), Text(meaning)
        )
    properties = _plain("property", "value", "kind", "source", "what it is")
    for name, prop in host.properties.items():
        properties.add_row(
            name,
            _property(name, prop.value),
            prop.kind,
            Text(prop.source),
            Text(hosts.PROPERTY_MEANINGS[name]),
        )
    listed = [Text(f"{name}: {text}") for name, text in sources.items()]
    return Group(Text(f"{host.title}\n{host.describe()}\n"), table, Text(), properties, Text("\nsources"), *listed)


def host_dict(host: Host) -> dict[str, Any]:
    """The same as a JSON document: means and spreads in ns."""
    return {
        "host": host.name,
        "title": host.title,
        "sources": host.describe(),
        "costs": {
            c.name: {
                "mean_ns": c.distribution.mean / 1000,
                "std_ns": c.distribution.std / 1000,
                "per_byte_ns": c.per_byte / 1000,
                "kind": c.kind,
                "source": c.source,
                "note": c.note,
                "origin": c.origin,
            }
            for c in host.costs
        },
        "properties": {
            name: {"value": _property(name, p.value), "kind": p.kind, "source": p.source, "origin": p.origin}
            for name, p in host.properties.items()
        },
    }


def _amount(dist: Distribution, per_byte: float) -> str:
    text = show_time(dist.mean, 4)
    if dist.std:
        text += f" ±{show_time(dist.std, 2)}"
    if per_byte:
        return f"{per_byte:.3g} ps/byte" if dist.mean == 0 else f"{text} + {per_byte:.3g} ps/byte"
    return text


def _property(name: str, value: float | bool | str) -> str:
    kind = hosts.PROPERTY_PARSERS[name]
    if isinstance(value, str):
        return value
    if kind == "time":
        return show_time(value, 4)
    if kind == "rate":
        return f"{value / 1e9:g} Gbit/s"
    if kind == "bool":
        return "on" if value else "off"
    return str(value)


# -- settings ---------------------------------------------------------------------------------------------------


def setting_rows(model: Model) -> Iterator[tuple[str, str, str]]:
    """Every setting that a run of the model knows: name, default, meaning."""
    guest = guest_settings(model)
    for prefix, group in (*GROUPS, ("guest", GuestSettings), ("device", model.settings)):
        for name, field in group.model_fields.items():
            if group is not GuestSettings or name in guest:
                yield f"{prefix}.{name}", _default(group, name), field.description or ""
    host = hosts.load(hosts.DEFAULT)
    for name, prop in host.properties.items():
        yield f"host.{name}", _property(name, prop.value), hosts.PROPERTY_MEANINGS[name]
    yield "host.constant", "off", "replace every cost by its mean"
    yield "host.pin", "none", hosts.LOAD_MEANINGS["pin"]
    yield "host.hogs", "0", hosts.LOAD_MEANINGS["hogs"]
    yield "host.wakeup_granularity", "none", hosts.LOAD_MEANINGS["wakeup_granularity"]
    for cost in host.costs:
        meaning = costs.MEANINGS[costs.NAMES.index(cost.name)]
        yield f"host.costs.{cost.name}", _amount(cost.distribution, cost.per_byte), meaning


def _default(group: type[Settings], name: str) -> str:
    value = group.model_fields[name].default
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    annotation = str(group.model_fields[name].annotation)
    if "int" in annotation and name in ("think_time", "peer_delay"):
        return show_time(value)
    return str(value)


def settings_table(model: Model) -> RenderableType:
    """Every setting of a model, with its default and its meaning."""
    table = _plain("setting", "default", "meaning")
    for name, default, meaning in setting_rows(model):
        table.add_row(name, default, Text(meaning))
    return table


# -- sweeps -----------------------------------------------------------------------------------------------------


def sweep_table(sweep: Sweep, most: int = 40) -> RenderableType:
    """The points of a sweep: what was varied, latency, throughput, kicks; at most ``most`` rows of it."""
    rows = sweep.table.to_pylist()
    keys = [key for key, _ in sweep.specification["axes"]]
    varied = [key for key in keys if len({str(row.get(_column(key))) for row in rows}) > 1 or key == "model"]
    table = _plain(*varied, "mean", "p99", "throughput", "kicks", "exits to QEMU")
    for row in rows[:most]:
        if row["latency_mean_ns"] is None:
            table.add_row(*(str(row.get(_column(key))) for key in varied), str(row.get("error") or "-"))
            continue
        table.add_row(
            *(str(row.get(_column(key))) for key in varied),
            show_time(row["latency_mean_ns"] * 1000, 4),
            show_time(row["latency_p99_ns"] * 1000, 4),
            f"{row['throughput_per_s']:.0f} /s",
            f"{row['kicks']:.2f}",
            f"{row['userspace_exits']:.2f}",
        )
    lines: list[RenderableType] = [table]
    if len(rows) > most:
        lines.append(Text(f"... and {len(rows) - most} more points in the file"))
    lines += [Text(f"warning: {line}") for line in sweep.warnings]
    return Group(*lines)


def _column(key: str) -> str:
    from iosim.sweep import column

    return column(key)
