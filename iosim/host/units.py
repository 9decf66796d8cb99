"""Times, rates and counts as people write them: ``5ms``, ``10Gbit/s``, ``100k``; inside, ps, bit/s and numbers."""

from __future__ import annotations

import math
import re
from typing import Final

from iosim.engine.distributions import Constant, Distribution, LogNormal, Uniform
from iosim.errors import IosimError, nearest

TIME_PS: Final[dict[str, int]] = {
    "ps": 1,
    "ns": 1_000,
    "us": 1_000_000,
    "µs": 1_000_000,
    "ms": 1_000_000_000,
    "s": 1_000_000_000_000,
}
RATE_BITS: Final[dict[str, int]] = {
    "bit/s": 1,
    "kbit/s": 10**3,
    "Mbit/s": 10**6,
    "Gbit/s": 10**9,
    "Tbit/s": 10**12,
}
COUNT: Final[dict[str, int]] = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}

LONGEST_PS: Final = 10**17
"""The longest time that may be given, a bit more than a day: sums of some ninety of them still fit 64 bits."""

_NUMBER = r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf)"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*(.*?)\s*$", re.IGNORECASE)
_SPREAD = re.compile(r"(.+?)\s*(?:±|\+-)\s*(.+)")
_RANGE = re.compile(r"(.+?)\s*\.\.\s*(.+)")


def _quantity(text: str, units: dict[str, int], what: str, example: str, where: str | None) -> tuple[float, str]:
    match = _QUANTITY.match(text)
    if match is None:
        raise IosimError(f"'{text}' is no {what}; write it as {example}", where)
    unit = match.group(2)
    if unit not in units:
        guess = nearest(unit, units) if unit else None
        hint = f"; did you mean '{guess}'?" if guess else f"; the units are {', '.join(u for u in units if u)}"
        missing = f"'{text}' has no unit" if not unit else f"unknown unit '{unit}' in '{text}'"
        raise IosimError(f"{missing}{hint}", where)
    value = float(match.group(1).replace("_", ""))
    if not math.isfinite(value) or value < 0:
        raise IosimError(f"{what} '{text}' must be a finite number, 0 or more", where)
    return value * units[unit], unit


def parse_time(value: object, where: str | None = None) -> int:
    """Return a time in ps: text with a unit (``"5ms"``); a bare 0 needs none.

    Raises:
        IosimError: No unit, an unknown one, negative, not finite, or longer than `LONGEST_PS`.
    """
    if isinstance(value, str):
        if value.strip() == "0":
            return 0
        ps, _ = _quantity(value, TIME_PS, "time", "'5us' or '2.5ms'", where)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0:
        return 0
    else:
        raise IosimError(f"{value!r} is no time; write it with its unit, as '5us' or '2.5ms'", where)
    if ps > LONGEST_PS:
        raise IosimError(f"{value!r} is too long; the longest time is {LONGEST_PS // 10**12} s", where)
    return round(ps)


def parse_cost(value: object, where: str | None = None) -> Distribution:
    """Return a cost as a setting gives it, in ps: a constant, a mean and its spread, or two limits (uniform).

    Raises:
        IosimError: As for `parse_time`; or a spread about 0, or limits that run backwards.

    Example:
        >>> parse_cost("500ns")
        Constant(value=500000.0)
        >>> parse_cost("500ns±40ns")
        LogNormal(mean=500000.0, spread=40000.0)
        >>> parse_cost("28us..32us")
        Uniform(low=28000000.0, high=32000000.0)
    """
    if isinstance(value, str):
        spread = _SPREAD.fullmatch(value.strip())
        if spread:
            mean, width = (parse_time(part, where) for part in spread.groups())
            if mean == 0 and width > 0:
                raise IosimError("a cost of mean 0 has no spread", where)
            return LogNormal(float(mean), float(width)) if width else Constant(float(mean))
        limits = _RANGE.fullmatch(value.strip())
        if limits:
            low, high = (parse_time(part, where) for part in limits.groups())
            if low > high:
                raise IosimError(f"'{value}' runs backwards", where)
            return Uniform(float(low), float(high)) if low < high else Constant(float(low))
    return Constant(float(parse_time(value, where)))


def parse_per_byte(text: str, where: str | None = None) -> float:
    """Return a time per byte in ps, which may be a fraction, from text as ``0.15ns/byte``."""
    time, slash, byte = text.partition("/")
    if not slash or byte.strip() != "byte":
        raise IosimError(f"'{text}' is no time per byte; write it as '0.15ns/byte'", where)
    ps, _ = _quantity(time, TIME_PS, "time per byte", "'0.15ns/byte'", where)
    if ps > 10**9:
        raise IosimError(f"'{text}' is too long; the longest is 1ms/byte", where)
    return ps


def parse_rate_bits(value: object, where: str | None = None) -> float:
    """Return a bit rate in bit/s from text with a unit (``"10Gbit/s"``); must be above 0."""
    if not isinstance(value, str):
        raise IosimError(f"{value!r} is no bit rate; write it as '10Gbit/s'", where)
    bits, _ = _quantity(value, RATE_BITS, "bit rate", "'10Gbit/s'", where)
    if not 1e3 <= bits <= 1e15:
        raise IosimError(f"bit rate '{value}' must lie between 1kbit/s and 1000Tbit/s", where)
    return bits


def parse_count(value: object, where: str | None = None) -> float:
    """Return a plain number from a number or text (``"100k"``)."""
    if isinstance(value, str):
        number, _ = _quantity(value, COUNT, "number", "'1000' or '100k'", where)
        return number
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise IosimError(f"{value!r} is no number", where)
    if (isinstance(value, float) and not math.isfinite(value)) or value < 0:
        raise IosimError(f"number {value} must be finite, 0 or more", where)
    if value > 10**300:
        raise IosimError("a number of more than 300 digits is too large", where)
    return float(value)


def show_time(ps: float, digits: int = 3) -> str:
    """Return a time for people, in the unit that suits it."""
    for unit in ("s", "ms", "µs", "ns"):
        if abs(ps) >= TIME_PS[unit]:
            return f"{ps / TIME_PS[unit]:.{digits}g} {unit}"
    return f"{ps / 1000:.{digits}g} ns" if ps else "0 ns"
