"""Which threads may run on which CPUs, as people write it: ``vcpu0:0,vhost:0`` (``host.pin``)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from iosim.engine.system import System
from iosim.errors import IosimError, unknown

NONE: Final = "none"
_PART: Final = re.compile(r"(?P<first>[0-9]{1,6})(?:-(?P<last>[0-9]{1,6}))?")


@dataclass(frozen=True)
class Pin:
    """Threads whose name matches ``pattern`` (``*``, ``?`` and ``[...]`` as in file names) run on ``cpus`` only."""

    pattern: str
    cpus: frozenset[int]

    def matches(self, name: str) -> bool:
        """Whether a thread of this name is meant."""
        return fnmatchcase(name, self.pattern)


def parse_pins(value: Any, cpus: int, where: str) -> tuple[Pin, ...]:
    """Return the pins in a text: ``THREADS:CPUS``, separated by ``,`` or ``+``; CPUs as `taskset -c` has them.

    Args:
        value: The text; ``none`` pins nothing.
        cpus: CPUs there are; 0: one for each thread, and nothing to pin.
        where: The key, for errors.

    Raises:
        IosimError: Malformed, or a CPU that there is not.

    Example:
        >>> for pin in parse_pins("vcpu*:0-1,3,vhost:0", 4, "host.pin"):
        ...     print(pin.pattern, sorted(pin.cpus))
        vcpu* [0, 1, 3]
        vhost [0]
    """
    if value == NONE:
        return ()
    if not isinstance(value, str) or not value.strip():
        raise IosimError(f"{value!r} pins nothing; write THREAD:CPUS, as vcpu0:0,vhost:0-1", where)
    if not cpus:
        raise IosimError("each thread has a CPU of its own; give host.cpus too, as host.cpus=2", where)
    found: list[tuple[str, set[int]]] = []
    for part in (p.strip() for p in re.split("[,+]", value)):
        name, colon, numbers = part.rpartition(":")
        if not colon and not found:
            raise IosimError(f"'{part}' pins nothing; write THREAD:CPUS, as vcpu0:0,vhost:0-1", where)
        if colon:
            found.append((name.strip(), set()))
        # Without a name it goes on with the CPUs of the thread before: vhost:0,2-3.
        found[-1][1].update(_cpus(numbers.strip() if colon else part, part, cpus, where))
    return tuple(Pin(name, frozenset(numbers)) for name, numbers in found)


def _cpus(text: str, part: str, cpus: int, where: str) -> range:
    match = _PART.fullmatch(text)
    if match is None:
        raise IosimError(f"'{part}' names no CPUs; write THREAD:CPUS, as vcpu0:0,vhost:0-1", where)
    first, last = int(match["first"]), int(match["last"] or match["first"])
    if first > last:
        raise IosimError(f"'{part}' runs backwards", where)
    if last >= cpus:
        there = "CPU 0 only" if cpus == 1 else f"CPUs 0 to {cpus - 1}"
        raise IosimError(f"'{part}' asks for CPU {last}; with host.cpus={cpus} there is {there}", where)
    return range(first, last + 1)


def pin(system: System, pins: tuple[Pin, ...], where: str) -> None:
    """Pin the threads of a system; of several pins for one thread the last counts.

    Raises:
        IosimError: A pin is for no thread there is.
    """
    names = [thread.name for thread in system.threads]
    for item in pins:
        meant = [number for number, name in enumerate(names) if item.matches(name)]
        if not meant:
            raise unknown("thread", item.pattern, names, where)
        for number in meant:
            system.pin(number, item.cpus)
