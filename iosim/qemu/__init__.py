"""QEMU command lines: what a line builds, and which I/O path it asks for.

>>> from iosim.qemu import network_path, parse
>>> machine = parse("kvm -netdev tap,id=n0,vhost=on -device virtio-net-pci,netdev=n0", "example")
>>> machine.nics[0].slot, machine.nics[0].guest_driver
('00:03.0', 'virtio_net')
>>> network_path(machine).model
'vhost-net'
"""

from __future__ import annotations

import os
from pathlib import Path as _FilePath

from iosim.errors import IosimError
from iosim.qemu.build import build
from iosim.qemu.command_line import read_command_line, read_command_lines
from iosim.qemu.machine import Disk, Machine, Nic, PciDevice
from iosim.qemu.path import Path, network_path
from iosim.qemu.several import network_paths
from iosim.qemu.show import render, to_dict

__all__ = [
    "Disk",
    "Machine",
    "Nic",
    "Path",
    "PciDevice",
    "network_path",
    "network_paths",
    "parse",
    "parse_all",
    "read_file",
    "read_machines",
    "render",
    "to_dict",
]

#: A command line longer than Linux takes (MAX_ARG_STRLEN times what a script may add) is none.
_MAX_BYTES = 1 << 20


def parse(text: str, source: str) -> Machine:
    """Build the machine of the QEMU command in ``text``.

    Args:
        text: The command as one types it, or a shell script that holds it.
        source: A name for it, which errors and warnings give with the line.

    Raises:
        IosimError: The text is no QEMU command, QEMU would refuse it, or iosim knows no such machine.
    """
    return build(read_command_line(text, source))


def parse_all(text: str, source: str) -> list[Machine]:
    """Build the machines of all QEMU commands in ``text``: guests of one host.

    Raises:
        IosimError: As for :func:`parse`.

    Example:
        >>> two = "kvm -net nic -net tap -daemonize; kvm -net nic,macaddr=52:54:00:12:34:57 -net tap"
        >>> [machine.nics[0].model for machine in parse_all(two, "example")]
        ['e1000', 'e1000']
    """
    return [build(line) for line in read_command_lines(text, source)]


def read_file(path: str | os.PathLike[str]) -> Machine:
    """Build the machine of the QEMU command in a file.

    Args:
        path: The file; errors call it as it is called here.

    Raises:
        IosimError: As for :func:`parse`, or the file cannot be read as text.
    """
    return parse(_text(path), os.fspath(path))


def read_machines(path: str | os.PathLike[str]) -> list[Machine]:
    """Build the machines of all QEMU commands in a file.

    Raises:
        IosimError: As for :func:`read_file`.
    """
    return parse_all(_text(path), os.fspath(path))


def _text(path: str | os.PathLike[str]) -> str:
    source = os.fspath(path)
    try:
        with _FilePath(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise IosimError(f"cannot be read: {reason}", source) from None
    if len(content) > _MAX_BYTES:
        raise IosimError("is too long for a QEMU command line (over 1 MiB)", source)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise IosimError("is not a text file; it should hold a QEMU command line", source)
    return text
