"""CPUs and who may use them: affinity masks worked by hand, as properties of random systems, and on both engines."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iosim
from iosim import effects as fx
from iosim.effects import Effect
from iosim.engine.costs import CostTable
from iosim.engine.distributions import Constant
from iosim.engine.simpy_engine import SimpyEngine
from iosim.engine.system import System
from iosim.run import run
from iosim.specification import specify

Processes = Generator[Effect, None, None]
ONE, TEN, HUNDRED = 0, 1, 2
START = 1_000_000
"""ps: by then every thread has run its first step, on some CPU, and sleeps."""
COSTS = CostTable(["one", "ten", "hundred"], [Constant(1e3), Constant(1e4), Constant(1e5)], [0, 0, 0])


class Watched(SimpyEngine):
    """Checks at every turn that threads run where they may, and that no CPU is idle or ill used meanwhile.

    Attributes:
        places: (time in ns after `START`, thread, CPU) of every time that a thread was put on a CPU.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.places: list[tuple[float, str, int]] = []
        super().__init__(*args, **options)

    def _put(self, thread: Any, cpu: Any) -> None:
        assert cpu.thread is None
        assert thread.allowed is None or cpu.index in thread.allowed
        super()._put(thread, cpu)
        self.places.append(((self.clock.now - START) / 1000, thread.name, cpu.index))

    def _drain(self) -> None:
        super()._drain()
        if self._draining:
            return
        for cpu in self._cpus:
            waiting = [t for t in self._queue if t.allowed is None or cpu.index in t.allowed]
            if cpu.thread is None:
                assert not waiting, "a CPU is idle that a thread in line may use"
                continue
            assert cpu.thread.cpu is cpu
            assert all(t.priority <= cpu.thread.priority for t in waiting), "a lower priority runs"
            assert not waiting or cpu.slice_timer is not None, "nobody will hand this CPU on"
            current = cpu.thread.current
            assert not (waiting and current is not None and current.spinning >= 0), "polls although another could run"
        for thread in self._threads:
            ready = self._pick(thread) is not None
            assert ready == (thread.queued or thread.cpu is not None), "a runnable thread is nowhere"
            assert not (thread.queued and thread.cpu is not None)


class Room:
    """Threads that work once, with a log of (time in ns, who is done)."""

    def __init__(self) -> None:
        self.system = System()
        self.log: list[tuple[float, str]] = []

    def job(self, name: str, cost: int, *, at: int = 0, cpus: list[int] | None = None, priority: int = 0) -> None:
        """A thread that wakes up at a time (ns after `START`) and works for one cost."""
        thread = self.system.thread(name, priority)
        self.system.pin(thread, cpus)

        def work() -> Processes:
            yield fx.sleep_until(START + at * 1000)
            yield fx.spend(cost)
            self.say(name)

        self.system.process(name, work(), thread=thread)

    def say(self, what: str) -> None:
        self.log.append(((self.system.clock.now - START) / 1000, what))

    def run(self, **options: int) -> Watched:
        engine = Watched(self.system, COSTS, **options)
        engine.run(until=10_000_000)
        return engine


# -- worked by hand ---------------------------------------------------------------------------------------------


def test_a_pinned_thread_waits_for_its_cpu_though_another_is_idle() -> None:
    room = Room()
    room.job("a", HUNDRED, cpus=[1])
    room.job("b", TEN, at=20, cpus=[1])
    engine = room.run(cpus=2)
    assert room.log == [(100, "a"), (110, "b")]
    assert {cpu for _, name, cpu in engine.places if name in "ab"} == {1}


def test_a_thread_that_may_move_does_so_at_the_end_of_its_slice() -> None:
    """b may use CPU 0 alone, where a runs; a hands it on after 30 ns and goes to CPU 1, which was idle all the time."""
    room = Room()
    room.job("a", HUNDRED)
    room.job("b", HUNDRED, at=10, cpus=[0])
    engine = room.run(cpus=2, timeslice=30_000, switch=ONE)
    assert engine.places[-2:] == [(40, "b", 0), (40, "a", 1)]
    # Only b's was a direct switch from one thread to another, which costs 1 ns.
    assert room.log == [(100, "a"), (141, "b")]


def test_who_is_preempted_moves_to_an_idle_cpu_at_once() -> None:
    room = Room()
    room.job("low", HUNDRED)
    room.job("high", TEN, at=50, cpus=[0], priority=1)
    engine = room.run(cpus=2)
    assert engine.places[-2:] == [(50, "high", 0), (50, "low", 1)]
    assert room.log == [(60, "high"), (100, "low")]


def test_who_is_preempted_preempts_where_it_can() -> None:
    """Three priorities on two CPUs: the middle one makes way for the highest and takes the lowest one's CPU."""
    room = Room()
    room.job("middle", HUNDRED, priority=1)
    room.job("low", HUNDRED)
    room.job("high", TEN, at=50, cpus=[0], priority=2)
    engine = room.run(cpus=2)
    assert engine.places[-3:] == [(50, "high", 0), (50, "middle", 1), (60, "low", 0)]
    assert room.log == [(60, "high"), (100, "middle"), (110, "low")]


