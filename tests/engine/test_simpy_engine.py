"""The engine's rules: order of simultaneous events, preemption, locks, polling, shared CPUs; an M/M/1 as a twin."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
import pytest
import simpy

import iosim
from iosim import effects as fx
from iosim.effects import Effect
from iosim.engine.costs import CostTable
from iosim.engine.distributions import Constant, Distribution, Exponential
from iosim.engine.simpy_engine import SimpyEngine
from iosim.engine.system import System

Processes = Generator[Effect, None, None]


class Room:
    """A system with constant costs 1, 10, 100 ns (numbers 0, 1, 2) and a log of (time in ns, what)."""

    ONE, TEN, HUNDRED = 0, 1, 2

    def __init__(self, more: list[Distribution] | None = None, rates: list[int] | None = None) -> None:
        self.system = System()
        distributions = [Constant(1e3), Constant(1e4), Constant(1e5), *(more or [])]
        self.costs = CostTable(
            [f"cost{i}" for i in range(len(distributions))], distributions, rates or [0] * len(distributions)
        )
        self.log: list[tuple[float, str]] = []

    def say(self, what: str) -> None:
        self.log.append((self.system.clock.now / 1000, what))

    def engine(self, **options: int) -> SimpyEngine:
        return SimpyEngine(self.system, self.costs, **options)  # type: ignore[arg-type]


def worker(room: Room, name: str, *costs: int) -> Processes:
    room.say(f"{name} starts")
    for cost in costs:
        yield fx.spend(cost)
        room.say(f"{name} spent")


def test_processes_start_in_the_order_of_installation() -> None:
    room = Room()
    for name in ("c", "a", "b"):
        room.system.process(name, worker(room, name), room.system.thread(name))
    room.engine().run(until=1000)
    assert room.log == [(0, "c starts"), (0, "a starts"), (0, "b starts")]


def test_timers_of_one_instant_fire_in_the_order_in_which_they_were_set() -> None:
    room = Room()
    for name in ("second", "first"):
        room.system.process(name, worker(room, name, Room.TEN), room.system.thread(name))
    room.engine().run(until=20_000)
    assert room.log[2:] == [(10, "second spent"), (10, "first spent")]


def test_what_became_ready_starts_before_the_next_timer_of_the_same_instant() -> None:
    room = Room()
    channel = room.system.channel("c")

    def notifier() -> Processes:
        yield fx.spend(Room.TEN)
        room.say("notify")
        yield fx.notify(channel)
        room.say("notifier goes on")

    def waiter() -> Processes:
        yield fx.wait(channel)
        room.say("woken")

    room.system.process("waiter", waiter(), room.system.thread("w"))
    room.system.process("notifier", notifier(), room.system.thread("n"))
    room.system.process("other", worker(room, "other", Room.TEN), room.system.thread("o"))
    room.engine().run(until=20_000)
    assert [what for _, what in room.log[1:]] == ["notify", "notifier goes on", "woken", "other spent"]


def test_an_interrupt_preempts_in_mid_run_and_the_remainder_is_continued() -> None:
    room = Room()
    system = room.system
    vcpu = system.thread("vcpu")
    channel = system.channel("irq")

    def task() -> Processes:
        yield fx.spend(Room.HUNDRED)
        room.say("task done")

    def handler() -> Processes:
        while True:
            yield fx.wait(channel)
            yield fx.spend(Room.TEN)
            room.say("handler done")

    def device() -> Processes:
        yield fx.sleep_until(30_000)
        yield fx.notify(channel)
        yield fx.sleep_until(35_000)  # while the handler runs: latched, handled next
        yield fx.notify(channel)

    system.process("task", task(), vcpu, fx.TASK)
    system.process("handler", handler(), vcpu, fx.HARDIRQ)
    system.process("device", device())
    engine = room.engine()
    engine.run(until=1_000_000)
    assert room.log == [(40, "handler done"), (50, "handler done"), (120, "task done")]
    assert engine.busy() == [120_000]


def test_a_raised_level_holds_the_softirq_back_but_not_the_interrupt() -> None:
    room = Room()
    system = room.system
    vcpu = system.thread("vcpu")
    softirq, irq = system.channel("softirq"), system.channel("irq")

    def task() -> Processes:
        yield fx.level(fx.SOFTIRQ)
        yield fx.spend(Room.HUNDRED)
        room.say("bottom halves on")
        yield fx.level(fx.TASK)
        room.say("task")

    def on(channel: int, name: str) -> Processes:
        yield fx.wait(channel)
        room.say(name)

    def device() -> Processes:
        yield fx.sleep_until(10_000)
        yield fx.notify(softirq)
        yield fx.notify(irq)

    system.process("task", task(), vcpu, fx.TASK)
    system.process("softirq", on(softirq, "softirq"), vcpu, fx.SOFTIRQ)
    system.process("irq", on(irq, "irq"), vcpu, fx.HARDIRQ)
    system.process("device", device())
    room.engine().run(until=1_000_000)
    assert room.log == [(10, "irq"), (100, "bottom halves on"), (100, "softirq"), (100, "task")]


def test_a_thread_outside_the_guest_stays_parked_even_while_it_waits_for_a_lock() -> None:
    """The vCPU waits for the big lock in an exit: no guest handler may run on its thread meanwhile."""
    room = Room()
    system = room.system
    vcpu, other = system.thread("vcpu"), system.thread("main loop")
    lock, irq = system.lock("bql"), system.channel("irq")

    def exiting() -> Processes:
        yield fx.spend(Room.TEN)
        yield fx.leave_guest()
        yield fx.take(lock)
        room.say("has the lock")
        yield fx.give(lock)
        yield fx.enter_guest()
        room.say("in the guest")

    def handler() -> Processes:
        yield fx.wait(irq)
        room.say("handler")

    def holder() -> Processes:
        yield fx.take(lock)
        yield fx.spend(Room.TEN)
        yield fx.spend(Room.TEN)
        yield fx.notify(irq)
        yield fx.spend(Room.TEN)
        yield fx.give(lock)

    system.process("holder", holder(), other)
    system.process("exiting", exiting(), vcpu, fx.TASK)
    system.process("handler", handler(), vcpu, fx.HARDIRQ)
    engine = room.engine()
    engine.run(until=1_000_000)
    assert room.log == [(30, "has the lock"), (30, "handler"), (30, "in the guest")]
    assert engine.busy() == [10_000, 30_000]


def test_locks_are_first_come_first_served() -> None:
    room = Room()
    lock = room.system.lock("l")

    def taker(name: str, at: int) -> Processes:
        yield fx.sleep_until(at)
        yield fx.take(lock, Room.ONE)
        room.say(name)
        yield fx.spend(Room.TEN)
        yield fx.give(lock)

    for name, at in (("late", 3000), ("first", 1000), ("second", 2000)):
        room.system.process(name, taker(name, at), room.system.thread(name))
    room.engine().run(until=1_000_000)
    # Who waited is woken, which takes 1 ns; who did not wait is not.
    assert room.log == [(1, "first"), (12, "second"), (23, "late")]


def test_a_wake_up_costs_latency_but_no_cpu_and_merges_notifications() -> None:
    room = Room()
    system = room.system
    channel = system.channel("c")

    def waiter() -> Processes:
        while True:
            yield fx.wait(channel, Room.TEN)
            room.say("woken")

    def notifier() -> Processes:
        yield fx.sleep_until(5_000)
        yield fx.notify(channel)
        yield fx.sleep_until(8_000)
        yield fx.notify(channel)

    system.process("waiter", waiter(), system.thread("w"))
    system.process("notifier", notifier())
    engine = room.engine()
    engine.run(until=1_000_000)
    assert room.log == [(15, "woken")]
    assert engine.busy() == [0]
    assert engine.switches() == [2]  # at its start, and after it slept


@pytest.mark.parametrize(("notified_at", "ends_at"), [(4_000, 4), (50_000, 20)])
def test_polling_ends_with_the_notification_or_the_limit_and_is_busy(notified_at: int, ends_at: int) -> None:
    room = Room()
    system = room.system
    channel = system.channel("c")

    def poller() -> Processes:
        yield fx.spin(channel, 20_000)
        room.say("polled")

    def notifier() -> Processes:
        yield fx.sleep_until(notified_at)
        yield fx.notify(channel)

    system.process("poller", poller(), system.thread("p"))
    system.process("notifier", notifier())
    engine = room.engine()
    engine.run(until=1_000_000)
    assert room.log == [(ends_at, "polled")]
    assert engine.busy() == [ends_at * 1000]


def test_waiting_with_a_deadline() -> None:
    room = Room()
    channel = room.system.channel("c")

    def waiter() -> Processes:
        yield fx.wait_until(channel, Room.ONE, 7_000)
        room.say("deadline")
        yield fx.wait_until(channel, Room.ONE, 100_000)
        room.say("notified")

    def notifier() -> Processes:
        yield fx.sleep_until(20_000)
        yield fx.notify(channel)

    room.system.process("waiter", waiter(), room.system.thread("w"))
    room.system.process("notifier", notifier())
    room.engine().run(until=1_000_000)
    assert room.log == [(8, "deadline"), (21, "notified")]


def test_a_signal_on_its_way_and_a_cost_per_byte() -> None:
    room = Room(rates=[0, 0, 512])
    channel = room.system.channel("c")

    def sender() -> Processes:
        yield fx.notify_after(channel, Room.HUNDRED, 4)
        yield fx.spend(Room.HUNDRED, 2048)
        room.say("spent")

    def waiter() -> Processes:
        yield fx.wait(channel)
        room.say("arrived")

    room.system.process("waiter", waiter(), room.system.thread("w"))
    room.system.process("sender", sender(), room.system.thread("s"))
    room.engine().run(until=1_000_000)
    assert room.log == [(100.002, "arrived"), (101.024, "spent")]


class TestSharedCpus:
    def test_equal_threads_take_turns_by_time_slices_and_pay_for_switches(self) -> None:
        room = Room()
        for name in ("a", "b"):
            room.system.process(name, worker(room, name, Room.HUNDRED), room.system.thread(name))
        engine = room.engine(cpus=1, timeslice=30_000, switch=Room.ONE)
        engine.run(until=1_000_000)
        # Slices of 30 ns, with the switch's 1 ns in all but the first. By 180 a has run 30 + 29 + 29, b three times 29;
        # then a's last 12 after a switch (193), and b's last 13 after another (207).
        assert room.log == [(0, "a starts"), (31, "b starts"), (193, "a spent"), (207, "b spent")]
        assert sum(engine.busy()) == 200_000 + engine.cost_time[Room.ONE]
        assert engine.cost_count[Room.ONE] == sum(engine.switches()) - 1  # the first switch was from idle

    def test_a_thread_of_higher_priority_preempts(self) -> None:
        room = Room()
        system = room.system
        channel = system.channel("c")

        def urgent() -> Processes:
            yield fx.wait(channel)
            yield fx.spend(Room.TEN)
            room.say("urgent done")

        def device() -> Processes:
            yield fx.sleep_until(40_000)
            yield fx.notify(channel)

        system.process("low", worker(room, "low", Room.HUNDRED), system.thread("low"))
        system.process("urgent", urgent(), system.thread("urgent", priority=1))
        system.process("device", device())
        engine = room.engine(cpus=1)
        engine.run(until=1_000_000)
        assert room.log == [(0, "low starts"), (50, "urgent done"), (110, "low spent")]

    def test_a_poller_makes_room_for_a_thread_that_could_run(self) -> None:
        room = Room()
        system = room.system
        never, start = system.channel("never"), system.channel("start")

        def poller() -> Processes:
            yield fx.spin(never, 500_000)
            room.say("gave up")

        def other() -> Processes:
            yield fx.wait(start)
            yield fx.spend(Room.TEN)
            room.say("other done")

        def device() -> Processes:
            yield fx.sleep_until(100_000)
            yield fx.notify(start)

        system.process("other", other(), system.thread("other"))
        system.process("poller", poller(), system.thread("poller"))
        system.process("device", device())
        room.engine(cpus=1).run(until=1_000_000)
        assert room.log == [(100, "gave up"), (110, "other done")]

    def test_a_busy_poller_keeps_its_cpu_to_the_end_of_its_slice(self) -> None:
        """Who polls with `busy_poll` makes room for nobody; a poll that ends early is begun again in no time."""
        room = Room()
        system = room.system
        never, start = system.channel("never"), system.channel("start")

        def poller() -> Processes:
            while True:
                yield fx.busy_poll(never, 500_000)

        def other() -> Processes:
            yield fx.wait(start)
            yield fx.spend(Room.TEN)
            room.say("other done")

        def device() -> Processes:
            yield fx.sleep_until(100_000)
            yield fx.notify(start)

        system.process("other", other(), system.thread("other"))
        system.process("poller", poller(), system.thread("poller"))
        system.process("device", device())
        engine = room.engine(cpus=1, timeslice=70_000)
        engine.run(until=1_000_000)
        # In line at 100 ns, when the slice begins; on the CPU at 170 ns.
        assert room.log == [(180, "other done")]
        assert engine.busy() == [10_000, 990_000]

    def test_work_is_conserved(self) -> None:
        """Two CPUs, five threads of 100 ns each: 250 ns with two always busy, in whatever order."""
        room = Room()
        for i in range(5):
            room.system.process(f"t{i}", worker(room, f"t{i}", Room.HUNDRED), room.system.thread(f"t{i}"))
        engine = room.engine(cpus=2, timeslice=7_000)
        engine.run(until=1_000_000)
        assert sum(engine.busy()) == 500_000
        assert max(time for time, _ in room.log) <= 300


def test_m_m_1_waits_as_long_as_theory_says() -> None:
    """Poisson arrivals, exponential service, load 0.5: mean time in system 1/(mu - lambda) = 2 services."""
    room = Room([Exponential(2e6), Exponential(1e6)])
    arrival, service = 3, 4
    system = room.system
    channel = system.channel("c")
    queue: list[int] = []
    times: list[int] = []

    def arrivals() -> Processes:
        while True:
            yield fx.spend(arrival)
            queue.append(system.clock.now)
            yield fx.notify(channel)

    def server() -> Processes:
        while True:
            while not queue:
                yield fx.wait(channel)
            begun = queue.pop(0)
            yield fx.spend(service)
            times.append(system.clock.now - begun)

    system.process("arrivals", arrivals())
    system.process("server", server(), system.thread("server"))
    engine = room.engine()
    engine.run(until=80_000 * 1_000_000)
    sample = np.array(times[1000:]) / 1e6
    # Batch means of the 39,000 customers give a standard error of about 0.03.
    assert sample.mean() == pytest.approx(2.0, abs=0.12)
    assert engine.busy()[0] / engine.clock.now == pytest.approx(0.5, abs=0.02)
    assert np.quantile(sample, 0.9) == pytest.approx(2.0 * np.log(10), rel=0.07)


@pytest.mark.parametrize(
    ("effect", "message"),
    [(lambda lock: fx.give(lock), "gives back"), (lambda _: (99, 0, 0, 0), "which is no effect")],
)
def test_errors_of_a_model_name_the_process(effect: Callable[[int], Effect], message: str) -> None:
    room = Room()
    lock = room.system.lock("l")

    def wrong() -> Processes:
        yield effect(lock)

    room.system.process("wrong one", wrong(), room.system.thread("t"))
    with pytest.raises(RuntimeError, match=message) as caught:
        room.engine().run(until=1000)
    assert "wrong one" in str(caught.value)


def test_a_channel_has_one_waiter() -> None:
    room = Room()
    channel = room.system.channel("c")

    def waiter() -> Processes:
        yield fx.wait(channel)

    for name in "ab":
        room.system.process(name, waiter(), room.system.thread(name))
    with pytest.raises(RuntimeError, match="two processes wait on 'c'"):
        room.engine().run(until=1000)


class TestAsSimpy:
    """From a notebook: install, add processes of one's own that wait on channels, run, look, go on."""

    def test_own_processes_wait_on_a_models_channels(self) -> None:
        env = simpy.Environment()
        path = iosim.install("vhost-net", env, workload="rr")
        seen: list[int] = []

        def watcher() -> Generator[simpy.Event, None, None]:
            while True:
                yield path.engine.notified("vhost worker")
                seen.append(env.now)

        env.process(watcher())
        env.run(until=1_000_000_000)
        first = path.machine.window.completed
        # Each round trip wakes the worker twice: by the tap, and by the kick.
        assert first > 5
        assert 0 <= len(seen) - 2 * first <= 2
        env.run(until=2_000_000_000)
        assert path.machine.window.completed > 2 * first - 2
        assert 0 <= len(seen) - 2 * path.machine.window.completed <= 2

    def test_running_in_pieces_is_running_at_once(self) -> None:
        whole = iosim.install("e1000", workload="rr", run__seed=3)
        whole.env.run(until=3_000_000_000)
        pieces = iosim.install("e1000", workload="rr", run__seed=3)
        for end in range(100_000_000, 3_000_000_001, 100_000_000):
            pieces.env.run(until=end)
        assert (whole.machine.table.rows() == pieces.machine.table.rows()).all()
        assert whole.machine.counters.n == pieces.machine.counters.n

    def test_a_kick_from_outside(self) -> None:
        """A user's process may notify a channel: here a kick that finds an empty ring, counted as spurious."""
        env = simpy.Environment()
        path = iosim.install("vhost-net", env, workload="rr", workload__peer_delay="1s")

        def mischief() -> Generator[simpy.Event, None, None]:
            yield env.timeout(500_000_000)
            path.engine.notify("vhost worker")

        env.process(mischief())
        env.run(until=1_000_000_000)
        assert path.machine.window.completed == 1

    def test_unknown_channel_names_the_nearest(self) -> None:
        path = iosim.install("vhost-net")
        with pytest.raises(iosim.IosimError, match="unknown channel 'vhost workr'; did you mean 'vhost worker'"):
            path.engine.notified("vhost workr")
