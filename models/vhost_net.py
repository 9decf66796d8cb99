"""vhost-net: the same virtio NIC and the same rings, served by a kernel thread, the vhost worker.

QEMU only sets it up. The guest's kick is an exit to KVM, which signals the ioeventfd that the worker waits on; the
worker takes packets from the transmit ring in batches and hands them to the tap. Packets for the guest wake the same
worker: the tap's data-ready queues its work. It writes them straight into the guest's buffers, a GSO packet into as
many as it needs. Interrupts go from the used ring to an eventfd that KVM turns into the MSI (irqfd), on the worker's
thread. No system call, no QEMU.

While it works, notification is off; before it sleeps it arms the event index and looks once more. No work item runs
longer than its weight, so that one queue cannot starve the other.

irqfd takes MSI-X. With INTx a call eventfd wakes QEMU's main loop, which raises the line (an ioctl), and the guest's
read of the ISR register goes out to QEMU.

With poll-us the worker polls rings and tap for a while before it re-arms.

With several queue pairs each has all of this for itself: rings, a queue of the tap, a worker.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from pydantic import Field

from iosim.effects import Effect, spend, spin, wait
from iosim.engine.system import instance
from iosim.fifo import first, take_first
from iosim.guest.tcp import Offloads
from iosim.guest.virtio_net import RX, TX, VirtioNet
from iosim.host import counters as count
from iosim.host.bridge import tap_transmit
from iosim.host.costs import REARM_WINDOW, RX_BUFFER_MORE, VHOST_PACKET, VHOST_SIGNAL, VHOST_WORKER_WAKEUP
from iosim.host.hosts import Host
from iosim.host.machine import Machine
from iosim.host.network import TapQueue, copy_packet, packet_len
from iosim.host.packets import payload
from iosim.host.rx_buffers import RxBuffers, enough, get_rx_bufs, write_packet
from iosim.host.virtio_pci import signal_call
from iosim.host.work import WorkQueue, queue_work, take_work
from iosim.model import Model
from iosim.requests import Stage, mark
from iosim.ring.errors import raise_for
from iosim.ring.queue import DeviceQueue, arm_avail_event, empty, fill, flush, pop, set_notification, should_notify
from iosim.settings import TapQueuePairs, Whole
from iosim.workload.assembly import GuestRoom
from iosim.workload.path import WAIT_CPU, WAIT_NOTIFICATION, WAIT_QUEUE, WORK
from iosim.workload.spec import Workload
from iosim.workload.virtio import applications, notifier_loop, run_notifiers, tap_offloads, virtio_net, virtio_room

KICK_RX: Final = RX
KICK_TX: Final = TX
TAP: Final = 2
"""The worker's work items: a kick of either queue, and data in the tap."""

VHOST_NET_BATCH: Final = 64
"""Packets after which a batch goes to the tap, or to the guest (Linux drivers/vhost/net.c)."""
VHOST_NET_WEIGHT: Final = 0x80000
"""Bytes after which a work item gets in line again."""
VHOST_NET_PKT_WEIGHT: Final = 256
"""Packets after which it does."""
PAGE: Final = 4096
"""Bytes of a page: a packet that does not fit one goes to the tap at once, with what is before it in the batch."""

MICROSECOND: Final = 1_000_000
"""In ps."""

RX_STAGES: Final = {
    "rx_seen": Stage("tap wakes vhost", "back end", WAIT_NOTIFICATION),
    "rx_used": Stage("vhost copies to guest", "back end", WORK),
    "rx_signalled": Stage("rx irqfd", "interrupt", WORK),
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
    "tx_seen": Stage("kick wakes vhost", "back end", WAIT_NOTIFICATION),
    "processed": Stage("vhost sends to tap", "back end", WORK),
}


class VhostNetSettings(TapQueuePairs):
    """``device.*`` of vhost-net."""

    poll_us: Whole = Field(0, ge=0, le=1_000_000, description="poll-us: how long the worker polls before it re-arms")
    packet_weight: Whole = Field(VHOST_NET_PKT_WEIGHT, ge=1, description="packets after which the queues take turns")


