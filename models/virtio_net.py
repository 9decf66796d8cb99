"""virtio-net: a virtio NIC whose back end is QEMU's main loop, with a tap.

Sending. The guest's driver puts the packet into the transmit ring; if the device wants to know, it writes the notify
register: an exit, but only to KVM, which signals an ioeventfd. QEMU's main loop returns from ppoll, reads the eventfd,
turns notification off and schedules a bottom half; after another ppoll that bottom half drains the ring: one writev
to the tap and one interrupt message a packet, unless the guest does not want it. Then it turns notification on again
and looks once more, for what came in between.

Receiving. The tap becomes readable, ppoll returns, and QEMU reads packets until there is no more: each is copied into
a buffer that the guest has posted, pushed to the used ring, and announced by an ioctl.

With several queue pairs each has rings, a bottom half and a queue of the tap for itself; but there is one main loop.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from pydantic import Field

from iosim.effects import TASK, Effect, spend
from iosim.engine.system import instance
from iosim.guest.socket import sendmsg
from iosim.guest.virtio_net import PAIR, RX, TX, Offloads, SoftNet, VirtioNet, dev_queue_xmit
from iosim.host import counters as count
from iosim.host.costs import QEMU_BH, QEMU_NET_QUEUE, QEMU_VIRTIO_PACKET, REARM_WINDOW, SYS_IOCTL, SYS_READ, SYS_WRITE
from iosim.host.hosts import Host
from iosim.host.kvm import deliver_interrupt
from iosim.host.machine import Machine
from iosim.host.main_loop import MainLoop, lock_iothread, main_loop_wait
from iosim.host.network import TapQueue, copy_packet, copy_packet_hot, packet_len, tap_read, tap_transmit
from iosim.host.work import queue_work, take_work
from iosim.model import Model
from iosim.requests import Stage, mark
from iosim.ring.errors import raise_for
from iosim.ring.queue import DeviceQueue, empty, pop, push, set_notification, should_notify
from iosim.settings import Flag, VirtioQueuePairs, Whole
from iosim.workload.application import Application, next_packet
from iosim.workload.assembly import NetworkRoom
from iosim.workload.path import WAIT_CPU, WAIT_NOTIFICATION, WAIT_QUEUE, WORK
from iosim.workload.spec import RX as RX_ONLY
from iosim.workload.spec import Workload

KICK_RX: Final = RX
KICK_TX: Final = TX
TAP: Final = 2
ITEMS: Final = 3
"""What the main loop polls for each queue pair: the ioeventfds of the two queues, and the queue of the tap."""

TAP_BURST: Final = 50
"""Packets that one call of tap_send reads at most, so as not to keep the big QEMU lock (QEMU net/tap.c)."""

RX_STAGES: Final = {
    "rx_seen": Stage("tap wakes QEMU", "QEMU", WAIT_NOTIFICATION),
    "rx_used": Stage("read(tap), copy to guest", "QEMU", WORK),
    "rx_signalled": Stage("rx MSI ioctl", "interrupt", WORK),
    "irq": Stage("rx interrupt delivery", "interrupt", WAIT_CPU),
    "handled": Stage("rx interrupt handler", "guest", WORK),
    "taken": Stage("NAPI", "guest", WORK),
    "received": Stage("guest receive stack", "guest", WORK),
    "dequeued": Stage("NAPI completion, wake-up", "guest", WAIT_CPU),
    "delivered": Stage("recvmsg", "guest", WORK),
}
TX_STAGES: Final = {
    "room": Stage("tx queue stopped", "guest", WAIT_QUEUE),
    "available": Stage("start_xmit", "guest", WORK),
    "kicked": Stage("kick", "exit", WORK),
    "tx_seen": Stage("kick wakes QEMU", "QEMU", WAIT_NOTIFICATION),
    "processed": Stage("writev(tap)", "back end", WORK),
}


class VirtioNetSettings(VirtioQueuePairs):
    """``device.*`` of virtio-net."""

    tx_burst: Whole = Field(256, ge=1, le=1 << 20, description="x-txburst: packets one bottom half sends")
    hub: Flag = Field(False, description="joined to its tap by -net, through QEMU's hub")


class QemuVirtioNet:
    """QEMU's back end of one queue pair: the device side of both queues, and what virtio_net keeps beside it.

    Attributes:
        tap: The pair's queue of the tap.
        bh: The bottom half that drains the transmit queue is scheduled.
        held: A packet that found no buffer (-1: none); the tap is not polled meanwhile.
    """

    __slots__ = (
        "bh", "driver", "held", "hub", "loop", "room", "rx", "spurious", "tap", "tx", "tx_burst", "tx_waiting", "vcpu",
    )  # fmt: skip

    def __init__(
        self, room: NetworkRoom, tap: TapQueue, loop: MainLoop, driver: VirtioNet, settings: VirtioNetSettings
    ) -> None:
        self.room = room
        self.tap = tap
        self.loop = loop
        self.driver = driver
        self.vcpu = driver.vcpu
        self.bh = False
        self.rx = driver.rx_device
        self.tx = driver.tx_device
        self.tx_burst = settings.tx_burst
        self.hub = settings.hub
        self.tx_waiting = False
        self.spurious = False
        self.held = -1


class QemuNic:
    """The NIC in QEMU: its queue pairs, and the main loop that serves them all."""

    __slots__ = ("loop", "pairs")

    def __init__(self, loop: MainLoop, pairs: list[QemuVirtioNet]) -> None:
        self.loop = loop
        self.pairs = pairs


def application(a: Application, driver: VirtioNet) -> Generator[Effect, None, None]:
    """The guest's application: receive and answer (rr), send (tx) or just receive (rx)."""
    while True:
        row = yield from next_packet(a)
        if a.kind != RX_ONLY:
            yield from sendmsg(a.socket, row)
            yield from dev_queue_xmit(driver, a.socket, row)


