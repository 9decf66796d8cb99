"""The station that answers ARP and ping, against packets built by hand from the RFCs."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iosim.virtio.echo_peer import DEFAULT_MAC, EchoPeer, internet_checksum

GUEST_MAC = bytes.fromhex("525400123456")
GUEST = bytes([10, 0, 2, 15])
PEER = bytes([10, 0, 2, 2])


def slow_checksum(data: bytes) -> int:
    """RFC 1071 by its words: sum up 16 bits at a time, bring every carry round, complement."""
    total = 0
    for high, low in zip(data[::2], (data + b"\0")[1::2], strict=False):
        total += high << 8 | low
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def arp(asker: bytes = GUEST, asked: bytes = PEER, operation: int = 1) -> bytes:
    head = struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation)
    return b"\xff" * 6 + GUEST_MAC + b"\x08\x06" + head + GUEST_MAC + asker + bytes(6) + asked


def ipv4(body: bytes, protocol: int = 1, place: int = 0, to: bytes = PEER) -> bytes:
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 7, place, 64, protocol, 0) + GUEST + to
    header = header[:10] + struct.pack(">H", slow_checksum(header)) + header[12:]
    return DEFAULT_MAC + GUEST_MAC + b"\x08\x00" + header + body


def echo(contents: bytes) -> bytes:
    body = struct.pack(">BBHHH", 8, 0, 0, 0x1234, 1) + contents
    return body[:2] + struct.pack(">H", slow_checksum(body)) + body[4:]


@given(st.binary(max_size=70))
def test_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    assert internet_checksum(data) == slow_checksum(data)


def test_arp_is_answered_with_our_address() -> None:
    answer = EchoPeer().answer(arp())
    assert answer is not None
    assert answer[:12] == GUEST_MAC + DEFAULT_MAC
    assert answer[20:22] == b"\0\2"
    assert answer[22:42] == DEFAULT_MAC + PEER + GUEST_MAC + GUEST
    assert len(answer) == 60


@pytest.mark.parametrize(
    "request_",
    [arp(asker=bytes(4)), arp(asker=PEER), arp(operation=2), arp()[:30], b""],
    ids=["probe", "announcement", "reply", "short", "empty"],
)
def test_what_asks_nothing_is_not_answered(request_: bytes) -> None:
    assert EchoPeer().answer(request_) is None


def test_with_an_address_only_that_one_is_answered() -> None:
    peer = EchoPeer(address=PEER)
    assert peer.answer(arp()) is not None
    assert peer.answer(arp(asked=bytes([10, 0, 2, 3]))) is None
    assert peer.answer(ipv4(echo(b"x"), to=bytes([10, 0, 2, 3]))) is None


@given(st.binary(max_size=2000))
def test_an_echo_comes_back_with_its_contents_and_right_checksums(contents: bytes) -> None:
    answer = EchoPeer().answer(ipv4(echo(contents)))
    assert answer is not None
    packet = answer[14 : 14 + 28 + len(contents)]
    assert packet[12:20] == PEER + GUEST
    assert slow_checksum(packet[:20]) == 0
    assert packet[20] == 0
    assert slow_checksum(packet[20:]) == 0
    assert packet[24:] == echo(contents)[4:]


def test_fragments_of_a_long_echo_come_back_each() -> None:
    whole = echo(bytes(range(256)) * 12)
    pieces = [whole[at : at + 1480] for at in range(0, len(whole), 1480)]
    peer = EchoPeer()
    back = b""
    for number, piece in enumerate(pieces):
        more = 0x2000 if number < len(pieces) - 1 else 0
        answer = peer.answer(ipv4(piece, place=more | number * 1480 // 8))
        assert answer is not None
        assert answer[20:22] == ipv4(piece, place=more | number * 1480 // 8)[20:22]
        back += answer[34 : 34 + len(piece)]
    assert back[0] == 0
    assert slow_checksum(back) == 0
    assert peer.counts["fragment"] == len(pieces) - 1
    assert peer.bytes == len(whole) - 8


def test_a_damaged_echo_is_counted_and_not_answered() -> None:
    peer = EchoPeer()
    frame = bytearray(ipv4(echo(b"contents")))
    frame[-1] ^= 1
    assert peer.answer(bytes(frame)) is None
    assert peer.counts["bad_checksum"] == 1


@given(st.binary(max_size=80))
def test_no_bytes_upset_it(junk: bytes) -> None:
    for head in (b"", DEFAULT_MAC + GUEST_MAC + b"\x08\x00", b"\xff" * 6 + GUEST_MAC + b"\x08\x06"):
        EchoPeer().answer(head + junk)


@given(st.binary(max_size=120), st.integers(min_value=14, max_value=60))
def test_no_damage_upsets_it(junk: bytes, at: int) -> None:
    frame = ipv4(echo(b"contents" * 8))
    EchoPeer().answer(frame[:at] + junk)
