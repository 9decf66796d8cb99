"""The catalogue of costs: the one place where every cost of a path has its name and its meaning.

A model names a cost by the constant here (`spend(VM_EXIT)`); what it amounts to on a host stands in the host's TOML
file under the same name in lower case (`iosim.host.hosts`), with its source. Costs are drawn by the engine.
"""

from __future__ import annotations

from typing import Final

_catalogue: list[tuple[str, str]] = []


def _cost(name: str, meaning: str) -> int:
    _catalogue.append((name, meaning))
    return len(_catalogue) - 1


# VM exits and what KVM does in them
VM_EXIT: Final = _cost("vm_exit", "leave the guest: save its state, enter KVM's exit handler")
VM_ENTRY: Final = _cost("vm_entry", "enter the guest again")
KVM_IOEVENTFD: Final = _cost("kvm_ioeventfd", "match the notify write to its ioeventfd and signal it")
KVM_MMIO_DECODE: Final = _cost("kvm_mmio_decode", "fetch and decode the instruction of an MMIO or string access")
KVM_COALESCED_MMIO: Final = _cost("kvm_coalesced_mmio", "put a write into the coalesced MMIO ring")
KVM_RUN_RETURN: Final = _cost("kvm_run_return", "fill struct kvm_run and return from KVM_RUN to QEMU")
KVM_RUN_ENTER: Final = _cost("kvm_run_enter", "the ioctl KVM_RUN again, up to the VM entry")
QEMU_DISPATCH: Final = _cost("qemu_dispatch", "find the memory region and call the device's handler")
MMIO_READ_RESULT: Final = _cost("mmio_read_result", "put a read's result into the shared page and the register")
KVM_PIO_RETURN: Final = _cost("kvm_pio_return", "fill struct kvm_run for a port access, return from KVM_RUN to QEMU")
KVM_PIO_ENTER: Final = _cost("kvm_pio_enter", "the ioctl KVM_RUN again after a port access, up to the VM entry")
KVM_IOAPIC: Final = _cost("kvm_ioapic", "an access to a register of KVM's own I/O APIC")
KVM_EOI: Final = _cost("kvm_eoi", "emulate the write to the APIC's EOI register")
KVM_TSC_DEADLINE: Final = _cost("kvm_tsc_deadline", "emulate the write that arms the APIC's timer")
KVM_EXTERNAL_INTERRUPT: Final = _cost("kvm_external_interrupt", "serve the host interrupt that forced the exit")
KVM_INTERRUPT_WINDOW: Final = _cost("kvm_interrupt_window", "inject an interrupt that had to wait for the guest's sti")
RESCHEDULE_IPI: Final = _cost("reschedule_ipi", "an inter-processor interrupt on its way to a vCPU's CPU")
POSTED_INTERRUPT: Final = _cost("posted_interrupt", "a posted interrupt's notification on its way (APICv)")
IRQ_INJECTION: Final = _cost("irq_injection", "KVM: route a message or line to the vCPU's APIC")
VCPU_WAKEUP: Final = _cost("vcpu_wakeup", "wake a vCPU thread that sleeps in HLT, on an idle CPU")

# Threads and system calls of the host
CPU_IDLE_EXIT: Final = _cost("cpu_idle_exit", "an interrupt ends the HLT of an idle CPU of the host")
HOST_VECTOR: Final = _cost("host_vector", "a host interrupt served by VFIO's or KVM's own handler, entry to exit")
VHOST_WORKER_WAKEUP: Final = _cost("vhost_worker_wakeup", "wake the vhost worker on its CPU")
THREAD_WAKEUP: Final = _cost("thread_wakeup", "wake a thread that sleeps on another CPU")
CONTEXT_SWITCH: Final = _cost("context_switch", "direct switch of a CPU from one thread to another")
SYS_PPOLL: Final = _cost("sys_ppoll", "the system call ppoll, sleep not included")
SYS_READ: Final = _cost("sys_read", "the system call read on an eventfd or the tap, copy not included")
SYS_WRITE: Final = _cost("sys_write", "entry and exit of write, writev or sendmsg, what the tap does not included")
SYS_IOCTL: Final = _cost("sys_ioctl", "entry and exit of an ioctl")
EVENTFD_WRITE: Final = _cost("eventfd_write", "wake the main loop from another thread: write to its eventfd")

