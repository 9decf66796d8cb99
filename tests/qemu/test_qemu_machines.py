"""The command lines of models/machines, and what other lines build."""

from __future__ import annotations

from importlib.resources import files

import pytest

from iosim.errors import IosimError
from iosim.qemu import Machine, network_path, parse, read_file

MACHINES = files("iosim.models") / "machines"
IMAGE = "/kvm/storage/vm_disks/ubnutu1604.img"
CHIPSET = [
    ("00:00.0", "i440FX", ""),
    ("00:01.0", "PIIX3", ""),
    ("00:01.1", "piix3-ide", "ata_piix"),
    ("00:01.3", "PIIX4_PM", "piix4_smbus"),
    ("00:02.0", "VGA", "bochs"),
]


def machine(name: str) -> Machine:
    return read_file(str(MACHINES / name))


def others(built: Machine) -> list[tuple[str, str, str]]:
    return [(device.slot, device.model, device.guest_driver) for device in built.others]


def nics(built: Machine) -> list[tuple[str, str, str]]:
    return [(nic.slot, nic.model, nic.backend) for nic in built.nics]


def test_full_emulation() -> None:
    built = machine("full-emulation.sh")
    assert others(built) == [*CHIPSET, ("00:04.0", "virtio-balloon-pci", "virtio_balloon")]
    (nic,) = built.nics
    assert (nic.slot, nic.model, nic.guest_driver, nic.backend) == ("00:03.0", "e1000", "e1000", "tap")
    assert (nic.vhost, nic.through_hub, nic.vnet_hdr, nic.queues, nic.line) == (False, True, False, 1, 3)
    assert nic.backend_options == {"script": "/etc/qemu-ifup"}
    (disk,) = built.disks
    assert (disk.interface, disk.model, disk.guest_driver) == ("ide", "ide-hd", "ata_piix")
    assert (disk.slot, disk.file, disk.format, disk.line) == ("00:01.1", IMAGE, "", 2)
    assert (built.program, built.machine_type, built.memory_mib, built.vcpus) == ("kvm", "pc", 2048, 1)
    assert built.warnings == ()
    assert built.notes == ("of no matter to the I/O path: -vnc, -daemonize",)
    path = network_path(built)
    assert (path.model, path.settings) == ("e1000", {"device.hub": True})
    assert "disk: IDE (ata_piix); iosim compares the network path" in path.notes


def test_virtio_net() -> None:
    built = machine("virtio-net.sh")
    assert others(built) == [*CHIPSET, ("00:04.0", "virtio-balloon-pci", "virtio_balloon")]
    (nic,) = built.nics
    assert (nic.slot, nic.model, nic.guest_driver) == ("00:03.0", "virtio-net-pci", "virtio_net")
    assert (nic.vhost, nic.through_hub, nic.vnet_hdr) == (False, True, False)
    assert [disk.interface for disk in built.disks] == ["ide"]
    path = network_path(built)
    assert path.model == "virtio-net"
    assert any("no checksum or segmentation offload" in note for note in path.notes)


def test_vhost_net() -> None:
    built = machine("vhost-net.sh")
    # The disk comes after every -device, though its -drive stands before them.
    assert others(built) == [*CHIPSET, ("00:03.0", "virtio-balloon-pci", "virtio_balloon")]
    (nic,) = built.nics
    assert (nic.slot, nic.model, nic.backend) == ("00:04.0", "virtio-net-pci", "tap")
    assert (nic.vhost, nic.through_hub, nic.vnet_hdr, nic.line) == (True, False, True, 5)
    (disk,) = built.disks
    assert (disk.slot, disk.interface, disk.guest_driver) == ("00:05.0", "virtio", "virtio_blk")
    assert (disk.file, disk.format) == (IMAGE, "raw")
    assert built.warnings == ()
    assert network_path(built).model == "vhost-net"


