"""The host's network: the tap, the bridge, the physical NIC, the wire. What every guest NIC's packets pass."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from iosim.effects import SOFTIRQ, Effect, notify, notify_after, sleep_until, spend, wait
from iosim.engine.system import System
from iosim.fifo import EMPTY, Fifo, put, take_first
from iosim.host import counters as count
from iosim.host.costs import (
    BRIDGE,
    COPY_COLD,
    COPY_HOT,
    GRO_RECEIVE,
    GSO_SEGMENT,
    HOST_CHECKSUM,
    HOST_IRQ,
    HOST_RECEIVE,
    NIC_RX_DELAY,
    NIC_TX,
    TAP_QUEUE,
    TAP_WRITE,
    WIRE,
)
from iosim.host.dql import Dql, dql_avail, dql_completed, dql_queued
from iosim.host.flows import flow_hash, flow_of, reciprocal_scale, rss_queue
from iosim.host.frames import MSS, TCP_HEADERS
from iosim.host.gro import NAPI_POLL_WEIGHT, Gro, gro_flush, gro_receive
from iosim.host.local_stack import LocalSocket, local_data_ready, local_rcv
from iosim.host.machine import Machine
from iosim.host.packets import (
    GSO_MAX_SEGS,
    bytes_on_wire,
    flow_number,
    of_stream,
    payload,
    qdisc_pkt_len,
    segments,
    sized,
    stream_packet,
)
from iosim.host.qdisc import Qdisc, enqueue, next_flow
from iosim.host.work import WorkQueue, queue_work, show_poller
from iosim.requests import FOREIGN, mark
from iosim.window import NIC_RING, QDISC, TAP_FULL, drop

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
        to_host: The other ends of all flows are processes on the host: there is no NIC and no wire.
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
        to_host: bool = False,
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
        if not bypass and not self.between_guests and not to_host:
            self.softirq = system.thread("host-softirq", priority=1)
            system.process("host NIC transmit", nic_transmit(self))
            system.process("host NIC receive", nic_receive(self))
            system.process("host softirq", host_softirq(self), self.softirq, SOFTIRQ)
            if self.queued:
                system.process("host transmit softirq", net_tx_action(self), self.softirq, SOFTIRQ)


def copy_cold(net: Network) -> Generator[Effect, None, None]:
    """Copy one frame that another CPU wrote."""
    net.machine.counters.n[count.COPIED_BYTES] += net.frame
    yield spend(COPY_COLD, net.frame)


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


def tap_transmit(net: Network, tap: TapQueue, row: int) -> Generator[Effect, None, None]:
    """What a write to a queue of the tap does in the kernel once the frame is copied: skb, bridge, NIC driver.

    Between guests the bridge's other port is a tap, whose ``ndo_start_xmit`` runs on this thread as well; and so does
    the host's own stack, where the other end is a process on the host.
    """
    yield spend(TAP_WRITE)
    if len(net.tap) > 1:
        automq(net, tap, row)
    if net.between_guests:
        mark(net.machine.table, row, tap.milestones.processed, net.machine.clock.now)
        yield from br_forward(net, row, tap.other, net.csum_partial)
    elif len(net.local) > 0:
        mark(net.machine.table, row, tap.milestones.processed, net.machine.clock.now)
        yield from br_pass_frame_up(net, row)
    elif net.queued:
        yield spend(BRIDGE)
        yield from dev_queue_xmit(net, row)
    else:
        yield spend(BRIDGE)
        yield spend(NIC_TX)
        if put(net.nic_tx, row):
            yield notify(net.nic)
        else:
            yield from drop(net.machine.window, row, QDISC)


def dev_queue_xmit(net: Network, packet: int) -> Generator[Effect, None, None]:
    """Put a packet into the queueing discipline of the NIC, and send what may be sent."""
    if enqueue(net.qdisc, packet, flow_of(net.machine.flows, packet)):
        yield from qdisc_run(net)
    else:
        yield from drop(net.machine.window, packet, QDISC)


def qdisc_run(net: Network) -> Generator[Effect, None, None]:
    """Move packets to the NIC until its queue is stopped; one thread at a time does, for all (__qdisc_run)."""
    if not net.running:
        net.running = True
        while net.gso_skb.count + net.qdisc.count > 0 and dql_avail(net.dql) >= 0:
            if net.gso_skb.count == 0:
                yield from validate_xmit_skb(net, dequeue(net.qdisc, net.frame))
            packet = take_first(net.gso_skb)
            yield spend(NIC_TX)
            dql_queued(net.dql, packet_bytes(net, packet))
            put(net.nic_tx, packet)
            yield notify(net.nic)
        net.running = False


def dequeue(q: Qdisc, frame: int) -> int:
    """Take the next packet; in ``fq`` its flow pays for every byte that its frames have on the wire."""
    flow = 0
    if q.fair:
        flow = next_flow(q)
    packet = take_first(q.queue[flow])
    size = frame
    if payload(packet) > 0:
        size = qdisc_pkt_len(payload(packet))
    q.deficit[flow] -= size
    q.count -= 1
    return packet


def packet_bytes(net: Network, packet: int) -> int:
    """Return the bytes of all frames of a packet."""
    size = net.frame
    if payload(packet) > 0:
        size = qdisc_pkt_len(payload(packet))
    return size


def validate_xmit_skb(net: Network, packet: int) -> Generator[Effect, None, None]:
    """What the queueing discipline gave is for the NIC: segment a GSO packet that it cannot take (skb_gso_segment).

    Its segments go to the NIC one after the other; whatever else waits in the queueing discipline, waits for them all.
    Whether the NIC has ``gso`` is not asked here: that is for the host's own sockets.
    """
    size = payload(packet)
    if size > MSS and not net.nic_tso:
        while size > MSS:
            yield spend(GSO_SEGMENT)
            put(net.gso_skb, sized(stream_packet(flow_of(net.machine.flows, packet)), MSS))
            size -= MSS
        yield spend(GSO_SEGMENT)
        packet = sized(packet, size)
    put(net.gso_skb, packet)


def net_tx_action(net: Network) -> Generator[Effect, None, None]:
    """The NIC's transmit completions, moderated as what it receives: the limit is found anew, what waits is sent."""
    while True:
        yield wait(net.tx_done)
        net.tx_irq_pending = False
        yield spend(HOST_IRQ)
        dql_completed(net.dql, net.sent)
        yield from qdisc_run(net)


