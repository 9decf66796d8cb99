"""vfio: a physical NIC passed through to the guest. Its driver is there, and only interrupts take a way around.

QEMU maps the NIC's registers into the guest's page tables and the guest's memory into the IOMMU's; then it stays out
of the way. Sending: the driver's write to the tail register reaches the NIC, no exit. Receiving: the NIC writes the
packet into the guest's buffer. Only its message cannot reach the guest by itself:

* ``device.interrupts=remapped``: the IOMMU remaps it to a vector of the host. A CPU of the host takes it (thread
  ``host-irq``), VFIO's handler signals an eventfd, and KVM injects the guest's interrupt from there (irqfd): a vCPU
  that runs exits for it (EXTERNAL_INTERRUPT), unless the host has APICv; one that is halted is woken.
* ``device.interrupts=posted`` (VT-d posted interrupts; needs APICv): the IOMMU writes the request into the vCPU's
  posted-interrupt descriptor and notifies the CPU on which it runs; the guest takes it without an exit. A vCPU whose
  thread sleeps has a wake-up vector in the descriptor instead: the host's handler for that wakes the thread.

Translation by the IOMMU costs nothing here: it is within the NIC's DMA, and the guest's memory is mapped once for all.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Literal

from pydantic import Field

from iosim.effects import HARDIRQ, TASK, Effect, notify, notify_after, spend, wait
from iosim.errors import IosimError
from iosim.guest.ixgbe import VECTOR, IxgbeDriver, dev_queue_xmit
from iosim.guest.socket import sendmsg
from iosim.host.costs import CPU_IDLE_EXIT, HOST_VECTOR, POSTED_INTERRUPT
from iosim.host.hosts import Host
from iosim.host.ixgbe import Ixgbe, message_sent
from iosim.host.kvm import HALTED, IN_GUEST, Vcpu, deliver_interrupt, set_pending
from iosim.host.machine import Machine
from iosim.model import Model
from iosim.requests import Stage
from iosim.settings import NicDescriptors
from iosim.workload.application import Application, next_packet
from iosim.workload.assembly import NetworkRoom
from iosim.workload.path import WAIT_CPU, WAIT_MODERATION, WAIT_QUEUE, WORK
from iosim.workload.spec import RX as RX_ONLY
from iosim.workload.spec import Workload

POSTED: Final = "posted"

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


class VfioSettings(NicDescriptors):
    """``device.*`` of vfio."""

    interrupts: Literal["remapped", "posted"] = Field(
        "remapped", description="through the host, or posted into the guest (VT-d, with APICv)"
    )


class Vfio:
    """The NIC's way to interrupt the guest.

    Attributes:
        irq: The channel of the host's vector for the NIC.
        wakeup: That of the vector by which a sleeping vCPU is woken (POSTED_INTR_WAKEUP_VECTOR).
    """

    __slots__ = ("irq", "nic", "vcpu", "wakeup")

    def __init__(self, machine: Machine, nic: Ixgbe, vcpu: Vcpu) -> None:
        self.nic = nic
        self.vcpu = vcpu
        self.irq = machine.system.channel("host vector of the NIC")
        self.wakeup = machine.system.channel("host wake-up vector")


def application(a: Application, driver: IxgbeDriver) -> Generator[Effect, None, None]:
    """The guest's application: receive and answer (rr), send (tx) or just receive (rx)."""
    while True:
        row = yield from next_packet(a)
        if a.kind != RX_ONLY:
            yield from sendmsg(a.socket, row)
            yield from dev_queue_xmit(driver, row)


# -- interrupts remapped to the host ----------------------------------------------------------------------------


def remapped_message(x: Vfio) -> Generator[Effect, None, None]:
    """The IOMMU: the NIC's message becomes a vector of the host."""
    while True:
        yield wait(x.nic.msi)
        message_sent(x.nic)
        yield notify(x.irq)


def vfio_msihandler(x: Vfio) -> Generator[Effect, None, None]:
    """VFIO's interrupt handler on a CPU of the host: it signals an eventfd, and KVM injects from there (irqfd)."""
    while True:
        yield wait(x.irq, CPU_IDLE_EXIT)
        yield spend(HOST_VECTOR)
        yield from deliver_interrupt(x.vcpu, VECTOR)


# -- posted interrupts ------------------------------------------------------------------------------------------


def posted_message(x: Vfio) -> Generator[Effect, None, None]:
    """The IOMMU: the NIC's message becomes a request in the vCPU's descriptor, and a notification of its CPU.

    A vCPU in KVM finds the request at its entry, one that polls in its halt at the next look.
    """
    while True:
        yield wait(x.nic.msi)
        message_sent(x.nic)
        if set_pending(x.vcpu, VECTOR):
            if x.vcpu.mode == IN_GUEST:
                yield notify_after(x.vcpu.ipi, POSTED_INTERRUPT)
            elif x.vcpu.asleep:
                yield notify(x.wakeup)
            elif x.vcpu.mode == HALTED:
                yield notify(x.vcpu.wake)


def pi_wakeup_handler(x: Vfio) -> Generator[Effect, None, None]:
    """KVM's handler of the wake-up vector: wake the vCPU's thread. That its CPU was idle is in the wake-up's cost."""
    while True:
        yield wait(x.wakeup)
        yield spend(HOST_VECTOR)
        yield notify(x.vcpu.wake)


def build(host: Host, workload: Workload, settings: VfioSettings) -> Machine:
    """Put the path together for one run."""
    posted = settings.interrupts == POSTED
    if posted and not host.properties["apicv"].value:
        raise IosimError(
            "posted interrupts need APICv, which this host has not; host.apicv=on gives it, or "
            "device.interrupts=remapped does without",
            "device.interrupts",
        )
    buffers = settings.tx_descriptors + settings.rx_descriptors
    room = NetworkRoom(host, workload, RX_STAGES, TX_STAGES, 1, buffers, bypass=True)
    nic = Ixgbe(
        room.machine, room.network, room.milestones, tx_size=settings.tx_descriptors, rx_size=settings.rx_descriptors
    )
    driver = IxgbeDriver(room.machine, room.vcpu, room.socket, nic, room.milestones)
    room.machine.parts["device"] = nic
    room.system.process("application", application(room.application, driver), room.vcpu.thread, TASK)
    vfio = Vfio(room.machine, nic, room.vcpu)
    host_irq = room.system.thread("host-irq", priority=1)
    if posted:
        room.system.process("posted interrupts", posted_message(vfio))
        room.system.process("pi_wakeup_handler", pi_wakeup_handler(vfio), host_irq, HARDIRQ)
    else:
        room.system.process("interrupt remapping", remapped_message(vfio))
        room.system.process("vfio_msihandler", vfio_msihandler(vfio), host_irq, HARDIRQ)
    return room.machine


MODEL: Final = Model(
    name="vfio",
    summary="physical NIC passed through: no exit to send or receive; interrupts remapped by the host or posted",
    settings=VfioSettings,
    build=build,
)
