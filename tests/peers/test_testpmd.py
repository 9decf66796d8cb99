"""Both sides of the rings, split and packed, against DPDK's testpmd: every packet that comes back is compared."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from net_driver import NetDriver
from peer import Peer
from testpmd import testpmd

from iosim.vhost_user.backend import Backend
from iosim.vhost_user.frontend import Frontend
from iosim.vhost_user.memory import SharedMemory
from iosim.virtio.device import RING_FEATURES
from iosim.virtio.features import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    feature_names,
)
from iosim.virtio.net_device import NetDevice

PACKED = 1 << VIRTIO_F_RING_PACKED
IN_ORDER = 1 << VIRTIO_F_IN_ORDER
MERGEABLE = 1 << VIRTIO_NET_F_MRG_RXBUF
RING_BITS = (VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_F_IN_ORDER)
MIXES = [sum(1 << bit for bit in bits if bit) for bits in product(*((0, bit) for bit in RING_BITS))]
BURST = 24


def name(features: int) -> str:
    short = "+".join(feature_names(features, "net"))
    return short.replace("VIRTIO_RING_F_", "").replace("VIRTIO_F_", "").replace("VIRTIO_NET_F_", "") or "plain"


def packets(rng: random.Random, count: int = BURST, longest: int = 1514) -> list[bytes]:
    return [rng.randbytes(rng.choice([60, 64, rng.randint(60, longest), longest])) for _ in range(count)]


@pytest.fixture(scope="module")
def vhost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Peer]]:
    """A testpmd that is a vhost-user back end."""
    tmp = tmp_path_factory.mktemp("vhost")
    with testpmd(tmp, f"net_vhost0,iface={tmp / 'net.sock'},queues=1") as peer:
        yield tmp / "net.sock", peer


@pytest.mark.slow
@pytest.mark.parametrize("mergeable", [0, MERGEABLE], ids=["", "mergeable"])
@pytest.mark.parametrize("ring", MIXES, ids=name)
def test_driver_side_gets_every_packet_back(vhost: tuple[Path, Peer], ring: int, mergeable: int) -> None:
    rng = random.Random(f"{ring} {mergeable}")
    with SharedMemory.create(8 << 20) as mem, Frontend.connect(vhost[0], 30) as frontend:
        frontend.negotiate(ring | mergeable)
        frontend.share(mem)
        # Without mergeable buffers a packet has to fit into one.
        net = NetDriver(frontend, 256, 256 if mergeable else 2048)
        for _ in range(40):
            burst = packets(rng)
            for packet in burst:
                net.send(packet, rng.choice([1, 1, 2, 5]))
            net.transmit.kick()
            assert net.expect(BURST) == burst
        assert bool(mergeable) == bool(net.merged)
        net.reclaim()
        assert net.transmit.driver.in_flight == 0


@pytest.mark.parametrize("size", [32, 100, 256, 1000, 1024])
def test_2_8_10_1_packed_rings_of_any_size(vhost: tuple[Path, Peer], size: int) -> None:
    """A packed ring's size need not be a power of two."""
    rng = random.Random(size)
    with SharedMemory.create(16 << 20) as mem, Frontend.connect(vhost[0], 30) as frontend:
        frontend.negotiate(PACKED | 1 << VIRTIO_RING_F_EVENT_IDX)
        frontend.share(mem)
        net = NetDriver(frontend, size)
        for _ in range(60):
            burst = packets(rng, 8)
            for packet in burst:
                net.send(packet, rng.choice([1, 2]))
            net.transmit.kick()
            assert net.expect(8) == burst


@pytest.mark.peers
@pytest.mark.parametrize("ring", [0, PACKED], ids=["split", "packed"])
def test_70000_packets(vhost: tuple[Path, Peer], ring: int) -> None:
    """Past 65536, where split rings' indexes begin anew, and round a packed ring hundreds of times."""
    rng = random.Random(ring)
    with SharedMemory.create(8 << 20) as mem, Frontend.connect(vhost[0], 30) as frontend:
        frontend.negotiate(ring | MERGEABLE | 1 << VIRTIO_RING_F_EVENT_IDX)
        frontend.share(mem)
        net = NetDriver(frontend, 128, 512)
        for _ in range(70_000 // 20):
            burst = packets(rng, 20, 600)
            for packet in burst:
                net.send(packet)
            net.transmit.kick()
            assert net.expect(20) == burst


DRIVERS = list(product([0, 1], [0, 1], [0, 1]))


@pytest.mark.slow
@pytest.mark.parametrize(("packed", "mergeable", "in_order"), DRIVERS)
def test_device_side_serves_virtio_user(tmp_path: Path, packed: int, mergeable: int, in_order: int) -> None:
    rng = random.Random(f"{packed} {mergeable} {in_order}")
    reports: list[str] = []
    sent: list[bytes] = []
    device = NetDevice(
        lambda packet, _: sent.append(packet),
        control=False,
        ring_features=RING_FEATURES | PACKED * packed | IN_ORDER * in_order,
    )
    socket = tmp_path / "net.sock"
    vdev = (
        f"net_virtio_user0,path={socket},server=0,queues=1,queue_size=256,"
        f"packed_vq={packed},mrg_rxbuf={mergeable},in_order={in_order}"
    )
    with (
        Backend(device, socket, report=lambda line, detail=False: None if detail else reports.append(line)) as backend,
        testpmd(tmp_path, vdev) as peer,
    ):
        poll_until(backend, lambda: len(device.queues) == 2, 60)
        assert device.guest_features & (PACKED | MERGEABLE | IN_ORDER) == (
            PACKED * packed | MERGEABLE * mergeable | IN_ORDER * in_order
        )
        for _ in range(40):
            burst = packets(rng)
            for packet in burst:
                backend.interrupt(device.receive(packet))
            poll_until(backend, lambda: len(sent) >= BURST, 60)
            assert sent == burst
            sent.clear()
        assert reports == []
        assert peer.process.poll() is None


def poll_until(backend: Backend, condition: object, seconds: float) -> None:
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing came in time"
        backend.poll(0.1)
