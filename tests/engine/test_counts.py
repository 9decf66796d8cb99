"""What a run on the SimPy engine costs, in counts: timers, SimPy events, processes, memory. No clocks.

A change for the worse fails here on any machine. The bounds stand half a timer above what is needed at present; who
needs fewer lowers them. How fast it is, is measured by the programs in benchmarks/.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc

import numpy as np
import pytest
import simpy
from simpy.events import Event, Process, ProcessGenerator

import iosim
from iosim import model as registry
from iosim.result import Result

# Per request in the default host: events, and timers that SimPy is given for them; rr at depth 1, tx and rx as they are
# by default (32 under way). Every step that takes time is an event, and so is every wake-up, poll and device timer. A
# step needs no timer where nothing else is due before it ends.
COUNTS = {
    ("e1000", "rr"): (105.0, 14.9),
    ("e1000", "tx"): (25.1, 2.0),
    ("e1000", "rx"): (17.4, 6.9),
    ("ne2k_pci", "rr"): (549.0, 15.7),
    ("ne2k_pci", "tx"): (380.0, 1.0),
    ("ne2k_pci", "rx"): (207.1, 6.3),
    ("rtl8139", "rr"): (142.0, 13.0),
    ("rtl8139", "tx"): (49.0, 1.0),
    ("rtl8139", "rx"): (17.9, 6.6),
    ("pcnet", "rr"): (361.0, 125.5),
    ("pcnet", "tx"): (184.9, 60.0),
    ("pcnet", "rx"): (20.8, 8.2),
    **{
        (name, workload): counts
        for name in ("i82551", "i82557b", "i82559er")
        for workload, counts in (("rr", (169.0, 16.1)), ("tx", (87.0, 2.0)), ("rx", (17.1, 6.7)))
    },
    ("virtio-net", "rr"): (66.0, 14.1),
    ("virtio-net", "tx"): (14.5, 5.9),
    ("virtio-net", "rx"): (16.6, 10.1),
    ("vhost-net", "rr"): (55.0, 13.8),
    ("vhost-net", "tx"): (23.8, 13.0),
    ("vhost-net", "rx"): (14.7, 8.9),
    ("vhost-user", "rr"): (53.0, 22.7),
    ("vhost-user", "tx"): (25.5, 12.0),
    ("vhost-user", "rx"): (14.1, 6.8),
    ("vfio", "rr"): (36.0, 14.1),
    ("vfio", "tx"): (10.0, 4.1),
    ("vfio", "rx"): (6.7, 2.6),
    ("bare-metal", "rr"): (26.0, 8.0),
    ("bare-metal", "tx"): (7.9, 2.6),
    ("bare-metal", "rx"): (6.4, 2.4),
    ("prodcons", "tx"): (2.7, 2.2),
}
PATHS = [(name, workload) for name in registry.names() for workload in registry.find(name).workloads]
IDS = ["-".join(path) for path in PATHS]


def run(model: str, workload: str, requests: int, **settings: object) -> Result:
    # The same warm-up whatever the length, so that the difference of two runs is the requests' own.
    fixed = {"run.engine": "simpy", "run.warmup": 100}
    return iosim.simulate(model, workload=workload, requests=requests, settings=fixed, **settings)


class Counting(simpy.Environment):
    """A SimPy environment that counts what is scheduled and which processes are made."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduled = 0
        self.processes: list[Process] = []

    def schedule(self, event: Event, *more: int, **named: int) -> None:
        self.scheduled += 1
        super().schedule(event, *more, **named)  # type: ignore[arg-type]

    def process(self, generator: ProcessGenerator) -> Process:
        made = Process(self, generator)
        self.processes.append(made)
        return made


def installed(model: str, workload: str, env: simpy.Environment, **settings: object) -> iosim.Installed:
    return iosim.install(model, env, workload=workload, **settings)


def complete(path: iosim.Installed, requests: int) -> None:
    """Go on until so many requests are complete."""
    while path.machine.window.completed < requests:
        path.env.step()


def test_every_path_has_its_numbers() -> None:
    assert set(COUNTS) == set(PATHS)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workload"), PATHS, ids=IDS)
