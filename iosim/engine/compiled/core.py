"""The engine's rules once more, on flat arrays: what `SimpyEngine` does with SimPy's events, event by event.

This module is written in the subset of Python that `translate` understands, like the models, and is compiled together
with them. Nothing here may differ from `iosim.engine.simpy_engine`: tests compare both, time stamp by time stamp.

Processes are called contexts, by number; -1 is "none" everywhere. The event queue is a binary heap ordered by
(time, sequence), where the sequence counts the timers as they are set: SimPy's order.
"""

from __future__ import annotations

from typing import Final

from iosim.engine.draws import cell, random_bits
from iosim.engine.system import Clock

BLOCKED: Final = 0
WAKING: Final = 1
READY: Final = 2
DONE: Final = 3

# Why `run` returns.
FINISHED: Final = 0
OBSERVE: Final = 1
GROW: Final = 2
NO_EVENTS: Final = 3
FAILED: Final = 4

# What an event in the queue is about: a context's timer, a signal on its way, the end of a time slice.
TIMER: Final = 0
SIGNAL: Final = 1
SLICE: Final = 2
SHIFT: Final = 2

IN_A_ROW: Final = 512
"""Spends that may end without a timer before the loop is entered again: far fewer than there is room for requests."""

# What went wrong in a model.
TWO_WAITERS: Final = 1
NOT_OWNER: Final = 2
RING: Final = 3
FULL: Final = 4
CROWDED: Final = 5


class Core:
    """The state of the engine; lists are indexed by context, thread, CPU, channel, lock or cost.

    Args:
        contexts, threads, cpus, channels, locks, costs: How many there are.
    """

    def __init__(self, contexts: int, threads: int, cpus: int, channels: int, locks: int, costs: int) -> None:
        self.clock: Clock
        self.contexts = contexts
        self.costs = costs
        self.error = 0
        self.error_at = 0
        self.observer = -1
        self.observing = False
        self.shared_cpus = False
        self.timeslice = 0
        self.switch = -1
        self.granularity = -1
        self.ready_count = 0
        # contexts
        self.state = [READY] * contexts
        self.level = [0] * contexts
        self.thread = [-1] * contexts
        self.remaining = [0] * contexts
        self.started = [0] * contexts
        self.ran = [0] * contexts
        self.polled = [0] * contexts
        self.locked = [0] * contexts
        self.lined_up = [-1] * contexts
        self.timer = [0] * contexts
        self.channel = [-1] * contexts
        self.wake = [-1] * contexts
        self.spinning = [-1] * contexts
        self.ready_at = [0] * contexts
        self.next_in_line = [-1] * contexts
        self.process = [-1] * contexts
        self.frame = [0] * contexts
        # random streams: a context's costs stand at index_base[context] + cost
        self.stream_key = [0] * (contexts * costs)
        self.stream_index = [0] * (contexts * costs)
        self.constant = [0] * costs
        self.table = [0] * costs
        self.rate = [0] * costs
        self.quantiles = [0]
        self.switch_key = [0] * threads
        self.switch_index = [0] * threads
        # threads
        self.parked = [-1] * threads
        self.current = [-1] * threads
        self.cpu = [-1] * threads
        self.own_cpu = [-1] * threads
        self.priority = [0] * threads
        self.allowed = [True] * (threads * cpus)
        self.queued = [False] * threads
        self.dirty = [False] * threads
        self.outranked = [False] * threads
        self.blocked_since = [True] * threads
        self.busy = [0] * threads
        self.offset = [0] * threads
        self.switches = [0] * threads
        self.first_context = [0] * threads
        self.last_context = [0] * threads
        self.by_thread = [0] * contexts
        # CPUs
        self.cpus = cpus
        self.cpu_thread = [-1] * cpus
        self.cpu_last = [-1] * cpus
        self.cpu_idle = [True] * cpus
        self.slice_timer = [0] * cpus
        self.queue = [0] * (threads + 1)
        self.queue_length = 0
        # channels and locks
        self.latched = [False] * channels
        self.waiter = [-1] * channels
        self.owner = [-1] * locks
        self.line_first = [-1] * locks
        self.line_last = [-1] * locks
        # what became ready, in order
        self.dirty_queue = [0] * (threads + 1)
        self.dirty_first = 0
        self.dirty_count = 0
        self.free_queue = [0] * (contexts + 1)
        self.free_first = 0
        self.free_count = 0
        # the event queue
        self.heap_time = [0] * 4096
        self.heap_sequence = [0] * 4096
        self.heap_what = [0] * 4096
        self.heap_size = 0
        self.sequence = 0
        self.until = 0
        self.in_a_row = 0
        # one event beside the heap: most timers are due next, and never enter it
        self.next_full = False
        self.next_time = 0
        self.next_sequence = 0
        self.next_what = 0


