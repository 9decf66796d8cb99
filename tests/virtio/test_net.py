"""The network device (virtio 1.2, 5.1): packets, merged buffers, the control queue, hostile drivers."""

from __future__ import annotations

import struct

import pytest
from hostile import Chain, attack, chains
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.errors import IosimError
from iosim.ring.memory import GuestMemory, allocate
from iosim.ring.virtqueue import Buffer, new_virtqueue
from iosim.virtio import net
from iosim.virtio.errors import FormatError, NegotiationError, RequestError
from iosim.virtio.features import VIRTIO_NET_F_MQ, feature_set, has_feature
from iosim.virtio.net import NetConfig, NetHdr, complete_checksum, packet_out
from iosim.virtio.net_device import MAX_PACKET, NetDevice
from iosim.virtio.transport import Driver

ALL = (1 << 64) - 1
RX, TX = 0, 1
MAC = b"\x52\x54\x00\x12\x34\x56"
OTHER = b"\x02\x00\x00\x00\x00\x07"
GROUP = b"\x01\x00\x5e\x00\x00\x01"
OK, ERR = bytes([net.VIRTIO_NET_OK]), bytes([net.VIRTIO_NET_ERR])


def without(*names: str) -> int:
    return ALL & ~feature_set(names, "net")


class Card:
    """A device, its driver, and what was sent."""

    def __init__(self, understood: int = ALL, queue_size: int = 16, **options: object) -> None:
        self.sent: list[tuple[bytes, NetHdr]] = []
        self.device = NetDevice(lambda packet, header: self.sent.append((packet, header)), **options)  # type: ignore[arg-type]
        self.driver = Driver(self.device, GuestMemory(1 << 20), understood, queue_size)

    def post(self, *sizes: int) -> None:
        """Give receive buffers."""
        for size in sizes:
            addr = allocate(self.driver.mem, size, 1)
            self.driver.submit(RX, [], [Buffer(addr, size)])
        self.driver.kick(RX)

    def receive(self, packet: bytes, header: NetHdr | None = None) -> None:
        self.driver.deliver(self.device.receive(packet, header))

    def taken(self) -> list[bytes]:
        """The used buffers, each as far as the device says that it wrote."""
        return [reply.contents[: reply.length] for reply in self.driver.collect(RX)]

    def ctrl(self, request: tuple[bytes, int]) -> bytes:
        assert self.device.control_queue is not None
        return self.driver.request(self.device.control_queue, *request)


def test_5_1_4_the_configuration_space() -> None:
    device = NetDevice(mac=OTHER, pairs=4, mtu=1500)
    assert device.config() == OTHER + struct.pack("<HHH", 1, 4, 1500)
    assert NetConfig.unpack(device.config()) == NetConfig(OTHER, net.VIRTIO_NET_S_LINK_UP, 4, 1500)
    assert NetConfig(OTHER, 1, 4, 1500).pack() == device.config()
    with pytest.raises(FormatError, match="12 bytes here, not 3"):
        NetConfig.unpack(bytes(3))


def test_5_1_6_2_transmit() -> None:
    card = Card()
    header = NetHdr(flags=1, csum_start=14, csum_offset=6)
    for packet in (b"a packet", bytes(MAX_PACKET - 10_000)):
        card.driver.request(TX, *packet_out(packet, header), out_cuts=[1, 12, 15])
    assert card.sent == [(b"a packet", header), (bytes(MAX_PACKET - 10_000), header)]
    assert (card.device.tx_packets, card.device.tx_dropped) == (2, 0)


