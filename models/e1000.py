"""e1000: a fully emulated NIC. The guest believes in an Intel 82540EM; QEMU plays it, register by register.

Every access to a register leaves the guest and goes through the five steps of the I/O trap (`iosim.host.mmio`). The
vCPU's own thread returns from KVM_RUN and runs QEMU's device code under the big QEMU lock.

Sending: the driver fills a descriptor and writes TDT. In that write QEMU copies the packet, sends it to the tap, and
raises the interrupt; the guest enters again right into its handler. A GSO packet is one such write too, in which QEMU
cuts it into segments (`iosim.host.e1000.process_tx_desc`).

Receiving: QEMU's main loop reads the tap, copies the packet into the guest's buffer, and raises the line. The handler
reads ICR (which lowers the line), masks by IMC, reads STATUS as a flush, and schedules NAPI, which cleans both rings,
gives buffers back (RDT: coalesced) and unmasks by IMS, with one more STATUS. The line is level-triggered, so each end
of interrupt is an exit as well. After an edge the next one waits for the mitigation timer.

Segments of a stream come one by one, from a tap without virtio-net header; NAPI verifies and merges them (GRO). Their
acknowledgement is a write of TDT within the poll.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from pydantic import Field

from iosim.effects import TASK, Effect, spend
from iosim.engine.system import instance
from iosim.guest.e1000 import E1000Driver, cleanup_rbuf, dev_queue_xmit
from iosim.guest.tcp import Offloads
from iosim.host import counters as count
from iosim.host.costs import SYS_READ
from iosim.host.e1000 import E1000, has_rxbufs, mitigation_timer, receive
from iosim.host.hosts import Host
from iosim.host.machine import Machine
from iosim.host.main_loop import MainLoop, lock_iothread, main_loop_wait, timer_due
from iosim.host.net_client import TAP_BURST, NetClient, tap_read_packet
from iosim.host.work import queue_work, take_work
from iosim.model import Model
from iosim.requests import Stage
from iosim.settings import ETHTOOL_GRO, ETHTOOL_GSO, Flag, Settings, Whole
from iosim.workload.application import application
from iosim.workload.assembly import GuestRoom, NetworkRoom
from iosim.workload.path import WAIT_CPU, WAIT_MODERATION, WAIT_NOTIFICATION, WAIT_QUEUE, WORK
from iosim.workload.spec import Workload

TAP: Final = 0
NOTIFY: Final = 1
"""What the main loop polls: the tap, and its own eventfd by which a vCPU thread announces a new timer."""

RX_STAGES: Final = {
    "rx_seen": Stage("tap wakes QEMU", "QEMU", WAIT_NOTIFICATION),
    "rx_used": Stage("read(tap), copy to guest", "QEMU", WORK),
    "rx_signalled": Stage("raise INTx", "interrupt", WORK),
    "irq": Stage("rx interrupt, mitigation", "interrupt", WAIT_MODERATION),
    "handled": Stage("handler: ICR, IMC, STATUS, EOI", "exit", WORK),
    "taken": Stage("NAPI", "guest", WORK),
    "received": Stage("guest receive stack", "guest", WORK),
    "dequeued": Stage("W RDT, W IMS, R STATUS; wake-up", "exit", WAIT_CPU),
    "delivered": Stage("recvmsg", "guest", WORK),
}
TX_STAGES: Final = {
    "room": Stage("tx ring full", "guest", WAIT_QUEUE),
    "available": Stage("e1000_xmit_frame", "guest", WORK),
    "kicked": Stage("no kick", "exit", WORK),
    "tx_seen": Stage("W TDT: exit to QEMU", "exit", WORK),
    "processed": Stage("device copies, writev(tap)", "QEMU", WORK),
}


class E1000Settings(Settings):
    """``device.*`` of e1000."""

    tx_descriptors: Whole = Field(256, ge=48, le=4096, description="the driver's TxDescriptors")
    rx_descriptors: Whole = Field(256, ge=48, le=4096, description="the driver's RxDescriptors")
    mitigation: Flag = Field(True, description="QEMU's property mitigation: at least 128 us between interrupts")
    hub: Flag = Field(False, description="joined to its tap by -net, through QEMU's hub")
    ethtool_tso: Flag = Field(True, description="ethtool -K tso in the guest: QEMU segments, on the vCPU's thread")
    ethtool_gso: Flag = Field(True, description=ETHTOOL_GSO)
    ethtool_gro: Flag = Field(True, description=ETHTOOL_GRO)


def main_loop(e: E1000, q: MainLoop) -> Generator[Effect, None, None]:
    """QEMU's main loop: the tap, its own eventfd, the mitigation timer."""
    yield from lock_iothread(q)
    while True:
        yield from main_loop_wait(q)
        ready = q.work.fifo.count
        while ready > 0:
            item = take_work(q.work)
            if item == TAP:
                yield from tap_send(e, q)
            else:
                e.machine.counters.n[count.SYS_READ] += 1
                yield spend(SYS_READ)
            ready -= 1
        if timer_due(q):
            yield from mitigation_timer(e)


