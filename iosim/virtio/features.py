"""Feature bits: what a device offers and a driver accepts (virtio 1.2, sections 2.2 and 6).

A constant is the number of a bit; a set of features is a plain integer. Names are those of Linux's and
QEMU's headers; the specification drops ``RING_`` from the names of bits 28 and 29, and both are understood.

Example:
    >>> features = feature_set(["VIRTIO_F_VERSION_1", "EVENT_IDX"])
    >>> has_feature(features, VIRTIO_RING_F_EVENT_IDX)
    True
    >>> feature_names(features)
    ['VIRTIO_RING_F_EVENT_IDX', 'VIRTIO_F_VERSION_1']
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from iosim.errors import IosimError, unknown

# Bits of every device, section 6.

#: The device notifies when it runs out of buffers, whatever was suppressed. Legacy devices only (6.3).
VIRTIO_F_NOTIFY_ON_EMPTY: Final = 24
#: The device makes no assumption about how messages are framed. Legacy devices only (6.3).
VIRTIO_F_ANY_LAYOUT: Final = 27
#: A descriptor may point to a table of descriptors (2.7.5.3, 2.8.7).
VIRTIO_RING_F_INDIRECT_DESC: Final = 28
#: Notifications are suppressed by `used_event` and `avail_event` (2.7.7, 2.7.10, 2.8.10).
VIRTIO_RING_F_EVENT_IDX: Final = 29
#: The device follows virtio 1.0 or later (6.1).
VIRTIO_F_VERSION_1: Final = 32
#: Addresses go through the platform's IOMMU or the like (6.1).
VIRTIO_F_ACCESS_PLATFORM: Final = 33
#: The queues are packed virtqueues (2.8).
VIRTIO_F_RING_PACKED: Final = 34
#: Buffers are used in the order in which they were made available (2.7.9, 2.8.13).
VIRTIO_F_IN_ORDER: Final = 35
#: Memory is ordered as the platform orders it for devices (6.1).
VIRTIO_F_ORDER_PLATFORM: Final = 36
#: The device supports Single Root I/O Virtualization (6.1).
VIRTIO_F_SR_IOV: Final = 37
#: A notification carries how far the driver got (2.9, 4.1.5.2).
VIRTIO_F_NOTIFICATION_DATA: Final = 38
#: A notification carries a value that the device chose (4.1.5.2).
VIRTIO_F_NOTIF_CONFIG_DATA: Final = 39
#: One queue can be reset alone (2.6.1).
VIRTIO_F_RING_RESET: Final = 40

# Bits of a network device, section 5.1.3.

#: The driver may leave checksums to the device.
VIRTIO_NET_F_CSUM: Final = 0
#: The driver takes packets without complete checksums.
VIRTIO_NET_F_GUEST_CSUM: Final = 1
#: Offloads can be changed while the device runs.
VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: Final = 2
#: The device says what MTU it has.
VIRTIO_NET_F_MTU: Final = 3
#: The device says what MAC address it has.
VIRTIO_NET_F_MAC: Final = 5
#: The device takes packets with any segmentation offload. Legacy devices only (5.1.3.2).
VIRTIO_NET_F_GSO: Final = 6
#: The driver takes TSOv4 packets.
VIRTIO_NET_F_GUEST_TSO4: Final = 7
#: The driver takes TSOv6 packets.
VIRTIO_NET_F_GUEST_TSO6: Final = 8
#: The driver takes TSO packets with ECN.
VIRTIO_NET_F_GUEST_ECN: Final = 9
#: The driver takes UFO packets.
VIRTIO_NET_F_GUEST_UFO: Final = 10
#: The device takes TSOv4 packets.
VIRTIO_NET_F_HOST_TSO4: Final = 11
#: The device takes TSOv6 packets.
VIRTIO_NET_F_HOST_TSO6: Final = 12
#: The device takes TSO packets with ECN.
VIRTIO_NET_F_HOST_ECN: Final = 13
#: The device takes UFO packets.
VIRTIO_NET_F_HOST_UFO: Final = 14
#: The driver can merge receive buffers (5.1.6.3.2).
VIRTIO_NET_F_MRG_RXBUF: Final = 15
#: The device says whether the link is up.
VIRTIO_NET_F_STATUS: Final = 16
#: There is a control queue (5.1.6.5).
VIRTIO_NET_F_CTRL_VQ: Final = 17
#: The control queue sets receive modes.
VIRTIO_NET_F_CTRL_RX: Final = 18
#: The control queue sets VLAN filters.
VIRTIO_NET_F_CTRL_VLAN: Final = 19
#: The control queue sets further receive modes (known to Linux and QEMU).
VIRTIO_NET_F_CTRL_RX_EXTRA: Final = 20
#: The driver can send gratuitous packets.
VIRTIO_NET_F_GUEST_ANNOUNCE: Final = 21
#: There are several pairs of queues (5.1.6.5.5).
VIRTIO_NET_F_MQ: Final = 22
#: The control queue sets the MAC address.
VIRTIO_NET_F_CTRL_MAC_ADDR: Final = 23
#: The device can coalesce notifications (5.1.6.5.6).
VIRTIO_NET_F_NOTF_COAL: Final = 53
#: The driver takes USOv4 packets.
VIRTIO_NET_F_GUEST_USO4: Final = 54
#: The driver takes USOv6 packets.
VIRTIO_NET_F_GUEST_USO6: Final = 55
#: The device takes USO packets.
VIRTIO_NET_F_HOST_USO: Final = 56
#: The device reports a hash per packet.
VIRTIO_NET_F_HASH_REPORT: Final = 57
#: The driver gives the exact length of a packet's headers.
VIRTIO_NET_F_GUEST_HDRLEN: Final = 59
#: The device spreads received packets over the queues by a hash.
VIRTIO_NET_F_RSS: Final = 60
#: The device tells how it coalesced segments.
VIRTIO_NET_F_RSC_EXT: Final = 61
#: The device stands by for another with the same MAC address.
VIRTIO_NET_F_STANDBY: Final = 62
#: The device says its speed and duplex mode.
VIRTIO_NET_F_SPEED_DUPLEX: Final = 63

# Bits of a block device, section 5.2.3.

#: Write barriers. Legacy devices only (5.2.3.1).
VIRTIO_BLK_F_BARRIER: Final = 0
#: The device says how long one buffer of a request may be.
VIRTIO_BLK_F_SIZE_MAX: Final = 1
#: The device says how many buffers of data a request may have.
VIRTIO_BLK_F_SEG_MAX: Final = 2
#: The device gives a geometry.
VIRTIO_BLK_F_GEOMETRY: Final = 4
#: The device cannot be written.
VIRTIO_BLK_F_RO: Final = 5
#: The device says what its block size is.
VIRTIO_BLK_F_BLK_SIZE: Final = 6
#: SCSI packet commands. Legacy devices only (5.2.3.1).
VIRTIO_BLK_F_SCSI: Final = 7
#: The device has a cache to be flushed.
VIRTIO_BLK_F_FLUSH: Final = 9
#: The device gives hints on alignment and the best sizes of requests.
VIRTIO_BLK_F_TOPOLOGY: Final = 10
#: The cache can be switched between writeback and writethrough.
VIRTIO_BLK_F_CONFIG_WCE: Final = 11
#: There are several request queues.
VIRTIO_BLK_F_MQ: Final = 12
#: Sectors can be discarded.
VIRTIO_BLK_F_DISCARD: Final = 13
#: Sectors can be zeroed without sending zeroes.
VIRTIO_BLK_F_WRITE_ZEROES: Final = 14
#: The device tells how worn it is.
VIRTIO_BLK_F_LIFETIME: Final = 15
#: Sectors can be erased with all their copies.
VIRTIO_BLK_F_SECURE_ERASE: Final = 16
#: The device is zoned (virtio 1.3).
VIRTIO_BLK_F_ZONED: Final = 17

# Bits of a console, section 5.3.3.

#: The device says how many columns and rows it has.
VIRTIO_CONSOLE_F_SIZE: Final = 0
#: There are several ports, and queues for control messages.
VIRTIO_CONSOLE_F_MULTIPORT: Final = 1
#: The device has a register to write characters to before its queues run.
VIRTIO_CONSOLE_F_EMERG_WRITE: Final = 2

# Bits of a traditional memory balloon, section 5.5.3.

#: The driver tells the device before it uses pages from the balloon.
VIRTIO_BALLOON_F_MUST_TELL_HOST: Final = 0
#: There is a queue for statistics.
VIRTIO_BALLOON_F_STATS_VQ: Final = 1
#: The balloon gives pages back when the guest runs out of memory.
VIRTIO_BALLOON_F_DEFLATE_ON_OOM: Final = 2
#: The driver tells which pages are free (for migration).
VIRTIO_BALLOON_F_FREE_PAGE_HINT: Final = 3
#: The driver says what it writes into free pages.
VIRTIO_BALLOON_F_PAGE_POISON: Final = 4
#: The driver reports pages as they become free.
VIRTIO_BALLOON_F_REPORTING: Final = 5

# Bits of a SCSI host, section 5.6.3.

#: A request may have data for the device and from it.
VIRTIO_SCSI_F_INOUT: Final = 0
#: The host tells when targets and logical units come and go.
VIRTIO_SCSI_F_HOTPLUG: Final = 1
#: The host tells when a logical unit's parameters change.
VIRTIO_SCSI_F_CHANGE: Final = 2
#: Requests carry data integrity fields.
VIRTIO_SCSI_F_T10_PI: Final = 3

# Entropy (5.4.3) and input devices (5.8.3) have no bits of their own.


def _named(*prefixes: str) -> dict[str, int]:
    """Return the constants above whose names begin with one of ``prefixes``."""
    return {name: bit for name, bit in globals().items() if name.startswith(prefixes)}


_COMMON: Final[dict[str, int]] = _named("VIRTIO_F_", "VIRTIO_RING_F_")
_DEVICES: Final[dict[str, dict[str, int]]] = {
    device: _named(f"VIRTIO_{device.upper()}_F_")
    for device in ("net", "blk", "console", "rng", "balloon", "scsi", "input")
}


def _table(device: str | None) -> dict[str, int]:
    if device is None:
        return _COMMON
    if device not in _DEVICES:
        raise unknown("virtio device type", device, _DEVICES)
    return _COMMON | _DEVICES[device]


def _short(name: str, device: str | None) -> str:
    """Return a name without what stands before every name (``MQ`` for ``VIRTIO_NET_F_MQ``)."""
    words = name.upper().split("_")
    while len(words) > 1 and words[0] in ("VIRTIO", "F", "RING", device.upper() if device else "F"):
        del words[0]
    return "_".join(words)


def feature_bit(name: str, device: str | None = None) -> int:
    """Return the number of the bit called ``name``.

    Args:
        name: As in Linux's headers or the specification, in any case, with or without its prefix
            (``VIRTIO_NET_F_MQ``, ``mq``, ``event_idx``).
        device: ``net``, ``blk``, ``console``, ``rng``, ``balloon``, ``scsi`` or ``input``, for its own bits
            too; otherwise the bits of every device.

    Raises:
        IosimError: There is no such bit, or no such device type.
    """
    table = _table(device)
    wanted = _short(name, device)
    for known, bit in table.items():
        if _short(known, device) == wanted:
            return bit
    raise unknown("virtio feature", name, table)


def feature_name(bit: int, device: str | None = None) -> str:
    """Return the name of a bit, or ``bit 41`` where it has none."""
    for name, number in _table(device).items():
        if number == bit:
            return name
    return f"bit {bit}"


def feature_names(features: int, device: str | None = None) -> list[str]:
    """Return the names of all bits set in ``features``, from the lowest bit to the highest.

    Raises:
        IosimError: ``features`` is negative.
    """
    if features < 0:
        raise IosimError(f"a set of features is not negative: {features}")
    return [feature_name(bit, device) for bit in range(features.bit_length()) if features >> bit & 1]


def feature_set(names: Iterable[str], device: str | None = None) -> int:
    """Return the set of the features with these names (see `feature_bit`)."""
    features = 0
    for name in names:
        features |= 1 << feature_bit(name, device)
    return features


def has_feature(features: int, bit: int) -> bool:
    """Tell whether ``bit`` is in ``features``."""
    return (features >> bit & 1) != 0
