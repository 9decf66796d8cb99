"""The path of a socket, checked before anything is offered on it."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Final

from iosim.errors import IosimError

#: Bytes of a unix socket's path that Linux takes: `sun_path` has 108, the last is 0 (unix(7)).
LONGEST: Final = 107


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def check_socket(text: str) -> Path:
    """Return the path, if a socket can be made there.

    Raises:
        IosimError: It is too long, something is there already, or the directory is missing or not ours to write.
    """
    path = Path(text)
    where = "--socket"
    if not text or "\0" in text:
        raise IosimError("the path is empty; give the file to make, as disk.sock", where)
    length = len(os.fsencode(text))
    if length > LONGEST:
        raise IosimError(f"a socket's path has at most {LONGEST} bytes, this one has {length}; choose a shorter", where)
    try:
        found = path.lstat()
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise IosimError(f"cannot make {text}: {error.strerror}", where) from None
    if found is not None:
        if not stat.S_ISSOCK(found.st_mode):
            raise IosimError(f"{text} exists and is no socket; choose another name", where)
        if _somebody_listens(path):
            raise IosimError(f"somebody else listens on {text}; choose another name", where)
        raise IosimError(f"{text} exists, and nobody listens on it; remove it or choose another name", where)
    directory = path.parent
    if not directory.is_dir():
        raise IosimError(f"cannot make {text}: there is no directory {directory}", where)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise IosimError(f"cannot make {text}: {directory} is not writable", where)
    return path
