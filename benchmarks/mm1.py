"""One queue, Poisson arrivals, one exponential server: what salabim, Ciw, SimPy and iosim can all express.

Mean time between arrivals 1.25, mean service 1, so a customer stays 1 / (1 - 0.8) = 5 on average. Each function plays
so many customers, keeps every customer's times, and returns the mean stay.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any

import simpy

from iosim.effects import Effect, notify, spend, wait
from iosim.engine.distributions import Distribution, Exponential
from iosim.engine.system import System
from iosim.fifo import Fifo, put, take_first
from iosim.host.costs import CONSUMER_WORK, PRODUCER_WORK
from iosim.host.machine import Machine
from iosim.model import Model
from iosim.requests import RequestTable, Stage, mark
from iosim.ring.memory import GuestMemory
from iosim.run import run
from iosim.settings import Settings
from iosim.specification import specify
from iosim.window import Window, complete, new_request

BETWEEN, SERVICE, STAY = 1.25, 1.0, 5.0
UNIT = 1_000_000
"""ps in iosim for one unit of time in the others."""


# -- SimPy --------------------------------------------------------------------------------------------------------


def with_simpy(customers: int, seed: int = 1) -> float:
    env = simpy.Environment()
    rng = random.Random(seed)
    server = simpy.Resource(env, 1)
    times: list[tuple[float, float, float]] = []

    def customer() -> Generator[simpy.Event, Any, None]:
        arrived = env.now
        with server.request() as turn:
            yield turn
            began = env.now
            yield env.timeout(rng.expovariate(1 / SERVICE))
        times.append((arrived, began, env.now))

    def source() -> Generator[simpy.Event, Any, None]:
        for _ in range(customers):
            yield env.timeout(rng.expovariate(1 / BETWEEN))
            env.process(customer())

    env.process(source())
    env.run()
    return sum(left - arrived for arrived, _, left in times) / len(times)


# -- salabim ------------------------------------------------------------------------------------------------------


def with_salabim(customers: int, seed: int = 1) -> float:
    import salabim as sim

    sim.yieldless(False)
    env = sim.Environment(trace=False, random_seed=seed)
    between, service = sim.Exponential(BETWEEN), sim.Exponential(SERVICE)
    server = sim.Resource("server")
    times: list[tuple[float, float, float]] = []

    class Customer(sim.Component):  # type: ignore[misc]
        def process(self) -> Generator[Any, Any, None]:
            arrived = env.now()
            yield self.request(server)
            began = env.now()
            yield self.hold(service.sample())
            self.release()
            times.append((arrived, began, env.now()))

    class Source(sim.Component):  # type: ignore[misc]
        def process(self) -> Generator[Any, Any, None]:
            for _ in range(customers):
                yield self.hold(between.sample())
                Customer()

    Source()
    env.run()
    return sum(left - arrived for arrived, _, left in times) / len(times)


# -- Ciw ----------------------------------------------------------------------------------------------------------


def with_ciw(customers: int, seed: int = 1) -> float:
    import ciw

    ciw.seed(seed)
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Exponential(1 / BETWEEN)],
        service_distributions=[ciw.dists.Exponential(1 / SERVICE)],
        number_of_servers=[1],
    )
    simulation = ciw.Simulation(network)
    simulation.simulate_until_max_customers(customers, method="Finish")
    records = simulation.get_all_records()
    return float(sum(r.exit_date - r.arrival_date for r in records) / len(records))


# -- iosim --------------------------------------------------------------------------------------------------------


class Queue:
    __slots__ = ("arrived", "line", "machine")

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.line = Fifo(1 << 16)
        self.arrived = machine.system.channel("arrived")


def source(q: Queue) -> Generator[Effect, None, None]:
    m = q.machine
    while not m.window.draining:
        yield spend(PRODUCER_WORK)
        row = yield from new_request(m.window, m.clock.now)
        put(q.line, row)
        yield notify(q.arrived)


def server(q: Queue) -> Generator[Effect, None, None]:
    m = q.machine
    while True:
        while q.line.count == 0:
            yield wait(q.arrived)
        row = take_first(q.line)
        mark(m.table, row, 1, m.clock.now)
        yield spend(CONSUMER_WORK)
        yield from complete(m.window, row, m.clock.now)


def build(_host: Any, _workload: Any, _settings: Settings) -> Machine:
    system = System()
    stages = [Stage("line", "client", "wait: queue"), Stage("service", "client", "work")]
    machine = Machine(system, Window(system, RequestTable(stages)), GuestMemory(4096))
    queue = Queue(machine)
    system.process("source", source(queue))
    system.process("server", server(queue))
    return machine


def exponentials(_settings: Settings) -> dict[str, Distribution]:
    return {"producer_work": Exponential(BETWEEN * UNIT), "consumer_work": Exponential(SERVICE * UNIT)}


MODEL = Model("mm1", "a queue with one server", Settings, build, ("tx",), costs=exponentials)


def with_iosim(customers: int, engine: str) -> float:
    spec = specify(MODEL, settings={"run.requests": customers, "run.warmup": 0, "run.engine": engine})
    return float(run(spec).latency_ps.mean()) / UNIT
