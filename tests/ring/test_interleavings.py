"""Every interleaving of small cases, at every access, on processors that reorder (`interleavings`).

Clauses: 2.7.13 for what must be visible before what, 2.7.13.4.1 and 2.7.10 for kicks, 2.7.14 and 2.7.7 for
interrupts.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from interleavings import SC, TSO, TSO_KICK, WEAK, WEAK_KICK, Machine
from programs import (
    Case,
    Device,
    Driver,
    ForgetfulDevice,
    ForgetfulDriver,
    LateDevice,
    LateDriver,
    check,
    fences,
    ring_module,
)

from iosim.ring import split_device, split_driver

R, W, RW = (1, 0), (0, 1), (1, 1)

#: One thing at a time away from the default: two requests, Linux's driver, QEMU's device, indexes that wrap.
SMALL = [
    Case(event_idx=event_idx, start=65535, **changed)
    for event_idx in (False, True)
    for changed in (
        {},
        {"size": 1},
        {"size": 4, "shapes": (RW, W), "one_way": True},
        {"shapes": (RW, RW), "contents": True},
        {"batch": 2},
        {"flush": 2},
        {"batch": 2, "flush": 2, "arm": "delayed"},
        {"arm": "delayed"},
        {"arm": "prepare"},
        {"arm": "get_used", "disable": False},
        {"disable": False},
        {"device": "vhost"},
        {"one_way": True},
        {"one_way": True, "device": "vhost"},
    )
]


def names(value: Any) -> str | None:
    return value.name if isinstance(value, Machine) else str(value) if isinstance(value, Case) else None


@pytest.mark.parametrize("case", SMALL, ids=names)
def test_2_7_13_no_interleaving_of_a_small_case_goes_wrong(case: Case) -> None:
    """On the weakest machine, which can do all that the others can (`test_litmus`)."""
    found = check(WEAK, case)
    assert found.failure is None, str(found)
    assert found.ends > 0


@pytest.mark.parametrize("event_idx", [False, True])
def test_2_7_14_notifications_for_nothing_do_no_harm(event_idx: bool) -> None:
    found = check(WEAK, Case(event_idx=event_idx, spurious=1))
    assert found.failure is None, str(found)


LARGER = [
    *(
        Case(size, shapes, event_idx, 65535, batch, arm, disable, device, flush)
        for size, shapes, event_idx, batch, (arm, disable), device, flush in itertools.product(
            (1, 2, 4),
            ((R, W),),
            (False, True),
            (1, 2),
            (("enable_cb", True), ("enable_cb", False), ("delayed", True), ("prepare", True), ("get_used", False)),
            ("qemu", "vhost"),
            (1, 2),
        )
    ),
    *(
        Case(size, (R, W, R), event_idx, 65534, batch, arm, True, device, flush)
        for size, event_idx, batch, arm, device, flush in itertools.product(
            (1, 2, 4), (False, True), (1, 2), ("enable_cb", "delayed"), ("qemu", "vhost"), (1, 2)
        )
    ),
    *(Case(4, (RW, RW), event_idx, 65535) for event_idx in (False, True)),
    *(Case(4, (RW, W, R), event_idx, contents=True) for event_idx in (False, True)),
    *(Case(4, (R,) * 4, event_idx, batch=2, one_way=True) for event_idx in (False, True)),
    *(Case(event_idx=event_idx, spurious=2) for event_idx in (False, True)),
]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_2_7_13_no_interleaving_of_any_mix_goes_wrong(part: int) -> None:
    """Every mix of sizes, features and habits with two requests, and most of those with three."""
    for case in LARGER[part::8]:
        found = check(WEAK, case)
        assert found.failure is None, f"{case}: {found}"


# -- what must be found


#: Together these need every fence.
TELLING = [
    Case(),
    Case(event_idx=False),
    Case(arm="delayed"),
    Case(arm="get_used", disable=False),
    Case(device="vhost"),
]


def found_without(module: Any, function: str, number: int, machine: Machine) -> list[str]:
    """Return what goes wrong where one fence is missing."""
    ops = ring_module(module, without=(function, number))
    side = "driver_ops" if module is split_driver else "device_ops"
    results = [check(machine, case, **{side: ops}) for case in TELLING]
    return [found.failure for found in results if found.failure]


#: By fence: the first machine that needs it, where sending a notification is a fence already.
NEEDED = {
    ("split_driver", "add", 0): "weak",
    ("split_driver", "kick_prepare", 0): "tso",
    ("split_driver", "get_used", 0): "weak",
    ("split_driver", "get_used", 1): "tso",
    ("split_driver", "poll", 0): "tso",
    ("split_driver", "arm_used_event", 0): "tso",
    ("split_device", "pop", 0): "weak",
    ("split_device", "flush", 0): "weak",
    ("split_device", "set_notification", 0): "tso",
    ("split_device", "arm_avail_event", 0): "tso",
    ("split_device", "should_notify", 0): "tso",
}
FENCES = [(module, *place) for module in (split_driver, split_device) for place in fences(module)]


def fence_id(value: Any) -> str | None:
    return value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else None


@pytest.mark.parametrize(("module", "function", "number"), FENCES, ids=fence_id)
def test_every_fence_is_missed_when_it_is_gone(module: Any, function: str, number: int) -> None:
    first = NEEDED[fence_id(module), function, number]
    missed = {machine.name: found_without(module, function, number, machine) for machine in (SC, TSO_KICK, WEAK_KICK)}
    assert not missed[SC.name]
    assert bool(missed[TSO_KICK.name]) == (first == "tso")
    assert missed[WEAK_KICK.name]
    sleeps = all("sleeps for ever" in failure for failure in missed[WEAK_KICK.name])
    assert sleeps == (first == "tso"), "a fence between a store and a load loses a wake-up, the others lose data"


def test_the_table_of_fences_is_complete() -> None:
    assert {(fence_id(module), *place) for module, *place in FENCES} == set(NEEDED)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize(
    ("driver", "device", "sleeper"),
    [
        (ForgetfulDriver, Device, "driver"),
        (LateDriver, Device, "driver"),
        (Driver, ForgetfulDevice, "driver"),
        (Driver, LateDevice, "driver"),
    ],
)
def test_2_7_14_who_does_not_look_again_after_re_arming_sleeps_for_ever(driver, device, sleeper, event_idx) -> None:
    """Even where every access is seen at once: this is no matter of fences."""
    found = check(SC, Case(event_idx=event_idx), driver, device)
    assert found.failure == f"the {sleeper} sleeps for ever, but there is work left", str(found)
    assert found.trace[-2:] == ["driver sleeps", "device sleeps"]


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("device", [ForgetfulDevice, LateDevice])
def test_2_7_10_the_device_that_does_not_look_again_is_found_by_itself_too(device, event_idx: bool) -> None:
    found = check(SC, Case(event_idx=event_idx, one_way=True), Driver, device)
    assert found.failure == "the device sleeps for ever, but there is work left", str(found)


def test_2_7_10_pop_alone_does_not_re_arm() -> None:
    """`pop` moves `avail_event` along without a fence, as QEMU does: sleep only after `set_notification`."""
    case = Case(one_way=True, device="pop")
    assert check(SC, case).failure is None
    found = check(TSO, case)
    assert found.failure == "the device sleeps for ever, but there is work left", str(found)
    assert check(WEAK, case._replace(event_idx=False)).failure is None
    assert check(WEAK, case._replace(device="qemu")).failure is None


def test_a_counterexample_says_who_did_what() -> None:
    ops = ring_module(split_driver, without=("kick_prepare", 0))
    found = check(TSO_KICK, Case(one_way=True), driver_ops=ops, shortest=True)
    assert found.failure == "the device sleeps for ever, but there is work left"
    for line in (
        "driver add: store avail.idx = 2 (buffered)",
        "driver kick_prepare: load avail_event -> 0",
        "device set_notification: store avail_event = 1 (buffered)",
        "            memory: avail_event = 1 (from the device)",
        "device empty: load avail.idx -> 1",
        "device sleeps",
    ):
        assert line in found.trace, str(found)
