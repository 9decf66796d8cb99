"""prodcons: a saturated producer and consumer over one virtqueue, to see what notifications cost.

The producer is a guest's driver, the consumer a vhost worker; both work flat out and share nothing but a
split ring. Whoever is faster catches up with the other and has to sleep: the consumer on an empty ring, the
producer on a full one. Each sleep costs the *other* side a notification, and while the sleeper takes its time
to start, work piles up and puts off the next sleep. From this alone follow five regimes with closed forms
(docs/background/notification.md).

The ring's own steps take no time here. All time is in the costs that the settings give: W, the work per item;
N, what a notification costs the side that sends it; S, from the end of the notification to the first step of
the side that slept; and the window between arming the event index and the second look.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from pydantic import Field

from iosim.effects import Effect, notify, spend, spin, wait
from iosim.engine.distributions import Distribution
from iosim.engine.system import System
from iosim.errors import IosimError
from iosim.host import counters as count
from iosim.host.costs import (
    CONSUMER_NOTIFY,
    CONSUMER_REARM,
    CONSUMER_START,
    CONSUMER_WORK,
    PRODUCER_NOTIFY,
    PRODUCER_REARM,
    PRODUCER_START,
    PRODUCER_WORK,
)
from iosim.host.hosts import Host
from iosim.host.machine import Machine
from iosim.host.units import parse_cost
from iosim.model import Model
from iosim.requests import RequestTable, Stage, mark, mark_past
from iosim.ring.errors import raise_for
from iosim.ring.memory import GuestMemory, allocate
from iosim.ring.queue import (
    add,
    arm_avail_event,
    arm_used_event,
    avail_in_ring,
    disable_cb,
    empty,
    get_used,
    kick_prepare,
    more_used,
    new_queue,
    pop,
    push,
    set_notification,
    should_notify,
    used_beyond,
)
from iosim.settings import CostText, Flag, QueueSize, Settings, Whole
from iosim.window import Window, complete, new_request
from iosim.workload.path import WAIT_NOTIFICATION, WAIT_QUEUE, WORK
from iosim.workload.spec import DEFAULT_DEPTH, Workload

ITEM: Final = 64
"""Bytes of an item's buffer; its one descriptor points there."""
POLL_LIMIT: Final = 10_000_000_000
"""ps (10 ms) after which a poller that has seen nothing happen sleeps until something does."""

AVAILABLE: Final = 1
KICKED: Final = 2
AWAKE: Final = 3
SEEN: Final = 4
MILESTONES: Final = ("created", "available", "kicked", "awake", "seen", "consumed")
STAGES: Final = (
    Stage("producer's work", "guest", WORK),
    Stage("kick", "exit", WORK),
    Stage("consumer asleep", "back end", WAIT_NOTIFICATION),
    Stage("ring", "back end", WAIT_QUEUE),
    Stage("consumer's work", "back end", WORK),
)


class ProdconsSettings(Settings):
    """``device.*`` of prodcons.

    The defaults are a pair that was measured, guest driver and vhost worker: ``notification_regimes`` and
    ``notification_costs_vhost`` in models/anchors/published.toml (Rizzo et al., ANCS 2016, and raw data).
    """

    queue_size: QueueSize = Field(512, ge=1, le=1024, description="L: descriptors, one an item; measured example")
    wp: CostText = Field("2068ns", description="Wp: the producer's work per item; measured example")
    wc: CostText = Field("2000ns", description="Wc: the consumer's work per item; measured example")
    np: CostText = Field("1098ns±41ns", description="Np: the producer's cost of a kick; guest_kick")
    nc: CostText = Field("562ns±5ns", description="Nc: the consumer's cost of an interrupt; irq_injection")
    sp: CostText = Field(
        "28us..32us", description="Sp: from interrupt to producer's start; guest_wakeup_after_irq (fitted)"
    )
    sc: CostText = Field(
        "407ns±5ns", description="Sc: from kick to consumer's start; worker_start_after_kick (idle=poll)"
    )
    kp: Whole = Field(1, ge=1, le=1024, description="Kp: items that wake the consumer; 1 is what QEMU and vhost arm")
    kc: Whole = Field(1, ge=1, le=1024, description="Kc: items consumed that wake the producer (Linux: up to 3/4 of L)")
    rearm: CostText = Field(
        "20ns..40ns", description="on both sides, from arming the event index to the second look; assumed"
    )
    event_idx: Flag = Field(True, description="VIRTIO_F_EVENT_IDX: suppression by event index, else by flags")
    poll: Flag = Field(False, description="both sides poll the ring; no notifications, only wp and wc count")


