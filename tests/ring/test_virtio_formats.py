"""Feature bits (virtio 1.2, 5.1.3 and 6) and the header before every packet (5.1.6)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.virtio import features, net
from iosim.virtio.features import feature_bit, feature_name, feature_names, feature_set, has_feature
from iosim.virtio.net import NetHdr, controlq, receiveq, transmitq


def test_5_1_6_the_header_byte_by_byte() -> None:
    header = NetHdr(1, 4, 0x0203, 0x0405, 0x0607, 0x0809, 0x0A0B)
    assert header.pack().hex() == "01" "04" "0302" "0504" "0706" "0908" "0b0a"
    assert NetHdr.unpack(header.pack() + b"packet") == header
    assert len(NetHdr().pack()) == net.NET_HDR_LEN == 12


@given(st.binary(min_size=12, max_size=40))
@settings(derandomize=True, deadline=None)
def test_5_1_6_any_twelve_bytes_are_a_header(data: bytes) -> None:
    assert NetHdr.unpack(memoryview(data)).pack() == data[:12]


def test_a_header_that_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(IosimError, match="12 bytes, not 11"):
        NetHdr.unpack(bytes(11))
    for bad in (NetHdr(num_buffers=65536), NetHdr(flags=-1)):
        with pytest.raises(IosimError, match="virtio-net header"):
            bad.pack()


def test_5_1_2_queue_indexes() -> None:
    """receiveq1, transmitq1, ... receiveqN, transmitqN, controlq."""
    pairs = 3
    queues = [f(pair) for pair in range(pairs) for f in (receiveq, transmitq)] + [controlq(pairs)]
    assert queues == list(range(7))
    assert (net.RECEIVEQ, net.TRANSMITQ) == (0, 1)


def test_6_the_bits_that_linux_accepted_from_qemu() -> None:
    """The guest features of a measured virtio-net, as QEMU names them (unknown to it then: bit 40)."""
    common = "EVENT_IDX INDIRECT_DESC VERSION_1 RING_RESET"
    control = "CTRL_MAC_ADDR GUEST_ANNOUNCE CTRL_VLAN CTRL_RX CTRL_VQ CTRL_GUEST_OFFLOADS"
    host = "STATUS MAC MRG_RXBUF CSUM HOST_UFO HOST_ECN HOST_TSO6 HOST_TSO4"
    guest = "GUEST_CSUM GUEST_UFO GUEST_ECN GUEST_TSO6 GUEST_TSO4"
    accepted = feature_set(f"{common} {control} {host} {guest}".split(), "net")
    assert accepted == 0x0000_0101_30AF_FFA7
    assert has_feature(accepted, features.VIRTIO_RING_F_EVENT_IDX)
    assert not has_feature(accepted, features.VIRTIO_F_RING_PACKED)
    assert feature_set(feature_names(accepted, "net"), "net") == accepted


@pytest.mark.parametrize("device", ["net", "blk", "console", "rng", "balloon", "scsi", "input"])
def test_no_two_features_share_a_bit(device: str) -> None:
    prefixes = ("VIRTIO_F_", "VIRTIO_RING_F_", f"VIRTIO_{device.upper()}_F_")
    names = [n for n in vars(features) if n.startswith(prefixes)]
    bits = [getattr(features, n) for n in names]
    assert len(set(bits)) == len(bits)
    assert all(feature_name(getattr(features, n), device) == n for n in names)
    assert all(feature_bit(n, device) == getattr(features, n) for n in names)
    assert all(feature_bit(n.partition("_F_")[2].lower(), device) == getattr(features, n) for n in names)


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        ("VIRTIO_F_EVENT_IDX", 29),
        ("VIRTIO_RING_F_EVENT_IDX", 29),
        ("VIRTIO_F_RING_EVENT_IDX", 29),
        ("ring_event_idx", 29),
        ("event_idx", 29),
        ("VIRTIO_F_INDIRECT_DESC", 28),
        ("ring_packed", 34),
        ("in_order", 35),
    ],
)
def test_names_with_and_without_prefix(name: str, bit: int) -> None:
    assert feature_bit(name) == bit


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(IosimError, match="did you mean 'VIRTIO_NET_F_MRG_RXBUF'"):
        feature_bit("VIRTIO_NET_F_MRG_RXBUFF", "net")
    with pytest.raises(IosimError, match="virtio device type"):
        feature_bit("MAC", "nett")
    with pytest.raises(IosimError, match="negative"):
        feature_names(-1)
    assert feature_name(41) == "bit 41"