def test_5_1_6_2_1_packets_with_offloads_that_are_not_negotiated_go_nowhere() -> None:
    card = Card(without("CSUM"))
    for header in (NetHdr(flags=1), NetHdr(gso_type=1), NetHdr(gso_type=77), NetHdr(gso_type=0x84)):
        card.driver.request(TX, *packet_out(b"packet", header))
    card.driver.request(TX, *packet_out(b""))
    assert card.sent == []
    assert card.device.tx_dropped == 5
    offloads = feature_set(["HOST_TSO4", "HOST_ECN"], "net")
    card = Card(features=offloads)
    for header in (NetHdr(gso_type=1), NetHdr(gso_type=0x81), NetHdr(gso_type=4)):
        card.driver.request(TX, *packet_out(b"packet", header))
    assert [header.gso_type for _, header in card.sent] == [1, 0x81]


def test_a_packet_longer_than_any_is_dropped() -> None:
    card = Card()
    page = allocate(card.driver.mem, 1 << 15, 1)
    card.driver.submit(TX, [Buffer(page, 1 << 15)] * 3, [])
    card.driver.kick(TX)
    assert card.device.tx_dropped == 1
    assert len(card.driver.collect(TX)) == 1


def test_5_1_6_4_one_buffer() -> None:
    for understood in (ALL, without("MRG_RXBUF")):
        card = Card(understood)
        card.post(1526, 1526)
        card.receive(b"x" * 1514)
        assert card.driver.interrupts == [RX]
        (data,) = card.taken()
        assert NetHdr.unpack(data) == NetHdr(num_buffers=1), "5.1.6.4.1: 1 without MRG_RXBUF as well"
        assert data[12:] == b"x" * 1514


@pytest.mark.parametrize("sizes", [[12, 12, 12, 64], [20, 30, 13, 12], [100], [62], [61, 12]])
def test_5_1_6_4_merged_buffers(sizes: list[int]) -> None:
    packet = bytes(range(50))
    card = Card()
    card.post(*sizes)
    card.receive(packet)
    parts = card.taken()
    used = [len(part) for part in parts]
    assert b"".join(parts)[12:] == packet
    assert NetHdr.unpack(parts[0]).num_buffers == len(parts)
    assert used[:-1] == sizes[: len(used) - 1], "all but the last are full"
    assert sum(sizes[: len(used) - 1]) < 62 <= sum(sizes[: len(used)]), "no more than needed"


def test_5_1_6_4_a_packet_waits_for_all_its_buffers() -> None:
    card = Card()
    card.post(100)
    card.receive(b"y" * 300)
    card.receive(b"z" * 10)
    assert card.taken() == [], "nothing is shown before the whole packet is there"
    card.post(100, 100)
    assert card.taken() == []
    card.post(100, 100)
    first, second, third, fourth, last = card.taken()
    assert NetHdr.unpack(first).num_buffers == 4
    assert (first + second + third + fourth)[12:] == b"y" * 300
    assert last[12:] == b"z" * 10


def test_5_1_6_4_all_buffers_of_a_packet_are_published_at_once() -> None:
    card = Card()
    flushed: list[int] = []
    queue = card.device.queues[RX]
    flush = queue.flush
    queue.flush = lambda count: (flushed.append(count), flush(count))[1]  # type: ignore[method-assign, func-returns-value]
    card.post(100, 100, 100)
    card.receive(bytes(280))
    assert flushed == [3]


def test_a_queue_that_is_set_up_anew_has_no_buffers_left_from_before() -> None:
    card = Card()
    card.post(100)
    card.receive(bytes(300))
    guest, side = new_virtqueue(card.driver.mem, 16)
    card.device.set_queue(RX, side)
    guest.add([], [Buffer(0x100, 400)])
    assert card.device.handle_queue(RX) == [RX]
    used = guest.get_buf()
    assert used is not None
    assert used.length == 312


def test_packets_beyond_the_backlog_are_dropped() -> None:
    card = Card(backlog=2)
    for i in range(4):
        card.receive(bytes([i]) * 20)
    assert card.device.rx_dropped == 2
    card.post(64, 64, 64)
    assert [data[12] for data in card.taken()] == [0, 1]


