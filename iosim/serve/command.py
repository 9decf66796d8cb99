"""`iosim serve`: offer a device, print what to type, and show its rings until Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
from rich.console import Console
from rich.live import Live

from iosim.errors import IosimError
from iosim.qemu.options import size_in_bytes
from iosim.serve.guests import qemu_options, uml_parameter
from iosim.serve.place import LONGEST
from iosim.serve.run import Offer, Service, Stop
from iosim.serve.view import DeviceState, line, render

#: Seconds between two lines where the output is no terminal, and between two pictures where it is.
_LINE_INTERVAL: Final = 1.0
_PICTURE_INTERVAL: Final = 0.2
_LARGEST_QUEUE: Final = 32768


def serve(
    kind: str, *, size: str | None = None, queue_size: int | None = None, once: bool = False, **more: Any
) -> None:
    """Serve a device until Ctrl-C (`KeyboardInterrupt`), or until the first driver has gone.

    Args:
        kind: vhost-user-blk or vhost-user-net.
        size: Size of a disk in memory, as QEMU reads sizes (`64M`).
        queue_size: Descriptors of each queue in the command line that is printed.
        once: Return when the first driver has gone.
        **more: See `iosim.serve.run.Offer`.

    Raises:
        IosimError: The device cannot be offered.
    """
    if queue_size is not None and not (0 < queue_size <= _LARGEST_QUEUE and queue_size & (queue_size - 1) == 0):
        raise IosimError(f"{queue_size} descriptors; QEMU takes a power of two up to {_LARGEST_QUEUE}", "--queue-size")
    offer = Offer(kind, size=_bytes(size), **more)
    stop = Stop()
    with _signals(stop):
        if sys.stdout.isatty():
            _serve_live(offer, stop, queue_size, once)
        else:
            _serve_lines(offer, stop, queue_size, once)


def _bytes(size: str | None) -> int | None:
    if size is None:
        return None
    found = size_in_bytes(size, "b")
    if found is None:
        raise IosimError(f"'{size}' is no size; write 64M or 67108864", "--size")
    if not 0 < found <= 1 << 40:
        raise IosimError(f"a disk of {size}; choose up to 1T (it is in memory)", "--size")
    return found


def _heading(offer: Offer, queue_size: int | None) -> None:
    click.echo(f"{offer.kind} on {offer.socket}; Ctrl-C ends it. For a guest in QEMU add:")
    # Whoever starts the guest may be in another directory; but a whole path can be longer than a socket's may be.
    whole = os.path.abspath(offer.socket)
    path = whole if len(os.fsencode(whole)) <= LONGEST else offer.socket
    options = qemu_options(
        offer.kind, path, queues=offer.queues, queue_size=queue_size, packed=offer.packed
    )
    for number, text in enumerate(options):
        click.echo(f"  {text}{' ' + chr(92) if number < len(options) - 1 else ''}")
    click.echo(f"or for user-mode Linux: {uml_parameter(offer.kind, path)}")
    sys.stdout.flush()


def _report(text: str) -> None:
    click.echo(f"iosim: {text}", err=True)


def _serve_live(offer: Offer, stop: Stop, queue_size: int | None, once: bool) -> None:
    console = Console(highlight=False)
    # The picture is drawn from the loop that serves, so that it never shows half of a step.
    with Live(console=console, auto_refresh=False) as picture:

        def show(state: DeviceState) -> None:
            picture.update(render(state), refresh=True)

        with Service(offer, _report, show, _PICTURE_INTERVAL, stop) as service:
            _heading(offer, queue_size)
            try:
                service.run(once)
            finally:
                show(service.state())


def _serve_lines(offer: Offer, stop: Stop, queue_size: int | None, once: bool) -> None:
    last: DeviceState | None = None

    def show(state: DeviceState) -> None:
        nonlocal last
        last = state
        click.echo(line(state))
        sys.stdout.flush()

    with Service(offer, _report, show, _LINE_INTERVAL, stop) as service:
        _heading(offer, queue_size)
        try:
            service.run(once)
        finally:
            if service.state() != last:
                show(service.state())


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end this between two elements, not wherever Python is: the socket is to be removed.

    A KeyboardInterrupt out of nowhere would be lost where it hits a finalizer, and could leave a ring half written.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
        found = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
        if stop.reason is not None:
            raise found  # Asked twice: at once.
        stop.reason = found

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
