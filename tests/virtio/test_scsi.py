"""The SCSI host (virtio 1.2, 5.6) and the disk behind it (SPC-4, SBC-3)."""

from __future__ import annotations

import struct

import pytest
from hostile import Chain, attack, chains
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.ring.memory import GuestMemory, allocate
from iosim.ring.virtqueue import Buffer
from iosim.virtio import scsi
from iosim.virtio import scsi_disk as sd
from iosim.virtio.disk import MemoryDisk
from iosim.virtio.errors import FormatError, RequestError
from iosim.virtio.scsi import CONTROLQ, EVENTQ, REQUESTQ, CmdResp, ScsiDevice, ScsiEvent
from iosim.virtio.scsi_disk import ScsiDisk, Sense
from iosim.virtio.transport import Driver

BLOCKS = 64


def pattern() -> bytes:
    return b"".join(struct.pack("<I", i) for i in range(BLOCKS * 128))


class Host:
    """A host with one disk at target 0, and another at target 2, unit 1."""

    def __init__(self, disk: MemoryDisk | None = None, num_queues: int = 1) -> None:
        self.disk = disk or MemoryDisk(pattern())
        units = {(0, 0): ScsiDisk(self.disk), (2, 1): ScsiDisk(MemoryDisk(4096 * 8), "second", 4096)}
        self.device = ScsiDevice(units, num_queues)
        self.driver = Driver(self.device, GuestMemory(1 << 20))

    def send(self, cdb: bytes, data: bytes = b"", in_size: int = 0, **where: int) -> tuple[CmdResp, bytes]:
        """Send a command; return the response and the data that came."""
        reply = self.driver.exchange(REQUESTQ, *scsi.request_cmd(cdb, data, in_size, **where))
        return CmdResp.unpack(reply.contents), reply.contents[108 : reply.length]

    def sense(self, cdb: bytes, data: bytes = b"", in_size: int = 0, **where: int) -> Sense:
        response, data = self.send(cdb, data, in_size, **where)
        assert (response.status, response.response, data) == (sd.CHECK_CONDITION, scsi.VIRTIO_SCSI_S_OK, b"")
        assert response.sense_len == 18
        return Sense(*sd.sense_fields(response.sense))


def test_5_6_6_1_the_formats_byte_by_byte() -> None:
    out, in_size = scsi.request_cmd(b"\x28", b"data", 512, target=3, lun=300, tag=7)
    assert out[:19].hex() == "0103412c00000000" "0700000000000000" "000000"
    assert (len(out), in_size) == (19 + 32 + 4, 12 + 96 + 512)
    response = CmdResp(18, 5, 0, 2, 9, b"s" * 18)
    assert response.pack()[:12].hex() == "12000000" "05000000" "0000" "02" "09"
    assert CmdResp.unpack(response.pack()) == response
    event = ScsiEvent(1, scsi.lun_bytes(2, 1), 2)
    assert ScsiEvent.unpack(event.pack()) == event
    for bad in (lambda: CmdResp.unpack(bytes(11)), lambda: CmdResp(-1).pack(), lambda: ScsiEvent.unpack(bytes(15))):
        with pytest.raises(FormatError):
            bad()
    for target, lun in ((256, 0), (0, 16384), (-1, 0)):
        with pytest.raises(FormatError, match="targets 0 to 255"):
            scsi.lun_bytes(target, lun)
    assert scsi.parse_lun(scsi.lun_bytes(255, 16383)) == (255, 16383)
    assert scsi.parse_lun(bytes([1, 2, 0, 7, 0, 0, 0, 0])) == (2, 7)
    for none in (bytes(8), bytes([1, 0, 0x40, 0, 1, 0, 0, 0]), bytes([1, 0, 0x80, 0, 0, 0, 0, 0])):
        assert scsi.parse_lun(none) is None


def test_5_6_4_the_configuration_space() -> None:
    host = Host(num_queues=3)
    fields = struct.unpack("<7I2HI", host.device.config())
    assert fields == (3, 126, 0xFFFF, 128, 16, 96, 32, 0, 255, 16383)
    host.device.write_config(20, struct.pack("<I", 32))
    host.device.write_config(24, struct.pack("<I", 16))
    for offset, data in ((0, bytes(4)), (20, bytes(4)), (24, b"\xff" * 4), (20, b"\1")):
        host.device.write_config(offset, data)
    assert struct.unpack("<7I2HI", host.device.config())[5:7] == (32, 16)
    out, in_size = scsi.request_cmd(sd.read_10(64, 1), in_size=512, cdb_size=16, sense_size=32)
    reply = host.driver.request(REQUESTQ + 2, out, in_size)
    assert len(reply) == 12 + 32
    assert sd.sense_fields(CmdResp.unpack(reply).sense) == sd.LBA_OUT_OF_RANGE
    host.device.write_status(0)
    assert struct.unpack("<7I2HI", host.device.config())[5:7] == (96, 32), "2.4"


