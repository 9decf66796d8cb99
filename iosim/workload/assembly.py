"""What every network path is put together from, but for the guest's NIC and its back end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from iosim.engine.system import System
from iosim.guest.scheduler import RunQueue
from iosim.guest.socket import Socket
from iosim.host.hosts import Host
from iosim.host.kvm import Vcpu
from iosim.host.machine import Machine
from iosim.host.network import Network, TapQueue
from iosim.host.nic_receive import install_nic
from iosim.host.qdisc import Qdisc
from iosim.requests import RequestTable, Stage
from iosim.ring.memory import GuestMemory
from iosim.window import Window
from iosim.workload.application import Application, GuestTimer, Timeouts, Timetable
from iosim.workload.client import Client
from iosim.workload.host_peer import HostLoad, HostProcess, host_processes, install
from iosim.workload.path import Milestones
from iosim.workload.spec import REQUEST, RR, RX, SINK, STREAM, TX, Workload

RINGS = 256 << 10
"""Bytes of guest memory for rings: the largest, of 4096 descriptors both ways, fit well."""
BUFFER = 2048
"""Bytes of guest memory for a packet's buffer."""


class GuestRoom:
    """One guest of a machine room: what a model connects a NIC to.

    Args:
        room: The machine room.
        number: The guest's place among those of the room.
        timer: The vector of each vCPU's timer; those of its devices stand before it.

    Attributes:
        side: Which end of its flows it is: 0, but 1 for the server or receiver between guests.
        milestones: Those of its side.
        tap: Its tap's queues, by pair.
        vcpus: By number.
        sockets: Of all flows on its side, by the flow's number; only its own ever get a packet here.
        mine, applications: Its own sockets and their applications. Place ``i`` is of pair ``i`` modulo ``pairs``, and
            pair ``i`` of vCPU ``i`` modulo ``vcpus``.
        vcpu, socket, application: The first, for a path that has one of each.
    """

    def __init__(self, room: NetworkRoom, number: int, timer: int) -> None:
        p = room.host.properties
        self.number = number
        self.several = room.vms > 1
        self.pairs = room.pairs
        self.host = room.host
        self.workload = room.workload
        self.side = number % room.workload.sides
        self.system = room.system
        self.machine = room.machine
        self.milestones = room.views[self.side]
        self.pairs_a_vcpu = room.pairs_a_vcpu
        with self.names():
            self.vcpus = [
                Vcpu(
                    room.machine,
                    timer + 1 + (room.vcpus_a_guest > 1),
                    i,
                    timer + 1 if room.vcpus_a_guest > 1 else -1,
                    apicv=bool(p["apicv"].value),
                    pv_eoi=bool(p["pv_eoi"].value),
                    halt_poll_max=int(p["halt_poll_ns"].value),
                    grow=int(p["halt_poll_grow"].value),
                    grow_start=int(p["halt_poll_grow_start"].value),
                    shrink=int(p["halt_poll_shrink"].value),
                    native=room.native,
                )
                for i in range(room.vcpus_a_guest)
            ]
        self.vcpu = self.vcpus[0]
        self.network: Network
        self.tap: list[TapQueue] = []
        self.sockets: list[Socket] = []
        self.mine: list[Socket] = []
        self.applications: list[Application] = []
        self.timers: list[GuestTimer] = []

    @property
    def socket(self) -> Socket:
        """The first of its sockets."""
        return self.mine[0]

    @property
    def application(self) -> Application:
        """The first of its applications."""
        return self.applications[0]

    def names(self) -> AbstractContextManager[None]:
        """Name threads and processes that are added meanwhile as this guest's.

        Of several guests the threads are ``vm0-vcpu0``, ``vm1-vcpu0``; the first one's processes have the names of an
        only guest's (`iosim.engine.system.instance`).
        """
        thread = f"vm{self.number}-" if self.several else ""
        return self.system.prefixed(thread, f"vm{self.number} " if self.number else "")

    def plug(self, network: Network) -> None:
        """Connect the guest to its tap."""
        self.network = network
        self.tap = network.tap[self.number * self.pairs : (self.number + 1) * self.pairs]

    def vcpu_of(self, place: int) -> Vcpu:
        """Return the vCPU of one of its sockets, by the place that it has or will have in ``mine``."""
        return self.vcpus[place % self.pairs % len(self.vcpus)]


