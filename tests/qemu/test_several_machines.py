"""A file with several QEMU commands: guests of one host, if they are alike."""

from __future__ import annotations

from pathlib import Path

import pytest

import iosim
from iosim.qemu import network_paths, parse_all
from iosim.specification import specify

KVM = "qemu-system-x86_64 -enable-kvm -smp 2 -netdev tap,id=n,ifname=tap{0},vhost=on"
VHOST = KVM + " -device virtio-net-pci,netdev=n,mac=52:54:00:00:00:0{0}{1} -daemonize"


def test_commands_that_are_alike_are_so_many_guests() -> None:
    script = "modprobe vhost_net\n" + "\n".join(VHOST.format(i, "") for i in range(3))
    machines = parse_all(script, "f.sh")
    assert [machine.nics[0].properties["mac"][-1] for machine in machines] == ["0", "1", "2"]
    path = network_paths(machines)
    assert (path.model, path.settings["guest.vms"], path.notes) == ("vhost-net", 3, [])
    spec = specify(path.model, settings=path.settings)
    assert (spec.vms, spec.workload.flows) == (3, 3)


def test_one_command_is_one_guest() -> None:
    assert "guest.vms" not in network_paths(parse_all(VHOST.format(0, ""), "f.sh")).settings


def test_in_the_background_or_one_after_the_other() -> None:
    one = "kvm -net nic,macaddr=52:54:00:00:00:01 -net tap"
    path = network_paths(parse_all(f"{one} &\nkvm -net nic -net tap &", "f.sh"))
    assert (path.model, path.settings["guest.vms"]) == ("e1000", 2)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (VHOST.format(1, ",rx_queue_size=512"),
         "f.sh:2: device.rx_queue_size is 512 for this machine, and not given for the first in the file; guests on one "
         "host are simulated if they are alike"),
        (KVM.format(1).replace(",vhost=on", "") + " -device virtio-net-pci,netdev=n",
         "f.sh:2: this machine asks for virtio-net, the first in the file for vhost-net; guests on one host are "
         "simulated if they are alike"),
    ],
)  # fmt: skip
def test_others_are_refused_with_the_line_and_what_differs(second: str, expected: str) -> None:
    with pytest.raises(iosim.IosimError) as caught:
        network_paths(parse_all(f"{VHOST.format(0, '')}\n{second}", "f.sh"))
    assert str(caught.value) == expected


@pytest.mark.parametrize(("mac", "default"), [("52:54:00:12:34:56", ", QEMU's default"), ("52:54:00:0A:00:01", "")])
def test_two_nics_with_one_address_are_remarked(mac: str, default: str) -> None:
    line = "kvm -netdev tap,id=n -device virtio-net-pci,netdev=n" + ("" if default else f",mac={mac}")
    (note,) = [n for n in network_paths(parse_all(f"{line}\n{line}", "f.sh")).notes if "address" in n]
    assert note == f"f.sh:2: two guests have the address {mac.lower()}{default}; on a bridge give each its own mac="


def test_from_guest_to_guest_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "two.sh").write_text("\n".join(VHOST.format(i, "") for i in range(2)))
    found = iosim.compare(str(tmp_path / "two.sh"), "vhost-net", requests=50, settings={"workload.peer": "guest"})
    assert found.results[0].threads == ["vm0-vcpu0", "vm1-vcpu0", "vm0-vhost", "vm1-vhost"]
    assert found.results[0].latency_ps.tolist() == found.results[1].latency_ps.tolist()


def test_models_with_one_guest_say_so(tmp_path: Path) -> None:
    line = "kvm -nic none -device vfio-pci,host=01:00.0"
    (tmp_path / "two.sh").write_text(f"{line}\n{line}")
    with pytest.raises(iosim.IosimError, match=r"guest\.vms: vfio plays one guest"):
        iosim.compare(str(tmp_path / "two.sh"), requests=50)