class VhostNet:
    """The vhost device of one queue pair: the device side of both queues, and the batches under way.

    Attributes:
        work: What the worker has to do.
        tap: The pair's queue of the tap.
        batch: Rows and heads of the packets copied from the transmit ring that are not yet sent.
        buffers: Those of the packet that is being received.
        done: Packets written to the guest's buffers that are not yet in the used ring.
        done_idx: The buffers that they take.
        passed: How many of the batch the tap has already.
        kicked: The transmit work was queued by a kick, not by the worker itself.
        poll: How long the worker polls (ps); 0: not at all.
        taken: Works that the worker has taken off its list together and not run yet; they are no news to a poller.
    """

    __slots__ = (
        "batch", "batch_head", "buffers", "done", "done_idx", "driver", "kicked", "packet_weight", "passed", "poll",
        "room", "rx", "taken", "tap", "tx", "work",
    )  # fmt: skip

    def __init__(
        self, room: GuestRoom, tap: TapQueue, work: WorkQueue, driver: VirtioNet, settings: VhostNetSettings
    ) -> None:
        self.room = room
        self.tap = tap
        self.work = work
        self.driver = driver
        self.rx = driver.rx_device
        self.tx = driver.tx_device
        self.packet_weight = settings.packet_weight
        self.batch: list[int] = []
        self.batch_head: list[int] = []
        self.buffers = RxBuffers(settings.mrg_rxbuf)
        self.done: list[int] = []
        self.done_idx = 0
        self.passed = 0
        self.kicked = True
        self.poll = settings.poll_us * MICROSECOND
        self.taken = 0


def vhost_worker(v: VhostNet) -> Generator[Effect, None, None]:
    """The worker thread: sleeps until there is work, runs the items in the order in which they were queued."""
    while True:
        while v.work.fifo.count == 0:
            yield wait(v.work.channel, VHOST_WORKER_WAKEUP)
        if v.taken == 0:
            v.taken = v.work.fifo.count
        item = take_work(v.work)
        v.taken -= 1
        if item == KICK_TX:
            yield from handle_tx(v)
        else:
            yield from handle_rx(v, item)


# -- transmit ---------------------------------------------------------------------------------------------------


def handle_tx(v: VhostNet) -> Generator[Effect, None, None]:
    """Drain the transmit ring up to the weight: copy, batch, send, give back; re-arm and re-check at its end."""
    m = v.room.machine
    set_notification(v.tx, False)
    sent = 0
    size = 0
    more = True
    while more:
        head = raise_for(pop(v.tx))
        other_work = False
        if head < 0 and v.poll > 0:
            yield from tx_batch(v)
            other_work = yield from busy_poll(v, False)
            head = raise_for(pop(v.tx))
        if head >= 0:
            row = m.memory.u64[(v.tx.elem_addr[0] >> 3) + 2]
            mark(m.table, row, v.room.milestones.tx_seen, m.clock.now)
            yield spend(VHOST_PACKET)
            yield from copy_packet(v.room.network, row)
            v.batch.append(row)
            v.batch_head.append(head)
            if packet_len(v.room.network, row) > PAGE:
                yield from pass_on(v)
            if len(v.batch) == VHOST_NET_BATCH:
                yield from tx_batch(v)
            sent += 1
            size += packet_len(v.room.network, row)
            if sent >= v.packet_weight or size >= VHOST_NET_WEIGHT:
                more = False
                v.kicked = False
                yield from queue_work(v.work, KICK_TX)
        elif other_work:
            more = False
            v.kicked = False
            yield from queue_work(v.work, KICK_TX)
        else:
            if sent == 0 and v.kicked:
                m.counters.n[count.KICKS_SPURIOUS] += 1
            v.kicked = True
            more = yield from enable_notify(v.tx)
    yield from tx_batch(v)


def tx_batch(v: VhostNet) -> Generator[Effect, None, None]:
    """Hand the batch to the tap, return its descriptors, interrupt the guest once if it wants it."""
    yield from pass_on(v)
    count_sent = v.passed
    v.passed = 0
    v.batch.clear()
    v.batch_head.clear()
    if count_sent > 0:
        flush(v.tx, count_sent)
        yield from signal(v, v.tx, TX)


