"""A guest with a virtio NIC, whatever serves its queues: driver, transport and applications on a `NetworkRoom`.

A path adds who serves the queues: for each pair a `WorkQueue` that its kicks go to, and processes of its own that work
on ``rx_device`` and ``tx_device`` of the pair's driver. docs/guides/models.md shows one from beginning to end.
"""

from __future__ import annotations

from collections.abc import Sequence

from iosim.effects import TASK
from iosim.engine.system import instance
from iosim.guest.tcp import Offloads
from iosim.guest.virtio_net import PAIR, RX, TX, VirtioNet, cleanup_rbuf, dev_queue_xmit, packet_buffers, transports
from iosim.host.main_loop import MainLoop
from iosim.host.virtio_pci import interrupt_mode
from iosim.host.work import WorkQueue
from iosim.settings import VirtioQueuePairs
from iosim.workload.application import application
from iosim.workload.assembly import GuestRoom, NetworkRoom


def guest_memory(settings: VirtioQueuePairs) -> int:
    """Return the packet buffers that the driver of a queue pair needs: what `NetworkRoom` asks for."""
    big = not settings.mrg_rxbuf
    return packet_buffers(settings.rx_queue_size, settings.tx_queue_size, settings.indirect, big)


def virtio_net(
    room: NetworkRoom,
    loop: MainLoop,
    settings: VirtioQueuePairs,
    backends: Sequence[WorkQueue],
    offloads: Offloads | None = None,
) -> list[VirtioNet]:
    """Install the driver of a NIC whose back end is not QEMU; return it, one for each queue pair.

    Args:
        room: The room.
        loop: QEMU's main loop, which has something to do where the queues interrupt by INTx.
        settings: The NIC's.
        backends: Where the kicks of each pair go, as items ``RX`` and ``TX``.
        offloads: What is left to the device. Without them it carries no streams: every packet is one frame, whose
            checksum the back end leaves to the NIC.
    """
    pairs = settings.queues
    mode = interrupt_mode(settings.msix_vectors, PAIR * pairs)
    softnets, pcis = transports(
        room.machine, room.vcpus, loop, pairs, mode=mode, legacy=settings.disable_modern, ioeventfd=True
    )
    offloads = offloads or Offloads(csum=True, tso=False, gso=False)
    drivers = []
    for i in range(pairs):
        driver = VirtioNet(
            room.machine,
            softnets[i],
            i,
            room.sockets,
            room.sockets[i::pairs],
            room.milestones,
            pcis[i],
            backends[i],
            RX,
            TX,
            rx_size=settings.rx_queue_size,
            tx_size=settings.tx_queue_size,
            event_idx=settings.event_idx,
            packed=settings.packed,
            indirect=settings.indirect,
            big=not settings.mrg_rxbuf,
            frame=room.workload.frame,
            offloads=offloads,
        )
        drivers.append(driver)
        room.machine.parts[instance("driver", i)] = driver
    return drivers


def applications(room: NetworkRoom | GuestRoom, drivers: Sequence[VirtioNet]) -> None:
    """Install the guest's applications, each sending by the driver of its flow's pair."""
    for i, a in enumerate(room.applications):
        process = application(a, drivers[i % len(drivers)], dev_queue_xmit, cleanup_rbuf)
        room.system.process(instance("application", i), process, a.vcpu.thread, TASK)
