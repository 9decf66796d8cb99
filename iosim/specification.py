"""From what people write to one complete specification of a run: model, host, workload, device and run settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from iosim.engine.distributions import Constant, Distribution, Exponential, constant
from iosim.errors import IosimError, unknown
from iosim.host import costs, hosts
from iosim.host.hogs import MOST, STRETCH, add_hogs
from iosim.host.hosts import Cost, Host, Property
from iosim.host.machine import Machine
from iosim.host.pins import NONE, Pin, parse_pins, pin
from iosim.host.units import parse_cost, parse_per_byte, parse_rate_bits, parse_time
from iosim.model import Model, find, names
from iosim.settings import (
    MOST_FLOWS,
    MOST_UNDER_WAY,
    GuestSettings,
    RunSettings,
    Settings,
    WorkloadSettings,
    check,
    keys,
    parse_flag,
)
from iosim.workload.spec import (
    CLIENT,
    CLOSED,
    DEFAULT_DEPTH,
    GUEST,
    HOST,
    MAX_PAYLOAD,
    MAX_SEND,
    POISSON,
    ROLES,
    STREAM_DEPTH,
    Workload,
)

GROUPS: Final = ("workload", "host", "guest", "device", "run")
DEFAULT_SIZE: Final = {"rr": 1, "tx": 64, "rx": 64}
CONSTANT_COSTS: Final = "constant"
PIN: Final = "pin"
HOGS: Final = "hogs"
WAKEUP_GRANULARITY: Final = "wakeup_granularity"
MIN_WARMUP, MAX_WARMUP, WARMUP_PART = 10, 1000, 20


@dataclass(frozen=True)
class Specification:
    """Everything one run depends on.

    Args:
        model: The model.
        host: Costs and properties, settings applied.
        host_name: The host as it was asked for.
        workload: The workload.
        vcpus: vCPUs of a guest.
        vms: Guests.
        device: The model's own settings.
        run: How long, and with which random numbers.
        warmup: Requests completed before the window opens.
        constant: Whether every cost is replaced by its mean.
        pins: Which threads run on which CPUs only.
        hogs: Threads of other load on the host's CPUs.
        wakeup_granularity: ps, for preemption by fairness at a wake-up; -1: there is none.
        given: The settings as they were given, by dotted name.
    """

    model: Model
    host: Host
    host_name: str
    workload: Workload
    vcpus: int
    vms: int
    device: Settings
    run: RunSettings
    warmup: int
    constant: bool
    pins: tuple[Pin, ...]
    hogs: int
    wakeup_granularity: int
    given: Mapping[str, Any]

    def build(self) -> Machine:
        """Return the machine room of one run, its processes installed and not started."""
        guest = (self.vcpus,) if self.model.smp else ()
        vms = {"vms": self.vms} if self.model.vms else {}
        machine = self.model.build(self.host, self.workload, self.device, *guest, **vms)
        add_hogs(machine.system, self.hogs)
        pin(machine.system, self.pins, f"host.{PIN}")
        return machine

    def cost_distributions(self) -> list[Distribution]:
        """Return the distribution of each cost of the catalogue, in its order."""
        own: dict[str, Distribution] = {
            "think_time": Constant(float(self.workload.think_time)),
            "peer_delay": Constant(float(self.workload.peer_delay)),
            "host_load": Constant(STRETCH),
        }
        if self.workload.rate:
            interval = 1e12 / self.workload.rate
            own["interarrival"] = Exponential(interval) if self.workload.arrivals == POISSON else Constant(interval)
        if self.model.costs is not None:
            of_model = self.model.costs(self.device)
            own.update({name: constant(cost) if self.constant else cost for name, cost in of_model.items()})
        host = {cost.name: cost.distribution for cost in self.host.costs}
        return [host.get(name) or own.get(name) or Constant(0.0) for name in costs.NAMES]

    def cost_rates(self) -> list[int]:
        """Return the rate per byte of each cost of the catalogue, in 1/1024 ps."""
        host = {cost.name: cost.per_byte for cost in self.host.costs}
        host["wire"] = 8e12 / float(self.host.properties["wire_rate"].value)
        return [round(host.get(name, 0.0) * 1024) for name in costs.NAMES]

    def settings(self) -> dict[str, Any]:
        """Return every setting of the run by its dotted name, times in ns."""
        w = self.workload
        out: dict[str, Any] = {
            "workload.name": w.name,
            "workload.size": w.size,
            "workload.depth": w.depth,
            "workload.flows": w.flows,
            "workload.arrivals": w.arrivals,
            "workload.rate": w.rate or None,
            "workload.think_time": _time_text(w.think_time),
            "workload.peer_delay": _time_text(w.peer_delay),
            "workload.background": w.background,
            "workload.background_depth": w.background_depth,
            "workload.background_from": w.background_from,
            "workload.peer": w.peer,
        }
        for name, prop in self.host.properties.items():
            kind = hosts.PROPERTY_PARSERS[name]
            value: Any = prop.value
            if kind == "time":
                value = _time_text(int(prop.value))
            elif kind == "rate":
                value = f"{prop.value:.15g}bit/s"
            out[f"host.{name}"] = value
        out[f"host.{CONSTANT_COSTS}"] = self.constant
        for key, value in self.given.items():
            if key.startswith("host.costs.") or key.removeprefix("host.") in hosts.LOAD_MEANINGS:
                out[key] = value
        if self.model.smp:
            out["guest.vcpus"] = self.vcpus
        if self.model.vms:
            out["guest.vms"] = self.vms
        for name, value in self.device.model_dump().items():
            out[f"device.{name}"] = value
        out["run.requests"] = self.run.requests if self.run.duration is None else None
        out["run.warmup"] = self.warmup
        out["run.duration"] = None if self.run.duration is None else _time_text(self.run.duration)
        out["run.keep"] = self.run.keep
        out["run.replication"] = self.run.replication
        return out


def _time_text(ps: int) -> str:
    """A time as a setting that gives exactly the same again."""
    return f"{ps // 1000}ns" if ps % 1000 == 0 else f"{ps}ps"


def valid_keys(model: Model) -> list[str]:
    """Return every setting that a run of the model knows, by dotted name."""
    return [
        *keys(WorkloadSettings, "workload"),
        *(f"host.{name}" for name in hosts.PROPERTY_PARSERS),
        f"host.{CONSTANT_COSTS}",
        *(f"host.{name}" for name in hosts.LOAD_MEANINGS),
        *(f"host.costs.{name}" for name in costs.NAMES[: costs.HOST_COSTS]),
        *(f"guest.{name}" for name in guest_settings(model)),
        *keys(model.settings, "device"),
        *keys(RunSettings, "run"),
    ]


def guest_settings(model: Model) -> list[str]:
    """Return the ``guest.*`` settings that a model knows, by name."""
    known = {"vcpus": model.smp, "vms": model.vms}
    return [name for name in GuestSettings.model_fields if known[name]]


def specify(
    model: str | Model,
    *,
    workload: str | None = None,
    host: str | Host = hosts.DEFAULT,
    settings: Mapping[str, Any] | None = None,
) -> Specification:
    """Return the complete specification of a run.

    Args:
        model: A registered name, or a model.
        workload: ``rr``, ``tx`` or ``rx``; the same as the setting ``workload.name``.
        host: A host's name, a TOML file, or a host.
        settings: Any settings, by dotted name.

    Raises:
        IosimError: Anything unknown, malformed or impossible; the key is named.
    """
    found = find(model) if isinstance(model, str) else model
    given = dict(settings or {})
    groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    for key, value in given.items():
        group, dot, name = key.partition(".")
        if not dot or group not in GROUPS:
            raise unknown("setting", key, valid_keys(found))
        groups[group][name] = value
    if workload is not None:
        groups["workload"]["name"] = workload
    run: RunSettings = check(RunSettings, groups["run"], "run")
    wanted: WorkloadSettings = check(
        WorkloadSettings, {"name": found.workloads[0], **groups["workload"]}, "workload"
    )
    chosen = hosts.load(host) if isinstance(host, str) else host
    pinned, hogs = groups["host"].pop(PIN, None), groups["host"].pop(HOGS, 0)
    granularity = groups["host"].pop(WAKEUP_GRANULARITY, NONE)
    applied, constant = _host(chosen, groups["host"], found)
    cpus = int(applied.properties["cpus"].value)
    device: Settings = check(found.settings, groups["device"], "device")
    pairs = int(getattr(device, "queues", 1)) if found.smp else 1
    guest = _guest(groups["guest"], found)
    vms = _vms(guest, wanted, found)
    specification = Specification(
        model=found,
        host=applied,
        host_name=chosen.name,
        workload=_workload(wanted, found, pairs, vms),
        vcpus=_vcpus(guest, pairs),
        vms=vms,
        device=device,
        run=run,
        warmup=_warmup(run),
        constant=constant,
        pins=() if pinned is None else parse_pins(pinned, cpus, f"host.{PIN}"),
        hogs=_hogs(hogs, cpus),
        wakeup_granularity=-1 if granularity == NONE else parse_time(granularity, f"host.{WAKEUP_GRANULARITY}"),
        given=given,
    )
    if specification.pins:
        # Which threads there are shows when they have been made: better now than when a sweep has come to it.
        specification.build()
    return specification


def _hogs(given: Any, cpus: int) -> int:
    key = f"host.{HOGS}"
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MOST:
        raise IosimError(f"{given!r} is no count; write a whole number from 0 to {MOST}", key)
    if given and not cpus:
        raise IosimError("each thread has a CPU of its own, a hog too; give host.cpus, as host.cpus=2", key)
    return given


def _guest(given: Mapping[str, Any], model: Model) -> GuestSettings:
    for name in given:
        if name == "vms" and not model.vms:
            raise IosimError(f"{model.name} plays one guest; {_with('vms')} play several", "guest.vms")
        if name not in guest_settings(model):
            raise unknown("setting", f"guest.{name}", valid_keys(model))
    guest: GuestSettings = check(GuestSettings, given, "guest")
    return guest


def _with(ability: str) -> str:
    """The models that play several guests (``vms``), or receive streams, as text."""
    found = [name for name in names() if getattr(find(name), ability)]
    return f"{', '.join(found[:-1])} and {found[-1]}"


def _vms(guest: GuestSettings, w: WorkloadSettings, model: Model) -> int:
    if w.peer == HOST:
        if not model.vms:
            raise IosimError(
                f"{model.name} bypasses the host's bridge; {_with('vms')} have a tap there", "workload.peer"
            )
        if w.peer_delay:
            raise IosimError("a client on the host does not wait after a reply; leave this out", "workload.peer_delay")
    if w.peer != GUEST:
        return guest.vms or 1
    if not model.vms:
        raise IosimError(f"{model.name} plays one guest; {_with('vms')} play two", "workload.peer")
    if w.name not in ROLES:
        raise IosimError(
            f"in {w.name} packets come from outside; between guests it is tx, which ends at the receiver's application",
            "workload.peer",
        )
    if w.peer_delay:
        raise IosimError(
            "a client in a guest does not wait after a reply; leave this out, or give a workload.rate in its place",
            "workload.peer_delay",
        )
    vms = 2 if guest.vms is None else guest.vms
    if vms % 2:
        raise IosimError(
            f"{_count(vms, 'guest')}: with workload.peer=guest each has its peer in another; give an even number",
            "guest.vms",
        )
    return vms


def _vcpus(guest: GuestSettings, pairs: int) -> int:
    vcpus = pairs if guest.vcpus is None else guest.vcpus
    if vcpus > pairs:
        raise IosimError(
            f"{vcpus} vCPUs, and {_count(pairs, 'queue pair')}: what is sent, received and run is on the vCPUs of the "
            f"pairs, others would do nothing; give {pairs}, or more device.queues",
            "guest.vcpus",
        )
    return vcpus


def _flows(given: int | None, model: Model, pairs: int, vms: int) -> int:
    """How many flows there are; of ``vms`` guests at one end of them each has ``pairs`` queue pairs."""
    least = pairs * vms
    flows = least if given is None else given
    if flows > vms and not model.smp:
        each = " in each guest" if vms > 1 else ""
        raise IosimError(f"{model.name} plays one flow{each}, not {flows}", "workload.flows")
    if flows < least and vms > 1:
        raise IosimError(
            f"{_count(flows, 'flow')} for {vms} guests with {_count(pairs, 'queue pair')} each: some would do nothing; "
            f"give {least} or more, or fewer guest.vms",
            "workload.flows",
        )
    if flows < pairs:
        raise IosimError(
            f"{_count(flows, 'flow')} for {pairs} queue pairs: a flow is sent by one of them, others would do nothing; "
            f"give {pairs} or more, or fewer device.queues",
            "workload.flows",
        )
    if flows > MOST_FLOWS:
        raise IosimError(
            f"{vms} guests with {_count(pairs, 'queue pair')} each have {flows} flows; the most is {MOST_FLOWS}",
            "guest.vms",
        )
    return flows


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _workload(w: WorkloadSettings, model: Model, pairs: int, vms: int) -> Workload:
    if w.name not in model.workloads:
        raise IosimError(
            f"{model.name} plays {', '.join(model.workloads)}, not {w.name}", "workload.name"
        )
    size = DEFAULT_SIZE[w.name] if w.size is None else w.size
    carried = {"rr": False, "tx": model.streams, "rx": model.receives_streams}[w.name]
    stream = carried and size > MAX_PAYLOAD
    if size > MAX_PAYLOAD and not stream:
        fits = f"{size} bytes do not fit one Ethernet frame"
        if w.name == "rx":
            fits += f", and {model.name} receives no TCP stream ({_with('receives_streams')} do)"
        raise IosimError(f"{fits}; the largest is {MAX_PAYLOAD} (1500 less IP and UDP headers)", "workload.size")
    if stream and w.peer == GUEST and not model.receives_streams:
        raise IosimError(
            f"{size} bytes a send call are a TCP stream, and {model.name} receives none ({_with('receives_streams')} "
            f"do); the largest packet from guest to guest is {MAX_PAYLOAD}",
            "workload.size",
        )
    if size > MAX_SEND:
        raise IosimError(f"{size} bytes in a send call; the most is {MAX_SEND}", "workload.size")
    if w.background and not model.streams:
        raise IosimError(f"{model.name} carries no TCP stream; the network paths do", "workload.background")
    if w.background and w.name == "rx":
        raise IosimError("the guest sends a stream beside rr or tx, not beside rx", "workload.background")
    if w.background and w.background_from == CLIENT and w.name != "rr":
        raise IosimError(f"the client sends a stream beside rr, not beside {w.name}", "workload.background_from")
    if w.background and (w.background_from == CLIENT or w.peer == GUEST) and not model.receives_streams:
        which = _with("receives_streams")
        key = "workload.background" if w.peer == GUEST else "workload.background_from"
        raise IosimError(f"{model.name} sends TCP streams and receives none; {which} receive them", key)
    arrivals = w.arrivals or (POISSON if w.rate is not None else CLOSED)
    if arrivals != CLOSED and w.rate is None:
        raise IosimError(f"{arrivals} arrivals need a rate, as workload.rate=10000", "workload.arrivals")
    if arrivals == CLOSED and w.rate is not None:
        raise IosimError("a closed loop has no rate; leave it out, or say poisson or constant", "workload.arrivals")
    if arrivals != CLOSED and w.depth is not None:
        raise IosimError("an open loop has no depth; leave out workload.depth or workload.rate", "workload.depth")
    if arrivals != CLOSED and stream:
        raise IosimError(
            f"{size} bytes a send call are a TCP stream, whose pace is set by its window; leave out the rate",
            "workload.rate",
        )
    depth = (STREAM_DEPTH if stream else DEFAULT_DEPTH[w.name]) if w.depth is None else w.depth
    flows = _flows(w.flows, model, pairs, vms // 2 if w.peer == GUEST else vms)
    if arrivals == CLOSED and depth * flows > MOST_UNDER_WAY:
        raise IosimError(
            f"{depth} requests in each of {flows} flows are {depth * flows} under way; the most is {MOST_UNDER_WAY}",
            "workload.depth",
        )
    rate, behind = w.rate or 0.0, (w.background, w.background_depth, w.background_from)
    return Workload(w.name, size, depth, rate, arrivals, w.think_time, w.peer_delay, flows, *behind, w.peer)


def _warmup(run: RunSettings) -> int:
    if run.warmup is not None:
        return run.warmup
    return min(max(run.requests // WARMUP_PART, MIN_WARMUP), MAX_WARMUP)


def _host(host: Host, given: Mapping[str, Any], model: Model) -> tuple[Host, bool]:
    properties = dict(host.properties)
    changed: dict[str, Cost] = {}
    constant = False
    for name, value in given.items():
        key = f"host.{name}"
        if name == CONSTANT_COSTS:
            constant = _truth(value, key)
        elif name in hosts.PROPERTY_PARSERS:
            properties[name] = Property(name, _property(name, value, key), "setting", "primary", "setting")
        elif name.startswith("costs."):
            cost = name.removeprefix("costs.")
            if cost not in costs.NAMES[: costs.HOST_COSTS]:
                raise unknown("setting", key, valid_keys(model))
            changed[cost] = _cost(host.cost(cost), value, key)
        else:
            raise unknown("setting", key, valid_keys(model))
    if changed or len(properties) != len(host.properties) or given:
        host = replace(
            host, costs=tuple(changed.get(c.name, c) for c in host.costs), properties=properties
        )
    return (host.constant() if constant else host), constant


def _cost(old: Cost, value: Any, key: str) -> Cost:
    """A cost given by a setting; ``500ns + 0.15ns/byte`` gives its rate too, ``0.15ns/byte`` alone only that."""
    distribution, per_byte = old.distribution, old.per_byte
    if isinstance(value, str) and "/" in value:
        base, plus, rate = value.rpartition("+")
        per_byte = parse_per_byte(rate if plus else value, key)
        value = base.strip() if plus else None
    if value is not None:
        distribution = parse_cost(value, key)
    return replace(
        old, distribution=distribution, per_byte=per_byte, source="setting", kind="primary", origin="setting"
    )


def _truth(value: Any, key: str) -> bool:
    try:
        return parse_flag(value)
    except IosimError as error:
        raise IosimError(str(error), key) from None


def _property(name: str, value: Any, key: str) -> int | float | bool | str:
    kind = hosts.PROPERTY_PARSERS[name]
    if kind == "bool":
        return _truth(value, key)
    if kind == "rate":
        return parse_rate_bits(value, key)
    return hosts.parse_property(name, value, key)
