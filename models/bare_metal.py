"""bare-metal: no guest. Driver and application run on the host itself: what every other path is compared with.

The same kernel, application and load as in the guests of the other paths, on a CPU of the host (thread ``cpu0``) with
a physical NIC of its own. Sending: the driver fills a descriptor and writes the NIC's tail register; the NIC fetches
the packet by DMA and puts it on the wire. Receiving: the NIC writes the packet into memory and, after its moderation,
sends its message; the CPU takes it through its IDT, the handler schedules NAPI. An idle CPU halts, and an interrupt
ends that within a fraction of a microsecond. Nothing exits: there is nowhere to exit to.

A stream's GSO packets are the NIC's to segment (TSO), and the segments that come are the driver's to merge (GRO). The
switches are those of the host's NIC, ``host.nic_tso``, ``host.nic_gso`` and ``host.nic_gro``: here the sockets are the
host's own.

With several queue pairs each has a CPU (``guest.vcpus`` of them: ``cpu0``, ``cpu1``, ...) and a vector of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import TASK, Effect, wait
from iosim.engine.system import instance
from iosim.guest.ixgbe import IxgbeDriver, cleanup_rbuf, dev_queue_xmit, ixgbe_probe
from iosim.guest.tcp import Offloads
from iosim.host.hosts import Host
from iosim.host.ixgbe import Ixgbe, message_sent
from iosim.host.kvm import deliver_interrupt
from iosim.host.machine import Machine
from iosim.model import Model
from iosim.requests import Stage
from iosim.settings import NicDescriptors
from iosim.workload.application import application
from iosim.workload.assembly import NetworkRoom
from iosim.workload.path import WAIT_CPU, WAIT_MODERATION, WAIT_QUEUE, WORK
from iosim.workload.spec import Workload

RX_STAGES: Final = {
    "rx_signalled": Stage("NIC DMA, interrupt delay", "device", WAIT_MODERATION),
    "irq": Stage("rx interrupt delivery", "interrupt", WAIT_CPU),
    "handled": Stage("rx interrupt handler", "guest", WORK),
    "taken": Stage("NAPI", "guest", WORK),
    "received": Stage("guest receive stack", "guest", WORK),
    "dequeued": Stage("NAPI completion, wake-up", "guest", WAIT_CPU),
    "delivered": Stage("recvmsg", "guest", WORK),
}
TX_STAGES: Final = {
    "room": Stage("tx ring full", "guest", WAIT_QUEUE),
    "available": Stage("ixgbe_xmit_frame", "guest", WORK),
    "processed": Stage("wait in the NIC's ring", "device", WAIT_QUEUE),
}


class BareMetalSettings(NicDescriptors):
    """``device.*`` of bare-metal."""


def msi(d: IxgbeDriver) -> Generator[Effect, None, None]:
    """The message of one of the NIC's queue pairs, a write to its CPU's local APIC."""
    while True:
        yield wait(d.queue.msi)
        message_sent(d.queue)
        yield from deliver_interrupt(d.vcpu, d.vector)


def build(host: Host, workload: Workload, settings: BareMetalSettings, vcpus: int = 1) -> Machine:
    """Put the path together for one run."""
    pairs = settings.queues
    tx_size, rx_size = settings.tx_descriptors, settings.rx_descriptors
    room = NetworkRoom(
        host, workload, RX_STAGES, TX_STAGES, 1, tx_size + rx_size, pairs, vcpus, bypass=True, native=True
    )
    nic = Ixgbe(room.machine, room.network, room.milestones, pairs, tx_size=tx_size, rx_size=rx_size)
    p = host.properties
    tso, gso, gro = (bool(p[name].value) for name in ("nic_tso", "nic_gso", "nic_gro"))
    offloads = Offloads(csum=True, tso=tso, gso=gso, gro=gro)
    drivers = ixgbe_probe(room.machine, room.vcpus, room.sockets, room.milestones, nic, offloads)
    room.machine.parts["device"] = nic
    for i, a in enumerate(room.applications):
        sender = application(a, drivers[i % pairs], dev_queue_xmit, cleanup_rbuf)
        room.system.process(instance("application", i), sender, a.vcpu.thread, TASK)
    for i, driver in enumerate(drivers):
        room.system.process(instance("NIC message", i), msi(driver))
    return room.machine


MODEL: Final = Model(
    name="bare-metal",
    summary="no guest: application and driver on the host itself, with a physical NIC; the reference",
    settings=BareMetalSettings,
    build=build,
    smp=True,
    streams=True,
    receives_streams=True,
)