def pass_on(v: VhostNet) -> Generator[Effect, None, None]:
    """Hand to the tap what it has not yet of the batch."""
    m = v.room.machine
    while v.passed < len(v.batch):
        i = v.passed
        v.passed += 1
        yield from tap_transmit(v.room.network, v.tap, v.batch[i])
        mark(m.table, v.batch[i], v.room.milestones.processed, m.clock.now)
        fill(v.tx, v.batch_head[i], 0, i)


# -- receive ----------------------------------------------------------------------------------------------------


def handle_rx(v: VhostNet, item: int) -> Generator[Effect, None, None]:
    """Copy packets from the tap into the guest's buffers up to the weight; announce them in batches."""
    m = v.room.machine
    net = v.room.network
    set_notification(v.rx, False)
    v.tap.polled = False
    packets = 0
    size = 0
    more = True
    while more:
        row = first(v.tap.frames)
        other_work = False
        if row < 0 and v.poll > 0:
            yield from rx_signal(v)
            other_work = yield from busy_poll(v, True)
            row = first(v.tap.frames)
        if row < 0 and other_work:
            more = False
            yield from queue_work(v.work, TAP)
        elif row < 0:
            # The socket is empty: have its data-ready wake the worker again.
            more = False
            v.tap.polled = True
            if packets == 0 and item == KICK_RX:
                m.counters.n[count.KICKS_SPURIOUS] += 1
        else:
            buffers = get_rx_bufs(v.buffers, v.rx, packet_len(net, row))
            if buffers > 0:
                take_first(v.tap.frames)
                mark(m.table, row, v.room.milestones.rx_seen, m.clock.now)
                yield spend(VHOST_PACKET)
                if payload(row) > 0:
                    m.counters.n[count.STREAM_BUFFERS] += buffers
                i = 1
                while i < buffers:
                    yield spend(RX_BUFFER_MORE)
                    i += 1
                yield from copy_packet(net, row)
                write_packet(v.buffers, v.rx, row, v.done_idx)
                v.done.append(row)
                v.done_idx += buffers
                if v.done_idx > VHOST_NET_BATCH:
                    yield from rx_signal(v)
                packets += 1
                size += packet_len(net, row)
                if packets >= v.packet_weight or size >= VHOST_NET_WEIGHT:
                    more = False
                    yield from queue_work(v.work, TAP)
            elif other_work:
                more = False
                yield from queue_work(v.work, TAP)
            else:
                # Too few buffers: the tap is left alone until the guest kicks this queue.
                more = yield from wait_for_buffers(v, packet_len(net, row))
    yield from rx_signal(v)


def rx_signal(v: VhostNet) -> Generator[Effect, None, None]:
    """Publish what was received in the used ring and interrupt the guest once if it wants it."""
    m = v.room.machine
    done = len(v.done)
    if done > 0:
        flush(v.rx, v.done_idx)
        v.done_idx = 0
        i = 0
        while i < done:
            mark(m.table, v.done[i], v.room.milestones.rx_used, m.clock.now)
            i += 1
        signalled = yield from signal(v, v.rx, RX)
        i = 0
        while i < done and signalled:
            mark(m.table, v.done[i], v.room.milestones.rx_signalled, m.clock.now)
            i += 1
        v.done.clear()


# -- busy polling -----------------------------------------------------------------------------------------------


def busy_poll(v: VhostNet, for_rx: bool) -> Generator[Effect, None, bool]:
    """Look at rings, tap and the list of works until there is something or the time is up (vhost_net_busy_poll).

    ``for_rx``: it was the tap that was empty, else the transmit ring. The other queue's notification is off meanwhile,
    and on again afterwards, or its work is queued. Returns whether other work has come, which goes first.
    """
    clock = v.room.machine.clock
    if for_rx:
        set_notification(v.tx, False)
    else:
        set_notification(v.rx, False)
    end = clock.now + v.poll
    v.work.polling = True
    # Works that were queued while the worker ran have left a notification, which is no news.
    yield spin(v.work.channel, 0)
    other_work = new_work(v)
    more = not other_work and not found(v)
    while more:
        v.work.seen = False
        yield spin(v.work.channel, end - clock.now)
        other_work = new_work(v)
        # Nothing seen: the time is up, or another thread wants the CPU (need_resched).
        more = v.work.seen and not other_work and not found(v) and clock.now < end
    v.work.polling = False
    if for_rx:
        if not empty(v.tx):
            yield from queue_again(v, KICK_TX)
        else:
            late = yield from enable_notify(v.tx)
            if late:
                yield from queue_again(v, KICK_TX)
    elif v.tap.frames.count > 0:
        if not empty(v.rx):
            yield from queue_again(v, TAP)
        else:
            late = yield from enable_notify(v.rx)
            if late:
                yield from queue_again(v, TAP)
    else:
        # There are buffers, as a rule, and Linux arms all the same: the next refill kicks.
        arm_avail_event(v.rx, v.rx.shadow_avail_idx)
        yield spend(REARM_WINDOW)
    return other_work


