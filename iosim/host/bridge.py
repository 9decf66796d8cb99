"""The host's bridge and its ports: a tap for each guest, the physical NIC, the host's own stack."""

from __future__ import annotations

from collections.abc import Generator

from iosim.effects import Effect, notify, spend
from iosim.fifo import EMPTY, put, take_first
from iosim.host import counters as count
from iosim.host.costs import BRIDGE, GSO_SEGMENT, HOST_CHECKSUM, NIC_TX, TAP_QUEUE, TAP_WRITE
from iosim.host.flows import flow_of
from iosim.host.frames import MSS, TCP_HEADERS
from iosim.host.local_stack import local_data_ready, local_rcv
from iosim.host.network import Network, TapQueue, packet_len
from iosim.host.nic_transmit import dev_queue_xmit
from iosim.host.packets import payload, sized, stream_packet
from iosim.host.work import queue_work, show_poller
from iosim.requests import mark
from iosim.window import QDISC, TAP_FULL, drop


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


def automq(net: Network, tap: TapQueue, row: int) -> None:
    """Remember the queue that a flow sent by: what comes for the flow is put into the same (tun_flow_update)."""
    net.steering[tap.own + flow_of(net.machine.flows, row)] = tap.place


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
