"""The compiled engine against SimPy, the reference: the same trace, bit for bit, from the same sources."""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iosim
from iosim.run import run
from iosim.specification import specify

code = pytest.importorskip("iosim.engine.compiled.code")

NICS = ("ne2k_pci", "rtl8139", "pcnet", "i82551")
PHYSICAL = ("bare-metal", "vfio")
SEVERAL = ("virtio-net", "vhost-net", "vhost-user", *PHYSICAL)
PATHS = ("e1000", "virtio-net", "vhost-net", "vhost-user", *PHYSICAL, *NICS)


def both(model: str, workload: str | None, chosen: dict[str, Any]) -> list[iosim.Result]:
    return [
        run(specify(model, workload=workload, settings={**chosen, "run.engine": engine}))
        for engine in ("simpy", "compiled")
    ]


def assert_identical(model: str, workload: str | None, chosen: dict[str, Any]) -> None:
    """Every time stamp of every request, every counter and every busy time at every batch's end, the document."""
    try:
        reference, compiled = both(model, workload, chosen)
    except iosim.IosimError:
        # One CPU, a tap's queue of one: overloaded; then on either engine, in the same words.
        messages = set()
        for engine in ("simpy", "compiled"):
            with pytest.raises(iosim.IosimError, match="overloaded") as caught:
                run(specify(model, workload=workload, settings={**chosen, "run.engine": engine}))
            messages.add(str(caught.value))
        assert len(messages) == 1
        return
    assert reference.stamps.tolist() == compiled.stamps.tolist()
    assert reference.rows.tolist() == compiled.rows.tolist()
    assert reference.snapshots == compiled.snapshots
    one, two = reference.to_dict(), compiled.to_dict()
    assert (one.pop("engine"), two.pop("engine")) == ("simpy", "compiled")
    assert one == two


@pytest.mark.parametrize("model", PATHS)
def test_identical_in_the_default_host(model: str) -> None:
    assert_identical(model, "rr", {"run.requests": 500})


@pytest.mark.slow
@pytest.mark.parametrize("model", PATHS)
@pytest.mark.parametrize("workload", ["tx", "rx"])
@pytest.mark.parametrize("loop", [{}, {"workload.rate": 40_000}])
def test_identical_for_every_workload(model: str, workload: str, loop: dict[str, Any]) -> None:
    assert_identical(model, workload, {"run.requests": 500, **loop})


@pytest.mark.slow
@pytest.mark.parametrize("model", SEVERAL)
@pytest.mark.parametrize("workload", ["rr", "tx", "rx"])
@pytest.mark.parametrize("pairs", [{"device.queues": 4}, {"device.queues": 4, "guest.vcpus": 2, "workload.flows": 7}])
def test_identical_with_several_queue_pairs(model: str, workload: str, pairs: dict[str, Any]) -> None:
    assert_identical(model, workload, {"run.requests": 4000, **pairs})


@pytest.mark.slow
def test_identical_for_the_saturated_pair() -> None:
    assert_identical("prodcons", None, {"run.requests": 3000})