@pytest.mark.parametrize("name", ["vhost-net-ide.sh", "virtio-net.sh"])
def test_an_ide_disk_beside_a_virtio_nic_is_asked_about(name: str) -> None:
    built = machine(name)
    assert [disk.guest_driver for disk in built.disks] == ["ata_piix"]
    (warning,) = built.warnings
    assert warning == (
        f"{MACHINES / name}:3: this is an IDE disk (ata_piix); was if=virtio meant, as the NIC is virtio?"
    )


@pytest.mark.parametrize(
    "drive",
    ["-drive file=a,if=ide", "-drive file=a,if=virtio", "-cdrom a.iso", "-drive file=a,if=virtio -hda b"],
)
def test_a_chosen_interface_is_not_asked_about(drive: str) -> None:
    assert parse(f"kvm {drive} -nic tap,model=virtio", "f").warnings == ()


EVERY = {
    "full-emulation.sh": "e1000",
    "rtl8139.sh": "rtl8139",
    "vfio.sh": "vfio",
    "vhost-net-ide.sh": "vhost-net",
    "vhost-net-mq.sh": "vhost-net",
    "vhost-net.sh": "vhost-net",
    "vhost-user.sh": "vhost-user",
    "virtio-net-packed.sh": "virtio-net",
    "virtio-net.sh": "virtio-net",
}


def test_each_machine_file_holds_one_command_and_says_what_it_is() -> None:
    assert sorted(entry.name for entry in MACHINES.iterdir() if entry.name.endswith(".sh")) == sorted(EVERY)
    for name, model in EVERY.items():
        assert (MACHINES / name).read_text().startswith("# ")
        assert network_path(machine(name)).model == model


def test_rtl8139() -> None:
    built = machine("rtl8139.sh")
    (nic,) = built.nics
    assert (nic.model, nic.guest_driver, nic.backend, nic.through_hub) == ("rtl8139", "8139cp", "tap", False)
    assert (built.warnings, network_path(built).settings) == ((), {})


def test_virtio_net_packed() -> None:
    built = machine("virtio-net-packed.sh")
    (nic,) = built.nics
    assert nic.properties == {"packed": "on", "event_idx": "off"}
    assert network_path(built).settings == {"device.packed": True, "device.event_idx": False}
    assert built.warnings == ()


def test_vhost_net_with_four_queue_pairs() -> None:
    built = machine("vhost-net-mq.sh")
    (nic,) = built.nics
    assert (built.vcpus, nic.queues, nic.vhost, nic.properties) == (4, 4, True, {"mq": "on", "vectors": "10"})
    path = network_path(built)
    assert path.settings == {"device.queues": 4, "guest.vcpus": 4, "device.poll_us": 50}
    assert built.warnings == ()


def test_vhost_user() -> None:
    built = machine("vhost-user.sh")
    (nic,) = built.nics
    assert (built.vcpus, nic.backend, nic.queues, nic.is_virtio) == (2, "vhost-user", 2, True)
    assert network_path(built).settings == {"device.queues": 2, "guest.vcpus": 2, "device.rx_queue_size": 1024}
    assert built.warnings == ()


