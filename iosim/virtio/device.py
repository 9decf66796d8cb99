"""What every virtio device has: features, a status, a configuration space, queues (virtio 1.2, section 2).

`VirtioDevice` is the base of the functional devices (`iosim.virtio.blk`, `iosim.virtio.net`, ...). It stands
between a transport, which calls it for what the driver does to registers, and the virtqueues, whose device
sides the transport gives it. Transports are the in-process one of `iosim.virtio.transport`, or vhost-user.

Two ways in:

* a transport with a status register: `write_features`, `set_queue`, `write_status`, then `handle_queue`;
* one without (vhost-user, where QEMU keeps the status): `start` with the accepted features, then `handle_queue`.

`handle_queue`, and whatever else makes a device use buffers, returns the queues whose driver is to be
interrupted, as the rings say. The transport does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from iosim.ring.errors import RingError
from iosim.ring.virtqueue import DeviceSide, Element
from iosim.virtio.errors import NegotiationError, RequestError, StatusError, VirtioError
from iosim.virtio.features import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, has_feature
from iosim.virtio.ids import DEVICE_NAMES
from iosim.virtio.negotiation import check_accepted, check_offered
from iosim.virtio.status import ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, DeviceStatus

#: What a device offers of the rings' features unless its transport says otherwise.
RING_FEATURES: Final = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX


def serve(queue: DeviceSide, answer: Callable[[Element], int], budget: int | None = None) -> int:
    """Take and answer everything there is in a queue; return how many elements that were.

    The loop of every device: notifications off while there is work; armed again when there is none; and then
    one more look, because what came in between is not notified (2.7.10; QEMU ``virtio_blk_handle_vq``).

    Args:
        queue: The queue.
        answer: Does what an element asks for and returns the number of bytes it wrote into it.
        budget: Stop after so many elements if there are more; notifications then stay off and the caller
            comes back by itself. Without it a driver on another processor can hold the device here.

    Raises:
        RingError: What the driver wrote into the ring cannot be.
        RequestError: An element that cannot be answered.
    """
    done = 0
    while True:
        queue.set_notification(False)
        while (budget is None or done < budget) and (element := queue.pop()) is not None:
            queue.push(element, answer(element))
            done += 1
        if budget is not None and done >= budget and not queue.empty():
            return done
        queue.set_notification(True)
        if queue.empty():
            return done


class VirtioDevice:
    """A functional device without a queue format; subclasses say what a request is.

    Args:
        features: The device's own features, as a set.
        num_queues: How many queues it has.
        ring_features: Those of the rings and the transport that it offers besides; they only have to be what
            the queues can do that the transport makes.
        transitional: Whether it works for a driver without VIRTIO_F_VERSION_1 too.

    Attributes:
        host_features: What the device offers.
        guest_features: What the driver accepted, 0 before.
        num_queues: How many queues the device has.
        queues: The queues that the driver has set up, by index.
        status: The device status.
        config_generation: Changes when the configuration space does (2.5.1).
        on_config_change: Called when the driver is to get a configuration change notification.
        unfinished: Queues that `handle_queue` left before they were empty, its budget being spent: call it again.
        error: What the driver did that stopped the device, or else what it did last that was refused; or None.

    Raises:
        NegotiationError: The features cannot be offered together.
    """

    #: VIRTIO_ID_*.
    device_id: ClassVar[int] = 0

    def __init__(
        self, features: int, num_queues: int, ring_features: int = RING_FEATURES, transitional: bool = False
    ) -> None:
        self.host_features = features | ring_features
        check_offered(self.host_features, self.name)
        self.guest_features = 0
        self.num_queues = num_queues
        self.queues: dict[int, DeviceSide] = {}
        self.status = DeviceStatus(transitional)
        self.config_generation = 0
        self.on_config_change: Callable[[], None] = lambda: None
        self.error: VirtioError | RingError | None = None
        self.unfinished: set[int] = set()
        self._used: set[int] = set()
        self._depth = 0

    @property
    def name(self) -> str | None:
        """The device type's short name, as in feature names."""
        return DEVICE_NAMES.get(self.device_id)

    # What a driver does through the transport.

    def has(self, bit: int) -> bool:
        """Tell whether a feature is negotiated."""
        return has_feature(self.guest_features, bit)

    def write_features(self, features: int) -> None:
        """Take the features that the driver accepts; refused in silence once FEATURES_OK stands (3.1.1)."""
        if self.status.features_ok or self.status.driver_ok:
            self.error = NegotiationError("the driver wrote features after FEATURES_OK (3.1.1)")
            return
        self.guest_features = features

    def write_status(self, value: int) -> int:
        """Take what the driver writes into the status; return the status as it reads then.

        0 resets. FEATURES_OK stays clear if the device cannot work with the accepted features (3.1.1, step 6).
        What no driver may write changes nothing. In both cases `error` says why.
        """
        if value == 0:
            self.reset()
            return 0
        try:
            self.status.check(value)
        except StatusError as error:
            self.error = error
            return self.status.value
        was_ok = self.status.driver_ok
        if value & FEATURES_OK and not self.status.features_ok:
            try:
                check_accepted(self.host_features, self.guest_features, self.name, self.status.transitional)
                self._check_features(self.guest_features)
            except NegotiationError as error:
                self.error = error
                value &= ~(FEATURES_OK | DRIVER_OK)
        self.status.write(value)
        if self.status.driver_ok and not was_ok:
            self._started()
        return self.status.value

    def start(self, features: int) -> None:
        """Reset and go through the whole initialization, for a transport that has no status register.

        What needs what is not checked: behind vhost-user the device is only the data path of another one, which
        keeps features to itself (QEMU answers virtio-net's control queue, so MQ comes without CTRL_VQ).

        Args:
            features: What the driver accepted. Bits that belong to the transport (vhost-user's bit 30) are to
                be taken away before.

        Raises:
            NegotiationError: A feature was not offered, or VERSION_1 is missing.
        """
        self.restart()
        check_accepted(self.host_features, features, None, self.status.transitional)
        self._check_features(features)
        self.guest_features = features
        self.status.write(ACKNOWLEDGE | DRIVER)
        self.status.write(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        self.status.write(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        self._started()

    def restart(self) -> None:
        """Go back to the state after `reset`, but keep the queues: a transport may set them up before `start`."""
        queues = self.queues
        self.reset()
        self.queues = queues

    def set_queue(self, index: int, queue: DeviceSide | None) -> None:
        """Give the device its side of a queue, or take it away with None.

        Raises:
            VirtioError: The device has no such queue.
        """
        if not 0 <= index < self.num_queues:
            raise VirtioError(f"queue {index}; the device has queues 0 to {self.num_queues - 1}")
        self._queue_changed(index)
        if queue is None:
            self.queues.pop(index, None)
            self.unfinished.discard(index)
        else:
            self.queues[index] = queue

    def handle_queue(self, index: int, budget: int | None = None) -> list[int]:
        """Do what the driver's notification of a queue asks for.

        Before DRIVER_OK, and once the device needs a reset, nothing is taken (2.1.2, 3.1.1). If the driver has
        broken a rule that leaves no answer, `error` says which, and the device needs a reset.

        Args:
            index: The queue.
            budget: See `serve`; None for no limit.

        Returns:
            The queues whose driver is to be interrupted: mostly this one, or none.
        """
        queue = self.queues.get(index)
        if queue is None or not self.status.running:
            return []
        self._depth += 1
        self.unfinished.discard(index)
        try:
            self._handle(index, queue, budget)
        except (RingError, RequestError) as error:
            self._break(error)
        finally:
            self._depth -= 1
        return self._interrupts()

    def read_config(self, offset: int, length: int) -> bytes:
        """Return bytes of the configuration space; 0xff beyond its end (QEMU ``virtio_config_modern_readb``)."""
        if offset < 0 or length <= 0:
            return b""
        found = self.config()[offset : offset + length]
        return found + b"\xff" * (length - len(found))

    def write_config(self, offset: int, data: bytes) -> None:
        """Take what the driver writes into the configuration space; what is not the driver's to write is ignored."""
        if offset < 0 or not data or offset + len(data) > len(self.config()):
            return
        self._write_config(offset, data)

    def reset(self) -> None:
        """Return to the state before any driver came (2.4): no features, no queues, status 0."""
        self.guest_features = 0
        self.queues = {}
        self.status = DeviceStatus(self.status.transitional)
        self.error = None
        self._used.clear()
        self._reset()

    # What subclasses say.

    def config(self) -> bytes:
        """Return the configuration space."""
        return b""

    def _write_config(self, offset: int, data: bytes) -> None:
        """Take bytes that lie in the configuration space."""

    def _check_features(self, features: int) -> None:
        """Raise `NegotiationError` if this device cannot work with a set that the rules allow."""

    def _started(self) -> None:
        """Prepare for work: the driver has set DRIVER_OK."""

    def _reset(self) -> None:
        """Return what the subclass keeps to its initial state."""

    def _queue_changed(self, index: int) -> None:
        """Forget what was kept of a queue that is set up anew."""

    def _handle(self, index: int, queue: DeviceSide, budget: int | None) -> None:
        """Process a queue that was notified; by default, answer every element."""
        self._serve(index, queue, lambda element: self._answer(index, element), budget)

    def _answer(self, index: int, element: Element) -> int:
        """Do what one element asks for and return the number of bytes written into it."""
        raise NotImplementedError

    # For subclasses.

    def _serve(
        self, index: int, queue: DeviceSide, answer: Callable[[Element], int], budget: int | None
    ) -> None:
        """Answer what there is in a queue (`serve`), and note what `handle_queue` has to know of it."""
        done = serve(queue, answer, budget)
        if done:
            self._used.add(index)
        if done == budget:
            self.unfinished.add(index)

    def _push(self, index: int, element: Element, length: int) -> None:
        """Give an element back, outside `serve`."""
        self.queues[index].push(element, length)
        self._used.add(index)

    def _interrupts(self) -> list[int]:
        """Return the queues used since the last call whose driver wants to hear of it.

        A back end may answer at once, from inside `handle_queue`; only the outermost call then tells.
        """
        if self._depth:
            return []
        used = sorted(self._used)
        self._used.clear()
        # Also once the device needs a reset: what was answered before that is the driver's. Not before DRIVER_OK.
        if not self.status.driver_ok:
            return []
        return [index for index in used if index in self.queues and self.queues[index].should_notify()]

    def _break(self, error: VirtioError | RingError) -> None:
        """Stop (QEMU ``virtio_error``): the device needs a reset, and tells so if DRIVER_OK stands (2.1.2)."""
        self.error = error
        for queue in self.queues.values():
            queue.broken = True
        if self.status.set_needs_reset():
            self.on_config_change()

    def _config_changed(self) -> None:
        """Note that the configuration space has changed; tell a driver that is set up (2.5.1)."""
        self.config_generation = (self.config_generation + 1) & 0xFF
        if self.status.driver_ok:
            self.on_config_change()
