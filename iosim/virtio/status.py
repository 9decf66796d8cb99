"""The device status: how far the driver got, and whether the device still works (virtio 1.2, 2.1 and 3.1.1).

Example:
    >>> status = DeviceStatus()
    >>> for bits in (ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK):
    ...     status.write(status.value | bits)
    >>> status
    DeviceStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    >>> status.write(status.value & ~DRIVER_OK)
    Traceback (most recent call last):
    ...
    iosim.virtio.errors.StatusError: the driver cleared DRIVER_OK; only a reset clears bits (2.1.1)
    >>> status.write(0)
    >>> status
    DeviceStatus(0)
"""

from __future__ import annotations

from typing import Final

from iosim.virtio.errors import StatusError

#: The guest has noticed the device.
ACKNOWLEDGE: Final = 1
#: The guest knows how to drive it.
DRIVER: Final = 2
#: The driver is set up and the device may work.
DRIVER_OK: Final = 4
#: The driver has accepted its features, and the device them.
FEATURES_OK: Final = 8
#: The device has met an error that only a reset mends.
DEVICE_NEEDS_RESET: Final = 64
#: The driver has given up.
FAILED: Final = 128

_NAMES: Final[dict[int, str]] = {
    ACKNOWLEDGE: "ACKNOWLEDGE",
    DRIVER: "DRIVER",
    FEATURES_OK: "FEATURES_OK",
    DRIVER_OK: "DRIVER_OK",
    DEVICE_NEEDS_RESET: "DEVICE_NEEDS_RESET",
    FAILED: "FAILED",
}
#: Bit -> the bits that must stand before (3.1.1: the order of the initialization).
_AFTER: Final[dict[int, int]] = {
    DRIVER: ACKNOWLEDGE,
    FEATURES_OK: ACKNOWLEDGE | DRIVER,
    DRIVER_OK: ACKNOWLEDGE | DRIVER | FEATURES_OK,
}


def status_names(value: int) -> list[str]:
    """Return the names of the bits in a status, in the order in which a driver sets them."""
    return [name for bit, name in _NAMES.items() if value & bit]


class DeviceStatus:
    """One device's status byte.

    Args:
        transitional: Whether DRIVER_OK may come without FEATURES_OK, as from a legacy driver (3.1.2).

    Attributes:
        value: The byte as the driver reads it.
    """

    __slots__ = ("transitional", "value")

    def __init__(self, transitional: bool = False) -> None:
        self.value = 0
        self.transitional = transitional

    def __repr__(self) -> str:
        return f"DeviceStatus({' | '.join(status_names(self.value)) or 0})"

    @property
    def features_ok(self) -> bool:
        """Whether features are settled; the driver changes them no more (3.1.1)."""
        return bool(self.value & FEATURES_OK)

    @property
    def driver_ok(self) -> bool:
        """Whether the driver has said that it is set up."""
        return bool(self.value & DRIVER_OK)

    @property
    def needs_reset(self) -> bool:
        """Whether the device has stopped."""
        return bool(self.value & DEVICE_NEEDS_RESET)

    @property
    def running(self) -> bool:
        """Whether the device may take buffers and notify: after DRIVER_OK, and not once it needs a reset (2.1.2)."""
        return self.value & (DRIVER_OK | DEVICE_NEEDS_RESET) == DRIVER_OK

    def check(self, value: int) -> None:
        """Raise unless the driver may write ``value`` now.

        Raises:
            StatusError: A bit is unknown, cleared without a reset, the device's own, or set out of order.
        """
        if value == 0:
            return
        if value < 0 or value & ~sum(_NAMES):
            raise StatusError(f"status {value:#x} has bits that do not exist (2.1)")
        # The device may set its bit between the driver's read and its write: that is no mistake of the driver's.
        cleared = self.value & ~value & ~DEVICE_NEEDS_RESET
        if cleared:
            names = ", ".join(status_names(cleared))
            raise StatusError(f"the driver cleared {names}; only a reset clears bits (2.1.1)")
        new = value & ~self.value
        if new & DEVICE_NEEDS_RESET:
            raise StatusError("the driver set DEVICE_NEEDS_RESET, which only the device does (2.1)")
        for bit, before in _AFTER.items():
            wanted = before & ~FEATURES_OK if self.transitional else before
            if new & bit and value & wanted != wanted:
                lacking = ", ".join(status_names(wanted & ~value))
                raise StatusError(f"the driver set {_NAMES[bit]} before {lacking} (3.1.1)")

    def write(self, value: int) -> None:
        """Take what the driver writes; 0 resets. Whoever settles features clears FEATURES_OK from ``value``.

        Raises:
            StatusError: See `check`; the status stays as it was.
        """
        self.check(value)
        self.value = value | (self.value & DEVICE_NEEDS_RESET if value else 0)

    def set_needs_reset(self) -> bool:
        """Note that the device has stopped; tell whether the driver is to be notified of it (2.1.2)."""
        self.value |= DEVICE_NEEDS_RESET
        return self.driver_ok