def test_without_mrg_rxbuf_a_buffer_too_small_stays_for_another_packet() -> None:
    """As in QEMU, where virtqueue_unpop gives it back."""
    card = Card(without("MRG_RXBUF"))
    card.post(64)
    card.receive(b"b" * 53)
    assert (card.taken(), card.device.rx_dropped) == ([], 1)
    card.receive(b"s" * 52)
    assert [data[12:] for data in card.taken()] == [b"s" * 52]


def test_a_packet_that_all_buffers_together_cannot_hold_is_dropped() -> None:
    card = Card(queue_size=4)
    card.post(20, 20, 20, 20)
    card.receive(bytes(100))
    card.receive(b"small")
    assert card.device.rx_dropped == 1
    assert [data[12:] for data in card.taken()] == [b"small"]


def test_5_1_6_1_a_legacy_driver_has_a_shorter_header() -> None:
    card = Card(feature_set(["CSUM"], "net"), transitional=True)
    assert card.device.header_length == 10
    card.post(64)
    card.receive(b"in")
    (data,) = card.taken()
    assert data == bytes(10) + b"in"
    card.driver.request(TX, bytes(10) + b"out", 0)
    assert card.sent == [(b"out", NetHdr())]


@pytest.mark.parametrize("understood", [ALL, without("EVENT_IDX")])
def test_the_driver_asks_for_interrupts_and_the_device_for_kicks_only_when_they_are_of_use(understood: int) -> None:
    card = Card(understood)
    card.post(*[64] * 4)
    kicks = len(card.driver.kicks)
    card.driver.queues[RX].disable_cb()
    card.receive(b"one")
    card.post(64)
    assert len(card.driver.kicks) == kicks, "there are buffers: no need to hear of more"
    for _ in range(5):
        card.receive(b"more")
    card.post(64)
    assert len(card.driver.kicks) == kicks + 1, "they had run out"
    assert len(card.taken()) == 6


def filtered(card: Card, destination: bytes, tag: bytes = b"") -> bool:
    before = card.device.rx_filtered
    card.receive(destination + OTHER + tag + b"payload")
    return card.device.rx_filtered > before


def test_5_1_6_5_1_receive_modes() -> None:
    card = Card()
    frames = (MAC, OTHER, GROUP, b"\xff" * 6)
    assert not any(filtered(card, d) for d in frames), "promiscuous at first, as in QEMU"
    modes = {
        (): (MAC, b"\xff" * 6),
        (net.VIRTIO_NET_CTRL_RX_ALLMULTI,): (MAC, GROUP, b"\xff" * 6),
        (net.VIRTIO_NET_CTRL_RX_ALLUNI,): (MAC, OTHER, b"\xff" * 6),
        (net.VIRTIO_NET_CTRL_RX_ALLMULTI, net.VIRTIO_NET_CTRL_RX_NOMULTI): (MAC, b"\xff" * 6),
        (net.VIRTIO_NET_CTRL_RX_NOUNI,): (b"\xff" * 6,),
        (net.VIRTIO_NET_CTRL_RX_NOBCAST,): (MAC,),
    }
    for on, wanted in modes.items():
        for mode in range(6):
            assert card.ctrl(net.request_rx_mode(mode, mode in on)) == OK
        assert tuple(d for d in frames if not filtered(card, d)) == wanted
    assert card.ctrl(net.request_rx_mode(6, True)) == ERR
    assert card.ctrl(net.request_ctrl(0, 0, b"\1\1")) == ERR


