"""What a driver, or a device, can get wrong above the rings: named errors of one line.

The specification says MUST to the driver and leaves open what a device does about it. Here a device does as
QEMU: a mistake that leaves no way to answer (``virtio_error``) stops the device, which then needs a reset;
any other is answered in the request's status.
"""

from __future__ import annotations

from iosim.errors import IosimError


class VirtioError(IosimError):
    """A driver or a device broke a rule of the virtio specification."""


class NegotiationError(VirtioError):
    """A set of features that cannot be offered or accepted (2.2, 5.1.3.1, 6)."""


class StatusError(VirtioError):
    """A write to the device status that no driver may do (2.1.1, 3.1.1)."""


class FormatError(VirtioError):
    """Bytes that are not the structure they should be, or a field that does not fit into one."""


class RequestError(VirtioError):
    """A request that a device cannot even answer: too short, or without a buffer for the answer.

    The device stops and needs a reset, as with QEMU's ``virtio_error``.
    """
