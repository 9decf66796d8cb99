"""A device's rings and requests as a table for a terminal, or as a line for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table


@dataclass(frozen=True)
class QueueState:
    """What the device's side of a queue is at, in QEMU's names, and what it has counted."""

    name: str
    #: Descriptors; 0 while the driver has not set the queue up.
    size: int
    packed: bool
    last_avail_idx: int
    used_idx: int
    inuse: int
    #: Wrap counters of a packed virtqueue (QEMU `last_avail_wrap_counter`, `used_wrap_counter`).
    last_avail_wrap_counter: int
    used_wrap_counter: int
    #: None while no interrupt has been considered yet.
    signalled_used: int | None
    #: Whether the device asks to be notified.
    notification: bool
    #: Notifications that came.
    kicks: int
    #: Interrupts that went out, and those the driver did not want.
    calls: int
    suppressed: int
    #: Elements given back.
    elements: int


def idle_queue(name: str) -> QueueState:
    """A queue that no driver has set up."""
    return QueueState(
        name=name,
        size=0,
        packed=False,
        last_avail_idx=0,
        used_idx=0,
        inuse=0,
        last_avail_wrap_counter=1,
        used_wrap_counter=1,
        signalled_used=None,
        notification=False,
        kicks=0,
        calls=0,
        suppressed=0,
        elements=0,
    )


@dataclass(frozen=True)
class DeviceState:
    """Everything that is shown at one moment."""

    #: "waiting", "connected", "running", "broken: ..."
    state: str
    features: Sequence[str]
    queues: Sequence[QueueState]
    #: Requests by type.
    requests: Mapping[str, int]


_ROWS = (
    ("size", "size"),
    ("last_avail_idx", "last_avail_idx"),
    ("used_idx", "used_idx"),
    ("inuse", "inuse"),
    ("signalled_used", "signalled_used"),
    ("notification", "notification"),
    ("kicks", "kicks"),
    ("calls", "calls"),
    ("suppressed", "calls suppressed"),
    ("elements", "elements"),
)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _place(queue: QueueState, name: str) -> str:
    """An index; in a packed virtqueue, with the wrap counter that goes with it."""
    index: int = getattr(queue, f"{name}_idx")
    return f"{index} wrap {getattr(queue, f'{name}_wrap_counter')}" if queue.packed else str(index)


def _shown(queue: QueueState, name: str) -> str:
    if name in ("last_avail_idx", "used_idx"):
        return _place(queue, name.removesuffix("_idx"))
    return _cell(getattr(queue, name))


def render(device: DeviceState) -> RenderableType:
    """The table for a terminal: one column for each queue, so that every name fits."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for queue in device.queues:
        table.add_column(queue.name, justify="right")
    table.add_row("ring", *(("packed" if queue.packed else "split") if queue.size else "-" for queue in device.queues))
    for name, heading in _ROWS:
        table.add_row(heading, *(_shown(queue, name) for queue in device.queues))
    requests = "   ".join(f"{name} {count}" for name, count in device.requests.items() if count) or "none yet"
    features = " ".join(device.features) or "-"
    return Group(f"device: {device.state}", f"features: {features}", table, f"requests: {requests}")


def line(device: DeviceState) -> str:
    """One line for a file: what has changed since is for the reader's eyes or tools to find."""
    parts = [device.state]
    for queue in device.queues:
        if queue.size:
            parts.append(
                f"{queue.name}: last_avail_idx {_shown(queue, 'last_avail_idx')}"
                f" used_idx {_shown(queue, 'used_idx')} inuse {queue.inuse}"
                f" signalled_used {_cell(queue.signalled_used)} kicks {queue.kicks} calls {queue.calls}"
                f" suppressed {queue.suppressed}"
            )
    requests = " ".join(f"{name} {count}" for name, count in device.requests.items() if count)
    if requests:
        parts.append(f"requests: {requests}")
    return "; ".join(parts)