def costs(settings: ProdconsSettings) -> dict[str, Distribution]:
    """Return the distributions that the settings give, by the costs' names in the catalogue."""
    rearm = parse_cost(settings.rearm, "device.rearm")
    return {
        "producer_work": parse_cost(settings.wp, "device.wp"),
        "consumer_work": parse_cost(settings.wc, "device.wc"),
        "producer_notify": parse_cost(settings.np, "device.np"),
        "consumer_notify": parse_cost(settings.nc, "device.nc"),
        "producer_start": parse_cost(settings.sp, "device.sp"),
        "consumer_start": parse_cost(settings.sc, "device.sc"),
        "producer_rearm": rearm,
        "consumer_rearm": rearm,
    }


class Pair:
    """The state of both sides.

    Attributes:
        driver: The producer's side of the ring; ``device`` the consumer's.
        free: Addresses of buffers that hold no item.
        kick, interrupt: The channels on which consumer and producer are notified.
        kp, kc: How many items have to be there, and how many consumed, to wake the other side.
        polling: Nobody notifies; both sides poll.
        consumer_polls, producer_polls: It looks at the ring just now and sees whatever is done to it.
        awake: When the consumer last woke (ps).
    """

    __slots__ = (
        "awake", "consumer_polls", "device", "driver", "free", "interrupt", "kc", "kick", "kp", "machine",
        "polling", "producer_polls",
    )  # fmt: skip

    def __init__(self, machine: Machine, settings: ProdconsSettings) -> None:
        size = settings.queue_size
        self.machine = machine
        self.driver, self.device = new_queue(machine.memory, size, settings.event_idx, start=1)
        self.free = [allocate(machine.memory, ITEM, ITEM) for _ in range(size)]
        self.kick = machine.system.channel("kick")
        self.interrupt = machine.system.channel("interrupt")
        self.kp = settings.kp
        self.kc = settings.kc
        self.polling = settings.poll
        self.consumer_polls = False
        self.producer_polls = False
        self.awake = 0
        # A driver that is at work wants no interrupts; the device wants kicks until it works.
        disable_cb(self.driver)
        # This pair is taken to have been at work for long. On a new queue the first item would interrupt, asked
        # for or not: signalled_used is not valid yet, and used_event is parked at 0. One interrupt too early can
        # keep the pair for ever in a state where all come too early (docs/background/notification.md).
        should_notify(self.device)


# -- the producer ------------------------------------------------------------------------------------------


def producer(p: Pair) -> Generator[Effect, None, None]:
    """Make items as long as there is room for one more, and sleep on a full ring; end when the run does."""
    m = p.machine
    while not m.window.draining:
        take_back(p)
        if p.driver.num_free > 0:
            row = yield from new_request(m.window, m.clock.now)
            yield spend(PRODUCER_WORK)
            yield from make_available(p, row)
        elif p.polling:
            yield from poll_full_ring(p)
        else:
            yield from sleep_on_full_ring(p)
    if p.kp > 1 and not p.polling:
        # The consumer may sleep beside fewer than kp items, and there will be no more.
        yield from send_kick(p)


def take_back(p: Pair) -> None:
    """Take consumed items from the used ring, once there is no room without."""
    if p.driver.num_free == 0:
        buffer = raise_for(get_used(p.driver))
        while buffer >= 0:
            p.free.append(buffer)
            buffer = raise_for(get_used(p.driver))


def make_available(p: Pair, row: int) -> Generator[Effect, None, None]:
    """Add an item to the ring; kick if the consumer asks for it."""
    m = p.machine
    buffer = p.free.pop()
    m.memory.u64[buffer >> 3] = row
    p.driver.seg_addr[0] = buffer
    p.driver.seg_len[0] = ITEM
    raise_for(add(p.driver, 1, 0, buffer))
    mark(m.table, row, AVAILABLE, m.clock.now)
    if p.polling:
        if p.consumer_polls:
            yield notify(p.kick)
    elif kick_prepare(p.driver):
        yield from send_kick(p)
        mark(m.table, row, KICKED, m.clock.now)
    else:
        m.counters.n[count.KICKS_SUPPRESSED] += 1


def send_kick(p: Pair) -> Generator[Effect, None, None]:
    """Np: the whole kick as the guest sees it; the consumer's start begins when it is over."""
    p.machine.counters.n[count.KICKS] += 1
    yield spend(PRODUCER_NOTIFY)
    yield notify(p.kick)


def sleep_on_full_ring(p: Pair) -> Generator[Effect, None, None]:
    """Ask for an interrupt when kc items have been consumed, look again, sleep; starting takes Sp."""
    arm_used_event(p.driver, p.kc - 1)
    yield spend(PRODUCER_REARM)
    if not used_beyond(p.driver, p.kc - 1):
        yield wait(p.interrupt, PRODUCER_START)
        if not more_used(p.driver):
            p.machine.counters.n[count.INTERRUPTS_SPURIOUS] += 1
    disable_cb(p.driver)


def poll_full_ring(p: Pair) -> Generator[Effect, None, None]:
    """Look at the used index until it moves."""
    p.producer_polls = True
    yield spin(p.interrupt, POLL_LIMIT)
    if not used_beyond(p.driver, 0):
        yield wait(p.interrupt)
    p.producer_polls = False


