"""What the host's NIC sends: queueing discipline, segments for a NIC without TSO, byte queue limits, the wire."""

from __future__ import annotations

from collections.abc import Generator

from iosim.effects import Effect, notify, notify_after, spend, wait
from iosim.fifo import put, take_first
from iosim.host import counters as count
from iosim.host.costs import GSO_SEGMENT, HOST_IRQ, NIC_RX_DELAY, NIC_TX, WIRE
from iosim.host.dql import dql_avail, dql_completed, dql_queued
from iosim.host.flows import flow_of
from iosim.host.frames import MSS, TCP_HEADERS, WIRE_OVERHEAD
from iosim.host.network import Network, packet_len
from iosim.host.packets import bytes_on_wire, flow_number, payload, qdisc_pkt_len, segments, sized, stream_packet
from iosim.host.qdisc import enqueue, next_flow
from iosim.requests import FOREIGN, mark
from iosim.window import QDISC, drop


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
                yield from validate_xmit_skb(net, dequeue(net))
            packet = take_first(net.gso_skb)
            yield spend(NIC_TX)
            dql_queued(net.dql, packet_bytes(net, packet))
            put(net.nic_tx, packet)
            yield notify(net.nic)
        net.running = False


def dequeue(net: Network) -> int:
    """Take the next packet; in ``fq`` its flow pays for every byte of its frames."""
    q = net.qdisc
    flow = 0
    if q.fair:
        flow = next_flow(q)
    packet = take_first(q.queue[flow])
    q.deficit[flow] -= packet_bytes(net, packet)
    q.count -= 1
    return packet


def packet_bytes(net: Network, packet: int) -> int:
    """Return the bytes of all frames of a packet."""
    size = packet_len(net, packet)
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
        frame = net.wire_bytes
        if row >= FOREIGN:
            # An acknowledgement, whatever the size of requests.
            frame = TCP_HEADERS + WIRE_OVERHEAD
        yield spend(WIRE, frame)
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
