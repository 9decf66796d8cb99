"""Messages there and back, and garbage: a named error of one line, nothing else."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iosim.vhost_user import messages as m
from iosim.vhost_user.channel import Channel, close_fds
from iosim.vhost_user.errors import DisconnectedError, MessageFdError, MessageSizeError, VhostUserError

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
REGIONS = st.builds(m.MemoryRegion, U64, U64, U64, U64)
HEADERS = st.builds(
    m.Header, U32, st.sampled_from([1, 5, 9, 13]), st.integers(0, m.MAX_PAYLOAD)
)


def assert_one_line(error: Exception) -> None:
    assert "\n" not in str(error)


@given(HEADERS)
def test_headers(header: m.Header) -> None:
    assert m.Header.unpack(header.pack()) == header


@given(st.builds(m.VringState, U32, U32))
def test_states(state: m.VringState) -> None:
    assert m.VringState.unpack(state.pack()) == state


@given(st.builds(m.VringAddr, U32, U32, U64, U64, U64, U64))
def test_addresses(addr: m.VringAddr) -> None:
    assert m.VringAddr.unpack(addr.pack()) == addr


@given(st.lists(REGIONS, max_size=m.MAX_REGIONS), REGIONS)
def test_regions(table: list[m.MemoryRegion], single: m.MemoryRegion) -> None:
    data = m.pack_memory_table(table)
    assert m.unpack_memory_table(data) == table
    # Some senders always send room for 8.
    full = data.ljust(8 + 32 * m.MAX_REGIONS, b"\0")
    assert m.unpack_memory_table(full) == table
    assert m.unpack_single_region(m.pack_single_region(single)) == single


@given(st.integers(0, 255), st.sampled_from([0, 1]), st.binary(max_size=256))
def test_configurations(offset: int, flags: int, data: bytes) -> None:
    config = m.Config(offset, flags, data)
    if offset + len(data) > m.MAX_CONFIG:
        with pytest.raises(MessageSizeError):
            m.Config.unpack(config.pack())
    else:
        assert m.Config.unpack(config.pack()) == config


@given(U64)
def test_numbers(value: int) -> None:
    assert m.unpack_u64(m.pack_u64(value)) == value


@given(st.binary(max_size=400))
def test_garbage_in_payloads(data: bytes) -> None:
    unpackers = (
        m.VringState.unpack, m.VringAddr.unpack, m.MemoryRegion.unpack, m.Config.unpack, m.unpack_u64,
        m.unpack_memory_table, m.unpack_single_region, m.Header.unpack,
    )  # fmt: skip
    for unpack in unpackers:
        try:
            unpack(data)
        except VhostUserError as error:
            assert_one_line(error)


@given(st.binary(min_size=12, max_size=12), st.integers(0, 9))
def test_garbage_in_headers(data: bytes, fds: int) -> None:
    try:
        assert m.check_request(m.Header.unpack(data), fds) in m.Request
    except VhostUserError as error:
        assert_one_line(error)


@given(st.sampled_from(sorted(m._SHAPES)), st.integers(0, 300), st.integers(0, 9))
def test_a_request_is_taken_if_and_only_if_its_shape_is_right(request: m.Request, size: int, fds: int) -> None:
    least, most, fewest, limit = m._SHAPES[request]
    header = m.Header(request, 1, size)
    if least <= size <= most and fewest <= fds <= limit:
        assert m.check_request(header, fds) is request
    else:
        with pytest.raises((MessageSizeError, MessageFdError), match=request.name):
            m.check_request(header, fds)


def test_what_is_written_in_the_protocol() -> None:
    """Numbers and sizes of QEMU's docs/interop/vhost-user.rst, as libvhost-user.h has them."""
    assert m.Request.SET_MEM_TABLE == 5
    assert m.Request.SET_VRING_ENABLE == 18
    assert m.Request.GET_CONFIG == 24
    assert m.Request.GET_STATUS == 40
    assert m.ProtocolFeature.CONFIGURE_MEM_SLOTS == 15
    assert len(m.VringAddr(0, 0, 0, 0, 0, 0).pack()) == 40
    assert len(m.pack_memory_table([m.MemoryRegion(0, 0, 0, 0)] * 8)) == 264
    with pytest.raises(MessageSizeError):
        m.encode(1, bytes(m.MAX_PAYLOAD + 1))


@given(st.lists(st.tuples(st.sampled_from(list(m.Request)), st.binary(max_size=500), st.integers(0, 8)), max_size=5))
def test_messages_arrive_whole_with_their_descriptors(messages: list[tuple[m.Request, bytes, int]]) -> None:
    left, right = socket.socketpair()
    sender, receiver = Channel(left, 1), Channel(right, 1)
    null = os.open("/dev/null", os.O_RDONLY)
    for request, payload, fds in messages:
        sender.send(request, payload, 0, [null] * fds)
    for request, payload, fds in messages:
        message = receiver.receive()
        assert (message.header.request, message.payload, len(message.fds)) == (request, payload, fds)
        assert all(not os.get_inheritable(fd) for fd in message.fds)
        close_fds(message.fds)
    sender.close()
    with pytest.raises(DisconnectedError):
        receiver.receive()
    receiver.close()
    os.close(null)


def test_more_descriptors_than_any_message_has() -> None:
    left, right = socket.socketpair()
    null = os.open("/dev/null", os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(left, [m.encode(1)], [null] * 20)
    with pytest.raises(MessageFdError, match="more than 8 file descriptors"):
        Channel(right, 1).receive()
    assert len(os.listdir("/proc/self/fd")) == before
    for sock in (left, right):
        sock.close()
    os.close(null)