def resume(core: Core, context: int) -> int:
    """Continue a context's code until it waits: made by the translator, of all processes."""
    raise NotImplementedError


def draw_cost(core: Core, context: int, cost: int, amount: int) -> int:
    """One draw of a cost in a context's stream, plus its rate for ``amount`` bytes (ps)."""
    if cost < 0:
        return 0
    duration = core.constant[cost]
    if duration < 0:
        place = context * core.costs + cost
        index = core.stream_index[place]
        core.stream_index[place] = index + 1
        duration = core.quantiles[core.table[cost] + cell(random_bits(core.stream_key[place], index))]
    if amount != 0:
        duration += amount * core.rate[cost] >> 10
    return duration


# -- the event queue --------------------------------------------------------------------------------------------


def push_event(core: Core, delay: int, what: int) -> int:
    """Set a timer; return its sequence number, above 0."""
    time = core.clock.now + delay
    core.sequence += 1
    sequence = core.sequence
    if not core.next_full:
        core.next_full = True
        core.next_time = time
        core.next_sequence = sequence
        core.next_what = what
    elif time < core.next_time:
        push_heap(core, core.next_time, core.next_sequence, core.next_what)
        core.next_time = time
        core.next_sequence = sequence
        core.next_what = what
    else:
        push_heap(core, time, sequence, what)
    return sequence


def push_heap(core: Core, time: int, sequence: int, what: int) -> None:
    """Put an event into the heap."""
    i = core.heap_size
    if i >= len(core.heap_time):
        core.error = FULL
        return
    core.heap_size = i + 1
    while i > 0:
        parent = (i - 1) >> 1
        if core.heap_time[parent] < time or (
            core.heap_time[parent] == time and core.heap_sequence[parent] < sequence
        ):
            break
        core.heap_time[i] = core.heap_time[parent]
        core.heap_sequence[i] = core.heap_sequence[parent]
        core.heap_what[i] = core.heap_what[parent]
        i = parent
    core.heap_time[i] = time
    core.heap_sequence[i] = sequence
    core.heap_what[i] = what


def first_is_beside(core: Core) -> bool:
    """Whether the first event is the one beside the heap."""
    if not core.next_full:
        return False
    return (
        core.heap_size == 0
        or core.next_time < core.heap_time[0]
        or (core.next_time == core.heap_time[0] and core.next_sequence < core.heap_sequence[0])
    )


def pop_heap(core: Core) -> None:
    """Remove the heap's first event."""
    n = core.heap_size - 1
    core.heap_size = n
    time = core.heap_time[n]
    sequence = core.heap_sequence[n]
    what = core.heap_what[n]
    i = 0
    child = 1
    while child < n:
        right = child + 1
        if right < n and (
            core.heap_time[right] < core.heap_time[child]
            or (
                core.heap_time[right] == core.heap_time[child]
                and core.heap_sequence[right] < core.heap_sequence[child]
            )
        ):
            child = right
        if core.heap_time[child] > time or (
            core.heap_time[child] == time and core.heap_sequence[child] > sequence
        ):
            break
        core.heap_time[i] = core.heap_time[child]
        core.heap_sequence[i] = core.heap_sequence[child]
        core.heap_what[i] = core.heap_what[child]
        i = child
        child = 2 * i + 1
    core.heap_time[i] = time
    core.heap_sequence[i] = sequence
    core.heap_what[i] = what


