"""How long before iosim answers at all: CPU seconds of `import iosim` and of commands that simulate nothing.

Run it with the Python that iosim is installed in, and with the number of runs if 9 are too many or too few:

    .venv/bin/python benchmarks/first_use.py [RUNS]

Each run is a process of its own. Counted is user and system time, which does not depend on what else the machine does
as much as the clock does; the minimum depends on it least. The first row is Python itself, part of each of the others.
The goals: `import iosim` under 0.3 s, `iosim --help` under 0.5 s.
What is loaded, rather than how long it takes, is tested in tests/cli/test_first_use.py.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

RUNS = 9
PROGRAMS = {
    "python": ("-c", "pass"),
    "import iosim": ("-c", "import iosim"),
    "iosim --help": ("-m", "iosim", "--help"),
    "iosim workloads": ("-m", "iosim", "workloads"),
    "iosim models": ("-m", "iosim", "models"),
    "iosim hosts": ("-m", "iosim", "hosts"),
    "iosim run vhost-net -n 1": ("-m", "iosim", "run", "vhost-net", "-n", "1"),
}


def cpu_seconds(arguments: tuple[str, ...]) -> float:
    """User and system time of one fresh Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    # Interleaved, so that a busy minute of the machine falls on all programs alike; the first round fills the caches.
    rounds = [{name: cpu_seconds(arguments) for name, arguments in PROGRAMS.items()} for _ in range(runs + 1)][1:]
    print(f"{'CPU seconds':<26} {'min':>6} {'median':>7}   of {runs} runs")
    for name in PROGRAMS:
        times = [each[name] for each in rounds]
        print(f"{name:<26} {min(times):6.3f} {statistics.median(times):7.3f}")


if __name__ == "__main__":
    main()