def test_the_victim_is_the_lowest_of_the_cpus_that_may_be_used() -> None:
    room = Room()
    room.job("lowest", HUNDRED, cpus=[0])
    room.job("low", HUNDRED, cpus=[1], priority=1)
    room.job("high", TEN, at=50, cpus=[1], priority=2)
    room.run(cpus=2)
    assert room.log == [(60, "high"), (100, "lowest"), (110, "low")]


def test_a_free_cpu_goes_to_the_first_in_line_that_may_use_it() -> None:
    room = Room()
    room.job("a", HUNDRED, cpus=[0])
    room.job("b", TEN, cpus=[1])
    room.job("for 0", TEN, at=1, cpus=[0])
    room.job("for 1", TEN, at=2, cpus=[1])
    room.run(cpus=2)
    assert room.log == [(10, "b"), (20, "for 1"), (100, "a"), (110, "for 0")]


@pytest.mark.parametrize(("cpu", "gives_up"), [(0, 100), (1, 500)])
def test_a_poller_makes_room_for_who_may_use_its_cpu(cpu: int, gives_up: int) -> None:
    room = Room()
    never = room.system.channel("never")

    def poller() -> Processes:
        yield fx.sleep_until(START)
        yield fx.spin(never, 500_000)
        room.say("gave up")

    thread = room.system.thread("poller")
    room.system.pin(thread, [0])
    room.system.process("poller", poller(), thread=thread)
    room.job("busy", HUNDRED, at=50, cpus=[1])
    room.job("busy too", HUNDRED, at=99, cpus=[1])
    room.job("other", TEN, at=100, cpus=[cpu])
    room.run(cpus=2)
    assert (gives_up, "gave up") in room.log


@pytest.mark.parametrize(
    ("granularity", "log"),
    [
        # By slices: a is done before its slice is over, then who came first.
        (-1, [(100, "a"), (110, "b"), (120, "c")]),
        # b is placed at 80 - 30 = 50, c at 50 - 30 = 20: not far enough behind to preempt a, but c goes first.
        (80_000, [(100, "a"), (110, "c"), (120, "b")]),
        # b preempts a, and c preempts b (at 50 + 5 now); then who is furthest behind: b, and a.
        (10_000, [(95, "c"), (100, "b"), (120, "a")]),
    ],
)
def test_who_is_far_enough_behind_preempts_at_its_wake_up(granularity: int, log: list[tuple[float, str]]) -> None:
    """b wakes up when a has run for 80 ns, c 5 ns later; a slice is 30 ns."""
    room = Room()
    room.job("a", HUNDRED)
    room.job("b", TEN, at=80)
    room.job("c", TEN, at=85)
    engine = room.run(cpus=1, granularity=granularity, timeslice=30_000)
    assert room.log == log
    assert engine.busy() == [100_000, 10_000, 10_000]


def test_a_pin_that_no_cpu_fulfils_is_refused() -> None:
    room = Room()
    room.job("a", ONE, cpus=[2, 5])
    with pytest.raises(ValueError, match=r"thread 'a' is pinned to CPUs \[2, 5\] of 2"):
        room.run(cpus=2)
    with pytest.raises(ValueError, match="needs a CPU"):
        room.job("b", ONE, cpus=[])
    room.run(cpus=0)  # a CPU each


# -- properties -------------------------------------------------------------------------------------------------


@st.composite
def rooms(draw: st.DrawFn) -> tuple[int, list[dict[str, Any]]]:
    cpus = draw(st.integers(1, 4))
    masks = st.none() | st.lists(st.integers(0, cpus - 1), min_size=1, unique=True)
    thread = st.fixed_dictionaries(
        {
            "priority": st.integers(0, 2),
            "cpus": masks,
            "steps": st.lists(
                st.tuples(st.sampled_from(["spend", "sleep", "spin", "notify"]), st.integers(0, 2)), max_size=8
            ),
        }
    )
    return cpus, draw(st.lists(thread, min_size=1, max_size=7))


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(rooms(), st.sampled_from([7_000, 30_000]), st.booleans(), st.sampled_from([-1, 0, 5_000]))
def test_threads_run_where_they_may_and_no_cpu_is_idle_that_one_could_use(
    drawn: tuple[int, list[dict[str, Any]]], timeslice: int, costly: bool, granularity: int
) -> None:
    cpus, threads = drawn
    system = System()
    channels = [system.channel(f"c{i}") for i in range(len(threads))]
    done = []

    def play(number: int, steps: list[tuple[str, int]]) -> Processes:
        for what, n in steps:
            if what == "spend":
                yield fx.spend(n)
            elif what == "sleep":
                yield fx.sleep_until(system.clock.now + 9_000 * n + 1)
            elif what == "spin":
                yield fx.spin(channels[number], 10_000 * n)
            else:
                yield fx.notify(channels[(number + n) % len(channels)])
        done.append(number)

    for number, thread in enumerate(threads):
        place = system.thread(f"t{number}", thread["priority"])
        system.pin(place, thread["cpus"])
        system.process(f"t{number}", play(number, thread["steps"]), thread=place)
    options = {"granularity": granularity, **({"switch": ONE} if costly else {})}
    engine = Watched(system, COSTS, cpus=cpus, timeslice=timeslice, **options)
    engine.run(until=20_000_000)
    assert sorted(done) == list(range(len(threads)))
    assert sum(engine.busy()) <= cpus * 20_000_000