def test_what_a_disk_tells_of_itself() -> None:
    host = Host()
    _, data = host.send(sd.inquiry(36), in_size=36)
    assert (data[0], data[4], data[8:16], data[16:27]) == (0, 31, b"IOSIM   ", b"VIRTIO DISK")
    pages = {page: host.send(sd.inquiry(255, page), in_size=255)[1] for page in (0, 0x80, 0x83, 0xB0, 0xB2)}
    assert list(pages[0][4:]) == list(pages)
    assert pages[0x80][4:] == b"iosim"
    assert all(int.from_bytes(page[2:4], "big") == len(page) - 4 for page in pages.values())
    assert host.sense(sd.inquiry(255, 0x90), in_size=255) == sd.INVALID_FIELD
    assert host.send(sd.test_unit_ready())[0] == CmdResp()._replace(sense=b"")
    assert sd.sense_fields(host.send(sd.request_sense(), in_size=18)[1]) == sd.NO_SENSE
    assert host.send(sd.read_capacity_10(), in_size=8)[1] == struct.pack(">II", 63, 512)
    _, data = host.send(sd.read_capacity_16(), in_size=32, target=2, lun=1)
    assert data == struct.pack(">QI20x", 7, 4096)
    _, data = host.send(sd.mode_sense_6(), in_size=255)
    assert data[0] == len(data) - 1
    assert (data[2], data[4], data[6] & 4) == (0x10, 8, 4), "no write protection, caching page, write cache"
    _, data = host.send(struct.pack(">BBBBxxxHx", sd.MODE_SENSE_10, 0, 8, 0, 255), in_size=255)
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    assert host.sense(sd.mode_sense_6(0x01), in_size=255) == sd.INVALID_FIELD
    protected = Host(MemoryDisk(pattern(), read_only=True))
    assert protected.send(sd.mode_sense_6(8), in_size=255)[1][2] == 0x80


@pytest.mark.parametrize(("read", "write"), [(sd.read_10, sd.write_10), (sd.read_16, sd.write_16)])
def test_reading_and_writing(read, write) -> None:  # type: ignore[no-untyped-def]
    host = Host()
    response, data = host.send(read(3, 2), in_size=1024)
    assert (data, response.residual) == (pattern()[1536:2560], 0)
    response, _ = host.send(write(62, 2), b"w" * 1024)
    assert (response.status, response.residual) == (0, 0)
    assert host.disk.data[62 * 512 :] == b"w" * 1024
    assert host.sense(read(63, 2), in_size=1024) == sd.LBA_OUT_OF_RANGE
    assert host.sense(write(64, 1), bytes(512)) == sd.LBA_OUT_OF_RANGE
    response, _ = host.send(read(64, 0))
    assert response.status == 0, "no block is no error"
    response, data = host.send(read(0, 1), in_size=700)
    assert (len(data), response.residual) == (512, 188)


def test_six_byte_commands_and_fua() -> None:
    host = Host()
    assert host.send(bytes([sd.READ_6, 0, 0, 5, 1, 0]), in_size=512)[1] == pattern()[2560:3072]
    assert host.send(bytes([sd.WRITE_6, 0, 0, 5, 1, 0]), b"6" * 512)[0].status == 0
    assert sd.transfer(bytes([sd.READ_6]) + bytes(15), 512) == (0, 256 * 512), "SBC-3: 0 stands for 256"
    flushes = host.disk.flushes
    fua = bytearray(sd.write_10(0, 1))
    fua[1] |= 8
    host.send(bytes(fua), bytes(512))
    assert host.disk.flushes == flushes + 1
    host.send(sd.synchronize_cache_10())
    assert host.disk.flushes == flushes + 2
    assert host.sense(sd.synchronize_cache_10(65, 1)) == sd.LBA_OUT_OF_RANGE


def test_what_is_refused_says_why() -> None:
    host = Host()
    assert host.sense(b"\xff") == sd.INVALID_OPCODE
    assert host.sense(struct.pack(">BB14x", sd.SERVICE_ACTION_IN_16, 0x11)) == sd.INVALID_FIELD
    protected = Host(MemoryDisk(pattern(), read_only=True))
    assert protected.sense(sd.write_10(0, 1), bytes(512)) == sd.WRITE_PROTECTED

    class Failing(MemoryDisk):
        def read(self, offset: int, length: int) -> bytes:
            raise OSError(5, "Input/output error")

    assert Host(Failing(pattern())).sense(sd.read_10(0, 1), in_size=512) == sd.IO_ERROR


