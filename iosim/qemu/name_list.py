"""Long lists of QEMU's names, written as one reads them."""

from __future__ import annotations


def name_list(text: str) -> tuple[str, ...]:
    """Return the words of ``text``, for tables of names that are easier to read without quotes."""
    return tuple(text.split())
