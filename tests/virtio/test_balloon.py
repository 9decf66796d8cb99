"""The memory balloon (virtio 1.2, 5.5), and what Linux and QEMU were seen to do with it."""

from __future__ import annotations

import struct

import pytest
from hostile import Chain, attack, chains
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.ring.memory import GuestMemory, allocate, write_bytes
from iosim.ring.virtqueue import Buffer, new_virtqueue
from iosim.virtio import balloon
from iosim.virtio.balloon import DEFLATEQ, INFLATEQ, STATSQ, BalloonDevice, BalloonDriver, request_pages
from iosim.virtio.errors import FormatError, RequestError
from iosim.virtio.features import feature_names, feature_set
from iosim.virtio.transport import Driver

MIB = 1 << 20


def guest(ram: int = 512 * MIB, free: range = range(10_000, 120_000)) -> tuple[BalloonDevice, Driver, BalloonDriver]:
    device = BalloonDevice(ram)
    driver = Driver(device, GuestMemory(1 << 20))
    return device, driver, BalloonDriver(driver, free)


def test_balloon_256_on_512_mib_as_measured() -> None:
    """256 requests of exactly 256 page numbers; for each 1 notification, 1 interrupt, 1 config read and write."""
    device, driver, linux = guest()
    for target, queue in ((256, INFLATEQ), (512, DEFLATEQ)):
        driver.kicks.clear()
        driver.interrupts.clear()
        linux.requests = linux.config_reads = linux.config_writes = 0
        device.set_target(target * MIB)
        moved = 0
        for _ in range(256):
            step = linux.step()
            assert abs(step) == 256
            moved += step
        counts = (linux.requests, linux.config_reads, linux.config_writes)
        assert counts == (256, 256, 256)
        assert driver.kicks == driver.interrupts == [queue] * 256
        assert linux.step() == 0, "the target is reached"
        assert (moved, device.actual) == ((65_536 if target == 256 else -65_536), target * MIB)
    assert device.ballooned == 0
    linux.requests = 0
    device.set_target(1024 * MIB)
    assert (linux.work(), linux.requests, device.actual) == (0, 0, 512 * MIB), "no more than there is"


def test_5_5_6_which_pages_are_whose() -> None:
    device, _, linux = guest(4 * MIB, range(100, 110))
    device.set_target(4 * MIB - 5 * 4096)
    assert linux.work() == 5
    assert [pfn for pfn in range(1024) if not device.owns(pfn)] == [100, 101, 102, 103, 104]
    assert not device.owns(1024)
    assert not device.owns(-1)
    device.set_target(0)
    assert linux.work() == 5, "the guest has no more to spare"
    assert device.actual == 4 * MIB - 10 * 4096
    device.set_target(4 * MIB)
    assert linux.work() == 10
    assert device.ballooned == 0
    assert device.actual == 4 * MIB


def test_5_5_4_the_configuration_space() -> None:
    device, driver, _ = guest(4 * MIB)
    assert device.config() == bytes(8)
    device.set_target(3 * MIB)
    assert driver.config_changes == 1
    device.write_config(4, struct.pack("<I", 7))
    device.write_config(0, struct.pack("<I", 9))
    device.write_config(4, b"\1")
    assert struct.unpack("<II", device.config()) == (256, 7)
    device.write_config(4, b"\xff" * 4)
    assert device.actual == 0, "no more pages than there are"
    device.write_status(0)
    assert struct.unpack("<II", device.config()) == (256, 0)


def test_5_5_3_what_is_offered() -> None:
    names = {n for n in feature_names(BalloonDevice(4096).host_features, "balloon") if "BALLOON" in n}
    assert names == {"VIRTIO_BALLOON_F_STATS_VQ"}
    device = BalloonDevice(4096, deflate_on_oom=True, must_tell_host=True)
    names = {n for n in feature_names(device.host_features, "balloon") if "BALLOON" in n}
    assert names == {f"VIRTIO_BALLOON_F_{n}" for n in ("STATS_VQ", "DEFLATE_ON_OOM", "MUST_TELL_HOST")}