@st.composite
def settings_of(draw: st.DrawFn, model: str) -> tuple[str, dict[str, Any]]:
    workload = draw(st.sampled_from(["rr", "tx", "rx"]))
    chosen: dict[str, Any] = {
        "run.requests": draw(st.sampled_from([1, 40, 150])),
        "run.warmup": draw(st.sampled_from([0, 5])),
        "run.seed": draw(st.integers(0, 2**63 - 1)),
        "run.replication": draw(st.integers(0, 3)),
        "workload.size": draw(st.sampled_from([1, 64, 700, 1472])),
        "workload.think_time": draw(st.sampled_from(["0us", "3us"])),
        "workload.peer_delay": draw(st.sampled_from(["0us", "90us"])),
        "host.cpus": draw(st.sampled_from([0, 1, 2, 3])),
        "host.timeslice": draw(st.sampled_from(["20us", "3ms"])),
        "host.apicv": draw(st.booleans()),
        "host.pv_eoi": draw(st.booleans()),
        "host.constant": draw(st.booleans()),
        "host.halt_poll_ns": draw(st.sampled_from(["0ns", "50us", "200us"])),
        "host.tap_queue": draw(st.sampled_from([1, 50, 1000])),
        "host.costs.driver_receive": draw(st.sampled_from(["0ns", "3us±5us", "1us..4us", "250ns"])),
    }
    if draw(st.booleans()):
        chosen["workload.depth"] = draw(st.sampled_from([1, 2, 7, 64, 300]))
    else:
        chosen["workload.rate"] = draw(st.sampled_from([1_000, 50_000, 1_000_000]))
        chosen["workload.arrivals"] = draw(st.sampled_from(["poisson", "constant"]))
    if model == "e1000":
        chosen["device.mitigation"] = draw(st.booleans())
        chosen["device.hub"] = draw(st.booleans())
        chosen["device.rx_descriptors"] = draw(st.sampled_from([48, 256]))
    elif model in PHYSICAL:
        chosen["device.rx_descriptors"] = draw(st.sampled_from([64, 512]))
        if model == "vfio" and chosen["host.apicv"]:
            chosen["device.interrupts"] = draw(st.sampled_from(["remapped", "posted"]))
        chosen["device.tx_descriptors"] = draw(st.sampled_from([64, 512]))
        for name in ("host.nic_tso", *(("device.ethtool_tso", "device.ethtool_gso") if model == "vfio" else ())):
            chosen[name] = draw(st.sampled_from([True, True, False]))
        chosen["host.nic_gso"] = draw(st.booleans())
        streams(draw, workload, chosen, ["guest"])
    elif model == "vhost-user":
        chosen["device.event_idx"] = draw(st.booleans())
        chosen["device.rx_queue_size"] = draw(st.sampled_from([2, 16, 256]))
        chosen["device.burst"] = draw(st.sampled_from([1, 32]))
        chosen["host.pmd_poll"] = draw(st.sampled_from(["1ns", "50ns", "3us"]))
        chosen["device.tx_queue_size"] = draw(st.sampled_from([32, 256]))
        for name in ("device.csum", "device.host_tso4", "device.ethtool_tso", "device.ethtool_gso", "host.nic_tso"):
            chosen[name] = draw(st.sampled_from([True, True, False]))
        streams(draw, workload, chosen, ["guest"])
    elif model in NICS:
        chosen["device.hub"] = draw(st.booleans())
    else:
        # From the longest chain a packet may need up to 1024.
        chosen["device.event_idx"] = draw(st.booleans())
        chosen["device.packed"] = draw(st.booleans())
        chosen["device.indirect"] = draw(st.booleans())
        chosen["device.rx_queue_size"] = draw(st.sampled_from([2, 16, 256, 1024]))
        chosen["device.tx_queue_size"] = draw(st.sampled_from([32, 256, 1024]))
        chosen["device.mrg_rxbuf"] = chosen["device.rx_queue_size"] < 32 or draw(st.booleans())
        chosen["device.disable_modern"] = not chosen["device.packed"] and draw(st.booleans())
        if model == "vhost-net":
            chosen["device.poll_us"] = draw(st.sampled_from([0, 0, 4, 200]))
        if model == "virtio-net":
            chosen["device.ioeventfd"] = draw(st.booleans())
            chosen["device.tx"] = draw(st.sampled_from(["bh", "timer"]))
            chosen["device.tx_timer"] = draw(st.sampled_from(["1us", "150us"]))
            chosen["device.tx_burst"] = draw(st.sampled_from([1, 5, 256]))
        if model in ("virtio-net", "vhost-net"):
            offloads(draw, workload, chosen)
    if model in SEVERAL:
        chosen["device.queues"] = draw(st.sampled_from([1, 1, 2, 3, 8]))
        if model not in PHYSICAL:
            chosen["device.vectors"] = draw(st.sampled_from([None, 0, 2]))
        if model == "vhost-user":
            chosen["device.pmd_threads"] = draw(st.sampled_from([None, 1, chosen["device.queues"]]))
        chosen["guest.vcpus"] = min(chosen["device.queues"], draw(st.sampled_from([1, 2, 8])))
        chosen["workload.flows"] = chosen["device.queues"] + draw(st.sampled_from([0, 0, 1, 5]))
    return workload, chosen