# -- effects: each returns whether the context now waits --------------------------------------------------------


def outranked(core: Core, context: int) -> bool:
    """Whether a process of a higher level became ready on this very thread."""
    thread = core.thread[context]
    return thread >= 0 and core.outranked[thread]


def perform_spend(core: Core, context: int, cost: int, amount: int, _1: int) -> bool:
    """`effects.spend`."""
    duration = draw_cost(core, context, cost, amount)
    if duration == 0:
        return False
    thread = core.thread[context]
    if thread >= 0 and core.outranked[thread]:
        core.remaining[context] = duration
        return True
    if nothing_before(core, core.clock.now + duration):
        # Nothing else happens until this is over: it is over now, without a timer.
        core.clock.now += duration
        core.in_a_row -= 1
        if thread >= 0:
            core.busy[thread] += duration
            core.ran[context] += duration
        return False
    core.remaining[context] = duration
    set_timer(core, context, duration)
    return True


def nothing_before(core: Core, time: int) -> bool:
    """Whether nothing is ready and nothing is due before ``time`` or at it.

    Only so often in a row, so that the loop gets to look at the room that is left for requests.
    """
    return (
        core.in_a_row > 0
        and core.free_count == 0
        and core.dirty_count == 0
        and (not core.next_full or time < core.next_time)
        and (core.heap_size == 0 or time < core.heap_time[0])
        and time < core.until
    )


def perform_notify(core: Core, context: int, channel: int, _1: int, _2: int) -> bool:
    """`effects.notify`."""
    notify_channel(core, channel)
    return outranked(core, context)


def perform_wait(core: Core, context: int, channel: int, wake: int, _1: int) -> bool:
    """`effects.wait`."""
    if core.latched[channel]:
        core.latched[channel] = False
        return False
    wait_on(core, context, channel, wake)
    block(core, context)
    return True


def wait_on(core: Core, context: int, channel: int, wake: int) -> None:
    """Make a context the one that waits on a channel."""
    if core.waiter[channel] >= 0:
        core.error = TWO_WAITERS
        core.error_at = channel
    core.waiter[channel] = context
    core.channel[context] = channel
    core.wake[context] = wake


def perform_wait_until(core: Core, context: int, channel: int, wake: int, deadline: int) -> bool:
    """`effects.wait_until`."""
    if core.latched[channel]:
        core.latched[channel] = False
        return False
    wait_on(core, context, channel, wake)
    set_timer(core, context, max(0, deadline - core.clock.now))
    block(core, context)
    return True


def perform_take(core: Core, context: int, lock: int, wake: int, _1: int) -> bool:
    """`effects.take`."""
    if core.owner[lock] < 0:
        core.owner[lock] = context
        return False
    core.next_in_line[context] = -1
    if core.line_last[lock] < 0:
        core.line_first[lock] = context
    else:
        core.next_in_line[core.line_last[lock]] = context
    core.line_last[lock] = context
    core.lined_up[context] = core.clock.now
    core.wake[context] = wake
    block(core, context)
    return True


def perform_give(core: Core, context: int, lock: int, _1: int, _2: int) -> bool:
    """`effects.give`."""
    if core.owner[lock] != context:
        core.error = NOT_OWNER
        core.error_at = lock
    heir = core.line_first[lock]
    core.owner[lock] = heir
    if heir >= 0:
        core.line_first[lock] = core.next_in_line[heir]
        if core.line_first[lock] < 0:
            core.line_last[lock] = -1
        wake_context(core, heir)
    return outranked(core, context)


def perform_leave_guest(core: Core, context: int, _1: int, _2: int, _3: int) -> bool:
    """`effects.leave_guest`."""
    thread = core.thread[context]
    core.parked[thread] = context
    core.outranked[thread] = False
    return False


