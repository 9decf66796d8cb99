"""How fast iosim is, beside what else there is: one command, one session, contestants taking turns.

    python benchmarks/bench.py [--quick | --long] [--json] [--rounds N]

Read the ratios: the machine has other things to do, and times differ from one machine to the next. Times are CPU
seconds of this process (of the child for C, import and growth), medians over the rounds; only the two workers are
timed by the clock, since that is what they are for. Each contestant runs once before anything counts, which loads its
code. A rate is of whole runs, from the specification to the result, random draws and recording included. Of that,
`fixed` is what a run of one request takes (specification, translation, code from memory), and `result` what comes
after the last event (the table of time stamps put in order); `ns/event` is of the rest, the simulation with its draws
and time stamps alone. The C loop and idiomatic SimPy have no such parts: they record the same stamps, and that is all.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import c_loop
import first_use
import growth
import idiomatic
import mm1

from iosim import model
from iosim.result import Result
from iosim.run import compiled_available, run
from iosim.specification import Specification, specify

RATE = 100_000
"""Packets per second of the transmit path: a third of what QEMU's main loop could carry."""
TRANSMIT = {"workload.rate": RATE}
PRODCONS = {"device.wp": "2068ns±200ns", "device.wc": "2000ns±200ns"}
PYTHON, FULL = {"quick": 3_000, "normal": 20_000, "long": 50_000}, {"quick": 50_000, "normal": 500_000, "long": 10**6}
CUSTOMERS = {"quick": 10_000, "normal": 100_000, "long": 100_000}
GROWTH = {"quick": [10**4, 10**5], "normal": [10**5, 10**6], "long": [10**5, 10**6, 10**7]}
ROUNDS = {"quick": 3, "normal": 5, "long": 5}
QUEUE_PAIRS = (1, 2, 4, 8)
COUNTED = 3_000
"""Requests on SimPy from which events per request are counted, where that is not a contestant."""

