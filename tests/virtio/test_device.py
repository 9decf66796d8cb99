"""The device status machine and what every device has (virtio 1.2, 2.1, 2.4, 2.5, 3.1.1)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.ring.errors import HeadRangeError
from iosim.ring.memory import GuestMemory
from iosim.ring.virtqueue import Buffer, DeviceSide, Element, new_virtqueue
from iosim.virtio.device import VirtioDevice, serve
from iosim.virtio.errors import NegotiationError, StatusError, VirtioError
from iosim.virtio.status import (
    ACKNOWLEDGE,
    DEVICE_NEEDS_RESET,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    DeviceStatus,
)
from iosim.virtio.transport import Driver

UP_TO_FEATURES = ACKNOWLEDGE | DRIVER | FEATURES_OK
READY = UP_TO_FEATURES | DRIVER_OK
VERSION_1 = 1 << 32


class Echo(VirtioDevice):
    """Writes back what it reads, and keeps 4 bytes of configuration that the driver may write."""

    def __init__(self) -> None:
        super().__init__(0b11, 2)
        self.kept = b"abcd"

    def config(self) -> bytes:
        return self.kept

    def _write_config(self, offset: int, data: bytes) -> None:
        self.kept = self.kept[:offset] + data + self.kept[offset + len(data) :]

    def _reset(self) -> None:
        self.kept = b"abcd"

    def _answer(self, index: int, element: Element) -> int:
        return element.write(element.read())

    def set_from_host(self, value: bytes) -> None:
        self.kept = value
        self._config_changed()


def queued(device: Echo) -> tuple[GuestMemory, DeviceSide]:
    """A queue 0 with one chain in it, given to the device."""
    mem = GuestMemory(1 << 16)
    driver, side = new_virtqueue(mem, 4)
    driver.add([Buffer(0x8000, 4)], [Buffer(0x9000, 4)])
    device.set_queue(0, side)
    return mem, side


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([DRIVER], "set DRIVER before ACKNOWLEDGE"),
        ([ACKNOWLEDGE, ACKNOWLEDGE | FEATURES_OK], "set FEATURES_OK before DRIVER"),
        ([ACKNOWLEDGE | DRIVER | DRIVER_OK], "set DRIVER_OK before FEATURES_OK"),
        ([ACKNOWLEDGE | DRIVER, DRIVER], "cleared ACKNOWLEDGE"),
        ([UP_TO_FEATURES, ACKNOWLEDGE | DRIVER], "cleared FEATURES_OK"),
        ([READY, UP_TO_FEATURES], "cleared DRIVER_OK"),
        ([ACKNOWLEDGE | FAILED, ACKNOWLEDGE], "cleared FAILED"),
        ([DEVICE_NEEDS_RESET], "only the device does"),
        ([16], "bits that do not exist"),
        ([256], "bits that do not exist"),
        ([-1], "bits that do not exist"),
    ],
)
def test_2_1_1_what_no_driver_may_write_is_refused_by_name(steps: list[int], message: str) -> None:
    status = DeviceStatus()
    for value in steps[:-1]:
        status.write(value)
    before = status.value
    with pytest.raises(StatusError, match=message):
        status.write(steps[-1])
    assert status.value == before


@given(st.lists(st.integers(-1, 300), max_size=12))
@settings(derandomize=True, deadline=None)
def test_2_1_1_whatever_is_written_bits_go_only_by_reset(values: list[int]) -> None:
    status = DeviceStatus()
    for value in values:
        before = status.value
        try:
            status.write(value)
        except StatusError:
            assert status.value == before
        else:
            assert value == 0 or before & ~status.value == 0
        assert not status.driver_ok or status.value & READY == READY


def test_3_1_2_a_legacy_driver_knows_no_features_ok() -> None:
    status = DeviceStatus(transitional=True)
    status.write(ACKNOWLEDGE | DRIVER | DRIVER_OK)
    assert status.running


def test_2_1_the_device_s_bit_survives_a_driver_that_read_before_it_was_set() -> None:
    status = DeviceStatus()
    status.write(UP_TO_FEATURES)
    assert not status.set_needs_reset(), "before DRIVER_OK nobody is told (2.1.2)"
    status.write(READY)
    assert status.needs_reset
    assert not status.running
    status.write(0)
    assert status.value == 0


def test_3_1_1_features_ok_stays_clear_if_the_features_will_not_do() -> None:
    device = Echo()
    device.write_status(ACKNOWLEDGE | DRIVER)
    device.write_features(VERSION_1 | 0b100)
    assert device.write_status(UP_TO_FEATURES) == ACKNOWLEDGE | DRIVER
    assert isinstance(device.error, NegotiationError)
    device.write_features(VERSION_1 | 0b10)
    assert device.write_status(UP_TO_FEATURES) == UP_TO_FEATURES
    assert device.has(1)
    assert not device.has(0)
    device.write_features(VERSION_1 | 0b11)
    assert not device.has(0), "settled features change no more (3.1.1)"


def test_3_1_1_driver_ok_along_with_features_that_will_not_do() -> None:
    device = Echo()
    device.write_status(ACKNOWLEDGE | DRIVER)
    device.write_features(1 << 63)
    assert device.write_status(READY) == ACKNOWLEDGE | DRIVER


def test_2_1_2_nothing_is_consumed_before_driver_ok() -> None:
    device = Echo()
    device.write_status(ACKNOWLEDGE | DRIVER)
    device.write_features(VERSION_1)
    _, side = queued(device)
    for value in (ACKNOWLEDGE | DRIVER, UP_TO_FEATURES):
        device.write_status(value)
        assert device.handle_queue(0) == []
        assert not side.empty()
    device.write_status(READY)
    assert device.handle_queue(0) == [0]
    assert side.empty()
    assert device.handle_queue(1) == [], "a queue that was not set up"
    assert device.handle_queue(99) == []


def test_2_1_2_a_broken_ring_needs_a_reset_and_tells_so() -> None:
    device = Echo()
    told = []
    device.on_config_change = lambda: told.append(1)
    mem, side = queued(device)
    device.start(VERSION_1)
    mem.u16[(side.q.avail >> 1) + 2] = 77
    assert device.handle_queue(0) == []
    assert isinstance(device.error, HeadRangeError)
    assert device.status.value == READY | DEVICE_NEEDS_RESET
    assert told == [1]
    assert device.handle_queue(0) == []
    assert told == [1]


def test_2_4_after_a_reset_everything_is_as_at_first() -> None:
    device = Echo()
    driver = Driver(device, GuestMemory(1 << 18))
    device.write_config(0, b"X")
    assert driver.request(0, b"ping", 4) == b"ping"
    device._break(VirtioError("as if"))
    assert device.write_status(0) == 0
    fresh = Echo()
    for name in ("guest_features", "queues", "error", "kept"):
        assert getattr(device, name) == getattr(fresh, name)
    assert device.status.value == 0
    assert Driver(device, GuestMemory(1 << 18)).request(0, b"pong", 4) == b"pong"


def test_2_5_1_the_configuration_space_and_its_generation() -> None:
    device = Echo()
    device.set_from_host(b"efgh")
    before = device.config_generation
    driver = Driver(device, GuestMemory(1 << 18))
    assert device.read_config(0, 4) == b"abcd"
    device.set_from_host(b"1234")
    assert device.config_generation != before
    assert driver.config_changes == 1
    assert device.read_config(2, 4) == b"34\xff\xff"
    assert device.read_config(9, 2) == b"\xff\xff"
    assert device.read_config(-1, 2) == device.read_config(0, 0) == b""
    device.write_config(3, b"xy")
    device.write_config(-1, b"x")
    assert device.kept == b"1234", "what does not lie in the space is not written"


def test_start_is_the_whole_initialization_and_keeps_the_queues() -> None:
    device = Echo()
    _, side = queued(device)
    with pytest.raises(NegotiationError):
        device.start(0)
    device.start(VERSION_1 | 1)
    assert device.status.value == READY
    assert device.queues == {0: side}
    with pytest.raises(VirtioError, match="queues 0 to 1"):
        device.set_queue(2, side)
    device.set_queue(0, None)
    assert device.handle_queue(0) == []


def test_a_driver_that_the_device_refuses_sets_failed() -> None:
    device = Echo()
    with pytest.raises(NegotiationError, match="did not keep FEATURES_OK"):
        Driver(device, GuestMemory(1 << 18), understood=0)
    assert device.status.value == ACKNOWLEDGE | DRIVER | FAILED


@pytest.mark.parametrize("event_idx", [False, True])
def test_2_7_10_the_loop_sees_what_came_before_it_armed(event_idx: bool) -> None:
    """The driver adds a chain while the last one is answered, and its kick is suppressed."""
    mem = GuestMemory(1 << 16)
    driver, side = new_virtqueue(mem, 8, event_idx)
    left = 3

    def answer(element: Element) -> int:
        nonlocal left
        if left:
            left -= 1
            driver.add([Buffer(0x8000, 4)], [])
            assert not driver.kick_prepare()
        return 0

    driver.add([Buffer(0x8000, 4)], [])
    assert driver.kick_prepare()
    assert serve(side, answer) == 4
    driver.add([Buffer(0x8000, 4)], [])
    assert driver.kick_prepare(), "armed again"


@pytest.mark.parametrize("event_idx", [False, True])
def test_2_7_10_the_loop_looks_once_more_after_it_armed(event_idx: bool) -> None:
    """The driver adds a chain after the last look, and before notifications are on: nobody kicks for it."""
    mem = GuestMemory(1 << 16)
    driver, side = new_virtqueue(mem, 8, event_idx)
    driver.add([Buffer(0x8000, 4)], [])
    driver.kick_prepare()
    arm, late = side.set_notification, [1]

    def set_notification(enable: bool) -> None:
        if enable and late:
            late.pop()
            driver.add([Buffer(0x8000, 4)], [])
            assert not driver.kick_prepare()
        arm(enable)

    side.set_notification = set_notification  # type: ignore[method-assign]
    assert serve(side, lambda e: 0) == 2


def test_a_budget_leaves_the_rest_with_notifications_off() -> None:
    mem = GuestMemory(1 << 16)
    driver, side = new_virtqueue(mem, 8)
    for _ in range(4):
        driver.add([Buffer(0x8000, 4)], [])
    driver.kick_prepare()
    assert serve(side, lambda e: 0, budget=3) == 3
    driver.add([Buffer(0x8000, 4)], [])
    assert not driver.kick_prepare()
    assert serve(side, lambda e: 0, budget=2) == 2, "nothing is left, so notifications are on"
    driver.add([Buffer(0x8000, 4)], [])
    assert driver.kick_prepare()
