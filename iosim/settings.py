"""The vocabulary of settings: one set of dotted names for the command line, for files and for Python.

``workload.*`` says what is asked, ``host.*`` on what, ``guest.*`` and ``device.*`` of what, ``run.*`` how long. Times
are text with a unit (``5us``), rates and sizes plain numbers or with a suffix (``100k``), bit rates ``10Gbit/s``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from iosim.errors import IosimError, unknown
from iosim.host.units import parse_cost, parse_count, parse_time

MAX_REQUESTS = 100_000_000
MOST_QUEUE_PAIRS = 8
MOST_FLOWS = 64
MOST_VMS = 16
MOST_UNDER_WAY = 8192
"""Requests under way in a closed loop, of all flows: each is a connection of the client in ``rr``."""
LARGEST_QUEUE = 32768
"""Descriptors (virtio 1.2, 2.7)."""


def _checked(parse: Callable[[object], Any]) -> BeforeValidator:
    """A validator whose one-line error pydantic carries to the field it belongs to."""

    def validate(value: object) -> Any:
        try:
            return parse(value)
        except IosimError as error:
            raise PydanticCustomError("iosim", "{text}", {"text": str(error)}) from None

    return BeforeValidator(validate)


def _whole(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value  # not through a float, which has no room for the digits of a large seed
    number = parse_count(value)
    if number != int(number):
        raise IosimError(f"{value!r} is no whole number")
    return int(number)


def parse_flag(value: object) -> bool:
    """Return a truth value from on or off, yes or no, true or false."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("on", "true", "yes"):
        return True
    if isinstance(value, str) and value.lower() in ("off", "false", "no"):
        return False
    raise IosimError(f"{value!r} is neither on nor off")


def _power_of_two(value: object) -> int:
    number = _whole(value)
    if number > LARGEST_QUEUE:
        raise IosimError(f"{_short(number)} descriptors are too many; the largest queue is {LARGEST_QUEUE}")
    if number < 1 or number & (number - 1):
        below = 1 << max(0, number.bit_length() - 1)
        raise IosimError(f"{_short(number)} is no power of two; nearest are {below} and {2 * below}")
    return number


def _cost(value: object) -> str:
    parse_cost(value)
    return value if isinstance(value, str) else "0"


Time = Annotated[int, _checked(parse_time)]
"""A time: text with its unit; in ps inside."""
CostText = Annotated[str, _checked(_cost)]
"""A time, or one that varies: ``500ns``, ``500ns±40ns`` or ``28us..32us``; checked, and kept as text."""
Whole = Annotated[int, _checked(_whole)]
"""A whole number, plain or with a suffix (``20k``)."""
Number = Annotated[float, _checked(parse_count)]
"""A number, plain or with a suffix."""
Flag = Annotated[bool, _checked(parse_flag)]
"""``on`` or ``off`` (true or false)."""
QueueSize = Annotated[int, _checked(_power_of_two)]
"""A virtqueue's size: a power of two (virtio 1.2, 2.7)."""


