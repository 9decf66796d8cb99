"""DPDK's testpmd with one virtual port, forwarding what it receives back out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peer import Peer, find, running

PACKAGE = "dpdk-dev"


@contextmanager
def testpmd(tmp: Path, vdev: str, *options: str) -> Iterator[Peer]:
    """Run testpmd with this virtual device; packets go out of the port they came in by."""
    # Its polling core may run wherever this process may: a test run has few cores, and they have other work.
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    command = [
        find("dpdk-testpmd", PACKAGE),
        # No huge pages, no PCI, nothing shared with other DPDK programs.
        *(f"--lcores=0@({cpus}),1@({cpus})", "--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry"),
        *("--vdev", vdev, "--"),
        # What arrives before forwarding begins is not to be thrown away, nor a link waited for that has no status.
        *("--no-flush-rx", "--disable-link-check", "--no-mlockall", "--total-num-mbufs=4096"),
        *("--forward-mode=io", "--auto-start"),
        *options,
    ]
    with running(command, tmp / "testpmd.log") as peer:
        yield peer


testpmd.__test__ = False  # type: ignore[attr-defined]
