"""The host's network as it stands between its parts: taps, the bridge's ports, the NIC's queues, the wire."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from iosim.effects import Effect, spend
from iosim.engine.system import System
from iosim.fifo import Fifo
from iosim.host import counters as count
from iosim.host.costs import COPY_COLD, COPY_HOT
from iosim.host.dql import Dql
from iosim.host.flows import flow_hash, reciprocal_scale, rss_queue
from iosim.host.frames import TCP_HEADERS
from iosim.host.gro import Gro
from iosim.host.local_stack import LocalSocket
from iosim.host.machine import Machine
from iosim.host.packets import GSO_MAX_SEGS, of_stream, payload
from iosim.host.qdisc import Qdisc
from iosim.host.work import WorkQueue

QDISC_LIMIT = 1000
"""Frames the host's NIC queue holds: Linux's default txqueuelen."""


RX_RING = 4096
"""Frames the host NIC's receive ring holds (assumed: the largest of common NICs)."""


class NetworkMilestones(Protocol):
    """The milestones stamped here (numbers in the request table)."""

    arrived: int
    nic_taken: int
    tap_queued: int
    processed: int
    on_wire: int
    client_arrived: int


class TapQueue:
    """One queue of the tap towards QEMU or vhost: one open file of it (IFF_MULTI_QUEUE: several of one tap).

    Args:
        number: Its place among the tap's queues.
        place: Its place among all taps' queues.
        limit: Frames it holds.
        milestones: Those of the guest whose tap it is.
        own, other: Where the tap's flows begin in `Network.steering`; and where they do for the other end, between
            guests.

    Attributes:
        frames: The frames in it: rows.
        reader, reader_item: The work queue of its reader, and the item that means "the tap is readable".
        polled: Whether the reader polls it at present.
    """

    __slots__ = ("frames", "milestones", "number", "other", "own", "place", "polled", "reader", "reader_item")

    def __init__(
        self, number: int, place: int, limit: int, milestones: NetworkMilestones, own: int = 0, other: int = 0
    ) -> None:
        self.number = number
        self.place = place
        self.milestones = milestones
        self.own = own
        self.other = other
        self.frames = Fifo(limit)
        self.polled = True
        self.reader: WorkQueue
        self.reader_item = 0


