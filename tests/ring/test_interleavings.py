"""Every interleaving of small cases, at every access, on processors that reorder (`interleavings`).

Clauses: 2.7.13 and 2.8.21 for what must be visible before what, 2.7.13.4.1, 2.7.10 and 2.8.10 for kicks, 2.7.14,
2.7.7 and 2.8.10 for interrupts.
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
    Fence,
    ForgetfulDevice,
    ForgetfulDriver,
    LateDevice,
    LateDriver,
    check,
    fences,
    ring_functions,
)

R, W, RW = (1, 0), (0, 1), (1, 1)

#: One thing at a time away from the default: two requests, Linux's driver, QEMU's device, indexes that wrap.
SMALL = [
    Case(packed=packed, event_idx=event_idx, start=65535, **changed)
    for changed in (
        {},
        {"size": 1},
        {"size": 4, "shapes": (RW, W), "one_way": True},
        {"size": 4, "shapes": (RW, W), "indirect": True},
        {"shapes": (RW, RW), "contents": True},
        {"batch": 2},
        {"batch": 2, "publish": True},
        {"flush": 2},
        {"flush": 2, "in_order": True},
        {"batch": 2, "flush": 2, "arm": "delayed"},
        {"arm": "delayed"},
        {"arm": "beyond"},
        {"arm": "prepare"},
        {"arm": "get_used", "disable": False},
        {"disable": False},
        {"device": "vhost"},
        {"one_way": True},
        {"one_way": True, "device": "vhost"},
    )
    for packed in (False, True)
    for event_idx in (False, True)
]


def names(value: Any) -> str | None:
    return value.name if isinstance(value, Machine) else str(value) if isinstance(value, Case) else None


@pytest.mark.parametrize("case", SMALL, ids=names)
def test_2_7_13_no_interleaving_of_a_small_case_goes_wrong(case: Case) -> None:
    """On the weakest machine, which can do all that the others can (`test_litmus`)."""
    found = check(WEAK, case)
    assert found.failure is None, str(found)
    assert found.ends > 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("event_idx", [False, True])
def test_2_8_12_no_small_case_writes_into_a_slot_given_back(event_idx: bool, packed: bool) -> None:
    """Four requests through two descriptors, given back by twos: a slot is the driver's once its flags are out."""
    found = check(TSO, Case(2, packed, (R,) * 4, event_idx, 65535, flush=2))
    assert found.failure is None, str(found)


@pytest.mark.parametrize("event_idx", [False, True])
def test_2_7_14_notifications_for_nothing_do_no_harm(event_idx: bool) -> None:
    found = check(WEAK, Case(event_idx=event_idx, spurious=1))
    assert found.failure is None, str(found)


def mixed(sizes: Any, shapes: Any, batches: Any, arms: Any, devices: Any, flushes: Any) -> list[Case]:
    product = itertools.product(sizes, (False, True), (False, True), batches, arms, devices, flushes)
    return [
        Case(size, packed, shapes, event_idx, 65535, batch, arm, disable, device, flush)
        for size, packed, event_idx, batch, (arm, disable), device, flush in product
        if packed or size != 3
    ]


