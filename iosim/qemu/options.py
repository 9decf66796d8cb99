"""QEMU's ``key=value,key=value`` lists, and the kinds of value in them.

Source: ``util/qemu-option.c`` (``get_opt_value``, ``opts_do_parse``) and ``qapi/qobject-input-visitor.c``
(booleans) of QEMU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from iosim.errors import IosimError, unknown

TRUE = ("on", "yes", "true", "y")
FALSE = ("off", "no", "false", "n")
_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*\Z")
_SIZE = re.compile(r"(\d+(?:\.\d+)?|0[xX][0-9a-fA-F]+)([bBkKmMgGtTpPeE]?)\Z")
_SUFFIXES = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}


@dataclass
class KeyValues:
    """The parts of one option's argument.

    Args:
        head: The value of the first, implied key (``tap`` of ``-netdev tap,id=net0``), or "".
        values: Key to value; of a key given twice, the last counts, as in QEMU.
        option: The option as the user wrote it, without its argument (``-netdev``), for errors.
        where: ``file:line``.
    """

    head: str
    values: dict[str, str]
    option: str
    where: str
    line: int = 0

    def error(self, message: str) -> IosimError:
        """Build the error for something wrong with this argument."""
        return IosimError(f"{self.option}: {message}", self.where)

    def check_keys(self, valid: Iterable[str], prefixes: Iterable[str] = ()) -> None:
        """Refuse the first key that is neither in ``valid`` nor begins with one of ``prefixes``."""
        known = set(valid)
        starts = tuple(prefixes)
        for key in self.values:
            if key not in known and not (starts and key.startswith(starts)):
                # The type of a back end or device tells which keys are meant; a size or count does not.
                name = f"{self.option} {self.head}" if self.head[:1].isalpha() else self.option
                raise unknown(f"{name} key", key, known, self.where)

    def text(self, key: str, default: str = "") -> str:
        """Return the value of ``key`` as it stands."""
        return self.values.get(key, default)

    def boolean(self, key: str, default: bool = False) -> bool:
        """Return the value of ``key`` as on or off.

        Raises:
            IosimError: It is neither.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if value in TRUE:
            return True
        if value in FALSE:
            return False
        raise self.error(f"{key}={value}: expects 'on' or 'off'")

    def integer(self, key: str, low: int, high: int, default: int = 0) -> int:
        """Return the value of ``key`` as a whole number from ``low`` to ``high``.

        Raises:
            IosimError: It is no number, or outside.
        """
        value = self.values.get(key)
        if value is None:
            return default
        number = whole_number(value)
        if number is None or not low <= number <= high:
            raise self.error(f"{key}={value}: expects a number from {low} to {high}")
        return number

    def identifier(self, key: str = "id") -> str:
        """Return the value of ``key`` as an identifier of QEMU's, or "".

        Raises:
            IosimError: It does not begin with a letter, or has others than letters, digits, ``-._``.
        """
        value = self.values.get(key)
        if value is None:
            return ""
        if not _ID.match(value):
            raise self.error(f"{key}={value}: expects a letter, then letters, digits, '-', '.', '_'")
        return value


def parse_key_values(text: str, option: str, where: str, line: int = 0, implied: str = "") -> KeyValues:
    """Read a ``key=value`` list; a key alone is ``on``, and ``,,`` stands for one comma in a value.

    A list in JSON, as libvirt writes it for ``-device``, is read too.

    Args:
        text: The argument.
        option: The option with its dash, for errors.
        where: ``file:line`` for errors.
        line: The line alone.
        implied: The key whose value may come first without it (``type`` of ``-netdev``), or "".

    Raises:
        IosimError: A part without a key, or JSON that is none.
    """
    if text.startswith("{"):
        return _from_json(text, option, where, line, implied)
    result = KeyValues("", {}, option, where, line)
    parts = list(_parts(text))
    if len(parts) > 1 and not parts[-1]:
        parts.pop()  # QEMU lets a trailing comma pass
    for index, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if index == 0 and implied and not equals:
            result.head = part
        elif not key:
            raise result.error(f"'{text}' has a part without a key; expects key=value,key=value")
        else:
            result.values[key] = value if equals else "on"
    if implied in result.values:
        result.head = result.values.pop(implied)
    return result


def _parts(text: str) -> Iterator[str]:
    """Split at single commas; a doubled comma belongs to the part."""
    start = ""
    for piece in re.split(r"(,,|,)", text):
        if piece == ",":
            yield start
            start = ""
        else:
            start += "," if piece == ",," else piece
    yield start


def _from_json(text: str, option: str, where: str, line: int, implied: str) -> KeyValues:
    try:
        document = json.loads(text)
        if isinstance(document, dict):
            document = {key: _flat(value) for key, value in document.items()}
    except (ValueError, RecursionError) as error:
        raise IosimError(f"{option}: this is no JSON ({error})", where) from None
    if not isinstance(document, dict):
        raise IosimError(f"{option}: expects a JSON object", where)
    values: dict[str, str] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            values.update({f"{key}.{inner}": text for inner, text in value.items()})
        else:
            values[key] = value
    head = values.pop(implied, "")
    return KeyValues(head, values, option, where, line)


def _flat(value: object) -> str | dict[str, str]:
    """Return a JSON value as QEMU's text form has it; deeper levels than one keep their JSON."""
    if isinstance(value, dict):
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in value.items()}
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else json.dumps(value)


def whole_number(text: str) -> int | None:
    """Return the number that C's strtol with base 0 reads, or None if ``text`` is none."""
    if not re.fullmatch(r"[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)", text, re.ASCII) or len(text) > 20:
        return None
    return int(text, 16) if "x" in text.lower() else int(text)


def size_in_bytes(text: str, default_suffix: str) -> int | None:
    """Return the size QEMU reads (``2048``, ``2G``, ``1.5G``), in bytes, or None if ``text`` is none.

    Args:
        text: The size.
        default_suffix: The unit of a size without one: ``b``, ``k``, ``m``, ``g``, ``t``, ``p`` or ``e``.
    """
    found = _SIZE.match(text)
    if not found or len(text) > 24 or not text.isascii():
        return None
    number, suffix = found[1], (found[2] or default_suffix).lower()
    unit: int = 1 << _SUFFIXES[suffix]
    if number.lower().startswith("0x"):
        return int(number, 16) * unit
    whole, _, fraction = number.partition(".")
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