def automq(net: Network, tap: TapQueue, row: int) -> None:
    """Remember the queue that a flow sent by: what comes for the flow is put into the same (tun_flow_update)."""
    net.steering[tap.own + flow_of(net.machine.flows, row)] = tap.place


def nic_transmit(net: Network) -> Generator[Effect, None, None]:
    """The host's NIC: packets leave one after the other."""
    while True:
        while net.nic_tx.count == 0:
            yield wait(net.nic)
        row = take_first(net.nic_tx)
        yield from put_on_wire(net, row)
        if net.queued:
            net.sent += packet_bytes(net, row)
            if not net.tx_irq_pending:
                net.tx_irq_pending = True
                yield notify_after(net.tx_done, NIC_RX_DELAY)


def put_on_wire(net: Network, row: int) -> Generator[Effect, None, None]:
    """A NIC sends a frame, bit by bit, or all frames of a GSO packet, one after the other (TSO)."""
    m = net.machine
    size = payload(row)
    began = m.clock.now
    if size == 0:
        yield spend(WIRE, net.wire_bytes)
        m.counters.n[count.WIRE_FRAMES] += 1
    else:
        yield spend(WIRE, bytes_on_wire(size))
        m.counters.n[count.WIRE_FRAMES] += segments(size)
        if row >= FOREIGN and flow_number(row) == m.flows.count:
            m.counters.n[count.BACKGROUND_BYTES] += size
    m.counters.n[count.WIRE_OUT] += m.clock.now - began
    mark(m.table, row, net.milestones.on_wire, m.clock.now)
    put(net.to_client, row)
    put(net.to_client_at, m.clock.now + net.propagation)
    yield notify(net.client)


def nic_receive(net: Network) -> Generator[Effect, None, None]:
    """The host's NIC: a frame has arrived with its last bit; the first of a batch raises the interrupt."""
    m = net.machine
    while True:
        while net.from_client.count == 0:
            yield wait(net.wire_in)
        row = take_first(net.from_client)
        yield sleep_until(take_first(net.from_client_at))
        mark(m.table, row, net.milestones.arrived, m.clock.now)
        if put(net.rx_ring, row):
            if not net.irq_pending:
                net.irq_pending = True
                yield notify_after(net.irq, NIC_RX_DELAY)
        else:
            yield from drop(m.window, row, NIC_RING)


def host_softirq(net: Network) -> Generator[Effect, None, None]:
    """The host's receive path: NAPI on the physical NIC, bridge, the tap's queue, its reader's wake-up."""
    m = net.machine
    while True:
        yield wait(net.irq)
        yield spend(HOST_IRQ)
        polled = 0
        more = net.rx_ring.count > 0
        while more:
            row = take_first(net.rx_ring)
            mark(m.table, row, net.milestones.nic_taken, m.clock.now)
            yield spend(HOST_RECEIVE)
            if payload(row) > 0:
                m.counters.n[count.STREAM_FRAMES] += 1
                yield from napi_gro_receive(net, row)
            else:
                yield from br_forward(net, row, 0, False)
            polled += 1
            more = net.rx_ring.count > 0
            if polled == NAPI_POLL_WEIGHT or not more:
                polled = 0
                if len(net.gro.held) > 0:
                    yield from napi_gro_flush(net)
        net.irq_pending = False
        if net.rx_ring.count > 0:
            # Frames that came while GRO's packets went up the stack: NAPI is complete, so the NIC tells of them anew.
            net.irq_pending = True
            yield notify_after(net.irq, NIC_RX_DELAY)


