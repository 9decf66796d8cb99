"""Input devices: events to the driver, a status from it, and a space to ask what there is (virtio 1.2, 5.8).

Types and codes are Linux's (``include/uapi/linux/input-event-codes.h``).

Example:
    >>> keys = keyboard()
    >>> keys.write_config(0, bytes([VIRTIO_INPUT_CFG_ID_NAME, 0]))
    >>> size = keys.read_config(2, 1)[0]
    >>> keys.read_config(8, size)
    b'iosim keyboard'
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Final, NamedTuple

from iosim.errors import IosimError
from iosim.ring.errors import RingError
from iosim.ring.virtqueue import DeviceSide, Element
from iosim.virtio.device import RING_FEATURES, VirtioDevice
from iosim.virtio.errors import FormatError, RequestError
from iosim.virtio.ids import VIRTIO_ID_INPUT

#: Queue indexes (5.8.2).
EVENTQ: Final = 0
STATUSQ: Final = 1

#: `select` in the configuration space (5.8.4).
VIRTIO_INPUT_CFG_UNSET: Final = 0x00
VIRTIO_INPUT_CFG_ID_NAME: Final = 0x01
VIRTIO_INPUT_CFG_ID_SERIAL: Final = 0x02
VIRTIO_INPUT_CFG_ID_DEVIDS: Final = 0x03
VIRTIO_INPUT_CFG_PROP_BITS: Final = 0x10
VIRTIO_INPUT_CFG_EV_BITS: Final = 0x11
VIRTIO_INPUT_CFG_ABS_INFO: Final = 0x12

#: Event types, and the event that ends a group of those that belong together.
EV_SYN: Final = 0x00
EV_KEY: Final = 0x01
EV_REL: Final = 0x02
EV_ABS: Final = 0x03
EV_LED: Final = 0x11
EV_REP: Final = 0x14
SYN_REPORT: Final = 0

_EVENT: Final = struct.Struct("<HHI")
#: Bytes of what the driver can ask for at once.
_UNION: Final = 128


class InputEvent(NamedTuple):
    """`struct virtio_input_event` (5.8.6): 8 bytes, little-endian."""

    #: EV_*.
    type: int
    code: int
    #: As 32 bits without sign; a relative movement of -1 is 0xffffffff.
    value: int

    def pack(self) -> bytes:
        """Return the 8 bytes.

        Raises:
            FormatError: A field does not fit.
        """
        try:
            return _EVENT.pack(self.type, self.code, self.value & 0xFFFFFFFF)
        except struct.error as error:
            raise FormatError(f"a virtio-input event cannot hold {self}: {error}") from None

    @classmethod
    def unpack(cls, data: bytes) -> InputEvent:
        """Return the event at the start of ``data``.

        Raises:
            FormatError: There are fewer than 8 bytes.
        """
        if len(data) < _EVENT.size:
            raise FormatError(f"a virtio-input event has {_EVENT.size} bytes, not {len(data)}")
        return cls._make(_EVENT.unpack_from(data))


class AbsInfo(NamedTuple):
    """`struct virtio_input_absinfo` (5.8.4): the range of an absolute axis, 20 bytes."""

    min: int
    max: int
    fuzz: int = 0
    flat: int = 0
    res: int = 0


def bitmap(codes: Iterable[int]) -> bytes:
    """Return codes as a bitmap without zeroes at its end.

    Raises:
        IosimError: A code has no place in 128 bytes.
    """
    bits = 0
    for code in codes:
        if not 0 <= code < 8 * _UNION:
            raise IosimError(f"event code {code}; there is room for 0 to {8 * _UNION - 1} (5.8.4)")
        bits |= 1 << code
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


class InputDevice(VirtioDevice):
    """An input device (QEMU ``hw/input/virtio-input.c``).

    Args:
        name: At most 128 bytes.
        codes: The codes of each event type that it sends or takes (EV_KEY, ...).
        serial: At most 128 bytes; none by default.
        ids: Bus type, vendor, product, version.
        properties: INPUT_PROP_* numbers.
        axes: Ranges of absolute axes by code.
        status: Called with each event that the driver sends (LEDs).
        ring_features: See `VirtioDevice`.

    Attributes:
        dropped: Events for which there were no buffers, with all of their group.

    Raises:
        IosimError: Something does not fit.
    """

    device_id: ClassVar[int] = VIRTIO_ID_INPUT

    def __init__(
        self,
        name: str,
        codes: Mapping[int, Iterable[int]],
        serial: str = "",
        ids: tuple[int, int, int, int] = (6, 0x0627, 0x0001, 0x0001),
        properties: Iterable[int] = (),
        axes: Mapping[int, AbsInfo] | None = None,
        status: Callable[[InputEvent], object] | None = None,
        ring_features: int = RING_FEATURES,
    ) -> None:
        super().__init__(0, 2, ring_features)
        self._answers: dict[tuple[int, int], bytes] = {
            (VIRTIO_INPUT_CFG_ID_NAME, 0): name.encode(),
            (VIRTIO_INPUT_CFG_ID_SERIAL, 0): serial.encode(),
            (VIRTIO_INPUT_CFG_ID_DEVIDS, 0): struct.pack("<4H", *ids),
            (VIRTIO_INPUT_CFG_PROP_BITS, 0): bitmap(properties),
        }
        for kind, members in codes.items():
            self._answers[VIRTIO_INPUT_CFG_EV_BITS, kind] = bitmap(members)
        for axis, info in (axes or {}).items():
            self._answers[VIRTIO_INPUT_CFG_ABS_INFO, axis] = struct.pack("<5i", *info)
        for data in self._answers.values():
            if len(data) > _UNION:
                raise IosimError(f"'{data.decode(errors='replace')}' is longer than {_UNION} bytes (5.8.4)")
        self.status_changed = status
        self.dropped = 0
        self._reset()

    def _reset(self) -> None:
        self._select = self._subsel = 0
        self._group: list[InputEvent] = []
        self._held: deque[Element] = deque()

    def _queue_changed(self, index: int) -> None:
        if index == EVENTQ:
            self._held.clear()

    def config(self) -> bytes:
        """Return `struct virtio_input_config` (5.8.4), 136 bytes: what the driver has selected."""
        data = self._answers.get((self._select, self._subsel), b"")
        return struct.pack("<BBB5x", self._select, self._subsel, len(data)) + data.ljust(_UNION, b"\0")

    def _write_config(self, offset: int, data: bytes) -> None:
        # 5.8.5.2: select and subsel are the driver's; QEMU takes them in one write or in two.
        for place, value in enumerate(data, offset):
            if place == 0:
                self._select = value
            elif place == 1:
                self._subsel = value

    def _handle(self, index: int, queue: DeviceSide, budget: int | None) -> None:
        if index == STATUSQ:
            super()._handle(index, queue, budget)
        # New event buffers are taken when there are events.

    def _answer(self, index: int, element: Element) -> int:
        """Take one event from the driver (QEMU ``virtio_input_handle_sts``)."""
        if element.out_size < _EVENT.size:
            raise RequestError(f"queue {index}: a virtio-input event of {element.out_size} bytes, not {_EVENT.size}")
        event = InputEvent.unpack(element.read(0, _EVENT.size))
        if self.status_changed is not None:
            self.status_changed(event)
        return 0

    def send(self, events: Sequence[InputEvent]) -> list[int]:
        """Send events; those up to a SYN_REPORT go together, or not at all (QEMU ``virtio_input_send``).

        Returns:
            The queues whose driver is to be interrupted.

        Raises:
            FormatError: An event has a field that does not fit.
        """
        for event in events:
            event.pack()
            self._group.append(event)
            if (event.type, event.code) == (EV_SYN, SYN_REPORT):
                group, self._group = self._group, []
                try:
                    self._send_group(group)
                except (RingError, RequestError) as error:
                    self._break(error)
        return self._interrupts()

    def _send_group(self, group: list[InputEvent]) -> None:
        queue = self.queues.get(EVENTQ)
        if queue is None or not self.status.running:
            self.dropped += len(group)
            return
        while len(self._held) < len(group):
            element = queue.pop()
            if element is None:
                # Those taken stay for the next group: the ring has no way back (QEMU: virtqueue_unpop).
                self.dropped += len(group)
                return
            if element.in_size < _EVENT.size:
                raise RequestError(f"queue {EVENTQ}: an event buffer of {element.in_size} bytes, not {_EVENT.size}")
            self._held.append(element)
        for event in group:
            element = self._held.popleft()
            self._push(EVENTQ, element, element.write(event.pack()))


def keyboard(status: Callable[[InputEvent], object] | None = None) -> InputDevice:
    """Return a keyboard with the keys of a PC's, autorepeat and three LEDs (QEMU ``virtio-keyboard``)."""
    codes = {EV_KEY: range(1, 128), EV_REP: (0, 1), EV_LED: (0, 1, 2)}
    return InputDevice("iosim keyboard", codes, status=status)


def tablet() -> InputDevice:
    """Return a pointing device with absolute positions, three buttons and a wheel (QEMU ``virtio-tablet``)."""
    axes = {0: AbsInfo(0, 0x7FFF), 1: AbsInfo(0, 0x7FFF)}
    codes = {EV_KEY: range(0x110, 0x113), EV_REL: (8,), EV_ABS: axes}
    return InputDevice("iosim tablet", codes, ids=(6, 0x0627, 0x0003, 0x0001), axes=axes)
