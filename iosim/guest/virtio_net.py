"""The guest's virtio_net driver (Linux 6.1): transmit, NAPI for both directions, receive buffers.

The same driver whatever serves the rings: QEMU, vhost or something else is only where its kicks go. A NIC with several
queue pairs is several times the same: each pair has rings, NAPI instances and vectors of its own, and belongs to one
vCPU. What the pairs of a vCPU share is its softirq.

Where all queues interrupt by one vector, or by the line, that is one vCPU's, and its softirq has the NAPI instances of
all pairs. A pair's transmit queue is then worked on by two vCPUs: the one that sends, and the one that polls. So it has
a lock, which nobody else would ever find taken.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Protocol

from iosim.effects import SOFTIRQ, Effect, busy_poll, notify, spend, wait
from iosim.engine.system import instance
from iosim.errors import IosimError
from iosim.fifo import Fifo, put, take_first
from iosim.guest.netdev import DriverMilestones, transmit
from iosim.guest.socket import Socket, sock_wfree
from iosim.guest.softirq import NETDEV_BUDGET, ksoftirqd
from iosim.guest.tcp import SKB_FRAG, Offloads
from iosim.guest.tcp_receive import (
    QDISC_LIMIT,
    napi_flush,
    napi_gro_receive,
    net_tx_action,
    sch_direct_xmit,
    tcp_make_ack,
    tcp_recvmsg,
)
from iosim.host import counters as count
from iosim.host.costs import (
    DRIVER_FREE,
    DRIVER_IRQ,
    DRIVER_RECEIVE,
    DRIVER_RECEIVE_FRAG,
    DRIVER_REFILL,
    DRIVER_XMIT,
    GUEST_CHECKSUM,
    REARM_WINDOW,
    SOFTIRQ_ENTRY,
)
from iosim.host.frames import TCP_HEADERS
from iosim.host.gro import GRO_MAX_SIZE, Gro
from iosim.host.intx import VECTOR
from iosim.host.kvm import Vcpu, eoi_edge, eoi_level, irq_enter, irq_return, kick, wake_up
from iosim.host.machine import Machine
from iosim.host.main_loop import MainLoop
from iosim.host.packets import of_stream, payload
from iosim.host.rx_buffers import NUM_BUFFERS
from iosim.host.virtio_net import QemuVirtioNet, virtio_queue_notify
from iosim.host.virtio_pci import INTX, OWN, VirtioPci, back_to_guest, interrupted, read_isr, write_to_qemu
from iosim.host.work import WorkQueue, show_poller
from iosim.requests import mark, mark_past
from iosim.ring.errors import raise_for
from iosim.ring.memory import PAGE_SIZE, allocate
from iosim.ring.queue import (
    DeviceQueue,
    DriverQueue,
    add,
    arm_used_event,
    delayed_bufs,
    disable_cb,
    enable_cb_prepare,
    get_used,
    kick_prepare,
    new_queue,
    poll,
    poll_delayed,
    vring_interrupt,
)
from iosim.virtio.net import NET_HDR_LEN, NET_HDR_ROOM

RX: Final = 0
TX: Final = 1
"""The queues of a pair (virtio 1.2, 5.1.2: receiveq1, transmitq1), their NAPI instances and MSI-X vectors."""
PAIR: Final = 2
"""Queues, NAPI instances and vectors of a pair."""

MAX_SKB_FRAGS: Final = 17
"""Linux: pages a packet may have besides its head; the queue stops when fewer than two more are free."""
NAPI_POLL_WEIGHT: Final = 64
"""Linux: packets one NAPI poll may receive."""
RX_BUFFER: Final = 1536
"""Bytes of a receive buffer with mergeable buffers: header and one full frame (Linux get_mergeable_buf_len)."""
BIG_CHAIN: Final = MAX_SKB_FRAGS + 2
"""Buffers of a receive chain that takes any GSO packet: header, the rest of its page, 17 pages (add_recvbuf_big)."""
BIG_HEADER: Final = 32
"""Bytes of the first page before the packet (sizeof(struct padded_vnet_hdr), Linux 6.1)."""
GOOD_PACKET_LEN: Final = 1518
"""Bytes of a full frame with a VLAN's tag."""
EWMA_WEIGHT_SHIFT: Final = 6
"""A new packet's weight in the average of their lengths is 1/64 (Linux DECLARE_EWMA(pkt_len, 0, 64))."""
L1_CACHE_BYTES: Final = 64
TX_BUFFER: Final = 2048
"""Bytes kept for a packet to send, header included; of a TCP packet, for its headers."""