def test_5_1_6_5_2_addresses() -> None:
    card = Card()
    card.ctrl(net.request_rx_mode(net.VIRTIO_NET_CTRL_RX_PROMISC, False))
    assert card.ctrl(net.request_mac_table([OTHER], [GROUP])) == OK
    assert not any(filtered(card, d) for d in (MAC, OTHER, GROUP))
    assert card.ctrl(net.request_mac(b"\x02\x00\x00\x00\x00\x99")) == OK
    assert filtered(card, MAC)
    assert card.device.config()[:6] == b"\x02\x00\x00\x00\x00\x99"
    many = [struct.pack(">HI", 0x0200, i) for i in range(65)]
    assert card.ctrl(net.request_mac_table(many, [])) == OK
    assert not filtered(card, b"\x02\x11\x22\x33\x44\x55"), "a table that is too long holds everything"
    assert filtered(card, GROUP)
    good = net.request_mac_table([OTHER], [GROUP])[0]
    for bad in (good[:-1], good + b"x", good[:4], good[:2] + b"\xff\xff\xff\xff" + good[6:]):
        assert card.ctrl((bad, 1)) == ERR
    assert card.ctrl(net.request_mac(b"short")) == ERR
    card.device.write_status(0)
    assert card.device.config()[:6] == MAC, "2.4: a reset undoes it"


def test_5_1_6_5_3_vlans() -> None:
    card = Card()
    card.ctrl(net.request_rx_mode(net.VIRTIO_NET_CTRL_RX_PROMISC, False))
    tag = b"\x81\x00\x00\x05"
    assert filtered(card, MAC, tag)
    assert card.ctrl(net.request_vlan(5, True)) == OK
    assert not filtered(card, MAC, tag)
    assert card.ctrl(net.request_vlan(5, False)) == OK
    assert filtered(card, MAC, tag)
    assert card.ctrl(net.request_vlan(4096, True)) == ERR
    assert card.ctrl(net.request_ctrl(2, 2, b"\0\0")) == ERR
    card = Card(without("CTRL_VLAN"))
    card.ctrl(net.request_rx_mode(net.VIRTIO_NET_CTRL_RX_PROMISC, False))
    assert not filtered(card, MAC, tag)
    assert card.ctrl(net.request_vlan(5, True)) == ERR


def test_5_1_6_5_4_announce() -> None:
    card = Card()
    assert card.ctrl(net.request_announce_ack()) == ERR, "nobody asked"
    assert card.device.announce()
    assert card.driver.config_changes == 1
    assert NetConfig.unpack(card.device.config()).status == net.VIRTIO_NET_S_LINK_UP | net.VIRTIO_NET_S_ANNOUNCE
    assert card.ctrl(net.request_ctrl(3, 1)) == ERR
    assert card.ctrl(net.request_announce_ack()) == OK
    assert NetConfig.unpack(card.device.config()).status == net.VIRTIO_NET_S_LINK_UP
    assert not Card(without("GUEST_ANNOUNCE")).device.announce()


def test_5_1_6_5_5_pairs_of_queues() -> None:
    card = Card(pairs=3)
    assert card.device.control_queue == 6
    for queue in (0, 2, 4):
        addr = allocate(card.driver.mem, 64, 1)
        card.driver.submit(queue, [], [Buffer(addr, 64)])
    assert card.device.receive(b"first", pair=2) == [0], "one pair until the driver asks for more"
    for pairs, answer in ((0, ERR), (4, ERR), (3, OK)):
        assert card.ctrl(net.request_vq_pairs(pairs)) == answer
    assert card.device.receive(b"second", pair=2) == [4]
    assert card.device.receive(b"third", pair=1) == [2]
    assert card.ctrl(net.request_ctrl(4, 1, bytes(2))) == ERR, "RSS is not offered"
    card.driver.request(5, *packet_out(b"on the third"))
    assert card.sent[0][0] == b"on the third"


def test_5_1_2_without_mq_the_control_queue_is_the_third() -> None:
    card = Card(without("MQ"), pairs=3)
    assert card.device.control_queue == 2
    assert card.ctrl(net.request_rx_mode(0, True)) == OK
    assert card.ctrl(net.request_vq_pairs(2)) == ERR