def main_loop(nic: QemuNic) -> Generator[Effect, None, None]:
    """QEMU's main loop: ppoll, bottom halves, then whatever is ready."""
    yield from lock_iothread(nic.loop)
    while True:
        yield from main_loop_wait(nic.loop)
        if nic.loop.bh:
            nic.loop.bh = False
            yield from aio_bh_poll(nic)
        ready = nic.loop.work.fifo.count
        while ready > 0:
            item = take_work(nic.loop.work)
            q = nic.pairs[item // ITEMS]
            source = item % ITEMS
            if source == TAP:
                yield from tap_send(q)
            elif source == KICK_TX:
                yield from handle_tx_bh(q)
            else:
                yield from handle_rx(q)
            ready -= 1


def aio_bh_poll(nic: QemuNic) -> Generator[Effect, None, None]:
    """Call the bottom halves that are scheduled; one that schedules itself again waits for the next round."""
    i = 0
    while i < len(nic.pairs):
        q = nic.pairs[i]
        if q.bh:
            q.bh = False
            yield from tx_bh(q)
        i += 1


def schedule_bh(q: QemuVirtioNet) -> None:
    """qemu_bh_schedule: the next ppoll does not sleep."""
    q.bh = True
    q.loop.bh = True


# -- transmit ---------------------------------------------------------------------------------------------------


def handle_tx_bh(q: QemuVirtioNet) -> Generator[Effect, None, None]:
    """The transmit queue was kicked: no more notifications for now, and a bottom half to drain it."""
    q.room.machine.counters.n[count.SYS_READ] += 1
    yield spend(SYS_READ)
    if not q.tx_waiting:
        q.tx_waiting = True
        q.spurious = True
        set_notification(q.tx, False)
        schedule_bh(q)


def tx_bh(q: QemuVirtioNet) -> Generator[Effect, None, None]:
    """Drain the ring; after a full burst come back soon, else turn notification on and look once more."""
    q.tx_waiting = False
    yield spend(QEMU_BH)
    sent = yield from flush_tx(q)
    if sent == 0 and q.spurious:
        q.room.machine.counters.n[count.KICKS_SPURIOUS] += 1
    q.spurious = False
    if sent < q.tx_burst:
        set_notification(q.tx, True)
        yield spend(REARM_WINDOW)
        sent = yield from flush_tx(q)
        if sent > 0:
            set_notification(q.tx, False)
    if sent > 0:
        q.tx_waiting = True
        schedule_bh(q)


def flush_tx(q: QemuVirtioNet) -> Generator[Effect, None, int]:
    """Send what is in the ring, one writev and one notification a packet; return how many."""
    m = q.room.machine
    sent = 0
    head = raise_for(pop(q.tx))
    while head >= 0:
        row = m.memory.u64[(q.tx.elem_addr[0] >> 3) + 2]
        mark(m.table, row, q.room.milestones.tx_seen, m.clock.now)
        yield spend(QEMU_VIRTIO_PACKET)
        yield spend(QEMU_NET_QUEUE)
        if q.hub:
            yield spend(QEMU_NET_QUEUE)
        m.counters.n[count.SYS_WRITEV] += 1
        yield spend(SYS_WRITE)
        yield from copy_packet(q.room.network, row)
        yield from tap_transmit(q.room.network, q.tap, row)
        mark(m.table, row, q.room.milestones.processed, m.clock.now)
        push(q.tx, head, 0)
        yield from virtio_notify(q, q.tx, TX)
        sent += 1
        head = -1
        if sent < q.tx_burst:
            head = raise_for(pop(q.tx))
    return sent


# -- receive ----------------------------------------------------------------------------------------------------


def tap_send(q: QemuVirtioNet) -> Generator[Effect, None, None]:
    """The tap is readable: read packets until there is no more (EAGAIN), the burst is over or the ring is full."""
    m = q.room.machine
    net = q.room.network
    packets = 0
    more = q.tap.polled
    while more:
        row = tap_read(q.tap)
        mark_seen(q, row)
        m.counters.n[count.SYS_READ] += 1
        yield spend(SYS_READ)
        if row >= 0:
            yield from copy_packet(net, row)
            yield spend(QEMU_NET_QUEUE)
            if q.hub:
                yield spend(QEMU_NET_QUEUE)
            yield from receive(q, row)
            packets += 1
        more = row >= 0 and packets < TAP_BURST and q.tap.polled
    if q.tap.frames.count > 0 and q.tap.polled:
        yield from queue_work(q.loop.work, q.tap.reader_item)


def mark_seen(q: QemuVirtioNet, row: int) -> None:
    """Stamp the moment at which QEMU begins to read a packet from the tap."""
    if row >= 0:
        mark(q.room.machine.table, row, q.room.milestones.rx_seen, q.room.machine.clock.now)


def receive(q: QemuVirtioNet, row: int) -> Generator[Effect, None, None]:
    """virtio_net_receive: into the next buffer; where there is none, hold the packet and poll the tap no more."""
    m = q.room.machine
    some = yield from has_buffers(q)
    if some:
        head = raise_for(pop(q.rx))
        yield spend(QEMU_VIRTIO_PACKET)
        yield from copy_packet_hot(q.room.network, row)
        m.memory.u64[(q.rx.elem_addr[0] >> 3) + 2] = row
        push(q.rx, head, packet_len(q.room.network, row))
        mark(m.table, row, q.room.milestones.rx_used, m.clock.now)
        signalled = yield from virtio_notify(q, q.rx, RX)
        if signalled:
            mark(m.table, row, q.room.milestones.rx_signalled, m.clock.now)
    else:
        q.held = row
        q.tap.polled = False


def has_buffers(q: QemuVirtioNet) -> Generator[Effect, None, bool]:
    """virtio_net_has_buffers: only a ring without buffers asks for a kick when the guest posts some."""
    some = not empty(q.rx)
    if not some:
        set_notification(q.rx, True)
        yield spend(REARM_WINDOW)
        some = not empty(q.rx)
    if some:
        set_notification(q.rx, False)
    return some


def handle_rx(q: QemuVirtioNet) -> Generator[Effect, None, None]:
    """The receive queue was kicked: there are buffers again for the packet that waits; poll the tap again."""
    q.room.machine.counters.n[count.SYS_READ] += 1
    yield spend(SYS_READ)
    if q.held >= 0:
        row = q.held
        q.held = -1
        q.tap.polled = True
        yield from receive(q, row)
        if q.tap.frames.count > 0 and q.tap.polled:
            yield from queue_work(q.loop.work, q.tap.reader_item)
    else:
        q.room.machine.counters.n[count.KICKS_SPURIOUS] += 1


def virtio_notify(q: QemuVirtioNet, queue: DeviceQueue, vector: int) -> Generator[Effect, None, bool]:
    """Interrupt the guest if it wants it: KVM_SIGNAL_MSI, an ioctl under the big QEMU lock; return whether."""
    n = q.room.machine.counters.n
    wanted = should_notify(queue)
    if wanted:
        n[count.SYS_IOCTL] += 1
        yield spend(SYS_IOCTL)
        yield from deliver_interrupt(q.vcpu, q.driver.napi + vector)
    else:
        n[count.INTERRUPTS_SUPPRESSED] += 1
    return wanted


def build(host: Host, workload: Workload, settings: VirtioNetSettings, vcpus: int = 1) -> Machine:
    """Put the path together for one run."""
    pairs = settings.queues
    buffers = settings.rx_queue_size + settings.tx_queue_size
    room = NetworkRoom(host, workload, RX_STAGES, TX_STAGES, PAIR, buffers, pairs, vcpus)
    loop = MainLoop(room.machine, items=ITEMS * pairs)
    softnets = [SoftNet(room.machine, vcpu, PAIR * room.pairs_a_vcpu) for vcpu in room.vcpus]
    offloads = Offloads(
        csum=settings.csum,
        host_tso4=settings.host_tso4,
        vnet_hdr=settings.vnet_hdr and not settings.hub,
        ethtool_tso=settings.ethtool_tso,
        ethtool_gso=settings.ethtool_gso,
    )
    qemu: list[QemuVirtioNet] = []
    for i in range(pairs):
        tap = room.network.tap[i]
        tap.reader = loop.work
        tap.reader_item = ITEMS * i + TAP
        driver = VirtioNet(
            room.machine,
            softnets[i % vcpus],
            i,
            room.sockets,
            room.sockets[i::pairs],
            room.milestones,
            loop.work,
            ITEMS * i + KICK_RX,
            ITEMS * i + KICK_TX,
            rx_size=settings.rx_queue_size,
            tx_size=settings.tx_queue_size,
            event_idx=settings.event_idx,
            frame=workload.frame,
            offloads=offloads,
        )
        qemu.append(QemuVirtioNet(room, tap, loop, driver, settings))
        room.machine.parts[instance("driver", i)] = driver
    for i, a in enumerate(room.applications):
        process = application(a, qemu[i % pairs].driver)
        room.system.process(instance("application", i), process, a.vcpu.thread, TASK)
    room.system.process("qemu main loop", main_loop(QemuNic(loop, qemu)), loop.thread)
    return room.machine


MODEL: Final = Model(
    name="virtio-net",
    summary="virtio NIC served by QEMU's main loop: ioeventfd, bottom half, writev to the tap, MSI by ioctl",
    settings=VirtioNetSettings,
    build=build,
    smp=True,
    streams=True,
)
