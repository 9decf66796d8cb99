"""Errors that people see: one line that says what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IosimError(Exception):
    """Something a user typed cannot be done; the message is one line and is all the user sees.

    Args:
        message: What is wrong and what would be right, without a final full stop.
        where: The place it stands in (``file:line``, a key, an option), put in front of the message.
    """

    def __init__(self, message: str, where: str | None = None) -> None:
        text = f"{where}: {message}" if where else message
        super().__init__(" ".join(text.split()))


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the name in ``valid`` that ``name`` was most likely meant to be, or None."""
    names = list(valid)
    lowered = {candidate.lower(): candidate for candidate in names}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.5)
    if found:
        return lowered[found[0]]
    # 'net' for 'virtio-net', 'requests' for 'run.requests': a whole part of the name was typed.
    parts = [c for c in names if name and name.lower() in c.lower()]
    return min(parts, key=len) if parts else None


def unknown(what: str, name: str, valid: Iterable[str], where: str | None = None) -> IosimError:
    """Build the error for a name that does not exist, with the nearest one that does."""
    names = sorted(valid)
    guess = nearest(name, names)
    if guess is not None:
        hint = f"; did you mean '{guess}'?"
    elif 0 < len(names) <= 12:
        hint = f"; there is {', '.join(names)}"
    else:
        hint = ""
    return IosimError(f"unknown {what} '{name}'{hint}", where)
