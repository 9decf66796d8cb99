"""Ring cycles a second: add, kick?, pop, push, interrupt?, get, in plain Python and compiled, for every format.

One cycle is a buffer's whole way through a queue, with both questions whether the other side is to be notified. The
compiled cycles are those of the simulator's engine: the same functions, translated. `python benchmarks/rings.py`.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from iosim.effects import Effect, spend
from iosim.engine.distributions import Constant
from iosim.engine.system import System
from iosim.host.costs import PRODUCER_WORK
from iosim.host.machine import Machine
from iosim.model import Model
from iosim.requests import RequestTable, Stage
from iosim.ring.memory import GuestMemory, allocate
from iosim.ring.queue import (
    DeviceQueue,
    DriverQueue,
    add,
    get_used,
    kick_prepare,
    new_queue,
    pop,
    push,
    should_notify,
)
from iosim.run import run
from iosim.settings import Flag, Settings
from iosim.specification import specify
from iosim.window import Window, complete, new_request

CYCLES = 1000
"""Cycles of one request of the model below."""
KINDS = {
    "split": {},
    "split, event_idx": {"event_idx": True},
    "split, event_idx, indirect": {"event_idx": True, "indirect": True},
    "packed": {"packed": True},
    "packed, event_idx": {"packed": True, "event_idx": True},
    "packed, event_idx, indirect": {"packed": True, "event_idx": True, "indirect": True},
}


class RingSettings(Settings):
    """``device.*`` of the rings' model."""

    packed: Flag = False
    event_idx: Flag = False
    indirect: Flag = False


def turn(driver: DriverQueue, device: DeviceQueue, cycles: int) -> int:
    """So many buffers of two descriptors through a queue; return how many notifications were due."""
    due = 0
    for i in range(cycles):
        add(driver, 1, 1, i)
        if kick_prepare(driver):
            due += 1
        head = pop(device)
        push(device, head, 64)
        if should_notify(device):
            due += 1
        get_used(driver)
    return due


def worker(machine: Machine, driver: DriverQueue, device: DeviceQueue) -> Generator[Effect, None, None]:
    while not machine.window.draining:
        row = yield from new_request(machine.window, machine.clock.now)
        turn(driver, device, CYCLES)
        yield spend(PRODUCER_WORK)
        yield from complete(machine.window, row, machine.clock.now)


def queues(**kind: bool) -> tuple[GuestMemory, DriverQueue, DeviceQueue]:
    memory = GuestMemory(1 << 20)
    driver, device = new_queue(memory, 256, kind.pop("event_idx", False), **kind)
    for i in range(2):
        driver.seg_addr[i], driver.seg_len[i] = allocate(memory, 64, 64), 64
    return memory, driver, device


def build(_host: Any, _workload: Any, settings: RingSettings) -> Machine:
    memory, driver, device = queues(**settings.model_dump())
    system = System()
    machine = Machine(system, Window(system, RequestTable([Stage("work", "guest", "work")])), memory)
    system.process("worker", worker(machine, driver, device), system.thread("worker"))
    return machine


MODEL = Model(
    "rings",
    "cycles of a virtqueue",
    RingSettings,
    build,
    ("tx",),
    costs=lambda _settings: {"producer_work": Constant(1)},
)


def compiled(requests: int, **kind: bool) -> float:
    """CPU seconds of a compiled run."""
    settings = {"run.engine": "compiled", "run.requests": requests, "run.warmup": 0}
    spec = specify(MODEL, settings=settings | {f"device.{name}": value for name, value in kind.items()})
    begin = time.process_time()
    run(spec)
    return time.process_time() - begin


def main() -> None:
    print(f"{'thousand cycles a second':<32}{'Python':>10}{'compiled':>10}")
    for name, kind in KINDS.items():
        _, driver, device = queues(**kind)
        turn(driver, device, 1000)
        seconds = []
        for _ in range(5):
            begin = time.process_time()
            turn(driver, device, 20_000)
            seconds.append((time.process_time() - begin) / 20_000)
        compiled(50, **kind)
        # The difference of two runs: what a run costs besides is in both.
        slow = [(compiled(2050, **kind) - compiled(50, **kind)) / 2000 / CYCLES for _ in range(5)]
        print(f"{name:<32}{1e-3 / sorted(seconds)[2]:>10.0f}{1e-3 / sorted(slow)[2]:>10.0f}")


if __name__ == "__main__":
    main()