def test_5_6_6_1_targets_and_units() -> None:
    host = Host()
    response, _ = host.send(sd.test_unit_ready(), target=1)
    assert response.response == scsi.VIRTIO_SCSI_S_BAD_TARGET
    assert host.sense(sd.test_unit_ready(), target=2, lun=5) == sd.LUN_NOT_SUPPORTED
    _, data = host.send(sd.inquiry(36), in_size=36, target=2)
    assert data[0] == 0x7F
    _, data = host.send(sd.report_luns(), in_size=64, target=2)
    assert data == struct.pack(">I4xH6xH6x", 16, 0, 1)
    assert host.sense(sd.report_luns(15), in_size=15) == sd.INVALID_FIELD
    assert sd.sense_fields(host.send(sd.request_sense(), in_size=18, target=2)[1]) == sd.LUN_NOT_SUPPORTED


def test_5_6_6_1_more_than_there_is_room_for_is_an_overrun() -> None:
    host = Host()
    for cdb, data, room in (
        (sd.read_10(0, 2), b"", 1023),
        (sd.write_10(0, 2), bytes(1023), 0),
        (sd.inquiry(96), b"", 95),
        (sd.read_capacity_10(), b"", 7),
        (sd.write_16(0, 0xFFFFFFFF), bytes(512), 0),
    ):
        assert host.send(cdb, data, room)[0].response == scsi.VIRTIO_SCSI_S_OVERRUN
    assert host.disk.data == pattern()


def test_5_6_6_1_data_both_ways_needs_inout() -> None:
    assert Host().send(sd.read_10(0, 1), b"out", 512)[0].response == scsi.VIRTIO_SCSI_S_FAILURE


def test_5_6_6_2_task_management() -> None:
    host = Host()
    complete, rejected = scsi.VIRTIO_SCSI_S_FUNCTION_COMPLETE, scsi.VIRTIO_SCSI_S_FUNCTION_REJECTED
    expected = {0: complete, 1: complete, 2: rejected, 3: complete, 4: complete, 5: complete, 6: complete, 7: complete}
    expected |= {8: rejected}
    for subtype, answer in expected.items():
        assert host.driver.request(CONTROLQ, *scsi.request_tmf(subtype)) == bytes([answer])
    wrong = scsi.request_tmf(scsi.VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 2, 9)
    assert host.driver.request(CONTROLQ, *wrong) == bytes([scsi.VIRTIO_SCSI_S_INCORRECT_LUN])
    nobody = scsi.request_tmf(scsi.VIRTIO_SCSI_T_TMF_ABORT_TASK, 77)
    assert host.driver.request(CONTROLQ, *nobody) == bytes([scsi.VIRTIO_SCSI_S_BAD_TARGET])
    for kind in (scsi.VIRTIO_SCSI_T_AN_QUERY, scsi.VIRTIO_SCSI_T_AN_SUBSCRIBE):
        assert host.driver.request(CONTROLQ, *scsi.request_an(kind, events=0x7F)) == bytes(5)
    assert host.driver.request(CONTROLQ, struct.pack("<I", 3), 1) == bytes([rejected])


def test_5_6_6_3_events() -> None:
    host = Host()

    def post() -> None:
        host.driver.submit(EVENTQ, [], [Buffer(allocate(host.driver.mem, 16, 1), 16)])
        host.driver.kick(EVENTQ)

    def events() -> list[ScsiEvent]:
        return [ScsiEvent.unpack(reply.contents) for reply in host.driver.collect(EVENTQ)]

    post()
    post()
    post()
    unit = ScsiDisk(MemoryDisk(512))
    assert host.device.plug(5, 0, unit) == [EVENTQ]
    unit.disk = MemoryDisk(1024)
    host.device.capacity_changed(5, 0)
    assert unit.blocks == 2
    host.device.unplug(5, 0)
    assert events() == [
        ScsiEvent(scsi.VIRTIO_SCSI_T_TRANSPORT_RESET, scsi.lun_bytes(5, 0), scsi.VIRTIO_SCSI_EVT_RESET_RESCAN),
        ScsiEvent(scsi.VIRTIO_SCSI_T_PARAM_CHANGE, scsi.lun_bytes(5, 0), 0x092A),
        ScsiEvent(scsi.VIRTIO_SCSI_T_TRANSPORT_RESET, scsi.lun_bytes(5, 0), scsi.VIRTIO_SCSI_EVT_RESET_REMOVED),
    ]
    assert host.send(sd.test_unit_ready(), target=5)[0].response == scsi.VIRTIO_SCSI_S_BAD_TARGET
    assert host.device.plug(5, 0, unit) == [], "no buffer: lost"
    post()
    (lost,) = events()
    assert lost.event == scsi.VIRTIO_SCSI_T_NO_EVENT | scsi.VIRTIO_SCSI_T_EVENTS_MISSED
    with pytest.raises(FormatError):
        host.device.plug(256, 0, unit)


