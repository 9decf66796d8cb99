"""SimPy as its tutorial teaches it: what people write who have no iosim. One process per request, Store, Resource.

The transmit path has the stages of iosim's virtio-net with the same distributions (from Python's `random`) and the
same mechanisms that decide when work is done: the guest sleeps until a timer wakes it, QEMU sleeps until it is kicked
and drains the ring. It has no ring in memory, no interrupts of the transmit queue and no preemption.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator
from typing import Any

import simpy

from iosim.engine.distributions import Constant, Distribution, Exponential, LogNormal, Uniform
from iosim.host import costs
from iosim.specification import Specification

Process = Generator[simpy.Event, Any, None]


def sampler(distribution: Distribution, rng: random.Random) -> Callable[[], float]:
    if isinstance(distribution, Constant):
        value = distribution.value
        return lambda: value
    if isinstance(distribution, Exponential):
        rate = 1 / distribution.mean
        return lambda: rng.expovariate(rate)
    if isinstance(distribution, Uniform):
        low, high = distribution.low, distribution.high
        return lambda: rng.uniform(low, high)
    assert isinstance(distribution, LogNormal)
    sigma = math.sqrt(math.log1p((distribution.spread / distribution.mean) ** 2))
    mu = math.log(distribution.mean) - sigma * sigma / 2
    return lambda: rng.lognormvariate(mu, sigma)


class Transmit:
    """The virtio transmit path, for ``requests`` packets of an open loop."""

    def __init__(self, spec: Specification, requests: int) -> None:
        self.env = simpy.Environment()
        rng = random.Random(spec.run.seed)
        self.cost = {
            name: sampler(d, rng) for name, d in zip(costs.NAMES, spec.cost_distributions(), strict=True)
        }
        per_byte = dict(zip(costs.NAMES, spec.cost_rates(), strict=True))
        self.copy_hot = per_byte["copy_hot"] / 1024 * spec.workload.frame
        self.copy_cold = per_byte["copy_cold"] / 1024 * spec.workload.frame
        self.wire_time = per_byte["wire"] / 1024 * spec.workload.wire_bytes
        self.requests = requests
        self.vcpu = simpy.Resource(self.env, 1)
        self.nic = simpy.Resource(self.env, 1)
        self.ring = simpy.Store(self.env, spec.device.model_dump()["tx_queue_size"])
        self.kick = simpy.Store(self.env)
        self.halted = True
        self.halted_at = 0.0
        self.halt_poll = float(spec.host.properties["halt_poll_ns"].value)
        self.qemu_sleeps = True
        self.stamps: list[dict[str, float]] = []
        self.done = self.env.event()
        self.completed = 0
        self.env.process(self.arrivals())
        self.env.process(self.qemu())

    def run(self) -> int:
        """Run to the end; return how many events SimPy has scheduled."""
        self.env.run(until=self.done)
        return next(self.env._eid)

    def mean_latency(self) -> float:
        """In ns."""
        return sum(s["on_wire"] - s["created"] for s in self.stamps) / len(self.stamps) / 1000

    def arrivals(self) -> Process:
        for _ in range(self.requests):
            yield self.env.timeout(self.cost["interarrival"]())
            self.env.process(self.send())

    def send(self) -> Process:
        env, cost = self.env, self.cost
        stamp = {"created": env.now}
        self.stamps.append(stamp)
        with self.vcpu.request() as running:
            yield running
            if self.halted:
                yield env.timeout(cost["irq_injection"]())
                if env.now - self.halted_at > self.halt_poll:
                    yield env.timeout(cost["vcpu_wakeup"]())
                yield env.timeout(cost["vm_entry"]())
                yield env.timeout(cost["irq_entry"]())
                yield env.timeout(cost["guest_timer"]())
                yield env.timeout(cost["guest_wakeup"]())
                self.halted = False
            yield env.timeout(cost["sys_sendmsg"]())
            yield env.timeout(cost["copy_hot"]() + self.copy_hot)
            yield env.timeout(cost["guest_stack_tx"]())
            stamp["sent"] = env.now
            yield env.timeout(cost["rearm_window"]())
            yield env.timeout(cost["driver_xmit"]())
            yield self.ring.put(stamp)
            stamp["available"] = env.now
            if self.qemu_sleeps:
                self.qemu_sleeps = False
                yield env.timeout(cost["vm_exit"]())
                yield env.timeout(cost["kvm_ioeventfd"]())
                yield self.kick.put(True)
                stamp["kicked"] = env.now
                yield env.timeout(cost["vm_entry"]())
            yield env.timeout(cost["driver_free"]())
            if not self.vcpu.queue:
                yield env.timeout(cost["vm_exit"]())  # the timer's register, then HLT
                yield env.timeout(cost["kvm_tsc_deadline"]())
                self.halted = not self.vcpu.queue
                self.halted_at = env.now

    def qemu(self) -> Process:
        env, cost = self.env, self.cost
        while True:
            yield self.kick.get()
            yield env.timeout(cost["thread_wakeup"]())
            yield env.timeout(cost["sys_ppoll"]())
            yield env.timeout(cost["sys_read"]())
            yield env.timeout(cost["sys_ppoll"]())
            yield env.timeout(cost["qemu_bh"]())
            while self.ring.items:
                stamp = yield self.ring.get()
                stamp["tx_seen"] = env.now
                yield env.timeout(cost["qemu_virtio_packet"]())
                yield env.timeout(cost["qemu_net_queue"]())
                yield env.timeout(cost["sys_write"]())
                yield env.timeout(cost["copy_cold"]() + self.copy_cold)
                yield env.timeout(cost["tap_write"]())
                yield env.timeout(cost["bridge"]())
                yield env.timeout(cost["nic_tx"]())
                stamp["processed"] = env.now
                env.process(self.wire(stamp))
            self.qemu_sleeps = True

    def wire(self, stamp: dict[str, float]) -> Process:
        with self.nic.request() as sending:
            yield sending
            yield self.env.timeout(self.wire_time)
        stamp["on_wire"] = self.env.now
        self.completed += 1
        if self.completed == self.requests:
            self.done.succeed()
