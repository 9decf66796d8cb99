"""A full memory fence, from Python.

CPython reorders nothing, but the processor below it does: a store waits in the processor's store buffer
while a later load already reads. Between writing an index and reading the other side's event index that
loses a wake-up, so live memory needs the real thing where the ring code says `fence`.

x86-64: any locked instruction drains the store buffer (Intel SDM volume 3A, 9.2.2 "loads and stores are not
reordered with locked instructions"). Taking a free lock is one: ``threading.Lock`` is a futex or a POSIX
semaphore, and both begin with LOCK CMPXCHG. It costs some 50 ns, a fifth of a call through ctypes.

Elsewhere a lock orders one way only (AArch64: an acquire, then a release, which later loads may overtake), so
there it is C's ``atomic_thread_fence(memory_order_seq_cst)``, as GCC's libatomic exports it.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Callable

from iosim.vhost_user.errors import FenceError

#: ``memory_order_seq_cst`` in C's <stdatomic.h>.
_SEQ_CST = 5


def locked_fence() -> Callable[[], object]:
    """Return a fence made of a lock nobody contends for; for x86-64 only."""
    lock = threading.Lock()
    acquire, release = lock.acquire, lock.release

    def fence() -> None:
        acquire()
        release()

    return fence


def atomic_fence() -> Callable[[], object]:
    """Return C's ``atomic_thread_fence(memory_order_seq_cst)``, for any processor.

    Raises:
        FenceError: GCC's libatomic is not installed.
    """
    try:
        function = ctypes.CDLL("libatomic.so.1").atomic_thread_fence
    except (OSError, AttributeError):
        raise FenceError(
            f"shared memory on {platform.machine()} needs a fence from libatomic.so.1; install it (Debian: libatomic1)"
        ) from None
    function.argtypes = [ctypes.c_int]
    function.restype = None
    return lambda: function(_SEQ_CST)


def full_fence(machine: str | None = None) -> Callable[[], object]:
    """Return the function that orders every earlier load and store before every later one, on this machine.

    Args:
        machine: What ``uname -m`` says; asked for by default.

    Raises:
        FenceError: There is none for this machine.
    """
    if (machine or platform.machine()).lower() in ("x86_64", "amd64"):
        return locked_fence()
    return atomic_fence()
