"""The reference engine: every process of a model is a SimPy process, every effect that takes time a SimPy event.

Order of simultaneous events, the same in every engine (also in docs/background/engine.md):

1. Timers due at the same picosecond fire in the order in which they were set (SimPy's own rule).
2. A process runs until an effect makes it wait or until a process of a higher level is ready on its thread.
3. Then the processes that became ready without a delay start, before the next timer of the same picosecond fires:
   those without a thread before the others, each kind in the order in which they became ready.
4. On one thread the highest level runs first; of equals, the one that ran, then the one that was ready first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy
from simpy.events import NORMAL, Event, Timeout

from iosim.effects import (
    ENTER_GUEST,
    GIVE,
    LEAVE_GUEST,
    LEVEL,
    NO_COST,
    NOTIFY,
    NOTIFY_AFTER,
    SLEEP_UNTIL,
    SPEND,
    SPIN,
    TAKE,
    WAIT,
    WAIT_UNTIL,
)
from iosim.engine.costs import CostTable
from iosim.engine.draws import DrawStream, stream_key
from iosim.engine.system import Process, ProcessTime, System

BLOCKED, WAKING, READY, DONE = range(4)


class _Cpu:
    """A CPU: who runs on it, who ran last, and the timer of the current time slice."""

    __slots__ = ("idle_since_last", "index", "last", "slice_timer", "thread")

    def __init__(self, index: int) -> None:
        self.index = index
        self.thread: _Thread | None = None
        self.last: _Thread | None = None
        self.idle_since_last = True
        self.slice_timer: Event | None = None


class _Thread:
    """A thread: its processes by level, the one that runs, and whether it has left the guest (``parked``)."""

    __slots__ = ("allowed", "blocked_since", "busy", "contexts", "cpu", "current", "dirty", "index", "name",
                 "offset", "outranked", "parked", "priority", "queued", "switches")  # fmt: skip

    def __init__(self, index: int, name: str, priority: int, allowed: frozenset[int] | None) -> None:
        self.index = index
        self.name = name
        self.priority = priority
        self.allowed = allowed
        self.contexts: list[_Context] = []
        self.current: _Context | None = None
        self.parked: _Context | None = None
        self.cpu: _Cpu | None = None
        self.queued = False
        self.dirty = False
        self.outranked = False
        self.blocked_since = True
        self.busy = 0
        self.offset = 0
        self.switches = 0

    def runtime(self, now: int) -> int:
        """The virtual runtime (ps): what the thread has run, and what its sleeps were worth."""
        current = self.current
        running = now - current.started if current is not None and current.timer is not None else 0
        return self.busy + self.offset + running

    def may_use(self, cpu: _Cpu) -> bool:
        """Whether the thread may run on a CPU."""
        return self.allowed is None or cpu.index in self.allowed


class _Timer(Event):
    """The SimPy event of one process's timers: set again when it has fired, where a `Timeout` would be made anew."""

    _ok = True
    _value = None

    def __init__(self, env: simpy.Environment, context: _Context) -> None:
        self.env = env
        self.context = context


class _Context:
    """A process in the engine: what it waits for, what is left of its spend, and its random streams."""

    __slots__ = ("channel", "draws", "due", "gate", "generator", "index", "level", "lined_up", "locked", "name",
                 "polled", "ran", "ready_at", "remaining", "spare", "spinning", "started", "state", "thread", "timer",
                 "wake")  # fmt: skip

    def __init__(self, index: int, name: str, generator: Process, thread: _Thread | None, level: int) -> None:
        self.index = index
        self.name = name
        self.generator = generator
        self.thread = thread
        self.level = level
        self.state = READY
        self.remaining = 0
        self.started = 0
        self.ran = 0
        self.polled = 0
        self.locked = 0
        self.lined_up = -1
        self.due = 0
        self.timer: _Timer | None = None
        self.spare: _Timer | None = None
        self.channel = -1
        self.wake = NO_COST
        self.spinning = -1
        self.ready_at = 0
        self.draws: list[Callable[[], int] | None] = []
        self.gate: Event


