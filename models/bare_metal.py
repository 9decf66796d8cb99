"""bare-metal: no guest. Driver and application run on the host itself: what every other path is compared with.

The same kernel, application and load as in the guests of the other paths, on a CPU of the host (thread ``cpu0``) with
a physical NIC of its own. Sending: the driver fills a descriptor and writes the NIC's tail register; the NIC fetches
the packet by DMA and puts it on the wire. Receiving: the NIC writes the packet into memory and, after its moderation,
sends its message; the CPU takes it through its IDT, the handler schedules NAPI. An idle CPU halts, and an interrupt
ends that within a fraction of a microsecond. Nothing exits: there is nowhere to exit to.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from iosim.effects import TASK, Effect, wait
from iosim.guest.ixgbe import VECTOR, IxgbeDriver, dev_queue_xmit
from iosim.guest.socket import sendmsg
from iosim.host.hosts import Host
from iosim.host.ixgbe import Ixgbe, message_sent
from iosim.host.kvm import Vcpu, deliver_interrupt
from iosim.host.machine import Machine
from iosim.model import Model
from iosim.requests import Stage
from iosim.settings import NicDescriptors
from iosim.workload.application import Application, next_packet
from iosim.workload.assembly import NetworkRoom
from iosim.workload.path import WAIT_CPU, WAIT_MODERATION, WAIT_QUEUE, WORK
from iosim.workload.spec import RX as RX_ONLY
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


def application(a: Application, driver: IxgbeDriver) -> Generator[Effect, None, None]:
    """The application: receive and answer (rr), send (tx) or just receive (rx)."""
    while True:
        row = yield from next_packet(a)
        if a.kind != RX_ONLY:
            yield from sendmsg(a.socket, row)
            yield from dev_queue_xmit(driver, row)


def msi(nic: Ixgbe, cpu: Vcpu) -> Generator[Effect, None, None]:
    """The NIC's message, a write to the CPU's local APIC."""
    while True:
        yield wait(nic.msi)
        message_sent(nic)
        yield from deliver_interrupt(cpu, VECTOR)


def build(host: Host, workload: Workload, settings: BareMetalSettings) -> Machine:
    """Put the path together for one run."""
    buffers = settings.tx_descriptors + settings.rx_descriptors
    room = NetworkRoom(host, workload, RX_STAGES, TX_STAGES, 1, buffers, bypass=True, native=True)
    nic = Ixgbe(
        room.machine, room.network, room.milestones, tx_size=settings.tx_descriptors, rx_size=settings.rx_descriptors
    )
    driver = IxgbeDriver(room.machine, room.vcpu, room.socket, nic, room.milestones)
    room.machine.parts["device"] = nic
    room.system.process("application", application(room.application, driver), room.vcpu.thread, TASK)
    room.system.process("NIC message", msi(nic, room.vcpu))
    return room.machine


MODEL: Final = Model(
    name="bare-metal",
    summary="no guest: application and driver on the host itself, with a physical NIC; the reference",
    settings=BareMetalSettings,
    build=build,
)