def offloads(draw: st.DrawFn, workload: str, chosen: dict[str, Any]) -> None:
    """Who computes checksums, segments and merges, and streams to do it with."""
    switches = ("csum", "host_tso4", "vnet_hdr", "ethtool_tso", "ethtool_gso", "guest_csum", "ethtool_gro")
    for name in switches:
        chosen[f"device.{name}"] = draw(st.sampled_from([True, True, False]))
    if chosen["device.guest_csum"]:
        chosen["device.guest_tso4"] = draw(st.booleans())
    for name in ("nic_tso", "nic_gso", "nic_gro"):
        chosen[f"host.{name}"] = draw(st.booleans())
    chosen["host.qdisc"] = draw(st.sampled_from(["fifo", "fq"]))
    streams(draw, workload, chosen, ["guest", "client"])
    if workload == "rx" or chosen.get("workload.background_from") == "client":
        # In a shorter one the driver does not keep a GSO packet's buffers.
        chosen["device.rx_queue_size"] = max(128, chosen["device.rx_queue_size"])


def streams(draw: st.DrawFn, workload: str, chosen: dict[str, Any], senders: list[str]) -> None:
    """TCP streams, as requests or beside them; who may send them are the guest and, on some paths, the client."""
    carried = workload == "tx" or (workload == "rx" and "client" in senders)
    if carried and "workload.depth" in chosen and draw(st.booleans()):
        chosen["workload.size"] = draw(st.sampled_from([1473, 20_000, 65536]))
        chosen["workload.depth"] = min(chosen["workload.depth"], 16)
        chosen["run.requests"] = min(chosen["run.requests"], 40)
    elif workload != "rx" and draw(st.booleans()):
        chosen["workload.background"] = draw(st.sampled_from([3000, 65536]))
        chosen["workload.background_depth"] = draw(st.sampled_from([1, 16]))
        # A stream fills the wire from the first request to the last: seconds of SimPy for some milliseconds.
        chosen["run.requests"] = min(chosen["run.requests"], 40)
        if "workload.rate" in chosen:
            chosen["workload.rate"] = max(chosen["workload.rate"], 50_000)
        if workload == "rr":
            chosen["workload.background_from"] = draw(st.sampled_from(senders))


@pytest.mark.slow
@pytest.mark.parametrize("model", PATHS)
def test_identical_whatever_the_settings(model: str) -> None:
    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(settings_of(model))
    def check(drawn: tuple[str, dict[str, Any]]) -> None:
        assert_identical(model, *drawn)

    check()


