"""Which model simulates a machine's network, with which settings, or why none does."""

from __future__ import annotations

import pytest

from iosim.errors import IosimError
from iosim.qemu import network_path, parse


def virtio(netdev: str = "", device: str = "") -> str:
    return f"-netdev tap,id=n{netdev} -device virtio-net-pci,netdev=n{device}"


VHOST_USER = "-chardev socket,id=c,path=s -netdev vhost-user,id=n,chardev=c -device virtio-net-pci,netdev=n"
TWO_PAIRS = "-smp 2 " + VHOST_USER.replace("chardev=c ", "chardev=c,queues=2 ") + ",mq=on"


@pytest.mark.parametrize(
    ("line", "model", "settings"),
    [
        ("-net nic -net tap", "e1000", {"device.hub": True}),
        ("-nic tap", "e1000", {}),
        ("-netdev bridge,id=n,br=br0 -device e1000,netdev=n,mitigation=off", "e1000",
         {"device.mitigation": False}),
        ("-net nic,model=rtl8139 -net tap", "rtl8139", {"device.hub": True}),
        ("-netdev tap,id=n -device rtl8139,netdev=n", "rtl8139", {}),
        ("-net nic,model=ne2k_pci -net tap", "ne2k_pci", {"device.hub": True}),
        ("-netdev tap,id=n -device ne2k_pci,netdev=n", "ne2k_pci", {}),
        ("-nic tap,model=pcnet", "pcnet", {}),
        ("-net nic,model=i82551 -net tap", "i82551", {"device.hub": True}),
        ("-nic tap,model=i82557b", "i82557b", {}),
        ("-netdev tap,id=n -device i82559er,netdev=n", "i82559er", {}),
        ("-nic tap,model=i82550", "i82551", {}),
        ("-nic tap,model=virtio", "virtio-net", {}),
        ("-nic tap,model=virtio,vhost=on", "vhost-net", {}),
        ("-net nic,model=virtio -net tap,vhost=on", "virtio-net", {"device.hub": True}),
        (virtio(device=",event_idx=off,x-txburst=64,rx_queue_size=1024,tx_queue_size=256"), "virtio-net",
         {"device.event_idx": False, "device.tx_burst": 64, "device.rx_queue_size": 1024,
          "device.tx_queue_size": 256}),
        (virtio(",vhost=on", ",event_idx=on,x-txburst=64"), "vhost-net", {"device.event_idx": True}),
        (virtio(device=",packed=on,indirect_desc=off,event_idx=off"), "virtio-net",
         {"device.packed": True, "device.indirect": False, "device.event_idx": False}),
        (virtio(",vhost=on", ",packed=on"), "vhost-net", {}),
        (virtio(",vhost=on,poll-us=50"), "vhost-net", {"device.poll_us": 50}),
        (virtio(",poll-us=50"), "virtio-net", {}),
        (virtio(device=",mrg_rxbuf=off"), "virtio-net", {"device.mrg_rxbuf": False}),
        (virtio(",vhost=on,vnet_hdr=off", ",mrg_rxbuf=off"), "vhost-net",
         {"device.vnet_hdr": False, "device.mrg_rxbuf": False}),
        (virtio(device=",mrg_rxbuf=off,guest_tso4=off,guest_tso6=off,guest_ufo=off"), "virtio-net",
         {"device.mrg_rxbuf": False, "device.guest_tso4": False}),
        (virtio(",vhost=on", ",guest_csum=off"), "vhost-net", {"device.guest_csum": False}),
        (virtio(",vhost=on", ",guest_csum=off,guest_tso4=on"), "vhost-net", {"device.guest_csum": False}),
        (virtio(device=",guest_csum=on,guest_tso4=off"), "virtio-net",
         {"device.guest_csum": True, "device.guest_tso4": False}),
        (virtio(device=",ioeventfd=off"), "virtio-net", {"device.ioeventfd": False}),
        (virtio(",vhost=on", ",ioeventfd=off"), "vhost-net", {}),
        (virtio(device=",vectors=0,disable-modern=on"), "virtio-net",
         {"device.vectors": 0, "device.disable_modern": True}),
        (virtio(",vhost=on", ",vectors=2"), "vhost-net", {"device.vectors": 2}),
        (virtio(device=",vectors=3"), "virtio-net", {}),
        (virtio(",queues=4", ",mq=on,vectors=7"), "virtio-net", {"device.vectors": 2}),
        (virtio(device=",tx=timer,x-txtimer=30000"), "virtio-net",
         {"device.tx": "timer", "device.tx_timer": "30000ns"}),
        (virtio(",vhost=on", ",tx=timer"), "vhost-net", {}),
        (virtio(device=",csum=off,host_tso4=off"), "virtio-net", {"device.csum": False, "device.host_tso4": False}),
        (virtio(",vhost=on", ",host_tso4=on"), "vhost-net", {"device.host_tso4": True}),
        (virtio(",vhost=on,vnet_hdr=off"), "vhost-net", {"device.vnet_hdr": False}),
        (virtio(",vhost=on,queues=4"), "vhost-net", {}),
        (virtio(device=",mq=on,vectors=4"), "virtio-net", {}),
        ("-smp 4 " + virtio(",vhost=on,queues=4", ",mq=on,vectors=10"), "vhost-net",
         {"device.queues": 4, "guest.vcpus": 4}),
        ("-smp 4 " + virtio(",queues=4", ",mq=on"), "virtio-net", {"device.queues": 4, "guest.vcpus": 4}),
        ("-smp 4 " + virtio(",vhost=on,queues=4", ",mq=on,vectors=9"), "vhost-net",
         {"device.queues": 4, "guest.vcpus": 4}),
        ("-smp 2 " + virtio(",vhost=on,queues=16", ",mq=on"), "vhost-net", {"device.queues": 2, "guest.vcpus": 2}),
        ("-smp 8 " + virtio(",vhost=on,queues=2", ",mq=on"), "vhost-net", {"device.queues": 2, "guest.vcpus": 2}),
        (virtio(",vhost=on,queues=4", ",mq=on,vectors=10"), "vhost-net", {}),
        ("-smp 4 " + virtio(",vhost=on,queues=4", ",mq=off,vectors=10"), "vhost-net", {}),
        ("-smp 4 " + virtio(",queues=4", ",mq=on,vectors=8"), "virtio-net",
         {"device.vectors": 2, "device.queues": 4, "guest.vcpus": 4}),
        ("-smp 4 " + virtio(",vhost=on,queues=4", ",mq=on,vectors=0"), "vhost-net",
         {"device.vectors": 0, "device.queues": 4, "guest.vcpus": 4}),
        ("-smp 4 " + virtio(",vhost=on,queues=4,poll-us=50", ",packed=on,mq=on,vectors=10,event_idx=off"), "vhost-net",
         {"device.queues": 4, "guest.vcpus": 4, "device.poll_us": 50, "device.event_idx": False}),
        ("-smp 4 " + virtio(",queues=4", ",packed=on,mq=on,vectors=10,event_idx=off"), "virtio-net",
         {"device.queues": 4, "guest.vcpus": 4, "device.packed": True, "device.event_idx": False}),
        (virtio(device=",packed=on,disable-modern=on"), "virtio-net", {"device.disable_modern": True}),
        (VHOST_USER, "vhost-user", {}),
        (VHOST_USER + ",csum=on,host_tso4=off", "vhost-user", {"device.csum": True, "device.host_tso4": False}),
        (TWO_PAIRS + ",packed=on,vectors=6,event_idx=off", "vhost-user",
         {"device.queues": 2, "guest.vcpus": 2, "device.packed": True, "device.event_idx": False}),
        (TWO_PAIRS + ",vectors=2", "vhost-user", {"device.queues": 2, "guest.vcpus": 2, "device.vectors": 2}),
        (VHOST_USER + ",vectors=0,disable-modern=on", "vhost-user",
         {"device.vectors": 0, "device.disable_modern": True}),
        # By any class of the NIC; of an inner and an outer one the outer, of several the last; the device's own wins.
        ("-global virtio-net-pci.event_idx=off " + virtio(), "virtio-net", {"device.event_idx": False}),
        ("-global virtio-pci.disable-modern=on " + virtio(",vhost=on"), "vhost-net", {"device.disable_modern": True}),
        ("-global virtio-device.packed=on " + VHOST_USER, "vhost-user", {"device.packed": True}),
        ("-global driver=virtio-net-pci,property=vectors,value=0 " + virtio(), "virtio-net", {"device.vectors": 0}),
        ("-global virtio-net-pci.packed=off -global virtio-net-device.packed=on " + virtio(), "virtio-net",
         {"device.packed": False}),
        ("-global virtio-pci.vectors=0 -global virtio-net-pci.vectors=2 " + virtio(), "virtio-net",
         {"device.vectors": 2}),
        ("-global virtio-net-pci.event_idx=off " + virtio(device=",event_idx=on"), "virtio-net",
         {"device.event_idx": True}),
        ("-global e1000-base.mitigation=off -nic tap", "e1000", {"device.mitigation": False}),
        ("-global virtio-pci.disable-modern=on -nic tap", "e1000", {}),
        ("-cpu host,+x2apic -nic tap,model=virtio", "virtio-net", {}),
        ("-cpu host,migratable=off,pmu=on,+invtsc -nic tap,model=rtl8139", "rtl8139", {}),
        ("-cpu host,kvm-pv-eoi=off -nic tap,model=virtio", "virtio-net", {"host.pv_eoi": False}),
        ("-cpu qemu64,-kvm_pv_eoi -nic tap,model=virtio,vhost=on", "vhost-net", {"host.pv_eoi": False}),
        ("-cpu host,kvm=off -nic tap", "e1000", {"host.pv_eoi": False}),
        ("-smp 4 -nic none -device vfio-pci,host=01:00.0", "vfio", {"device.queues": 4, "guest.vcpus": 4}),
        ("-smp 16 -nic none -device vfio-pci,host=01:00.0", "vfio", {"device.queues": 8, "guest.vcpus": 8}),
        (VHOST_USER + ",tx_queue_size=1024,rx_queue_size=512,event_idx=off", "vhost-user",
         {"device.rx_queue_size": 512, "device.tx_queue_size": 1024, "device.event_idx": False}),
        ("-nic none -device vfio-pci,host=01:00.0", "vfio", {}),
        ("-nodefaults -device vfio-pci,host=0000:01:00.0,id=h", "vfio", {}),
        ("-nic tap,model=virtio,vhost=on -device vfio-pci,host=01:00.0", "vhost-net", {}),
    ],
)  # fmt: skip
def test_model_and_settings(line: str, model: str, settings: dict[str, object]) -> None:
    path = network_path(parse(f"kvm {line}", "f"))
    assert (path.model, path.settings) == (model, settings)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (virtio(",vhost=on,queues=4"), "without mq=on the guest uses one"),
        (virtio(",queues=4", ",mq=on"), "the guest has one vCPU (-smp) and uses as many of the 4 queue pairs"),
        ("-smp 2 " + virtio(",queues=4", ",mq=on"), "the guest has 2 vCPUs (-smp) and uses as many of the 4"),
        ("-smp 8 " + virtio(",queues=4", ",mq=on"), "of the guest's 8 vCPUs those are simulated that the 4 queue"),
        (virtio(device=",guest_ecn=off"), "not simulated: guest_ecn=off"),
        (virtio(",vhost=on", ",x-txburst=64"), "x-txburst is QEMU's own back end's; here the kernel serves the rings"),
        (virtio(",vhost=on", ",tx=timer,ioeventfd=off"), "tx, ioeventfd are QEMU's own back end's"),
        (VHOST_USER + ",tx=timer", "tx is QEMU's own back end's; here the process behind the socket serves the rings"),
        (virtio(",poll-us=50"), "poll-us is vhost's; without vhost=on nobody polls"),
        (virtio(device=",packed=on,disable-modern=on"), "packed=on has no effect with disable-modern=on"),
        ("-smp 4 " + virtio(",queues=4", ",mq=on,vectors=8"), "with vectors=8 all queues share one vector; 10 would"),
        ("-smp 4 " + virtio(",queues=4", ",mq=on,vectors=1"), "with vectors=1 all queues interrupt by the INTx line"),
        ("-cpu host,kvm-pv-eoi=off -nic tap", "-cpu kvm-pv-eoi=off: without PV EOI"),
        ("-cpu host,-x2apic -nic tap", "not simulated: -cpu x2apic=off"),
        ("-smp 16 -nic none -device vfio-pci,host=01:00.0", "of the guest's 16 vCPUs 8 are simulated"),
        (virtio(device=",csum=off,guest_tso4=off,gso=off"), "not simulated: gso=off"),
        (virtio(device=",guest_csum=off,guest_tso4=on"), "guest_tso4=on has no effect with guest_csum=off"),
        (virtio(device=",mrg_rxbuf=off,guest_tso4=off"), "guest_tso6 or guest_ufo is on"),
        (virtio(",vhost=on", ",packed=on"), "the kernel's vhost has no packed rings"),
        ("-netdev tap,id=n,vhost=on -device e1000,netdev=n", "QEMU ignores vhost=on"),
        ("-netdev tap,id=n,vhost=on -device rtl8139,netdev=n", "QEMU ignores vhost=on"),
        ("-nic tap,model=i82550", "i82550 is simulated as i82551"),
        ("-nic tap -drive file=a,if=virtio", "disk: virtio (virtio_blk); iosim compares the network path"),
        (VHOST_USER, "taken to poll, as DPDK does"),
        ("-nic none -device vfio-pci,host=01:00.0", "vfio-pci is taken for a NIC of the host"),
        ("-nic none -device vfio-pci,host=01:00.0", "host.apicv=on device.interrupts=posted"),
        ("-nic tap -device vfio-pci,host=01:00.0", "vfio-pci at 00:04.0 is left out; the NIC is the e1000"),
        ("-nic tap a.img", "disk: IDE (ata_piix); iosim compares the network path"),
    ],
)
def test_notes(line: str, part: str) -> None:
    assert any(part in note for note in network_path(parse(f"kvm {line}", "f")).notes)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "f: iosim cannot simulate the back end user: packets end in QEMU's own TCP/IP stack (slirp), "
         "not at a NIC of the host; it simulates tap and bridge"),
        ("-nic user,model=virtio", "f:1: iosim cannot simulate the back end user: packets end in QEMU's own "
         "TCP/IP stack (slirp), not at a NIC of the host; it simulates tap and bridge"),
        ("-nic tap,model=tulip",
         "f:1: no model of the tulip yet; there is ne2k_pci, i82551, i82557b, i82559er, rtl8139, e1000, pcnet, "
         "virtio-net, vhost-net, vhost-user, vfio"),
        ("-M q35 -nic tap",
         "f:1: no model of the e1000e yet; there is ne2k_pci, i82551, i82557b, i82559er, rtl8139, e1000, pcnet, "
         "virtio-net, vhost-net, vhost-user, vfio"),
        ("-nic none", "f: this machine has no NIC; a network path needs one, as -nic tap gives it"),
        ("-nic tap -nic tap,model=pcnet",
         "f:1: this asks for two NICs (00:03.0 e1000, 00:04.0 pcnet); iosim simulates one"),
        ("-smp 16 " + virtio(",queues=16", ",mq=on"),
         "f:1: iosim cannot simulate 16 queue pairs; it simulates up to 8"),
        (virtio(",ifname=macvtap0"), "f:1: iosim cannot simulate macvtap; it simulates a tap on a bridge"),
        (VHOST_USER.replace("virtio-net-pci", "e1000"),
         "f:1: iosim cannot simulate the back end vhost-user: it serves virtqueues, so only virtio NICs have it; "
         "it simulates tap and bridge"),
        ("-device vfio-pci,host=01:00.0",
         "f:1: this passes a device through (00:04.0 vfio-pci) beside the NIC that QEMU adds by default (e1000); if it "
         "is the NIC, -nic none leaves out the other"),
        ("-nic none -device vfio-pci,host=01:00.0 -device vfio-pci,host=01:00.1",
         "f:1: this passes 2 devices through (vfio-pci), and iosim cannot tell which is the NIC; it simulates one"),
        ("-net nic -net tap -net user",
         "f:1: iosim cannot simulate a hub with several back ends (tap, user); "
         "it simulates one tap"),
        ("-net nic", "f:1: iosim cannot simulate the back end none: the NIC has no back end; "
         "it simulates tap and bridge"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated(line: str, expected: str) -> None:
    machine = parse(f"kvm {line}", "f")
    with pytest.raises(IosimError) as caught:
        network_path(machine)
    assert str(caught.value) == expected


def test_the_nic_that_qemu_adds_is_explained() -> None:
    with pytest.raises(IosimError, match="leaves out the one QEMU adds"):
        network_path(parse("kvm -device e1000", "f"))
