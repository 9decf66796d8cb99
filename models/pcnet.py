"""pcnet: a fully emulated NIC. The guest's pcnet32 driver believes in an AMD PCnet; QEMU plays it.

A register is reached through two ports, its number to RAP and its value to or from RDP, and each access leaves the
guest (`iosim.host.pio`). So an interrupt costs 14 exits where that of the rtl8139 costs 8.

Sending: the driver fills a descriptor, writes RAP, and with interrupts off goes on to write RDP. QEMU polls the
transmit ring on any access: within the write of RAP the packet goes to the tap and the line is raised. The handler
runs when the driver turns interrupts on again. It acknowledges, masks, and schedules NAPI, which cleans both rings and
unmasks. Receiving: QEMU's main loop reads the tap, copies the packet into the guest's buffer by way of its own, and
raises the line; without a descriptor the packet is lost. There is no interrupt mitigation. The device's poll timer is
set anew by each access, and that wakes the main loop each time, to nothing. pcnet32 has no GRO: segments of a stream
go up one by one.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from pydantic import Field

from iosim.effects import TASK, Effect, spend
from iosim.engine.system import instance
from iosim.guest.pcnet32 import RX_RING_SIZE, TX_RING_SIZE, Pcnet32Private, cleanup_rbuf, dev_queue_xmit
from iosim.guest.tcp import no_offloads
from iosim.host import counters as count
from iosim.host.costs import SYS_READ
from iosim.host.hosts import Host
from iosim.host.machine import Machine
from iosim.host.main_loop import MainLoop, lock_iothread, main_loop_wait, timer_due
from iosim.host.net_client import NetClient, tap_send
from iosim.host.pcnet import PCNet, pcnet_poll_timer, pcnet_receive, pcnet_update_irq
from iosim.host.work import take_work
from iosim.model import Model
from iosim.requests import Stage
from iosim.settings import Flag, Settings
from iosim.workload.application import application
from iosim.workload.assembly import GuestRoom, NetworkRoom
from iosim.workload.path import WAIT_CPU, WAIT_NOTIFICATION, WAIT_QUEUE, WORK
from iosim.workload.spec import Workload

TAP: Final = 0
NOTIFY: Final = 1
"""What the main loop polls: the tap, and its own eventfd by which a vCPU thread announces a new timer."""

RX_STAGES: Final = {
    "rx_seen": Stage("tap wakes QEMU", "QEMU", WAIT_NOTIFICATION),
    "rx_used": Stage("read(tap), copy to guest", "QEMU", WORK),
    "rx_signalled": Stage("raise INTx", "interrupt", WORK),
    "irq": Stage("rx interrupt", "interrupt", WAIT_NOTIFICATION),
    "handled": Stage("handler: CSR0, CSR3, EOI", "exit", WORK),
    "taken": Stage("NAPI", "guest", WORK),
    "received": Stage("guest receive stack", "guest", WORK),
    "dequeued": Stage("CSR3, CSR0; wake-up", "exit", WAIT_CPU),
    "delivered": Stage("recvmsg", "guest", WORK),
}
TX_STAGES: Final = {
    "room": Stage("tx ring full", "guest", WAIT_QUEUE),
    "available": Stage("pcnet32_start_xmit", "guest", WORK),
    "kicked": Stage("no kick", "exit", WORK),
    "tx_seen": Stage("W RAP: exit to QEMU", "exit", WORK),
    "processed": Stage("device copies, writev(tap)", "QEMU", WORK),
}


class PCNetSettings(Settings):
    """``device.*`` of pcnet."""

    hub: Flag = Field(False, description="joined to its tap by -net, through QEMU's hub")


def main_loop(s: PCNet, q: MainLoop) -> Generator[Effect, None, None]:
    """QEMU's main loop: the tap, its own eventfd, the poll timer."""
    yield from lock_iothread(q)
    while True:
        yield from main_loop_wait(q)
        ready = q.work.fifo.count
        while ready > 0:
            item = take_work(q.work)
            if item == TAP:
                yield from tap_send(s.client, q, TAP, s, pcnet_receive)
            else:
                s.machine.counters.n[count.SYS_READ] += 1
                yield spend(SYS_READ)
            ready -= 1
        if timer_due(q):
            yield from pcnet_poll_timer(s)
            yield from pcnet_update_irq(s)


def build(host: Host, workload: Workload, settings: PCNetSettings, vms: int = 1) -> Machine:
    """Put the path together for one run."""
    buffers = TX_RING_SIZE + RX_RING_SIZE
    room = NetworkRoom(host, workload, RX_STAGES, TX_STAGES, vectors=1, buffers=buffers, vms=vms)
    for guest in room.guests:
        with guest.names():
            connect(guest, settings)
    return room.machine


def connect(room: GuestRoom, settings: PCNetSettings) -> None:
    """Give a guest its NIC, in a QEMU of its own."""
    loop = MainLoop(room.machine, items=2)
    room.tap[0].reader = loop.work
    room.tap[0].reader_item = TAP
    device = PCNet(
        room.machine,
        room.vcpu,
        loop,
        NetClient(room.network, room.milestones, settings.hub, room.tap[0]),
        room.milestones,
        NOTIFY,
        tx_size=TX_RING_SIZE,
        rx_size=RX_RING_SIZE,
    )
    driver = Pcnet32Private(room.machine, room.vcpu, room.sockets, room.mine, device, room.milestones, no_offloads())
    room.machine.parts[instance("device", room.number)] = device
    for i, a in enumerate(room.applications):
        process = application(a, driver, dev_queue_xmit, cleanup_rbuf)
        room.system.process(instance("application", i), process, a.vcpu.thread, TASK)
    room.system.process("qemu main loop", main_loop(device, loop), loop.thread)


MODEL: Final = Model(
    name="pcnet",
    summary="full emulation, AMD PCnet under pcnet32: two ports, so two exits for each register",
    settings=PCNetSettings,
    build=build,
    streams=True,
    receives_streams=True,
    vms=True,
)
