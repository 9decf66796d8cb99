"""A virtqueue on the terminal: chains, descriptors with their owners, both sides' indexes, what is armed."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iosim.ring.view import DEVICE, Chain, QueueView, Slot

#: Descriptors that a queue may have to be shown in full unless all are asked for, and chains that are shown.
FEW = 16
#: Entries of the available and the used ring that are shown before the index.
LAST = 4
_HIDDEN = ("num", "event_idx", "packed", "indirect", "in_order", "desc", "avail", "used")
_STYLES = {DEVICE: "cyan"}


def ring_view(view: QueueView, title: str = "", *, every: bool = False) -> RenderableType:
    """Return a view of a queue for a terminal.

    Args:
        view: The queue.
        title: What stands above it.
        every: Show every descriptor; otherwise a large queue shows those of chains in flight.
    """
    p = view.place
    features = [name for name, on in (("packed", p.packed), ("event_idx", p.event_idx)) if on] or ["split"]
    if not p.packed and "split" not in features:
        features.insert(0, "split")
    head = f"{title + ': ' if title else ''}{p.size} descriptors, {', '.join(features)}"
    parts: list[RenderableType] = [Text(head, style="bold"), _areas(view)]
    parts += [_notifications(view), Text()]
    chains = view.in_flight if every or p.size <= FEW else view.in_flight[:FEW]
    parts.append(_chains(chains, "id" if p.packed else "head"))
    more = len(view.in_flight) - len(chains)
    if more:
        parts.append(Text(f"and {more} more", style="dim"))
    shown = {slot for chain in chains for slot in chain.slots}
    slots = view.slots if every or p.size <= FEW else [slot for slot in view.slots if slot.index in shown]
    if slots:
        parts += [Text(), _slots(view, slots)]
    left = p.size - len(slots)
    if left:
        parts.append(Text(f"{left} of {p.size} descriptors are not shown", style="dim"))
    if not view.exact:
        parts.append(Text("Which chains are in flight is a guess from the order of the entries.", style="dim"))
    parts += [Text(problem, style="red") for problem in view.problems]
    return Group(*parts)


def _table(*headings: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading, justify in headings:
        table.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    return table


def _areas(view: QueueView) -> RenderableType:
    """What stands in the ring, and what each side keeps for itself."""
    table = _table(("", "left"), ("in the ring", "left"), ("its own", "left"))
    for side, area, own in (("driver", view.driver_area, view.driver), ("device", view.device_area, view.device)):
        table.add_row(side, _pairs(area), _pairs({k: v for k, v in own.items() if k not in _HIDDEN}) or "not known")
    return table


def _notifications(view: QueueView) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    if view.avail_ring:
        idx = view.driver_area["idx"]
        entries = [f"[{i}]={view.avail_ring[i]}" for i in _before(idx, view.place.size)]
        table.add_row("avail ring", " ".join([*entries, f"-> idx {idx}"]))
        idx = view.device_area["idx"]
        pairs = [(i, *view.used_ring[i]) for i in _before(idx, view.place.size)]
        entries = [f"[{i}]={head},{length}" for i, head, length in pairs]
        table.add_row("used ring", " ".join([*entries, f"-> idx {idx}"]))
    table.add_row("kick", view.kick.text)
    table.add_row("interrupt", view.interrupt.text)
    return table


def _before(idx: int, size: int) -> list[int]:
    """The places of the last entries that an index covers."""
    return [(idx - back) % size for back in range(min(LAST, idx, size), 0, -1)]


def _pairs(values: dict[str, int] | dict[str, int | bool]) -> str:
    return "  ".join(f"{name}={str(value).lower()}" for name, value in values.items())


def _chains(chains: list[Chain], word: str) -> RenderableType:
    if not chains:
        return Text("No chain is in flight.")
    table = _table(
        (word, "right"), ("descriptors", "left"), ("device reads", "right"), ("device writes", "right"),
        ("state", "left"),
    )  # fmt: skip
    states = {True: "taken by the device", False: "available", None: "available or taken"}
    for chain in chains:
        said = states[chain.taken] if chain.problem is None else f"{states[chain.taken]}; {chain.problem}"
        table.add_row(
            str(chain.head),
            _places(chain.slots),
            str(sum(length for _, length in chain.out_sg)),
            str(sum(length for _, length in chain.in_sg)),
            said,
        )
    return table


def _places(slots: list[int]) -> str:
    """The numbers, runs of them shortened: ``4-7 0``."""
    runs: list[list[int]] = []
    for slot in slots:
        if runs and slot == runs[-1][-1] + 1:
            runs[-1].append(slot)
        else:
            runs.append([slot])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _slots(view: QueueView, slots: list[Slot]) -> RenderableType:
    packed = view.place.packed
    table = _table(
        ("", "right"), ("owner", "left"), ("addr", "right"), ("len", "right"),
        ("id" if packed else "next", "right"), ("flags", "left"), ("", "left"),
    )  # fmt: skip
    arrows = _arrows(view) if packed else {}
    for slot in slots:
        chained = packed or "NEXT" in slot.flags
        table.add_row(
            str(slot.index),
            slot.owner,
            f"{slot.addr:#x}",
            str(slot.length),
            str(slot.link) if chained else "",
            " ".join(slot.flags),
            ", ".join(arrows.get(slot.index, [])),
            style=_STYLES.get(slot.owner),
        )
    return table


def _arrows(view: QueueView) -> dict[int, list[str]]:
    """Which of a packed queue's indexes stand at which slot."""
    found: dict[int, list[str]] = {}
    for state, name in ((view.device, "last_avail_idx"), (view.device, "used_idx"), (view.driver, "next_avail_idx"),
                        (view.driver, "last_used_idx")):  # fmt: skip
        if name in state:
            found.setdefault(int(state[name]), []).append(f"<- {name}")
    return found
