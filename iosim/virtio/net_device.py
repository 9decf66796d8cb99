"""A functional network device over its queues: receive, transmit, control (virtio 1.2, 5.1; QEMU ``virtio-net.c``).

Packets go out through a callback and come in through `NetDevice.receive`; what lies behind (a tap, a wire, an
echo) is the caller's.

Example:
    >>> from iosim.ring.memory import GuestMemory
    >>> from iosim.virtio.net import NetHdr, packet_out
    >>> from iosim.virtio.transport import Driver
    >>> sent = []
    >>> device = NetDevice(lambda packet, header: sent.append(packet))
    >>> driver = Driver(device, GuestMemory(1 << 20))
    >>> driver.request(1, *packet_out(b"hello, world"))
    b''
    >>> sent
    [b'hello, world']
    >>> driver.submit(0, [], [driver._arena])
    >>> device.receive(b"\\xff" * 6 + b"and back")
    [0]
    >>> reply = driver.collect(0)[0]
    >>> NetHdr.unpack(reply.contents).num_buffers, reply.contents[12 : reply.length]
    (1, b'\\xff\\xff\\xff\\xff\\xff\\xffand back')
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Final

from iosim.errors import IosimError
from iosim.ring.errors import RingError
from iosim.ring.virtqueue import DeviceSide, Element
from iosim.virtio import features as f
from iosim.virtio import net
from iosim.virtio.device import RING_FEATURES, VirtioDevice
from iosim.virtio.errors import FormatError, RequestError
from iosim.virtio.features import feature_set, has_feature
from iosim.virtio.ids import VIRTIO_ID_NET
from iosim.virtio.net import NetConfig, NetHdr

#: What a device offers that answers its own control queue.
CONTROL_FEATURES: Final = feature_set(
    ["CTRL_VQ", "CTRL_RX", "CTRL_RX_EXTRA", "CTRL_VLAN", "CTRL_MAC_ADDR", "GUEST_ANNOUNCE"], "net"
)
#: What every device here offers: complete checksums either way, merged receive buffers.
DATA_FEATURES: Final = feature_set(["CSUM", "GUEST_CSUM", "MAC", "STATUS", "MRG_RXBUF"], "net")
#: The longest packet, in bytes; longer ones are dropped (QEMU ``NET_BUFSIZE``).
MAX_PACKET: Final = 4096 + 65536
#: Addresses in both tables together; more, and all of that kind are received (QEMU ``MAC_TABLE_ENTRIES``).
MAC_TABLE_ENTRIES: Final = 64
#: VLANs.
_MAX_VLAN: Final = 1 << 12
#: Longest control command, in bytes: class, command, and the two tables; what is longer is refused.
_MAX_CTRL: Final = 1 << 16
_ETH_P_VLAN: Final = b"\x81\x00"
_BROADCAST: Final = b"\xff" * 6

#: For `gso_type` in a packet: the features of which a driver needs one for sending it, and for receiving it.
_GSO_FEATURES: Final[dict[int, tuple[int, int]]] = {
    net.VIRTIO_NET_HDR_GSO_TCPV4: (1 << f.VIRTIO_NET_F_HOST_TSO4, 1 << f.VIRTIO_NET_F_GUEST_TSO4),
    net.VIRTIO_NET_HDR_GSO_TCPV6: (1 << f.VIRTIO_NET_F_HOST_TSO6, 1 << f.VIRTIO_NET_F_GUEST_TSO6),
    net.VIRTIO_NET_HDR_GSO_UDP: (1 << f.VIRTIO_NET_F_HOST_UFO, 1 << f.VIRTIO_NET_F_GUEST_UFO),
    net.VIRTIO_NET_HDR_GSO_UDP_L4: (
        1 << f.VIRTIO_NET_F_HOST_USO,
        1 << f.VIRTIO_NET_F_GUEST_USO4 | 1 << f.VIRTIO_NET_F_GUEST_USO6,
    ),
}
#: The features that CTRL_GUEST_OFFLOADS may switch (5.1.6.5.6).
_GUEST_OFFLOADS: Final = feature_set(
    ["GUEST_CSUM", "GUEST_TSO4", "GUEST_TSO6", "GUEST_ECN", "GUEST_UFO", "GUEST_USO4", "GUEST_USO6"], "net"
)


class NetDevice(VirtioDevice):
    """A network device.

    Queues 2n and 2n+1 are receive and transmit queue of pair n. The control queue is queue 2 without MQ, and
    stands behind all pairs with it (5.1.2).

    Args:
        send: Called with each packet that the driver sends, and its header; None drops them.
        mac: 6 bytes.
        pairs: Pairs of queues; MQ is offered from 2 on.
        mtu: In bytes, offered as MTU if given.
        control: Whether the device answers a control queue. Behind vhost-user it does not.
        features: Features to offer besides those of `DATA_FEATURES` and `CONTROL_FEATURES`, such as HOST_TSO4
            for a back end that takes such packets, or GUEST_TSO4 for one that gives them.
        backlog: Packets that wait for receive buffers in each pair, at least 1; more are dropped.
        ring_features: See `VirtioDevice`.
        transitional: See `VirtioDevice`. A legacy driver without MRG_RXBUF has headers of 10 bytes.

    Attributes:
        link_up: Whether the link is up; set with `set_link`.
        announcing: Whether the driver has been asked to announce itself and has not said that it did.
        active_pairs: Pairs that packets are received on.
        guest_offloads: The GUEST_* features in use.
        tx_packets, tx_dropped: Packets sent, and not sent: too long, empty, or an offload was not negotiated.
        rx_packets, rx_dropped: Packets received, and not: too long for the buffers, no buffers and a full
            backlog, an offload was not negotiated, the link is down.
        rx_filtered: Packets that were not for this guest.

    Raises:
        IosimError: Something above is not as it should be.
        NegotiationError: A feature to offer lacks another that it needs.
    """

    device_id: ClassVar[int] = VIRTIO_ID_NET

    def __init__(
        self,
        send: Callable[[bytes, NetHdr], object] | None = None,
        mac: bytes = b"\x52\x54\x00\x12\x34\x56",
        pairs: int = 1,
        mtu: int | None = None,
        control: bool = True,
        features: int = 0,
        backlog: int = 256,
        ring_features: int = RING_FEATURES,
        transitional: bool = False,
    ) -> None:
        if len(mac) != 6 or mac[0] & 1:
            raise IosimError(f"the MAC address {mac.hex(':')}; it has 6 bytes and is not multicast")
        if not 1 <= pairs <= 0x8000:
            raise IosimError(f"a network device with {pairs} pairs of queues; choose 1 to 32768 (5.1.4)")
        if mtu is not None and not 68 <= mtu <= 65535:
            raise IosimError(f"an MTU of {mtu} bytes; choose 68 to 65535 (5.1.4.1)")
        offered = features | DATA_FEATURES | (CONTROL_FEATURES if control else 0)
        if mtu is not None:
            offered |= 1 << f.VIRTIO_NET_F_MTU
        if pairs > 1 and control:
            offered |= 1 << f.VIRTIO_NET_F_MQ
        super().__init__(offered, 2 * pairs + control, ring_features, transitional)
        if pairs > 1:
            # Without a control queue too: behind vhost-user the front end has it, and wants MQ from its back end.
            self.host_features |= 1 << f.VIRTIO_NET_F_MQ
        self.send = send
        self.pairs = pairs
        self.mtu = mtu
        self.control = control
        self.backlog = max(1, backlog)
        self.link_up = True
        self._mac = mac
        self.tx_packets = self.tx_dropped = 0
        self.rx_packets = self.rx_dropped = self.rx_filtered = 0
        self._reset()

    def _reset(self) -> None:
        self.mac = self._mac
        self.announcing = False
        self.active_pairs = 1
        self.guest_offloads = 0
        # As in QEMU: promiscuous until the driver says otherwise, for drivers that never do.
        self.promisc = True
        self.allmulti = self.alluni = self.nomulti = self.nouni = self.nobcast = False
        self.unicast: frozenset[bytes] = frozenset()
        self.multicast: frozenset[bytes] = frozenset()
        self.uni_overflow = self.multi_overflow = False
        self.vlans: set[int] = set()
        self._held: dict[int, deque[Element]] = {}
        self._waiting: dict[int, deque[tuple[bytes, NetHdr]]] = {}

    def _queue_changed(self, index: int) -> None:
        self._held.pop(index, None)

    def _started(self) -> None:
        self.guest_offloads = self.guest_features & _GUEST_OFFLOADS
        # Without a control queue of its own the device uses whatever pairs the transport has enabled.
        self.active_pairs = 1 if self.has(f.VIRTIO_NET_F_CTRL_VQ) or not self.has(f.VIRTIO_NET_F_MQ) else self.pairs

    def config(self) -> bytes:
        """Return `struct virtio_net_config` up to `mtu`, 12 bytes."""
        status = net.VIRTIO_NET_S_LINK_UP * self.link_up | net.VIRTIO_NET_S_ANNOUNCE * self.announcing
        return NetConfig(self.mac, status, self.pairs, self.mtu or 0).pack()

    @property
    def header_length(self) -> int:
        """Bytes before each packet: 12, or 10 for a legacy driver without MRG_RXBUF (5.1.6.1)."""
        if self.has(f.VIRTIO_F_VERSION_1) or self.has(f.VIRTIO_NET_F_MRG_RXBUF):
            return net.NET_HDR_LEN
        return net.NET_HDR_LEN_LEGACY

    @property
    def control_queue(self) -> int | None:
        """Index of the control queue, or None if it is not negotiated (5.1.2)."""
        if not self.has(f.VIRTIO_NET_F_CTRL_VQ):
            return None
        return net.controlq(self.pairs if self.has(f.VIRTIO_NET_F_MQ) else 1)

    def set_link(self, up: bool) -> None:
        """Take the link up or down, and tell the driver."""
        if up != self.link_up:
            self.link_up = up
            self._config_changed()

    def announce(self) -> bool:
        """Ask the driver to send gratuitous packets (5.1.6.5.4); False if it cannot."""
        if not (self.has(f.VIRTIO_NET_F_GUEST_ANNOUNCE) and self.has(f.VIRTIO_NET_F_CTRL_VQ)):
            return False
        self.announcing = True
        self._config_changed()
        return True

    def _handle(self, index: int, queue: DeviceSide, budget: int | None) -> None:
        if index == self.control_queue:
            answer = self._answer_ctrl
        elif index % 2 == 0:
            # New receive buffers: for what waits. Others stay until a packet comes.
            self._deliver(index)
            return
        else:
            answer = self._answer_tx
        self._serve(index, queue, lambda element: answer(index, element), budget)

    # Transmit, 5.1.6.2.

    def _answer_tx(self, index: int, element: Element) -> int:
        """Send one packet (QEMU ``virtio_net_flush_tx``)."""
        if not element.out_sg:
            raise RequestError(f"queue {index}: virtio-net header not in first element")
        size = self.header_length
        length = element.out_size - size
        if length < 0:
            raise RequestError(f"queue {index}: virtio-net header incorrect: {element.out_size} bytes of {size}")
        header = NetHdr.unpack(element.read(0, size).ljust(net.NET_HDR_LEN, b"\0"))
        if not 0 < length <= MAX_PACKET or not self.link_up or not self._negotiated(header, sending=True):
            self.tx_dropped += 1
            return 0
        self.tx_packets += 1
        if self.send is not None:
            self.send(element.read(size), header)
        return 0

    def _negotiated(self, header: NetHdr, sending: bool) -> bool:
        """Tell whether the driver may send a packet that needs this, or can receive it."""
        features = self.guest_features if sending else self.guest_offloads
        csum = f.VIRTIO_NET_F_CSUM if sending else f.VIRTIO_NET_F_GUEST_CSUM
        ecn = f.VIRTIO_NET_F_HOST_ECN if sending else f.VIRTIO_NET_F_GUEST_ECN
        if header.flags & net.VIRTIO_NET_HDR_F_NEEDS_CSUM and not has_feature(features, csum):
            return False
        kind = header.gso_type & ~net.VIRTIO_NET_HDR_GSO_ECN
        if kind == net.VIRTIO_NET_HDR_GSO_NONE:
            return True
        if kind not in _GSO_FEATURES or not features & _GSO_FEATURES[kind][not sending]:
            return False
        return not header.gso_type & net.VIRTIO_NET_HDR_GSO_ECN or has_feature(features, ecn)

    # Receive, 5.1.6.4.

    def receive(self, packet: bytes, header: NetHdr | None = None, pair: int = 0) -> list[int]:
        """Give the driver a packet that came in.

        It waits if there are no buffers for it. An incomplete checksum is completed for a driver that has not
        accepted GUEST_CSUM.

        Args:
            packet: An Ethernet frame, without checksum at its end.
            header: What a back end says of it; `num_buffers` is filled in.
            pair: The pair whose receive queue it goes to; the first, if the driver does not use that one.

        Returns:
            The queues whose driver is to be interrupted.

        Raises:
            FormatError: The header has a field that does not fit.
        """
        header = header or NetHdr()
        header.pack()
        if not self.status.running:
            self.rx_dropped += 1
            return []
        if header.flags & net.VIRTIO_NET_HDR_F_NEEDS_CSUM and not has_feature(
            self.guest_offloads, f.VIRTIO_NET_F_GUEST_CSUM
        ):
            try:
                packet = net.complete_checksum(packet, header)
            except FormatError:
                # It may come from another guest: no reason to fall over.
                self.rx_dropped += 1
                return []
            flags = header.flags & ~net.VIRTIO_NET_HDR_F_NEEDS_CSUM
            header = header._replace(flags=flags, csum_start=0, csum_offset=0)
        if not self.link_up or not 0 < len(packet) <= MAX_PACKET or not self._negotiated(header, sending=False):
            self.rx_dropped += 1
            return []
        if not self.wants(packet):
            self.rx_filtered += 1
            return []
        # 5.1.6.5.5.1: nothing on receive queues beyond those the driver has asked for.
        index = net.receiveq(pair if 0 <= pair < self.active_pairs else 0)
        waiting = self._waiting.setdefault(index, deque())
        if len(waiting) >= self.backlog:
            self.rx_dropped += 1
            return []
        waiting.append((packet, header))
        if index in self.queues:
            try:
                self._deliver(index)
            except (RingError, RequestError) as error:
                self._break(error)
        return self._interrupts()

    def wants(self, packet: bytes) -> bool:
        """Tell whether a frame passes the driver's filters (QEMU ``receive_filter``)."""
        if self.promisc:
            return True
        if self.has(f.VIRTIO_NET_F_CTRL_VLAN) and packet[12:14] == _ETH_P_VLAN:
            vid = int.from_bytes(packet[14:16], "big") & 0xFFF
            if vid not in self.vlans:
                return False
        destination = packet[:6]
        if destination[0] & 1:
            if destination == _BROADCAST:
                return not self.nobcast
            if self.nomulti:
                return False
            return self.allmulti or self.multi_overflow or destination in self.multicast
        if self.nouni:
            return False
        return self.alluni or self.uni_overflow or destination == self.mac or destination in self.unicast

    def _deliver(self, index: int) -> None:
        """Put waiting packets into receive buffers as far as there are any."""
        waiting = self._waiting.get(index)
        while waiting:
            packet, header = waiting[0]
            if not self._place(index, packet, header):
                return
            waiting.popleft()

    def _next(self, queue: DeviceSide) -> Element | None:
        """Take a buffer; if there is none, arm notifications and look once more (QEMU ``virtio_net_has_buffers``)."""
        element = queue.pop()
        if element is None:
            queue.set_notification(True)
            element = queue.pop()
            if element is None:
                return None
        queue.set_notification(False)
        return element

    def _place(self, index: int, packet: bytes, header: NetHdr) -> bool:
        """Fill buffers with a packet, or drop it; False if it has to wait (QEMU ``virtio_net_receive_rcu``).

        Buffers that are taken but do not suffice are held for the next attempt: the ring has no way back.
        """
        queue = self.queues[index]
        held = self._held.setdefault(index, deque())
        mergeable = self.has(f.VIRTIO_NET_F_MRG_RXBUF)
        size = self.header_length
        need = size + len(packet)
        have = sum(element.in_size for element in held)
        while not held or (mergeable and have < need):
            element = self._next(queue)
            if element is None:
                if len(held) < queue.q.size:
                    return False
                # All the buffers the queue can have are not enough, and never will be.
                self.rx_dropped += 1
                return True
            if not element.in_sg:
                raise RequestError(f"queue {index}: virtio-net receive queue contains no in buffers")
            if element.in_size < size:
                # 5.1.6.3.1: each buffer holds at least the header.
                raise RequestError(
                    f"queue {index}: a receive buffer of {element.in_size} bytes cannot hold a header of {size}"
                )
            held.append(element)
            have += element.in_size
        if not mergeable and held[0].in_size < need:
            # The buffer stays for a packet that fits, as in QEMU (virtqueue_unpop).
            self.rx_dropped += 1
            return True
        chosen: list[Element] = []
        room = 0
        while room < need:
            element = held.popleft()
            chosen.append(element)
            room += element.in_size
        data = header._replace(num_buffers=len(chosen)).pack()[:size] + packet
        done = 0
        for i, element in enumerate(chosen):
            part = element.write(data[done:])
            queue.fill(element, part, i)
            done += part
        # All at once: a driver that sees the first may look for the others (5.1.6.4).
        queue.flush(len(chosen))
        self._used.add(index)
        self.rx_packets += 1
        return True

    # Control, 5.1.6.5.

    def _answer_ctrl(self, index: int, element: Element) -> int:
        """Do one command (QEMU ``virtio_net_handle_ctrl``)."""
        if not element.in_sg or element.out_size < 2:
            raise RequestError(f"queue {index}: virtio-net ctrl missing headers")
        if element.out_size > _MAX_CTRL:
            return element.write(bytes([net.VIRTIO_NET_ERR]))
        command = element.read()
        done = self._command(command[0], command[1], command[2:])
        return element.write(bytes([net.VIRTIO_NET_OK if done else net.VIRTIO_NET_ERR]))

    def _command(self, class_: int, command: int, data: bytes) -> bool:
        """Do a command that is negotiated and well-formed; tell whether it was."""
        if class_ == net.VIRTIO_NET_CTRL_RX:
            return self._set_rx_mode(command, data)
        if class_ == net.VIRTIO_NET_CTRL_MAC:
            return self._set_mac(command, data)
        if class_ == net.VIRTIO_NET_CTRL_VLAN and self.has(f.VIRTIO_NET_F_CTRL_VLAN) and len(data) == 2:
            vid = int.from_bytes(data, "little")
            if vid >= _MAX_VLAN or command not in (net.VIRTIO_NET_CTRL_VLAN_ADD, net.VIRTIO_NET_CTRL_VLAN_DEL):
                return False
            (self.vlans.add if command == net.VIRTIO_NET_CTRL_VLAN_ADD else self.vlans.discard)(vid)
            return True
        if class_ == net.VIRTIO_NET_CTRL_ANNOUNCE and self.announcing:
            if command == net.VIRTIO_NET_CTRL_ANNOUNCE_ACK:
                self.announcing = False
                return True
            return False
        if class_ == net.VIRTIO_NET_CTRL_MQ and self.has(f.VIRTIO_NET_F_MQ) and len(data) == 2:
            pairs = int.from_bytes(data, "little")
            if command != net.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET or not 1 <= pairs <= self.pairs:
                return False
            self.active_pairs = pairs
            return True
        if class_ == net.VIRTIO_NET_CTRL_GUEST_OFFLOADS and self.has(f.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS):
            if command != net.VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET or len(data) != 8:
                return False
            offloads = int.from_bytes(data, "little")
            if offloads & ~(self.guest_features & _GUEST_OFFLOADS):
                return False
            self.guest_offloads = offloads
            return True
        return False

    def _set_rx_mode(self, mode: int, data: bytes) -> bool:
        basic = mode in (net.VIRTIO_NET_CTRL_RX_PROMISC, net.VIRTIO_NET_CTRL_RX_ALLMULTI)
        needed = f.VIRTIO_NET_F_CTRL_RX if basic else f.VIRTIO_NET_F_CTRL_RX_EXTRA
        names = ("promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast")
        if mode >= len(names) or not self.has(needed) or len(data) != 1:
            return False
        setattr(self, names[mode], bool(data[0]))
        return True

    def _set_mac(self, command: int, data: bytes) -> bool:
        if command == net.VIRTIO_NET_CTRL_MAC_ADDR_SET:
            if not self.has(f.VIRTIO_NET_F_CTRL_MAC_ADDR) or len(data) != 6:
                return False
            self.mac = data
            return True
        if command != net.VIRTIO_NET_CTRL_MAC_TABLE_SET or not self.has(f.VIRTIO_NET_F_CTRL_RX):
            return False
        try:
            unicast, rest = _mac_table(data)
            multicast, rest = _mac_table(rest)
        except FormatError:
            return False
        if rest:
            return False
        # As QEMU: a table without room is none, and everything of its kind is received.
        self.uni_overflow = len(unicast) > MAC_TABLE_ENTRIES
        self.unicast = frozenset() if self.uni_overflow else frozenset(unicast)
        self.multi_overflow = len(self.unicast) + len(multicast) > MAC_TABLE_ENTRIES
        self.multicast = frozenset() if self.multi_overflow else frozenset(multicast)
        return True


def _mac_table(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the addresses of one `struct virtio_net_ctrl_mac`, and what stands behind it."""
    if len(data) < 4:
        raise FormatError(f"a table of MAC addresses has 4 bytes at least, not {len(data)}")
    (entries,) = struct.unpack_from("<I", data)
    if entries > (len(data) - 4) // 6:
        raise FormatError(f"a table of {entries} MAC addresses in {len(data)} bytes")
    end = 4 + 6 * entries
    return [data[i : i + 6] for i in range(4, end, 6)], data[end:]
