"""What the guests do, as shell scripts for busybox, and what the host expects of it afterwards.

A disk: the guest reads what the host wrote and prints checksums, writes a pattern that the host knows in several
ways, reads it back past its page cache, and flushes; the host keeps a model of the disk and compares all of it.
A network: the guest pings; the kernel checks the checksum of every echo's contents and counts the bad ones.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass, field

from guest import GuestError, GuestRun

KB = 1024
MB = 1024 * KB
SECTOR = 512
PATTERN = "/pattern"
PATTERN_BYTES = 2 * MB


def pattern(seed: int, size: int = PATTERN_BYTES) -> bytes:
    """Bytes without any structure that a mistake could leave unnoticed."""
    return random.Random(seed).randbytes(size)


def digest(data: bytes) -> str:
    """A checksum as `sha256sum` prints it."""
    return hashlib.sha256(data).hexdigest()


# Drivers probe while /init already runs; a device that never comes ends the script at once.
_NEED = """
need() {
    i=0; while [ ! -e $1 ] && [ $i -lt 40 ]; do usleep 50000; i=$((i+1)); done
    [ -e $1 ] || { say failed no $1; say done; poweroff -f; }
}
need """
_FEATURES = """
for features in /sys/bus/virtio/devices/*/features; do say features $(cat $features); done
"""
_INTERRUPTS = """
grep -i virtio /proc/interrupts | while read line; do say interrupts $line; done
"""


@dataclass
class DiskWorkload:
    """A script that grows step by step, with the disk as it must be after each."""

    initial: bytes
    data: bytes = field(default_factory=lambda: pattern(2))
    device: str = "/dev/vda"
    expected: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.disk = bytearray(self.initial)
        self.lines += [
            _NEED + self.device,
            f"say size $(blockdev --getsize64 {self.device})",
            _FEATURES,
            f"say queues $(ls /sys/block/{self.device.split('/')[-1]}/mq | wc -l)",
            f"say serial $(cat /sys/block/{self.device.split('/')[-1]}/serial)",
        ]

    def files(self) -> dict[str, bytes]:
        """What the script needs."""
        return {PATTERN: self.data}

    def read(self, offset: int, size: int, block: int, direct: bool = True) -> None:
        """Read a range in requests of `block` bytes, past the page cache unless told otherwise."""
        flags = "fullblock,direct" if direct else "fullblock"
        self.lines.append(
            f"say read $(dd if={self.device} bs={block} skip={offset // block} count={size // block} iflag={flags}"
            " 2>/dev/null | sha256sum)"
        )
        self.expected.append(digest(bytes(self.disk[offset : offset + size])))

    def write(self, offset: int, source: int, size: int, block: int, direct: bool = True, wait: bool = True) -> None:
        """Write a part of the pattern to a range; a write that is not waited for overlaps with those after it."""
        flags = "oflag=direct conv=notrunc,fsync" if direct else "conv=notrunc,fsync"
        self.lines.append(
            f"dd if={PATTERN} of={self.device} bs={block} skip={source // block} seek={offset // block}"
            f" count={size // block} iflag=fullblock {flags} 2>/dev/null || say failed write {offset}"
            + ("" if wait else " &")
        )
        self.disk[offset : offset + size] = self.data[source : source + size]

    def join(self) -> None:
        """Wait for all writes under way."""
        self.lines.append("wait")

    def discard(self, offset: int, size: int) -> None:
        """Discard a range that nobody reads afterwards: what it holds then is the device's choice."""
        self.lines.append(
            f"blkdiscard -o {offset} -l {size} {self.device} && say discarded {size} || say failed discard"
        )

    def flush(self) -> None:
        """Ask for everything to be durable."""
        self.lines.append(f"sync; blockdev --flushbufs {self.device}")

    def drop_caches(self) -> None:
        """Forget what was read, so that the device has to give it again."""
        self.lines.append("echo 3 > /proc/sys/vm/drop_caches")

    def filesystem(self) -> None:
        """Make a file system, write files, unmount, mount, compare them. It is the last step: the disk is its."""
        self.lines += [
            f"mke2fs -F {self.device} >/dev/null 2>&1",
            f"mount -t ext4 {self.device} /mnt || say failed mount",
            f"for i in 1 2 3; do cp {PATTERN} /mnt/$i; done; umount /mnt",
            "echo 3 > /proc/sys/vm/drop_caches",
            f"mount -t ext4 {self.device} /mnt",
            "for i in 1 2 3; do say fs $(sha256sum < /mnt/$i); done; umount /mnt",
        ]

    def script(self) -> str:
        """The whole script."""
        return "\n".join([*self.lines, _INTERRUPTS])

    def check(self, run: GuestRun) -> None:
        """Compare what the guest said with the model of the disk."""
        if run.all("failed"):
            raise GuestError(f"in the guest failed: {run.all('failed')}\n{run.console[-2000:]}")
        assert run.one("size") == [str(len(self.initial))]
        assert [words[0] for words in run.all("read")] == self.expected
        assert all(words[0] == digest(self.data) for words in run.all("fs"))


def disk_workload(initial: bytes, filesystem: bool = False) -> DiskWorkload:
    """The usual: small and large requests, one at a time and many at once, over and beside each other."""
    work = DiskWorkload(initial)
    work.read(0, 1 * MB, 256 * KB)
    work.read(3 * MB, 64 * KB, 4 * KB)
    work.read(len(initial) - 8 * KB, 8 * KB, SECTOR)
    work.write(0, 0, 16 * KB, SECTOR)
    work.write(64 * KB, 128 * KB, 256 * KB, 4 * KB)
    work.write(1 * MB, 0, PATTERN_BYTES, 1 * MB)
    # Requests of several programs at once keep the queue full and complete in bursts.
    for part in range(4):
        work.write(4 * MB + part * 256 * KB, part * 256 * KB, 256 * KB, 16 * KB, wait=False)
    work.join()
    # Through the page cache: long scattered requests, written when the kernel pleases, then a flush.
    work.write(6 * MB, 0, PATTERN_BYTES, 64 * KB, direct=False)
    work.flush()
    work.drop_caches()
    work.read(0, 16 * KB, SECTOR)
    work.read(0, 1 * MB, 4 * KB)
    work.read(1 * MB, 2 * MB, 64 * KB)
    work.read(0, len(initial), 1 * MB)
    work.drop_caches()
    # Read-ahead through the page cache, again with many requests at once.
    work.read(0, len(initial), 64 * KB, direct=False)
    if filesystem:
        work.filesystem()
    return work


GUEST_ADDRESS = "10.0.2.15"
PEER_ADDRESS = "10.0.2.2"
_SUMMARY = re.compile(r"(\d+) packets transmitted, (\d+) packets received")


@dataclass(frozen=True)
class Ping:
    """A number of echo requests of one size; the size is that of their contents, in bytes."""

    count: int
    size: int


def rebind(driver: str) -> str:
    """Take the driver from its device and give it back: the device is reset and set up again."""
    return f"""
device=$(ls /sys/bus/virtio/drivers/{driver} | grep virtio)
echo $device > /sys/bus/virtio/drivers/{driver}/unbind
say unbound $device
echo $device > /sys/bus/virtio/drivers/{driver}/bind || say failed bind
say bound $device
"""


def net_script(
    pings: list[Ping], mtu: int = 1500, peer: str = PEER_ADDRESS, at_once: int = 1, between: str = ""
) -> str:
    """Configure the interface and ping.

    Args:
        pings: What to send, one after the other.
        mtu: Of the interface.
        peer: Whom.
        at_once: How many programs send each of `pings` at the same time.
        between: Commands before each of `pings`; the interface is configured again after them.
    """
    configure = [
        # Its packets (duplicate address detection, router solicitation) come when they please.
        "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $f ] || echo 1 > $f; done",
        "need /sys/class/net/eth0",
        f"ip link set eth0 mtu {mtu} || say failed mtu",
        f"ip addr add {GUEST_ADDRESS}/24 dev eth0; ip link set lo up; ip link set eth0 up",
    ]
    lines = [_NEED + "/sys/class/net/eth0", _FEATURES, "say mac $(cat /sys/class/net/eth0/address)", *configure]
    for number, ping in enumerate(pings):
        if between and number:
            lines += [between, *configure]
        command = f"say ping {ping.size} $(ping -A -q -W 5 -c {ping.count} -s {ping.size} {peer} | grep packets)"
        lines += [f"{command} &"] * (at_once - 1) + [command, "wait"]
    lines += [
        # The last answers may be on their way still. With the link down nothing is sent after the counts are read.
        "usleep 200000; ip link set eth0 down",
        "grep Icmp: /proc/net/snmp | while read line; do say icmp $line; done",
        "for f in rx_packets tx_packets rx_bytes tx_bytes rx_errors rx_dropped tx_errors tx_dropped; do"
        " say net $f $(cat /sys/class/net/eth0/statistics/$f); done",
        _INTERRUPTS,
    ]
    return "\n".join(lines)


def check_net(run: GuestRun, pings: list[Ping], at_once: int = 1) -> int:
    """Every echo came back, and none with a bad checksum; returns how many."""
    pings = [ping for ping in pings for _ in range(at_once)]
    if run.all("failed"):
        raise GuestError(f"in the guest failed: {run.all('failed')}")
    sent = 0
    for ping, words in zip(pings, run.all("ping"), strict=True):
        found = _SUMMARY.search(" ".join(words))
        assert found is not None, words
        # In a hurry (-A) it may send one more than it was told to, and does not wait for that one.
        assert int(found[2]) >= ping.count, " ".join(words)
        sent += int(found[1])
    names, values = run.all("icmp")
    icmp = dict(zip(names[1:], map(int, values[1:]), strict=True))
    assert (icmp["InErrors"], icmp["InCsumErrors"]) == (0, 0)
    assert icmp["OutEchos"] == icmp["InEchoReps"] == sent, "echoes were lost"
    statistics = {name: int(value) for name, value in run.all("net")}
    assert statistics["rx_errors"] == 0
    assert statistics["tx_errors"] == 0
    assert statistics["rx_packets"] > 0
    return sent
