"""Whole messages over a unix socket, with their file descriptors."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from iosim.vhost_user.errors import DisconnectedError, HungError, MessageFdError, VhostUserError
from iosim.vhost_user.messages import HEADER_SIZE, MAX_REGIONS, Header, encode, request_name


class Message(NamedTuple):
    """A message as it came."""

    header: Header
    payload: bytes
    #: Descriptors that came with it; whoever takes the message closes them.
    fds: list[int]


def close_fds(fds: Sequence[int]) -> None:
    """Close descriptors nobody has a use for."""
    for fd in fds:
        os.close(fd)


class Channel:
    """One end of a vhost-user connection.

    Args:
        sock: A connected stream socket; the channel closes it.
        timeout: Seconds after which an end that says nothing in the middle of a message counts as hung.
    """

    def __init__(self, sock: socket.socket, timeout: float = 5.0) -> None:
        self.sock = sock
        self.timeout = timeout
        sock.settimeout(timeout)

    def send(self, request: int, payload: bytes = b"", flags: int = 0, fds: Sequence[int] = ()) -> None:
        """Send one message.

        Raises:
            DisconnectedError: Nobody is there any more.
            HungError: The other end does not read.
        """
        data = encode(request, payload, flags)
        try:
            sent = socket.send_fds(self.sock, [data], list(fds)) if fds else self.sock.send(data)
            if sent < len(data):
                self.sock.sendall(data[sent:])
        except TimeoutError:
            raise HungError(f"the other end did not read {request_name(request)} in {self.timeout:g} s") from None
        except OSError as error:
            raise DisconnectedError(f"the other end is gone ({error.strerror})") from None

    def receive(self) -> Message:
        """Wait for one whole message.

        Raises:
            DisconnectedError: The other end closed the socket.
            HungError: Nothing, or no whole message, came in time.
            VhostUserError: The header is garbage, or more descriptors came than any message has.
        """
        fds: list[int] = []
        try:
            data = b""
            while len(data) < HEADER_SIZE:
                data += self._some(HEADER_SIZE - len(data), fds)
            header = Header.unpack(data)
            payload = b""
            while len(payload) < header.size:
                payload += self._some(header.size - len(payload), fds)
        except VhostUserError:
            close_fds(fds)
            raise
        return Message(header, payload, fds)

    def _some(self, count: int, fds: list[int]) -> bytes:
        room = socket.CMSG_SPACE(MAX_REGIONS * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(count, room, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise HungError(f"the other end sent no whole message in {self.timeout:g} s") from None
        except OSError as error:
            raise DisconnectedError(f"the other end is gone ({error.strerror})") from None
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                fds.extend(numbers)
        if flags & socket.MSG_CTRUNC or len(fds) > MAX_REGIONS:
            raise MessageFdError(f"more than {MAX_REGIONS} file descriptors came with one message")
        if not data:
            raise DisconnectedError("the other end closed the connection")
        return data

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()
