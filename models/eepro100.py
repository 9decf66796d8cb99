"""i82551, i82557b, i82559er: fully emulated NICs. The guest's e100 driver believes in an Intel 8255x; QEMU plays it.

The three are one device to QEMU and to the driver, but for identifiers, statistics and what happens at set-up. Every
access to a register leaves the guest and goes through the five steps of the I/O trap (`iosim.host.mmio`).

Sending: the driver links a command block to the list and, with interrupts off, reads the command byte (has the last
command been taken?) and writes "resume" to it. In that write QEMU runs the command unit: it copies the packet, sends
it to the tap, suspends at the end of the list, and raises INTx for that (CNA). Receiving: QEMU's main loop reads the
tap, copies the packet behind its frame descriptor, and raises the line (FR). The handler acknowledges, masks, and
schedules NAPI, which cleans both lists and unmasks; each write of the mask is followed by a read, as a flush. There is
no interrupt mitigation. A receive unit that has come to the end of its list loses packets until the driver starts it
again. e100 has no GRO: segments of a stream go up one by one.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from pydantic import Field

from iosim.effects import TASK, Effect
from iosim.engine.system import instance
from iosim.guest.e100 import CBS, RFDS, Nic, cleanup_rbuf, dev_queue_xmit
from iosim.guest.tcp import no_offloads
from iosim.host.eepro100 import EEPRO100, nic_receive
from iosim.host.hosts import Host
from iosim.host.machine import Machine
from iosim.host.main_loop import MainLoop, lock_iothread, main_loop_wait
from iosim.host.net_client import NetClient, tap_send
from iosim.host.work import take_work
from iosim.model import Model
from iosim.requests import Stage
from iosim.settings import Flag, Settings
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
    "handled": Stage("handler: SCBAck, SCBIrqMask, EOI", "exit", WORK),
    "taken": Stage("NAPI", "guest", WORK),
    "received": Stage("guest receive stack", "guest", WORK),
    "dequeued": Stage("W SCBIrqMask, R SCBStatus; wake-up", "exit", WAIT_CPU),
    "delivered": Stage("recvmsg", "guest", WORK),
}
TX_STAGES: Final = {
    "room": Stage("command blocks used up", "guest", WAIT_QUEUE),
    "available": Stage("e100_xmit_frame", "guest", WORK),
    "kicked": Stage("no kick", "exit", WORK),
    "tx_seen": Stage("R SCBCmd, W SCBCmd: exits to QEMU", "exit", WORK),
    "processed": Stage("device copies, writev(tap)", "QEMU", WORK),
}


class EEPRO100Settings(Settings):
    """``device.*`` of i82551, i82557b and i82559er."""

    hub: Flag = Field(False, description="joined to its tap by -net, through QEMU's hub")


def main_loop(s: EEPRO100, q: MainLoop) -> Generator[Effect, None, None]:
    """QEMU's main loop: the tap."""
    yield from lock_iothread(q)
    while True:
        yield from main_loop_wait(q)
        take_work(q.work)
        yield from tap_send(s.client, q, TAP, s, nic_receive)


def build(host: Host, workload: Workload, settings: EEPRO100Settings, vms: int = 1) -> Machine:
    """Put the path together for one run."""
    buffers = CBS + RFDS
    room = NetworkRoom(host, workload, RX_STAGES, TX_STAGES, vectors=1, buffers=buffers, vms=vms)
    for guest in room.guests:
        with guest.names():
            connect(guest, settings)
    return room.machine


def connect(room: GuestRoom, settings: EEPRO100Settings) -> None:
    """Give a guest its NIC, in a QEMU of its own."""
    loop = MainLoop(room.machine, items=1)
    room.tap[0].reader = loop.work
    room.tap[0].reader_item = TAP
    client = NetClient(room.network, room.milestones, settings.hub, room.tap[0])
    device = EEPRO100(room.machine, room.vcpu, loop, client, room.milestones)
    driver = Nic(room.machine, room.vcpu, room.sockets, room.mine, device, room.milestones, no_offloads())
    room.machine.parts[instance("device", room.number)] = device
    for i, a in enumerate(room.applications):
        process = application(a, driver, dev_queue_xmit, cleanup_rbuf)
        room.system.process(instance("application", i), process, a.vcpu.thread, TASK)
    room.system.process("qemu main loop", main_loop(device, loop), loop.thread)


def sibling(name: str, chip: str) -> Model:
    """One of the family, under QEMU's name of it."""
    return Model(
        name=name,
        summary=f"full emulation, Intel {chip} under e100: every access to its control block is an exit to QEMU",
        settings=EEPRO100Settings,
        build=build,
        streams=True,
        receives_streams=True,
        vms=True,
    )


I82551: Final = sibling("i82551", "82551")
I82557B: Final = sibling("i82557b", "82557B")
I82559ER: Final = sibling("i82559er", "82559ER")