FREE: Final = 0
BY_SENDER: Final = 1
BY_NAPI: Final = 2
"""Who has a transmit queue's lock."""
SPIN: Final = 1_000_000_000
"""ps of spinning for it that the engine is asked for at a time. It changes nothing but the number of events."""


def packet_buffers(rx_size: int, tx_size: int, indirect: bool, big: bool, merged: bool = False) -> int:
    """How many packet buffers' worth of guest memory the driver of a queue pair needs, its indirect tables included."""
    buffers = rx_size + tx_size
    if merged:
        buffers += rx_size * PAGE_SIZE // TX_BUFFER
    if big:
        buffers += (BIG_CHAIN - 1) * PAGE_SIZE // TX_BUFFER * rx_chains(rx_size, indirect, big)
    if indirect:
        # At most 32 descriptors of 16 bytes in the table of each (see `new_queue`).
        buffers += (rx_size + tx_size) * 32 * 16 // TX_BUFFER + 1
    return buffers


def rx_chains(rx_size: int, indirect: bool, big: bool) -> int:
    """How many packets' buffers a receive queue holds."""
    return rx_size // BIG_CHAIN if big and not indirect else rx_size


class NetMilestones(DriverMilestones, Protocol):
    """The milestones stamped here."""

    kicked: int


class SoftNet:
    """What the softirq of one vCPU works on (softnet_data).

    Args:
        machine, vcpu: What it belongs to.
        napis: NAPI instances on this vCPU at most.

    Attributes:
        pairs: The queue pairs that belong to the vCPU.
        poll_list: NAPI instances waiting for their poll: ``PAIR`` times the pair's place in ``pairs``, plus ``RX`` or
            ``TX``.
        softirq: NET_RX was raised.
    """

    __slots__ = ("machine", "pairs", "poll_list", "softirq", "vcpu")

    def __init__(self, machine: Machine, vcpu: Vcpu, napis: int) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.pairs: list[VirtioNet] = []
        self.poll_list = Fifo(napis)
        self.softirq = machine.system.channel(instance("guest softirq", vcpu.number))
        machine.system.process(instance("guest softirq", vcpu.number), net_rx_action(self), vcpu.thread, SOFTIRQ)


