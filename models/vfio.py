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

The guest's NIC is the host's: it segments GSO packets of a stream (TSO) if that can, ``host.nic_tso``. Segments that
come the guest's driver merges (GRO).

Translation by the IOMMU costs nothing here: it is within the NIC's DMA, and the guest's memory is mapped once for all.

With several queue pairs each has its vector, on a vCPU of its own. Remapped, each is a vector of the host too, on a CPU
of the host (``host-irq-0``, ``host-irq-1``, ...); the wake-up vector is that of the CPU on which the vCPU slept.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Literal

from pydantic import Field

from iosim.effects import HARDIRQ, TASK, Effect, notify, notify_after, spend, wait
from iosim.engine.system import instance
from iosim.errors import IosimError
from iosim.guest.ixgbe import IxgbeDriver, cleanup_rbuf, dev_queue_xmit, ixgbe_probe
from iosim.guest.tcp import Offloads
from iosim.host.costs import CPU_IDLE_EXIT, HOST_VECTOR, POSTED_INTERRUPT
from iosim.host.hosts import Host
from iosim.host.ixgbe import Ixgbe, message_sent
from iosim.host.kvm import HALTED, IN_GUEST, Vcpu, deliver_interrupt, set_pending
from iosim.host.machine import Machine
from iosim.model import Model
from iosim.requests import Stage
from iosim.settings import ETHTOOL_GRO, ETHTOOL_GSO, Flag, NicDescriptors
from iosim.workload.application import application
from iosim.workload.assembly import NetworkRoom
from iosim.workload.path import WAIT_CPU, WAIT_MODERATION, WAIT_QUEUE, WORK
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
    ethtool_tso: Flag = Field(True, description="ethtool -K tso in the guest: the NIC segments; needs host.nic_tso")
    ethtool_gso: Flag = Field(True, description=ETHTOOL_GSO)
    ethtool_gro: Flag = Field(True, description=ETHTOOL_GRO)


class Wakeup:
    """The vector of the host by which a sleeping vCPU is woken (POSTED_INTR_WAKEUP_VECTOR).

    Attributes:
        irq: The channel of the vector.
    """

    __slots__ = ("irq", "vcpu")

    def __init__(self, machine: Machine, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.irq = machine.system.channel(instance("host wake-up vector", vcpu.number))


class Vfio:
    """The way of one of the NIC's vectors to the guest.

    Args:
        machine, driver: What it belongs to, and whom it is for.
        wakeup: How the pair's vCPU is woken.

    Attributes:
        irq: The channel of the host's vector for it.
    """

    __slots__ = ("driver", "irq", "wakeup")

    def __init__(self, machine: Machine, driver: IxgbeDriver, wakeup: Wakeup) -> None:
        self.driver = driver
        self.wakeup = wakeup
        self.irq = machine.system.channel(instance("host vector of the NIC", driver.queue.number))


# -- interrupts remapped to the host ----------------------------------------------------------------------------


def remapped_message(x: Vfio) -> Generator[Effect, None, None]:
    """The IOMMU: the NIC's message becomes a vector of the host."""
    while True:
        yield wait(x.driver.queue.msi)
        message_sent(x.driver.queue)
        yield notify(x.irq)


def vfio_msihandler(x: Vfio) -> Generator[Effect, None, None]:
    """VFIO's interrupt handler on a CPU of the host: it signals an eventfd, and KVM injects from there (irqfd)."""
    while True:
        yield wait(x.irq, CPU_IDLE_EXIT)
        yield spend(HOST_VECTOR)
        yield from deliver_interrupt(x.driver.vcpu, x.driver.vector)


# -- posted interrupts ------------------------------------------------------------------------------------------


def posted_message(x: Vfio) -> Generator[Effect, None, None]:
    """The IOMMU: the NIC's message becomes a request in the vCPU's descriptor, and a notification of its CPU.

    A vCPU in KVM finds the request at its entry, one that polls in its halt at the next look.
    """
    v = x.driver.vcpu
    while True:
        yield wait(x.driver.queue.msi)
        message_sent(x.driver.queue)
        if set_pending(v, x.driver.vector):
            if v.mode == IN_GUEST:
                yield notify_after(v.ipi, POSTED_INTERRUPT)
            elif v.asleep:
                yield notify(x.wakeup.irq)
            elif v.mode == HALTED:
                yield notify(v.wake)


def pi_wakeup_handler(w: Wakeup) -> Generator[Effect, None, None]:
    """KVM's handler of the wake-up vector: wake the vCPU's thread. That its CPU was idle is in the wake-up's cost."""
    while True:
        yield wait(w.irq)
        yield spend(HOST_VECTOR)
        yield notify(w.vcpu.wake)


def build(host: Host, workload: Workload, settings: VfioSettings, vcpus: int = 1) -> Machine:
    """Put the path together for one run."""
    posted = settings.interrupts == POSTED
    if posted and not host.properties["apicv"].value:
        raise IosimError(
            "posted interrupts need APICv, which this host has not; host.apicv=on gives it, or "
            "device.interrupts=remapped does without",
            "device.interrupts",
        )
    pairs = settings.queues
    tx_size, rx_size = settings.tx_descriptors, settings.rx_descriptors
    room = NetworkRoom(host, workload, RX_STAGES, TX_STAGES, 1, tx_size + rx_size, pairs, vcpus, bypass=True)
    system = room.system
    nic = Ixgbe(room.machine, room.network, room.milestones, pairs, tx_size=tx_size, rx_size=rx_size)
    tso = settings.ethtool_tso and bool(host.properties["nic_tso"].value)
    offloads = Offloads(csum=True, tso=tso, gso=settings.ethtool_gso, gro=settings.ethtool_gro)
    drivers = ixgbe_probe(room.machine, room.vcpus, room.sockets, room.milestones, nic, offloads)
    room.machine.parts["device"] = nic
    for i, a in enumerate(room.applications):
        sender = application(a, drivers[i % pairs], dev_queue_xmit, cleanup_rbuf)
        system.process(instance("application", i), sender, a.vcpu.thread, TASK)
    wakeups = [Wakeup(room.machine, vcpu) for vcpu in room.vcpus]
    vectors = [Vfio(room.machine, driver, wakeups[driver.vcpu.number]) for driver in drivers]
    several = len(wakeups if posted else vectors) > 1
    if posted:
        for i, vector in enumerate(vectors):
            system.process(instance("posted interrupts", i), posted_message(vector))
        for i, wakeup in enumerate(wakeups):
            host_irq = system.thread(f"host-irq-{i}" if several else "host-irq", priority=1)
            system.process(instance("pi_wakeup_handler", i), pi_wakeup_handler(wakeup), host_irq, HARDIRQ)
    else:
        for i, vector in enumerate(vectors):
            system.process(instance("interrupt remapping", i), remapped_message(vector))
        for i, vector in enumerate(vectors):
            host_irq = system.thread(f"host-irq-{i}" if several else "host-irq", priority=1)
            system.process(instance("vfio_msihandler", i), vfio_msihandler(vector), host_irq, HARDIRQ)
    return room.machine


MODEL: Final = Model(
    name="vfio",
    summary="physical NIC passed through: no exit to send or receive; interrupts remapped by the host or posted",
    settings=VfioSettings,
    build=build,
    smp=True,
    streams=True,
    receives_streams=True,
)
