"""vhost-user: the virtio NIC served by a poll-mode process on a CPU of its own, as DPDK's testpmd or Open vSwitch.

QEMU hands the guest's memory and the rings' addresses to that process and stays out of the way, and so does the host's
kernel: the process drives the physical NIC too. Its thread ``pmd`` never sleeps. In each iteration of its loop it takes
up to 32 frames from the NIC's ring into the guest's receive queue, and up to 32 packets from the guest's transmit queue
to the NIC. So nobody has to tell it: it turns the guest's notifications off for good, and the guest sends without a
kick and without an exit. The price is a CPU that is always busy.

The other way the guest is told only if it asks, as ever: the process writes to the call eventfd, a system call in which
KVM injects the message (irqfd). Without MSI-X the eventfd wakes QEMU's main loop, which raises the line.

A GSO packet of a stream is copied as it is, and handed to the NIC, which segments it (TSO). To a NIC without TSO
(``host.nic_tso=off``) the process can hand none, and so it does not offer the guest VIRTIO_NET_F_HOST_TSO4. Segments
that come it hands on one by one; the guest merges them (GRO).

With several queue pairs the NIC spreads flows over as many queues (RSS), and what comes by one goes to the guest by the
pair of the same number. Each pair has a thread of its own, ``pmd-0``, ``pmd-1``, ..., or some threads share them all.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from pydantic import Field

from iosim.effects import Effect, notify, spend
from iosim.engine.system import instance
from iosim.errors import IosimError
from iosim.fifo import put, take_first
from iosim.guest.tcp import Offloads
from iosim.guest.virtio_net import RX, TX, VirtioNet
from iosim.host import counters as count
from iosim.host.costs import PMD_NIC, PMD_VHOST, SYS_WRITE, VHOST_SIGNAL
from iosim.host.hosts import Host
from iosim.host.machine import Machine
from iosim.host.network import copy_packet, packet_len
from iosim.host.nic_transmit import nic_transmit
from iosim.host.packets import payload
from iosim.host.pmd import PolledNic, PolledQueue, PollLoop, idle_iterations, iteration
from iosim.host.virtio_pci import signal_call
from iosim.model import Model
from iosim.requests import Stage, mark
from iosim.ring.errors import raise_for
from iosim.ring.queue import DeviceQueue, fill, flush, pop, set_notification, should_notify
from iosim.settings import ETHTOOL_GRO, MOST_QUEUE_PAIRS, Flag, VirtioSending, Whole
from iosim.virtio.net import packet_at
from iosim.window import DEVICE_RING, QDISC, drop
from iosim.workload.assembly import NetworkRoom
from iosim.workload.path import WAIT_CPU, WAIT_NOTIFICATION, WAIT_QUEUE, WORK
from iosim.workload.spec import Workload
from iosim.workload.virtio import applications, notifier_loop, run_notifiers, virtio_net, virtio_room

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


class VhostUserSettings(VirtioSending):
    """``device.*`` of vhost-user."""

    burst: Whole = Field(MAX_PKT_BURST, ge=1, le=1024, description="packets that an iteration takes from a ring")
    pmd_threads: Whole | None = Field(
        None, ge=1, le=MOST_QUEUE_PAIRS, description="threads that poll, no more than queue pairs; one for each pair"
    )
    ethtool_gro: Flag = Field(True, description=ETHTOOL_GRO)


class VhostUser:
    """The process's part for one queue pair: the device side of both queues, and the bursts under way.

    Args:
        room, driver, settings: What it belongs to.
        nic: The NIC's receive queue of the same number.
        number: The pair's place among the NIC's.

    Attributes:
        frames: Frames that were written to the guest's buffers and are not yet in the used ring: rows.
        packets: Packets copied from the transmit ring that are not yet at the NIC: rows.
    """

    __slots__ = ("burst", "driver", "frames", "nic", "number", "packets", "room", "rx", "tx")

    def __init__(
        self, room: NetworkRoom, nic: PolledQueue, number: int, driver: VirtioNet, settings: VhostUserSettings
    ) -> None:
        self.room = room
        self.nic = nic
        self.number = number
        self.driver = driver
        self.rx = driver.rx_device
        self.tx = driver.tx_device
        self.burst = settings.burst
        self.frames: list[int] = []
        self.packets: list[int] = []


class PmdThread:
    """A thread: its loop, and the pairs that it serves."""

    __slots__ = ("loop", "pairs")

    def __init__(self, loop: PollLoop, pairs: list[VhostUser]) -> None:
        self.loop = loop
        self.pairs = pairs


def pmd(t: PmdThread) -> Generator[Effect, None, None]:
    """The thread's loop: NIC to guest, guest to NIC, pair after pair, and so on."""
    while True:
        t.loop.rings.seen = False
        found = 0
        i = 0
        while i < len(t.pairs):
            received = yield from nic_to_guest(t.pairs[i])
            sent = yield from guest_to_nic(t.pairs[i])
            found += received + sent
            i += 1
        yield from iteration(t.loop)
        if found == 0:
            yield from idle_iterations(t.loop)


