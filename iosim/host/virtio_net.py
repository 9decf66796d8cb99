"""The virtio NIC that QEMU serves itself: the back end of a queue pair (hw/net/virtio-net.c of QEMU 7.2).

Its handlers run in the main loop, or, where there is no ioeventfd, on the vCPU's thread within the notify write.
Sending is put off in either case: to a bottom half of the main loop (tx=bh), or until a timer fires (tx=timer).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from iosim.effects import Effect, spend
from iosim.host import counters as count
from iosim.host.bridge import tap_transmit
from iosim.host.costs import QEMU_NET_QUEUE, QEMU_VIRTIO_PACKET, REARM_WINDOW, RX_BUFFER_MORE, SYS_READ, SYS_WRITE
from iosim.host.machine import Machine
from iosim.host.main_loop import NEVER, MainLoop, notify_event
from iosim.host.network import Network, TapQueue, copy_packet, copy_packet_hot, packet_len
from iosim.host.packets import payload
from iosim.host.rx_buffers import RxBuffers, enough, get_rx_bufs, write_packet
from iosim.host.virtio_pci import VirtioPci, virtio_notify_vector
from iosim.host.work import queue_work
from iosim.requests import mark
from iosim.ring.errors import raise_for
from iosim.ring.queue import DeviceQueue, flush, pop, push, set_notification, should_notify

RX: Final = 0
TX: Final = 1
"""The queues of a pair."""
AT_ONCE: Final = -1
"""In place of a time: sending waits for no timer, but for a bottom half (tx=bh)."""


class DeviceMilestones(Protocol):
    """The milestones stamped here."""

    rx_seen: int
    rx_used: int
    rx_signalled: int
    tx_seen: int
    processed: int


class QemuVirtioNet:
    """QEMU's back end of one queue pair: the device side of both queues, and what virtio_net keeps beside it.

    Args:
        machine, milestones, network: What it belongs to.
        tap: The pair's queue of the tap.
        loop: The main loop, and ``notify_item``, the item there that is its own eventfd.
        pci: The transport.
        rx, tx: The device's side of both queues.
        tx_burst: Packets that it sends at a time.
        tx_timeout: What sending waits for: a time (ps), or ``AT_ONCE``.
        hub: Joined to the tap through QEMU's hub.
        mergeable: VIRTIO_NET_F_MRG_RXBUF was negotiated.

    Attributes:
        bh: The bottom half that drains the transmit queue is scheduled.
        tx_timer: When the timer that does is due (ps), or ``NEVER``.
        tx_waiting: One of both is; notification is off meanwhile.
        spurious: A kick is why.
        held: A packet that found no buffer (-1: none); the tap is not polled meanwhile.
        buffers: Those of the packet that is being received.
    """

    __slots__ = (
        "bh", "buffers", "held", "hub", "loop", "machine", "milestones", "network", "notify_item", "pci", "rx",
        "spurious", "tap", "tx", "tx_burst", "tx_timeout", "tx_timer", "tx_waiting",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        milestones: DeviceMilestones,
        network: Network,
        tap: TapQueue,
        loop: MainLoop,
        notify_item: int,
        pci: VirtioPci,
        rx: DeviceQueue,
        tx: DeviceQueue,
        *,
        tx_burst: int,
        tx_timeout: int,
        hub: bool,
        mergeable: bool,
    ) -> None:
        self.machine = machine
        self.milestones = milestones
        self.network = network
        self.tap = tap
        self.loop = loop
        self.notify_item = notify_item
        self.pci = pci
        self.rx = rx
        self.tx = tx
        self.tx_burst = tx_burst
        self.tx_timeout = tx_timeout
        self.hub = hub
        self.bh = False
        self.tx_timer = NEVER
        self.tx_waiting = False
        self.spurious = False
        self.held = -1
        self.buffers = RxBuffers(mergeable)


def virtio_queue_notify(q: QemuVirtioNet, queue: int) -> Generator[Effect, None, None]:
    """A notify write without ioeventfd: the queue's handler, on the vCPU's thread under the big QEMU lock.

    What it leaves to the main loop (a bottom half, a timer, the tap) wakes that by its eventfd, if it sleeps.
    """
    left = False
    if queue == TX:
        waiting = q.tx_waiting
        yield from handle_tx(q)
        left = q.tx_waiting and not waiting
    else:
        left = q.held >= 0
        yield from handle_rx(q)
    if left:
        yield from notify_event(q.loop, q.notify_item)


def handle_ioeventfd(q: QemuVirtioNet, queue: int) -> Generator[Effect, None, None]:
    """An ioeventfd is readable: read it and call the queue's handler (virtio_queue_host_notifier_read)."""
    q.machine.counters.n[count.SYS_READ] += 1
    yield spend(SYS_READ)
    if queue == TX:
        yield from handle_tx(q)
    else:
        yield from handle_rx(q)


# -- transmit ---------------------------------------------------------------------------------------------------


