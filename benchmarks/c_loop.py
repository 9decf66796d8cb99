"""The hand-written C loops beside iosim: built, fed with iosim's own random streams, compared stamp by stamp."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from iosim.engine.distributions import Constant
from iosim.engine.draws import stream_key, table_for
from iosim.host import costs
from iosim.requests import filled
from iosim.result import Result
from iosim.specification import Specification

CELLS = 6 * 1024

# Contexts and costs of each loop, in the order of its enums.
PRODCONS = (
    ("producer", "consumer"),
    tuple(f"{side}_{cost}" for side in ("producer", "consumer") for cost in ("work", "notify", "start", "rearm")),
)
TRANSMIT = (
    (
        "kvm idle", "kvm ipi", "host NIC transmit", "client NIC", "tx arrivals", "timer interrupt", "guest timer",
        "guest softirq", "skb_xmit_done", "application", "qemu main loop",
    ),
    (
        "interarrival", "think_time", "sys_sendmsg", "copy_hot", "copy_cold", "guest_stack_tx", "rearm_window",
        "driver_xmit", "driver_free", "vm_exit", "vm_entry", "kvm_ioeventfd", "kvm_tsc_deadline",
        "kvm_external_interrupt", "kvm_interrupt_window", "kvm_eoi", "irq_injection", "reschedule_ipi", "vcpu_wakeup",
        "thread_wakeup", "sys_ppoll", "sys_read", "sys_write", "sys_ioctl", "qemu_bh", "qemu_virtio_packet",
        "qemu_net_queue", "tap_write", "bridge", "nic_tx", "wire", "irq_entry", "driver_irq", "softirq_entry",
        "guest_wakeup", "guest_timer",
    ),
)  # fmt: skip


@dataclass
class CRun:
    seconds: float
    events: int
    digest: str


def compiler() -> str | None:
    return shutil.which("cc")


def build(name: str, directory: Path) -> Path:
    """Compile benchmarks/NAME.c with cc -O2."""
    program = directory / name
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([compiler() or "cc", "-O2", "-o", str(program), str(source)], check=True)
    return program


def streams(spec: Specification, contexts: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    """Constant (-1: none), rate and quantiles of every cost; then the key of every context's stream of every cost."""
    numbers = [costs.NAMES.index(name) for name in names]
    distributions, rates = spec.cost_distributions(), spec.cost_rates()
    tables = np.full((len(names), 2 + CELLS), -1, dtype=np.int64)
    for words, number in zip(tables, numbers, strict=True):
        distribution = distributions[number]
        words[1] = rates[number]
        if isinstance(distribution, Constant):
            words[0] = round(distribution.value)
        else:
            words[2:] = table_for(distribution).values
    keys = [stream_key(spec.run.seed, spec.run.replication, f"{who}/{what}") for who in contexts for what in names]
    return np.concatenate([tables.ravel(), np.array(keys, dtype=np.uint64).view(np.int64)])


def digest(rows: np.ndarray, stamps: np.ndarray) -> str:
    """Of the measured requests in the order of completion: which they are, and every stamp."""
    found = blake2b(np.ascontiguousarray(rows, dtype=np.int64).tobytes(), digest_size=8)
    found.update(np.ascontiguousarray(stamps, dtype=np.int64).tobytes())
    return found.hexdigest()


def digest_of(result: Result) -> str:
    return digest(result.rows, result.stamps)


def _play(program: Path, spec: Specification, numbers: list[int], streams: np.ndarray, directory: Path) -> CRun:
    given, trace = directory / "given", directory / "trace"
    numbers = [spec.run.requests, spec.warmup, *numbers]
    np.concatenate([np.array([len(numbers), *numbers], dtype=np.int64), streams]).tofile(given)
    printed = subprocess.run([program, given, trace], check=True, capture_output=True, text=True).stdout.split()
    words = np.fromfile(trace, dtype=np.int64)
    trace.unlink()
    created = int(words[0])
    rows = words[1 : 1 + created][spec.warmup : spec.warmup + spec.run.requests]
    stamps = words[1 + created :].reshape(created, -1)
    return CRun(float(printed[0]), int(printed[1]), digest(rows, filled(stamps[rows])))


def prodcons(program: Path, spec: Specification, directory: Path) -> CRun:
    """Play a specification of prodcons (event index on, no polling) in C."""
    device = spec.device.model_dump()
    assert device["event_idx"]
    assert not device["poll"]
    numbers = [device["queue_size"], device["kp"], device["kc"]]
    return _play(program, spec, numbers, streams(spec, *PRODCONS), directory)


def transmit(program: Path, spec: Specification, directory: Path) -> CRun:
    """Play a specification of virtio-net, tx, open loop (event index on, a CPU for each thread, no APICv) in C."""
    device, w = spec.device.model_dump(), spec.workload
    p = {name: int(spec.host.properties[name].value) for name in spec.host.properties}
    assert w.open_loop
    assert device["event_idx"]
    assert not any((device["hub"], p["apicv"], p["cpus"]))
    numbers = [
        device["tx_queue_size"], w.size, w.frame, w.wire_bytes, device["tx_burst"], p["halt_poll_ns"],
        p["halt_poll_grow"], p["halt_poll_grow_start"], p["halt_poll_shrink"], p["pv_eoi"],
    ]  # fmt: skip
    return _play(program, spec, numbers, streams(spec, *TRANSMIT), directory)