@pytest.mark.parametrize(
    ("queue", "chain"),
    [
        (REQUESTQ, Chain(bytes(50), 108)),
        (REQUESTQ, Chain(bytes(51), 107)),
        (REQUESTQ, Chain(b"", 108)),
        (CONTROLQ, Chain(bytes(3), 1)),
        (CONTROLQ, Chain(bytes(23), 1)),
        (CONTROLQ, Chain(bytes(24), 0)),
        (CONTROLQ, Chain(b"\1" + bytes(15), 4)),
    ],
)
def test_5_6_6_headers_of_the_wrong_size_stop_the_device(queue: int, chain: Chain) -> None:
    """As QEMU's virtio_scsi_bad_req."""
    driver = attack(Host().device, [(queue, chain)])
    assert isinstance(driver.device.error, RequestError)
    assert "wrong size for virtio-scsi headers" in str(driver.device.error)


def test_an_event_buffer_that_is_too_small_stops_the_device() -> None:
    host = Host()
    host.driver.submit(EVENTQ, [], [Buffer(allocate(host.driver.mem, 15, 1), 15)])
    assert host.device.unplug(0, 0) == []
    assert host.device.status.needs_reset


@pytest.mark.parametrize("bad", [{"units": {}, "num_queues": 0}, {"units": {(0, 1 << 14): None}}])
def test_a_host_that_cannot_be(bad: dict[str, object]) -> None:
    with pytest.raises(IosimError):
        ScsiDevice(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"block_size": 1024}, {"serial": "x" * 21}])
def test_a_disk_that_cannot_be(bad: dict[str, int]) -> None:
    with pytest.raises(IosimError):
        ScsiDisk(MemoryDisk(512), **bad)  # type: ignore[arg-type]


cdbs = st.one_of(
    st.builds(
        lambda op, rest: bytes([op]) + rest,
        st.sampled_from([0, 3, 8, 10, 18, 26, 37, 40, 42, 53, 90, 136, 138, 145, 158, 160]),
        st.binary(min_size=15, max_size=31),
    ),
    st.builds(sd.read_10, st.integers(0, 70), st.integers(0, 3)),
    st.builds(sd.write_16, st.integers(0, (1 << 64) - 1), st.integers(0, 3)),
)
commands = st.builds(lambda cdb, t, n, d: scsi.request_cmd(cdb, d, 0, t, n)[0], cdbs, st.integers(0, 3),
                     st.integers(0, 2), st.sampled_from([b"", bytes(512), bytes(100)]))  # fmt: skip
controls = st.builds(
    lambda k, s, t: struct.pack("<II", k, s) + scsi.lun_bytes(t) + bytes(8),
    st.integers(0, 3), st.integers(0, 9), st.integers(0, 3),
)  # fmt: skip
anything = st.one_of(
    st.tuples(st.just(CONTROLQ), chains(controls, 16)),
    st.tuples(st.just(EVENTQ), chains(st.just(b""), 32)),
    st.tuples(st.just(REQUESTQ), chains(commands, 900)),
)


@pytest.mark.slow
@given(st.lists(anything, min_size=1, max_size=5))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_any_bytes_on_any_queue(sequence: list[tuple[int, Chain]]) -> None:
    host = Host()
    attack(host.device, sequence)
    assert len(host.disk.data) == BLOCKS * 512


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, BLOCKS), st.integers(0, 4), st.lists(st.integers(1, 2100), max_size=4)),
        max_size=12,
    )
)
@settings(derandomize=True, deadline=None, max_examples=80)
def test_5_6_6_1_and_2_7_4_2_any_commands_in_any_framing_against_a_bytearray(
    steps: list[tuple[bool, int, int, list[int]]],
) -> None:
    host, model = Host(), bytearray(pattern())
    for number, (write, lba, blocks, cuts) in enumerate(steps):
        first, last, fits = lba * 512, (lba + blocks) * 512, lba + blocks <= BLOCKS
        data = bytes([number]) * (last - first)
        if write:
            request = scsi.request_cmd(sd.write_10(lba, blocks), data)
            if fits:
                model[first:last] = data
        else:
            request = scsi.request_cmd(sd.read_16(lba, blocks), in_size=last - first)
        reply = host.driver.request(REQUESTQ, *request, cuts, cuts)
        assert CmdResp.unpack(reply).status == (sd.GOOD if fits else sd.CHECK_CONDITION)
        assert reply[108:] == (b"" if write or not fits else model[first:last])
        assert host.disk.data == model