def test_5_1_6_5_6_offloads() -> None:
    features = feature_set(["CTRL_GUEST_OFFLOADS", "GUEST_TSO4", "GUEST_TSO6"], "net")
    card = Card(features=features)
    card.post(*[64] * 8)
    tso = NetHdr(gso_type=net.VIRTIO_NET_HDR_GSO_TCPV4, gso_size=100)
    card.receive(b"large", tso)
    assert card.device.rx_packets == 1
    assert card.ctrl(net.request_guest_offloads(feature_set(["GUEST_CSUM"], "net"))) == OK
    card.receive(b"large", tso)
    assert (card.device.rx_packets, card.device.rx_dropped) == (1, 1)
    for bad in (feature_set(["GUEST_UFO"], "net"), 1 << 63):
        assert card.ctrl(net.request_guest_offloads(bad)) == ERR
    assert card.ctrl(net.request_ctrl(5, 0, bytes(7))) == ERR
    assert Card().ctrl(net.request_guest_offloads(0)) == ERR


def test_unknown_commands_are_errors() -> None:
    card = Card()
    for class_ in (6, 255):
        assert card.ctrl(net.request_ctrl(class_, 0)) == ERR


def test_the_link() -> None:
    card = Card()
    card.device.set_link(False)
    card.device.set_link(False)
    assert card.driver.config_changes == 1
    assert NetConfig.unpack(card.device.config()).status == 0
    card.receive(b"x")
    card.driver.request(TX, *packet_out(b"x"))
    assert (card.device.rx_dropped, card.device.tx_dropped) == (1, 1)


UDP = bytes.fromhex(
    "525400123456" "020000000007" "0800" "4500002100004000401126ca" "0a000001" "0a000002" "04d2162e000d"
)


def test_5_1_6_2_an_incomplete_checksum_is_completed() -> None:
    """The checksum field holds the pseudo-header's sum, as Linux leaves it."""
    payload = b"hello"
    pseudo = sum(struct.unpack(">6H", bytes.fromhex("0a0000010a000002" "0011" "000d")))
    pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
    frame = UDP + struct.pack(">H", pseudo) + payload
    header = NetHdr(flags=net.VIRTIO_NET_HDR_F_NEEDS_CSUM, csum_start=34, csum_offset=6)
    done = complete_checksum(frame, header)
    words = struct.unpack(f">{7}H", done[34:] + b"\0")
    total = sum(words) + sum(struct.unpack(">6H", bytes.fromhex("0a0000010a000002" "0011" "000d")))
    assert total % 0xFFFF == 0, "what a receiver checks (RFC 1071)"
    assert done[:40] + done[42:] == frame[:40] + frame[42:]
    assert complete_checksum(frame, NetHdr()) is frame
    with pytest.raises(FormatError, match="outside the packet"):
        complete_checksum(frame[:41], header)
    card = Card(without("GUEST_CSUM"))
    card.post(128, 128)
    card.receive(frame, header)
    (data,) = card.taken()
    assert data == NetHdr(num_buffers=1).pack() + done
    card.receive(frame[:41], header)
    assert card.device.rx_dropped == 1
    card = Card()
    card.post(128)
    card.receive(frame, header)
    assert card.taken()[0][12:] == frame, "a driver that takes such packets does it itself"


def test_a_back_end_may_answer_at_once() -> None:
    card = Card()
    card.device.send = lambda packet, header: [] if card.device.receive(packet[::-1]) == [] else pytest.fail("nested")
    card.post(64)
    card.driver.queues[TX].add([Buffer(0x40, 20)], [])
    assert card.driver.queues[TX].kick_prepare()
    assert card.device.handle_queue(TX) == [RX, TX]


def test_behind_vhost_user_there_is_no_control_queue() -> None:
    device = NetDevice(control=False, pairs=2)
    assert device.num_queues == 4
    assert has_feature(device.host_features, VIRTIO_NET_F_MQ)
    device.start(feature_set(["VERSION_1", "MQ", "MRG_RXBUF"], "net"))
    assert device.control_queue is None
    assert device.active_pairs == 2
    with pytest.raises(NegotiationError, match="did not offer"):
        device.start(1 << 30)


