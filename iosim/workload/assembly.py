"""What every network path is put together from, but for the guest's NIC and its back end."""

from __future__ import annotations

from collections.abc import Mapping

from iosim.engine.system import System
from iosim.guest.socket import Socket
from iosim.host.hosts import Host
from iosim.host.kvm import Vcpu
from iosim.host.machine import Machine
from iosim.host.network import Network
from iosim.requests import RequestTable, Stage
from iosim.ring.memory import GuestMemory
from iosim.window import Window
from iosim.workload.application import Application
from iosim.workload.client import Client
from iosim.workload.path import Milestones
from iosim.workload.spec import Workload

RINGS = 256 << 10
"""Bytes of guest memory for rings: the largest, of 4096 descriptors both ways, fit well."""
BUFFER = 2048
"""Bytes of guest memory for a packet's buffer."""


class NetworkRoom:
    """A machine room with one guest, a tap on a bridge, a physical NIC and a client at the end of the wire.

    Args:
        host: Costs and properties.
        workload: What is asked.
        rx, tx: The path's stages in both directions (see `Milestones`).
        vectors: Interrupt vectors of the guest's NIC; the guest's timer has one more.
        buffers: Packet buffers that the guest's driver allocates.
    """

    def __init__(
        self,
        host: Host,
        workload: Workload,
        rx: Mapping[str, Stage],
        tx: Mapping[str, Stage],
        vectors: int,
        buffers: int,
    ) -> None:
        p = host.properties
        self.host = host
        self.workload = workload
        self.system = System()
        self.milestones = Milestones(workload, rx, tx)
        self.window = Window(self.system, RequestTable(self.milestones.stages, self.milestones.names))
        self.machine = Machine(self.system, self.window, GuestMemory(RINGS + BUFFER * buffers))
        self.vcpu = Vcpu(
            self.machine,
            vectors + 1,
            apicv=bool(p["apicv"].value),
            pv_eoi=bool(p["pv_eoi"].value),
            halt_poll_max=int(p["halt_poll_ns"].value),
            grow=int(p["halt_poll_grow"].value),
            grow_start=int(p["halt_poll_grow_start"].value),
            shrink=int(p["halt_poll_shrink"].value),
        )
        self.network = Network(
            self.machine,
            self.milestones,
            frame=workload.frame,
            wire_bytes=workload.wire_bytes,
            propagation=int(p["wire_propagation"].value),
            tap_limit=max(1, int(p["tap_queue"].value)),
        )
        self.socket = Socket(self.machine, self.milestones, workload.size, workload.depth)
        self.client = Client(self.machine, self.network, self.milestones, workload)
        self.application = Application(
            self.machine, self.vcpu, self.socket, self.client, workload, timer=vectors
        )
