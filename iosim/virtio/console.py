"""The console: ports that characters go in and out of, and control messages between them (virtio 1.2, 5.3).

Example:
    >>> from iosim.ring.memory import GuestMemory
    >>> from iosim.virtio.transport import Driver
    >>> console = ConsoleDevice(lambda port, data: print(f"port {port}: {data.decode()}"))
    >>> driver = Driver(console, GuestMemory(1 << 20))
    >>> driver.request(transmitq(0), b"login:", 0)
    port 0: login:
    b''
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Final, NamedTuple

from iosim.errors import IosimError
from iosim.ring.errors import RingError
from iosim.ring.virtqueue import DeviceSide, Element
from iosim.virtio import features as f
from iosim.virtio.device import RING_FEATURES, VirtioDevice
from iosim.virtio.errors import FormatError, RequestError
from iosim.virtio.ids import VIRTIO_ID_CONSOLE

#: Queue indexes of the control queues (5.3.2): to the driver, and from it.
CONTROL_RECEIVEQ: Final = 2
CONTROL_TRANSMITQ: Final = 3

#: Control events (5.3.6.2).
VIRTIO_CONSOLE_DEVICE_READY: Final = 0
VIRTIO_CONSOLE_PORT_ADD: Final = 1
VIRTIO_CONSOLE_PORT_REMOVE: Final = 2
VIRTIO_CONSOLE_PORT_READY: Final = 3
VIRTIO_CONSOLE_CONSOLE_PORT: Final = 4
VIRTIO_CONSOLE_RESIZE: Final = 5
VIRTIO_CONSOLE_PORT_OPEN: Final = 6
VIRTIO_CONSOLE_PORT_NAME: Final = 7

_CONTROL: Final = struct.Struct("<IHH")
_CONFIG: Final = struct.Struct("<HHII")
_EMERG_WR_OFFSET: Final = 8
#: Characters are handed on in pieces of at most so many.
_PIECE: Final = 1 << 16
#: Characters that wait for a driver that takes none, for each port; what comes then is not accepted.
_INPUT_MAX: Final = 1 << 20
#: Control messages that wait for buffers.
_MESSAGES_MAX: Final = 1024


def receiveq(port: int) -> int:
    """Return the queue index of a port's characters to the driver (5.3.2)."""
    return 0 if port == 0 else 2 * port + 2


def transmitq(port: int) -> int:
    """Return the queue index of a port's characters from the driver."""
    return receiveq(port) + 1


class Control(NamedTuple):
    """`struct virtio_console_control` (5.3.6.2): 8 bytes, and a name or a size behind some; little-endian."""

    #: Port.
    id: int
    #: VIRTIO_CONSOLE_*.
    event: int
    value: int = 0
    data: bytes = b""

    def pack(self) -> bytes:
        """Return the bytes.

        Raises:
            FormatError: A field does not fit.
        """
        try:
            return _CONTROL.pack(self.id, self.event, self.value) + self.data
        except struct.error as error:
            raise FormatError(f"a virtio-console control message cannot hold {self}: {error}") from None

    @classmethod
    def unpack(cls, data: bytes) -> Control:
        """Return the message in ``data``.

        Raises:
            FormatError: There are fewer than 8 bytes.
        """
        if len(data) < _CONTROL.size:
            raise FormatError(f"a virtio-console control message has {_CONTROL.size} bytes at least, not {len(data)}")
        port, event, value = _CONTROL.unpack_from(data)
        return cls(port, event, value, data[_CONTROL.size :])