#: How a driver re-arms, and whether it disables callbacks while it is at work.
ARMS = (("enable_cb", True), ("enable_cb", False), ("delayed", True), ("prepare", True), ("get_used", False))
LARGER = [
    *mixed((1, 2, 4), (R, W), (1, 2), ARMS, ("qemu", "vhost"), (1, 2)),
    *mixed((1, 2, 3), (R, W, R), (1, 2), ARMS[1:3], ("qemu",), (1, 2)),
    *mixed((3, 4), (RW, RW), (1,), ARMS[:1], ("qemu",), (1,)),
    *(
        Case(packed=packed, event_idx=event_idx, **changed)
        for changed in (
            {"size": 4, "shapes": (RW, W, R), "batch": 3, "flush": 2, "contents": True},
            {"size": 4, "shapes": (RW, W, R), "batch": 2, "publish": True, "flush": 3, "in_order": True},
            {"size": 4, "shapes": (R,) * 4, "batch": 2, "one_way": True},
            {"size": 2, "shapes": (R,) * 4, "batch": 2, "flush": 2},
            {"size": 4, "shapes": (R, R, RW), "batch": 2, "flush": 2, "arm": "delayed"},
        )
        for packed in (False, True)
        for event_idx in (False, True)
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_2_7_13_no_interleaving_of_any_mix_goes_wrong(part: int) -> None:
    """Every mix of sizes, formats, features and habits with two requests, and some with more."""
    for case in LARGER[part::8]:
        found = check(WEAK, case)
        assert found.failure is None, f"{case}: {found}"


# -- what must be found


#: Together these need every fence that any case has been found to need. A packed ring's end must not lie where the
#: last request does: QEMU's device interrupts once a lap whatever the event offset says, which hides much.
TELLING = [
    Case(start=3, event_idx=event_idx, **changed)
    for changed in (
        {},
        {"arm": "delayed"},
        {"arm": "get_used", "disable": False},
        {"device": "vhost"},
        {"batch": 2, "publish": True, "flush": 2},
    )
    for event_idx in (False, True)
]


def found_without(missing: Fence, machine: Machine) -> list[str]:
    """Return what goes wrong where one fence is missing."""
    functions = ring_functions(without=missing)
    packed = "packed" in str(missing)
    results = [check(machine, case._replace(packed=packed), functions=functions) for case in TELLING]
    return [found.failure for found in results if found.failure]


#: By fence: the first machine that needs it, where sending a notification is a fence already. None: no case does.
NEEDED = {
    "split_driver.publish": "weak",
    "split_driver.kick_prepare": "tso",
    "split_driver.get_used": "weak",
    "split_driver.get_used (2)": "tso",
    "split_driver.poll": "tso",
    "split_driver.arm_used_event": "tso",
    "split_device.pop": "weak",
    "split_device.flush": "weak",
    "split_device.set_notification": "tso",
    "split_device.arm_avail_event": "tso",
    "split_device.should_notify": "tso",
    # The device stops at the batch's first descriptor, and that one has a fence of its own.
    "packed_driver.enqueue": None,
    "packed_driver.publish": "weak",
    "packed_driver.kick_prepare": "tso",
    "packed_driver.get_used": "weak",
    "packed_driver.get_used (2)": "tso",
    # Offset before flags: who reads them torn has published before the second look, which then sees it.
    "packed_driver.enable_at": None,
    "packed_driver.poll": "tso",
    "packed_driver.arm_used_event": "tso",
    # A wrong count of what came after the arming: for that an interrupt is on its way.
    "packed_driver.used_beyond": None,
    "packed_device.pop": "weak",
    "packed_device.write_used": "weak",
    # As `enable_at`.
    "packed_device.arm": None,
    "packed_device.arm (2)": "tso",
    "packed_device.should_notify": "tso",
}


@pytest.mark.parametrize("missing", fences(), ids=str)
def test_every_fence_is_missed_when_it_is_gone(missing: Fence) -> None:
    first = NEEDED[str(missing)]
    wrong = {machine.name: found_without(missing, machine) for machine in (SC, TSO_KICK, WEAK_KICK)}
    assert not wrong[SC.name]
    assert bool(wrong[TSO_KICK.name]) == (first == "tso")
    assert bool(wrong[WEAK_KICK.name]) == (first is not None)
    for failure in wrong[WEAK_KICK.name]:
        # A fence between a store and a load keeps wake-ups, the others keep data.
        assert ("sleeps for ever" in failure) == (first == "tso"), failure


def test_the_table_of_fences_is_complete() -> None:
    assert {str(one) for one in fences()} == set(NEEDED)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize(
    ("driver", "device"),
    [(ForgetfulDriver, Device), (LateDriver, Device), (Driver, ForgetfulDevice), (Driver, LateDevice)],
)
def test_2_7_14_who_does_not_look_again_after_re_arming_sleeps_for_ever(driver, device, event_idx, packed) -> None:
    """Even where every access is seen at once: this is no matter of fences.

    Three requests, since Linux leaves a packed ring's first interrupts on, and QEMU always sends one a lap.
    """
    found = check(SC, Case(4, packed, (R, W, R), event_idx, start=3), driver, device)
    assert found.failure == "the driver sleeps for ever, but there is work left", str(found)
    assert found.trace[-2:] == ["driver sleeps", "device sleeps"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("device", [ForgetfulDevice, LateDevice])
def test_2_7_10_the_device_that_does_not_look_again_is_found_by_itself_too(device, event_idx, packed) -> None:
    found = check(SC, Case(event_idx=event_idx, one_way=True, packed=packed), Driver, device)
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
    (missing,) = [one for one in fences() if str(one) == "split_driver.kick_prepare"]
    found = check(TSO_KICK, Case(one_way=True), functions=ring_functions(missing), shortest=True)
    assert found.failure == "the device sleeps for ever, but there is work left"
    for line in (
        "driver publish: store avail.idx = 2 (buffered)",
        "driver kick_prepare: load avail_event -> 0",
        "device set_notification: store avail_event = 1 (buffered)",
        "            memory: avail_event = 1 (from the device)",
        "device empty: load avail.idx -> 1",
        "device sleeps",
    ):
        assert line in found.trace, str(found)