def test_compiled_once_for_a_structure_and_never_for_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compilation is made for a path and a workload; sizes, costs, seeds, depths and CPUs only fill its memory."""
    monkeypatch.setenv("IOSIM_CACHE", "off")
    base: dict[str, Any] = {"run.engine": "compiled", "run.requests": 50}
    run(specify("vhost-net", workload="rr", settings=base))
    before = code.compilations
    for change in (
        {"run.seed": 9},
        {"run.requests": 700},
        {"run.duration": "1ms"},
        {"workload.depth": 33},
        {"workload.size": 1000},
        {"workload.think_time": "7us"},
        {"device.tx_queue_size": 1024},
        {"device.event_idx": False},
        {"device.packed": True},
        {"device.indirect": True},
        {"device.vectors": 3},
        {"device.poll_us": 50},
        {"device.mrg_rxbuf": False},
        {"device.disable_modern": True},
        {"device.csum": False},
        {"device.host_tso4": False},
        {"device.vnet_hdr": False},
        {"device.ethtool_tso": False},
        {"device.guest_csum": False},
        {"device.guest_tso4": False},
        {"device.ethtool_gro": False},
        {"host.nic_gro": False},
        {"host.cpus": 2},
        {"host.apicv": True},
        {"host.constant": True},
        {"host.costs.vm_exit": "1us..2us"},
    ):
        run(specify("vhost-net", workload="rr", settings={**base, **change}))
    assert code.compilations == before


def test_compiled_once_for_several_queue_pairs_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process types are compiled, not processes; and the text is that of one pair but for what is one no more."""
    monkeypatch.setenv("IOSIM_CACHE", "off")
    base: dict[str, Any] = {"run.engine": "compiled", "run.requests": 50}
    run(specify("vhost-net", workload="rr", settings={**base, "device.queues": 2}))
    before = code.compilations
    for pairs in (3, 4, 8):
        run(specify("vhost-net", workload="rr", settings={**base, "device.queues": pairs}))
    run(specify("vhost-net", workload="rr", settings={**base, "device.queues": 8, "workload.depth": 20}))
    assert code.compilations == before


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process has translated and compiled."""
    monkeypatch.setattr(code, "_made", {})
    monkeypatch.setattr("iosim.engine.compiled.engine._translations", {})


@pytest.mark.slow
def test_code_is_kept_on_disk_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget(monkeypatch)
    chosen = {"run.engine": "compiled", "run.requests": 80}
    first = run(specify("vhost-net", settings=chosen))
    (kept,) = (tmp_path / "iosim").glob("*.o")
    assert kept.stat().st_size > 1000
    before = code.compilations
    forget(monkeypatch)  # as a new process would
    again = run(specify("vhost-net", settings=chosen))
    assert code.compilations == before
    assert again.to_json() == first.to_json()


MODEL = """
    from iosim.effects import spend
    from iosim.engine.system import System
    from iosim.host.costs import PRODUCER_WORK
    from iosim.host.machine import Machine
    from iosim.model import Model
    from iosim.requests import RequestTable, Stage
    from iosim.ring.memory import GuestMemory
    from iosim.engine.distributions import Constant
    from iosim.settings import Settings
    from iosim.window import Window, complete, new_request


    def worker(machine):
        while not machine.window.draining:
            row = yield from new_request(machine.window, machine.clock.now)
            i = 0
            while i < TIMES:
                yield spend(PRODUCER_WORK)
                i += 1
            yield from complete(machine.window, row, machine.clock.now)


    def build(host, workload, settings):
        system = System()
        machine = Machine(system, Window(system, RequestTable([Stage("work", "guest", "work")])), GuestMemory(4096))
        system.process("worker", worker(machine), system.thread("worker"))
        return machine


    MODEL = Model("edited", "a model that a test edits", Settings, build, ("tx",),
                  costs=lambda settings: {"producer_work": Constant(1000.0)})
