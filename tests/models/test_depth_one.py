"""At depth 1 with constant costs, a path's latency is the sum of its steps, written down by hand here."""

from __future__ import annotations

import numpy as np
import pytest

import iosim
from iosim.host.hosts import Host, load

HOST = load("composite")
FRAME = 60
WIRE = 84


def ps(host: Host, steps: str) -> int:
    """The sum of the means of named costs; ``3*name`` counts one three times. In ps, each rounded as it is drawn."""
    total = 0
    for step in steps.split():
        times, _, name = step.rpartition("*")
        total += int(times or 1) * round(host.cost(name).distribution.mean)
    return total


def per_byte(host: Host, name: str, size: int) -> int:
    return size * round(host.cost(name).per_byte * 1024) >> 10


COLD = per_byte(HOST, "copy_cold", FRAME)
HOT = per_byte(HOST, "copy_hot", FRAME)
HOT_1 = per_byte(HOST, "copy_hot", 1)
ON_WIRE = WIRE * 800  # 10 Gbit/s: 800 ps a byte
PROPAGATION = 1_000_000

TO_TAP = ps(HOST, "client_send nic_rx_delay host_irq host_receive bridge tap_queue") + ON_WIRE + PROPAGATION
FROM_TAP = ps(HOST, "tap_write bridge nic_tx client_receive") + ON_WIRE + PROPAGATION
# In each of these clean_tx re-arms the transmit interrupt, and napi_complete the receive interrupt.
VIRTIO_RECEIVE = ps(
    HOST,
    "vm_entry irq_entry driver_irq softirq_entry rearm_window driver_receive guest_stack_rx rearm_window "
    "guest_wakeup sys_recvmsg",
) + HOT_1
VIRTIO_SEND = ps(HOST, "sys_sendmsg guest_stack_tx rearm_window driver_xmit vm_exit kvm_ioeventfd") + HOT_1
ACCESS = "vm_exit kvm_mmio_decode kvm_run_return qemu_dispatch"
BACK = "kvm_run_enter vm_entry"
WRITE = f"{ACCESS} qemu_e1000_register {BACK}"
READ = f"{ACCESS} qemu_e1000_register mmio_read_result {BACK}"


def latency(model: str, **settings: object) -> int:
    result = iosim.simulate(model, requests=50, settings={"host.constant": True, **settings})
    values = [int(value) for value in np.unique(result.latency_ps)]
    # virtio_net refills its receive queue when more than 32 of its descriptors are free: every 33rd packet pays for
    # 33 buffers, in the same NAPI poll and before the application runs.
    if model in ("virtio-net", "vhost-net"):
        assert len(values) == 2, values
        assert values[1] - values[0] == 33 * ps(HOST, "driver_refill")
        assert (result.latency_ps == values[1]).sum() == pytest.approx(50 / 33, abs=1)
    else:
        assert len(values) == 1, values
    return values[0]


def test_vhost_net() -> None:
    receive = ps(HOST, "vhost_worker_wakeup vhost_packet vhost_signal irq_injection") + COLD
    # Empty again: vhost re-arms and looks once more before it sends its batch.
    send = ps(HOST, "vhost_worker_wakeup vhost_packet rearm_window") + COLD
    assert latency("vhost-net") == TO_TAP + receive + VIRTIO_RECEIVE + VIRTIO_SEND + send + FROM_TAP


def test_virtio_net() -> None:
    receive = ps(
        HOST, "thread_wakeup sys_ppoll sys_read qemu_net_queue qemu_virtio_packet sys_ioctl irq_injection"
    ) + COLD + HOT
    send = ps(
        HOST,
        "thread_wakeup sys_ppoll sys_read sys_ppoll qemu_bh qemu_virtio_packet qemu_net_queue sys_write",
    ) + COLD
    assert latency("virtio-net") == TO_TAP + receive + VIRTIO_RECEIVE + VIRTIO_SEND + send + FROM_TAP