class Settings(BaseModel):
    """A group of settings: unknown names are errors, values are checked, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkloadSettings(Settings):
    """``workload.*``: what is asked of the path."""

    name: Literal["rr", "tx", "rx"] = Field("rr", description="rr, tx or rx")
    size: Whole | None = Field(
        None, ge=1, description="payload bytes of a packet; rr: 1, tx and rx: 64. tx, rx, above 1472: of a send call"
    )
    depth: Whole | None = Field(
        None, ge=1, le=1024, description="requests under way in a closed loop, in each flow; rr: 1, tx and rx: 32"
    )
    flows: Whole | None = Field(
        None, ge=1, le=MOST_FLOWS, description="sockets, each with an application; one for each queue pair of a guest"
    )
    rate: Number | None = Field(
        None,
        ge=0.01,
        le=1e9,
        description="requests per second of an open loop, of all flows; without it the loop is closed",
    )
    arrivals: Literal["closed", "poisson", "constant"] | None = Field(
        None, description="closed, or poisson or constant at workload.rate (default: poisson if a rate is given)"
    )
    background: Whole = Field(
        0, ge=0, le=65536, description="bytes of each send call of a TCP stream that flows besides; 0: none"
    )
    background_depth: Whole = Field(
        16, ge=1, le=1024, description="send calls of that stream that may be unacknowledged"
    )
    background_from: Literal["guest", "client"] = Field(
        "guest", description="who sends that stream: the guest, or (beside rr) the client"
    )
    peer: Literal["outside", "guest", "host"] = Field(
        "outside",
        description="the other end: outside, at the end of the wire; a second guest on the same bridge; or the host",
    )
    think_time: Time = Field(0, description="time the guest's application works on a request")
    peer_delay: Time = Field(0, description="time the client waits after a reply (closed loop)")


class RunSettings(Settings):
    """``run.*``: how long, and with which random numbers."""

    requests: Whole = Field(20_000, ge=1, le=MAX_REQUESTS, description="requests measured")
    warmup: Whole | None = Field(
        None, ge=0, le=MAX_REQUESTS, description="requests completed before the window opens; 5 % of them, 10 to 1000"
    )
    duration: Time | None = Field(None, gt=0, description="length of the window, in place of run.requests")
    seed: Whole = Field(1, ge=0, le=2**63 - 1, description="keys the random numbers")
    engine: Literal["auto", "simpy", "compiled"] = Field(
        "auto", description="simpy, compiled, or auto: compiled for long runs where llvmlite is installed"
    )
    keep: Literal["requests", "summary"] = Field(
        "requests", description="requests: every one; summary: counts, sums and quantiles, in constant memory"
    )
    replication: Whole = Field(0, ge=0, le=2**31 - 1, description="keys them too: another sample of the same")


class GuestSettings(Settings):
    """``guest.*``: the guest, where a model has more than one vCPU of it, and how many such guests there are."""

    vcpus: Whole | None = Field(None, ge=1, description="vCPUs (-smp), no more than queue pairs; one for each pair")
    vms: Whole | None = Field(
        None, ge=1, le=MOST_VMS, description="guests on the host, all alike; 1, or 2 with workload.peer=guest"
    )


ETHTOOL_GSO: Final = "ethtool -K gso in the guest; off, without TSO: TCP makes single segments (before Linux 4.17)"
ETHTOOL_GRO: Final = "ethtool -K gro in the guest: it merges segments that come singly"
"""What the switches do in every guest."""


class NicDescriptors(Settings):
    """The ``device.*`` settings of a physical NIC (IXGBE_DEFAULT_TXD, IXGBE_DEFAULT_RXD; from 64 to 4096)."""

    tx_descriptors: Whole = Field(512, ge=64, le=4096, description="descriptors in the NIC's transmit ring")
    rx_descriptors: Whole = Field(512, ge=64, le=4096, description="descriptors in the NIC's receive ring")
    queues: Whole = Field(
        1, ge=1, le=MOST_QUEUE_PAIRS, description="queue pairs of the NIC, each with its rings and its vector"
    )


class VirtioQueues(Settings):
    """The ``device.*`` settings that every virtio NIC has, whatever serves its queues."""

    rx_queue_size: QueueSize = Field(256, ge=2, le=1024, description="descriptors in the receive queue")
    tx_queue_size: QueueSize = Field(256, ge=2, le=1024, description="descriptors in the transmit queue")
    event_idx: Flag = Field(True, description="VIRTIO_F_EVENT_IDX: suppression by event index, else by flags")
    packed: Flag = Field(False, description="VIRTIO_F_RING_PACKED: one ring of descriptors, else the split rings")
    indirect: Flag = Field(
        False, description="VIRTIO_F_INDIRECT_DESC (indirect_desc): a chain of several buffers takes one descriptor"
    )
    mrg_rxbuf: Flag = Field(
        True, description="VIRTIO_NET_F_MRG_RXBUF: receive buffers of one frame, else chains for the largest GSO packet"
    )


class VirtioQueuePairs(VirtioQueues):
    """The ``device.*`` settings of a virtio NIC that may have several queue pairs."""

    queues: Whole = Field(1, ge=1, le=MOST_QUEUE_PAIRS, description="queue pairs (-netdev ...,queues= and mq=on)")
    vectors: Whole | None = Field(
        None,
        ge=0,
        le=2048,
        description="MSI-X vectors; two for each pair and two more. Too few: all queues share one; under two: INTx",
    )
    disable_modern: Flag = Field(False, description="disable-modern: a legacy device, its registers are ports")

    @property
    def msix_vectors(self) -> int:
        """MSI-X vectors of the device, by QEMU's rule where none are given (virtio_net_pci_realize)."""
        return 2 * self.queues + 2 if self.vectors is None else self.vectors

    @model_validator(mode="after")
    def _together(self) -> VirtioQueuePairs:
        if self.packed and self.disable_modern:
            text = "packed=on needs VIRTIO_F_VERSION_1, which a device with disable_modern=on does not have"
            raise PydanticCustomError("iosim", "{text}", {"text": text})
        return self