def perform_enter_guest(core: Core, context: int, _1: int, _2: int, _3: int) -> bool:
    """`effects.enter_guest`."""
    core.parked[core.thread[context]] = -1
    return checkpoint(core, context)


def perform_level(core: Core, context: int, value: int, _1: int, _2: int) -> bool:
    """`effects.level`."""
    raised = value >= core.level[context]
    core.level[context] = value
    if raised:
        return False
    return checkpoint(core, context)


def perform_spin(core: Core, context: int, channel: int, limit: int, keeps: int) -> bool:
    """`effects.spin` and `effects.busy_poll`."""
    if core.latched[channel]:
        core.latched[channel] = False
        return False
    thread = core.thread[context]
    wanted = core.queue_length > 0 and (thread < 0 or first_in_line(core, core.cpu[thread]) >= 0)
    if limit <= 0 or (keeps == 0 and wanted):
        return False
    core.remaining[context] = limit
    core.spinning[context] = channel
    core.waiter[channel] = context
    if thread < 0 or not core.outranked[thread]:
        set_timer(core, context, limit)
    return True


def perform_sleep_until(core: Core, context: int, time: int, _1: int, _2: int) -> bool:
    """`effects.sleep_until`."""
    if time <= core.clock.now:
        return False
    set_timer(core, context, time - core.clock.now)
    block(core, context)
    return True


def perform_notify_after(core: Core, context: int, channel: int, cost: int, amount: int) -> bool:
    """`effects.notify_after`."""
    delay = draw_cost(core, context, cost, amount)
    if delay == 0:
        notify_channel(core, channel)
    else:
        push_event(core, delay, channel << SHIFT | SIGNAL)
    return outranked(core, context)


# -- channels, locks, timers ------------------------------------------------------------------------------------


def set_timer(core: Core, context: int, delay: int) -> None:
    """Set a context's timer, in place of the one it had."""
    core.timer[context] = push_event(core, delay, context << SHIFT | TIMER)
    core.started[context] = core.clock.now


def notify_channel(core: Core, channel: int) -> None:
    """Notify a channel."""
    context = core.waiter[channel]
    if context < 0:
        core.latched[channel] = True
    elif core.spinning[context] == channel:
        stop_spinning(core, context)
    elif core.state[context] == BLOCKED:
        core.timer[context] = 0
        wake_context(core, context)


def stop_spinning(core: Core, context: int) -> None:
    """End a poll at once."""
    thread = core.thread[context]
    if core.timer[context] != 0:
        core.timer[context] = 0
        if thread >= 0:
            account(core, context, core.clock.now - core.started[context])
    end_spin(core, context)
    core.remaining[context] = 0
    if thread < 0:
        push_free(core, context)
    else:
        mark_dirty(core, thread)


def account(core: Core, context: int, ran: int) -> None:
    """Add to the times of a context and its thread: it has run, or polled."""
    core.busy[core.thread[context]] += ran
    core.ran[context] += ran
    if core.spinning[context] >= 0:
        core.polled[context] += ran


def end_spin(core: Core, context: int) -> None:
    """The poll is over, by a notification or its limit."""
    core.waiter[core.spinning[context]] = -1
    core.spinning[context] = -1


def block(core: Core, context: int) -> None:
    """A context waits."""
    core.state[context] = BLOCKED
    thread = core.thread[context]
    if thread >= 0:
        mark_dirty(core, thread)


def wake_context(core: Core, context: int) -> None:
    """Begin to wake a blocked context: after one draw of its wake cost it is ready."""
    delay = draw_cost(core, context, core.wake[context], 0)
    core.wake[context] = -1
    if delay != 0:
        core.state[context] = WAKING
        set_timer(core, context, delay)
    else:
        woken(core, context)


def woken(core: Core, context: int) -> None:
    """The wake-up is over: what was notified meanwhile is part of it."""
    channel = core.channel[context]
    if channel >= 0:
        core.latched[channel] = False
        core.waiter[channel] = -1
        core.channel[context] = -1
    make_ready(core, context)


