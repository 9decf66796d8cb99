"""ne2k_pci: a fully emulated NIC by programmed I/O. The guest's ne2k-pci driver believes in an NE2000; QEMU plays it.

The device has memory of its own, and the CPU moves every packet there and back through one port, 32 bits at a time.
Each access to a port leaves the guest (`iosim.host.pio`): a ``rep outsl`` with every item, a ``rep insl`` with every
1024 bytes. So what a packet costs grows with its length.

Sending: with the device's interrupts masked and the line disabled the driver sets up a remote DMA, writes the packet,
and gives the command to send, in which QEMU sends it to the tap. As soon as the driver unmasks, the interrupt comes,
finds the line disabled, and masks it in the I/O APIC; when the driver enables the line again it is unmasked, and the
interrupt comes a second time. Those accesses are exits too, but KVM's own I/O APIC serves them. Receiving: QEMU's main
loop reads the tap, copies the packet into the device's memory and raises the line. The handler reads header and packet
out in the interrupt, and passes it to the softirq by the CPU's backlog. There is no interrupt mitigation; without room
in the device's memory a packet is lost. What comes while the handler leaves stays in the device until another comes.
There is no GRO either: segments of a stream go up one by one.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from pydantic import Field

from iosim.effects import TASK, Effect, sleep_until
from iosim.engine.system import instance
from iosim.guest.ne2k_pci import EiDevice, cleanup_rbuf, dev_queue_xmit
from iosim.guest.tcp import no_offloads
from iosim.host.hosts import Host
from iosim.host.machine import Machine
from iosim.host.main_loop import MainLoop, lock_iothread, main_loop_wait
from iosim.host.ne2000 import NE2000, NO_REQUEST, ne2000_buffer_empty, ne2000_receive
from iosim.host.net_client import NetClient, tap_send
from iosim.host.work import queue_work, take_work
from iosim.model import Model
from iosim.requests import Stage
from iosim.settings import Flag, Settings
from iosim.workload.application import application
from iosim.workload.assembly import GuestRoom, NetworkRoom
from iosim.workload.path import WAIT_CPU, WAIT_NOTIFICATION, WAIT_QUEUE, WORK
from iosim.workload.spec import Workload

TAP: Final = 0
OTHER: Final = 1
"""What the main loop polls: the tap; kept apart is a frame on the tap that is no request's."""

REVALIDATION: Final = 30 * 10**12
"""ps between two ARP requests by which the peer makes sure of the guest (Linux base_reachable_time_ms)."""

RX_STAGES: Final = {
    "rx_seen": Stage("tap wakes QEMU", "QEMU", WAIT_NOTIFICATION),
    "rx_used": Stage("read(tap), copy to the device", "QEMU", WORK),
    "rx_signalled": Stage("raise INTx", "interrupt", WORK),
    "irq": Stage("rx interrupt", "interrupt", WAIT_NOTIFICATION),
    "handled": Stage("handler: header and packet by port, EOI", "exit", WORK),
    "taken": Stage("backlog", "guest", WORK),
    "received": Stage("guest receive stack", "guest", WORK),
    "dequeued": Stage("wake-up", "exit", WAIT_CPU),
    "delivered": Stage("recvmsg", "guest", WORK),
}
TX_STAGES: Final = {
    "room": Stage("both transmit slots full", "guest", WAIT_QUEUE),
    "available": Stage("ei_start_xmit", "guest", WORK),
    "kicked": Stage("no kick", "exit", WORK),
    "tx_seen": Stage("W IMR, remote DMA, W CMD: exits to QEMU", "exit", WORK),
    "processed": Stage("writev(tap)", "QEMU", WORK),
}


class NE2000Settings(Settings):
    """``device.*`` of ne2k_pci."""

    hub: Flag = Field(False, description="joined to its tap by -net, through QEMU's hub")


def main_loop(s: NE2000, q: MainLoop) -> Generator[Effect, None, None]:
    """QEMU's main loop: the tap."""
    yield from lock_iothread(q)
    while True:
        yield from main_loop_wait(q)
        ready = q.work.fifo.count
        while ready > 0:
            item = take_work(q.work)
            if item == TAP:
                yield from tap_send(s.client, q, TAP, s, ne2000_receive)
            else:
                yield from ne2000_receive(s, NO_REQUEST)
            ready -= 1


def neighbour(s: NE2000, q: MainLoop) -> Generator[Effect, None, None]:
    """The peer's ARP requests. Nothing else fetches the last packets of a run where the driver has left some behind."""
    following = REVALIDATION
    while not (s.machine.window.draining and ne2000_buffer_empty(s)):
        yield sleep_until(following)
        following += REVALIDATION
        yield from queue_work(q.work, OTHER)


def build(host: Host, workload: Workload, settings: NE2000Settings, vms: int = 1) -> Machine:
    """Put the path together for one run."""
    buffers = 3
    room = NetworkRoom(host, workload, RX_STAGES, TX_STAGES, vectors=1, buffers=buffers, vms=vms)
    for guest in room.guests:
        with guest.names():
            connect(guest, settings)
    return room.machine


def connect(room: GuestRoom, settings: NE2000Settings) -> None:
    """Give a guest its NIC, in a QEMU of its own."""
    loop = MainLoop(room.machine, items=2)
    room.tap[0].reader = loop.work
    room.tap[0].reader_item = TAP
    client = NetClient(room.network, room.milestones, settings.hub, room.tap[0])
    device = NE2000(room.machine, room.vcpu, loop, client, room.milestones)
    driver = EiDevice(room.machine, room.vcpu, room.sockets, room.mine, device, room.milestones, no_offloads())
    room.machine.parts[instance("device", room.number)] = device
    for i, a in enumerate(room.applications):
        process = application(a, driver, dev_queue_xmit, cleanup_rbuf)
        room.system.process(instance("application", i), process, a.vcpu.thread, TASK)
    room.system.process("neighbour", neighbour(device, loop))
    room.system.process("qemu main loop", main_loop(device, loop), loop.thread)


MODEL: Final = Model(
    name="ne2k_pci",
    summary="full emulation, NE2000 by programmed I/O: the CPU moves each packet through a port, exit by exit",
    settings=NE2000Settings,
    build=build,
    streams=True,
    receives_streams=True,
    vms=True,
)
