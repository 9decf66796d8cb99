"""The block device (virtio 1.2, 5.2) against a bytearray, and against drivers that keep to no rule."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hostile import Chain, attack, chains
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.ring.memory import GuestMemory, allocate, write_bytes
from iosim.ring.virtqueue import Buffer
from iosim.virtio import blk
from iosim.virtio.blk import (
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    BlkConfig,
    BlkDevice,
    BlkHdr,
    Segment,
)
from iosim.virtio.disk import FileDisk, MemoryDisk
from iosim.virtio.errors import FormatError, RequestError
from iosim.virtio.features import feature_names, feature_set
from iosim.virtio.transport import Driver

SECTORS = 32
OK, IOERR, UNSUPP = (bytes([s]) for s in (VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP))


def pattern(sectors: int = SECTORS) -> bytes:
    return b"".join(struct.pack("<I", i) for i in range(sectors * 128))


def started(disk: MemoryDisk | FileDisk | None = None, accept: int = (1 << 64) - 1, **options: int) -> Driver:
    device = BlkDevice(MemoryDisk(pattern()) if disk is None else disk, **options)  # type: ignore[arg-type]
    return Driver(device, GuestMemory(1 << 18), accept)


def test_5_2_6_the_formats_byte_by_byte() -> None:
    assert BlkHdr(1, 2, 0x0807060504030201).pack().hex() == "01000000" "02000000" "0102030405060708"
    assert BlkHdr.unpack(BlkHdr(8, 0, 9).pack() + b"data") == BlkHdr(8, 0, 9)
    assert Segment(1, 2, 1).pack().hex() == "0100000000000000" "02000000" "01000000"
    for bad in (lambda: BlkHdr(-1).pack(), lambda: Segment(0, 1 << 32).pack(), lambda: BlkHdr.unpack(bytes(15))):
        with pytest.raises(FormatError, match="a virtio-blk"):
            bad()


def test_5_2_4_the_configuration_space() -> None:
    device = BlkDevice(MemoryDisk(pattern()), num_queues=3, blk_size=4096)
    data = device.config()
    assert len(data) == 60
    fields = {"capacity": (0, "<Q"), "seg_max": (12, "<I"), "blk_size": (20, "<I"), "writeback": (32, "<B")}
    fields |= {"num_queues": (34, "<H"), "max_discard_sectors": (36, "<I"), "discard_sector_alignment": (44, "<I")}
    fields |= {"write_zeroes_may_unmap": (56, "<B")}
    config = BlkConfig.unpack(data)
    for name, (offset, layout) in fields.items():
        assert struct.unpack_from(layout, data, offset)[0] == getattr(config, name), name
    assert (config.capacity, config.blk_size, config.num_queues, config.discard_sector_alignment) == (32, 4096, 3, 8)
    assert BlkConfig.unpack(config.pack()) == config
    with pytest.raises(FormatError, match="60 bytes here, not 59"):
        BlkConfig.unpack(data[:59])


def test_5_2_3_what_is_offered() -> None:
    common = {"SEG_MAX", "BLK_SIZE", "FLUSH", "TOPOLOGY", "CONFIG_WCE"}
    ring = {"VIRTIO_RING_F_INDIRECT_DESC", "VIRTIO_RING_F_EVENT_IDX", "VIRTIO_F_VERSION_1"}
    for device, more in (
        (BlkDevice(MemoryDisk(512)), {"DISCARD", "WRITE_ZEROES"}),
        (BlkDevice(MemoryDisk(512, read_only=True)), {"RO"}),
        (BlkDevice(MemoryDisk(512), num_queues=2), {"DISCARD", "WRITE_ZEROES", "MQ"}),
    ):
        names = {f"VIRTIO_BLK_F_{name}" for name in common | more} | ring
        assert set(feature_names(device.host_features, "blk")) == names


def test_5_2_6_read_and_write() -> None:
    driver = started()
    assert driver.request(0, *blk.request_in(3, 1024)) == pattern()[1536:2560] + OK
    assert driver.request(0, *blk.request_out(SECTORS - 1, b"z" * 512)) == OK
    assert driver.request(0, *blk.request_in(SECTORS - 1, 512)) == b"z" * 512 + OK
    assert driver.request(0, *blk.request_in(SECTORS, 0)) == OK, "nothing, at the end, is on the disk"
    assert driver.interrupts == driver.kicks == [0] * 4


@pytest.mark.parametrize(
    "request_",
    [
        blk.request_in(SECTORS, 512),
        blk.request_in(SECTORS - 1, 1024),
        blk.request_in((1 << 64) - 1, 512),
        blk.request_out(SECTORS - 1, bytes(1024)),
        blk.request_out(1 << 63, bytes(512)),
        blk.request_in(0, 511),
        blk.request_out(0, bytes(513)),
        blk.request_in(SECTORS + 1, 0),
        blk.request_discard([Segment(SECTORS, 1)]),
        blk.request_write_zeroes([Segment(0, 1), Segment((1 << 64) - 1, 2)]),
        blk.request_write_zeroes([Segment(0, 0xFFFFFFFF)]),
        blk.request_discard([]),
        (blk.request_discard([Segment(0, 1)])[0][:-1], 1),
    ],
)
def test_5_2_6_2_out_of_bounds_is_an_io_error_and_changes_nothing(request_: tuple[bytes, int]) -> None:
    disk = MemoryDisk(pattern())
    reply = started(disk).exchange(0, *request_)
    assert reply.contents[-1] == VIRTIO_BLK_S_IOERR
    assert disk.data == pattern()


@pytest.mark.parametrize(
    "request_",
    [
        (BlkHdr(2).pack(), 1),  # SCSI, once
        (BlkHdr(3).pack(), 1),
        (BlkHdr(blk.VIRTIO_BLK_T_GET_LIFETIME).pack(), 33),
        (BlkHdr(blk.VIRTIO_BLK_T_SECURE_ERASE).pack() + Segment(0, 1).pack(), 1),
        (BlkHdr(0xFFFF).pack(), 1),
        blk.request_discard([Segment(0, 1, 1)]),  # unmap means nothing there
        blk.request_write_zeroes([Segment(0, 1, 2)]),
        blk.request_write_zeroes([Segment(0, 1), Segment(0, 1, 4)]),
        blk.request_discard([Segment(0, 1)] * 17),
    ],
)
def test_5_2_6_2_what_is_unknown_is_unsupported(request_: tuple[bytes, int]) -> None:
    disk = MemoryDisk(pattern())
    driver = started(disk)
    assert driver.exchange(0, *request_).contents[-1] == VIRTIO_BLK_S_UNSUPP
    assert disk.data == pattern()
    assert driver.device.status.running


def test_5_2_6_1_discard_and_write_zeroes_only_if_negotiated() -> None:
    driver = started(accept=feature_set(["VERSION_1"]))
    for request in (blk.request_discard([Segment(0, 1)]), blk.request_write_zeroes([Segment(0, 1)])):
        assert driver.request(0, *request) == UNSUPP


def test_5_2_6_2_a_read_only_device_fails_whatever_writes() -> None:
    disk = MemoryDisk(pattern(), read_only=True)
    driver = started(disk)
    for request in (
        blk.request_out(0, bytes(512)),
        blk.request_discard([Segment(0, 1)]),
        blk.request_write_zeroes([Segment(0, 1)]),
    ):
        assert driver.request(0, *request) == IOERR
    assert driver.request(0, *blk.request_in(0, 512)) == pattern()[:512] + OK
    assert disk.data == pattern()


def test_5_2_6_ranges() -> None:
    disk = MemoryDisk(b"\xff" * 512 * 8)
    driver = started(disk)
    assert driver.request(0, *blk.request_write_zeroes([Segment(1, 2), Segment(5, 1, 1)])) == OK
    assert [disk.data[512 * i] for i in range(8)] == [255, 0, 0, 255, 255, 0, 255, 255]
    assert driver.request(0, *blk.request_discard([Segment(0, 1)])) == OK


@pytest.mark.parametrize(("serial", "size", "answer"), [
    ("disk-1", 20, b"disk-1" + bytes(14)),
    ("12345678901234567890", 20, b"12345678901234567890"),
    ("disk-1", 4, b"disk"),
])
def test_5_2_6_get_id(serial: str, size: int, answer: bytes) -> None:
    driver = Driver(BlkDevice(MemoryDisk(512), serial=serial), GuestMemory(1 << 18))
    assert driver.request(0, blk.request_get_id()[0], size + 1) == answer + OK


def test_5_2_6_get_id_into_more_than_20_bytes() -> None:
    """The status is the last byte all the same, and the used length tells only of what has no gap."""
    reply = started().exchange(0, blk.request_get_id()[0], 31)
    assert reply.contents == b"iosim".ljust(30, b"\0") + OK
    assert reply.length == 20


@pytest.mark.parametrize(
    ("names", "wce", "flushes"),
    [
        (["VERSION_1"], None, 1),
        (["VERSION_1", "FLUSH"], None, 0),
        (["VERSION_1", "FLUSH", "CONFIG_WCE"], None, 0),
        (["VERSION_1", "FLUSH", "CONFIG_WCE"], 0, 2),  # one as the cache is switched off
        (["VERSION_1", "FLUSH"], 0, 0),
    ],
)
def test_5_2_5_1_and_5_2_6_2_the_cache(names: list[str], wce: int | None, flushes: int) -> None:
    disk = MemoryDisk(pattern())
    driver = started(disk, feature_set(names, "blk"))
    if wce is not None:
        driver.device.write_config(32, bytes([wce]))
    driver.request(0, *blk.request_out(0, bytes(512)))
    assert disk.flushes == flushes
    assert driver.request(0, *blk.request_flush()) == OK
    assert disk.flushes == flushes + 1
    assert BlkConfig.unpack(driver.device.config()).writeback == (not flushes)


def test_5_2_5_2_the_driver_writes_nothing_but_the_cache_mode() -> None:
    driver = started()
    before = driver.device.config()
    driver.device.write_config(0, b"\xff" * 32)
    driver.device.write_config(33, b"\xff" * 27)
    assert driver.device.config() == before


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (Chain(BlkHdr(0).pack(), 0), "missing headers"),
        (Chain(b"", 17), "missing headers"),
        (Chain(BlkHdr(0).pack()[:15], 513), "outhdr too short: 15 bytes"),
    ],
)
def test_5_2_6_without_a_header_or_a_status_byte_the_device_stops(chain: Chain, message: str) -> None:
    """As QEMU's virtio_error does, in virtio_blk_handle_request."""
    driver = attack(BlkDevice(MemoryDisk(pattern())), [(0, chain)])
    assert isinstance(driver.device.error, RequestError)
    assert message in str(driver.device.error)
    assert driver.device.status.needs_reset
    assert driver.config_changes == 1


