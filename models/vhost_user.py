"""vhost-user: the virtio NIC served by a poll-mode process on a CPU of its own, as DPDK's testpmd or Open vSwitch.

QEMU hands the guest's memory and the rings' addresses to that process and stays out of the way, and so does the host's
kernel: the process drives the physical NIC too. Its thread ``pmd`` never sleeps. In each iteration of its loop it takes
up to 32 frames from the NIC's ring into the guest's receive queue, and up to 32 packets from the guest's transmit queue
to the NIC. So nobody has to tell it: it turns the guest's notifications off for good, and the guest sends without a
kick and without an exit. The price is a CPU that is always busy.

The other way the guest is told only if it asks, as ever: the process writes to the call eventfd, a system call in which
KVM injects the message (irqfd).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from pydantic import Field

from iosim.effects import TASK, Effect, notify, spend
from iosim.errors import IosimError
from iosim.fifo import put, take_first
from iosim.guest.socket import sendmsg
from iosim.guest.tcp import Offloads
from iosim.guest.virtio_net import PAIR, RX, TX, SoftNet, VirtioNet, dev_queue_xmit, packet_buffers
from iosim.host import counters as count
from iosim.host.costs import PMD_NIC, PMD_VHOST, SYS_WRITE, VHOST_SIGNAL
from iosim.host.hosts import Host
from iosim.host.kvm import deliver_interrupt
from iosim.host.machine import Machine
from iosim.host.main_loop import MainLoop
from iosim.host.network import copy_cold, nic_transmit
from iosim.host.pmd import PollLoop, idle_iterations, iteration
from iosim.host.virtio_pci import OWN, VirtioPci
from iosim.model import Model
from iosim.requests import Stage, mark
from iosim.ring.errors import raise_for
from iosim.ring.queue import DeviceQueue, fill, flush, pop, set_notification, should_notify
from iosim.settings import VirtioQueues, Whole
from iosim.window import drop
from iosim.workload.application import Application, next_packet
from iosim.workload.assembly import NetworkRoom
from iosim.workload.path import WAIT_CPU, WAIT_NOTIFICATION, WAIT_QUEUE, WORK
from iosim.workload.spec import RX as RX_ONLY
from iosim.workload.spec import Workload

MAX_PKT_BURST: Final = 32
"""Packets of a burst (DPDK testpmd; Open vSwitch's NETDEV_MAX_BURST)."""

RX_STAGES: Final = {
    "rx_seen": Stage("NIC DMA, until polled", "back end", WAIT_NOTIFICATION),
    "rx_used": Stage("pmd copies to guest", "back end", WORK),
    "rx_signalled": Stage("rx call eventfd, irqfd", "interrupt", WORK),
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
    "tx_seen": Stage("until polled", "back end", WAIT_NOTIFICATION),
    "processed": Stage("pmd copies, sends to NIC", "back end", WORK),
}


class VhostUserSettings(VirtioQueues):
    """``device.*`` of vhost-user."""

    burst: Whole = Field(MAX_PKT_BURST, ge=1, le=1024, description="packets that an iteration takes from a ring")


class VhostUser:
    """The process: the device side of both queues, the loop, and the bursts under way.

    Attributes:
        frames: Frames that were written to the guest's buffers and are not yet in the used ring: rows.
        packets: Packets copied from the transmit ring that are not yet at the NIC: rows.
    """

    __slots__ = ("burst", "driver", "frames", "loop", "packets", "room", "rx", "tx")

    def __init__(self, room: NetworkRoom, loop: PollLoop, driver: VirtioNet, settings: VhostUserSettings) -> None:
        self.room = room
        self.loop = loop
        self.driver = driver
        self.rx = driver.rx_device
        self.tx = driver.tx_device
        self.burst = settings.burst
        self.frames: list[int] = []
        self.packets: list[int] = []


def application(a: Application, driver: VirtioNet) -> Generator[Effect, None, None]:
    """The guest's application: receive and answer (rr), send (tx) or just receive (rx)."""
    while True:
        row = yield from next_packet(a)
        if a.kind != RX_ONLY:
            yield from sendmsg(a.socket, row)
            yield from dev_queue_xmit(driver, a.socket, row)


def pmd(u: VhostUser) -> Generator[Effect, None, None]:
    """The thread's loop: NIC to guest, guest to NIC, and so on."""
    while True:
        u.loop.rings.seen = False
        received = yield from nic_to_guest(u)
        sent = yield from guest_to_nic(u)
        yield from iteration(u.loop)
        if received + sent == 0:
            yield from idle_iterations(u.loop)


def nic_to_guest(u: VhostUser) -> Generator[Effect, None, int]:
    """rte_eth_rx_burst, then rte_vhost_enqueue_burst: a frame that finds no buffer is lost. Return the frames."""
    m = u.room.machine
    net = u.room.network
    frames = min(net.rx_ring.count, u.burst)
    i = 0
    while i < frames:
        row = take_first(net.rx_ring)
        mark(m.table, row, u.room.milestones.rx_seen, m.clock.now)
        yield spend(PMD_NIC)
        head = raise_for(pop(u.rx))
        if head >= 0:
            yield spend(PMD_VHOST)
            yield from copy_cold(net)
            m.memory.u64[(u.rx.elem_addr[0] >> 3) + 2] = row
            fill(u.rx, head, u.driver.frame, len(u.frames))
            u.frames.append(row)
        else:
            yield from drop(m.window, row)
        i += 1
    if len(u.frames) > 0:
        flush(u.rx, len(u.frames))
        i = 0
        while i < len(u.frames):
            mark(m.table, u.frames[i], u.room.milestones.rx_used, m.clock.now)
            i += 1
        called = yield from vring_call(u, u.rx, RX)
        i = 0
        while i < len(u.frames) and called:
            mark(m.table, u.frames[i], u.room.milestones.rx_signalled, m.clock.now)
            i += 1
        u.frames.clear()
    return frames


def guest_to_nic(u: VhostUser) -> Generator[Effect, None, int]:
    """rte_vhost_dequeue_burst, which copies and gives back, then rte_eth_tx_burst. Return how many packets."""
    m = u.room.machine
    net = u.room.network
    more = True
    while more and len(u.packets) < u.burst:
        head = raise_for(pop(u.tx))
        if head >= 0:
            row = m.memory.u64[(u.tx.elem_addr[0] >> 3) + 2]
            mark(m.table, row, u.room.milestones.tx_seen, m.clock.now)
            yield spend(PMD_VHOST)
            yield from copy_cold(net)
            fill(u.tx, head, 0, len(u.packets))
            u.packets.append(row)
        else:
            more = False
    packets = len(u.packets)
    if packets > 0:
        flush(u.tx, packets)
        yield from vring_call(u, u.tx, TX)
    i = 0
    while i < packets:
        yield spend(PMD_NIC)
        mark(m.table, u.packets[i], u.room.milestones.processed, m.clock.now)
        if put(net.nic_tx, u.packets[i]):
            yield notify(net.nic)
        else:
            yield from drop(m.window, u.packets[i])
        i += 1
    u.packets.clear()
    return packets


def vring_call(u: VhostUser, queue: DeviceQueue, vector: int) -> Generator[Effect, None, bool]:
    """Write to the call eventfd if the guest wants an interrupt: irqfd injects it in the call. Return whether."""
    n = u.room.machine.counters.n
    wanted = should_notify(queue)
    yield spend(VHOST_SIGNAL)
    if wanted:
        n[count.SYS_WRITE] += 1
        yield spend(SYS_WRITE)
        yield from deliver_interrupt(u.driver.vcpu, u.driver.napi + vector)
    else:
        n[count.INTERRUPTS_SUPPRESSED] += 1
    return wanted


def build(host: Host, workload: Workload, settings: VhostUserSettings) -> Machine:
    """Put the path together for one run."""
    big = not settings.mrg_rxbuf
    buffers = packet_buffers(settings.rx_queue_size, settings.tx_queue_size, settings.indirect, big)
    room = NetworkRoom(host, workload, RX_STAGES, TX_STAGES, PAIR, buffers, bypass=True)
    period = int(host.properties["pmd_poll"].value)
    if period < 1000:
        raise IosimError("an iteration of the poll-mode loop takes time: at least 1ns", "host.pmd_poll")
    dma = int(host.properties["nic_dma"].value)
    loop = PollLoop(room.machine, room.network, room.milestones, dma=dma, period=period)
    # QEMU's main loop has nothing to do: kicks go to an ioeventfd, interrupts come by irqfd.
    qemu = MainLoop(room.machine, items=PAIR, runs=False)
    pci = VirtioPci(room.machine, room.vcpu, qemu, 0, mode=OWN, legacy=False, ioeventfd=True)
    driver = VirtioNet(
        room.machine,
        SoftNet(room.machine, room.vcpu, PAIR),
        0,
        room.sockets,
        room.sockets,
        room.milestones,
        pci,
        loop.rings,
        RX,
        TX,
        rx_size=settings.rx_queue_size,
        tx_size=settings.tx_queue_size,
        event_idx=settings.event_idx,
        packed=settings.packed,
        indirect=settings.indirect,
        big=big,
        frame=workload.frame,
        # No streams here: every packet is one frame, whose checksum is the NIC's.
        offloads=Offloads(csum=True, tso=False, gso=False),
    )
    room.machine.parts["driver"] = driver
    # With EVENT_IDX that is an event index which nobody moves: the driver passes it, and kicks, every 65536 packets,
    # with the first one first. Nobody listens.
    set_notification(driver.rx_device, False)
    set_notification(driver.tx_device, False)
    room.system.process("application", application(room.application, driver), room.vcpu.thread, TASK)
    room.system.process("NIC transmit", nic_transmit(room.network))
    room.system.process("pmd", pmd(VhostUser(room, loop, driver, settings)), room.system.thread("pmd"))
    return room.machine


MODEL: Final = Model(
    name="vhost-user",
    summary="virtio NIC served by a poll-mode process on a CPU of its own (DPDK): no kicks, interrupts if asked for",
    settings=VhostUserSettings,
    build=build,
)