def tap_send(e: E1000, q: MainLoop) -> Generator[Effect, None, None]:
    """The tap is readable: read packets until there is no more (EAGAIN), the burst is over or the ring is full."""
    packets = 0
    more = e.tap.polled
    while more:
        row = yield from tap_read_packet(e.client)
        if row >= 0:
            if has_rxbufs(e):
                yield from receive(e, row)
            else:
                # e1000_can_receive says no: the packet waits in the net queue, the tap is polled no more.
                e.held = row
                e.tap.polled = False
            packets += 1
        more = row >= 0 and packets < TAP_BURST and e.tap.polled
    if e.tap.frames.count > 0 and e.tap.polled:
        yield from queue_work(q.work, TAP)


def build(host: Host, workload: Workload, settings: E1000Settings, vms: int = 1) -> Machine:
    """Put the path together for one run."""
    buffers = settings.tx_descriptors + settings.rx_descriptors
    room = NetworkRoom(host, workload, RX_STAGES, TX_STAGES, vectors=1, buffers=buffers, vms=vms)
    for guest in room.guests:
        with guest.names():
            connect(guest, settings)
    return room.machine


def connect(room: GuestRoom, settings: E1000Settings) -> None:
    """Give a guest its NIC, in a QEMU of its own."""
    loop = MainLoop(room.machine, items=2)
    room.tap[0].reader = loop.work
    room.tap[0].reader_item = TAP
    device = E1000(
        room.machine,
        room.vcpu,
        loop,
        NetClient(room.network, room.milestones, settings.hub, room.tap[0]),
        room.milestones,
        NOTIFY,
        tx_size=settings.tx_descriptors,
        rx_size=settings.rx_descriptors,
        mitigation=settings.mitigation,
    )
    # An 82540EM completes checksums, and QEMU does for it (putsum).
    # Received ones QEMU leaves alone, and tells the guest so (E1000_RXD_STAT_IXSM).
    offloads = Offloads(
        csum=True, tso=settings.ethtool_tso, gso=settings.ethtool_gso, guest_csum=False, gro=settings.ethtool_gro
    )
    driver = E1000Driver(room.machine, room.vcpu, room.sockets, room.mine, device, room.milestones, offloads)
    room.machine.parts[instance("device", room.number)] = device
    for i, a in enumerate(room.applications):
        process = application(a, driver, dev_queue_xmit, cleanup_rbuf)
        room.system.process(instance("application", i), process, a.vcpu.thread, TASK)
    room.system.process("qemu main loop", main_loop(device, loop), loop.thread)


MODEL: Final = Model(
    name="e1000",
    summary="full emulation: every register access is an exit that QEMU serves on the vCPU's thread",
    settings=E1000Settings,
    build=build,
    streams=True,
    receives_streams=True,
    vms=True,
)