class VirtioSending(VirtioQueuePairs):
    """Those of one that carries streams: what the guest that sends them may leave to the device."""

    csum: Flag = Field(True, description="VIRTIO_NET_F_CSUM: the guest need not compute checksums")
    host_tso4: Flag = Field(True, description="VIRTIO_NET_F_HOST_TSO4: the guest may send GSO packets; needs csum")
    ethtool_tso: Flag = Field(True, description="ethtool -K tso in the guest: it uses host_tso4 where it has it")
    ethtool_gso: Flag = Field(True, description=ETHTOOL_GSO)


class TapQueuePairs(VirtioSending):
    """Those of one whose packets go through the host's tap, with what others may leave to the guest."""

    vnet_hdr: Flag = Field(True, description="the tap has the virtio-net header; else QEMU offers no offloads")
    guest_csum: Flag = Field(
        True, description="VIRTIO_NET_F_GUEST_CSUM: the guest need not verify checksums of what it receives"
    )
    guest_tso4: Flag = Field(
        True, description="VIRTIO_NET_F_GUEST_TSO4: it may be given GSO packets; without guest_csum it is not"
    )
    ethtool_gro: Flag = Field(True, description=ETHTOOL_GRO)

    @model_validator(mode="after")
    def _features(self) -> TapQueuePairs:
        if "guest_tso4" in self.model_fields_set and self.guest_tso4 and not self.guest_csum:
            text = "guest_tso4=on needs guest_csum=on (virtio 1.2, 5.1.3.1)"
            raise PydanticCustomError("iosim", "{text}", {"text": text})
        return self


def check(model: type[Settings], values: Mapping[str, Any], prefix: str, where: str | None = None) -> Any:
    """Return a group of settings made of ``values``, or raise one line that names the key and what would be right.

    Args:
        model: The group.
        values: By their names without the prefix.
        prefix: ``workload``, ``guest``, ``device`` or ``run``.
        where: Where they were typed, for the error.
    """
    for name in values:
        if name not in model.model_fields:
            raise unknown("setting", f"{prefix}.{name}", keys(model, prefix), where)
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = f"{prefix}.{first['loc'][0]}" if first["loc"] else prefix
        raise IosimError(_say(first, key), where) from None


def _say(error: Any, key: str) -> str:
    """One line for one of pydantic's errors."""
    value, context, kind = error["input"], error.get("ctx", {}), error["type"]
    limits = {
        "greater_than": ("must be above", "gt"),
        "greater_than_equal": ("must be at least", "ge"),
        "less_than": ("must be below", "lt"),
        "less_than_equal": ("must be at most", "le"),
    }
    if kind == "iosim":
        return f"{key}: {context['text']}"
    if kind in limits:
        words, limit = limits[kind]
        return f"{key}: {words} {context[limit]}, not {_short(value)}"
    if kind == "literal_error":
        expected = [part.strip().strip("'") for part in str(context["expected"]).replace(" or ", ",").split(",")]
        return f"{key}: {unknown('value', str(value), expected)}"
    return f"{key}: {error['msg']}, not {_short(value)}"


def _short(value: object) -> str:
    """A value as it is shown in an error: not longer than a line."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def keys(model: type[Settings], prefix: str) -> list[str]:
    """Return the dotted names of a group."""
    return [f"{prefix}.{name}" for name in model.model_fields]


def split_pairs(pairs: Iterable[str], where: str) -> dict[str, Any]:
    """Return the settings in ``key=value`` texts, values still text but for whole numbers, numbers and truth values."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise IosimError(f"'{pair}' is no setting; write key=value, as workload.size=1000", where)
        found[key.strip()] = literal(value.strip())
    return found


def literal(text: str) -> Any:
    """Return a typed value where the text is a plain number or a truth value, else the text."""
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            return text
        return value
    return {"true": True, "false": False}.get(text.lower(), text)