def e1000_receive(interrupt: str) -> int:
    device = ps(HOST, "thread_wakeup sys_ppoll sys_read qemu_net_queue qemu_e1000_packet") + COLD + HOT
    line = ps(HOST, "sys_ioctl irq_injection")
    # Reading ICR lowers the line, which is an ioctl again; IMC and STATUS; the EOI of a level-triggered line exits.
    handler = ps(HOST, f"irq_entry driver_irq {READ} {WRITE} {READ} vm_exit kvm_eoi vm_entry")
    napi = ps(HOST, f"softirq_entry {interrupt} driver_receive guest_stack_rx driver_refill")
    rdt = ps(HOST, "vm_exit kvm_mmio_decode kvm_coalesced_mmio vm_entry")
    # QEMU carries the coalesced RDT out with the write to IMS.
    unmask = ps(HOST, f"qemu_e1000_register {WRITE} {READ} guest_wakeup sys_recvmsg") + HOT_1
    return device + line + ps(HOST, "vm_entry") + handler + line + napi + rdt + unmask


def e1000_send() -> int:
    return ps(
        HOST,
        f"sys_sendmsg guest_stack_tx driver_xmit {ACCESS} qemu_e1000_register qemu_e1000_packet "
        "qemu_net_queue sys_write",
    ) + HOT_1 + COLD + HOT


def test_e1000_without_mitigation() -> None:
    # The reply's completion had an interrupt of its own, so NAPI finds nothing to clean in the next one.
    assert latency("e1000", **{"device.mitigation": False}) == TO_TAP + e1000_receive("") + e1000_send() + FROM_TAP


def test_e1000_outside_the_mitigation_window() -> None:
    # The first edge after a pause arms the timer: QEMU's main loop raises the line itself, so no wake-up is paid.
    settings = {"workload.peer_delay": "1ms", "host.halt_poll_ns": "10ms"}
    assert latency("e1000", **settings) == TO_TAP + e1000_receive("") + e1000_send() + FROM_TAP


def test_e1000_under_mitigation_waits_for_the_timer() -> None:
    """Between two round trips lies exactly the window of 500 x 256 ns, counted from one edge to the next arming."""
    result = iosim.simulate("e1000", requests=50, settings={"host.constant": True})
    period = np.unique(np.diff(result.stamps[:, -1]))
    # From the timer's expiry: ppoll returns (the wake-up is the timer's), the line is raised and the timer set anew.
    expected = 500 * 256_000 + ps(HOST, "thread_wakeup sys_ppoll")
    assert list(period) == [expected]


PORT_WRITE = "vm_exit kvm_pio_return qemu_dispatch qemu_nic_register kvm_pio_enter vm_entry"
PORT_READ = f"{PORT_WRITE} mmio_read_result"
LINE = "sys_ioctl irq_injection"
"""A change of the INTx line."""


def emulated_send(start: str) -> int:
    """From the application to the tap; ``start``: what the driver does until QEMU takes the packet up."""
    return ps(
        HOST, f"sys_sendmsg guest_stack_tx driver_xmit {start} qemu_nic_packet qemu_net_queue sys_write"
    ) + HOT_1 + COLD + HOT


def test_rtl8139() -> None:
    device = ps(HOST, f"thread_wakeup sys_ppoll sys_read qemu_net_queue qemu_nic_packet {LINE} vm_entry") + COLD + HOT
    # Acknowledging by W IntrStatus leaves RxOK standing, and QEMU lowers the line and raises it again for that;
    # W IntrMask lowers it.
    handler = ps(
        HOST,
        f"irq_entry driver_irq {PORT_READ} {PORT_READ} {PORT_WRITE} {LINE} {LINE} {PORT_WRITE} {LINE} {PORT_READ} "
        "vm_exit kvm_eoi vm_entry",
    )
    napi = ps(
        HOST,
        f"softirq_entry {PORT_WRITE} driver_refill driver_receive guest_stack_rx {PORT_WRITE} {PORT_READ} "
        "guest_wakeup sys_recvmsg",
    ) + HOT_1
    send = emulated_send("vm_exit kvm_pio_return qemu_dispatch qemu_nic_register")
    assert latency("rtl8139") == TO_TAP + device + handler + napi + send + FROM_TAP