def test_events_and_timers_per_request(model: str, workload: str) -> None:
    path = installed(model, workload, simpy.Environment())
    complete(path, 600)
    events, timers = path.engine.events, path.engine.timers
    complete(path, 1600)
    assert (path.engine.events - events) / 1000 <= COUNTS[model, workload][0] + 0.5
    assert (path.engine.timers - timers) / 1000 <= COUNTS[model, workload][1] + 0.5


def test_a_process_alone_needs_no_timers() -> None:
    """A step that ends before anything else is due ends at once; time goes on all the same, and others are on time."""
    env = Counting()
    path = installed("virtio-net", "rr", env)
    seen = []

    def watcher() -> ProcessGenerator:
        while True:
            yield env.timeout(1_000_000)
            seen.append(env.now)

    env.process(watcher())
    env.run(until=50_500_000)
    assert seen == [1_000_000 * i for i in range(1, 51)]
    assert env.now == 50_500_000
    assert path.machine.clock.now <= env.now


@pytest.mark.parametrize("model", ["vhost-net", "e1000"])
def test_an_environment_that_waits_for_the_clock_sees_every_step(model: str) -> None:
    """SimPy's RealtimeEnvironment sleeps between events, so each step must be one; the result is the same."""
    at_once = installed(model, "rr", simpy.Environment())
    stepwise = installed(model, "rr", simpy.RealtimeEnvironment(factor=1e-15, strict=False))
    for path in (at_once, stepwise):
        complete(path, 30)
    assert stepwise.engine.timers == stepwise.engine.events > 2 * at_once.engine.timers
    rows = min(at_once.machine.table.created, stepwise.machine.table.created) - 1
    assert np.array_equal(at_once.machine.table.rows()[:rows], stepwise.machine.table.rows()[:rows])


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workload"), PATHS, ids=IDS)
def test_simpy_sees_nothing_but_timers(model: str, workload: str) -> None:
    """No Store, no Resource, no event for a process's turn: a notification that takes no time schedules nothing."""
    env = Counting()
    path = installed(model, workload, env)
    complete(path, 500)
    # At the start: one event to begin each process, and one to begin the run. At the end: signals on their way,
    # which are counted when they arrive.
    assert env.scheduled - path.engine.timers <= len(env.processes) + 1 + 2


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workload"), PATHS, ids=IDS)
def test_one_process_for_each_of_the_model_and_none_for_a_request(model: str, workload: str) -> None:
    env = Counting()
    path = installed(model, workload, env)
    assert len(env.processes) == len(path.system.processes)
    complete(path, 500)
    assert len(env.processes) == len(path.system.processes)
    assert all(process.is_alive for process in env.processes)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workload"), PATHS, ids=IDS)
def test_what_a_request_leaves_behind(model: str, workload: str) -> None:
    """Once it is complete: its number in the order of completion, and what stands in the rings of finite queues.

    Those are numbers of 1 block each, one for every queue of the path that is not full yet, three at most. Costs are
    constant here, because draws are made ahead in growing chunks. It begins when queues of 1000 have been gone around
    and hold no numbers up to 256 any more, of which Python has one each.
    """
    path = installed(model, workload, simpy.Environment(), host__constant=True)
    complete(path, 1300)
    gc.collect()
    before = sys.getallocatedblocks()
    complete(path, 3300)
    assert (sys.getallocatedblocks() - before) / 2000 <= 4.1


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workload"), PATHS, ids=IDS)
def test_memory_at_the_peak(model: str, workload: str) -> None:
    """A time stamp takes 8 bytes in each of four places at most, whatever else a request needs takes 40 bytes.

    The four: a table that is up to twice as large as it need be, the measured requests in order, and the same with
    skipped milestones filled in.
    """

    def peak(requests: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            run(model, workload, requests, host__constant=True)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    run(model, workload, 20, host__constant=True)  # what is made once and kept: tables of draws, imports
    milestones = len(run(model, workload, 20, host__constant=True).milestones)
    assert (peak(1900) - peak(900)) / 1000 <= 4 * 8 * milestones + 40


def test_what_a_result_keeps() -> None:
    """One number a milestone, and the request's row: 16 bytes a milestone are the most that are allowed."""
    result = run("vhost-net", "rr", 1000)
    kept = result.stamps.nbytes + result.rows.nbytes
    assert kept == 1000 * 8 * (len(result.milestones) + 1)