# Memory
COPY_COLD: Final = _cost("copy_cold", "copy bytes that another CPU wrote")
COPY_HOT: Final = _cost("copy_hot", "copy bytes that are in this CPU's cache")
REARM_WINDOW: Final = _cost("rearm_window", "store the event index, fence, load the index: arm, then re-check")

# Device emulation and back ends
QEMU_BH: Final = _cost("qemu_bh", "schedule and call a bottom half of the main loop")
QEMU_VIRTIO_PACKET: Final = _cost("qemu_virtio_packet", "QEMU: pop, map and push one packet's descriptors")
QEMU_E1000_PACKET: Final = _cost("qemu_e1000_packet", "QEMU: read and write back one packet's e1000 descriptors")
QEMU_E1000_DESCRIPTOR: Final = _cost("qemu_e1000_descriptor", "QEMU: each descriptor of a packet besides its last")
QEMU_CHECKSUM: Final = _cost("qemu_checksum", "QEMU: net_checksum_add, for a NIC that the guest leaves checksums to")
QEMU_E1000_REGISTER: Final = _cost("qemu_e1000_register", "QEMU: the e1000's register handler itself")
QEMU_NIC_PACKET: Final = _cost("qemu_nic_packet", "QEMU: read and write back one packet's descriptors (other NICs)")
QEMU_NIC_REGISTER: Final = _cost("qemu_nic_register", "QEMU: the register handler itself (other emulated NICs)")
QEMU_PIO_ITEM: Final = _cost("qemu_pio_item", "QEMU: find the port again for each further item of a string access")
QEMU_NET_QUEUE: Final = _cost("qemu_net_queue", "QEMU: hand a packet from net client to net client")
VHOST_PACKET: Final = _cost("vhost_packet", "vhost: get, map and return one packet's descriptors")
VHOST_SIGNAL: Final = _cost("vhost_signal", "vhost: check used_event and signal the call eventfd")
PMD_VHOST: Final = _cost("pmd_vhost", "DPDK's vhost library: one packet's descriptors, copy not included")
PMD_NIC: Final = _cost("pmd_nic", "DPDK's driver of the NIC: one frame received or sent")

# The host's network
TAP_WRITE: Final = _cost("tap_write", "tun_get_user: allocate the skb, hand it to the host's stack")
TAP_QUEUE: Final = _cost("tap_queue", "tun_net_xmit: put an skb into the tap's queue and wake its reader")
BRIDGE: Final = _cost("bridge", "look up the port and forward one frame")
NIC_TX: Final = _cost("nic_tx", "physical NIC's driver: one frame to the hardware")
NIC_RX_DELAY: Final = _cost("nic_rx_delay", "host NIC: DMA and interrupt delay of a received frame")
HOST_IRQ: Final = _cost("host_irq", "host NIC's interrupt handler and softirq entry")
HOST_RECEIVE: Final = _cost("host_receive", "physical NIC's driver, NAPI: one frame to the stack")
GRO_RECEIVE: Final = _cost("gro_receive", "dev_gro_receive, host or guest: one segment of a stream, held or merged")
HOST_CHECKSUM: Final = _cost("host_checksum", "host: checksums of segments for a tap without TUN_F_CSUM")
RX_BUFFER_MORE: Final = _cost("rx_buffer_more", "vhost or QEMU: one more receive buffer for the same packet")
GSO_SEGMENT: Final = _cost("gso_segment", "skb_segment, host or guest: one frame of a GSO packet, with its headers")
WIRE: Final = _cost("wire", "serialization of a frame on the wire")

