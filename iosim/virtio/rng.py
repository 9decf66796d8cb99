"""The entropy source: a device that fills buffers with random bytes (virtio 1.2, 5.4).

It has one queue, no features and no configuration. A buffer comes back with at least one byte (5.4.6.1).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ClassVar

from iosim.ring.virtqueue import Element
from iosim.virtio.device import RING_FEATURES, VirtioDevice
from iosim.virtio.errors import RequestError
from iosim.virtio.ids import VIRTIO_ID_RNG


class RngDevice(VirtioDevice):
    """An entropy source (QEMU ``hw/virtio/virtio-rng.c``).

    Args:
        entropy: Returns ``n`` random bytes; fewer, but one at least, are allowed. The host's by default.
        max_bytes: Bytes given for one buffer at most (what is longer comes back partly filled).
        ring_features: See `VirtioDevice`.
    """

    device_id: ClassVar[int] = VIRTIO_ID_RNG

    def __init__(
        self,
        entropy: Callable[[int], bytes] = os.urandom,
        max_bytes: int = 1 << 16,
        ring_features: int = RING_FEATURES,
    ) -> None:
        super().__init__(0, 1, ring_features)
        self.entropy = entropy
        self.max_bytes = max(1, max_bytes)

    def _answer(self, index: int, element: Element) -> int:
        if element.out_sg or not element.in_sg:
            raise RequestError(f"queue {index}: virtio-rng takes buffers to write into, and nothing to read (5.4.6)")
        return element.write(self.entropy(min(element.in_size, self.max_bytes)))