Contestant = Callable[[], dict[str, Any]]


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def take_turns(contestants: dict[str, Contestant], rounds: int, unseen: int = 1) -> dict[str, dict[str, Any]]:
    """Run all contestants in turn, a round that does not count and then ``rounds``; return every number's median."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for number in range(1 - unseen, rounds + 1):
        for name, contestant in contestants.items():
            say(f"{name}, {'warm-up' if number == 0 else f'round {number} of {rounds}'}")
            once = contestant()
            if number > 0:
                found[name].append(once)
    return {
        name: {
            key: value if isinstance(value, str) else statistics.median(each[key] for each in all_rounds)
            for key, value in all_rounds[0].items()
        }
        for name, all_rounds in found.items()
    }


def say(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{what:<70}", end="", file=sys.stderr, flush=True)


# -- one path on both engines, beside SimPy and C -------------------------------------------------------------------


class Events:
    """Events per request, from the reference engine; the compiled one has the same by construction."""

    def __init__(self) -> None:
        self.per_request: dict[str, float] = {}

    def learn(self, result: Result) -> None:
        requests = result.snapshots[-1].completed
        self.per_request[result.specification.model.name] = result.events / requests


def playing(
    name: str, settings: dict[str, Any], engine: str, requests: int, events: Events, workload: str = "tx"
) -> Contestant:
    def spec(count: int) -> Specification:
        return specify(name, workload=workload, settings={**settings, "run.engine": engine, "run.requests": count})

    def contestant() -> dict[str, Any]:
        fixed, _ = cpu(lambda: run(spec(1)))
        reported = [0.0]

        def progress(_fraction: float) -> None:
            reported[0] = time.process_time()

        seconds, result = cpu(lambda: run(spec(requests), progress))
        # The last report is made with the last measured request.
        after = time.process_time() - reported[0]
        done = result.snapshots[-1].completed
        if engine == "simpy":
            events.learn(result)
        per_request = events.per_request[name]
        return {
            "requests_per_s": done / seconds,
            "events_per_request": per_request,
            "simulated_per_s": done / (seconds - fixed - after),
            "ns_per_event": (seconds - fixed - after) * 1e9 / done / per_request,
            "fixed_ms": fixed * 1e3,
            "result_ms": after * 1e3,
            "mean_latency_us": float(result.latency_ps.mean()) / 1e6,
            "digest": c_loop.digest_of(result),
        }

    return contestant


def plain_simpy(requests: int) -> Contestant:
    spec = specify("virtio-net", workload="tx", settings=TRANSMIT)

    def contestant() -> dict[str, Any]:
        path = idiomatic.Transmit(spec, requests)
        seconds, events = cpu(path.run)
        return {
            "requests_per_s": requests / seconds,
            "events_per_request": events / requests,
            "ns_per_event": seconds * 1e9 / events,
            "mean_latency_us": path.mean_latency() / 1e3,
        }

    return contestant


def in_c(name: str, play: Any, spec: Specification, directory: Path) -> Contestant:
    program = c_loop.build(name, directory)

    def contestant() -> dict[str, Any]:
        found = play(program, spec, directory)
        done = spec.run.requests + spec.warmup
        return {
            "requests_per_s": done / found.seconds,
            "events_per_request": found.events / done,
            "ns_per_event": found.seconds * 1e9 / found.events,
            "digest": found.digest,
        }

    return contestant


def first_compilation(name: str, workload: str, settings: dict[str, Any]) -> dict[str, float]:
    """A fresh process that has to compile a path, and one that finds its code on disk."""
    program = (
        "import time\nfrom iosim.run import run\nfrom iosim.specification import specify\n"
        f"spec = specify({name!r}, workload={workload!r}, settings={{**{settings!r}, 'run.engine': 'compiled', "
        "'run.requests': 1})\nbegan = time.process_time()\nrun(spec)\nprint(time.process_time() - began)"
    )
    command = [sys.executable, "-c", program]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        seconds = [
            float(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
            for _ in range(2)
        ]
    return {"compiling_s": seconds[0], "from_disk_s": seconds[1]}


def paths(size: str, rounds: int, directory: Path) -> dict[str, Any]:
    """The transmit path and the saturated pair."""
    events, n, full = Events(), PYTHON[size], FULL[size]
    compiled = compiled_available()
    transmit: dict[str, Contestant] = {
        "idiomatic SimPy": plain_simpy(n),
        "iosim on SimPy": playing("virtio-net", TRANSMIT, "simpy", n, events),
    }
    pair: dict[str, Contestant] = {"iosim on SimPy": playing("prodcons", PRODCONS, "simpy", n, events)}
    if compiled:
        transmit["iosim compiled"] = playing("virtio-net", TRANSMIT, "compiled", full, events)
        pair["iosim compiled"] = playing("prodcons", PRODCONS, "compiled", 2 * full, events)
        if c_loop.compiler() is not None:
            spec = specify("prodcons", settings={**PRODCONS, "run.requests": 2 * full})
            pair["C"] = in_c("prodcons", c_loop.prodcons, spec, directory)
            spec = specify("virtio-net", workload="tx", settings={**TRANSMIT, "run.requests": full})
            transmit["C"] = in_c("transmit", c_loop.transmit, spec, directory)
    found: dict[str, Any] = {
        "virtio-net tx": take_turns(transmit, rounds),
        "prodcons": take_turns(pair, rounds),
    }
    for path, rows in found.items():
        # A loop that does something else would be no yardstick.
        if "C" in rows and rows["C"]["digest"] != rows["iosim compiled"]["digest"]:
            sys.exit(f"the C loop and iosim disagree about the trace of {path}")
    if compiled:
        found["first use of a path"] = first_compilation("virtio-net", "tx", TRANSMIT)
    return found


def queue_pairs(size: str, rounds: int) -> dict[str, Any]:
    """vhost-net with 1 to 8 queue pairs, a vCPU and a flow for each: the same code for all but the first."""
    contestants: dict[str, Contestant] = {}
    compiling: dict[str, float] = {}
    for pairs in QUEUE_PAIRS:
        settings = {"device.queues": pairs}
        label = f"{pairs} queue pair{'s' if pairs > 1 else ''}"
        events = Events()
        say(f"vhost-net rr, {label}, counting events")
        counted = {**settings, "run.engine": "simpy", "run.requests": COUNTED}
        events.learn(run(specify("vhost-net", workload="rr", settings=counted)))
        contestants[label] = playing("vhost-net", settings, "compiled", FULL[size], events, "rr")
        say(f"vhost-net rr, {label}, first use")
        compiling[label] = first_compilation("vhost-net", "rr", settings)["compiling_s"]
    found = take_turns(contestants, rounds)
    return {label: {**row, "compiling_s": compiling[label]} for label, row in found.items()}


# -- the other comparisons ------------------------------------------------------------------------------------------


def queue(size: str, rounds: int) -> dict[str, Any]:
    customers = CUSTOMERS[size]
    players: dict[str, Callable[[int], float]] = {"idiomatic SimPy": mm1.with_simpy}
    for module, play in (("salabim", mm1.with_salabim), ("ciw", mm1.with_ciw)):
        if importlib.util.find_spec(module) is not None:
            players[module] = play
    players["iosim on SimPy"] = lambda n: mm1.with_iosim(n, "simpy")
    if compiled_available():
        players["iosim compiled"] = lambda n: mm1.with_iosim(n, "compiled")

    def contestant(play: Callable[[int], float]) -> Contestant:
        def once() -> dict[str, Any]:
            seconds, stay = cpu(lambda: play(customers))
            assert abs(stay - mm1.STAY) < 0.2 * mm1.STAY, f"a customer stays {stay}, not {mm1.STAY}"
            return {"customers_per_s": customers / seconds, "mean_stay": stay}

        return once

    for name, play in players.items():
        say(f"{name}, warm-up")
        play(1000)
    # A minute for some: fewer rounds, and the warm-up was short.
    return take_turns({name: contestant(play) for name, play in players.items()}, min(rounds, 3), unseen=0)


def long_runs(size: str, rounds: int) -> dict[str, Any]:
    sizes = GROWTH[size]
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in sizes}
    times: dict[int, list[float]] = {1: [], 2: []}
    plain: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(min(rounds, 3)):
        for n in sizes:
            if n < 10**7 or not found[n]:
                say(f"vhost-net rr, {n} requests")
                found[n].append(growth.in_its_own_process("vhost-net", "rr", n))
        for count in times:
            say(f"vhost-net rr, {count} workers")
            times[count].append(growth.workers("vhost-net", "rr", sizes[1], count))
            plain[count].append(growth.plain_threads(count))
    runs = [{key: statistics.median(r[key] for r in found[n]) for key in found[n][0]} for n in sizes]
    return {
        "runs": runs,
        "workers_s": {count: statistics.median(values) for count, values in times.items()},
        "plain_threads_s": {count: statistics.median(values) for count, values in plain.items()},
    }


def starting(rounds: int) -> dict[str, float]:
    names = ("python", "import iosim", "iosim --help")
    each = [{name: first_use.cpu_seconds(first_use.PROGRAMS[name]) for name in names} for _ in range(rounds + 1)][1:]
    return {name: statistics.median(once[name] for once in each) for name in names}


# -- what it comes to -----------------------------------------------------------------------------------------------


def ratios(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Every ratio that has a goal: what it is, the measured value, the goal, whether it is met."""
    out = []

    def add(what: str, value: float, goal: float | None, at_least: bool = True) -> None:
        met = None if goal is None else value >= goal if at_least else value <= goal
        out.append({"what": what, "value": value, "goal": goal, "at_least": at_least, "met": met})

    def rate(path: str, who: str, key: str = "requests_per_s") -> float:
        return float(found["paths"][path][who][key])

    tx = found["paths"]["virtio-net tx"]
    if "iosim compiled" in tx:
        value = rate("virtio-net tx", "iosim compiled") / rate("virtio-net tx", "idiomatic SimPy")
        add("compiled / idiomatic SimPy (virtio-net tx)", value, 100)
        value = rate("virtio-net tx", "iosim compiled", "simulated_per_s") / rate("virtio-net tx", "idiomatic SimPy")
        add("   the same, simulation alone", value, 100)
    for path, rows in found["paths"].items():
        if "C" in rows:
            add(f"compiled / C ({path})", rate(path, "iosim compiled") / rate(path, "C"), 0.5)
            value = rate(path, "iosim compiled", "simulated_per_s") / rate(path, "C")
            add("   the same, simulation alone", value, 0.5)
    value = rate("virtio-net tx", "iosim on SimPy") / rate("virtio-net tx", "idiomatic SimPy")
    add("iosim on SimPy / idiomatic SimPy (virtio-net tx)", value, 2)
    if "growth" in found:
        runs = found["growth"]["runs"]
        for small, large in pairwise(runs):
            what = f"time({large['requests']:.0e}) / time({small['requests']:.0e}) (vhost-net rr)".replace("e+0", "e")
            add(what, large["seconds"] / small["seconds"], 11, at_least=False)
        times = found["growth"]["workers_s"]
        add("two workers / one (vhost-net rr, wall clock)", times[1] / times[2], 1.8)
        plain = found["growth"]["plain_threads_s"]
        add("   two threads that only hash / one: what the machine gave", plain[1] / plain[2], None)
    add("import iosim, CPU seconds", found["start"]["import iosim"], 0.3, at_least=False)
    add("iosim --help, CPU seconds", found["start"]["iosim --help"], 0.5, at_least=False)
    return out