def new_work(v: VhostNet) -> bool:
    """Whether works have been queued since the worker took its list (vhost_has_work)."""
    return v.work.fifo.count > v.taken


def found(v: VhostNet) -> bool:
    """Whether there is something to send, or to receive and a buffer for it."""
    return not empty(v.tx) or (v.tap.frames.count > 0 and not empty(v.rx))


def queue_again(v: VhostNet, item: int) -> Generator[Effect, None, None]:
    """The worker queues a work itself (vhost_poll_queue): no kick has."""
    if item == KICK_TX and not v.work.queued[KICK_TX]:
        v.kicked = False
    yield from queue_work(v.work, item)


# -- notification -----------------------------------------------------------------------------------------------


def enable_notify(queue: DeviceQueue) -> Generator[Effect, None, bool]:
    """Arm the event index at the last index seen, then look once more; return whether there is more after all."""
    arm_avail_event(queue, queue.last_avail_idx)
    yield spend(REARM_WINDOW)
    more = not empty(queue)
    if more:
        set_notification(queue, False)
    return more


def wait_for_buffers(v: VhostNet, size: int) -> Generator[Effect, None, bool]:
    """Arm the event index behind the buffers there are, then look once more whether they are enough for a packet."""
    arm_avail_event(v.rx, v.buffers.end)
    yield spend(REARM_WINDOW)
    more = enough(v.buffers, v.rx, size)
    if more:
        set_notification(v.rx, False)
    return more


def signal(v: VhostNet, queue: DeviceQueue, vector: int) -> Generator[Effect, None, bool]:
    """Signal the call eventfd if the guest wants an interrupt, return whether.

    irqfd injects the message from here; without MSI-X the eventfd wakes QEMU's main loop.
    """
    wanted = should_notify(queue)
    yield spend(VHOST_SIGNAL)
    if wanted:
        yield from signal_call(v.driver.pci, v.tap.number, vector)
    else:
        v.room.machine.counters.n[count.INTERRUPTS_SUPPRESSED] += 1
    return wanted


def build(host: Host, workload: Workload, settings: VhostNetSettings, vcpus: int = 1, vms: int = 1) -> Machine:
    """Put the path together for one run."""
    offloads = tap_offloads(settings)
    room = virtio_room(host, workload, RX_STAGES, TX_STAGES, settings, vcpus, vms, offloads)
    for guest in room.guests:
        with guest.names():
            connect(guest, settings, offloads)
    return room.machine


def connect(room: GuestRoom, settings: VhostNetSettings, offloads: Offloads) -> None:
    """Give a guest its NIC, and a worker for each queue pair."""
    system = room.system
    loop = notifier_loop(room, settings)
    works = [WorkQueue(system, instance("vhost worker", i), items=3) for i in range(settings.queues)]
    drivers = virtio_net(room, loop, settings, works, offloads)
    applications(room, drivers)
    for i, (tap, work, driver) in enumerate(zip(room.tap, works, drivers, strict=True)):
        tap.reader = work
        tap.reader_item = TAP
        # At start vhost polls both eventfds and the tap, with notification on, as QEMU left the queues.
        vhost = VhostNet(room, tap, work, driver, settings)
        thread = system.thread("vhost" if len(drivers) == 1 else f"vhost-{i}")
        system.process(instance("vhost worker", i), vhost_worker(vhost), thread)
    run_notifiers(room, drivers)


MODEL: Final = Model(
    name="vhost-net",
    summary="virtio NIC served by a vhost worker in the host's kernel: ioeventfd, tap, irqfd",
    settings=VhostNetSettings,
    build=build,
    smp=True,
    vms=True,
    streams=True,
    receives_streams=True,
)