class SimpyEngine:
    """Plays a `System` in a SimPy environment; time there is a whole number of picoseconds.

    Args:
        system: The threads, channels, locks and processes.
        costs: What each cost is.
        seed, replication: Key the random streams, with the names of process and cost.
        env: The environment to install into; a new one by default.
        cpus: Number of CPUs that the threads share; 0 gives each thread a CPU of its own, whatever it is pinned to.
        timeslice: ps after which a thread hands a shared CPU to one of equal priority.
        switch: The cost of a direct switch between two threads of one CPU, or ``NO_COST``.
        granularity: ps by which a thread that wakes up must be behind another of its priority, in virtual runtime, to
            take its CPU; -1: never, and of equals in line goes first who came first.
    """

    def __init__(
        self,
        system: System,
        costs: CostTable,
        *,
        seed: int = 1,
        replication: int = 0,
        env: simpy.Environment | None = None,
        cpus: int = 0,
        timeslice: int = 3_000_000_000,
        switch: int = NO_COST,
        granularity: int = -1,
    ) -> None:
        system.check_pins(cpus)
        self.env = simpy.Environment() if env is None else env
        self._schedule = self.env.schedule
        # SimPy's queue, to see whether anything is due; not where SimPy waits for the clock on the wall between events.
        self._due = None if isinstance(self.env, simpy.RealtimeEnvironment) else self.env._queue
        self.clock = system.clock
        self.system = system
        self.costs = costs
        self.seed = seed
        self.replication = replication
        #: Timers that SimPy was given, and with them the spends that ended at once.
        self.timers = 0
        self.events = 0
        self.cost_time = [0] * len(costs.names)
        self.cost_count = [0] * len(costs.names)
        self._rates = costs.rates
        self._timeslice = timeslice
        self._switch = switch
        self._granularity = granularity
        self._switch_streams: dict[int, DrawStream] = {}
        self._latched = [False] * len(system.channels)
        self._waiter: list[_Context | None] = [None] * len(system.channels)
        self._observers: list[list[Event]] = [[] for _ in system.channels]
        self._owner: list[_Context | None] = [None] * len(system.locks)
        self._line: list[list[_Context]] = [[] for _ in system.locks]
        self._threads = [_Thread(i, t.name, t.priority, t.cpus) for i, t in enumerate(system.threads)]
        # Empty where each thread has a CPU of its own: then there is nothing to choose, to take or to give back.
        self._cpus = [_Cpu(i) for i in range(cpus)]
        self._queue: list[_Thread] = []
        self._dirty: list[_Thread] = []
        self._ready_free: list[_Context] = []
        self._draining = False
        self._ready_count = 0
        self._on_timer: list[Any] = [self._timer_fired]
        self._contexts = [self._install(i) for i in range(len(system.processes))]
        # Started by one event, so that a user's own processes may be added before time 0 passes.
        start = Timeout(self.env, 0)
        assert start.callbacks is not None
        start.callbacks.append(self._start)

    # -- what users of the engine see ---------------------------------------------------------------------------

    def run(self, until: int | None = None) -> None:
        """Run until the time ``until`` (ps), or until `stop` is called."""
        if until is None:
            self.env.run(until=self._stop_event())
        elif until > self.env.now:
            self.env.run(until=until)
            self.clock.now = int(self.env.now)

    def stop(self) -> None:
        """End the current `run` when the current instant's processes have run."""
        event = self._stop_event()
        if not event.triggered:
            event.succeed()

    def notified(self, channel: str) -> Event:
        """Return a SimPy event that occurs at the next notification of a channel, for processes of one's own."""
        event = self.env.event()
        self._observers[self.system.find_channel(channel)].append(event)
        return event

    def notify(self, channel: str) -> None:
        """Notify a channel from outside the model, at the present time."""
        self.clock.now = int(self.env.now)
        self._notify(self.system.find_channel(channel))
        self._drain()

    def busy(self) -> list[int]:
        """Return the time each thread has run so far (ps), in the order of ``system.threads``."""
        now = int(self.env.now)
        out = []
        for thread in self._threads:
            current = thread.current
            running = now - current.started if current is not None and current.timer is not None else 0
            out.append(thread.busy + running)
        return out

    def uses(self) -> list[ProcessTime]:
        """Return what each process has spent its time with so far, in the order of ``system.processes``."""
        now = int(self.env.now)
        out = []
        for context in self._contexts:
            thread = context.thread
            running = 0
            if thread is not None and thread.current is context and context.timer is not None:
                running = now - context.started
            polling = running if context.spinning >= 0 else 0
            waiting = now - context.lined_up if context.lined_up >= 0 else 0
            out.append(ProcessTime(context.ran + running, context.polled + polling, context.locked + waiting))
        return out

    def switches(self) -> list[int]:
        """Return how often each thread was put on a CPU after it had slept or another thread had run there."""
        return [thread.switches for thread in self._threads]

    def numbers(self, obj: Any, name: str) -> npt.NDArray[np.int64]:
        """Return a copy of an object's list of numbers as it is now."""
        return np.array(getattr(obj, name), dtype=np.int64)

    # -- installation -------------------------------------------------------------------------------------------

    def _install(self, index: int) -> _Context:
        spec = self.system.processes[index]
        thread = self._threads[spec.thread] if spec.thread >= 0 else None
        context = _Context(index, spec.name, spec.generator, thread, spec.level)
        context.draws = [None] * len(self.costs.names)
        gate = Event(self.env)
        gate._ok = True
        gate._value = None
        context.gate = gate
        if thread is not None:
            thread.contexts.append(context)
        self.env.process(self._play(context))
        return context

    def _start(self, _event: Event) -> None:
        self.clock.now = int(self.env.now)
        for context in self._contexts:
            self._make_ready(context)
        self._drain()

    def _stop_event(self) -> Event:
        event: Event | None = getattr(self, "_stopping", None)
        if event is None or event.processed:
            event = self.env.event()
            self._stopping = event
        return event

    # -- a process ----------------------------------------------------------------------------------------------

    def _play(self, context: _Context) -> Any:
        """The SimPy process of one model process: plays its effects, sleeping at the gate when one takes time.

        The gate is one event that is never scheduled: the engine resumes the process by calling the gate's
        callbacks itself, when its thread has the CPU. So a process costs one event a timer, none for its turn.
        """
        gate = context.gate
        thread = context.thread
        perform, draw, set_timer = self._perform, self._draw, self._set_timer
        env, clock, due, dirty, free = self.env, self.clock, self._due, self._dirty, self._ready_free
        yield gate
        for op, a, b, c in context.generator:
            # Most effects are spends: they are played here, without another call.
            if op == SPEND:
                duration = draw(context, a, b)
                if duration:
                    if thread is not None and thread.outranked:
                        context.remaining = duration
                        yield gate
                        continue
                    end = clock.now + duration
                    if due is not None and not dirty and not free and (not due or due[0][0] > end):
                        # Nothing else happens until this is over: it is over now, without an event.
                        env._now = clock.now = end
                        self.events += 1
                        if thread is not None:
                            thread.busy += duration
                            context.ran += duration
                        continue
                    context.remaining = duration
                    set_timer(context, duration)
                    yield gate
            elif perform(context, op, a, b, c):
                yield gate
        self._finish(context)

    def _resume(self, context: _Context) -> None:
        gate = context.gate
        # SimPy's process waits at the gate alone, and puts itself back when it waits there again.
        gate.callbacks.pop()(gate)

    def _finish(self, context: _Context) -> None:
        context.state = DONE
        thread = context.thread
        if thread is not None:
            if thread.parked is context:
                thread.parked = None
            self._mark(thread)

    def _perform(self, context: _Context, op: int, a: int, b: int, c: int) -> bool:
        """Carry out one effect other than a spend; return whether the process now waits at its gate."""
        thread = context.thread
        if op == NOTIFY:
            self._notify(a)
        elif op == WAIT or op == WAIT_UNTIL:
            if self._latched[a]:
                self._latched[a] = False
                return False
            if self._waiter[a] is not None:
                raise RuntimeError(f"two processes wait on '{self.system.channels[a]}': a channel has one waiter")
            self._waiter[a] = context
            context.channel = a
            context.wake = b
            if op == WAIT_UNTIL:
                self._set_timer(context, max(0, c - self.clock.now))
            self._block(context)
            return True
        elif op == LEVEL:
            raised = a >= context.level
            context.level = a
            if raised:
                return False
            return self._checkpoint(context)
        elif op == LEAVE_GUEST:
            assert thread is not None
            thread.parked = context
            thread.outranked = False
            return False
        elif op == ENTER_GUEST:
            assert thread is not None
            thread.parked = None
            return self._checkpoint(context)
        elif op == SPIN:
            if self._latched[a]:
                self._latched[a] = False
                return False
            if b <= 0 or (not c and self._queue and (thread is None or self._wanted(thread.cpu))):
                return False
            context.remaining = b
            context.spinning = a
            self._waiter[a] = context
            if thread is None or not thread.outranked:
                self._set_timer(context, b)
            return True
        elif op == TAKE:
            if self._owner[a] is None:
                self._owner[a] = context
                return False
            self._line[a].append(context)
            context.lined_up = self.clock.now
            context.wake = b
            self._block(context)
            return True
        elif op == GIVE:
            self._give(context, a)
        elif op == SLEEP_UNTIL:
            if a <= self.clock.now:
                return False
            self._set_timer(context, a - self.clock.now)
            self._block(context)
            return True
        elif op == NOTIFY_AFTER:
            delay = self._draw(context, b, c)
            if delay == 0:
                self._notify(a)
            else:
                timer = Timeout(self.env, delay)
                assert timer.callbacks is not None
                timer.callbacks.append(partial(self._signal_arrived, a))
        else:
            raise RuntimeError(f"process '{context.name}' yielded {(op, a, b, c)}, which is no effect")
        # A process of a higher level that became ready on this very thread runs before the next step of this one.
        return thread is not None and thread.outranked

    def _draw(self, context: _Context, cost: int, amount: int) -> int:
        if cost < 0:
            return 0
        draw = context.draws[cost]
        if draw is None:
            draw = context.draws[cost] = self._stream(context.name, cost).draw
        duration = draw()
        if amount:
            duration += amount * self._rates[cost] >> 10
        self.cost_time[cost] += duration
        self.cost_count[cost] += 1
        return duration

    def _stream(self, drawer: str, cost: int) -> DrawStream:
        key = stream_key(self.seed, self.replication, f"{drawer}/{self.costs.names[cost]}")
        return DrawStream(key, self.costs.distributions[cost])

    # -- channels, locks, timers --------------------------------------------------------------------------------

    def _set_timer(self, context: _Context, delay: int) -> None:
        timer = context.spare
        if timer is None:
            timer = _Timer(self.env, context)
        else:
            context.spare = None
        timer.callbacks = self._on_timer
        context.timer = timer
        context.started = now = self.clock.now
        context.due = now + delay
        self.timers += 1
        self.events += 1
        self._schedule(timer, NORMAL, delay)

    def _timer_fired(self, timer: _Timer) -> None:
        context = timer.context
        context.spare = timer
        if timer is not context.timer:
            return  # the spend was preempted or the wait was over before: a timer nobody waits for any more
        context.timer = None
        now = self.clock.now = context.due  # which is env.now
        thread = context.thread
        if context.state == READY:
            context.remaining = 0
            if thread is not None:
                self._account(context, now - context.started)
            if context.spinning >= 0:
                self._end_spin(context)
            self._resume(context)
        elif context.state == WAKING:
            if context.channel >= 0:
                self._latched[context.channel] = False
                self._waiter[context.channel] = None
                context.channel = -1
            self._make_ready(context)
        else:
            self._wake(context)
        if self._dirty or self._ready_free:
            self._drain()

    def _signal_arrived(self, channel: int, _event: Event) -> None:
        self.clock.now = int(self.env.now)
        self.timers += 1
        self.events += 1
        self._notify(channel)
        self._drain()

    def _notify(self, channel: int) -> None:
        observers = self._observers[channel]
        if observers:
            for event in observers:
                event.succeed(self.clock.now)
            observers.clear()
        context = self._waiter[channel]
        if context is None:
            self._latched[channel] = True
        elif context.spinning == channel:
            self._stop_spinning(context)
        elif context.state == BLOCKED:
            context.timer = None
            self._wake(context)
        # Otherwise it is waking up already: it will see what both notifications were about.

    def _stop_spinning(self, context: _Context) -> None:
        thread = context.thread
        if context.timer is not None:
            context.timer = None
            if thread is not None:
                self._account(context, self.clock.now - context.started)
        self._end_spin(context)
        context.remaining = 0
        if thread is None:
            self._ready_free.append(context)
        else:
            self._mark(thread)

    def _account(self, context: _Context, ran: int) -> None:
        """Add to the times of a process and its thread: it has run, or polled."""
        thread = context.thread
        assert thread is not None
        thread.busy += ran
        context.ran += ran
        if context.spinning >= 0:
            context.polled += ran

    def _end_spin(self, context: _Context) -> None:
        self._waiter[context.spinning] = None
        context.spinning = -1

    def _give(self, context: _Context, lock: int) -> None:
        if self._owner[lock] is not context:
            raise RuntimeError(f"process '{context.name}' gives back '{self.system.locks[lock]}', which it has not")
        line = self._line[lock]
        if line:
            heir = line.pop(0)
            self._owner[lock] = heir
            self._wake(heir)
        else:
            self._owner[lock] = None

    def _block(self, context: _Context) -> None:
        context.state = BLOCKED
        thread = context.thread
        if thread is not None:
            self._mark(thread)

    def _wake(self, context: _Context) -> None:
        """Begin to wake a blocked process: after one draw of its wake cost it is ready."""
        delay = 0
        if context.wake != NO_COST:
            delay = self._draw(context, context.wake, 0)
            context.wake = NO_COST
        if delay:
            context.state = WAKING
            self._set_timer(context, delay)
        else:
            if context.channel >= 0:
                self._latched[context.channel] = False
                self._waiter[context.channel] = None
                context.channel = -1
            self._make_ready(context)

    # -- scheduling ---------------------------------------------------------------------------------------------

    def _make_ready(self, context: _Context) -> None:
        context.state = READY
        self._ready_count += 1
        if context.thread is None or context.thread.parked is not context:
            # Out of the guest it keeps the place that it had: it has its thread all the while.
            context.ready_at = self._ready_count
        if context.lined_up >= 0:
            # It has the lock, and is awake.
            context.locked += self.clock.now - context.lined_up
            context.lined_up = -1
        thread = context.thread
        if thread is None:
            self._ready_free.append(context)
            return
        current = thread.current
        if thread.parked is None and current is not None and context.level > current.level:
            thread.outranked = True
        self._mark(thread)

    def _checkpoint(self, context: _Context) -> bool:
        """After a lowering of the level: does a process that waited for it run first?"""
        thread = context.thread
        if thread is None or self._pick(thread) is context:
            return False
        thread.outranked = True
        self._mark(thread)
        return True

    def _mark(self, thread: _Thread) -> None:
        if not thread.dirty:
            thread.dirty = True
            self._dirty.append(thread)

    def _drain(self) -> None:
        """Let everything that became ready run, in order; a thread's turn may make others ready."""
        if self._draining:
            return
        self._draining = True
        dirty = self._dirty
        free = self._ready_free
        while dirty or free:
            if free:
                self._resume(free.pop(0))
            else:
                self._dispatch(dirty.pop(0))
        self._draining = False

    def _pick(self, thread: _Thread) -> _Context | None:
        parked = thread.parked
        if parked is not None:
            return parked if parked.state == READY else None
        best = thread.current
        if best is not None and best.state != READY:
            best = None
        for context in thread.contexts:
            if context.state != READY or context is best:
                continue
            if (
                best is None
                or context.level > best.level
                or (context.level == best.level and best is not thread.current and context.ready_at < best.ready_at)
            ):
                best = context
        return best

    def _dispatch(self, thread: _Thread) -> None:
        thread.dirty = False
        thread.outranked = False
        best = self._pick(thread)
        current = thread.current
        if current is not None and current is not best:
            if current.timer is not None:
                self._suspend(current)
            thread.current = None
        if best is None:
            thread.blocked_since = True
            if self._cpus:
                self._release(thread)
            return
        if self._cpus:
            if thread.cpu is None and not self._acquire(thread):
                return
        elif thread.blocked_since:
            thread.switches += 1
            thread.blocked_since = False
        thread.current = best
        if best.timer is None:
            if best.spinning >= 0 and self._queue and self._wanted(thread.cpu):
                # Preempted while it polled; now that it has a CPU again, somebody else waits for it.
                self._end_spin(best)
                best.remaining = 0
            # Continue its spend, or its code where no spend is left.
            if best.remaining > 0:
                self._set_timer(best, best.remaining)
            else:
                self._resume(best)

    def _suspend(self, context: _Context) -> None:
        if context.state == READY and context.timer is not None:
            ran = self.clock.now - context.started
            context.remaining -= ran
            context.timer = None
            self._account(context, ran)
            if context.remaining == 0 and context.spinning >= 0:
                self._end_spin(context)

    # -- CPUs ---------------------------------------------------------------------------------------------------

    def _acquire(self, thread: _Thread) -> bool:
        """Put a runnable thread on a CPU, or in the run queue."""
        if thread.queued:
            return False
        woken = thread.blocked_since and self._granularity >= 0
        if woken:
            self._place(thread)
        cpu = self._idle_cpu(thread)
        if cpu is None:
            victim = self._victim(thread, None)
            if victim is None and woken:
                victim = self._unfair(thread)
            if victim is not None:
                cpu = victim.cpu
                self._displace(victim)
        if cpu is None:
            self._enqueue(thread)
            return False
        self._put(thread, cpu)
        return True

    def _idle_cpu(self, thread: _Thread, but: _Cpu | None = None) -> _Cpu | None:
        """An idle CPU that a thread may use, the one it ran on last if it can be; ``but`` does not count."""
        idle = [cpu for cpu in self._cpus if cpu.thread is None and cpu is not but and thread.may_use(cpu)]
        for cpu in idle:
            if cpu.last is thread:
                return cpu
        return idle[0] if idle else None

    def _victim(self, thread: _Thread, but: _Cpu | None) -> _Thread | None:
        """The thread of the lowest priority on the CPUs that ``thread`` may use, if it is below its own."""
        running = [cpu.thread for cpu in self._cpus if cpu.thread and cpu is not but and thread.may_use(cpu)]
        victim = min(running, key=lambda t: (t.priority, t.index), default=None)
        return victim if victim is not None and victim.priority < thread.priority else None

    def _place(self, thread: _Thread) -> None:
        """A thread that slept is at most a time slice behind all others of its CPUs: CFS's place_entity."""
        now = self.clock.now
        there = [cpu.thread for cpu in self._cpus if cpu.thread is not None and thread.may_use(cpu)]
        there += [t for t in self._queue if any(t.may_use(cpu) and thread.may_use(cpu) for cpu in self._cpus)]
        if there:
            least = min(t.runtime(now) for t in there) - self._timeslice
            thread.offset += max(0, least - thread.runtime(now))

    def _unfair(self, thread: _Thread) -> _Thread | None:
        """Of equal threads on the CPUs that ``thread`` may use the one furthest ahead of it, if it is too far."""
        now = self.clock.now
        limit = thread.runtime(now) + self._granularity
        running = [cpu.thread for cpu in self._cpus if cpu.thread is not None and thread.may_use(cpu)]
        equals = [t for t in running if t.priority == thread.priority and t.runtime(now) > limit]
        return max(equals, key=lambda t: (t.runtime(now), -t.index), default=None)

    def _displace(self, thread: _Thread) -> None:
        """Take a thread's CPU for another one; it goes where there is room for it, or into the run queue.

        There can be room only because others may not use it: for threads that may run everywhere there is none.
        """
        cpu = thread.cpu
        self._take_cpu(thread)
        if self._idle_cpu(thread, cpu) is not None or self._victim(thread, cpu) is not None:
            self._mark(thread)
        else:
            self._enqueue(thread)

    def _wanted(self, cpu: _Cpu | None) -> bool:
        """Whether a thread in line may use a CPU."""
        return any(cpu is not None and thread.may_use(cpu) for thread in self._queue)

    def _put(self, thread: _Thread, cpu: _Cpu) -> None:
        if thread.blocked_since or cpu.last is not thread:
            thread.switches += 1
        if cpu.last is not None and cpu.last is not thread and not cpu.idle_since_last and self._switch >= 0:
            best = self._pick(thread)
            if best is not None:
                best.remaining += self._switch_cost(thread)
        thread.blocked_since = False
        thread.cpu = cpu
        cpu.thread = thread
        cpu.last = thread
        cpu.idle_since_last = False
        if self._wanted(cpu):
            self._begin_slice(cpu)

    def _switch_cost(self, thread: _Thread) -> int:
        stream = self._switch_streams.get(thread.index)
        if stream is None:
            stream = self._switch_streams[thread.index] = self._stream(thread.name, self._switch)
        duration = stream.draw()
        self.cost_time[self._switch] += duration
        self.cost_count[self._switch] += 1
        return duration

    def _enqueue(self, thread: _Thread) -> None:
        thread.queued = True
        self._queue.append(thread)
        for cpu in self._cpus:
            if cpu.thread is not None and thread.may_use(cpu):
                current = cpu.thread.current
                if current is not None and current.spinning >= 0:
                    # A poller makes room as soon as somebody else could run (KVM: single_task_running).
                    self._stop_spinning(current)
                if cpu.slice_timer is None:
                    self._begin_slice(cpu)

    def _begin_slice(self, cpu: _Cpu) -> None:
        if cpu.thread is None:
            return
        timer = Timeout(self.env, self._timeslice)
        assert timer.callbacks is not None
        timer.callbacks.append(partial(self._slice_over, cpu))
        cpu.slice_timer = timer
        self.timers += 1
        self.events += 1

    def _slice_over(self, cpu: _Cpu, event: Event) -> None:
        if event is not cpu.slice_timer:
            return
        cpu.slice_timer = None
        self.clock.now = int(self.env.now)
        thread = cpu.thread
        first = self._first_in_line(cpu)
        if thread is not None and first is not None:
            if first.priority >= thread.priority:
                self._displace(thread)
                self._run_next(cpu)
            else:
                self._begin_slice(cpu)
        self._drain()

    def _take_cpu(self, thread: _Thread) -> None:
        """Take the CPU from a thread that still has work."""
        if thread.current is not None:
            self._suspend(thread.current)
            thread.current = None
        cpu = thread.cpu
        assert cpu is not None
        cpu.thread = None
        cpu.slice_timer = None
        thread.cpu = None

    def _release(self, thread: _Thread) -> None:
        """A thread has nothing to run: its CPU goes to the next in the queue."""
        if thread.queued:
            thread.queued = False
            self._queue.remove(thread)
        cpu = thread.cpu
        if cpu is None:
            return
        thread.cpu = None
        cpu.thread = None
        cpu.slice_timer = None
        self._run_next(cpu)
        if cpu.thread is None:
            cpu.idle_since_last = True

    def _first_in_line(self, cpu: _Cpu) -> _Thread | None:
        """The first of the highest priority in line for a CPU; by fairness, the furthest behind."""
        # The first of equals: max keeps it.
        if self._granularity >= 0:
            now = self.clock.now
            return max(
                (t for t in self._queue if t.may_use(cpu)), key=lambda t: (t.priority, -t.runtime(now)), default=None
            )
        return max((t for t in self._queue if t.may_use(cpu)), key=lambda t: t.priority, default=None)

    def _run_next(self, cpu: _Cpu) -> None:
        thread = self._first_in_line(cpu)
        if thread is None:
            return
        self._queue.remove(thread)
        thread.queued = False
        self._put(thread, cpu)
        self._mark(thread)
