"""What mutants (`mutants`) showed that no other test looked at."""

from __future__ import annotations

import pytest

from iosim.ring.device import pop, push, push_batch, set_notification, should_notify
from iosim.ring.driver import add, get_used, kick_prepare
from iosim.ring.errors import NOT_IN_FLIGHT
from iosim.ring.layout import VRING_DESC_F_INDIRECT
from iosim.ring.memory import GuestMemory, read_u16, write_u16
from iosim.ring.queue import new_queue


@pytest.mark.parametrize("packed", [False, True])
def test_linux_takes_a_table_only_for_several_buffers(packed: bool) -> None:
    """``virtqueue_use_indirect``."""
    mem = GuestMemory(4096)
    driver, _ = new_queue(mem, 4, False, packed=packed, indirect=True)
    driver.seg_addr[:], driver.seg_len[:] = [256, 512, 768, 1024], [1, 2, 3, 4]
    assert add(driver, 1, 0, 0) >= 0
    assert add(driver, 1, 1, 1) >= 0
    flags = [read_u16(mem, driver.desc + 16 * i + (14 if packed else 12)) for i in range(2)]
    assert [flag & VRING_DESC_F_INDIRECT for flag in flags] == [0, VRING_DESC_F_INDIRECT]


@pytest.mark.parametrize("packed", [False, True])
def test_2_7_9_2_8_8_a_batch_that_went_back_is_not_in_flight(packed: bool) -> None:
    driver, device = new_queue(GuestMemory(4096), 1, False, packed=packed, in_order=True)
    driver.seg_addr[0], driver.seg_len[0] = 256, 1
    add(driver, 1, 0, 0)
    head = pop(device)
    assert push_batch(device, head, 0) == 1
    assert push_batch(device, head, 0) == NOT_IN_FLIGHT


def test_2_7_10_avail_event_stays_while_notifications_are_off() -> None:
    """So a busy device is not kicked (QEMU ``vring_set_avail_event``)."""
    driver, device = new_queue(GuestMemory(4096), 4, True)
    driver.seg_addr[0], driver.seg_len[0] = 256, 1
    set_notification(device, False)
    for token in range(3):
        add(driver, 1, 0, token)
        assert kick_prepare(driver) == (token == 0)
        assert pop(device) == token


def test_2_8_6_only_the_last_descriptor_s_id_counts() -> None:
    """Linux writes it into every one; others need not."""
    mem = GuestMemory(4096)
    driver, device = new_queue(mem, 4, True, packed=True)
    driver.seg_addr[:], driver.seg_len[:] = [256, 512, 768, 1024], [1, 2, 3, 4]
    head = add(driver, 2, 0, 0)
    write_u16(mem, driver.desc + 12, 0xBEEF)
    assert pop(device) == head


def test_as_qemu_does_a_packed_device_interrupts_once_a_lap() -> None:
    """``virtqueue_packed_flush``: `signalled_used` is given up where the wrap counter changes, and only there."""
    driver, device = new_queue(GuestMemory(4096), 3, True, packed=True)
    driver.seg_addr[0], driver.seg_len[0] = 256, 1
    valid = []
    for token in range(7):
        add(driver, 1, 0, token)
        should_notify(device)
        push(device, pop(device), 0)
        valid.append(device.signalled_used_valid)
        assert get_used(driver) == token
    assert valid == [True, True, False, True, True, False, True]
