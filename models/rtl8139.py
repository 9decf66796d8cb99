"""rtl8139: a fully emulated NIC. The guest's 8139cp driver believes in a Realtek RTL8139C+; QEMU plays it.

Every access to a register leaves the guest (`iosim.host.pio`): the vCPU's own thread returns from KVM_RUN and runs
QEMU's device code under the big QEMU lock.

Sending: the driver fills a descriptor and writes TxPoll. In that write QEMU copies the packet, sends it to the tap,
sets TxOK and raises INTx; the guest enters again right into its handler, which reads mask and status, acknowledges,
and frees what was sent. Receiving: QEMU's main loop reads the tap, copies the packet into the guest's buffer, sets
RxOK and raises the line. The handler leaves the receive causes standing, masks them, and schedules NAPI, which
acknowledges, cleans the ring, and unmasks; each write of the mask is read back. There is no interrupt mitigation, and
no flow control: a packet without a descriptor is lost. Segments of a stream are merged in NAPI (GRO), which
acknowledges them by a write of TxPoll.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from pydantic import Field

from iosim.effects import TASK, Effect
from iosim.engine.system import instance
from iosim.guest.rtl8139 import CP_RX_RING_SIZE, CP_TX_RING_SIZE, CpPrivate, cleanup_rbuf, dev_queue_xmit
from iosim.guest.tcp import no_offloads
from iosim.host.hosts import Host
from iosim.host.machine import Machine
from iosim.host.main_loop import MainLoop, lock_iothread, main_loop_wait
from iosim.host.net_client import NetClient, tap_send
from iosim.host.rtl8139 import RTL8139, rtl8139_receive
from iosim.host.work import take_work
from iosim.model import Model
from iosim.requests import Stage
from iosim.settings import ETHTOOL_GRO, Flag, Settings
from iosim.workload.application import application
from iosim.workload.assembly import GuestRoom, NetworkRoom
from iosim.workload.path import WAIT_CPU, WAIT_NOTIFICATION, WAIT_QUEUE, WORK
from iosim.workload.spec import Workload

TAP: Final = 0
"""What the main loop polls: the tap."""

RX_STAGES: Final = {
    "rx_seen": Stage("tap wakes QEMU", "QEMU", WAIT_NOTIFICATION),
    "rx_used": Stage("read(tap), copy to guest", "QEMU", WORK),
    "rx_signalled": Stage("raise INTx", "interrupt", WORK),
    "irq": Stage("rx interrupt", "interrupt", WAIT_NOTIFICATION),
    "handled": Stage("handler: IntrMask, IntrStatus, EOI", "exit", WORK),
    "taken": Stage("NAPI: W IntrStatus", "exit", WORK),
    "received": Stage("guest receive stack", "guest", WORK),
    "dequeued": Stage("W IntrMask, R IntrMask; wake-up", "exit", WAIT_CPU),
    "delivered": Stage("recvmsg", "guest", WORK),
}
TX_STAGES: Final = {
    "room": Stage("tx ring full", "guest", WAIT_QUEUE),
    "available": Stage("cp_start_xmit", "guest", WORK),
    "kicked": Stage("no kick", "exit", WORK),
    "tx_seen": Stage("W TxPoll: exit to QEMU", "exit", WORK),
    "processed": Stage("device copies, writev(tap)", "QEMU", WORK),
}


class RTL8139Settings(Settings):
    """``device.*`` of rtl8139."""

    hub: Flag = Field(False, description="joined to its tap by -net, through QEMU's hub")
    mmio: Flag = Field(
        False,
        description="registers through BAR 1 (memory), as 8139cp maps them; off: through the ports of BAR 0, "
        "the same region of QEMU's, as which the measurement counts them",
    )
    ethtool_gro: Flag = Field(True, description=ETHTOOL_GRO)


def main_loop(s: RTL8139, q: MainLoop) -> Generator[Effect, None, None]:
    """QEMU's main loop: the tap."""
    yield from lock_iothread(q)
    while True:
        yield from main_loop_wait(q)
        take_work(q.work)
        yield from tap_send(s.client, q, TAP, s, rtl8139_receive)


def build(host: Host, workload: Workload, settings: RTL8139Settings, vms: int = 1) -> Machine:
    """Put the path together for one run."""
    buffers = CP_TX_RING_SIZE + CP_RX_RING_SIZE
    room = NetworkRoom(host, workload, RX_STAGES, TX_STAGES, vectors=1, buffers=buffers, vms=vms)
    for guest in room.guests:
        with guest.names():
            connect(guest, settings)
    return room.machine


def connect(room: GuestRoom, settings: RTL8139Settings) -> None:
    """Give a guest its NIC, in a QEMU of its own."""
    loop = MainLoop(room.machine, items=1)
    room.tap[0].reader = loop.work
    room.tap[0].reader_item = TAP
    device = RTL8139(
        room.machine,
        room.vcpu,
        loop,
        NetClient(room.network, room.milestones, settings.hub, room.tap[0]),
        room.milestones,
        tx_size=CP_TX_RING_SIZE,
        rx_size=CP_RX_RING_SIZE,
        mmio=settings.mmio,
    )
    offloads = no_offloads(settings.ethtool_gro)
    driver = CpPrivate(room.machine, room.vcpu, room.sockets, room.mine, device, room.milestones, offloads)
    room.machine.parts[instance("device", room.number)] = device
    for i, a in enumerate(room.applications):
        process = application(a, driver, dev_queue_xmit, cleanup_rbuf)
        room.system.process(instance("application", i), process, a.vcpu.thread, TASK)
    room.system.process("qemu main loop", main_loop(device, loop), loop.thread)


MODEL: Final = Model(
    name="rtl8139",
    summary="full emulation, Realtek RTL8139C+ under 8139cp: port I/O, every access an exit that QEMU serves",
    settings=RTL8139Settings,
    build=build,
    streams=True,
    receives_streams=True,
    vms=True,
)