@pytest.mark.parametrize("model", ["i82551", "i82557b", "i82559er"])
def test_eepro100(model: str) -> None:
    write = f"{ACCESS} qemu_nic_register {BACK}"
    read = f"{write} mmio_read_result"
    device = ps(HOST, f"thread_wakeup sys_ppoll sys_read qemu_net_queue qemu_nic_packet {LINE} vm_entry") + COLD + HOT
    # R SCBAck, W SCBAck (which lowers the line), W SCBIrqMask, R SCBStatus, EOI; then the same two to unmask.
    handler = ps(HOST, f"irq_entry driver_irq {read} {write} {LINE} {write} {read} vm_exit kvm_eoi vm_entry")
    napi = ps(
        HOST,
        f"softirq_entry driver_receive guest_stack_rx driver_refill {write} {read} guest_wakeup sys_recvmsg",
    ) + HOT_1
    send = emulated_send(f"{read} {ACCESS} qemu_nic_register")
    assert latency(model) == TO_TAP + device + handler + napi + send + FROM_TAP


def test_ne2k_pci() -> None:
    """A frame of 60 bytes is 15 numbers of 32 bits: one exit for all of them coming in, one for each going out."""
    items = FRAME // 4
    string_write = PORT_WRITE.replace("vm_exit", "vm_exit kvm_mmio_decode")
    string_read = f"{string_write} {items - 1}*qemu_pio_item {items - 1}*qemu_nic_register mmio_read_result"
    device = ps(HOST, f"thread_wakeup sys_ppoll sys_read qemu_net_queue {LINE} vm_entry") + COLD + HOT
    look = ps(HOST, f"{PORT_WRITE} {PORT_READ} {PORT_WRITE} {PORT_READ}")
    # CMD, then count, address and direction.
    dma = 6 * ps(HOST, PORT_WRITE)
    header = dma + ps(HOST, f"{PORT_READ} {PORT_WRITE}")
    packet = dma + ps(HOST, f"{string_read} {PORT_WRITE}")
    # Where the ring ends and begins, twice; W BOUNDARY between. W ISR lowers the line.
    receive = look + header + ps(HOST, "driver_receive") + packet + ps(HOST, PORT_WRITE) + look
    handler = ps(HOST, f"irq_entry driver_irq {PORT_WRITE} {PORT_READ}") + receive + ps(
        HOST, f"{PORT_WRITE} {LINE} {PORT_WRITE} {PORT_READ} vm_exit kvm_eoi vm_entry"
    )
    softirq = ps(HOST, "softirq_entry guest_stack_rx guest_wakeup sys_recvmsg") + HOT_1
    # W IMR, W ISR; after the data R ISR, W ISR; then the send command, after CMD, its own state, length and page.
    send = ps(HOST, f"sys_sendmsg guest_stack_tx driver_xmit {PORT_WRITE} {PORT_WRITE}") + HOT_1 + dma
    send += items * ps(HOST, string_write) + ps(HOST, f"{PORT_READ} {PORT_WRITE}")
    send += ps(HOST, f"{PORT_WRITE} {PORT_READ} {PORT_WRITE} {PORT_WRITE} {PORT_WRITE}")
    send += ps(HOST, "vm_exit kvm_pio_return qemu_dispatch qemu_nic_register qemu_net_queue sys_write") + HOT
    assert latency("ne2k_pci") == TO_TAP + device + handler + softirq + send + FROM_TAP


def test_pcnet() -> None:
    """Each access sets the device's timer anew and so wakes QEMU's main loop, which then wants the lock.

    Where it is slow to wake, no access has to wait for it: the sum has a write to its eventfd for each.
    """
    slow = {"host.costs.thread_wakeup": "300us", "workload.rate": 1000, "workload.arrivals": "constant"}
    write, read = f"{PORT_WRITE} eventfd_write", f"{PORT_READ} eventfd_write"
    read_csr, write_csr = f"{write} {read}", f"{write} {write}"
    device = 300_000_000 + ps(HOST, f"sys_ppoll sys_read qemu_net_queue qemu_nic_packet {LINE} vm_entry")
    device += COLD + 2 * HOT
    # CSR0 acknowledged, which lowers the line; masked in CSR3.
    handler = ps(
        HOST,
        f"irq_entry driver_irq {read_csr} {write_csr} {LINE} {read_csr} {write_csr} vm_exit kvm_eoi vm_entry",
    )
    napi = ps(
        HOST,
        f"softirq_entry driver_refill driver_receive guest_stack_rx {read_csr} {write_csr} {write_csr} "
        "guest_wakeup sys_recvmsg",
    ) + HOT_1
    # Any access polls the transmit ring: the packet goes out with the write of RAP, before the one that demands it.
    send = emulated_send("vm_exit kvm_pio_return qemu_dispatch qemu_nic_register")
    settings = {"host.halt_poll_ns": "10ms", "run.warmup": 40, **slow}
    assert latency("pcnet", **settings) == TO_TAP + device + handler + napi + send + FROM_TAP