def test_pages_that_do_not_exist_are_ignored_and_counted_once() -> None:
    device, driver, _ = guest(4 * MIB)
    out, _ = request_pages([0, 1023, 1024, 0xFFFFFFFF, 0])
    driver.request(INFLATEQ, out + b"\1\2\3", 0)
    assert (device.ballooned, device.bad_pfns) == (2, 2)
    driver.request(DEFLATEQ, *request_pages([5, 0]))
    assert (device.ballooned, device.owns(0), device.owns(1023)) == (1, True, False)
    with pytest.raises(FormatError):
        request_pages([1 << 32])


def test_more_pages_than_the_guest_has_stop_the_device() -> None:
    driver = attack(BalloonDevice(4096), [(INFLATEQ, Chain(bytes(8), 0))])
    assert isinstance(driver.device.error, RequestError)
    assert "a request of 2 pages; the guest has 1" in str(driver.device.error)


def test_5_5_6_3_statistics() -> None:
    device, driver, _ = guest()
    stats = allocate(driver.mem, 100, 1)
    for free in (1000, 2000):
        data = balloon.pack_statistics({4: free, 5: 1 << 40})
        write_bytes(driver.mem, stats, data)
        driver.submit(STATSQ, [Buffer(stats, len(data))], [])
        driver.kick(STATSQ)
        assert device.statistics == {4: free, 5: 1 << 40}
        assert driver.collect(STATSQ) == [], "the device keeps the buffer"
        assert device.request_statistics() == [STATSQ]
        assert len(driver.collect(STATSQ)) == 1
    assert device.request_statistics() == [], "there is nothing to give back"
    assert device.reports == 2
    assert [balloon.STATISTICS[tag] for tag in device.statistics] == [
        "VIRTIO_BALLOON_S_MEMFREE",
        "VIRTIO_BALLOON_S_MEMTOT",
    ]
    with pytest.raises(FormatError):
        balloon.pack_statistics({1: 1 << 64})
    assert balloon.unpack_statistics(balloon.pack_statistics({1: 2}) + bytes(9)) == {1: 2}


def test_5_5_6_3_a_second_buffer_sends_the_first_back() -> None:
    device, driver, _ = guest()
    stats = allocate(driver.mem, 20, 1)
    driver.submit(STATSQ, [Buffer(stats, 10)], [], "first")
    driver.submit(STATSQ, [Buffer(stats, 10)], [], "second")
    driver.kick(STATSQ)
    assert [reply.data for reply in driver.collect(STATSQ)] == ["first"]
    device.set_queue(STATSQ, new_virtqueue(driver.mem, 8)[1])
    assert device.request_statistics() == [], "the buffer went with its queue"


@pytest.mark.parametrize("ram", [0, 4095, -4096, 1 << 45])
def test_a_guest_that_cannot_be(ram: int) -> None:
    with pytest.raises(IosimError):
        BalloonDevice(ram)


pfns = st.lists(st.one_of(st.integers(0, 2000), st.integers(0, (1 << 32) - 1)), max_size=20)
anything = st.tuples(st.integers(0, 2), chains(pfns.map(lambda n: request_pages(n)[0])))


@pytest.mark.slow
@given(st.lists(anything, min_size=1, max_size=6))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_any_bytes_on_any_queue(sequence: list[tuple[int, Chain]]) -> None:
    device = BalloonDevice(4 * MIB)
    attack(device, sequence)
    assert device.ballooned == sum(device._in_balloon)


@pytest.mark.slow
@given(st.lists(st.tuples(st.booleans(), pfns, st.lists(st.integers(1, 80), max_size=4)), max_size=12))
@settings(derandomize=True, deadline=None, max_examples=80)
def test_5_5_6_against_a_set(steps: list[tuple[bool, list[int], list[int]]]) -> None:
    device, driver, _ = guest(4 * MIB)
    model: set[int] = set()
    for inflate, numbers, cuts in steps:
        if numbers:
            driver.request(INFLATEQ if inflate else DEFLATEQ, *request_pages(numbers), cuts)
            named = {n for n in numbers if n < 1024}
            model = model | named if inflate else model - named
        assert {n for n in range(1024) if not device.owns(n)} == model
        assert device.ballooned == len(model)


def test_without_the_feature_the_statistics_queue_gives_nothing_back() -> None:
    device = BalloonDevice(4 * MIB)
    driver = Driver(device, GuestMemory(1 << 18), feature_set(["VERSION_1"]))
    driver.submit(STATSQ, [Buffer(0x100, 10)], [])
    driver.kick(STATSQ)
    assert device.request_statistics() == []