def napi_gro_receive(net: Network, packet: int) -> Generator[Effect, None, None]:
    """A segment of a stream from the NIC: merged with those before it, or up the stack as it is."""
    if net.nic_gro:
        yield spend(GRO_RECEIVE)
        gro_receive(net.gro, packet, flow_of(net.machine.flows, packet))
        yield from netif_receive(net)
    else:
        yield from br_forward(net, packet, 0, False)


def napi_gro_flush(net: Network) -> Generator[Effect, None, None]:
    """The end of a poll: what was held goes up the stack."""
    gro_flush(net.gro)
    yield from netif_receive(net)


def netif_receive(net: Network) -> Generator[Effect, None, None]:
    """Forward what GRO has let go."""
    while net.gro.done.count > 0:
        yield from br_forward(net, take_first(net.gro.done), 0, False)


def br_pass_frame_up(net: Network, packet: int) -> Generator[Effect, None, None]:
    """The bridge has a packet for the host itself.

    Its checksum is verified where there is one; one that the guest has left to its device is not (CHECKSUM_PARTIAL).
    """
    yield spend(BRIDGE)
    if not net.csum_partial:
        yield spend(HOST_CHECKSUM, packet_len(net, packet))
    s = net.local[flow_of(net.machine.flows, packet)]
    ack = yield from local_rcv(s, packet)
    if ack != EMPTY:
        yield from br_forward(net, ack, 0, True)
    yield from local_data_ready(s, packet)


def br_forward(net: Network, packet: int, end: int, partial: bool) -> Generator[Effect, None, None]:
    """The bridge has a packet for a tap, which may not take GSO packets: then it is segmented here.

    That is validate_xmit_skb, for a device with the features that QEMU has set by TUNSETOFFLOAD: without TUN_F_TSO4
    segments, without TUN_F_CSUM their checksums are computed, since GRO leaves none in the packet it makes.

    Args:
        net: The network.
        packet: The packet.
        end: Which end of its flow the tap is at (see `tun_net_xmit`).
        partial: Its sender has left the checksum to whoever sends it on (CHECKSUM_PARTIAL).
    """
    yield spend(BRIDGE)
    size = payload(packet)
    if size > MSS and not net.tap_tso4:
        left = size
        while left > 0:
            size = MSS
            if left < MSS:
                size = left
            left -= size
            yield spend(GSO_SEGMENT)
            if not net.tap_csum:
                yield spend(HOST_CHECKSUM, size + TCP_HEADERS)
            segment = sized(packet, size)
            if left > 0:
                segment = sized(stream_packet(flow_of(net.machine.flows, packet)), size)
            yield from tun_net_xmit(net, segment, end)
    else:
        if partial and not net.tap_csum:
            yield spend(HOST_CHECKSUM, packet_len(net, packet))
        yield from tun_net_xmit(net, packet, end)


def tap_set_offload(net: Network, csum: bool, tso4: bool, partial: bool) -> None:
    """What the taps take, all alike: QEMU sets it when the guest has chosen its features (TUNSETOFFLOAD).

    ``partial``: the guests leave checksums to their devices, so that what comes from a tap has none.
    """
    net.tap_csum = csum
    net.tap_tso4 = tso4
    net.csum_partial = partial


def tun_net_xmit(net: Network, packet: int, end: int) -> Generator[Effect, None, None]:
    """Put a packet into its flow's queue of the tap at one end of it, whose flows begin there in ``steering``.

    A full queue drops it, and its sender learns nothing.
    """
    m = net.machine
    yield spend(TAP_QUEUE)
    if payload(packet) > 0:
        m.counters.n[count.STREAM_TAP_PACKETS] += 1
    tap = net.tap[net.steering[end + flow_of(m.flows, packet)]]
    if put(tap.frames, packet):
        mark(m.table, packet, tap.milestones.tap_queued, m.clock.now)
        if tap.polled:
            yield from queue_work(tap.reader, tap.reader_item)
        else:
            yield from show_poller(tap.reader)
    else:
        yield from drop(m.window, packet, TAP_FULL)


def tap_read(tap: TapQueue) -> int:
    """Take the next frame from a queue of the tap: its row, or ``EMPTY`` (EAGAIN)."""
    row = EMPTY
    if tap.frames.count > 0:
        row = take_first(tap.frames)
    return row