TO_HOST = ps(HOST, "client_send") + ON_WIRE + PROPAGATION
FROM_HOST = ps(HOST, "client_receive") + ON_WIRE + PROPAGATION
IXGBE_RECEIVE = ps(
    HOST, "irq_entry driver_irq softirq_entry host_receive guest_stack_rx guest_wakeup sys_recvmsg"
) + HOT_1
IXGBE_SEND = ps(HOST, "sys_sendmsg guest_stack_tx nic_tx") + HOT_1
IXGBE = TO_HOST + ps(HOST, "nic_rx_delay") + IXGBE_RECEIVE + IXGBE_SEND + FROM_HOST
"""A physical NIC and its driver, whoever's: all but the way of the interrupt."""
POSTED = {"device.interrupts": "posted", "host.apicv": True}


def test_bare_metal() -> None:
    assert latency("bare-metal") == IXGBE + ps(HOST, "cpu_idle_exit")


def test_vfio_remapped() -> None:
    assert latency("vfio") == IXGBE + ps(HOST, "cpu_idle_exit host_vector irq_injection vm_entry")


def test_vfio_posted() -> None:
    assert latency("vfio", **POSTED) == IXGBE + ps(HOST, "vm_entry")


def test_vfio_posted_to_a_sleeping_vcpu() -> None:
    # The interrupt for the packet sent has long been served when the next request comes.
    asleep = {"host.halt_poll_ns": "0ns", "workload.peer_delay": "1ms", **POSTED}
    assert latency("vfio", **asleep) == IXGBE + ps(HOST, "host_vector vcpu_wakeup vm_entry")