def nic_to_guest(u: VhostUser) -> Generator[Effect, None, int]:
    """rte_eth_rx_burst, then rte_vhost_enqueue_burst: a frame that finds no buffer is lost. Return the frames."""
    m = u.room.machine
    net = u.room.network
    frames = min(u.nic.frames.count, u.burst)
    i = 0
    while i < frames:
        row = take_first(u.nic.frames)
        mark(m.table, row, u.room.milestones.rx_seen, m.clock.now)
        if payload(row) > 0:
            m.counters.n[count.STREAM_FRAMES] += 1
        yield spend(PMD_NIC)
        head = raise_for(pop(u.rx))
        if head >= 0:
            yield spend(PMD_VHOST)
            yield from copy_packet(net, row)
            if payload(row) > 0:
                m.counters.n[count.STREAM_BUFFERS] += 1
            m.memory.u64[packet_at(u.rx) >> 3] = row
            fill(u.rx, head, packet_len(net, row), len(u.frames))
            u.frames.append(row)
        else:
            yield from drop(m.window, row, DEVICE_RING)
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
            yield from copy_packet(net, row)
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
            yield from drop(m.window, u.packets[i], QDISC)
        i += 1
    u.packets.clear()
    return packets


def vring_call(u: VhostUser, queue: DeviceQueue, number: int) -> Generator[Effect, None, bool]:
    """Write to the call eventfd if the guest wants an interrupt: irqfd injects it in the call. Return whether.

    Without MSI-X the call wakes QEMU's main loop.
    """
    n = u.room.machine.counters.n
    wanted = should_notify(queue)
    yield spend(VHOST_SIGNAL)
    if wanted:
        n[count.SYS_WRITE] += 1
        yield spend(SYS_WRITE)
        yield from signal_call(u.driver.pci, u.number, number)
    else:
        n[count.INTERRUPTS_SUPPRESSED] += 1
    return wanted


def build(host: Host, workload: Workload, settings: VhostUserSettings, vcpus: int = 1) -> Machine:
    """Put the path together for one run."""
    pairs = settings.queues
    threads = pairs if settings.pmd_threads is None else settings.pmd_threads
    if threads > pairs:
        raise IosimError(
            f"{threads} threads for {pairs} queue pair{'' if pairs == 1 else 's'}: each pair is polled by one of them, "
            f"others would do nothing; give {pairs}, or more device.queues",
            "device.pmd_threads",
        )
    # The virtio-net header is vhost-user's own: no back end is without.
    offloads = Offloads(
        csum=settings.csum,
        tso=settings.host_tso4 and settings.ethtool_tso and bool(host.properties["nic_tso"].value),
        gso=settings.ethtool_gso,
        guest_tso4=True,
        gro=settings.ethtool_gro,
    )
    room = virtio_room(host, workload, RX_STAGES, TX_STAGES, settings, vcpus, offloads=offloads, bypass=True)
    period = int(host.properties["pmd_poll"].value)
    if period < 1000:
        raise IosimError("an iteration of the poll-mode loop takes time: at least 1ns", "host.pmd_poll")
    dma = int(host.properties["nic_dma"].value)
    # A look at one pair and its queue of the NIC takes so long; a thread looks at all that it has.
    loops = [PollLoop(room.machine, t, period * len(range(t, pairs, threads))) for t in range(threads)]
    nic = [PolledQueue(loops[i % threads]) for i in range(pairs)]
    PolledNic(room.machine, room.network, room.milestones, nic, dma=dma)
    qemu = notifier_loop(room, settings)
    drivers = virtio_net(room, qemu, settings, [loops[i % threads].rings for i in range(pairs)], offloads)
    for driver in drivers:
        # With EVENT_IDX that is an event index which nobody moves: the driver passes it, and kicks, every 65536
        # packets, with the first one first. Nobody listens.
        set_notification(driver.rx_device, False)
        set_notification(driver.tx_device, False)
    applications(room, drivers)
    room.system.process("NIC transmit", nic_transmit(room.network))
    process = [VhostUser(room, nic[i], i, drivers[i], settings) for i in range(pairs)]
    for t in range(threads):
        thread = room.system.thread("pmd" if threads == 1 else f"pmd-{t}")
        room.system.process(instance("pmd", t), pmd(PmdThread(loops[t], process[t::threads])), thread)
    run_notifiers(room, drivers)
    return room.machine


MODEL: Final = Model(
    name="vhost-user",
    summary="virtio NIC served by a poll-mode process on a CPU of its own (DPDK): no kicks, interrupts if asked for",
    settings=VhostUserSettings,
    build=build,
    smp=True,
    streams=True,
    receives_streams=True,
)