class Failing(MemoryDisk):
    """A disk whose medium is broken from some byte on."""

    def read(self, offset: int, length: int) -> bytes:
        raise OSError(5, "Input/output error")

    def write(self, offset: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    write_zeroes = discard = read  # type: ignore[assignment]

    def flush(self) -> None:
        raise OSError(5, "Input/output error")


def test_an_error_of_the_host_s_storage_is_an_io_error() -> None:
    driver = started(Failing(pattern()))
    requests = [blk.request_in(0, 512), blk.request_out(0, bytes(512)), blk.request_flush()]
    requests += [blk.request_discard([Segment(0, 1)]), blk.request_write_zeroes([Segment(0, 1)])]
    for request in requests:
        assert driver.exchange(0, *request).contents[-1:] == IOERR


def test_a_file_is_as_good_as_memory(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(pattern() + b"not a sector")
    disk = FileDisk(image)
    driver = started(disk)
    assert BlkConfig.unpack(driver.device.config()).capacity == SECTORS
    assert driver.request(0, *blk.request_in(2, 1024)) == pattern()[1024:2048] + OK
    assert driver.request(0, *blk.request_out(4, b"w" * 512)) == OK
    assert driver.request(0, *blk.request_write_zeroes([Segment(5, 2)])) == OK
    assert driver.request(0, *blk.request_discard([Segment(8, 2)])) == OK
    assert driver.request(0, *blk.request_flush()) == OK
    disk.close()
    expected = pattern()[:2048] + b"w" * 512 + bytes(1024) + pattern()[3584:] + b"not a sector"
    assert image.read_bytes() == expected
    read_only = started(FileDisk(image, read_only=True))
    assert read_only.request(0, *blk.request_out(4, bytes(512))) == IOERR
    with pytest.raises(IosimError, match="cannot open the disk image: No such file"):
        FileDisk(tmp_path / "none")


@pytest.mark.parametrize("bad", [{"num_queues": 0}, {"blk_size": 1000}, {"blk_size": 256}, {"serial": "x" * 21}])
def test_a_device_that_cannot_be(bad: dict[str, int]) -> None:
    with pytest.raises(IosimError):
        BlkDevice(MemoryDisk(512), **bad)  # type: ignore[arg-type]


def test_long_requests_are_moved_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blk, "_PIECE", 700)
    disk = MemoryDisk(pattern())
    driver = started(disk)
    assert driver.request(0, *blk.request_in(1, 4096), in_cuts=[100, 900]) == pattern()[512:4608] + OK
    assert driver.request(0, *blk.request_out(2, pattern()[:4096]), out_cuts=[3, 999]) == OK
    assert disk.data == pattern()[:1024] + pattern()[:4096] + pattern()[5120:]


def test_a_larger_block_size_wants_whole_blocks() -> None:
    driver = started(blk_size=4096)
    assert driver.request(0, *blk.request_in(8, 4096)) == pattern()[4096:8192] + OK
    assert driver.exchange(0, *blk.request_in(1, 4096)).contents[-1:] == IOERR
    assert driver.exchange(0, *blk.request_in(8, 512)).contents[-1:] == IOERR


CUTS = st.lists(st.integers(1, 2600), max_size=6)


@st.composite
def operations(draw: st.DrawFn) -> tuple[str, int, int, list[int], list[int]]:
    kind = draw(st.sampled_from(["in", "out", "zeroes", "flush", "id"]))
    sector = draw(st.integers(0, SECTORS + 1))
    return kind, sector, draw(st.integers(0, 5)), draw(CUTS), draw(CUTS)


@given(st.lists(operations(), max_size=12), st.booleans(), st.integers(0, 1))
@settings(derandomize=True, deadline=None, max_examples=150)
def test_5_2_6_and_2_7_4_2_any_requests_in_any_framing_against_a_bytearray(
    sequence: list[tuple[str, int, int, list[int], list[int]]], event_idx: bool, index: int
) -> None:
    disk, model = MemoryDisk(pattern()), bytearray(pattern())
    accept = (1 << 64) - 1 if event_idx else feature_set(["VERSION_1", "WRITE_ZEROES"], "blk")
    driver = Driver(BlkDevice(disk, num_queues=2), GuestMemory(1 << 18), accept)
    for number, (kind, sector, count, out_cuts, in_cuts) in enumerate(sequence):
        first, last = sector * 512, (sector + count) * 512
        fits = sector + count <= SECTORS
        expected, status = b"", fits
        if kind == "in":
            request = blk.request_in(sector, count * 512)
            expected = bytes(model[first:last])
        elif kind == "out":
            request = blk.request_out(sector, bytes([number + 1]) * (count * 512))
            if fits:
                model[first:last] = bytes([number + 1]) * (last - first)
        elif kind == "zeroes":
            request = blk.request_write_zeroes([Segment(sector, count)])
            if fits:
                model[first:last] = bytes(last - first)
        elif kind == "flush":
            request, status = blk.request_flush(), True
        else:
            request, expected, status = blk.request_get_id(), b"iosim".ljust(20, b"\0"), True
        reply = driver.exchange(index, *request, out_cuts, in_cuts)
        assert reply.contents[-1] == (VIRTIO_BLK_S_OK if status else VIRTIO_BLK_S_IOERR)
        if status:
            assert reply.contents[:-1] == expected
            assert reply.length == len(reply.contents)
        assert disk.data == model


headers = st.builds(
    lambda kind, ioprio, sector: struct.pack("<IIQ", kind, ioprio, sector),
    st.one_of(st.sampled_from([0, 1, 4, 8, 11, 13]), st.integers(0, (1 << 32) - 1)),
    st.integers(0, 3),
    st.one_of(st.integers(0, SECTORS), st.integers(0, (1 << 64) - 1)),
)
ranges = st.builds(
    lambda s, n, flags: struct.pack("<QII", s, n, flags),
    st.one_of(st.integers(0, SECTORS), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, SECTORS), st.integers(0, (1 << 32) - 1)),
    st.integers(0, 2),
)
requests = st.one_of(headers, st.tuples(headers, ranges).map(b"".join))


@pytest.mark.slow
@given(st.lists(st.tuples(st.just(0), chains(requests)), min_size=1, max_size=5))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_any_bytes_get_a_status_or_a_named_error(sequence: list[tuple[int, Chain]]) -> None:
    disk = MemoryDisk(pattern())
    attack(BlkDevice(disk), sequence)
    assert disk.size == SECTORS * 512


def test_a_huge_read_is_refused_before_anything_is_moved() -> None:
    """Descriptors may all name the same bytes: 16 times half a gigabyte in guest memory of one."""

    class Huge(MemoryDisk):
        size = 1 << 50  # type: ignore[assignment]

        def read(self, offset: int, length: int) -> bytes:
            raise AssertionError("read")

    driver = Driver(BlkDevice(Huge(0)), GuestMemory(1 << 30))
    header = allocate(driver.mem, 16, 16)
    write_bytes(driver.mem, header, BlkHdr(0).pack())
    driver.submit(0, [Buffer(header, 16)], [*[Buffer(1 << 29, 1 << 29)] * 16, Buffer(header, 1)])
    assert driver.device.handle_queue(0) == [0]
    assert driver.mem.u8[header] == VIRTIO_BLK_S_IOERR
