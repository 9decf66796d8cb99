"""Virtqueues in files: what somebody saved of a guest's memory, with or without the device's indexes.

Two forms are read. A JSON document with snapshots, each of which says where the queue stands and has its bytes::

    {"packed": false, "event_idx": true,
     "snapshots": [{"label": "idle", "num": 256,
                    "desc_gpa": "0x1fe44000", "avail_gpa": "0x1fe45000", "used_gpa": "0x1fe45240",
                    "raw_hex": {"desc": "00c0...", "avail": "0000...", "used": "0000..."},
                    "qemu_state": {"last_avail_idx": 7, "used_idx": 7, "inuse": 0},
                    "indirect_tables": {"0": {"table_gpa": "0x1fedfec0",
                                              "entries": [{"addr": 1, "len": 16, "flags": 1, "next": 1}]}}}],
     "memory_bytes": 536870912}

``driver_event`` and ``device_event`` stand for ``avail`` and ``used`` of a packed queue; `qemu_state`,
`indirect_tables` and `memory_bytes` may be missing. And a plain dump of memory, as QEMU's ``pmemsave ADDRESS SIZE
FILE`` writes it, with the place of the queue said beside it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from iosim.errors import IosimError, unknown
from iosim.ring.memory import MAX_SIZE, GuestMemory, write_bytes, write_u16, write_u32, write_u64
from iosim.ring.view import Place, QueueView, look

#: Bytes from which the largest file on a ring is refused.
_LARGEST: Final = 1 << 32
_INDEXES: Final = (
    "inuse", "last_avail_idx", "last_avail_wrap_counter", "shadow_avail_idx", "used_idx", "used_wrap_counter",
    "signalled_used",
)  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """One queue at one moment.

    Attributes:
        label: What it is, as the file has it.
        memory: Guest memory with what the file has of it.
        place: Where the queue stands.
        device: The device's indexes, where the file has them.
    """

    label: str
    memory: GuestMemory
    place: Place
    device: dict[str, int | bool]

    def view(self) -> QueueView:
        """Return the queue made readable."""
        return look(self.memory, self.place, self.device or None)


def read_dump(path: str | Path, base: int, place: Place) -> Snapshot:
    """Read a plain dump of guest memory that begins at the guest-physical address ``base``.

    Raises:
        IosimError: The file cannot be read, or the queue does not lie in it.
    """
    data = _read(path)
    if base < 0 or base + len(data) > MAX_SIZE:
        raise IosimError(f"memory from {base:#x} on: guest memory ends at {MAX_SIZE:#x}", str(path))
    memory = GuestMemory(base + len(data))
    write_bytes(memory, base, data)
    for name, addr in (("desc", place.desc), ("avail", place.avail), ("used", place.used)):
        if not base <= addr < base + len(data):
            raise IosimError(
                f"{name} stands at {addr:#x}, the file has {base:#x} to {base + len(data) - 1:#x}", str(path)
            )
    return Snapshot("", memory, place, {})


def read_snapshots(path: str | Path, *, event_idx: bool | None = None) -> list[Snapshot]:
    """Read the snapshots of a JSON document.

    Args:
        path: The file.
        event_idx: Whether VIRTIO_F_EVENT_IDX was negotiated, where the document does not say; it is taken for
            negotiated otherwise.

    Raises:
        IosimError: The file cannot be read, or has not that form; the message says where.
    """
    try:
        document = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise IosimError(f"no JSON document: {error}", str(path)) from None
    if not isinstance(document, dict) or not isinstance(document.get("snapshots"), list):
        raise IosimError("a document with 'snapshots', a list, is wanted", str(path))
    found = []
    for number, snapshot in enumerate(document["snapshots"]):
        where = f"{path}, snapshot {number}"
        if not isinstance(snapshot, dict):
            raise IosimError("a snapshot is an object", where)
        try:
            found.append(_snapshot({**document, **snapshot}, event_idx))
        except KeyError as error:
            raise IosimError(f"{error} is missing", where) from None
        except IosimError as error:
            raise IosimError(str(error), where) from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise IosimError(f"cannot be read: {error}", where) from None
    if not found:
        raise IosimError("there are no snapshots", str(path))
    return found


def choose(snapshots: Sequence[Snapshot], wanted: str) -> Snapshot:
    """Return the snapshot with a number (from 0) or a label.

    Raises:
        IosimError: There is none.
    """
    for snapshot in snapshots:
        if snapshot.label == wanted:
            return snapshot
    if wanted.isdecimal() and int(wanted) < len(snapshots):
        return snapshots[int(wanted)]
    raise unknown("snapshot", wanted, [str(i) for i in range(len(snapshots))] + [s.label for s in snapshots])


def _read(path: str | Path) -> bytes:
    try:
        if Path(path).stat().st_size > _LARGEST:
            raise IosimError(f"more than {_LARGEST >> 30} GiB; save the pages of the ring only", str(path))
        return Path(path).read_bytes()
    except OSError as error:
        raise IosimError(f"cannot read: {error.strerror}", str(path)) from None


def _snapshot(d: Mapping[str, Any], event_idx: bool | None) -> Snapshot:
    raw = d["raw_hex"]
    packed = bool(d.get("packed", "driver_event" in raw))
    names = ("desc", "driver_event", "device_event") if packed else ("desc", "avail", "used")
    desc, avail, used = addresses = [_whole(d[f"{name}_gpa"]) for name in ("desc", "avail", "used")]
    parts = [bytes.fromhex(raw[name]) for name in names]
    tables = [
        (_whole(t["table_gpa"]), [_entry(entry, packed) for entry in t["entries"]])
        for t in d.get("indirect_tables", {}).values()
    ]
    tops = [addr + len(part) for addr, part in zip(addresses, parts, strict=True)]
    tops += [addr + 16 * len(entries) for addr, entries in tables]
    negotiated = d.get("event_idx", event_idx)
    place = Place(
        _whole(d["num"]),
        desc,
        avail,
        used,
        event_idx=True if negotiated is None else bool(negotiated),
        packed=packed,
    )
    # Unless the file says how much memory the guest had, a buffer anywhere below the limit is believed.
    tops += [addr + length for addr, length, _ in struct.iter_unpack("<QII", parts[0][: len(parts[0]) & ~15])]
    tops += [entry[0] + entry[1] for _, entries in tables for entry in entries]
    wanted = _whole(d["memory_bytes"]) if "memory_bytes" in d else max(top for top in tops if top <= MAX_SIZE)
    memory = GuestMemory(wanted)
    for addr, part in zip(addresses, parts, strict=True):
        write_bytes(memory, addr, part)
    for addr, entries in tables:
        for k, entry in enumerate(entries):
            write_u64(memory, addr + 16 * k, entry[0])
            write_u32(memory, addr + 16 * k + 8, entry[1])
            write_u16(memory, addr + 16 * k + 12, entry[2])
            write_u16(memory, addr + 16 * k + 14, entry[3])
    state = d.get("qemu_state") or {}
    return Snapshot(str(d.get("label", "")), memory, place, {n: _whole(state[n]) for n in _INDEXES if n in state})


def _entry(entry: Any, packed: bool) -> list[int]:
    """A descriptor of a table: an object by the fields' names, or its four numbers in their order in memory."""
    names = ("addr", "len", "id", "flags") if packed else ("addr", "len", "flags", "next")
    values = [entry[name] for name in names] if isinstance(entry, dict) else list(entry)
    if len(values) != len(names):
        raise IosimError(f"a descriptor has {', '.join(names)}; here are {len(values)} numbers")
    return [_whole(value) for value in values]


def _whole(value: Any) -> int:
    """A number as JSON has it, or text in any base (``"0x1fe44000"``)."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise IosimError(f"{value!r} is no whole number")
    number = value if isinstance(value, int) else int(value, 0)
    if number < 0:
        raise IosimError(f"{value!r} is negative")
    return number