# -- scheduling -------------------------------------------------------------------------------------------------


def push_free(core: Core, context: int) -> None:
    """A context without a thread is ready to run."""
    size = len(core.free_queue)
    place = core.free_first + core.free_count
    if place >= size:
        place -= size
    core.free_queue[place] = context
    core.free_count += 1


def mark_dirty(core: Core, thread: int) -> None:
    """A thread is to be looked at."""
    if not core.dirty[thread]:
        core.dirty[thread] = True
        size = len(core.dirty_queue)
        place = core.dirty_first + core.dirty_count
        if place >= size:
            place -= size
        core.dirty_queue[place] = thread
        core.dirty_count += 1


def make_ready(core: Core, context: int) -> None:
    """A context has something to do."""
    core.state[context] = READY
    core.ready_count += 1
    if core.thread[context] < 0 or core.parked[core.thread[context]] != context:
        # Out of the guest it keeps the place that it had: it has its thread all the while.
        core.ready_at[context] = core.ready_count
    if core.lined_up[context] >= 0:
        # It has the lock, and is awake.
        core.locked[context] += core.clock.now - core.lined_up[context]
        core.lined_up[context] = -1
    thread = core.thread[context]
    if thread < 0:
        push_free(core, context)
    else:
        current = core.current[thread]
        if core.parked[thread] < 0 and current >= 0 and core.level[context] > core.level[current]:
            core.outranked[thread] = True
        mark_dirty(core, thread)


def checkpoint(core: Core, context: int) -> bool:
    """After a lowering of the level: does a process that waited for it run first?"""
    thread = core.thread[context]
    if thread < 0 or pick(core, thread) == context:
        return False
    core.outranked[thread] = True
    mark_dirty(core, thread)
    return True


def pick(core: Core, thread: int) -> int:
    """The context that is to run on a thread, or -1."""
    parked = core.parked[thread]
    if parked >= 0:
        if core.state[parked] == READY:
            return parked
        return -1
    current = core.current[thread]
    best = -1
    if current >= 0 and core.state[current] == READY:
        best = current
    for i in range(core.first_context[thread], core.last_context[thread]):
        context = core.by_thread[i]
        if core.state[context] == READY and context != best:
            if (
                best < 0
                or core.level[context] > core.level[best]
                or (
                    core.level[context] == core.level[best]
                    and best != current
                    and core.ready_at[context] < core.ready_at[best]
                )
            ):
                best = context
    return best


def dispatch(core: Core, thread: int) -> int:
    """Let the right context of a thread run; return the one whose code is to continue now, or -1."""
    core.dirty[thread] = False
    core.outranked[thread] = False
    best = pick(core, thread)
    current = core.current[thread]
    if current >= 0 and current != best:
        suspend(core, current)
        core.current[thread] = -1
    if best < 0:
        release(core, thread)
        return -1
    if core.cpu[thread] < 0:
        acquire(core, thread)
        if core.cpu[thread] < 0:
            return -1
    core.current[thread] = best
    if core.timer[best] != 0:
        return -1
    if core.spinning[best] >= 0 and core.queue_length > 0 and first_in_line(core, core.cpu[thread]) >= 0:
        end_spin(core, best)
        core.remaining[best] = 0
    if core.remaining[best] > 0:
        set_timer(core, best, core.remaining[best])
        return -1
    return best


def suspend(core: Core, context: int) -> None:
    """Stop a running context in the middle of its spend."""
    if core.state[context] == READY and core.timer[context] != 0:
        ran = core.clock.now - core.started[context]
        core.remaining[context] -= ran
        core.timer[context] = 0
        account(core, context, ran)
        if core.remaining[context] == 0 and core.spinning[context] >= 0:
            end_spin(core, context)


# -- CPUs -------------------------------------------------------------------------------------------------------


