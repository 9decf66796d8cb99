"""A small driver for a virtio network device: what the tests drive testpmd's vhost ports with."""

from __future__ import annotations

import time
from collections import deque

from iosim.ring.memory import allocate, read_bytes, write_bytes
from iosim.ring.virtqueue import Buffer
from iosim.vhost_user.errors import HungError
from iosim.vhost_user.frontend import Frontend, FrontendQueue
from iosim.virtio.features import VIRTIO_NET_F_MRG_RXBUF, has_feature
from iosim.virtio.net import NET_HDR_LEN, RECEIVEQ, TRANSMITQ, NetHdr


class NetDriver:
    """One pair of queues.

    Args:
        frontend: The connection; features are negotiated, memory is shared.
        size: Descriptors of each queue.
        rx_bytes: Bytes of a receive buffer; a packet that is longer needs MRG_RXBUF.
        tx_bytes: Bytes of the longest packet sent.
    """

    def __init__(self, frontend: Frontend, size: int = 256, rx_bytes: int = 2048, tx_bytes: int = 2048) -> None:
        mem = frontend.mem
        assert mem is not None
        self.mem = mem
        self.timeout = frontend.channel.timeout
        self.receive: FrontendQueue = frontend.add_queue(RECEIVEQ, size)
        self.transmit: FrontendQueue = frontend.add_queue(TRANSMITQ, size)
        self.rx_bytes = rx_bytes
        self.mergeable = has_feature(frontend.features, VIRTIO_NET_F_MRG_RXBUF)
        self.received: deque[bytes] = deque()
        self.merged = 0
        self._slots = [
            (allocate(mem, NET_HDR_LEN, 4), allocate(mem, tx_bytes, 4)) for _ in range(max(1, size // 4))
        ]
        for _ in range(size):
            addr = allocate(mem, rx_bytes, 64)
            self.receive.driver.add([], [Buffer(addr, rx_bytes)], addr)
        self.receive.kick()
        self._parts: list[bytes] = []
        self._left = 0

    def reclaim(self) -> None:
        while (used := self.transmit.driver.get_buf()) is not None:
            self._slots.append(used.data)

    def send(self, packet: bytes, pieces: int = 1) -> None:
        """Make one packet available: the header, then the packet in so many pieces."""
        until = time.monotonic() + self.timeout
        while not self._slots or self.transmit.driver.num_free < pieces + 1:
            self.reclaim()
            if time.monotonic() > until:
                raise HungError("sent packets do not come back")
        header, payload = slot = self._slots.pop()
        write_bytes(self.mem, header, NetHdr().pack())
        write_bytes(self.mem, payload, packet)
        step = -(-len(packet) // pieces)
        out = [Buffer(header, NET_HDR_LEN)]
        out += [Buffer(payload + at, min(step, len(packet) - at)) for at in range(0, len(packet), step)]
        self.transmit.driver.add(out, [], slot)

    def collect(self) -> None:
        """Take what has been received, and give the buffers back."""
        driver = self.receive.driver
        again = []
        while (used := driver.get_buf()) is not None:
            data = read_bytes(self.mem, used.data, min(used.length, self.rx_bytes))
            again.append(used.data)
            if self._left == 0:
                header = NetHdr.unpack(data)
                # Linux does not look at num_buffers either without MRG_RXBUF. It has to be 1 (5.1.6.4.1); DPDK 22.11
                # says 0.
                self._left = header.num_buffers if self.mergeable else 1
                self.merged += self._left > 1
                assert self._left >= 1, header
                data = data[NET_HDR_LEN:]
            self._parts.append(data)
            self._left -= 1
            if self._left == 0:
                self.received.append(b"".join(self._parts))
                self._parts = []
        for addr in again:
            driver.add([], [Buffer(addr, self.rx_bytes)], addr)
        if again:
            self.receive.kick()

    def expect(self, count: int) -> list[bytes]:
        """Wait for packets as an interrupt handler does, and return them."""
        driver = self.receive.driver
        while True:
            self.collect()
            if len(self.received) >= count:
                return [self.received.popleft() for _ in range(count)]
            if driver.enable_cb():
                if not self.receive.wait(self.timeout):
                    raise HungError(f"{len(self.received)} of {count} packets came in {self.timeout:g} s")
            driver.disable_cb()