# The guest kernel
IRQ_ENTRY: Final = _cost("irq_entry", "guest: from the injected vector to the driver's handler, and back")
DRIVER_IRQ: Final = _cost("driver_irq", "guest driver's interrupt handler, register accesses not included")
SOFTIRQ_ENTRY: Final = _cost("softirq_entry", "guest: enter net_rx_action, call and complete one NAPI poll")
DRIVER_XMIT: Final = _cost("driver_xmit", "guest driver: map one packet, fill its descriptors")
DRIVER_FREE: Final = _cost("driver_free", "guest driver: free one sent packet")
DRIVER_RECEIVE: Final = _cost("driver_receive", "guest driver: take one received packet, build its skb")
DRIVER_RECEIVE_FRAG: Final = _cost("driver_receive_frag", "guest driver: one more buffer or page of the same packet")
DRIVER_REFILL: Final = _cost("driver_refill", "guest driver: allocate and post one receive buffer")
GUEST_STACK_TX: Final = _cost("guest_stack_tx", "guest: UDP, IP and qdisc for one sent packet")
GUEST_STACK_RX: Final = _cost("guest_stack_rx", "guest: IP and UDP for one received packet, into the socket")
GUEST_WAKEUP: Final = _cost("guest_wakeup", "guest: wake and switch to the waiting application")
SYS_SENDMSG: Final = _cost("sys_sendmsg", "guest: the system call that sends, copy not included")
GUEST_CHECKSUM: Final = _cost("guest_checksum", "guest: skb_checksum_help, where the device has no checksum offload")
SYS_RECVMSG: Final = _cost("sys_recvmsg", "guest: the system call that receives, copy not included")
GUEST_TIMER: Final = _cost("guest_timer", "guest: the timer interrupt's handler up to the wake-up")

# The machine at the other end of the wire
CLIENT_SEND: Final = _cost("client_send", "client: from its send call to the first bit on the wire")
CLIENT_RECEIVE: Final = _cost("client_receive", "client: from the last bit on the wire to the application")

HOST_COSTS: Final = len(_catalogue)
"""Costs below this number belong to the host and must stand in every host file."""

# What a workload asks for, drawn like a cost
THINK_TIME: Final = _cost("think_time", "workload.think_time: the guest application between receive and send")
PEER_DELAY: Final = _cost("peer_delay", "workload.peer_delay: the client between a reply and its next request")
INTERARRIVAL: Final = _cost("interarrival", "time between open-loop arrivals: 1 / workload.rate")

# The saturated producer and consumer of iosim.models.prodcons
PRODUCER_WORK: Final = _cost("producer_work", "Wp: the producer's work per item")
CONSUMER_WORK: Final = _cost("consumer_work", "Wc: the consumer's work per item")
PRODUCER_NOTIFY: Final = _cost("producer_notify", "Np: the producer's cost of a kick")
CONSUMER_NOTIFY: Final = _cost("consumer_notify", "Nc: the consumer's cost of an interrupt")
PRODUCER_START: Final = _cost("producer_start", "Sp: from the interrupt to the producer's first step")
CONSUMER_START: Final = _cost("consumer_start", "Sc: from the kick to the consumer's first step")
CONSUMER_REARM: Final = _cost("consumer_rearm", "the consumer's window between arming and re-checking")
PRODUCER_REARM: Final = _cost("producer_rearm", "the producer's window between arming and re-checking")

# Other load on the host's CPUs
HOST_LOAD: Final = _cost("host_load", "host.hogs: what a thread that always wants to run has to do")

NAMES: tuple[str, ...] = tuple(name for name, _ in _catalogue)
MEANINGS: tuple[str, ...] = tuple(meaning for _, meaning in _catalogue)


def new_cost(name: str, meaning: str) -> int:
    """Add a cost that belongs to a model, and return its number; called when the model's file is imported.

    What it amounts to is the model's (`iosim.model.Model.costs`); where that says nothing, it is 0.

    Raises:
        ValueError: Another cost has the name. The same once more is the same cost.

    Example:
        >>> from iosim.host import costs
        >>> card = costs.new_cost("example_card", "an example's card: one packet")
        >>> costs.NAMES[card], card == costs.new_cost("example_card", "an example's card: one packet")
        ('example_card', True)
    """
    global NAMES, MEANINGS
    if (name, meaning) in _catalogue:
        return _catalogue.index((name, meaning))
    if name in NAMES:
        raise ValueError(f"there is a cost '{name}' already: {MEANINGS[NAMES.index(name)]}")
    number = _cost(name, meaning)
    NAMES = (*NAMES, name)
    MEANINGS = (*MEANINGS, meaning)
    return number
