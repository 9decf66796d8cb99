"""Host files: what each cost of the catalogue amounts to on a host, and where every number comes from.

A host file is TOML (see models/hosts/composite.toml). A cost is given directly, or worked out from published figures:
``of`` minus what that measurement contains besides, times the ``share`` that is this cost's. So no cost is counted
twice, and a figure that is published stands in one place only, models/anchors/published.toml.

A file of one machine holds that machine's numbers; what it lacks is borrowed from the composite and reported.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from iosim.engine.distributions import Constant, Distribution, Exponential, LogNormal, Uniform, constant
from iosim.engine.distributions import distribution as parse_distribution
from iosim.errors import IosimError, unknown
from iosim.host import costs
from iosim.host.units import TIME_PS, parse_rate_bits, parse_time

DEFAULT: Final = "composite"
KINDS: Final = ("primary", "quoted", "memory", "split assumed", "assumed")
_SHAPES: Final = {"value", "mean", "spread", "low", "high", "distribution", "unit"}
_KEYS: Final = _SHAPES | {"of", "minus", "share", "per_byte", "per_byte_of", "per_bytes", "source", "kind", "note"}


@dataclass(frozen=True)
class Cost:
    """One primitive cost of a host.

    Args:
        name: Its name in the catalogue.
        distribution: In ps.
        per_byte: ps for each byte, besides.
        source: Where the number comes from.
        kind: ``primary``, ``quoted``, ``memory``, ``split assumed`` (an assumed share of a whole) or ``assumed``.
        note: What the number stands for.
        origin: The host the number belongs to (another one's where it is borrowed), or ``setting``.
    """

    name: str
    distribution: Distribution
    per_byte: float
    source: str
    kind: str
    note: str
    origin: str


@dataclass(frozen=True)
class Property:
    """One property of a host: its value in iosim's units (ps, bit/s, a count, a truth value), and its source."""

    name: str
    value: int | float | bool | str
    source: str
    kind: str
    origin: str


@dataclass(frozen=True)
class Host:
    """A host: its costs and properties, each with its source."""

    name: str
    title: str
    composite: bool
    costs: tuple[Cost, ...]
    properties: Mapping[str, Property]

    def cost(self, name: str) -> Cost:
        """Return a cost by its name."""
        for item in self.costs:
            if item.name == name:
                return item
        raise unknown("cost", name, [c.name for c in self.costs])

    def describe(self) -> str:
        """Return the line that every output carries: composite or not, how many numbers are assumed or borrowed."""
        total = len(self.costs)
        assumed = sum(c.kind in ("assumed", "memory") for c in self.costs)
        split = sum(c.kind == "split assumed" for c in self.costs)
        borrowed = sum(c.origin not in (self.name, "setting") for c in self.costs)
        given = sum(c.origin == "setting" for c in self.costs)
        parts = [f"{assumed} of {total} costs assumed", f"{split} split from a measured whole by assumption"]
        if borrowed:
            parts.append(f"{borrowed} borrowed from {DEFAULT}")
        if given:
            parts.append(f"{given} given by settings")
        if self.composite:
            parts.insert(0, "composite")
        name = "" if self.name == DEFAULT else f"{self.name}: "
        return f"{name}{', '.join(parts)}"

    def constant(self) -> Host:
        """Return the host with each cost replaced by its mean."""
        return replace(self, costs=tuple(replace(c, distribution=constant(c.distribution)) for c in self.costs))


PROPERTY_PARSERS: Final = {
    "halt_poll_ns": "time",
    "halt_poll_grow": "count",
    "halt_poll_grow_start": "time",
    "halt_poll_shrink": "count",
    "apicv": "bool",
    "pv_eoi": "bool",
    "cpus": "count",
    "timeslice": "time",
    "wire_rate": "rate",
    "wire_propagation": "time",
    "nic_dma": "time",
    "pmd_poll": "time",
    "nic_tso": "bool",
    "nic_gso": "bool",
    "nic_gro": "bool",
    "qdisc": "choice",
    "tap_queue": "count",
}


PROPERTY_MEANINGS: Final = {
    "halt_poll_ns": "longest time KVM polls for a halted vCPU before its thread sleeps; 0: it sleeps at once",
    "halt_poll_grow": "factor by which the polling time grows after a short halt",
    "halt_poll_grow_start": "polling time it begins to grow from",
    "halt_poll_shrink": "divisor by which it shrinks after a long halt; 0: back to no polling",
    "apicv": "APICv with posted interrupts: no exit to deliver an interrupt or for an EOI",
    "pv_eoi": "paravirtual EOI: no exit for the EOI of a message while no other interrupt is pending",
    "cpus": "CPUs that all threads of the host share; 0: one for each thread",
    "timeslice": "time after which a thread hands a shared CPU on",
    "wire_rate": "bit rate of the wire between host and client",
    "wire_propagation": "delay of the wire",
    "nic_dma": "from a frame's last bit until a poller of the NIC's ring can see it",
    "pmd_poll": "one iteration of a poll-mode driver's loop in which it finds nothing",
    "nic_tso": "ethtool -K tso: the host's NIC segments GSO packets; off: the host's kernel does, or the guest's",
    "nic_gso": "ethtool -K gso of the host's NIC: for the host's own sockets, as bare-metal's; no guest's packets",
    "nic_gro": "ethtool -K gro of the host's NIC: its driver merges the segments of a stream that came together",
    "qdisc": "queueing discipline of the host's NIC: fifo, or fq (a queue for each flow, in turn)",
    "tap_queue": "packets the tap's queue holds before it drops",
}
LOAD_MEANINGS: Final = {
    "pin": "CPUs that threads may run on (thread:cpus, ...): vcpu0:0,vhost:0-1 or vcpu*:0; others run on any",
    "hogs": "threads hog-0, hog-1, ... that always want to run, as vCPUs of other guests",
    "wakeup_granularity": "CFS: lead in virtual runtime above which a thread is preempted by one that wakes up",
}
"""Settings of a run that belong to no host: how its CPUs are shared out, and with whom."""
QDISCS: Final = ("fifo", "fq")
LIMITS: Final = {"cpus": 1024, "tap_queue": 1_000_000, "halt_poll_grow": 1000, "halt_poll_shrink": 1000}
SHORTEST_TIMESLICE: Final = 1_000_000
"""ps: a shorter slice would be all switching."""


def parse_property(name: str, value: object, where: str) -> int | float | bool | str:
    """Return a property's value in iosim's units: ps, bit/s, a count, a truth value or a name."""
    kind = PROPERTY_PARSERS[name]
    if kind == "time":
        time = parse_time(value, where)
        if name == "timeslice" and time < SHORTEST_TIMESLICE:
            raise IosimError(f"{value!r} is too short a slice; give 1us or more", where)
        return time
    if kind == "rate":
        return parse_rate_bits(value, where)
    if kind == "choice":
        if value not in QDISCS:
            raise unknown("qdisc", str(value), QDISCS, where)
        return str(value)
    if kind == "bool":
        if not isinstance(value, bool):
            raise IosimError(f"{value!r} is neither true nor false", where)
        return value
    least, most = 1 if name == "tap_queue" else 0, LIMITS[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise IosimError(f"{value!r} is no count; write a whole number from {least} to {most}", where)
    return value


def _models() -> Any:
    return resources.files("iosim.models")


@cache
def published() -> dict[str, Any]:
    """Return the published figures (models/anchors/published.toml), by section."""
    return tomllib.loads(_models().joinpath("anchors/published.toml").read_text(encoding="utf-8"))


def names() -> list[str]:
    """Return the names of the hosts that come with iosim."""
    files = _models().joinpath("hosts").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load(name_or_file: str) -> Host:
    """Return a host by its name, or from a TOML file of one's own.

    Raises:
        IosimError: No such host or file, or something in the file is wrong; file and key are named.
    """
    if name_or_file in names():
        return _builtin(name_or_file)
    path = Path(name_or_file)
    if not (path.suffix == ".toml" or "/" in name_or_file):
        raise unknown("host", name_or_file, names())
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise IosimError(f"there is no such host file; the hosts are {', '.join(names())}", name_or_file) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise IosimError(f"cannot read the host file: {reason}", name_or_file) from None
    return read(text, path.stem, name_or_file)


@cache
def _builtin(name: str) -> Host:
    text = _models().joinpath(f"hosts/{name}.toml").read_text(encoding="utf-8")
    return read(text, name, f"hosts/{name}.toml")


def read(text: str, name: str, where: str) -> Host:
    """Return the host that the TOML ``text`` describes; ``where`` is the file's name in errors."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise IosimError(f"not TOML: {error}", where) from None
    for key in data:
        if key not in ("title", "composite", "cycles_ghz", "properties", "costs"):
            raise unknown("key", key, ["title", "composite", "cycles_ghz", "properties", "costs"], where)
    cycles_ghz = data.get("cycles_ghz", 0)
    if isinstance(cycles_ghz, bool) or not isinstance(cycles_ghz, (int, float)) or not 0 <= cycles_ghz <= 100:
        raise IosimError(f"{cycles_ghz!r} is no clock rate in GHz", f"{where}: cycles_ghz")
    composite = bool(data.get("composite", False))
    base = None if name == DEFAULT else _builtin(DEFAULT)
    properties = _properties(_table(data, "properties", where), name, where, base)
    found = _Costs(_table(data, "costs", where), name, where, float(cycles_ghz), properties, base).all()
    return Host(name, str(data.get("title", name)), composite, found, properties)


def _table(data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise IosimError(f"must be a table, not {value!r}", f"{where}: {key}")
    return value


def _properties(table: Mapping[str, Any], name: str, where: str, base: Host | None) -> dict[str, Property]:
    found = dict(base.properties) if base else {}
    for key, entry in table.items():
        place = f"{where}: properties.{key}"
        if key not in PROPERTY_PARSERS:
            raise unknown("property", key, PROPERTY_PARSERS, where)
        if not isinstance(entry, dict) or "value" not in entry:
            raise IosimError("must be a table with value, source and kind", place)
        value = parse_property(key, entry["value"], place)
        found[key] = Property(key, value, *_origin(entry, place), name)
    missing = [key for key in PROPERTY_PARSERS if key not in found]
    if missing:
        raise IosimError(f"lacks the properties {', '.join(missing)}", where)
    return found


def _origin(entry: Mapping[str, Any], place: str) -> tuple[str, str]:
    """Source and kind of a number; one that names no source is assumed."""
    source = entry.get("source", "")
    kind = entry.get("kind", "primary" if source else "assumed")
    if kind not in KINDS:
        raise unknown("kind", str(kind), KINDS, place)
    return (str(source) or "assumed", kind)


class _Costs:
    """Works out the costs of one file; costs may be defined by others, in any order."""

    def __init__(
        self,
        table: Mapping[str, Any],
        name: str,
        where: str,
        cycles_ghz: float,
        properties: Mapping[str, Property],
        base: Host | None,
    ) -> None:
        self.table = table
        self.name = name
        self.where = where
        self.cycles_ghz = cycles_ghz
        self.properties = properties
        self.base = base
        self.done: dict[str, Cost] = {}
        self.doing: list[str] = []
        valid = costs.NAMES[: costs.HOST_COSTS]
        for key, entry in table.items():
            if key not in valid:
                raise unknown("cost", key, valid, where)
            if not isinstance(entry, dict):
                raise IosimError(f"must be a table, as [costs.{key}] with value and unit", f"{where}: costs.{key}")
            for part in entry:
                if part not in _KEYS:
                    raise unknown("key", part, _KEYS, f"{where}: costs.{key}")

    def all(self) -> tuple[Cost, ...]:
        return tuple(self.one(name) for name in costs.NAMES[: costs.HOST_COSTS])

    def one(self, name: str) -> Cost:
        if name in self.done:
            return self.done[name]
        if name not in self.table:
            if self.base is None:
                raise IosimError(f"lacks the cost {name}", self.where)
            return self.base.cost(name)
        if name in self.doing:
            raise IosimError(f"is worked out from itself: {' -> '.join([*self.doing, name])}", self.where)
        self.doing.append(name)
        cost = self._work_out(name, self.table[name])
        self.doing.pop()
        self.done[name] = cost
        return cost

    def _work_out(self, name: str, entry: Mapping[str, Any]) -> Cost:
        place = f"{self.where}: costs.{name}"
        sources: list[str] = []
        if "of" in entry:
            whole, source = self._measured(entry["of"], entry.get("unit"), place)
            sources.append(source)
            minus = 0.0
            for part in entry.get("minus", []):
                amount, source = self._part(part, place)
                minus += amount
                if source and source not in sources:
                    sources.append(source)
            share = entry.get("share", 1.0)
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
                raise IosimError(f"share must lie between 0 and 1, not {share!r}", place)
            dist = _reduced(whole, minus, float(share), place)
            if "spread" in entry:
                dist = _with_spread(dist, entry["spread"], place)
            kind = entry.get("kind", "primary")
        else:
            for part in ("minus", "share"):
                if part in entry:
                    raise IosimError(f"has {part}, which needs of: the measured whole that it is a part of", place)
            shape = {k: v for k, v in entry.items() if k in _SHAPES and k != "unit"}
            dist = Constant(0.0)
            if set(shape) == {"value"}:
                if shape["value"] != 0:
                    dist = parse_distribution(shape["value"], self._unit(entry.get("unit"), place), place)
            elif shape:
                dist = parse_distribution(shape, self._unit(entry.get("unit"), place), place)
            elif "per_byte" not in entry and "per_byte_of" not in entry:
                raise IosimError("has no value; give value, mean and spread, low and high, or of", place)
            kind = entry.get("kind", "primary" if "source" in entry or "per_byte_of" in entry else "assumed")
        per_byte = self._per_byte(entry, place, sources)
        if "source" in entry:
            sources.insert(0, str(entry["source"]))
        if kind not in KINDS:
            raise unknown("kind", str(kind), KINDS, place)
        return Cost(name, dist, per_byte, " | ".join(sources) or "assumed", kind, str(entry.get("note", "")), self.name)

    def _per_byte(self, entry: Mapping[str, Any], place: str, sources: list[str]) -> float:
        if "per_byte_of" in entry:
            whole, source = self._measured(entry["per_byte_of"], entry.get("unit"), place)
            sources.append(source)
            count = entry.get("per_bytes", 1)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise IosimError(f"per_bytes must be a whole number above 0, not {count!r}", place)
            return whole.mean / count
        if "per_byte" in entry:
            return parse_distribution(entry["per_byte"], self._unit(entry.get("unit"), place), place).mean
        return 0.0

    def _part(self, name: object, place: str) -> tuple[float, str]:
        """The mean (ps) of something a measured whole contains: a cost, a property, or another measurement."""
        text = str(name)
        if text.startswith("host."):
            key = text.removeprefix("host.")
            if key not in self.properties:
                raise unknown("property", key, self.properties, place)
            return float(self.properties[key].value), ""
        if "." in text:
            whole, source = self._measured(text, None, place)
            return whole.mean, source
        if text not in costs.NAMES[: costs.HOST_COSTS]:
            raise unknown("cost", text, costs.NAMES[: costs.HOST_COSTS], place)
        return self.one(text).distribution.mean, ""

    def _measured(self, name: object, unit: object, place: str) -> tuple[Distribution, str]:
        """A published figure, by section and key, in ps; and the source the section gives."""
        section, _, path = str(name).partition(".")
        figures = published()
        if section not in figures:
            raise unknown("published figure", str(name), figures, place)
        value: Any = figures[section]
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                valid = [f"{section}.{k}" for k in figures[section]]
                raise unknown("published figure", str(name), valid, place)
            value = value[key]
        text = str(unit if unit is not None else figures[section].get("unit", "ns")).split()[0]
        scale = self._unit(text, place)
        return parse_distribution(value, scale, place), f"{section}: {figures[section]['source']}"

    def _unit(self, unit: object, place: str) -> float:
        if unit == "cycles":
            if not self.cycles_ghz:
                raise IosimError("is in cycles, but the file has no cycles_ghz", place)
            return 1000 / self.cycles_ghz
        if unit is None:
            raise IosimError("has no unit; give unit = 'ns', 'us' or 'cycles'", place)
        if unit not in TIME_PS:
            raise unknown("unit", str(unit), [*TIME_PS, "cycles"], place)
        return float(TIME_PS[str(unit)])


def _reduced(whole: Distribution, minus: float, share: float, place: str) -> Distribution:
    """The measured whole without its known parts: the mean is less by them, the spread stays this cost's."""
    left = (whole.mean - minus) * share
    if left < 0:
        raise IosimError(f"would be negative: its parts are {-left / 1000:.1f} ns more than the whole", place)
    if isinstance(whole, Uniform):
        if whole.low < minus:
            raise IosimError("would be negative at its low end", place)
        return Uniform((whole.low - minus) * share, (whole.high - minus) * share)
    if isinstance(whole, LogNormal):
        return LogNormal(left, whole.spread * share) if left > 0 else Constant(0.0)
    if isinstance(whole, Exponential):
        return Exponential(left)
    return Constant(left)


def _with_spread(dist: Distribution, spread: object, place: str) -> Distribution:
    """A spread as a part of the mean, for a figure published without one."""
    text = str(spread)
    if not text.endswith("%"):
        raise IosimError(f"spread of a derived cost is a part of its mean, as '10%', not {text!r}", place)
    try:
        part = float(text[:-1]) / 100
    except ValueError:
        raise IosimError(f"'{text}' is no percentage", place) from None
    if not 0 <= part <= 10:
        raise IosimError(f"spread '{text}' must lie between 0 and 1000 %", place)
    return LogNormal(dist.mean, dist.mean * part) if part else dist
