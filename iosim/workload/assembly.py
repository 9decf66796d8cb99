"""What every network path is put together from, but for the guest's NIC and its back end."""

from __future__ import annotations

from collections.abc import Mapping

from iosim.engine.system import System
from iosim.guest.scheduler import RunQueue
from iosim.guest.socket import Socket
from iosim.host.hosts import Host
from iosim.host.kvm import Vcpu
from iosim.host.machine import Machine
from iosim.host.network import Network
from iosim.host.qdisc import Qdisc
from iosim.requests import RequestTable, Stage
from iosim.ring.memory import GuestMemory
from iosim.window import Window
from iosim.workload.application import Application, GuestTimer, Timetable
from iosim.workload.client import Client
from iosim.workload.path import Milestones
from iosim.workload.spec import SINK, STREAM, TX, Workload

RINGS = 256 << 10
"""Bytes of guest memory for rings: the largest, of 4096 descriptors both ways, fit well."""
BUFFER = 2048
"""Bytes of guest memory for a packet's buffer."""


class NetworkRoom:
    """A machine room with one guest, a tap on a bridge, a physical NIC and a client at the end of the wire.

    Flow ``i`` belongs to queue pair ``i`` modulo ``pairs``, and pair ``i`` to vCPU ``i`` modulo ``vcpus``: interrupts,
    softirq and application of a flow are on one vCPU, as after ``set_irq_affinity`` and ``taskset``. What comes for a
    flow before it has sent anything may still go to another pair (see `iosim.host.network.automq`).

    Args:
        host: Costs and properties.
        workload: What is asked.
        rx, tx: The path's stages in both directions (see `Milestones`).
        vectors: Interrupt vectors of a queue pair of the guest's NIC.
        buffers: Packet buffers that the guest's driver allocates for a queue pair.
        pairs: Queue pairs of the guest's NIC.
        vcpus: vCPUs of the guest, no more than pairs.
        bypass: The NIC is not the host kernel's: no tap, no bridge, none of the host's softirq.
        native: No guest: driver and application run on the host's own CPUs.

    Attributes:
        vcpus, sockets, applications: By number of the vCPU or the flow.
        vcpu, socket, application: The first, for a path that has one of each.
    """

    def __init__(
        self,
        host: Host,
        workload: Workload,
        rx: Mapping[str, Stage],
        tx: Mapping[str, Stage],
        vectors: int,
        buffers: int,
        pairs: int = 1,
        vcpus: int = 1,
        *,
        bypass: bool = False,
        native: bool = False,
    ) -> None:
        p = host.properties
        self.host = host
        self.workload = workload
        self.system = System()
        self.milestones = Milestones(workload, rx, tx, bypass)
        self.window = Window(self.system, RequestTable(self.milestones.stages, self.milestones.names))
        memory = GuestMemory((RINGS + BUFFER * buffers) * pairs)
        self.machine = Machine(self.system, self.window, memory, workload.flows)
        # On each vCPU: those of its pairs, then the timer's, then the reschedule interrupt's.
        self.pairs_a_vcpu = -(-pairs // vcpus)
        timer = vectors * self.pairs_a_vcpu
        several = vcpus > 1
        self.vcpus = [
            Vcpu(
                self.machine,
                timer + 1 + several,
                number,
                timer + 1 if several else -1,
                apicv=bool(p["apicv"].value),
                pv_eoi=bool(p["pv_eoi"].value),
                halt_poll_max=int(p["halt_poll_ns"].value),
                grow=int(p["halt_poll_grow"].value),
                grow_start=int(p["halt_poll_grow_start"].value),
                shrink=int(p["halt_poll_shrink"].value),
                native=native,
            )
            for number in range(vcpus)
        ]
        self.vcpu = self.vcpus[0]
        flows = workload.flows + (workload.background > 0)
        fair = p["qdisc"].value == "fq"
        self.network = Network(
            self.machine,
            self.milestones,
            frame=workload.frame,
            wire_bytes=workload.wire_bytes,
            propagation=int(p["wire_propagation"].value),
            tap_limit=max(1, int(p["tap_queue"].value)),
            queues=pairs,
            bypass=bypass,
            flows=flows,
            qdisc=Qdisc(fair, flows) if (fair or workload.streams) and not bypass else None,
            nic_tso=bool(p["nic_tso"].value),
            nic_gro=bool(p["nic_gro"].value),
        )
        self.machine.parts["network"] = self.network
        self.sockets = [
            Socket(
                self.machine,
                self.milestones,
                self.vcpus[i % pairs % vcpus],
                workload.size,
                workload.depth,
                i,
                workload.stream,
                workload.received[i],
            )
            for i in range(workload.flows)
        ]
        if workload.background:
            # The stream's is the flow after the others.
            i = workload.flows
            vcpu, size, window = self.vcpus[i % pairs % vcpus], workload.background, workload.background_depth
            received = workload.received[i]
            self.sockets.append(Socket(self.machine, self.milestones, vcpu, size, window, i, True, received))
        self.socket = self.sockets[0]
        self.client = Client(self.machine, self.network, self.milestones, workload)
        self.applications: list[Application] = []
        by_vcpu = [[s for s in self.sockets if s.vcpu is vcpu] for vcpu in self.vcpus]
        runqueues = [RunQueue(self.machine, v, len(mine)) for v, mine in zip(self.vcpus, by_vcpu, strict=True)]
        timers = [GuestTimer(vcpu, timer) for vcpu in self.vcpus]
        for s in self.sockets:
            task = by_vcpu[s.vcpu.number].index(s)
            runqueue = runqueues[s.vcpu.number]
            kind = workload.kind
            if s.number == workload.flows:
                kind = SINK if s.received else STREAM
            a = Application(self.machine, s, runqueue, task, self.client, workload, timers[s.vcpu.number], kind)
            self.applications.append(a)
        self.application = self.applications[0]
        if workload.kind == TX and workload.open_loop:
            Timetable(self.machine, self.applications[: workload.flows])
            for each in timers:
                each.install()