class NetworkRoom:
    """A machine room with guests, their taps on one bridge, a physical NIC and a client at the end of the wire.

    Of ``vms`` guests flow ``i`` is of guest ``i`` modulo ``vms``; between guests every other one is at the far end:
    guests 0 and 1 have a flow between them, 2 and 3 the next. Of a guest's own flows the first belongs to its queue
    pair 0, the next to pair 1 and so on, and pair ``i`` to vCPU ``i`` modulo ``vcpus``: interrupts, softirq and
    application of a flow are on one vCPU, as after ``set_irq_affinity`` and ``taskset``. What comes for a flow before
    it has sent anything may still go to another pair (see `iosim.host.network.automq`).

    The guests' memory is one object, of which each has parts of its own.

    Args:
        host: Costs and properties.
        workload: What is asked.
        rx, tx: The path's stages in both directions (see `Milestones`).
        vectors: Interrupt vectors of a queue pair of a guest's NIC.
        buffers: Packet buffers that a guest's driver allocates for a queue pair.
        pairs: Queue pairs of a guest's NIC.
        vcpus: vCPUs of a guest, no more than pairs.
        vms: Guests; between guests an even number.
        bypass: The NIC is not the host kernel's: no tap, no bridge, none of the host's softirq.
        native: No guest: driver and application run on the host's own CPUs.

    Attributes:
        views: The milestones of either side (see `Milestones`); ``milestones`` are the first.
        guests: By number.
        vcpus, sockets, applications, vcpu, socket, application: The first guest's, for a path that has one.
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
        vms: int = 1,
        *,
        bypass: bool = False,
        native: bool = False,
    ) -> None:
        p = host.properties
        self.host = host
        self.workload = workload
        self.system = System()
        self.views = [Milestones(workload, rx, tx, bypass, side) for side in range(workload.sides)]
        self.milestones = self.views[0]
        self.window = Window(self.system, RequestTable(self.milestones.stages, self.milestones.names))
        memory = GuestMemory((RINGS + BUFFER * buffers) * pairs * vms)
        self.machine = Machine(self.system, self.window, memory, workload.flows)
        self.pairs = pairs
        self.vms = vms
        self.vcpus_a_guest = vcpus
        self.native = native
        # On each vCPU: those of its pairs, then the timer's, then the reschedule interrupt's.
        self.pairs_a_vcpu = -(-pairs // vcpus)
        timer = vectors * self.pairs_a_vcpu
        self.guests = [GuestRoom(self, number, timer) for number in range(vms)]
        # The stream's is the flow after the others.
        flows = workload.flows + (workload.background > 0)
        sides = workload.sides
        groups = vms // sides
        homes = [[flow % groups * sides + side for flow in range(flows)] for side in range(sides)]
        fair = p["qdisc"].value == "fq"
        self.network = Network(
            self.machine,
            self.milestones,
            frame=workload.frame,
            wire_bytes=workload.wire_bytes,
            propagation=int(p["wire_propagation"].value),
            tap_limit=max(1, int(p["tap_queue"].value)),
            queues=pairs,
            guests=vms,
            homes=homes,
            views=self.views,
            bypass=bypass,
            qdisc=Qdisc(fair, flows) if (fair or workload.streams) and not bypass and not workload.with_host else None,
            nic_tso=bool(p["nic_tso"].value),
            nic_gro=bool(p["nic_gro"].value),
        )
        self.machine.parts["network"] = self.network
        if not (bypass or workload.between_guests or workload.with_host):
            install_nic(self.network)
        for guest in self.guests:
            guest.plug(self.network)
        for side in homes:
            sockets = [self._socket(self.guests[home], flow) for flow, home in enumerate(side)]
            for home in set(side):
                self.guests[home].sockets = sockets
        self.client = Client(self.machine, self.network, self.milestones, workload)
        on_host: list[HostProcess] = []
        if workload.with_host:
            on_host = host_processes(self.machine, self.network, self.client, self.milestones, workload)
        for guest in self.guests:
            with guest.names():
                self._applications(guest, timer)
        first = self.guests[0]
        self.vcpus, self.sockets, self.applications = first.vcpus, first.sockets, first.applications
        self.vcpu, self.socket, self.application = first.vcpu, first.socket, first.application
        self._clocks(homes, on_host)

    def _socket(self, guest: GuestRoom, flow: int) -> Socket:
        """Give a guest its socket of a flow; that of the background stream is the one after the workload's."""
        w = self.workload
        vcpu = guest.vcpu_of(len(guest.mine))
        with guest.names():
            size, depth, stream = w.size, w.depth, w.stream
            if flow == w.flows:
                size, depth, stream = w.background, w.background_depth, True
            made = Socket(self.machine, guest.milestones, vcpu, size, depth, flow, stream, w.received(guest.side)[flow])
        guest.mine.append(made)
        return made

    def _clocks(self, homes: list[list[int]], on_host: list[HostProcess]) -> None:
        """Add whose time comes: open loops of guests, senders of what was lost, the timers that tell both."""
        w = self.workload
        groups = len(self.guests) // w.sides
        by_side = [[self.guests[home].applications[flow // groups] for flow, home in enumerate(s)] for s in homes]
        makers = by_side[0]
        senders = list(makers)
        if w.background and w.sends_background(len(by_side) - 1):
            senders[-1] = by_side[-1][-1]
        asks = w.kind == RR and w.between_guests
        scheduled = w.open_loop and (w.kind == TX or asks)
        streams = w.streams and (w.between_guests or w.with_host)
        if scheduled:
            Timetable(self.machine, makers[: w.flows])
        if w.between_guests and (streams or (asks and not scheduled)):
            Timeouts(self.machine, senders)
        if w.with_host:
            install(HostLoad(self.machine, on_host, senders), w)
        for guest in self.guests:
            if (scheduled and guest.side == 0) or (asks and guest.side == 0) or streams:
                with guest.names():
                    for each in guest.timers:
                        each.install()

    def _applications(self, guest: GuestRoom, timer: int) -> None:
        """Give a guest its applications, and each of its vCPUs what they share."""
        by_vcpu = [[s for s in guest.mine if s.vcpu is vcpu] for vcpu in guest.vcpus]
        runqueues = [RunQueue(self.machine, v, len(mine)) for v, mine in zip(guest.vcpus, by_vcpu, strict=True)]
        guest.timers = [GuestTimer(vcpu, timer) for vcpu in guest.vcpus]
        kind = self.workload.kind
        if self.workload.between_guests:
            ends = (REQUEST, RR) if kind == RR else (TX, RX)
            kind = ends[guest.side]
        behind = STREAM if self.workload.sends_background(guest.side) else SINK
        for s in guest.mine:
            number = s.vcpu.number
            task = by_vcpu[number].index(s)
            guest.applications.append(
                Application(
                    self.machine,
                    s,
                    runqueues[number],
                    task,
                    self.client,
                    self.workload,
                    guest.timers[number],
                    behind if s.number == self.workload.flows else kind,
                )
            )
