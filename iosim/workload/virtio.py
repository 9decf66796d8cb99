"""A guest with a virtio NIC, whatever serves its queues: driver, transport and applications on a `NetworkRoom`.

A path adds who serves the queues: for each pair a `WorkQueue` that its kicks go to, and processes of its own that work
on ``rx_device`` and ``tx_device`` of the pair's driver. docs/guides/models.md shows one from beginning to end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from iosim.effects import TASK
from iosim.engine.system import instance
from iosim.guest.tcp import Offloads
from iosim.guest.virtio_net import PAIR, RX, TX, VirtioNet, cleanup_rbuf, dev_queue_xmit, packet_buffers, transports
from iosim.host.bridge import tap_set_offload
from iosim.host.hosts import Host
from iosim.host.main_loop import MainLoop
from iosim.host.virtio_pci import INTX, guest_notifiers, interrupt_mode
from iosim.host.work import WorkQueue
from iosim.requests import Stage
from iosim.settings import TapQueuePairs, VirtioQueuePairs
from iosim.workload.application import application
from iosim.workload.assembly import GuestRoom, NetworkRoom
from iosim.workload.spec import Workload

FRAMES: Final = Offloads(csum=True, tso=False, gso=False, guest_tso4=True)
"""Of a NIC that carries no streams: every packet is one frame, whose checksum the back end leaves to the NIC."""


def tap_offloads(settings: TapQueuePairs, hub: bool = False) -> Offloads:
    """Return what the guest's driver may leave to a device with a tap (virtnet_probe, netdev_fix_features).

    Without the virtio-net header QEMU offers no checksums, and so nothing else (virtio_net_get_features).

    Args:
        settings: The NIC's.
        hub: The tap is behind QEMU's hub, which does not hand the header on.
    """
    vnet_hdr = settings.vnet_hdr and not hub
    return Offloads(
        csum=settings.csum and vnet_hdr,
        tso=settings.host_tso4 and settings.ethtool_tso,
        gso=settings.ethtool_gso,
        guest_csum=settings.guest_csum and vnet_hdr,
        guest_tso4=settings.guest_tso4,
        gro=settings.ethtool_gro,
    )


def big_packets(settings: VirtioQueuePairs, offloads: Offloads) -> bool:
    """Whether receive buffers are chains: where no GSO packets come, one without mrg_rxbuf is for one frame."""
    return not settings.mrg_rxbuf and offloads.guest_tso4


def mergeable(settings: VirtioQueuePairs, workload: Workload) -> bool:
    """Whether GSO packets are received in several mergeable buffers. It is a tap that hands such packets on."""
    return settings.mrg_rxbuf and workload.guests_receive and isinstance(settings, TapQueuePairs)


def virtio_room(
    host: Host,
    workload: Workload,
    rx: Mapping[str, Stage],
    tx: Mapping[str, Stage],
    settings: VirtioQueuePairs,
    vcpus: int,
    vms: int = 1,
    offloads: Offloads = FRAMES,
    *,
    bypass: bool = False,
) -> NetworkRoom:
    """Return a machine room with memory for such NICs, and with taps that take what they do.

    Args:
        host, workload, rx, tx, vcpus, vms, bypass: See `NetworkRoom`.
        settings: The NIC's.
        offloads: What is left to the device.
    """
    big, merged = big_packets(settings, offloads), mergeable(settings, workload)
    buffers = packet_buffers(settings.rx_queue_size, settings.tx_queue_size, settings.indirect, big, merged)
    room = NetworkRoom(host, workload, rx, tx, PAIR, buffers, settings.queues, vcpus, vms, bypass=bypass)
    if not bypass:
        tap_set_offload(room.network, offloads.guest_csum, offloads.guest_tso4, offloads.csum)
    return room


def virtio_net(
    room: NetworkRoom | GuestRoom,
    loop: MainLoop,
    settings: VirtioQueuePairs,
    backends: Sequence[WorkQueue],
    offloads: Offloads = FRAMES,
    *,
    ioeventfd: bool = True,
    stride: int = 0,
) -> list[VirtioNet]:
    """Install the driver of a guest's NIC; return it, one for each queue pair.

    Args:
        room: The guest's; of a machine room, the first guest's.
        loop: QEMU's main loop.
        settings: The NIC's.
        backends: Where the kicks of each pair go, as items ``RX`` and ``TX``.
        offloads: What is left to the device.
        ioeventfd: They go there by an ioeventfd; else QEMU's device takes them (see `VirtioNet`).
        stride: How far the items of the next pair are from those of one, where they go to the same place.
    """
    guest = room if isinstance(room, GuestRoom) else room.guests[0]
    pairs = settings.queues
    mode = interrupt_mode(settings.msix_vectors, PAIR * pairs)
    softnets, pcis = transports(
        guest.machine, guest.vcpus, loop, pairs, mode=mode, legacy=settings.disable_modern, ioeventfd=ioeventfd
    )
    drivers = []
    for i in range(pairs):
        driver = VirtioNet(
            guest.machine,
            softnets[i],
            i,
            guest.sockets,
            guest.mine[i::pairs],
            guest.milestones,
            pcis[i],
            backends[i],
            stride * i + RX,
            stride * i + TX,
            rx_size=settings.rx_queue_size,
            tx_size=settings.tx_queue_size,
            event_idx=settings.event_idx,
            packed=settings.packed,
            indirect=settings.indirect,
            big=big_packets(settings, offloads),
            frame=guest.workload.frame,
            offloads=offloads,
            merged=mergeable(settings, guest.workload),
        )
        drivers.append(driver)
        guest.machine.parts[instance("driver", guest.number * pairs + i)] = driver
    return drivers


def notifier_loop(room: NetworkRoom | GuestRoom, settings: VirtioQueuePairs) -> MainLoop:
    """Return the main loop of a QEMU that does not serve the queues: with INTx call eventfds wake it, else nothing."""
    queues = PAIR * settings.queues
    return MainLoop(room.machine, items=queues, runs=interrupt_mode(settings.msix_vectors, queues) == INTX)


def run_notifiers(room: NetworkRoom | GuestRoom, drivers: Sequence[VirtioNet]) -> None:
    """Install the process of a `notifier_loop`, which raises the line, where it has something to do."""
    pci = drivers[0].pci
    if pci.mode == INTX:
        room.system.process("qemu main loop", guest_notifiers(pci), pci.loop.thread)


def applications(room: NetworkRoom | GuestRoom, drivers: Sequence[VirtioNet]) -> None:
    """Install the guest's applications, each sending by the driver of its flow's pair."""
    for i, a in enumerate(room.applications):
        process = application(a, drivers[i % len(drivers)], dev_queue_xmit, cleanup_rbuf)
        room.system.process(instance("application", i), process, a.vcpu.thread, TASK)
