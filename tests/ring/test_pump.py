"""Every buffer comes back exactly once with its contents, in every size every mix of features; nobody oversleeps.

`pump` is the two sides; both ask the ring whether to notify, and sleep until they are notified.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pump import run

STARTS = [0, 1, 65530, 65535, 32767]


@given(
    size=st.one_of(st.sampled_from([1, 2, 4, 8, 16, 64]), st.integers(1, 40)),
    packed=st.booleans(),
    event_idx=st.booleans(),
    indirect=st.booleans(),
    in_order=st.booleans(),
    start=st.one_of(st.sampled_from(STARTS), st.integers(0, 90)),
    longest=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
@settings(derandomize=True, deadline=None, max_examples=150)
@example(size=1, packed=True, event_idx=True, indirect=False, in_order=False, start=1, longest=1, seed=0)
@example(size=1, packed=False, event_idx=True, indirect=True, in_order=True, start=65535, longest=1, seed=0)
def test_2_7_2_8_every_buffer_comes_back_once_with_its_contents(
    size: int, packed: bool, event_idx: bool, indirect: bool, in_order: bool, start: int, longest: int, seed: int
) -> None:
    """Out of order or in order, in batches, put back now and then; each side sleeps until it is notified."""
    if not packed:
        size = 1 << (size.bit_length() - 1)
    run(
        120, size, seed,
        longest=longest, start=start, packed=packed, event_idx=event_idx, indirect=indirect, in_order=in_order,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packed", "event_idx", "indirect", "in_order"),
    [(False, True, True, False), (True, True, False, False), (True, False, True, True), (False, True, False, True)],
)
def test_2_7_13_3_2_8_1_past_65536_and_many_wraps(
    packed: bool, event_idx: bool, indirect: bool, in_order: bool
) -> None:
    size = 7 if packed else 8
    p = run(66_000, size, 1, longest=2, packed=packed, event_idx=event_idx, indirect=indirect, in_order=in_order)
    assert p.received == 66_000
    if packed:
        assert p.device.q.used_idx >= 66_000, "that is, 9428 laps"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [32768, 32767, 1000])
def test_2_7_2_8_the_largest_queues_fill_up_and_empty(packed: bool, size: int) -> None:
    from iosim.ring.errors import NoSpaceError
    from iosim.ring.memory import GuestMemory
    from iosim.ring.virtqueue import Buffer, new_virtqueue

    if not packed and size & (size - 1):
        return
    driver, device = new_virtqueue(GuestMemory(1 << 21), size, packed=packed, start=size - 3)
    for n in range(size):
        driver.add([Buffer(64 + n % 999, 1)], [], n, publish=n % 5 == 0 or n == size - 1)
    with pytest.raises(NoSpaceError):
        driver.add([Buffer(64, 1)], [])
    elements = []
    for _ in range(size):
        element = device.pop()
        assert element is not None
        elements.append(element)
    assert device.pop() is None
    for k, element in enumerate(reversed(elements)):
        device.fill(element, 0, k)
    device.flush(size)
    for n in reversed(range(size)):
        used = driver.get_buf()
        assert used is not None
        assert used.data == n
    assert driver.num_free == size
    assert driver.get_buf() is None
