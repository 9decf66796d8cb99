"""Files are written aside and renamed, so that nothing is ever half written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from iosim.errors import IosimError


@contextlib.contextmanager
def write_aside(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give the name of a file beside ``path`` to write to; it becomes ``path`` when the block ends without error.

    Raises:
        IosimError: The file cannot be written there.
    """
    target = Path(path)
    if target.is_dir():
        raise IosimError("is a directory; name a file in it", str(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise IosimError(f"cannot be written: {error.strerror}", str(target)) from None
    try:
        yield aside
        # mkstemp makes files that only their owner may read; the result is an ordinary file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(aside, 0o666 & ~mask)
        os.replace(aside, target)
    except OSError as error:
        raise IosimError(f"cannot be written: {error.strerror}", str(target)) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file, aside and renamed; return its path."""
    with write_aside(path) as aside:
        Path(aside).write_text(text, encoding="utf-8")
    return Path(path)