@pytest.mark.parametrize(
    "bad",
    [{"mac": b"12345"}, {"mac": GROUP}, {"pairs": 0}, {"mtu": 67}, {"features": feature_set(["HOST_ECN"], "net")}],
)
def test_a_device_that_cannot_be(bad: dict[str, object]) -> None:
    with pytest.raises(IosimError):
        NetDevice(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("queue", "chain", "message"),
    [
        (TX, Chain(b"", 64), "header not in first element"),
        (TX, Chain(bytes(11), 0), "header incorrect: 11 bytes of 12"),
        (2, Chain(b"\0\0\0", 0), "ctrl missing headers"),
        (2, Chain(b"\0", 1), "ctrl missing headers"),
    ],
)
def test_what_stops_the_device(queue: int, chain: Chain, message: str) -> None:
    driver = attack(NetDevice(), [(queue, chain)])
    assert isinstance(driver.device.error, RequestError)
    assert message in str(driver.device.error)


@pytest.mark.parametrize(
    ("out", "in_", "message"),
    [([Buffer(0x40, 64)], [], "no in buffers"), ([], [Buffer(0x40, 11)], "11 bytes cannot hold a header of 12")],
)
def test_receive_buffers_that_stop_the_device(out: list[Buffer], in_: list[Buffer], message: str) -> None:
    card = Card()
    card.driver.submit(RX, out, in_)
    card.receive(b"packet")
    assert message in str(card.device.error)
    assert card.device.status.needs_reset


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("post"), st.integers(12, 200)),
            st.tuples(st.just("packet"), st.integers(1, 400)),
            st.tuples(st.just("take"), st.just(0)),
        ),
        max_size=60,
    ),
    st.booleans(),
)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_5_1_6_4_every_packet_comes_once_whole_and_in_order(steps: list[tuple[str, int]], mergeable: bool) -> None:
    card = Card(ALL if mergeable else without("MRG_RXBUF"), queue_size=64, backlog=100)
    sent: list[bytes] = []
    parts: list[bytes] = []
    for number, (step, size) in enumerate(steps):
        if step == "post" and card.driver.queues[RX].num_free:
            card.post(size)
        elif step == "packet":
            sent.append(bytes([number]) * size)
            card.receive(sent[-1])
        else:
            parts += card.taken()
    card.post(*[512] * card.driver.queues[RX].num_free)
    parts += card.taken()
    packets = []
    while parts:
        count = NetHdr.unpack(parts[0]).num_buffers
        packets.append(b"".join(parts[:count])[12:])
        del parts[:count]
    if mergeable:
        assert packets == sent[: len(packets)]
        assert len(packets) == len(sent) or card.driver.queues[RX].num_free == 0
    else:
        remaining = iter(sent)
        assert all(packet in remaining for packet in packets), "in order, some dropped"
        assert card.device.rx_packets + card.device.rx_dropped + len(card.device._waiting.get(0, ())) == len(sent)


ctrl = st.builds(lambda c, k, d: bytes([c, k]) + d, st.integers(0, 6), st.integers(0, 6), st.binary(max_size=40))
tx = st.builds(lambda h, d: h + d, st.binary(min_size=12, max_size=12), st.binary(max_size=64))
anything = st.one_of(
    st.tuples(st.just(0), chains(st.just(b""))),
    st.tuples(st.just(1), chains(tx)),
    st.tuples(st.just(2), chains(ctrl)),
)


@pytest.mark.slow
@given(st.lists(anything, min_size=1, max_size=6))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_any_bytes_on_any_queue(sequence: list[tuple[int, Chain]]) -> None:
    """With a back end that sends everything back, header included."""
    device = NetDevice()
    device.send = device.receive
    attack(device, sequence)