def show_rows(title: str, rows: dict[str, Any], compiling: bool = False) -> None:
    print(f"{title:<42} {'requests/s':>12} {'events/req':>10} {'ns/event':>9}", end="")
    print(f" {'fixed ms':>9} {'result ms':>9} {'mean us':>8}{' compiling s' if compiling else ''}")
    for name, row in rows.items():
        fixed = f"{row['fixed_ms']:9.1f}" if "fixed_ms" in row else f"{'-':>9}"
        after = f"{row['result_ms']:9.1f}" if "result_ms" in row else f"{'-':>9}"
        latency = f"{row['mean_latency_us']:8.2f}" if "mean_latency_us" in row else f"{'-':>8}"
        first = f" {row['compiling_s']:11.2f}" if compiling else ""
        print(
            f"  {name:<40} {row['requests_per_s']:12,.0f} {row['events_per_request']:10.1f} "
            f"{row['ns_per_event']:9.0f} {fixed} {after} {latency}{first}"
        )


def show(found: dict[str, Any]) -> None:
    print(f"{found['machine']}; {found['rounds']} rounds; CPU time, medians\n")
    for path, rows in found["paths"].items():
        if path == "first use of a path":
            continue
        note = f", Poisson, {RATE:,}/s" if path == "virtio-net tx" else ", saturated, random costs"
        show_rows(path + note, rows)
        print("  the C loop's trace is iosim's, stamp by stamp" if "C" in rows else "  C: skipped, no cc here")
        print()
    if "first use of a path" in found["paths"]:
        first = found["paths"]["first use of a path"]
        print(f"virtio-net tx in a fresh process: compiled in {first['compiling_s']:.2f} s, ", end="")
        print(f"from the cache on disk in {first['from_disk_s']:.2f} s\n")
    if "queue pairs" in found:
        show_rows("vhost-net rr, depth 1 in each flow", found["queue pairs"], compiling=True)
        print()
    print(f"{'M/M/1':<42} {'customers/s':>12} {'mean stay':>10}  (theory: {mm1.STAY})")
    for name, row in found["queue"].items():
        print(f"  {name:<40} {row['customers_per_s']:12,.0f} {row['mean_stay']:10.2f}")
    for name in ("salabim", "ciw"):
        if name not in found["queue"]:
            print(f"  {name}: not installed (the extra `bench`)")
    if "growth" in found:
        print(f"\n{'vhost-net rr, compiled':<42} {'CPU seconds':>12} {'of it system':>13}", end="")
        print(f" {'peak MB':>8} {'bytes/stamp':>12}")
        for each in found["growth"]["runs"]:
            per_stamp = each["bytes_per_request"] / each["milestones"]
            print(
                f"  {each['requests']:<40,} {each['seconds']:12.2f} {each['system_s']:13.2f} "
                f"{each['peak_bytes'] / 1e6:8.0f} {per_stamp:12.1f}"
            )
        for count, seconds in found["growth"]["workers_s"].items():
            print(f"  two runs, {count} worker{'s' if count > 1 else ' '}{'':<20} {seconds:12.2f}  (wall clock)")
    print(f"\n{'ratio':<62} {'measured':>9} {'goal':>8}")
    for each in found["ratios"]:
        goal = "" if each["goal"] is None else f"{'>=' if each['at_least'] else '<='} {each['goal']:g}"
        met = {True: "met", False: "missed", None: ""}[each["met"]]
        print(f"  {each['what']:<60} {each['value']:9.2f} {goal:>8}  {met}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quick", action="store_const", dest="size", const="quick", help="all of it, small")
    group.add_argument("--long", action="store_const", dest="size", const="long", help="10^7 requests too")
    parser.add_argument("--rounds", type=int, help="how often each contestant runs")
    parser.add_argument("--json", action="store_true", help="one document instead of the table")
    options = parser.parse_args()
    size = options.size or "normal"
    rounds = options.rounds or ROUNDS[size]
    # All models loaded now, so that an edit while this runs changes nothing.
    for name in model.names():
        model.find(name)
    found: dict[str, Any] = {
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "size": size,
        "rounds": rounds,
        "rate": RATE,
    }
    with tempfile.TemporaryDirectory() as directory:
        found["paths"] = paths(size, rounds, Path(directory))
    if compiled_available():
        found["queue pairs"] = queue_pairs(size, rounds)
    found["queue"] = queue(size, rounds)
    if compiled_available():
        found["growth"] = long_runs(size, rounds)
    found["start"] = starting(rounds)
    found["ratios"] = ratios(found)
    say("")
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