def test_vfio() -> None:
    built = machine("vfio.sh")
    assert built.nics == ()
    assert ("00:03.0", "vfio-pci", "") in others(built)
    assert network_path(built).settings == {"device.queues": 4, "guest.vcpus": 4}
    assert built.warnings == ()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # default_net: neither -device of a NIC nor a disk stands in the way of the default NIC.
        ("kvm", [("00:03.0", "e1000", "user")]),
        ("kvm -M q35", [("00:02.0", "e1000e", "user")]),
        ("kvm -device e1000", [("00:03.0", "e1000", "user"), ("00:04.0", "e1000", "none")]),
        ("kvm -netdev tap,id=a -device e1000,netdev=a", [("00:03.0", "e1000", "tap")]),
        ("kvm -net none", []),
        ("kvm -nic none", []),
        ("kvm -nodefaults", []),
        ("kvm -net tap", []),
        ("kvm -nodefaults -nic tap", [("00:02.0", "e1000", "tap")]),
        ("kvm -vga none -nic tap", [("00:02.0", "e1000", "tap")]),
        # net_init_clients: all -nic before all -net.
        ("kvm -net nic,model=pcnet -net tap -nic user", [("00:03.0", "e1000", "user"),
                                                        ("00:04.0", "pcnet", "tap")]),
        ("kvm -net nic,model=rtl8139,addr=0x1f -net bridge", [("00:1f.0", "rtl8139", "bridge")]),
        ("kvm -net nic -net tap -net user", [("00:03.0", "e1000", "tap+user")]),
        # -device by order, with addr= honoured and stepped over.
        ("kvm -net none -device pcnet,addr=4 -device e1000e -device igb,addr=3.1 -device vmxnet3",
         [("00:04.0", "pcnet", "none"), ("00:03.0", "e1000e", "none"), ("00:03.1", "igb", "none"),
          ("00:05.0", "vmxnet3", "none")]),
        ("kvm -M q35 -device pcie-root-port,id=rp -netdev tap,id=a -device virtio-net,netdev=a,bus=rp",
         [("rp:00.0", "virtio-net-pci", "tap")]),
        # -device in JSON comes after the others (qemu_create_cli_devices).
        ("""kvm -nic none -device '{"driver":"e1000"}' -device pcnet""",
         [("00:03.0", "pcnet", "none"), ("00:04.0", "e1000", "none")]),
    ],
)  # fmt: skip
def test_nics_and_their_slots(line: str, expected: list[tuple[str, str, str]]) -> None:
    assert nics(parse(line, "f")) == expected


@pytest.mark.parametrize(
    ("line", "vhost", "hub", "vnet_hdr", "queues"),
    [
        ("-netdev tap,id=a -device virtio-net-pci,netdev=a", False, False, True, 1),
        ("-netdev tap,id=a,vnet_hdr=off -device virtio-net-pci,netdev=a", False, False, False, 1),
        ("-netdev tap,id=a,vhost=on -device e1000,netdev=a", False, False, False, 1),
        ("-netdev tap,id=a,vhostforce=on -device virtio-net-pci,netdev=a", True, False, True, 1),
        ("-netdev tap,id=a,vhost=on,queues=4 -device virtio-net-pci,netdev=a", True, False, True, 4),
        ("-netdev tap,id=a,fds=3:4:5 -device virtio-net-pci,netdev=a", False, False, True, 3),
        ("-netdev user,id=a -device virtio-net-pci,netdev=a", False, False, False, 1),
        ("-netdev tap,id=a,vhost=on -net nic,model=virtio,netdev=a", True, False, True, 1),
        ("-net nic,model=virtio -net tap,vhost=on", False, True, False, 1),
        ("-netdev tap,id=t -netdev hubport,id=h,hubid=1,netdev=t -device virtio-net-pci,netdev=h",
         False, True, False, 1),
        ("-nic bridge,br=br0,model=virtio-net-pci", False, False, True, 1),
        ("-netdev tap,id=a -device e1000e,netdev=a", False, False, True, 1),
    ],
)  # fmt: skip
def test_how_a_nic_is_joined(line: str, vhost: bool, hub: bool, vnet_hdr: bool, queues: int) -> None:
    (nic,) = parse(f"kvm {line}", "f").nics
    assert (nic.vhost, nic.through_hub, nic.vnet_hdr, nic.queues) == (vhost, hub, vnet_hdr, queues)


