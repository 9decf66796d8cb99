"""What long runs cost: CPU seconds and peak memory by the number of requests, and two workers beside one.

    python benchmarks/growth.py MODEL WORKLOAD REQUESTS     one run in this process, as JSON
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

from iosim.parallel import run_all
from iosim.run import run
from iosim.specification import specify


def peak_bytes() -> int:
    """Peak resident memory of this process. (Linux's ru_maxrss is no less than the parent's was at the start.)"""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one_run(model: str, workload: str, requests: int) -> dict[str, float]:
    """In this process: a short run first, which loads the code, then the one that counts."""
    settings = {"run.engine": "compiled", "run.requests": 1000}
    run(specify(model, workload=workload, settings=settings))
    before = peak_bytes()
    began = os.times()
    result = run(specify(model, workload=workload, settings={**settings, "run.requests": requests}))
    ended = os.times()
    peak = peak_bytes()
    return {
        "requests": requests,
        "seconds": ended.user + ended.system - began.user - began.system,
        "system_s": ended.system - began.system,
        "peak_bytes": peak,
        "bytes_per_request": (peak - before) / requests,
        "milestones": len(result.milestones),
    }


def in_its_own_process(model: str, workload: str, requests: int) -> dict[str, Any]:
    command = [sys.executable, __file__, model, workload, str(requests)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def workers(model: str, workload: str, requests: int, count: int) -> float:
    """Wall-clock seconds of two runs of different seeds, with so many workers."""
    base = {"run.engine": "compiled", "run.requests": requests}
    specs = [specify(model, workload=workload, settings={**base, "run.seed": seed}) for seed in (1, 2)]
    began = time.perf_counter()
    run_all(specs, workers=count)
    return time.perf_counter() - began


def plain_threads(count: int) -> float:
    """Wall-clock seconds of two hashes in C, with so many threads: what the machine has to give just now."""
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda _: sha256(bytes(1 << 28)).digest(), range(2)))
    return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(one_run(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
