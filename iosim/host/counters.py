"""What is counted, where it happens, in one flat list of integers (`Counters.n`)."""

from __future__ import annotations

from typing import Final

_names: list[str] = []


def _counter(name: str) -> int:
    _names.append(name)
    return len(_names) - 1


# VM exits, by the reason that the kvm_exit trace event gives
EXIT_EPT_MISCONFIG: Final = _counter("exits.EPT_MISCONFIG")
EXIT_IO_INSTRUCTION: Final = _counter("exits.IO_INSTRUCTION")
EXIT_HLT: Final = _counter("exits.HLT")
EXIT_EXTERNAL_INTERRUPT: Final = _counter("exits.EXTERNAL_INTERRUPT")
EXIT_MSR_WRITE: Final = _counter("exits.MSR_WRITE")
EXIT_EOI_INDUCED: Final = _counter("exits.EOI_INDUCED")
EXIT_INTERRUPT_WINDOW: Final = _counter("exits.INTERRUPT_WINDOW")
USERSPACE_EXITS: Final = _counter("userspace_exits")

KICKS: Final = _counter("kicks")
INTERRUPTS: Final = _counter("interrupts")
KICKS_SUPPRESSED: Final = _counter("suppressed.kicks")
INTERRUPTS_SUPPRESSED: Final = _counter("suppressed.interrupts")
KICKS_SPURIOUS: Final = _counter("spurious.kicks")
INTERRUPTS_SPURIOUS: Final = _counter("spurious.interrupts")
INTERRUPTS_MERGED: Final = _counter("merged.interrupts")

PIO_READ: Final = _counter("register_accesses.pio_read")
PIO_WRITE: Final = _counter("register_accesses.pio_write")
MMIO_READ: Final = _counter("register_accesses.mmio_read")
MMIO_WRITE: Final = _counter("register_accesses.mmio_write")

SYS_PPOLL: Final = _counter("syscalls.ppoll")
SYS_READ: Final = _counter("syscalls.read")
SYS_WRITE: Final = _counter("syscalls.write")
SYS_WRITEV: Final = _counter("syscalls.writev")
SYS_IOCTL: Final = _counter("syscalls.ioctl")

COPIED_BYTES: Final = _counter("copied_bytes")
WIRE_FRAMES: Final = _counter("wire_frames")
# Time in ps that frames, with preamble and gap, were on the wire, out of the host and into it
WIRE_OUT: Final = _counter("wire_busy.out")
WIRE_IN: Final = _counter("wire_busy.in")
BACKGROUND_BYTES: Final = _counter("background_bytes")
STREAM_FRAMES: Final = _counter("stream.frames")
STREAM_TAP_PACKETS: Final = _counter("stream.tap_packets")
STREAM_BUFFERS: Final = _counter("stream.buffers")
STREAM_SKBS: Final = _counter("stream.skbs")
STREAM_ACKS: Final = _counter("stream.acks")
POLLED_HALTS: Final = _counter("halts_polled")

NAMES: Final[tuple[str, ...]] = tuple(_names)


class Counters:
    """The counts of one run: ``n[KICKS] += 1``. See `NAMES` for what each place counts."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = [0] * len(NAMES)