@pytest.mark.parametrize(
    ("drives", "expected"),
    [
        ("a.img", [("ide", "ide-hd", "00:01.1", "a.img")]),
        ("-hdb b -cdrom c.iso", [("ide", "ide-hd", "00:01.1", "b"), ("ide", "ide-cd", "00:01.1", "c.iso")]),
        ("-drive file=a,if=virtio,addr=9", [("virtio", "virtio-blk-pci", "00:09.0", "a")]),
        ("-drive file=a,,b,if=virtio", [("virtio", "virtio-blk-pci", "00:03.0", "a,b")]),
        ("-drive file=a,if=none,id=d -device nvme,drive=d,serial=1", [("nvme", "nvme", "00:03.0", "a")]),
        ("-device virtio-scsi-pci,id=s -drive file=a,if=none,id=d -device scsi-hd,drive=d,bus=s.0",
         [("scsi", "scsi-hd", "00:03.0", "a")]),
        ("-blockdev driver=file,filename=a,node-name=f -blockdev driver=qcow2,file=f,node-name=q "
         "-device virtio-blk-pci,drive=q", [("virtio", "virtio-blk-pci", "00:03.0", "a")]),
        ("-drive file=a,if=none", []),
        ("-device ahci,id=h -drive if=none,id=d,file=a -device ide-hd,bus=h.0,drive=d",
         [("ide", "ide-hd", "00:03.0", "a")]),
        ("-M q35 -hda a", [("ide", "ide-hd", "00:1f.2", "a")]),
    ],
)  # fmt: skip
def test_disks_and_their_slots(drives: str, expected: list[tuple[str, str, str, str]]) -> None:
    disks = parse(f"kvm -nic none {drives}", "f").disks
    assert [(disk.interface, disk.model, disk.slot, disk.file) for disk in disks] == expected


@pytest.mark.parametrize(
    ("line", "mebibytes"),
    [("", 128), ("-m 2048", 2048), ("-m 2G", 2048), ("-m size=1.5G", 1536), ("-m 0", 128),
     ("-m 512 -m 1024M,slots=2,maxmem=4G", 1024), ("-m 3000000k", 2930)],
)  # fmt: skip
def test_memory(line: str, mebibytes: int) -> None:
    assert parse(f"kvm {line}", "f").memory_mib == mebibytes


@pytest.mark.parametrize(
    ("line", "vcpus"),
    [("", 1), ("-smp 4", 4), ("-smp cpus=2,maxcpus=8", 2), ("-smp sockets=2,cores=2,threads=2", 8)],
)
def test_vcpus(line: str, vcpus: int) -> None:
    assert parse(f"kvm {line}", "f").vcpus == vcpus


@pytest.mark.parametrize(
    ("line", "kind"),
    [("-M pc", "pc"), ("-machine pc-i440fx-2.5,accel=kvm", "pc"), ("-machine accel=kvm", "pc"),
     ("-machine type=q35", "q35"), ("-M pc-q35-8.2", "q35")],
)  # fmt: skip
def test_machine_types(line: str, kind: str) -> None:
    built = parse(f"kvm {line}", "f")
    assert built.machine_type == kind
    assert built.others[0].model == {"pc": "i440FX", "q35": "mch"}[kind]


@pytest.mark.parametrize(
    ("line", "accelerator"),
    [("kvm", "kvm"), ("/usr/libexec/qemu-kvm", "kvm"), ("qemu-system-x86_64", "tcg"),
     ("qemu-system-x86_64 --enable-kvm", "kvm"), ("qemu-system-x86_64 -M pc,accel=kvm:tcg", "kvm"),
     ("kvm -accel tcg,thread=multi", "tcg")],
)  # fmt: skip
def test_a_guest_without_kvm_is_warned_about(line: str, accelerator: str) -> None:
    built = parse(line, "f")
    assert built.accelerator == accelerator
    assert any("iosim simulates KVM" in warning for warning in built.warnings) == (accelerator != "kvm")


@pytest.mark.parametrize(
    "line",
    ["-balloon virtio,addr=7", "-device virtio-balloon-pci,addr=7", "-device virtio-balloon,addr=0x7.0"],
)
def test_balloon(line: str) -> None:
    assert ("00:07.0", "virtio-balloon-pci", "virtio_balloon") in others(parse(f"kvm {line}", "f"))


def test_no_balloon() -> None:
    assert others(parse("kvm -balloon none", "f")) == CHIPSET


@pytest.mark.parametrize(
    ("device", "driver"),
    [("virtio-net-pci", "virtio_net"), ("e1000", "e1000"), ("e1000e", "e1000e"), ("rtl8139", "8139cp"),
     ("i82551", "e100"), ("i82557b", "e100"), ("i82559er", "e100"), ("pcnet", "pcnet32"),
     ("ne2k_pci", "ne2k-pci"), ("virtio-net-pci-transitional", "virtio_net")],
)  # fmt: skip
def test_drivers_of_nics(device: str, driver: str) -> None:
    (nic,) = parse(f"kvm -netdev tap,id=a -device {device},netdev=a", "f").nics
    assert nic.guest_driver == driver


