"""The driver's side of the rings against qemu-storage-daemon, whose rings no one here wrote."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from itertools import product

import pytest
from storage_daemon import SECTORS, Daemon, storage_daemon

from iosim.ring.errors import NoSpaceError
from iosim.ring.layout import VRING_AVAIL_F_NO_INTERRUPT
from iosim.vhost_user.blk_driver import BlkDriver, Done
from iosim.vhost_user.errors import BlockRequestError, FeatureError
from iosim.vhost_user.frontend import Frontend
from iosim.vhost_user.memory import SharedMemory
from iosim.virtio import blk
from iosim.virtio.features import (
    VIRTIO_F_RING_PACKED,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    feature_names,
)

EVENT_IDX = 1 << VIRTIO_RING_F_EVENT_IDX
INDIRECT = 1 << VIRTIO_RING_F_INDIRECT_DESC
MIXES = [0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with storage_daemon(tmp_path_factory.mktemp("qsd")) as running:
        yield running


def name(features: int) -> str:
    return "+".join(feature_names(features)).replace("VIRTIO_RING_F_", "") or "plain"


def random_requests(daemon: Daemon, driver: BlkDriver, count: int, rng: random.Random, indirect: bool) -> None:
    """Keep as many random requests in flight as there is room for; compare every read with the model.

    Requests in flight together touch different sectors, so that their order does not matter.
    """
    busy: set[int] = set()
    submitted = 0

    def found(done: Done) -> None:
        kind, sector, length = done.data  # type: ignore[misc]
        assert done.status == blk.VIRTIO_BLK_S_OK
        if kind == blk.VIRTIO_BLK_T_IN:
            assert done.length == length + 1
            assert done.content == daemon.disk[sector * 512 : sector * 512 + length]
        else:
            assert done.length == 1
        busy.difference_update(range(sector, sector + length // 512))

    in_flight = 0
    while submitted < count or in_flight:
        burst = rng.randint(1, 8)
        while burst and submitted < count and driver.free_slots:
            sectors = rng.choice([1, 1, 2, 3, 8, 32])
            sector = rng.randrange(SECTORS - sectors)
            touched = set(range(sector, sector + sectors))
            if touched & busy:
                break
            kind = rng.choice([blk.VIRTIO_BLK_T_IN, blk.VIRTIO_BLK_T_OUT])
            payload = rng.randbytes(sectors * 512) if kind == blk.VIRTIO_BLK_T_OUT else b""
            read = 0 if payload else sectors * 512
            try:
                use_table = indirect and rng.random() < 0.7
                driver.submit(kind, sector, payload, read, (kind, sector, sectors * 512), use_table)
            except NoSpaceError:
                break
            if payload:
                daemon.disk[sector * 512 : sector * 512 + len(payload)] = payload
            busy |= touched
            submitted += 1
            in_flight += 1
            burst -= 1
        driver.queue.kick()
        take = rng.randint(1, in_flight)
        driver.collect_all(take, found)
        in_flight -= take


@pytest.mark.parametrize("size", [4, 16, 128, 1024])
@pytest.mark.parametrize("features", MIXES, ids=name)
def test_random_reads_and_writes_are_what_the_disk_holds(daemon: Daemon, features: int, size: int) -> None:
    rng = random.Random(f"{features} {size}")
    # 1000 requests wrap every ring but the largest several times.
    for segments in (1, 2):
        with daemon.driver(features, size, min(size, 32), segments) as driver:
            random_requests(daemon, driver, 500, rng, bool(features & INDIRECT))
            driver.flush()
            assert driver.get_id() == "vhost_user_blk"
    image = daemon.socket.with_name("disk.raw")
    assert image.read_bytes() == daemon.disk


@pytest.mark.peers
@pytest.mark.parametrize("features", [0, EVENT_IDX | INDIRECT], ids=name)
def test_indexes_come_around(daemon: Daemon, features: int) -> None:
    """Past 65536, where split rings' indexes begin anew."""
    with daemon.driver(features, 64, 16) as driver:
        random_requests(daemon, driver, 70_000, random.Random(features), bool(features & INDIRECT))
        assert driver.queue.driver.q.avail_idx_shadow == 70_000 - 65_536


def test_what_it_offers(daemon: Daemon) -> None:
    """It has no packed rings (7.2); once it has, this fails and the mixes above are to be extended."""
    with Frontend.connect(daemon.socket, 30) as frontend:
        assert not frontend.offered >> VIRTIO_F_RING_PACKED & 1
        with pytest.raises(FeatureError, match="does not offer VIRTIO_F_RING_PACKED"):
            frontend.negotiate(1 << VIRTIO_F_RING_PACKED)
        assert frontend.queue_num() == 2
        assert int.from_bytes(frontend.get_config(0, 8), "little") == SECTORS