class ConsoleDevice(VirtioDevice):
    """A console with one port or several (QEMU ``virtio-serial-bus.c``, ``virtconsole``).

    Args:
        output: Called with a port and the characters that the driver sent.
        ports: Ports, each with a name or an empty string. More than one needs MULTIPORT; port 0 is the console.
        size: Columns and rows, offered as SIZE if given.
        ring_features: See `VirtioDevice`.

    Attributes:
        open_ports: Ports that the driver has opened (with MULTIPORT; otherwise port 0 always is).
        ignored: Control messages that said nothing to the point.

    Raises:
        IosimError: There is no port, or there are too many.
    """

    device_id: ClassVar[int] = VIRTIO_ID_CONSOLE

    def __init__(
        self,
        output: Callable[[int, bytes], object],
        ports: tuple[str, ...] = ("",),
        size: tuple[int, int] | None = None,
        ring_features: int = RING_FEATURES,
    ) -> None:
        if not 1 <= len(ports) <= 31:
            raise IosimError(f"a console with {len(ports)} ports; choose 1 to 31")
        offered = 1 << f.VIRTIO_CONSOLE_F_EMERG_WRITE
        offered |= (size is not None) << f.VIRTIO_CONSOLE_F_SIZE
        offered |= (len(ports) > 1) << f.VIRTIO_CONSOLE_F_MULTIPORT
        super().__init__(offered, 2 if len(ports) == 1 else 2 * len(ports) + 2, ring_features)
        self.output = output
        self.ports = ports
        self.size = size or (0, 0)
        self._reset()

    def _reset(self) -> None:
        self.open_ports: set[int] = set()
        self.ignored = 0
        self._input: dict[int, bytearray] = {}
        self._messages: deque[bytes] = deque()

    @property
    def multiport(self) -> bool:
        """Whether MULTIPORT is negotiated."""
        return self.has(f.VIRTIO_CONSOLE_F_MULTIPORT)

    def _started(self) -> None:
        if not self.multiport:
            self.open_ports = {0}

    def config(self) -> bytes:
        """Return `struct virtio_console_config` (5.3.4), 12 bytes."""
        return _CONFIG.pack(*self.size, len(self.ports), 0)

    def _write_config(self, offset: int, data: bytes) -> None:
        # 5.3.5: before anything else works, a driver in need writes its last words here, one after the other.
        if offset == _EMERG_WR_OFFSET:
            self.output(0, data[:1])

    def _handle(self, index: int, queue: DeviceSide, budget: int | None) -> None:
        if self.multiport and index == CONTROL_RECEIVEQ:
            self._send_messages()
            return
        if self.multiport and index == CONTROL_TRANSMITQ:
            self._serve(index, queue, self._answer_control, budget)
        else:
            port = index // 2 if index < 2 else index // 2 - 1
            if not self.multiport and port:
                return
            if index % 2 == 0:
                self._give(port)
                return
            self._serve(index, queue, lambda element: self._answer_output(port, element), budget)

    def _answer_output(self, port: int, element: Element) -> int:
        for offset in range(0, element.out_size, _PIECE):
            self.output(port, element.read(offset, _PIECE))
        return 0

    def input(self, data: bytes, port: int = 0) -> list[int]:
        """Give the driver characters; they wait until there are buffers and the port is open.

        Args:
            data: The characters.
            port: The port.

        Returns:
            The queues whose driver is to be interrupted.

        Raises:
            IosimError: There is no such port, or too much is waiting there.
        """
        if not 0 <= port < len(self.ports):
            raise IosimError(f"port {port}; the console has ports 0 to {len(self.ports) - 1}")
        waiting = self._input.setdefault(port, bytearray())
        if len(waiting) + len(data) > _INPUT_MAX:
            raise IosimError(f"port {port} of the console: {len(waiting)} bytes are waiting, and nobody takes them")
        waiting += data
        self._try(lambda: self._give(port))
        return self._interrupts()

    def _try(self, action: Callable[[], None]) -> None:
        if self.status.running:
            try:
                action()
            except (RingError, RequestError) as error:
                self._break(error)

    def _give(self, port: int) -> None:
        """Put waiting characters into buffers (QEMU ``write_to_port``)."""
        waiting = self._input.get(port)
        index = receiveq(port)
        queue = self.queues.get(index)
        while waiting and queue is not None and port in self.open_ports:
            element = self._take(index, queue)
            if element is None:
                return
            done = element.write(waiting[: element.in_size])
            del waiting[:done]
            self._push(index, element, done)

    def _take(self, index: int, queue: DeviceSide) -> Element | None:
        element = queue.pop()
        if element is not None and not element.in_sg:
            raise RequestError(f"queue {index}: a receive buffer of virtio-console that cannot be written")
        return element

    # Control messages, 5.3.6.2.

    def _answer_control(self, element: Element) -> int:
        """Take a message (QEMU ``handle_control_message``); what makes no sense is ignored, as there."""
        if element.out_size < _CONTROL.size:
            self.ignored += 1
            return 0
        port, event, value, _ = Control.unpack(element.read(0, _CONTROL.size))
        if event == VIRTIO_CONSOLE_DEVICE_READY:
            if value:
                for number in range(len(self.ports)):
                    self._message(Control(number, VIRTIO_CONSOLE_PORT_ADD, 1))
            else:
                self.ignored += 1
        elif port >= len(self.ports):
            self.ignored += 1
        elif event == VIRTIO_CONSOLE_PORT_READY:
            if value:
                self._introduce(port)
        elif event == VIRTIO_CONSOLE_PORT_OPEN:
            if value:
                self.open_ports.add(port)
                self._give(port)
            else:
                self.open_ports.discard(port)
        else:
            self.ignored += 1
        return 0

    def _introduce(self, port: int) -> None:
        if port == 0:
            self._message(Control(port, VIRTIO_CONSOLE_CONSOLE_PORT, 1))
        if self.ports[port]:
            self._message(Control(port, VIRTIO_CONSOLE_PORT_NAME, 1, self.ports[port].encode()))
        self._message(Control(port, VIRTIO_CONSOLE_PORT_OPEN, 1))

    def _message(self, message: Control) -> None:
        if len(self._messages) < _MESSAGES_MAX:
            self._messages.append(message.pack())
        self._send_messages()

    def _send_messages(self) -> None:
        queue = self.queues.get(CONTROL_RECEIVEQ)
        while self._messages and queue is not None:
            element = self._take(CONTROL_RECEIVEQ, queue)
            if element is None:
                return
            # As QEMU's send_control_msg: what a buffer has no room for is lost.
            done = element.write(self._messages.popleft()[: element.in_size])
            self._push(CONTROL_RECEIVEQ, element, done)

    def resize(self, columns: int, rows: int) -> list[int]:
        """Change the console's size and tell the driver; return the queues to interrupt.

        Raises:
            IosimError: A number does not fit into 16 bits.
        """
        if not (0 <= columns <= 0xFFFF and 0 <= rows <= 0xFFFF):
            raise IosimError(f"a console of {columns} columns and {rows} rows; both are at most 65535")
        self.size = (columns, rows)
        if self.multiport:
            message = Control(0, VIRTIO_CONSOLE_RESIZE, 0, struct.pack("<HH", columns, rows))
            self._try(lambda: self._message(message))
        elif self.has(f.VIRTIO_CONSOLE_F_SIZE):
            self._config_changed()
        return self._interrupts()
