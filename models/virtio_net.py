"""virtio-net: a virtio NIC whose back end is QEMU's main loop, with a tap.

Sending. The guest's driver puts the packet into the transmit ring; if the device wants to know, it writes the notify
register: an exit, but only to KVM, which signals an ioeventfd. QEMU's main loop returns from ppoll, reads the eventfd,
turns notification off and schedules a bottom half; after another ppoll that bottom half drains the ring: one writev
to the tap and one interrupt message a packet, unless the guest does not want it. Then it turns notification on again
and looks once more, for what came in between.

Receiving. The tap becomes readable, ppoll returns, and QEMU reads packets until there is no more: each is copied into
a buffer that the guest has posted (a GSO packet into several), pushed to the used ring, and announced by an ioctl.

Without an ioeventfd QEMU takes the kick itself, on the vCPU's thread (`iosim.host.virtio_net.virtio_queue_notify`);
what sends is the bottom half all the same, or a timer. Without MSI-X the interrupt is a line
(`iosim.host.virtio_pci`).

With several queue pairs each has rings, a bottom half and a queue of the tap for itself; but there is one main loop.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Literal

from pydantic import Field

from iosim.effects import Effect, spend
from iosim.guest.tcp import Offloads
from iosim.guest.virtio_net import RX, TX
from iosim.host import counters as count
from iosim.host.bridge import tap_read
from iosim.host.costs import QEMU_BH, QEMU_NET_QUEUE, SYS_READ
from iosim.host.hosts import Host
from iosim.host.machine import Machine
from iosim.host.main_loop import NEVER, MainLoop, lock_iothread, main_loop_wait, timer_due
from iosim.host.network import copy_packet
from iosim.host.virtio_net import AT_ONCE, QemuVirtioNet, handle_ioeventfd, receive, tx_drain
from iosim.host.work import queue_work, take_work
from iosim.model import Model
from iosim.requests import Stage, mark
from iosim.settings import Flag, TapQueuePairs, Time, Whole
from iosim.workload.assembly import GuestRoom
from iosim.workload.path import WAIT_CPU, WAIT_NOTIFICATION, WAIT_QUEUE, WORK
from iosim.workload.spec import Workload
from iosim.workload.virtio import applications, tap_offloads, virtio_net, virtio_room

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


class VirtioNetSettings(TapQueuePairs):
    """``device.*`` of virtio-net."""

    ioeventfd: Flag = Field(
        True, description="on: KVM turns a kick into an eventfd; off: it is QEMU's, on the vCPU's thread"
    )
    tx: Literal["bh", "timer"] = Field("bh", description="what sends after a kick: a bottom half, or a timer")
    tx_timer: Time = Field(150_000_000, gt=0, description="x-txtimer: what tx=timer waits for more packets")
    tx_burst: Whole = Field(256, ge=1, le=1 << 20, description="x-txburst: packets sent at a time")
    hub: Flag = Field(False, description="joined to its tap by -net, through QEMU's hub")


class QemuNic:
    """The NIC in QEMU: its queue pairs, and the main loop that serves them all.

    Attributes:
        notify_item: What the main loop polls besides: its own eventfd, by which vCPU threads wake it.
    """

    __slots__ = ("loop", "notify_item", "pairs")

    def __init__(self, loop: MainLoop, pairs: list[QemuVirtioNet]) -> None:
        self.loop = loop
        self.pairs = pairs
        self.notify_item = ITEMS * len(pairs)


def main_loop(nic: QemuNic) -> Generator[Effect, None, None]:
    """QEMU's main loop: ppoll, bottom halves, then whatever is ready, then timers."""
    yield from lock_iothread(nic.loop)
    while True:
        yield from main_loop_wait(nic.loop)
        if nic.loop.bh:
            nic.loop.bh = False
            yield from aio_bh_poll(nic)
        ready = nic.loop.work.fifo.count
        while ready > 0:
            item = take_work(nic.loop.work)
            if item == nic.notify_item:
                nic.loop.machine.counters.n[count.SYS_READ] += 1
                yield spend(SYS_READ)
            elif item % ITEMS == TAP:
                yield from tap_send(nic.pairs[item // ITEMS])
            else:
                yield from handle_ioeventfd(nic.pairs[item // ITEMS], item % ITEMS)
            ready -= 1
        if timer_due(nic.loop):
            yield from run_timers(nic)


def aio_bh_poll(nic: QemuNic) -> Generator[Effect, None, None]:
    """Call the bottom halves that are scheduled; one that schedules itself again waits for the next round."""
    i = 0
    while i < len(nic.pairs):
        q = nic.pairs[i]
        if q.bh:
            q.bh = False
            yield spend(QEMU_BH)
            yield from tx_drain(q)
        i += 1


def run_timers(nic: QemuNic) -> Generator[Effect, None, None]:
    """Call the timers that are due, each at the cost of a bottom half, and set the loop's deadline to the next."""
    i = 0
    while i < len(nic.pairs):
        q = nic.pairs[i]
        if q.tx_timer != NEVER and q.tx_timer <= nic.loop.machine.clock.now:
            q.tx_timer = NEVER
            yield spend(QEMU_BH)
            yield from tx_drain(q)
        i += 1
    nic.loop.deadline = NEVER
    i = 0
    while i < len(nic.pairs):
        timer = nic.pairs[i].tx_timer
        if timer != NEVER and (nic.loop.deadline == NEVER or timer < nic.loop.deadline):
            nic.loop.deadline = timer
        i += 1


# -- receive ----------------------------------------------------------------------------------------------------


def tap_send(q: QemuVirtioNet) -> Generator[Effect, None, None]:
    """The tap is readable: read packets until there is no more (EAGAIN), the burst is over or the ring is full."""
    m = q.machine
    net = q.network
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
        mark(q.machine.table, row, q.milestones.rx_seen, q.machine.clock.now)


def build(host: Host, workload: Workload, settings: VirtioNetSettings, vcpus: int = 1, vms: int = 1) -> Machine:
    """Put the path together for one run."""
    offloads = tap_offloads(settings, settings.hub)
    room = virtio_room(host, workload, RX_STAGES, TX_STAGES, settings, vcpus, vms, offloads)
    for guest in room.guests:
        with guest.names():
            connect(guest, settings, offloads)
    return room.machine


def connect(room: GuestRoom, settings: VirtioNetSettings, offloads: Offloads) -> None:
    """Give a guest its NIC, in a QEMU of its own."""
    pairs = settings.queues
    loop = MainLoop(room.machine, items=ITEMS * pairs + 1)
    works = [loop.work] * pairs
    drivers = virtio_net(room, loop, settings, works, offloads, ioeventfd=settings.ioeventfd, stride=ITEMS)
    for i, (tap, driver) in enumerate(zip(room.tap, drivers, strict=True)):
        tap.reader = loop.work
        tap.reader_item = ITEMS * i + TAP
        device = QemuVirtioNet(
            room.machine,
            room.milestones,
            room.network,
            tap,
            loop,
            ITEMS * pairs,
            driver.pci,
            driver.rx_device,
            driver.tx_device,
            tx_burst=settings.tx_burst,
            tx_timeout=settings.tx_timer if settings.tx == "timer" else AT_ONCE,
            hub=settings.hub,
            mergeable=settings.mrg_rxbuf,
        )
        driver.qemu.append(device)
    applications(room, drivers)
    nic = QemuNic(loop, [driver.qemu[0] for driver in drivers])
    room.system.process("qemu main loop", main_loop(nic), loop.thread)


MODEL: Final = Model(
    name="virtio-net",
    summary="virtio NIC served by QEMU's main loop: ioeventfd, bottom half, writev to the tap, MSI by ioctl",
    settings=VirtioNetSettings,
    build=build,
    smp=True,
    vms=True,
    streams=True,
    receives_streams=True,
)