# -- both engines -----------------------------------------------------------------------------------------------


def same(model: str, workload: str, chosen: dict[str, Any]) -> None:
    """Every time stamp, counter and busy time on either engine alike; or the same refusal."""
    found: list[Any] = []
    for engine in ("simpy", "compiled"):
        try:
            result = run(specify(model, workload=workload, settings={**chosen, "run.engine": engine}))
        except iosim.IosimError as error:
            # One CPU, or hogs: too little is done, on either engine, and in the same words.
            found.append(str(error))
        else:
            found.append((result.stamps.tolist(), result.rows.tolist(), result.snapshots))
    assert found[0] == found[1]


needs_compiled = pytest.mark.skipif(importlib.util.find_spec("llvmlite") is None, reason="needs the extra fast")


@needs_compiled
@pytest.mark.parametrize(
    "chosen",
    [
        {"host.cpus": 2, "host.pin": "vcpu0:0,vhost:0"},
        {"host.cpus": 3, "host.pin": "vcpu*:0-1,*softirq:2,hog:0", "host.hogs": 1, "host.timeslice": "50us"},
        {"host.cpus": 2, "host.pin": "vcpu*:0,hog-1:1", "host.hogs": 2, "host.wakeup_granularity": "20us"},
    ],
)
def test_identical_with_pins(chosen: dict[str, Any]) -> None:
    same("vhost-net", "tx", {"run.requests": 600, **chosen})


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, str, dict[str, Any]]:
    model = draw(st.sampled_from(["vhost-net", "virtio-net", "e1000"]))
    cpus = draw(st.integers(1, 5))
    chosen: dict[str, Any] = {
        "run.requests": draw(st.sampled_from([30, 150])),
        "run.seed": draw(st.integers(0, 1000)),
        "host.cpus": cpus,
        "host.timeslice": draw(st.sampled_from(["10us", "100us", "3ms"])),
        "host.halt_poll_ns": draw(st.sampled_from(["0ns", "200us"])),
        "host.hogs": draw(st.sampled_from([0, 0, 1, 3])),
        "host.wakeup_granularity": draw(st.sampled_from(["none", "0ns", "1us", "1ms"])),
        "workload.depth": draw(st.sampled_from([1, 7, 64])),
    }
    if model != "e1000":
        chosen["device.queues"] = draw(st.sampled_from([1, 2, 4]))
        chosen["guest.vcpus"] = min(chosen["device.queues"], draw(st.sampled_from([1, 2, 8])))
    back_end = {"vhost-net": "vhost*", "virtio-net": "qemu-main", "e1000": "qemu-main"}[model]
    names = ["vcpu*", "vcpu0", "host-softirq", back_end, "*"] + (["hog*"] if chosen["host.hogs"] else [])
    pins = draw(st.lists(st.tuples(st.sampled_from(names), st.sets(st.integers(0, cpus - 1), min_size=1)), max_size=4))
    chosen["host.pin"] = "+".join(f"{name}:{','.join(map(str, sorted(mask)))}" for name, mask in pins) or "none"
    return model, draw(st.sampled_from(["rr", "tx", "rx"])), chosen


@needs_compiled
@pytest.mark.slow
def test_identical_whatever_the_pins() -> None:
    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(configurations())
    def check(drawn: tuple[str, str, dict[str, Any]]) -> None:
        same(*drawn)

    check()


@pytest.mark.slow
@needs_compiled
def test_compiled_once_whatever_the_pins_and_however_many_hogs(monkeypatch: pytest.MonkeyPatch) -> None:
    from iosim.engine.compiled import code

    monkeypatch.setenv("IOSIM_CACHE", "off")
    base: dict[str, Any] = {"run.engine": "compiled", "run.requests": 50, "host.cpus": 3}
    run(specify("vhost-net", settings=base))
    run(specify("vhost-net", settings={**base, "host.hogs": 1}))
    before = code.compilations
    for pin in ("vcpu0:0,vhost:0", "*:1", "none"):
        run(specify("vhost-net", settings={**base, "host.pin": pin}))
        run(specify("vhost-net", settings={**base, "host.pin": pin, "host.hogs": 4}))
    assert code.compilations == before