@pytest.mark.parametrize(
    ("device", "driver"),
    [("virtio-scsi-pci", "virtio_scsi"), ("virtio-serial-pci", "virtio_console"),
     ("virtio-rng-pci", "virtio-rng"), ("virtio-keyboard-pci", "virtio_input"),
     ("virtio-tablet-pci", "virtio_input"), ("ich9-ahci", "ahci")],
)  # fmt: skip
def test_drivers_of_other_devices(device: str, driver: str) -> None:
    assert ("00:04.0", device, driver) in others(parse(f"kvm -device {device}", "f"))


def test_usb_and_sound_take_their_slots() -> None:
    built = parse("kvm -usb -soundhw ac97,sb16 -device usb-tablet -device virtio-rng-pci -nic none", "f")
    assert others(built)[3][:2] == ("00:01.2", "piix3-usb-uhci")
    assert others(built)[-2:] == [
        ("00:03.0", "AC97", "snd_intel8x0"),
        ("00:04.0", "virtio-rng-pci", "virtio-rng"),
    ]
    assert any("usb-tablet sits on a bus of another kind" in note for note in built.notes)


def test_global_properties_reach_the_nic_and_yield_to_its_own() -> None:
    line = "-global virtio-net-pci.event_idx=off -global virtio-net-pci.mrg_rxbuf=off"
    (nic,) = parse(f"kvm {line} -netdev tap,id=a -device virtio-net-pci,netdev=a,mrg_rxbuf=on", "f").nics
    assert nic.properties == {"event_idx": "off", "mrg_rxbuf": "on"}


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("-netdev tap,id=a -nic none", "no NIC uses the netdev 'a'"),
        ("-net tap", "was '-net nic' meant as well?"),
        ("-net nic", "the NIC e1000 has no back end"),
        ("-net nic,model=virtio -net tap,vhost=on", "no effect behind the hub"),
        ("-netdev tap,id=a,vhost=on -device e1000,netdev=a", "QEMU ignores vhost=on for e1000"),
        ("-nic tap,model=virtio -device nosuchthing", "iosim does not know the device 'nosuchthing'"),
        ("-nic none -netdev tap,id=a -device virtio-net-pci,netdev=a,tx=tmr", "QEMU takes bh"),
        ("-chardev socket,id=c,path=s -nic vhost-user,chardev=c,model=virtio", "maps the guest's memory"),
        ("-nic tap -global virtio-net-pic.mq=on", "unknown -global driver 'virtio-net-pic'; did you mean"),
    ],
)
def test_warnings_name_their_place(line: str, part: str) -> None:
    (warning,) = parse(f"\nkvm {line}", "f.sh").warnings
    assert warning.startswith("f.sh:2: ")
    assert part in warning


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("-nic tap -global PIIX4_PM.disable_s3=1", "of no matter to the I/O path: -global PIIX4_PM.disable_s3"),
        ("-nic tap -global virtio-net-pci.mq=on", "of no matter to the I/O path: -global virtio-net-pci.mq"),
        ("-nic tap -overcommit cpu-pm=on", "not simulated: -overcommit cpu-pm=on, with which HLT does not exit"),
        ("-nic tap -machine pc,kernel_irqchip=off", "not simulated: kernel-irqchip=off"),
        ("-nic tap -accel kvm,kernel-irqchip=split", "not simulated: kernel-irqchip=split"),
        ("-nic tap -cpu host,+avx2", "of no matter to the I/O path: -cpu"),
    ],
)
def test_what_has_no_meaning_here_is_said(line: str, part: str) -> None:
    assert any(part in note for note in parse(f"kvm {line}", "f").notes)


def test_a_cpu_without_a_model_is_refused() -> None:
    with pytest.raises(IosimError, match="-cpu: has no model; expects one, as in -cpu host"):
        parse("kvm -nic tap -cpu ,+x2apic", "f")