def may_use(core: Core, thread: int, cpu: int) -> bool:
    """Whether a thread may run on a CPU."""
    return core.allowed[thread * core.cpus + cpu]


def acquire(core: Core, thread: int) -> None:
    """Put a runnable thread on a CPU, or in the run queue."""
    if core.queued[thread]:
        return
    cpu = core.own_cpu[thread]
    woken = cpu < 0 and core.blocked_since[thread] and core.granularity >= 0
    if woken:
        place_woken(core, thread)
    if cpu < 0:
        cpu = idle_cpu(core, thread, -1)
    if cpu < 0:
        victim = find_victim(core, thread, -1)
        if victim < 0 and woken:
            victim = find_unfair(core, thread)
        if victim >= 0:
            cpu = core.cpu[victim]
            displace(core, victim)
    if cpu < 0:
        enqueue(core, thread)
    else:
        put_on_cpu(core, thread, cpu)


def idle_cpu(core: Core, thread: int, but: int) -> int:
    """An idle CPU that a thread may use, the one it ran on last if it can be, or -1; ``but`` does not count."""
    found = -1
    for i in range(core.cpus):
        if core.cpu_thread[i] < 0 and i != but and may_use(core, thread, i):
            if core.cpu_last[i] == thread:
                return i
            if found < 0:
                found = i
    return found


def find_victim(core: Core, thread: int, but: int) -> int:
    """The thread of the lowest priority on the CPUs that ``thread`` may use, if it is below its own, or -1."""
    victim = -1
    for i in range(core.cpus):
        other = core.cpu_thread[i]
        if other >= 0 and i != but and may_use(core, thread, i):
            if (
                victim < 0
                or core.priority[other] < core.priority[victim]
                or (core.priority[other] == core.priority[victim] and other < victim)
            ):
                victim = other
    if victim >= 0 and core.priority[victim] < core.priority[thread]:
        return victim
    return -1


def runtime(core: Core, thread: int) -> int:
    """The virtual runtime of a thread (ps): what it has run, and what its sleeps were worth."""
    current = core.current[thread]
    value = core.busy[thread] + core.offset[thread]
    if current >= 0 and core.timer[current] != 0:
        value += core.clock.now - core.started[current]
    return value


def place_woken(core: Core, thread: int) -> None:
    """A thread that slept is at most a time slice behind all others of its CPUs: CFS's place_entity."""
    found = False
    least = 0
    for i in range(core.cpus):
        if may_use(core, thread, i):
            other = core.cpu_thread[i]
            if other >= 0:
                value = runtime(core, other)
                if not found or value < least:
                    found = True
                    least = value
            for k in range(core.queue_length):
                if may_use(core, core.queue[k], i):
                    value = runtime(core, core.queue[k])
                    if not found or value < least:
                        found = True
                        least = value
    if found:
        core.offset[thread] += max(0, least - core.timeslice - runtime(core, thread))


def find_unfair(core: Core, thread: int) -> int:
    """Of equal threads on the CPUs that ``thread`` may use the one furthest ahead of it, if it is too far, or -1."""
    most = runtime(core, thread) + core.granularity
    victim = -1
    for i in range(core.cpus):
        other = core.cpu_thread[i]
        if other >= 0 and may_use(core, thread, i) and core.priority[other] == core.priority[thread]:
            value = runtime(core, other)
            if value > most or (victim >= 0 and value == most and other < victim):
                most = value
                victim = other
    return victim


def displace(core: Core, thread: int) -> None:
    """Take a thread's CPU for another one; it goes where there is room for it, or into the run queue."""
    cpu = core.cpu[thread]
    take_cpu(core, thread)
    if idle_cpu(core, thread, cpu) >= 0 or find_victim(core, thread, cpu) >= 0:
        mark_dirty(core, thread)
    else:
        enqueue(core, thread)


