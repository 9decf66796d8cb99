"""The virtqueues of an installed path, wherever its parts keep them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iosim.ring.device_queue import DeviceQueue
from iosim.ring.driver_queue import DriverQueue
from iosim.ring.view import QueueView, look_at
from iosim.run import Installed


def queues(path: Installed) -> dict[str, QueueView]:
    """Return a view of each virtqueue of a path, by the name that its driver gives it.

    Example:
        >>> import iosim
        >>> path = iosim.install("vhost-net")
        >>> path.env.run(until=100_000_000)
        >>> [(name, view.place.size) for name, view in queues(path).items()]
        [('rx', 256), ('tx', 256)]
    """
    names: dict[int, str] = {}
    drivers: dict[int, DriverQueue] = {}
    devices: dict[int, DeviceQueue] = {}
    for name, q in _found(path.machine.parts, set()):
        if isinstance(q, DriverQueue):
            drivers.setdefault(q.desc, q)
            names[q.desc] = name
        else:
            devices.setdefault(q.desc, q)
            names.setdefault(q.desc, name)
    taken: dict[str, int] = {}
    found = {}
    for desc in sorted(names):
        name = names[desc]
        taken[name] = taken.get(name, 0) + 1
        several = sum(n == name for n in names.values()) > 1
        found[f"{name}{taken[name] - 1}" if several else name] = look_at(drivers.get(desc), devices.get(desc))
    return found


def _found(obj: Any, seen: set[int], name: str = "queue") -> Iterator[tuple[str, DriverQueue | DeviceQueue]]:
    """Every queue that can be reached from an object through iosim's own, with the attribute that holds it."""
    if id(obj) in seen:
        return
    seen.add(id(obj))
    if isinstance(obj, DriverQueue | DeviceQueue):
        yield name, obj
    elif isinstance(obj, dict):
        for key, value in obj.items():
            yield from _found(value, seen, str(key))
    elif isinstance(obj, list | tuple):
        if obj and not isinstance(obj[0], int):
            for value in obj:
                yield from _found(value, seen, name)
    elif type(obj).__module__.startswith(("iosim.guest", "iosim.host", "iosim.models")):
        for key in getattr(type(obj), "__slots__", ()) or vars(obj):
            yield from _found(getattr(obj, key), seen, key)