class Network:
    """The host's network and the wire, with the frames that are under way.

    Args:
        machine: The machine.
        milestones: Where to stamp.
        frame: Bytes of a frame in memory.
        wire_bytes: Bytes of a frame on the wire.
        propagation: ps from one end of the wire to the other.
        tap_limit: Frames each queue of the tap holds.
        queues: Queues of each tap, or of the NIC where packets bypass the host's kernel.
        guests: Taps: one for each guest.
        homes: The guest of each flow. Between guests two such lists, for either end.
        views: Where to stamp for the guests of either list; without them as ``milestones`` says.
        bypass: The NIC is not the host kernel's: there is nothing but the wire, and who has the NIC serves its ends.
        qdisc: The queueing discipline of the host's NIC. None: all packets are single frames and there is one queue,
            so that it makes no difference to the NIC's own.
        nic_tso: The NIC segments GSO packets.
        nic_gro: Its driver merges the segments of a stream that came together.

    Attributes:
        gso_skb: Packets that have left the queueing discipline, segmented if need be, and wait for the NIC.
        gro: What its NAPI holds back.
        tap_csum, tap_tso4: The reader of the tap takes packets without a checksum, and GSO packets (TUNSETOFFLOAD).
        csum_partial: Packets that are written to a tap come without a checksum.
        running: Some thread moves packets from the queueing discipline to the NIC.
        dql: How much the NIC may have; ``sent`` is what it has sent, bytes, ever.
        tx_done: The channel by which the NIC tells that it has sent something, unless ``tx_irq_pending`` already.
        tap: The taps' queues, guest by guest.
        steering: The place of the queue that each flow's frames are put into: among the taps' in ``tap`` (see
            `automq`), for each end that is a guest; or among the NIC's (RSS).
        between_guests: Frames go from one tap into another; there is no NIC and no wire.
        local: The host's sockets, by flow, where they are the other ends.
        to_client: Frames on the wire to the client: rows, with arrival times in ``to_client_at``.
        client: The channel notified when a frame leaves for the client.
    """

    __slots__ = (
        "between_guests", "client", "csum_partial", "dql", "frame", "from_client", "from_client_at", "gro", "gso_skb",
        "irq", "irq_pending", "local", "machine", "milestones", "nic", "nic_gro", "nic_tso", "nic_tx", "propagation",
        "qdisc", "queued", "running", "rx_ring", "sent", "softirq", "steering", "tap", "tap_csum", "tap_tso4",
        "to_client", "to_client_at", "tx_done", "tx_irq_pending", "wire_bytes", "wire_in",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        milestones: NetworkMilestones,
        *,
        frame: int,
        wire_bytes: int,
        propagation: int,
        tap_limit: int,
        queues: int = 1,
        guests: int = 1,
        homes: Sequence[Sequence[int]] = ((0,),),
        views: Sequence[NetworkMilestones] = (),
        bypass: bool = False,
        qdisc: Qdisc | None = None,
        nic_tso: bool = True,
        nic_gro: bool = True,
    ) -> None:
        system: System = machine.system
        self.machine = machine
        self.milestones = milestones
        self.frame = frame
        self.wire_bytes = wire_bytes
        self.propagation = propagation
        self.between_guests = len(homes) > 1
        flows = len(homes[0])
        self.local: list[LocalSocket] = []
        self.tap: list[TapQueue] = []
        for place in range(guests * queues):
            side = place // queues % len(homes)
            view = views[side] if views else milestones
            other = (len(homes) - 1 - side) * flows
            self.tap.append(TapQueue(place % queues, place, tap_limit, view, side * flows, other))
        # tun_automq_select_queue: a flow that has sent nothing yet goes where its hash says. In a NIC all do, always.
        spread = rss_queue if bypass else reciprocal_scale
        self.steering = [
            guest * queues + spread(flow_hash(flow), queues) for side in homes for flow, guest in enumerate(side)
        ]
        self.queued = qdisc is not None
        self.qdisc = qdisc or Qdisc(False, 1)
        self.nic_tso = nic_tso
        self.nic_gro = nic_gro
        self.gro = Gro(flows or machine.flows.count)
        self.tap_csum = False
        self.tap_tso4 = False
        self.csum_partial = False
        self.gso_skb = Fifo(GSO_MAX_SEGS)
        self.running = False
        self.dql = Dql()
        self.sent = 0
        self.tx_irq_pending = False
        self.tx_done = system.channel("host NIC transmit completion")
        self.nic_tx = Fifo(QDISC_LIMIT)
        self.nic = system.channel("host NIC transmit")
        self.to_client = Fifo(QDISC_LIMIT + RX_RING)
        self.to_client_at = Fifo(QDISC_LIMIT + RX_RING)
        self.client = system.channel("wire to client")
        self.from_client = Fifo(RX_RING)
        self.from_client_at = Fifo(RX_RING)
        self.wire_in = system.channel("wire to host")
        self.rx_ring = Fifo(RX_RING)
        self.irq = system.channel("host NIC interrupt")
        self.irq_pending = False
        self.softirq = -1


def copy_packet(net: Network, packet: int) -> Generator[Effect, None, None]:
    """Copy one packet that another CPU wrote: a frame, or a GSO packet."""
    size = packet_len(net, packet)
    net.machine.counters.n[count.COPIED_BYTES] += size
    yield spend(COPY_COLD, size)


def packet_len(net: Network, packet: int) -> int:
    """Return the bytes of a packet in memory: a GSO packet has its headers once, an acknowledgement nothing else."""
    size = net.frame
    if of_stream(packet):
        size = payload(packet) + TCP_HEADERS
    return size


def copy_hot(net: Network) -> Generator[Effect, None, None]:
    """Copy one frame that is in this CPU's cache."""
    net.machine.counters.n[count.COPIED_BYTES] += net.frame
    yield spend(COPY_HOT, net.frame)


def copy_packet_hot(net: Network, packet: int) -> Generator[Effect, None, None]:
    """Copy one packet that is in this CPU's cache."""
    size = packet_len(net, packet)
    net.machine.counters.n[count.COPIED_BYTES] += size
    yield spend(COPY_HOT, size)