def put_on_cpu(core: Core, thread: int, cpu: int) -> None:
    """A thread begins to run on a CPU; a direct switch from another thread costs."""
    last = core.cpu_last[cpu]
    if core.blocked_since[thread] or last != thread:
        core.switches[thread] += 1
    if last >= 0 and last != thread and not core.cpu_idle[cpu] and core.switch >= 0:
        best = pick(core, thread)
        if best >= 0:
            core.remaining[best] += switch_cost(core, thread)
    core.blocked_since[thread] = False
    core.cpu[thread] = cpu
    core.cpu_thread[cpu] = thread
    core.cpu_last[cpu] = thread
    core.cpu_idle[cpu] = False
    if first_in_line(core, cpu) >= 0:
        begin_slice(core, cpu)


def switch_cost(core: Core, thread: int) -> int:
    """One draw of the cost of a context switch, from the thread's own stream."""
    duration = core.constant[core.switch]
    if duration < 0:
        index = core.switch_index[thread]
        core.switch_index[thread] = index + 1
        duration = core.quantiles[core.table[core.switch] + cell(random_bits(core.switch_key[thread], index))]
    return duration


def enqueue(core: Core, thread: int) -> None:
    """A thread waits for a CPU; pollers make room."""
    core.queued[thread] = True
    core.queue[core.queue_length] = thread
    core.queue_length += 1
    for i in range(core.cpus):
        running = core.cpu_thread[i]
        if running >= 0 and may_use(core, thread, i):
            current = core.current[running]
            if current >= 0 and core.spinning[current] >= 0:
                stop_spinning(core, current)
            if core.slice_timer[i] == 0:
                begin_slice(core, i)


def begin_slice(core: Core, cpu: int) -> None:
    """Limit the running thread's time on a shared CPU."""
    thread = core.cpu_thread[cpu]
    if thread >= 0 and core.own_cpu[thread] < 0:
        core.slice_timer[cpu] = push_event(core, core.timeslice, cpu << SHIFT | SLICE)


def slice_over(core: Core, cpu: int) -> None:
    """The time slice is over: a thread of the same or a higher priority takes over."""
    thread = core.cpu_thread[cpu]
    first = first_in_line(core, cpu)
    if thread >= 0 and first >= 0:
        if core.priority[first] >= core.priority[thread]:
            displace(core, thread)
            run_next(core, cpu)
        else:
            begin_slice(core, cpu)


def take_cpu(core: Core, thread: int) -> None:
    """Take the CPU from a thread that still has work."""
    current = core.current[thread]
    if current >= 0:
        suspend(core, current)
        core.current[thread] = -1
    cpu = core.cpu[thread]
    core.cpu_thread[cpu] = -1
    core.slice_timer[cpu] = 0
    core.cpu[thread] = -1


def release(core: Core, thread: int) -> None:
    """A thread has nothing to run: its CPU goes to the next in the queue."""
    if core.queued[thread]:
        core.queued[thread] = False
        leave_queue(core, thread)
    core.blocked_since[thread] = True
    cpu = core.cpu[thread]
    if cpu >= 0:
        core.cpu[thread] = -1
        core.cpu_thread[cpu] = -1
        core.slice_timer[cpu] = 0
        run_next(core, cpu)
        if core.cpu_thread[cpu] < 0:
            core.cpu_idle[cpu] = True


def first_in_line(core: Core, cpu: int) -> int:
    """The first of the highest priority in line for a CPU, or -1; by fairness, the furthest behind."""
    best = -1
    for i in range(core.queue_length):
        thread = core.queue[i]
        if may_use(core, thread, cpu):
            if (
                best < 0
                or core.priority[thread] > core.priority[best]
                or (
                    core.granularity >= 0
                    and core.priority[thread] == core.priority[best]
                    and runtime(core, thread) < runtime(core, best)
                )
            ):
                best = thread
    return best


def leave_queue(core: Core, thread: int) -> None:
    """Take a thread out of the run queue; those behind it move up."""
    gone = 0
    for i in range(core.queue_length):
        if core.queue[i] == thread:
            gone = 1
        if gone == 1 and i + 1 < core.queue_length:
            core.queue[i] = core.queue[i + 1]
    core.queue_length -= gone


