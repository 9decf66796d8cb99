"""What the host's NIC receives: its interrupt, NAPI, GRO, and up to the bridge."""

from __future__ import annotations

from collections.abc import Generator

from iosim.effects import SOFTIRQ, Effect, notify_after, sleep_until, spend, wait
from iosim.fifo import put, take_first
from iosim.host import counters as count
from iosim.host.bridge import br_forward
from iosim.host.costs import GRO_RECEIVE, HOST_IRQ, HOST_RECEIVE, NIC_RX_DELAY
from iosim.host.flows import flow_of
from iosim.host.gro import NAPI_POLL_WEIGHT, gro_flush, gro_receive
from iosim.host.network import Network
from iosim.host.nic_transmit import net_tx_action, nic_transmit
from iosim.host.packets import payload
from iosim.requests import mark
from iosim.window import NIC_RING, drop


def install_nic(net: Network) -> None:
    """Add the processes of the host's NIC, both halves, and the softirq that serves it."""
    system = net.machine.system
    net.softirq = system.thread("host-softirq", priority=1)
    system.process("host NIC transmit", nic_transmit(net))
    system.process("host NIC receive", nic_receive(net))
    system.process("host softirq", host_softirq(net), net.softirq, SOFTIRQ)
    if net.queued:
        system.process("host transmit softirq", net_tx_action(net), net.softirq, SOFTIRQ)


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
