"""What can go wrong between two ends of a vhost-user socket, each with a name of its own and one line."""

from __future__ import annotations

from iosim.errors import IosimError


class VhostUserError(IosimError):
    """The other end, the memory it shares or the socket is not as the protocol wants it."""


class DisconnectedError(VhostUserError):
    """The other end closed the socket."""


class HungError(VhostUserError):
    """The other end did not answer in time."""


class MessageFlagsError(VhostUserError):
    """A message's flags name another version, or bits nobody has defined."""


class MessageSizeError(VhostUserError):
    """A message's payload is longer or shorter than its request has it."""


class MessageFdError(VhostUserError):
    """A message came with more or fewer file descriptors than its request has."""


class UnknownRequestError(VhostUserError):
    """A request number this end does not know."""


class FeatureError(VhostUserError):
    """Features were taken that had not been offered, or that belong together came apart."""


class QueueIndexError(VhostUserError):
    """A message names a queue the device does not have."""


class RegionError(VhostUserError):
    """A memory region cannot be mapped, or an address lies in none."""


class NotSharedError(VhostUserError):
    """Something needs guest memory before it was shared."""


class FenceError(VhostUserError):
    """This machine gives Python no way to order a store before a load."""


class RefusedError(VhostUserError):
    """The other end answered a request with a failure (REPLY_ACK)."""


class BlockRequestError(VhostUserError):
    """A block device answered IOERR or UNSUPP."""