def transports(
    machine: Machine, vcpus: list[Vcpu], loop: MainLoop, pairs: int, *, mode: int, legacy: bool, ioeventfd: bool
) -> tuple[list[SoftNet], list[VirtioPci]]:
    """Make the vCPUs' softirqs and the device's transport; return those of each pair: where it is polled, and how told.

    Pair ``i`` is polled on vCPU ``i`` modulo their number, unless all are told together.
    """
    softnets = [SoftNet(machine, vcpu, PAIR * pairs) for vcpu in vcpus]
    if mode == OWN:
        firsts = [PAIR * (i // len(vcpus)) for i in range(pairs)]
        softnets = [softnets[i % len(vcpus)] for i in range(pairs)]
        return softnets, [
            VirtioPci(machine, softnet.vcpu, loop, first, mode=mode, legacy=legacy, ioeventfd=ioeventfd)
            for softnet, first in zip(softnets, firsts, strict=True)
        ]
    together = softnets[interrupted(mode, pairs, len(vcpus))]
    pci = VirtioPci(machine, together.vcpu, loop, 0, mode=mode, legacy=legacy, ioeventfd=ioeventfd)
    return [together] * pairs, [pci] * pairs


class VirtioNet:
    """The driver's state of one queue pair.

    Args:
        machine, milestones: What it belongs to.
        softnet: Where its polls wait; its vCPU is the one that the pair's interrupts reach.
        number: The pair's place among the NIC's.
        sockets: The guest's sockets, by flow.
        senders: Those that send by this pair (XPS: those of its vCPU).
        pci: The transport, and whom its vectors interrupt.
        backend: Where kicks by ioeventfd go, with the items that stand for the two queues there.
        rx_size, tx_size: Queue sizes.
        big: Receive buffers are chains of ``BIG_CHAIN``, for GSO packets without mergeable buffers.
        event_idx, packed, indirect: Whether VIRTIO_F_EVENT_IDX, RING_PACKED and INDIRECT_DESC were negotiated.
        frame: Bytes of a frame.
        offloads: What is left to the device.
        merged: Streams are received in mergeable buffers, which grow with the packets.

    Attributes:
        gro: What the receive queue's NAPI holds back.
        qdisc: Acknowledgements that found the transmit queue stopped.
        mrg_avg_pkt_len: The average length of packets received, by which buffers are made.
        rx_need: Descriptors that one packet's receive buffers take.
        data: Where all streams' data lie; nobody looks at them.
        rx, tx: The driver's side of the queues; ``rx_device`` and ``tx_device`` the other.
        napi: The first of its two NAPI instances.
        vector: The vector that tells of its receive queue.
        xps: The vCPU that sends by it.
        tx_lock: Who works on the transmit queue: ``FREE``, ``BY_SENDER`` or ``BY_NAPI``.
        tx_unlocked: Who spins for that polls this channel; ``tx_spinning`` then.
        qemu: QEMU's device, where it serves kicks on the vCPU's thread; else none.
        scheduled: NAPI_STATE_SCHED of the two NAPI instances.
        stopped: The transmit queue is stopped for want of descriptors.
        turn: Which of the senders is woken first when it opens.
        handler_done: When the handler of each vector returned last (ps).

    Raises:
        IosimError: A packet's longest chain does not fit the queue.
    """

    __slots__ = (
        "backend", "big", "data", "frame", "gro", "handler_done", "machine", "merged", "milestones", "mrg_avg_pkt_len",
        "napi", "offloads", "pci", "qdisc", "qemu", "rx", "rx_device", "rx_free", "rx_item", "rx_need", "scheduled",
        "senders", "sockets", "softnet", "stopped", "turn", "tx", "tx_device", "tx_free", "tx_item", "tx_lock",
        "tx_spinning", "tx_unlocked", "vcpu", "vector", "xps",
    )  # fmt: skip

    def __init__(
        self,
        machine: Machine,
        softnet: SoftNet,
        number: int,
        sockets: list[Socket],
        senders: list[Socket],
        milestones: NetMilestones,
        pci: VirtioPci,
        backend: WorkQueue,
        rx_item: int,
        tx_item: int,
        *,
        rx_size: int,
        tx_size: int,
        event_idx: bool,
        packed: bool,
        indirect: bool,
        big: bool,
        frame: int,
        offloads: Offloads,
        merged: bool = False,
    ) -> None:
        # Half a poll's weight of descriptors may stay free (virtnet_receive): less than that is not refilled.
        if merged and offloads.guest_tso4 and (rx_size - NAPI_POLL_WEIGHT // 2) * RX_BUFFER < GRO_MAX_SIZE:
            raise IosimError(
                f"a GSO packet takes up to {-(-GRO_MAX_SIZE // RX_BUFFER)} receive buffers, and the driver does not "
                f"keep as many in a queue of {rx_size}; the smallest in which it does is 128",
                "device.rx_queue_size",
            )
        if big and rx_size < BIG_CHAIN:
            raise IosimError(
                f"without mrg_rxbuf a receive buffer is a chain of {BIG_CHAIN} descriptors, which does not fit a queue "
                f"of {rx_size}; the smallest that does is 32",
                "device.rx_queue_size",
            )
        if tx_size < 2 + MAX_SKB_FRAGS:
            raise IosimError(
                f"a chain of {2 + MAX_SKB_FRAGS} descriptors, the longest a packet may need, does not fit a queue of "
                f"{tx_size}; the smallest that does is 32",
                "device.tx_queue_size",
            )
        self.machine = machine
        self.softnet = softnet
        self.vcpu = softnet.vcpu
        self.sockets = sockets
        self.senders = senders
        self.milestones = milestones
        self.napi = PAIR * len(softnet.pairs)
        self.vector = pci.first
        self.xps = senders[0].vcpu
        self.tx_lock = FREE
        self.tx_unlocked = machine.system.channel(instance("guest tx queue unlocked", number))
        self.tx_spinning = False
        self.pci = pci
        self.qemu: list[QemuVirtioNet] = []
        self.backend = backend
        self.rx_item = rx_item
        self.tx_item = tx_item
        self.frame = frame
        self.offloads = offloads
        self.rx: DriverQueue
        self.tx: DriverQueue
        self.rx_device: DeviceQueue
        self.tx_device: DeviceQueue
        self.rx, self.rx_device = new_queue(
            machine.memory, rx_size, event_idx, packed=packed, indirect=indirect
        )
        self.tx, self.tx_device = new_queue(
            machine.memory, tx_size, event_idx, packed=packed, indirect=indirect
        )
        self.big = big
        self.merged = merged
        self.mrg_avg_pkt_len = 0
        self.gro = Gro(len(sockets))
        self.qdisc = Fifo(QDISC_LIMIT)
        # Descriptors that a packet's buffers take in the ring.
        self.rx_need = BIG_CHAIN if big and not indirect else 1
        size, align = ((BIG_CHAIN - 1) * PAGE_SIZE, PAGE_SIZE) if big else (PAGE_SIZE if merged else RX_BUFFER, 64)
        chains = rx_chains(rx_size, indirect, big)
        self.rx_free = Fifo(chains)
        for _ in range(chains):
            put(self.rx_free, allocate(machine.memory, size, align))
        self.tx_free = [allocate(machine.memory, TX_BUFFER, 64) for _ in range(tx_size)]
        self.data = allocate(machine.memory, SKB_FRAG, 4096)
        self.scheduled = [False, False]
        self.stopped = False
        self.turn = 0
        self.handler_done = [0, 0]
        softnet.pairs.append(self)
        if pci.mode == OWN:
            self.vcpu.handler(instance("skb_recv_done", number), skb_recv_done(self))
            self.vcpu.handler(instance("skb_xmit_done", number), skb_xmit_done(self))
        elif len(softnet.pairs) == 1:
            self.vcpu.handler("vp_interrupt", vp_interrupt(softnet))
        # The probe, before time 0: every receive buffer is posted.
        while self.rx.num_free >= self.rx_need:
            post(self)
        kick_prepare(self.rx)


# -- transmit ---------------------------------------------------------------------------------------------------


def dev_queue_xmit(d: VirtioNet, s: Socket, row: int) -> Generator[Effect, None, None]:
    """Hand a packet to the driver, waiting while the queue is stopped; of a stream, what it is given in one call."""
    if not s.stream and not d.offloads.csum:
        yield spend(GUEST_CHECKSUM, d.frame)
    yield from transmit(d, s, row, locked_start_xmit)


def locked_start_xmit(d: VirtioNet, s: Socket, row: int, more: bool) -> Generator[Effect, None, None]:
    """Call the driver with the transmit queue's lock, for which bottom halves are off (HARD_TX_LOCK)."""
    yield from tx_lock(d, BY_SENDER)
    yield from start_xmit(d, s, row, more)
    yield from tx_unlock(d)


def tx_lock(d: VirtioNet, owner: int) -> Generator[Effect, None, None]:
    """Spin until the transmit queue is nobody's (__netif_tx_lock). A vCPU that was preempted may have it for long."""
    while d.tx_lock != FREE:
        d.tx_spinning = True
        yield busy_poll(d.tx_unlocked, SPIN)
    d.tx_lock = owner


def tx_unlock(d: VirtioNet) -> Generator[Effect, None, None]:
    """Give the transmit queue back."""
    d.tx_lock = FREE
    if d.tx_spinning:
        d.tx_spinning = False
        yield notify(d.tx_unlocked)


def start_xmit(d: VirtioNet, s: Socket, row: int, more: bool) -> Generator[Effect, None, None]:
    """Free what was sent, put the packet into the ring, kick if the device asks for it.

    Segments of one packet come as a list, ``more`` to follow: the device is told of the last, or of a full queue.
    """
    m = d.machine
    yield from clean_tx(d)
    yield spend(DRIVER_XMIT)
    buffer = d.tx_free.pop()
    m.memory.u64[(buffer >> 3) + 2] = row
    m.memory.u64[(buffer >> 3) + 3] = s.number
    raise_for(add(d.tx, skb_to_sgvec(d, row, buffer), 0, buffer))
    mark(m.table, row, d.milestones.available, m.clock.now)
    yield from show_poller(d.backend)
    if d.tx.num_free < 2 + MAX_SKB_FRAGS:
        d.stopped = True
    if not more or d.stopped:
        if kick_prepare(d.tx):
            yield from vp_notify(d, TX, row)
        else:
            m.counters.n[count.KICKS_SUPPRESSED] += 1


def skb_to_sgvec(d: VirtioNet, packet: int, buffer: int) -> int:
    """Name the parts of a packet to the ring; return how many. A stream's data lie by themselves, after the headers."""
    parts = 1
    d.tx.seg_addr[0] = buffer
    d.tx.seg_len[0] = NET_HDR_LEN + d.frame
    left = payload(packet)
    if left > 0:
        d.tx.seg_len[0] = NET_HDR_LEN + TCP_HEADERS
    # Each fragment has a descriptor.
    while left > 0:
        d.tx.seg_addr[parts] = d.data
        d.tx.seg_len[parts] = SKB_FRAG
        if left < SKB_FRAG:
            d.tx.seg_len[parts] = left
        left -= d.tx.seg_len[parts]
        parts += 1
    return parts


def vp_notify(d: VirtioNet, queue: int, row: int) -> Generator[Effect, None, None]:
    """The notify write: KVM signals the back end, or QEMU serves the queue on this thread.

    ``row`` (-1: none) is the packet on whose behalf it is.
    """
    v = d.vcpu
    item = d.rx_item
    if queue == TX:
        item = d.tx_item
        if d.tx_lock == BY_SENDER:
            # Else it is an acknowledgement that NAPI sends.
            v = d.xps
    if d.pci.ioeventfd:
        yield from kick(v, d.backend, item, row, d.milestones.kicked, d.pci.legacy)
    else:
        d.machine.counters.n[count.KICKS] += 1
        yield from write_to_qemu(d.pci, v)
        if row >= 0:
            mark(d.machine.table, row, d.milestones.kicked, d.machine.clock.now)
        yield from virtio_queue_notify(d.qemu[0], queue)
        yield from back_to_guest(d.pci, v, False)


def clean_tx(d: VirtioNet) -> Generator[Effect, None, None]:
    """Free sent packets, then ask for an interrupt when 3/4 of those outstanding are used; re-check after arming."""
    again = True
    while again:
        disable_cb(d.tx)
        yield from free_old_xmit(d)
        bufs = delayed_bufs(d.tx)
        arm_used_event(d.tx, bufs)
        yield spend(REARM_WINDOW)
        again = poll_delayed(d.tx, bufs)


def free_old_xmit(d: VirtioNet) -> Generator[Effect, None, None]:
    """Take sent packets from the used ring and free them."""
    buffer = get_used(d.tx)
    while buffer >= 0:
        yield spend(DRIVER_FREE)
        d.tx_free.append(buffer)
        s = d.sockets[d.machine.memory.u64[(buffer >> 3) + 3]]
        yield from sock_wfree(s)
        if d.tx_lock == BY_NAPI and s.credits == 1 and not s.stream:
            # sock_def_write_space: there was no room, so the application may sleep.
            yield from wake_up(d.vcpu, s.vcpu)
        buffer = get_used(d.tx)


def wake_tx_queue(d: VirtioNet) -> Generator[Effect, None, None]:
    """Open a stopped queue when there is room for the longest packet; its senders come first in turn."""
    if d.stopped and d.tx.num_free >= 2 + MAX_SKB_FRAGS:
        d.stopped = False
        yield from net_tx_action(d, start_xmit)
        i = 0
        while i < len(d.senders):
            yield notify(d.senders[d.turn].tx_wake)
            d.turn = (d.turn + 1) % len(d.senders)
            i += 1
        d.turn = (d.turn + 1) % len(d.senders)
        yield from wake_up(d.vcpu, d.xps)


# -- interrupts and NAPI ----------------------------------------------------------------------------------------


def skb_recv_done(d: VirtioNet) -> Generator[Effect, None, None]:
    """The interrupt of the receive queue: schedule its NAPI."""
    while True:
        yield from irq_enter(d.vcpu, d.vector + RX)
        yield from eoi_edge(d.vcpu)
        yield spend(DRIVER_IRQ)
        if vring_interrupt(d.rx):
            yield from napi_schedule(d, d.rx, RX)
        else:
            d.machine.counters.n[count.INTERRUPTS_SPURIOUS] += 1
        d.handler_done[RX] = d.machine.clock.now
        yield from irq_return(d.vcpu)


def skb_xmit_done(d: VirtioNet) -> Generator[Effect, None, None]:
    """The interrupt of the transmit queue: schedule its NAPI (napi_tx)."""
    while True:
        yield from irq_enter(d.vcpu, d.vector + TX)
        yield from eoi_edge(d.vcpu)
        yield spend(DRIVER_IRQ)
        if vring_interrupt(d.tx):
            yield from napi_schedule(d, d.tx, TX)
        else:
            d.machine.counters.n[count.INTERRUPTS_SPURIOUS] += 1
        d.handler_done[TX] = d.machine.clock.now
        yield from irq_return(d.vcpu)


def vp_interrupt(s: SoftNet) -> Generator[Effect, None, None]:
    """One interrupt for all queues: a vector that they share, or the INTx line, whose cause is read first.

    Linux vp_interrupt and vp_vring_interrupt: each queue is looked at. The end of a level-triggered interrupt comes
    after the handler.
    """
    m = s.machine
    pci = s.pairs[0].pci
    while True:
        yield from irq_enter(s.vcpu, pci.first)
        mine = True
        if pci.mode != INTX:
            yield from eoi_edge(s.vcpu)
        yield spend(DRIVER_IRQ)
        if pci.mode == INTX:
            mine = yield from read_isr(pci)
        news = False
        i = 0
        while mine and i < len(s.pairs):
            d = s.pairs[i]
            if vring_interrupt(d.rx):
                news = True
                yield from napi_schedule(d, d.rx, RX)
            if vring_interrupt(d.tx):
                news = True
                yield from napi_schedule(d, d.tx, TX)
            i += 1
        if not news:
            m.counters.n[count.INTERRUPTS_SPURIOUS] += 1
        if pci.mode == INTX:
            yield from eoi_level(s.vcpu, VECTOR)
        i = 0
        while i < len(s.pairs):
            s.pairs[i].handler_done[RX] = m.clock.now
            i += 1
        yield from irq_return(s.vcpu)


def napi_schedule(d: VirtioNet, queue: DriverQueue, napi: int) -> Generator[Effect, None, None]:
    """virtqueue_napi_schedule: callbacks off, and a poll in softirq context, unless it is scheduled already."""
    if not d.scheduled[napi]:
        d.scheduled[napi] = True
        disable_cb(queue)
        put(d.softnet.poll_list, d.napi + napi)
        yield notify(d.softnet.softirq)


def net_rx_action(s: SoftNet) -> Generator[Effect, None, None]:
    """The NET_RX softirq of a vCPU: poll what is scheduled, in turn."""
    budget = NETDEV_BUDGET
    while True:
        while s.poll_list.count == 0:
            yield wait(s.softirq)
            budget = NETDEV_BUDGET
        napi = take_first(s.poll_list)
        d = s.pairs[napi // PAIR]
        yield spend(SOFTIRQ_ENTRY)
        if napi % PAIR == RX:
            received = yield from virtnet_poll(d)
            budget -= received
        else:
            yield from virtnet_poll_tx(d)
        if budget <= 0:
            yield from ksoftirqd()
            budget = NETDEV_BUDGET


def virtnet_poll(d: VirtioNet) -> Generator[Effect, None, int]:
    """NAPI of the receive queue: clean the transmit queue too, receive, refill, and re-arm when there is no more.

    Returns how many packets it received.
    """
    if d.tx_lock == FREE:
        # virtnet_poll_cleantx: __netif_tx_trylock.
        d.tx_lock = BY_NAPI
        yield from clean_tx(d)
        yield from wake_tx_queue(d)
        yield from tx_unlock(d)
    received = 0
    buffer = get_used(d.rx)
    while buffer >= 0:
        yield from receive_buf(d, buffer)
        received += 1
        buffer = -1
        if received < NAPI_POLL_WEIGHT:
            buffer = get_used(d.rx)
    if d.rx.num_free > min(NAPI_POLL_WEIGHT, d.rx.size) // 2:
        yield from try_fill_recv(d)
    if received < NAPI_POLL_WEIGHT:
        yield from napi_complete(d, d.rx, RX)
    else:
        # Budget spent: there may be more, so interrupts stay off and the poll gets in line again.
        yield from napi_flush(d, napi_send_ack)
        put(d.softnet.poll_list, d.napi + RX)
    return received


def virtnet_poll_tx(d: VirtioNet) -> Generator[Effect, None, None]:
    """NAPI of the transmit queue: free what was sent, re-arm for the next."""
    yield from tx_lock(d, BY_NAPI)
    disable_cb(d.tx)
    yield from free_old_xmit(d)
    yield from wake_tx_queue(d)
    yield from tx_unlock(d)
    yield from napi_complete(d, d.tx, TX)


def napi_complete(d: VirtioNet, queue: DriverQueue, napi: int) -> Generator[Effect, None, None]:
    """Re-arm the interrupt, then look once more: what came in the window is polled again without an interrupt."""
    last_used_idx = enable_cb_prepare(queue)
    if napi == RX:
        yield from napi_flush(d, napi_send_ack)
    d.scheduled[napi] = False
    yield spend(REARM_WINDOW)
    if poll(queue, last_used_idx):
        yield from napi_schedule(d, queue, napi)


# -- receive ----------------------------------------------------------------------------------------------------


def receive_buf(d: VirtioNet, buffer: int) -> Generator[Effect, None, None]:
    """Take one received packet from its buffer and carry it up the stack."""
    m = d.machine
    row = m.memory.u64[(packet_in(d, buffer) >> 3)]
    mark_past(m.table, row, d.milestones.irq, d.vcpu.handler_began[d.vector])
    mark_past(m.table, row, d.milestones.handled, d.handler_done[RX])
    mark(m.table, row, d.milestones.taken, m.clock.now)
    put(d.rx_free, buffer)
    yield spend(DRIVER_RECEIVE)
    if payload(row) > 0:
        yield from receive_frags(d, buffer, payload(row) + TCP_HEADERS)
    elif not d.offloads.guest_csum:
        yield spend(GUEST_CHECKSUM, length(d, row))
    yield from napi_gro_receive(d, row, napi_send_ack)


def length(d: VirtioNet, packet: int) -> int:
    """Return the bytes of a packet that is one frame."""
    size = d.frame
    if of_stream(packet):
        size = payload(packet) + TCP_HEADERS
    return size


def receive_frags(d: VirtioNet, buffer: int, size: int) -> Generator[Effect, None, None]:
    """The rest of a packet: the further buffers (receive_mergeable), or pages of its chain (receive_big)."""
    if d.merged:
        buffers = d.machine.memory.u16[(buffer + NUM_BUFFERS) >> 1]
        while buffers > 1:
            put(d.rx_free, get_used(d.rx))
            yield spend(DRIVER_RECEIVE_FRAG)
            buffers -= 1
        average = size
        if d.mrg_avg_pkt_len > 0:
            average = ((d.mrg_avg_pkt_len << EWMA_WEIGHT_SHIFT) - d.mrg_avg_pkt_len + size) >> EWMA_WEIGHT_SHIFT
        d.mrg_avg_pkt_len = average
    elif d.big:
        pages = (BIG_HEADER + size - 1) // PAGE_SIZE
        while pages > 0:
            yield spend(DRIVER_RECEIVE_FRAG)
            pages -= 1


def get_mergeable_buf_len(d: VirtioNet) -> int:
    """Return the length of a new receive buffer: the average packet's, from a frame's up to a page."""
    size = d.mrg_avg_pkt_len
    if size < GOOD_PACKET_LEN:
        size = GOOD_PACKET_LEN
    if size > PAGE_SIZE - NET_HDR_LEN:
        size = PAGE_SIZE - NET_HDR_LEN
    return (NET_HDR_LEN + size + L1_CACHE_BYTES - 1) // L1_CACHE_BYTES * L1_CACHE_BYTES


def napi_send_ack(d: VirtioNet, s: Socket) -> Generator[Effect, None, None]:
    """Acknowledge from NAPI."""
    yield from send_ack(d, s, BY_NAPI)


def sender_send_ack(d: VirtioNet, s: Socket) -> Generator[Effect, None, None]:
    """Acknowledge from a system call of the application, bottom halves off."""
    yield from send_ack(d, s, BY_SENDER)


def send_ack(d: VirtioNet, s: Socket, owner: int) -> Generator[Effect, None, None]:
    """Send an acknowledgement; where the queue is stopped, it waits above the driver."""
    ack = yield from tcp_make_ack(d, s)
    yield from tx_lock(d, owner)
    yield from sch_direct_xmit(d, s, ack, start_xmit)
    yield from tx_unlock(d)


def cleanup_rbuf(d: VirtioNet, s: Socket) -> Generator[Effect, None, None]:
    """The application has read a send call of a stream."""
    yield from tcp_recvmsg(d, s, sender_send_ack)


def packet_in(d: VirtioNet, buffer: int) -> int:
    """Where in its buffer a received packet begins, on 8 bytes."""
    at = buffer + NET_HDR_ROOM
    if d.big:
        at = buffer + BIG_HEADER
    return at


def post(d: VirtioNet) -> None:
    """Make the buffers of one packet available: one for a frame, or a chain for the largest GSO packet."""
    buffer = take_first(d.rx_free)
    d.rx.seg_addr[0] = buffer
    if d.big:
        d.rx.seg_len[0] = NET_HDR_LEN
        d.rx.seg_addr[1] = buffer + BIG_HEADER
        d.rx.seg_len[1] = PAGE_SIZE - BIG_HEADER
        for i in range(2, BIG_CHAIN):
            d.rx.seg_addr[i] = buffer + (i - 1) * PAGE_SIZE
            d.rx.seg_len[i] = PAGE_SIZE
        raise_for(add(d.rx, 0, BIG_CHAIN, buffer))
    else:
        d.rx.seg_len[0] = get_mergeable_buf_len(d)
        raise_for(add(d.rx, 0, 1, buffer))


def try_fill_recv(d: VirtioNet) -> Generator[Effect, None, None]:
    """Post buffers while descriptors are free, then kick; the device asks for that only where it ran dry."""
    while d.rx.num_free >= d.rx_need:
        yield spend(DRIVER_REFILL)
        post(d)
    yield from show_poller(d.backend)
    if kick_prepare(d.rx):
        yield from vp_notify(d, RX, -1)
    else:
        d.machine.counters.n[count.KICKS_SUPPRESSED] += 1
