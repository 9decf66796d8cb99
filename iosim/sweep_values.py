"""What a sweep varies: from ``KEY=VALUES``, as it is typed, to typed values.

>>> parse_pair("workload.depth=1..1024*4")
('workload.depth', (1, 4, 16, 64, 256, 1024))
>>> parse_pair("workload.think_time=0us..30us:10us")
('workload.think_time', ('0us', '10us', '20us', '30us'))
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any, Final

import numpy as np

from iosim.errors import IosimError, unknown
from iosim.host.units import COUNT, RATE_BITS, TIME_PS
from iosim.settings import literal

Value = bool | int | float | str
"""A value of a varied key: a number, on or off, or text (a name, or a quantity with its unit)."""
Values = tuple[Value, ...]

MAX_VALUES: Final = 1_000_000
"""The most values of one key, and the most points of one sweep."""

NAME_KEYS: Final = ("model", "host", "workload.name", "workload.arrivals")
"""Keys whose values are names: never numbers, truth values or ranges (``../my.toml`` is a host)."""

_NUMBER, _TIME, _RATE = "number", "time", "bit rate"
_UNITS: Final[dict[str, tuple[str, int]]] = {
    **{unit: (_NUMBER, scale) for unit, scale in COUNT.items()},
    **{unit: (_TIME, scale) for unit, scale in TIME_PS.items()},
    **{unit: (_RATE, scale) for unit, scale in RATE_BITS.items()},
}
_TRUTH: Final = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
_QUANTITY: Final = re.compile(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*(\S*)")
_RANGE: Final = re.compile(r"(.*?)\s*\.\.\s*(.*?)\s*(?:([:*])\s*(.*))?")
_DIGITS: Final = 30
"""Powers of ten that numbers may have: beyond, no setting has a use for them and sums would be inexact."""
_EXACT: Final = decimal.Context(prec=3 * _DIGITS)


def values_of(vary: Mapping[str, Any] | Iterable[str]) -> dict[str, Values]:
    """Return the values of each varied key, in the order given.

    Args:
        vary: Values by key (a sequence, or text as on the command line), or texts ``KEY=VALUES``.

    Raises:
        IosimError: A malformed text, a key given twice, no values or too many; the key is named.
    """
    if isinstance(vary, str):
        vary = [vary]
    pairs = list(vary.items()) if isinstance(vary, Mapping) else [_split(text) for text in vary]
    found: dict[str, Values] = {}
    for name, given in pairs:
        key = _canonical(name)
        if key in found:
            raise IosimError("is varied twice; give all its values at once", key)
        found[key] = parse_values(key, given) if isinstance(given, str) else _listed(key, given)
    return found


def parse_pair(text: str) -> tuple[str, Values]:
    """Return key and values of one ``KEY=VALUES``."""
    name, values = _split(text)
    key = _canonical(name)
    return key, parse_values(key, values)


def parse_values(key: str, text: str) -> Values:
    """Return the values in a text: a list (``1,16,64``) of single values and of ranges, ends included.

    A range is ``a..b`` (whole numbers), ``a..b:step`` or ``a..b*factor``; quantities have their unit
    (``0us..100us:10us``), and the values of a range have the unit of its start.

    Raises:
        IosimError: What is wrong with it, and the key.
    """
    values: list[Value] = []
    for item in text.split(","):
        values += _item(key, item.strip())
        if len(values) > MAX_VALUES:
            raise IosimError(f"has more than {MAX_VALUES} values", key)
    return _distinct(key, values)


def _split(text: object) -> tuple[str, str]:
    if not isinstance(text, str):
        raise IosimError(f"{text!r} is nothing to vary; write KEY=VALUES, as 'workload.depth=1,16,64'")
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise IosimError(f"'{text}' is nothing to vary; write KEY=VALUES, as workload.depth=1,16,64")
    return key.strip(), values.strip()


def _canonical(key: object) -> str:
    if not isinstance(key, str):
        raise IosimError(f"{key!r} is no key to vary; it is a name, as 'workload.depth'")
    # As everywhere in iosim, "workload" alone is its name.
    return "workload.name" if key == "workload" else key


def _listed(key: str, given: Any) -> Values:
    """The values of a Python sequence (a list, a range, an array); a single value stands for itself."""
    items = list(islice(given, MAX_VALUES + 1)) if isinstance(given, Iterable) else [given]
    if len(items) > MAX_VALUES:
        raise IosimError(f"has more than {MAX_VALUES} values", key)
    return _distinct(key, [plain(key, item) for item in items])


def plain(key: str, value: Any) -> Value:
    """Return a value as what JSON and Parquet know: numbers of numpy become Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value if key in NAME_KEYS else _single(key, value.strip())
    if isinstance(value, (bool, int, float)):
        if not abs(value) < 2**63:
            raise IosimError(f"{value!s:.20} is too large or no number", key)
        return value
    raise IosimError(f"{value!r} is no value; it is a number, on or off, or text", key)