# -- the consumer ------------------------------------------------------------------------------------------


def consumer(p: Pair) -> Generator[Effect, None, None]:
    """Consume what is available, sleep on an empty ring."""
    while True:
        head = raise_for(pop(p.device))
        if head >= 0:
            yield from consume(p, head)
        elif p.polling:
            yield from poll_empty_ring(p)
        else:
            yield from sleep_on_empty_ring(p)


def consume(p: Pair, head: int) -> Generator[Effect, None, None]:
    """Work on an item and give it back; interrupt the producer if it asks for it, which takes Nc."""
    m = p.machine
    row = m.memory.u64[p.device.elem_addr[0] >> 3]
    mark_past(m.table, row, AWAKE, p.awake)
    mark(m.table, row, SEEN, m.clock.now)
    yield spend(CONSUMER_WORK)
    push(p.device, head, 0)
    yield from complete(m.window, row, m.clock.now)
    if p.polling:
        if p.producer_polls:
            yield notify(p.interrupt)
    elif should_notify(p.device):
        m.counters.n[count.INTERRUPTS] += 1
        yield spend(CONSUMER_NOTIFY)
        yield notify(p.interrupt)
    else:
        m.counters.n[count.INTERRUPTS_SUPPRESSED] += 1


def sleep_on_empty_ring(p: Pair) -> Generator[Effect, None, None]:
    """Ask for a kick when kp items are available, look again, sleep; starting takes Sc.

    An item that comes between arming and the second look has been kicked for. That kick finds the consumer at
    work, and wakes it in vain the next time it wants to sleep: a spurious kick.
    """
    m = p.machine
    arm_avail_event(p.device, p.device.last_avail_idx + p.kp - 1)
    yield spend(CONSUMER_REARM)
    if raise_for(avail_in_ring(p.device)) < p.kp:
        yield wait(p.kick, CONSUMER_START)
        p.awake = m.clock.now
        if empty(p.device):
            m.counters.n[count.KICKS_SPURIOUS] += 1
    set_notification(p.device, False)


def poll_empty_ring(p: Pair) -> Generator[Effect, None, None]:
    """Look at the available index until it moves."""
    p.consumer_polls = True
    yield spin(p.kick, POLL_LIMIT)
    if empty(p.device):
        yield wait(p.kick)
    p.consumer_polls = False


# -- putting it together -----------------------------------------------------------------------------------


def build(_host: Host, workload: Workload, settings: ProdconsSettings) -> Machine:
    """Put the pair together for one run.

    Raises:
        IosimError: Thresholds at which both sides may sleep for ever, work that takes no time on either
            side, or workload settings, which a saturated pair has no use for.
    """
    _check_workload(workload)
    _check_settings(settings)
    system = System()
    window = Window(system, RequestTable(STAGES, MILESTONES))
    # The ring takes at most 32 bytes a descriptor, and each item has a buffer; a page for alignment.
    machine = Machine(system, window, GuestMemory(4096 + settings.queue_size * (32 + ITEM)))
    pair = Pair(machine, settings)
    machine.parts["driver"] = pair.driver
    machine.parts["device"] = pair.device
    system.process("producer", producer(pair), system.thread("producer"))
    system.process("consumer", consumer(pair), system.thread("consumer"))
    return machine


def _check_workload(w: Workload) -> None:
    given = {
        "rate": w.open_loop,
        "think_time": w.think_time > 0,
        "peer_delay": w.peer_delay > 0,
        "depth": w.depth != DEFAULT_DEPTH[w.name],
    }
    for name, used in given.items():
        if used:
            raise IosimError(
                "prodcons is saturated, as fast as device.wp and device.wc allow; leave this out",
                f"workload.{name}",
            )


def _check_settings(s: ProdconsSettings) -> None:
    if parse_cost(s.wp).mean == 0 and parse_cost(s.wc).mean == 0:
        raise IosimError("wp and wc are both 0: items would take no time; give one of them some", "device.wp")
    for name, threshold in (("kp", s.kp), ("kc", s.kc)):
        if threshold > 1 and not s.event_idx:
            raise IosimError("a threshold needs the event index; leave it at 1, or event_idx on", f"device.{name}")
    if s.kp + s.kc > s.queue_size + 1:
        raise IosimError(
            f"kp + kc = {s.kp + s.kc} lets both sides sleep for ever, with {s.kp - 1} items available and "
            f"{s.kc - 1} consumed; with a queue size of {s.queue_size} the sum may be {s.queue_size + 1}",
            "device.kp",
        )


MODEL: Final = Model(
    name="prodcons",
    summary="a saturated producer and consumer over one virtqueue: what notifications cost, in five regimes",
    settings=ProdconsSettings,
    build=build,
    workloads=("tx",),
    costs=costs,
)