"""


def test_an_edited_model_gives_its_new_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stale code: the key is made of what is translated, which is the present source."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "edited_model.py"
    latencies = []
    for times in (3, 5):
        source.write_text(textwrap.dedent(MODEL).replace("TIMES", str(times)))
        sys.modules.pop("edited_model", None)
        importlib.invalidate_caches()
        sys.dont_write_bytecode, keep = True, sys.dont_write_bytecode
        try:
            module = importlib.import_module("edited_model")
        finally:
            sys.dont_write_bytecode = keep
        results = [
            run(specify(module.MODEL, settings={"run.engine": engine, "run.requests": 100}))
            for engine in ("compiled", "simpy")
        ]
        assert results[0].latency["mean"] == results[1].latency["mean"]
        latencies.append(results[0].latency["mean"].value)
    assert latencies == [3.0, 5.0]


@pytest.mark.parametrize(
    ("name", "condition", "message"),
    [
        ("refused_model", "i < {1: 2}[1]", "Dict is not understood"),
        ("negative_model", "i < machine.window.order[-1]", "the index -1; write it from the front, as len(...) - 1"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, condition: str, message: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    text = textwrap.dedent(MODEL).replace("i < TIMES", condition)
    (tmp_path / f"{name}.py").write_text(text)
    module = importlib.import_module(name)
    with pytest.raises(iosim.IosimError, match=rf"{name}.py:\d+: cannot be compiled: {re.escape(message)}"):
        run(specify(module.MODEL, settings={"run.engine": "compiled", "run.requests": 10}))
    if name == "refused_model":
        assert len(run(specify(module.MODEL, settings={"run.engine": "simpy", "run.requests": 10})).rows) == 10


def test_a_lost_notification_is_reported_by_either_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    text = textwrap.dedent(MODEL).replace("yield spend(PRODUCER_WORK)", "yield wait(1)").replace("TIMES", "1")
    (tmp_path / "stuck_model.py").write_text(text.replace("import spend", "import spend, wait"))
    module = importlib.import_module("stuck_model")
    messages = set()
    for engine in ("compiled", "simpy"):
        with pytest.raises(iosim.IosimError, match="the run stands still") as caught:
            run(specify(module.MODEL, settings={"run.engine": engine, "run.requests": 10}))
        messages.add(str(caught.value))
    assert len(messages) == 1


FUNCTIONS = """
    def twice(i):
        return i * 2


    def thrice(i):
        return i * 3


    def once_more(times):
        i = 0
        while i < times:
            yield spend(PRODUCER_WORK)
            i += 1


    def through(helper, count, i):
        yield from helper(count(i))


    def worker(machine, helper, first, second):
        while not machine.window.draining:
            row = yield from new_request(machine.window, machine.clock.now)
            yield from through(helper, first, 1)
            yield from through(helper, second, 1)
            yield from through(helper, twice, 1)
            yield from complete(machine.window, row, machine.clock.now)
"""


def test_a_function_may_be_given_to_a_process_and_to_a_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is translated for the functions that it is given: 2 + 3 + 2, and 3 + 3 + 2 spends."""
    monkeypatch.syspath_prepend(str(tmp_path))
    head, rest = textwrap.dedent(MODEL).split("def worker(machine):")
    tail = rest[rest.index("def build") :]
    for name, first, mean in (("given_two", "twice", 7.0), ("given_three", "thrice", 8.0)):
        given = f"worker(machine, once_more, {first}, thrice)"
        text = head + textwrap.dedent(FUNCTIONS) + "\n\n" + tail.replace("worker(machine)", given)
        (tmp_path / f"{name}.py").write_text(text)
        module = importlib.import_module(name)
        for engine in ("compiled", "simpy"):
            result = run(specify(module.MODEL, settings={"run.engine": engine, "run.requests": 50}))
            assert result.latency["mean"].value == mean, engine


def test_a_function_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "function_model.py").write_text(textwrap.dedent(MODEL).replace("i < TIMES", "i < spend"))
    module = importlib.import_module("function_model")
    with pytest.raises(iosim.IosimError, match=r"function_model.py:\d+: cannot be compiled: the function 'spend'"):
        run(specify(module.MODEL, settings={"run.engine": "compiled", "run.requests": 10}))


def test_auto_chooses_by_the_length_of_the_run() -> None:
    assert iosim.simulate("vhost-net", requests=100).engine == "simpy"
    assert iosim.simulate("vhost-net", requests=6000).engine == "compiled"


@pytest.mark.slow
def test_many_requests_make_the_lists_grow() -> None:
    """More requests than there is room for at first: the table moves, and nothing else changes."""
    assert_identical("vhost-net", "rr", {"run.requests": 20_000, "host.constant": True})