def run_next(core: Core, cpu: int) -> None:
    """Give a CPU to the next in the queue."""
    thread = first_in_line(core, cpu)
    if thread >= 0:
        leave_queue(core, thread)
        core.queued[thread] = False
        put_on_cpu(core, thread, cpu)
        mark_dirty(core, thread)


# -- the loop ---------------------------------------------------------------------------------------------------


def continue_context(core: Core, context: int) -> bool:
    """Run a context's code until it waits; return True where that is for the observer, outside, to do."""
    if context == core.observer:
        core.observing = True
        return True
    if resume(core, context) == 1:
        finish(core, context)
    return False


def finish(core: Core, context: int) -> None:
    """A process has ended."""
    core.state[context] = DONE
    thread = core.thread[context]
    if thread >= 0:
        if core.parked[thread] == context:
            core.parked[thread] = -1
        mark_dirty(core, thread)


def drain(core: Core) -> bool:
    """Let everything that became ready run, in order; return True where the observer's turn has come."""
    while core.free_count > 0 or core.dirty_count > 0:
        if core.free_count > 0:
            context = core.free_queue[core.free_first]
            core.free_first += 1
            if core.free_first == len(core.free_queue):
                core.free_first = 0
            core.free_count -= 1
        else:
            thread = core.dirty_queue[core.dirty_first]
            core.dirty_first += 1
            if core.dirty_first == len(core.dirty_queue):
                core.dirty_first = 0
            core.dirty_count -= 1
            context = dispatch(core, thread)
        if context >= 0 and continue_context(core, context):
            return True
    return False


def start(core: Core) -> None:
    """Time 0: every context is ready, in the order of installation."""
    for i in range(core.contexts):
        make_ready(core, i)


def timer_fired(core: Core, context: int) -> bool:
    """A context's timer is due; return True where the observer's turn has come."""
    core.timer[context] = 0
    if core.state[context] == READY:
        core.remaining[context] = 0
        if core.thread[context] >= 0:
            account(core, context, core.clock.now - core.started[context])
        if core.spinning[context] >= 0:
            end_spin(core, context)
        return continue_context(core, context)
    if core.state[context] == WAKING:
        woken(core, context)
    else:
        wake_context(core, context)
    return False


def run(core: Core, until: int) -> int:
    """Run until the observer has something to do, ``until`` (ps), or the lists that grow are nearly full."""
    core.until = until
    core.in_a_row = IN_A_ROW
    if drain(core):
        return OBSERVE
    while core.error == 0:
        core.in_a_row = IN_A_ROW
        beside = first_is_beside(core)
        if beside:
            time = core.next_time
            sequence = core.next_sequence
            what = core.next_what
        elif core.heap_size > 0:
            time = core.heap_time[0]
            sequence = core.heap_sequence[0]
            what = core.heap_what[0]
        else:
            return NO_EVENTS
        if time >= until:
            core.clock.now = until
            return FINISHED
        if beside:
            core.next_full = False
        else:
            pop_heap(core)
        kind = what & 3
        which = what >> SHIFT
        if kind == TIMER:
            if core.timer[which] == sequence:
                core.clock.now = time
                if timer_fired(core, which) or drain(core):
                    return OBSERVE
        elif kind == SIGNAL:
            core.clock.now = time
            notify_channel(core, which)
            if drain(core):
                return OBSERVE
        elif core.slice_timer[which] == sequence:
            core.slice_timer[which] = 0
            core.clock.now = time
            slice_over(core, which)
            if drain(core):
                return OBSERVE
        if nearly_full(core):
            return GROW
    return FAILED


def nearly_full(core: Core) -> bool:
    """Whether the event queue, or a list that requests are appended to, needs more room."""
    return core.heap_size + 2048 > len(core.heap_time) or requests_nearly_full(core)


def requests_nearly_full(core: Core) -> bool:
    """Whether the request table needs more room: made by the translator."""
    raise NotImplementedError
