"""How fast the rings are over shared memory, against a device that other people wrote: qemu-storage-daemon.

    python benchmarks/peers.py [--seconds N] [--json]

One queue of 128 descriptors, reads of 4 KiB at random from a file that is in the page cache. At depth 1 each request
waits for the one before: publish, kick, sleep, be called, take. At depth 16 whatever came back is replaced at once.
Requests per second of wall time, the median of five turns; what is measured is both processes and the two wake-ups
between them, so compare with care. `cycle` is iosim's part alone: CPU time of this process per request.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from iosim.vhost_user.blk_driver import BlkDriver
from iosim.vhost_user.errors import VhostUserError
from iosim.vhost_user.frontend import Frontend
from iosim.vhost_user.memory import SharedMemory
from iosim.virtio.blk import VIRTIO_BLK_T_IN
from iosim.virtio.features import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC

BLOCK = 4096
DISK = 64 << 20
TURNS = 5
MIXES = {
    "flags": 0,
    "event_idx": 1 << VIRTIO_RING_F_EVENT_IDX,
    "event_idx, indirect": 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC,
}


def turn(driver: BlkDriver, depth: int, seconds: float, rng: random.Random) -> tuple[float, float]:
    """Keep ``depth`` reads in flight; return requests per second, and CPU seconds of this process for each."""

    def submit() -> None:
        driver.submit(VIRTIO_BLK_T_IN, rng.randrange(DISK // BLOCK) * (BLOCK // 512), read=BLOCK)

    for _ in range(depth):
        submit()
    queue = driver.queue
    queue.kick()
    done = 0
    began, used = time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) - began < seconds:
        queue.driver.disable_cb()
        found = 0
        while driver.collect() is not None:
            found += 1
        for _ in range(found):
            submit()
        if found:
            queue.kick()
        done += found
        if queue.driver.enable_cb() and not queue.wait(5):
            raise VhostUserError("the device does not answer")
    used = time.process_time() - used
    driver.collect_all(depth, lambda _: None)
    return done / (now - began), used / done


def measure(socket: Path, seconds: float) -> list[dict[str, object]]:
    results = []
    for name, features in MIXES.items():
        for depth in (1, 16):
            with SharedMemory.create(16 << 20) as mem, Frontend.connect(socket) as frontend:
                frontend.negotiate(features)
                frontend.share(mem)
                driver = BlkDriver(frontend, frontend.add_queue(0, 128), depth, BLOCK)
                rng = random.Random(1)
                turn(driver, depth, seconds / 4, rng)
                driver.queue.kicks = driver.queue.calls = 0
                turns = [turn(driver, depth, seconds, rng) for _ in range(TURNS)]
                iops = statistics.median(rate for rate, _ in turns)
                total = sum(rate * seconds for rate, _ in turns)
                results.append(
                    {
                        "ring": name,
                        "depth": depth,
                        "iops": round(iops),
                        "cycle_us": round(1e6 * statistics.median(cpu for _, cpu in turns), 1),
                        "kicks_per_request": round(driver.queue.kicks / total, 3),
                        "calls_per_request": round(driver.queue.calls / total, 3),
                    }
                )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of each turn")
    parser.add_argument("--json", action="store_true", help="one document to stdout")
    options = parser.parse_args()
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        sys.exit("qemu-storage-daemon is not installed (Debian: qemu-system-common)")
    with tempfile.TemporaryDirectory() as directory:
        disk, socket = Path(directory) / "disk", Path(directory) / "socket"
        disk.write_bytes(os.urandom(1 << 20) * (DISK >> 20))
        export = f"vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={socket}"
        daemon = subprocess.Popen(
            [program, "--blockdev", f"driver=file,node-name=disk,filename={disk}", "--export", export],
            start_new_session=True,
        )
        try:
            results = measure(socket, options.seconds)
        finally:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
    if options.json:
        print(json.dumps({"peer": "qemu-storage-daemon", "block": BLOCK, "results": results}))
        return
    print(f"{'ring':22}{'depth':>6}{'IOPS':>9}{'cycle µs':>10}{'kicks':>8}{'calls':>8}   (a request)")
    for row in results:
        print(
            f"{row['ring']:22}{row['depth']:>6}{row['iops']:>9}{row['cycle_us']:>10}"
            f"{row['kicks_per_request']:>8}{row['calls_per_request']:>8}"
        )


if __name__ == "__main__":
    main()
