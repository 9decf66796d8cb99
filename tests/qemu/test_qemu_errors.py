"""What iosim says, in one line, to a command line that QEMU would refuse or that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from iosim.errors import IosimError
from iosim.qemu import parse, read_file

V = "-netdev tap,id=net0 -device virtio-net-pci,netdev=net0"


def message(text: str) -> str:
    with pytest.raises(IosimError) as caught:
        parse(text, "f.sh")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-nett nic", "unknown option '-nett'; did you mean '-net'?"),
        ("--deviec e1000", "unknown option '--deviec'; did you mean '-device'?"),
        ("-m=2048", "'-m=2048': QEMU takes the argument as a word of its own: -m ..."),
        ("-m", "-m requires an argument"),
        ("-netdev -device e1000", "-netdev requires an argument, and '-device' is the next option"),
        ("-m -5", "-m: '-5': expects a size such as 2048 (MiB) or 2G"),
        ("-m lots", "-m: 'lots': expects a size such as 2048 (MiB) or 2G"),
        ("-m 2G,maxmem=1G", "-m: maxmem=1G: expects a size of at least that of the memory"),
        ("-smp 0", "-smp: cpus=0: expects a number greater than zero"),
        ("-smp 2,corse=2", "unknown -smp key 'corse'; did you mean 'cores'?"),
        ("-smp 4,sockets=1,cores=1,threads=2",
         "-smp: sockets * cores * threads are 2, which must match 4 CPUs"),
        ("-smp 300", "-smp: 300 CPUs; the machine pc has at most 255"),
        ("-M microvm", "-M: iosim knows the machine types pc and q35, not microvm"),
        ("-machine q53", "unknown -machine type 'q53'; did you mean 'q35'?"),
        ("-accel kmv", "unknown -accel accelerator 'kmv'; did you mean 'kvm'?"),
        ("-vga sdt", "unknown -vga type 'sdt'; did you mean 'std'?"),
        ("-net nic,model=e100", "unknown -net NIC model 'e100'; did you mean 'e1000'?"),
        ("-net nic,model=foo", "unknown -net NIC model 'foo'; there is ne2k_pci, i82551, i82557b, "
         "i82559er, rtl8139, e1000, pcnet, virtio"),
        ("-net nic,mdoel=e1000", "unknown -net nic key 'mdoel'; did you mean 'model'?"),
        ("-net tpa", "unknown -net type 'tpa'; did you mean 'tap'?"),
        ("-net nic,model=virtio -net tap,queues=2",
         "-net: a multiqueue tap cannot be used with the hub of -net; use -netdev"),
        ("-netdev tpa,id=a", "unknown -netdev back end 'tpa'; did you mean 'tap'?"),
        ("-netdev tap", "-netdev: tap has no id=; a NIC needs it for its netdev="),
        ("-netdev tap,id=7up", "-netdev: id=7up: expects a letter, then letters, digits, '-', '.', '_'"),
        ("-netdev tap,id=a,vhots=on", "unknown -netdev tap key 'vhots'; did you mean 'vhost'?"),
        ("-netdev tap,id=a,vhost=maybe", "-netdev: vhost=maybe: expects 'on' or 'off'"),
        ("-netdev tap,id=a,queues=0", "-netdev: queues=0: expects a number from 1 to 1024"),
        ("-netdev tap,id=a,fd=3,ifname=t", "-netdev: ifname= is invalid with fd="),
        ("-netdev tap,=on,id=a",
         "-netdev: 'tap,=on,id=a' has a part without a key; expects key=value,key=value"),
        ("-netdev vhost-user,id=a,chardev=c",
         "-netdev: there is no chardev 'c'; it takes a -chardev socket with id=c"),
        ("-chardev socket,id=c0,path=s -netdev vhost-user,id=a,chardev=co",
         "unknown -netdev chardev 'co'; did you mean 'c0'?"),
        ("-nic hubport", "unknown -nic back end 'hubport'; there is user, tap, bridge, socket, stream, "
         "dgram, vde, l2tpv3, netmap, af-xdp, vhost-user, vhost-vdpa, passt, none"),
        ("-netdev tap,id=a -netdev user,id=a", "-netdev: duplicate id 'a'; the first is in f.sh:1"),
        ("-nic tap,modle=virtio", "unknown -nic tap key 'modle'; did you mean 'model'?"),
        ("-nic model=virtio",
         "-nic: has no type; there is af-xdp, bridge, dgram, l2tpv3, netmap, none, passt, "
         "socket, stream, tap, user, vde, vhost-user, vhost-vdpa"),
        ("-device virtio-net-pci,netdev=n", "-device: there is no netdev 'n'; it takes a -netdev with id=n"),
        (f"{V} -device e1000,netdev=net0",
         "-device: the netdev 'net0' is in use by virtio-net-pci; a netdev serves one NIC"),
        ("-netdev tap,id=net0 -device virtio-net-pci,netdev=nte0",
         "unknown -device virtio-net-pci netdev 'nte0'; did you mean 'net0'?"),
        (f"{V},event_idx=maybe", "-device: event_idx=maybe: expects 'on' or 'off'"),
        (f"{V},evnt_idx=on", "unknown -device virtio-net-pci key 'evnt_idx'; did you mean 'event_idx'?"),
        (f"{V},rx_queue_size=300", "-device: rx_queue_size=300: expects a power of 2 from 256 to 1024"),
        (f"{V},tx_queue_size=512",
         "-device: tx_queue_size=512: expects 256 with the back end tap; more takes vhost-user "
         "or vhost-vdpa"),
        (f"{V},mac=hello", "-device: mac=hello: expects six bytes in hexadecimal, as in 52:54:00:12:34:56"),
        ("-device virtio-nett-pci",
         "unknown -device model 'virtio-nett-pci'; did you mean 'virtio-net-pci'?"),
        ("-device virtio-rng-pci,addr=99",
         "-device: addr=99: expects slot or slot.function in hexadecimal, 0 to 1f and 0 to 7"),
        ("-device virtio-rng-pci,addr=5 -device virtio-net-pci,addr=0x5",
         "-device: slot 05 function 0 is in use by virtio-rng-pci, so virtio-net-pci cannot have it; "
         "the next free one is addr=04"),
        ("-device virtio-rng-pci,bus=pci.9",
         "unknown -device virtio-rng-pci bus 'pci.9'; did you mean 'pci.0'?"),
        ("-device virtio-rng-pci,id=a -device virtio-rng-pci,id=a",
         "-device: duplicate id 'a'; the first is in f.sh:1"),
        ("-device '{]'", "-device: this is no JSON (Expecting property name enclosed in double quotes: "
         "line 1 column 2 (char 1))"),
        ("-drive file=a,if=floppyy", "unknown -drive interface 'floppyy'; did you mean 'floppy'?"),
        ("-drive file=a,if=scsi", "-drive: the machine pc does not support if=scsi; use -device "
         "virtio-scsi-pci, -drive if=none,id=... and -device scsi-hd,drive=..."),
        ("-drive a.img", "-drive: 'a.img' has no key; did you mean file=a.img?"),
        ("-drive fiel=a", "unknown -drive key 'fiel'; did you mean 'file'?"),
        ("-drive file=a,format=qcow3", "unknown -drive format 'qcow3'; did you mean 'qcow'?"),
        ("-drive file=a,media=dsik", "unknown -drive media 'dsik'; did you mean 'disk'?"),
        ("-drive file=a,cache=noen", "unknown -drive cache 'noen'; did you mean 'none'?"),
        ("-drive if=virtio", "-drive: a drive with if=virtio needs its image; it lacks file="),
        ("-drive file=a,addr=3", "-drive: addr= is for if=virtio, and this drive is if=ide"),
        ("-hda a -drive file=b,index=0",
         "-drive: there is a drive with if=ide, bus=0, unit=0 already (f.sh:1); give each its index="),
        ("-drive file=a,index=9", "-drive: the machine pc has room for 4 ide drives, not for bus=4, unit=1; "
         "if=virtio has room for more"),
        ("-drive file=a,id=d -device virtio-blk-pci,drive=d",
         "-device: the drive 'd' is in use already (if=ide); does its -drive lack if=none?"),
        ("-device virtio-blk-pci,drive=d", "-device: there is no drive 'd'; it takes a -drive if=none,id=d"),
        ("-device virtio-blk-pci",
         "-device: virtio-blk-pci has no drive=; it takes the id of a -drive if=none"),
        ("-drive file=a,if=none,id=d -device scsi-hd,drive=d", "-device: there is no SCSI bus for scsi-hd; "
         "a controller such as -device virtio-scsi-pci must stand before it"),
        ("-balloon virtoi", "unknown -balloon type 'virtoi'; did you mean 'virtio'?"),
        ("-watchdog foo", "unknown -watchdog model 'foo'; there is i6300esb, ib700"),
        ("-global foo", "-global: 'foo': expects driver.property=value"),
    ],
)  # fmt: skip
def test_what_qemu_would_refuse(line: str, expected: str) -> None:
    assert message(f"kvm {line}") == f"f.sh:1: {expected}"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("-net nic,model=?", ["ne2k_pci", "i82551", "e1000", "pcnet", "virtio"]),
        ("-net nic,model=help", ["rtl8139", "virtio"]),
        ("-device help", ["e1000", "virtio-net-pci", "virtio-blk-pci"]),
        ("-device ?", ["vmxnet3"]),
        ("-device virtio-net-pci,help", ["event_idx", "tx_queue_size"]),
        ("-netdev help", ["tap", "user", "vhost-user"]),
        ("-nic tap,model=help", ["e1000e"]),
        ("-machine help", ["pc", "q35"]),
        ("-cpu help", []),
        ("-version", []),
    ],
)
def test_options_that_list_build_nothing(line: str, names: list[str]) -> None:
    text = message(f"kvm {line}")
    assert "builds no machine" in text
    for name in names:
        assert name in text


def test_a_transitional_variant_is_not_in_the_way_of_the_list() -> None:
    assert "non-transitional" not in message("kvm -device help")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f.sh: there is no QEMU command in it (kvm, qemu-kvm or qemu-system-x86_64 ...)"),
        ("# kvm\nls -l\n", "f.sh: there is no QEMU command in it (kvm, qemu-kvm or qemu-system-x86_64 ...)"),
        ("kvm\n\nkvm", "f.sh:3: a second QEMU command (the first is in line 1); one file holds one machine"),
        ("kvm; kvm", "f.sh:1: a second QEMU command (the first is in line 1); one file holds one machine"),
        ("if true; then kvm; fi", "f.sh:1: iosim reads one QEMU command, not a shell program ('if')"),
        ("kvm \\\n -net 'nic\n", "f.sh:2: this quote (') is not closed"),
        ('kvm \\\n -net "nic\n', 'f.sh:2: this quote (") is not closed'),
        ("kvm -hda $(pwd", "f.sh:1: this $( is not closed"),
        ("kvm <<EOF", "f.sh:1: iosim reads a command, not a here-document (<<)"),
        ("kvm -m 1 \\\n -net nic\n -net tap", "f.sh:3: '-net' begins a command of its own; "
         "does the line before it lack its '\\'?"),
        ("kvm -m 1 \\ \n -net nic", "f.sh:1: blanks follow the '\\' at the end of this line, "
         "so the command ends here"),
        ("qemu-system-aarch64 -M virt", "f.sh:1: iosim knows the x86 machines pc and q35, not those of "
         "qemu-system-aarch64; there is qemu-system-x86_64"),
        ("kvm \\\n\\\n  -m 7x", "f.sh:3: -m: '7x': expects a size such as 2048 (MiB) or 2G"),
    ],
)  # fmt: skip
def test_texts_that_are_no_command(text: str, expected: str) -> None:
    assert message(text) == expected


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "disk.img"
    binary.write_bytes(b"QFI\xfb\x00\x00")
    zeros = tmp_path / "zeros"
    zeros.write_bytes(b"kvm\x00")
    long = tmp_path / "long"
    long.write_bytes(b"#" * (1 << 20) + b"\nkvm")
    for path, part in [
        (tmp_path / "missing.sh", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (binary, "is not a text file; it should hold a QEMU command line"),
        (zeros, "is not a text file; it should hold a QEMU command line"),
        (long, "is too long for a QEMU command line (over 1 MiB)"),
    ]:
        with pytest.raises(IosimError) as caught:
            read_file(path)
        assert str(caught.value) == f"{path}: {part}"