@pytest.mark.parametrize("period", [50_000, 333_000])
def test_vhost_user(period: int) -> None:
    """What a poller has to do it does when an iteration ends; after work it goes around twice before it is idle."""

    def seen(idle_since: int, at: int) -> int:
        return idle_since + -(-(at - idle_since) // period) * period

    there = TO_HOST + 500_000  # nic_dma
    call = ps(HOST, "vhost_signal sys_write irq_injection")
    to_guest = ps(HOST, "pmd_nic pmd_vhost") + COLD + call
    # No kick, and so no exit.
    guest = VIRTIO_RECEIVE + VIRTIO_SEND - ps(HOST, "vm_exit kvm_ioeventfd")
    to_nic = ps(HOST, "pmd_vhost pmd_nic") + COLD + call

    def answered(guest: int) -> int:
        """From the frame's being seen to the reply's being at the NIC."""
        return seen(to_guest + 2 * period, to_guest + guest) + to_nic

    # From the reply's being at the NIC to the next request's being seen, and of that what is not the reply's.
    cycle = seen(2 * period, FROM_HOST + there) - FROM_HOST
    refill = 33 * ps(HOST, "driver_refill")
    settings = {"host.constant": True, "host.pmd_poll": f"{period // 1000}ns"}
    result = iosim.simulate("vhost-user", requests=50, settings=settings)
    values = [int(value) for value in np.unique(result.latency_ps)]
    assert values == [cycle + answered(guest + extra) + FROM_HOST for extra in (0, refill)]


def test_sleeping_vcpu_pays_its_wake_up() -> None:
    """Without halt polling the interrupt finds a vCPU asleep: exactly the wake-up more than with it."""
    asleep = latency("vhost-net", **{"host.halt_poll_ns": "0ns"})
    assert asleep - latency("vhost-net") == ps(HOST, "vcpu_wakeup")


@pytest.mark.parametrize("model", ["virtio-net", "vhost-net", "e1000"])
def test_larger_packets_cost_their_copies_and_their_time_on_the_wire(model: str) -> None:
    """100 to 1000 bytes: per byte twice the wire, the application's two copies, and the back end's."""
    settings = {"device.mitigation": False} if model == "e1000" else {}
    small = latency(model, **{"workload.size": 100, **settings})
    large = latency(model, **{"workload.size": 1000, **settings})
    copies = {"vhost-net": (2, 2), "virtio-net": (2, 3), "e1000": (2, 4)}[model]
    cold, hot = HOST.cost("copy_cold").per_byte, HOST.cost("copy_hot").per_byte
    expected = 900 * (2 * 800 + copies[0] * cold + copies[1] * hot)
    assert large - small == pytest.approx(expected, abs=20)


def test_a_setting_changes_a_costs_rate_and_its_base() -> None:
    """``0.5ns/byte`` is the rate alone; ``1us + 0.5ns/byte`` both. vhost copies a frame of 60 bytes twice, cold."""
    base = latency("vhost-net")
    rate = 60 * 500 - COLD
    assert latency("vhost-net", **{"host.costs.copy_cold": "0.5ns/byte"}) - base == 2 * rate
    assert latency("vhost-net", **{"host.costs.copy_cold": "1us + 0.5ns/byte"}) - base == 2 * (rate + 1_000_000)


# -- the same NIC with other notifications ------------------------------------------------------------------------

FROM_GUEST = ps(HOST, "sys_sendmsg guest_stack_tx rearm_window driver_xmit") + HOT_1
REGISTER = f"{ACCESS} qemu_nic_register"
READ_ISR = f"{REGISTER} {LINE} mmio_read_result {BACK}"
BY_QEMU = ps(HOST, "thread_wakeup sys_ppoll sys_read qemu_net_queue qemu_virtio_packet") + COLD + HOT
FLUSH_TX = ps(HOST, "qemu_bh qemu_virtio_packet qemu_net_queue sys_write") + COLD


def virtio_net(**settings: object) -> int:
    return latency("virtio-net", **{f"device.{name}": value for name, value in settings.items()})


def test_virtio_net_without_ioeventfd() -> None:
    """The vCPU's thread schedules the bottom half, and wakes the main loop by its eventfd; one ppoll is enough."""
    receive = BY_QEMU + ps(HOST, "sys_ioctl irq_injection") + VIRTIO_RECEIVE
    send = FROM_GUEST + ps(HOST, f"{REGISTER} eventfd_write thread_wakeup sys_ppoll") + FLUSH_TX
    assert virtio_net(ioeventfd=False) == TO_TAP + receive + send + FROM_TAP


@pytest.mark.parametrize("legacy", [False, True])
def test_virtio_net_with_intx(legacy: bool) -> None:
    """The handler goes out to QEMU to read ISR, which lowers the line, and the end of the interrupt exits."""
    read = READ_ISR
    if legacy:
        read = f"vm_exit kvm_pio_return qemu_dispatch qemu_nic_register {LINE} mmio_read_result kvm_pio_enter vm_entry"
    receive = BY_QEMU + ps(HOST, LINE) + VIRTIO_RECEIVE + ps(HOST, f"{read} vm_exit kvm_eoi vm_entry")
    send = VIRTIO_SEND + ps(HOST, "thread_wakeup sys_ppoll sys_read sys_ppoll") + FLUSH_TX
    assert virtio_net(vectors=0, disable_modern=legacy) == TO_TAP + receive + send + FROM_TAP


def test_virtio_net_with_a_timer() -> None:
    """The kick sets the timer, and the main loop sleeps until it fires: exactly that, a wake-up and ppoll more."""
    later = virtio_net(tx="timer", tx_timer="40us") - virtio_net(tx="bh")
    assert later == 40_000_000 + ps(HOST, "thread_wakeup")


def test_vhost_net_with_intx() -> None:
    """The call eventfd wakes QEMU's main loop, which raises the line."""
    receive = ps(HOST, f"vhost_worker_wakeup vhost_packet vhost_signal thread_wakeup sys_ppoll sys_read {LINE}") + COLD
    handler = VIRTIO_RECEIVE + ps(HOST, f"{READ_ISR} vm_exit kvm_eoi vm_entry")
    send = VIRTIO_SEND + ps(HOST, "vhost_worker_wakeup vhost_packet rearm_window") + COLD
    assert latency("vhost-net", **{"device.vectors": 0}) == TO_TAP + receive + handler + send + FROM_TAP


@pytest.mark.parametrize("model", ["virtio-net", "vhost-net"])
@pytest.mark.parametrize("other", ["packed", "indirect", "disable_modern"])
def test_what_costs_nothing_at_depth_one(model: str, other: str) -> None:
    """A packed ring, indirect tables for chains of one buffer, ports in place of memory: the same steps."""
    assert latency(model, **{f"device.{other}": True}) == latency(model)