def test_the_second_queue_works_like_the_first(daemon: Daemon) -> None:
    with SharedMemory.create(8 << 20, guest_addr=1 << 32) as mem, Frontend.connect(daemon.socket, 30) as frontend:
        frontend.negotiate(EVENT_IDX)
        frontend.share(mem)
        drivers = [BlkDriver(frontend, frontend.add_queue(i, 64), 8, 8192) for i in range(2)]
        for i in range(40):
            drivers[i % 2].write(i, bytes([i]) * 512)
            daemon.disk[i * 512 : i * 512 + 512] = bytes([i]) * 512
            assert drivers[(i + 1) % 2].read(i, 512) == bytes([i]) * 512


def test_5_2_6_what_lies_beyond_the_disk_is_answered_ioerr(daemon: Daemon) -> None:
    with daemon.driver(EVENT_IDX) as driver:
        assert driver.capacity() == SECTORS * 512
        with pytest.raises(BlockRequestError, match="IOERR"):
            driver.read(SECTORS, 512)
        assert driver.read(SECTORS - 1, 512) == daemon.disk[-512:]


def test_the_index_it_stops_at_is_the_number_of_requests(daemon: Daemon) -> None:
    with SharedMemory.create(1 << 20) as mem, Frontend.connect(daemon.socket, 30) as frontend:
        frontend.negotiate(EVENT_IDX)
        frontend.share(mem)
        driver = BlkDriver(frontend, frontend.add_queue(0, 16), 4, 4096)
        for _ in range(21):
            driver.read(0, 512)
        assert frontend.stop_queue(0) == 21


def calls_for(driver: BlkDriver, batch: int) -> int:
    """Publish a batch, kick once, wait until all of it is used; return how many notifications that made."""
    queue = driver.queue
    before = queue.calls
    for i in range(batch):
        driver.submit(blk.VIRTIO_BLK_T_IN, i, read=512)
    queue.notify()
    used16 = (queue.driver.q.used >> 1) + 1
    end = queue.driver.q.avail_idx_shadow
    until = time.monotonic() + 5
    while driver.mem.u16[used16] != end:
        assert time.monotonic() < until, "the batch was not used"
        time.sleep(0.001)
    time.sleep(0.02)  # The last notification comes after the last index.
    queue.poll_call()
    while (done := driver.collect()) is not None:
        assert done.status == blk.VIRTIO_BLK_S_OK
    return queue.calls - before


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
def test_2_7_7_notifications_of_a_batch(daemon: Daemon, batch: int) -> None:
    """One for each request without suppression; none with NO_INTERRUPT; one with used_event inside the batch."""
    with daemon.driver(0, 256, slots=64) as driver:
        q = driver.queue.driver.q
        driver.queue.poll_call()
        driver.queue.calls = 0
        assert calls_for(driver, batch) == batch
        driver.mem.u16[q.avail >> 1] = VRING_AVAIL_F_NO_INTERRUPT
        assert calls_for(driver, batch) == 0
    with daemon.driver(EVENT_IDX, 256, slots=64) as driver:
        q = driver.queue.driver.q
        # A new ring's first notification always comes: signalled_used is not valid yet.
        driver.read(0, 512)
        driver.queue.poll_call()
        for inside in sorted({0, batch // 2, batch - 1}):
            driver.mem.u16[(q.avail >> 1) + 2 + q.size] = (q.last_used_idx + inside) & 0xFFFF
            assert calls_for(driver, batch) == 1, inside
        driver.mem.u16[(q.avail >> 1) + 2 + q.size] = (q.last_used_idx + batch) & 0xFFFF
        assert calls_for(driver, batch) == 0


@pytest.mark.parametrize(("first", "second"), list(product(MIXES, MIXES)), ids=lambda f: name(f))
def test_one_driver_after_the_other(daemon: Daemon, first: int, second: int) -> None:
    """The daemon takes the next driver where the last one left, with other features."""
    for features in (first, second):
        with daemon.driver(features, 8, 2) as driver:
            assert driver.read(5, 1024) == daemon.disk[2560:3584]


def test_nothing_is_left_open(daemon: Daemon) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def once() -> None:
        with daemon.driver(EVENT_IDX) as driver:
            driver.read(0, 512)

    once()
    before = descriptors()
    once()
    assert descriptors() == before
