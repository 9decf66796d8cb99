"""Device types and their numbers (virtio 1.2, section 5; Linux ``include/uapi/linux/virtio_ids.h``)."""

from __future__ import annotations

from typing import Final

#: Network card (5.1).
VIRTIO_ID_NET: Final = 1
#: Block device (5.2).
VIRTIO_ID_BLOCK: Final = 2
#: Console (5.3).
VIRTIO_ID_CONSOLE: Final = 3
#: Entropy source (5.4).
VIRTIO_ID_RNG: Final = 4
#: Traditional memory balloon (5.5).
VIRTIO_ID_BALLOON: Final = 5
#: SCSI host (5.6).
VIRTIO_ID_SCSI: Final = 8
#: Input device (5.8).
VIRTIO_ID_INPUT: Final = 18

#: The short name of each type, as in feature names and in QEMU's ``virtio-<name>-pci`` (but `input`, of which
#: QEMU has several).
DEVICE_NAMES: Final[dict[int, str]] = {
    VIRTIO_ID_NET: "net",
    VIRTIO_ID_BLOCK: "blk",
    VIRTIO_ID_CONSOLE: "console",
    VIRTIO_ID_RNG: "rng",
    VIRTIO_ID_BALLOON: "balloon",
    VIRTIO_ID_SCSI: "scsi",
    VIRTIO_ID_INPUT: "input",
}
