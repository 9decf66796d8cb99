"""A station at the other end of a virtual network cable: it answers ARP and ping, and nothing else.

It is what a network device sends its packets to when nobody else is there: enough for a guest to resolve an
address, ping it at any size and see every byte come back. It keeps no state about those who ask, so a fragment
of a long echo request is answered fragment by fragment.

Example:
    >>> peer = EchoPeer()
    >>> request = bytes.fromhex(
    ...     "ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456 0a00020f 000000000000 0a000202")
    >>> answer = peer.answer(request)
    >>> answer[:6].hex(":"), answer[6:12].hex(":"), peer.counts["arp"]
    ('52:54:00:12:34:56', '02:00:00:00:00:02', 1)
"""

from __future__ import annotations

from typing import Final

#: A locally administered address (the second lowest bit of the first byte), so that it is no vendor's.
DEFAULT_MAC: Final = bytes.fromhex("020000000002")

_ETHERNET: Final = 14
_SHORTEST: Final = 60
_ARP: Final = b"\x08\x06"
_IPV4: Final = b"\x08\x00"
#: ARP for IPv4 over Ethernet, up to the operation (RFC 826).
_ARP_HEAD: Final = bytes.fromhex("000108000604")
_ARP_LEN: Final = 28
_REQUEST: Final = b"\x00\x01"
_REPLY: Final = b"\x00\x02"
_ICMP: Final = 1
_ECHO_REQUEST: Final = 8


def internet_checksum(data: bytes | bytearray | memoryview) -> int:
    """Return the checksum of RFC 1071 over ``data``; 0 over data that holds its own.

    >>> hex(internet_checksum(bytes.fromhex("0001f203f4f5f6f7")))
    '0x220d'
    """
    # A number in base 65536 leaves the same remainder for 65535 as the sum of its digits does: the sum with
    # the carries brought round, in one division.
    padded = bytes(data) + b"\0" * (len(data) % 2)
    total = int.from_bytes(padded, "big")
    folded = total % 0xFFFF
    return 0xFFFF - (folded or (0xFFFF if total else 0))


class EchoPeer:
    """Answers ARP requests and ICMP echo requests (RFC 826, RFC 792), frame by frame.

    Attributes:
        counts: What came, by kind: `arp` and `echo` were answered (`fragment`: a later piece of an echo);
            `bad_checksum` were echoes that arrived damaged, `ignored` all else.
        bytes: Contents of the echoes that were answered, in bytes.
    """

    def __init__(self, mac: bytes = DEFAULT_MAC, address: bytes | None = None) -> None:
        """Stand at one IPv4 address (4 bytes), or at all of them but the asker's own."""
        self.mac = mac
        self.address = address
        self.bytes = 0
        self.counts: dict[str, int] = dict.fromkeys(("arp", "echo", "fragment", "bad_checksum", "ignored"), 0)

    def answer(self, frame: bytes) -> bytes | None:
        """Return the frame to send back for ``frame`` (from the destination address on, no checksum), or None."""
        found = None
        if frame[12:14] == _ARP:
            found = self._arp(frame)
        elif frame[12:14] == _IPV4:
            found = self._ipv4(frame)
        if found is None:
            return None
        return found.ljust(_SHORTEST, b"\0")

    def _count(self, kind: str) -> None:
        self.counts[kind] += 1

    def _arp(self, frame: bytes) -> bytes | None:
        packet = frame[_ETHERNET : _ETHERNET + _ARP_LEN]
        asker, asked = packet[14:18], packet[24:28]
        # Who asks for its own address, or has none yet, wants to know whether it is free: it is.
        probe = asker in (asked, bytes(4))
        ours = self.address in (None, asked)
        if len(packet) < _ARP_LEN or packet[:8] != _ARP_HEAD + _REQUEST or probe or not ours:
            self._count("ignored")
            return None
        self._count("arp")
        return packet[8:14] + self.mac + _ARP + _ARP_HEAD + _REPLY + self.mac + asked + packet[8:18]

    def _ipv4(self, frame: bytes) -> bytes | None:
        header_len = (frame[_ETHERNET] & 15) * 4 if len(frame) > _ETHERNET else 0
        total_len = int.from_bytes(frame[16:18], "big")
        packet = bytearray(frame[_ETHERNET : _ETHERNET + total_len])
        for_us = frame[:6] == self.mac and self.address in (None, bytes(packet[16:20]))
        whole = 20 <= header_len <= len(packet) == total_len
        if not whole or not for_us or packet[9] != _ICMP or internet_checksum(packet[:header_len]):
            self._count("ignored")
            return None
        place = int.from_bytes(packet[6:8], "big")
        more, offset = bool(place & 0x2000), place & 0x1FFF
        body = packet[header_len:]
        if offset:
            self._count("fragment")
        elif len(body) < 8 or body[0] != _ECHO_REQUEST:
            self._count("ignored")
            return None
        elif not more and internet_checksum(body):
            self._count("bad_checksum")
            return None
        else:
            # The type goes from 8 to 0, and the checksum, which covers it, up by as much (RFC 1624).
            checksum = int.from_bytes(body[2:4], "big") + (_ECHO_REQUEST << 8)
            body[0] = 0
            body[2:4] = ((checksum & 0xFFFF) + (checksum >> 16)).to_bytes(2, "big")
            self._count("echo")
        self.bytes += len(body) - (0 if offset else 8)
        # Two addresses that change places leave the checksum of the header as it was.
        packet[12:20] = packet[16:20] + packet[12:16]
        return bytes(frame[6:12] + self.mac + _IPV4 + packet[:header_len] + body)