def _distinct(key: str, values: Sequence[Value]) -> Values:
    if not values:
        raise IosimError("has no values to vary over", key)
    seen: set[tuple[bool, Value]] = set()
    for value in values:
        # True == 1 in Python, but not here.
        if (isinstance(value, bool), value) in seen:
            raise IosimError(f"has the value {shown(value)} twice", key)
        seen.add((isinstance(value, bool), value))
    return tuple(values)


def shown(value: Value) -> str:
    """Return a value as it is typed."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _item(key: str, text: str) -> list[Value]:
    if not text:
        raise IosimError("has an empty value in its list", key)
    match = None if key in NAME_KEYS else _RANGE.fullmatch(text)
    if match is None:
        return [text if key in NAME_KEYS else _single(key, text)]
    if match.group(3) is None and key.startswith("host.costs."):
        return [text]  # a cost drawn evenly between two times: 28us..32us is one value
    return _range(key, text, *match.groups())


def _single(key: str, text: str) -> Value:
    if text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    match = _QUANTITY.fullmatch(text)
    if match and match.group(2) in COUNT:
        return _number(_quantity(key, text)[0])
    value: Value = literal(text)
    return value if isinstance(value, str) else plain(key, value)


def _quantity(key: str, text: str) -> tuple[Decimal, str, str]:
    """A number in the basic unit of its kind (1, ps, bit/s), its kind and its unit."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise IosimError(f"'{text:.40}' is no number, time or bit rate to step from or by", key)
    unit = match.group(2)
    if unit not in _UNITS:
        raise unknown("unit", unit, [name for name in _UNITS if name], key)
    number = _decimal(match.group(1))
    if number is None or (number and not -_DIGITS <= number.adjusted() < 18):
        raise IosimError(f"'{text:.40}' is too large or too small", key)
    kind, scale = _UNITS[unit]
    return _EXACT.multiply(number, scale), kind, unit


def _decimal(text: str) -> Decimal | None:
    """The number, or None where its exponent is more than even a decimal can have."""
    try:
        return Decimal(text)
    except decimal.InvalidOperation:
        return None


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _range(key: str, text: str, first: str, last: str, how: str | None, by: str | None) -> list[Value]:
    low, kind, unit = _quantity(key, first)
    high, other, other_unit = _quantity(key, last)
    if low == 0 and not unit:
        kind, unit = other, other_unit
    if kind != other:
        raise IosimError(f"'{text}' goes from a {kind} to a {other}; give both the same unit", key)
    if low > high:
        raise IosimError(f"'{text}' runs backwards", key)
    if how is None and (kind != _NUMBER or _EXACT.remainder(low, 1) or _EXACT.remainder(high, 1)):
        raise IosimError(f"'{text}' needs its step or factor, as {text}:{first or 1} or {text}*2", key)
    if how == "*":
        numbers = _by_factor(key, text, low, high, by or "")
    else:
        numbers = _by_step(key, text, low, high, kind, by if how else "1")
    if kind == _NUMBER:
        return [_number(number) for number in numbers]
    scale = _UNITS[unit][1]
    return [f"{float(_EXACT.divide(number, Decimal(scale))):.15g}{unit}" for number in numbers]


def _by_step(key: str, text: str, low: Decimal, high: Decimal, kind: str, by: str | None) -> list[Decimal]:
    step, step_kind, _ = _quantity(key, by or "")
    if step_kind != kind:
        raise IosimError(f"'{text}' has a {step_kind} as the step of a {kind}", key)
    if step <= 0:
        raise IosimError(f"'{text}' has a step of 0", key)
    # As a float first: the quotient may have more digits than are kept.
    if float(high - low) / float(step) >= MAX_VALUES:
        raise IosimError(f"'{text}' has more than {MAX_VALUES} values", key)
    steps = int(_EXACT.divide_int(_EXACT.subtract(high, low), step))
    return [_EXACT.fma(step, i, low) for i in range(steps + 1)]


def _by_factor(key: str, text: str, low: Decimal, high: Decimal, by: str) -> list[Decimal]:
    factor, kind, _ = _quantity(key, by)
    if kind != _NUMBER or factor <= 1:
        raise IosimError(f"'{text}' needs a factor above 1, without a unit", key)
    if low == 0:
        raise IosimError(f"'{text}' never leaves 0: start a range with a factor above it", key)
    numbers = []
    while low <= high:
        numbers.append(low)
        if len(numbers) > MAX_VALUES:
            raise IosimError(f"'{text}' has more than {MAX_VALUES} values", key)
        low = _EXACT.multiply(low, factor)
    return numbers