def handle_tx(q: QemuVirtioNet) -> Generator[Effect, None, None]:
    """The transmit queue was kicked: no more notifications for now, and what drains it later.

    virtio_net_handle_tx_bh, virtio_net_handle_tx_timer: a kick that comes although the timer runs sends at once.
    """
    if q.tx_timeout == AT_ONCE:
        if not q.tx_waiting:
            q.spurious = True
            schedule_tx(q)
    elif q.tx_waiting:
        q.tx_timer = NEVER
        q.spurious = True
        yield from tx_drain(q)
    else:
        q.spurious = True
        schedule_tx(q)


def schedule_tx(q: QemuVirtioNet) -> None:
    """Turn notification off and drain the ring later: when a bottom half is called or the timer fires."""
    q.tx_waiting = True
    set_notification(q.tx, False)
    if q.tx_timeout == AT_ONCE:
        # qemu_bh_schedule: the next ppoll does not sleep.
        q.bh = True
        q.loop.bh = True
    else:
        q.tx_timer = q.machine.clock.now + q.tx_timeout
        if q.loop.deadline == NEVER or q.tx_timer < q.loop.deadline:
            q.loop.deadline = q.tx_timer


def tx_drain(q: QemuVirtioNet) -> Generator[Effect, None, None]:
    """Drain the ring; after a full burst come back soon, else turn notification on and look once more.

    virtio_net_tx_bh, virtio_net_tx_timer.
    """
    q.tx_waiting = False
    sent = yield from flush_tx(q)
    if sent == 0 and q.spurious:
        q.machine.counters.n[count.KICKS_SPURIOUS] += 1
    q.spurious = False
    if sent < q.tx_burst:
        set_notification(q.tx, True)
        yield spend(REARM_WINDOW)
        sent = yield from flush_tx(q)
    if sent > 0:
        schedule_tx(q)


def flush_tx(q: QemuVirtioNet) -> Generator[Effect, None, int]:
    """Send what is in the ring, one writev and one notification a packet; return how many."""
    m = q.machine
    sent = 0
    head = raise_for(pop(q.tx))
    while head >= 0:
        row = m.memory.u64[(q.tx.elem_addr[0] >> 3) + 2]
        mark(m.table, row, q.milestones.tx_seen, m.clock.now)
        yield spend(QEMU_VIRTIO_PACKET)
        yield spend(QEMU_NET_QUEUE)
        if q.hub:
            yield spend(QEMU_NET_QUEUE)
        m.counters.n[count.SYS_WRITEV] += 1
        yield spend(SYS_WRITE)
        yield from copy_packet(q.network, row)
        yield from tap_transmit(q.network, q.tap, row)
        mark(m.table, row, q.milestones.processed, m.clock.now)
        push(q.tx, head, 0)
        yield from virtio_notify(q, q.tx, TX)
        sent += 1
        head = -1
        if sent < q.tx_burst:
            head = raise_for(pop(q.tx))
    return sent


# -- receive ----------------------------------------------------------------------------------------------------


def receive(q: QemuVirtioNet, row: int) -> Generator[Effect, None, None]:
    """virtio_net_receive: into the next buffer; where there is none, hold the packet and poll the tap no more."""
    m = q.machine
    size = packet_len(q.network, row)
    some = yield from has_buffers(q, size)
    if some:
        buffers = get_rx_bufs(q.buffers, q.rx, size)
        yield spend(QEMU_VIRTIO_PACKET)
        if payload(row) > 0:
            m.counters.n[count.STREAM_BUFFERS] += buffers
        i = 1
        while i < buffers:
            yield spend(RX_BUFFER_MORE)
            i += 1
        yield from copy_packet_hot(q.network, row)
        write_packet(q.buffers, q.rx, row, 0)
        flush(q.rx, buffers)
        mark(m.table, row, q.milestones.rx_used, m.clock.now)
        signalled = yield from virtio_notify(q, q.rx, RX)
        if signalled:
            mark(m.table, row, q.milestones.rx_signalled, m.clock.now)
    else:
        q.held = row
        q.tap.polled = False


def has_buffers(q: QemuVirtioNet, size: int) -> Generator[Effect, None, bool]:
    """virtio_net_has_buffers: only a ring without enough for the packet asks for a kick when the guest posts some."""
    some = enough(q.buffers, q.rx, size)
    if not some:
        set_notification(q.rx, True)
        yield spend(REARM_WINDOW)
        some = enough(q.buffers, q.rx, size)
    if some:
        set_notification(q.rx, False)
    return some


def handle_rx(q: QemuVirtioNet) -> Generator[Effect, None, None]:
    """The receive queue was kicked: there are buffers again for the packet that waits; poll the tap again."""
    if q.held >= 0:
        row = q.held
        q.held = -1
        q.tap.polled = True
        yield from receive(q, row)
        if q.tap.frames.count > 0 and q.tap.polled:
            yield from queue_work(q.loop.work, q.tap.reader_item)
    else:
        q.machine.counters.n[count.KICKS_SPURIOUS] += 1


def virtio_notify(q: QemuVirtioNet, queue: DeviceQueue, number: int) -> Generator[Effect, None, bool]:
    """Interrupt the guest if it wants it, under the big QEMU lock; return whether."""
    wanted = should_notify(queue)
    if wanted:
        yield from virtio_notify_vector(q.pci, number)
    else:
        q.machine.counters.n[count.INTERRUPTS_SUPPRESSED] += 1
    return wanted
