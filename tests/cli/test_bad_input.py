"""What people mistype: one line on stderr, exit status 2, no traceback, no file half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from iosim import cli


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        cli.main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    else:
        status = 0
    out, err = capsys.readouterr()
    return status, out, err


FAST = ("--requests", "50")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["compre"], ["unknown command 'compre'", "did you mean 'compare'?"]),
        (["compare"], ["Missing argument"]),
        (["compare", "vhostnet"], ["unknown model 'vhostnet'", "did you mean 'vhost-net'?"]),
        (["compare", "none.sh"], ["none.sh: ", "No such file"]),
        (["run", "e1001"], ["unknown model 'e1001'", "did you mean 'e1000'?"]),
        (["run", "e1000", "--wat"], ["--wat"]),
        (["ring", "stp"], ["unknown command 'stp'", "did you mean 'step'?"]),
        (["ring", "step", "--size", "3", "kick"], ["queue size 3"]),
        (["ring", "step", "--size", "four", "kick"], ["--size: 'four' is no whole number"]),
        (["ring", "step", "kik"], ["unknown step 'kik'", "did you mean 'kick'?"]),
        (["ring", "decode", "none.json"], ["none.json: cannot read"]),
        (["ring", "decode", "none.json", "--size", "4"], ["--size: is about a plain dump; add --base"]),
        (["ring", "decode", "none.bin", "--base", "0"], ["--size, --desc, --avail, --used is missing"]),
        (["ring", "show", "vhost-net", "--at", "soon"], ["--at", "soon"]),
        (["ring", "show", "e1000", "--at", "1us"], ["e1000 has no virtqueues"]),
        (["run", "e1000", "--host", "compost"], ["unknown host 'compost'", "composite"]),
        (["run", "e1000", "--host", "gone.toml"], ["gone.toml: there is no such host file"]),
        (["run", "e1000", "-w", "rrr"], ["workload.name", "did you mean 'rr'?"]),
        (["run", "e1000", "--requests", "0"], ["run.requests: must be at least 1"]),
        (["run", "e1000", "--requests", "-1"], ["run.requests"]),
        (["run", "e1000", "--requests", "nan"], ["run.requests"]),
        (["run", "e1000", "--requests", "1e99"], ["run.requests: must be at most"]),
        (["run", "e1000", "--requests", "many"], ["run.requests", "'many'"]),
        (["run", "e1000", "--requests", "2.5"], ["run.requests", "whole"]),
        (["run", "e1000", "--seed", "-3"], ["run.seed"]),
        (["run", "e1000", "--seed", "x"], ["run.seed"]),
        (["run", "e1000", "--duration", "5"], ["run.duration", "no unit"]),
        (["run", "e1000", "--duration", "0s"], ["run.duration"]),
        (["run", "e1000", "--duration", "5 parsecs"], ["unknown unit 'parsecs'"]),
        (["run", "e1000", "--duration", "9e9s"], ["too long"]),
        (["run", "e1000", "--duration", "1ns", "--set", "run.warmup=1"], ["no request completed", "run.duration"]),
        (["run", "e1000", "--set", "workload.siez=3"], ["did you mean 'workload.size'?"]),
        (["run", "e1000", "--set", "size=3"], ["unknown setting 'size'", "did you mean 'workload.size'?"]),
        (["run", "e1000", "--set", "workload.size"], ["write key=value"]),
        (["run", "e1000", "--set", "workload.size=0"], ["workload.size: must be at least 1"]),
        (["run", "e1000", "--set", "workload.size=1473"], ["workload.size", "1472"]),
        (["run", "e1000", "--set", "workload.depth=-1"], ["workload.depth"]),
        (["run", "e1000", "--set", "workload.depth=100000"], ["workload.depth: must be at most 1024"]),
        (["run", "e1000", "--set", "workload.rate=inf"], ["workload.rate"]),
        (["run", "e1000", "--set", "workload.arrivals=poisson"], ["need a rate"]),
        (["run", "e1000", "--set", "workload.arrivals=gauss"], ["unknown value 'gauss'"]),
        (["run", "e1000", "--set", "workload.rate=5", "--set", "workload.arrivals=closed"], ["closed loop"]),
        (["run", "e1000", "--set", "workload.rate=5", "--set", "workload.depth=3"], ["open loop has no depth"]),
        (["run", "e1000", "--set", "workload.think_time=5"], ["workload.think_time", "with its unit"]),
        (["run", "e1000", "--set", "host.cpus=-1"], ["host.cpus"]),
        (["run", "e1000", "--set", "host.cpus=1000000"], ["host.cpus", "1024"]),
        (["run", "e1000", "--set", "host.tap_queue=0"], ["host.tap_queue"]),
        (["run", "e1000", "--set", "host.wire_rate=10"], ["host.wire_rate"]),
        (["run", "e1000", "--set", "host.wire_rate=10Gbps"], ["host.wire_rate", "unknown unit 'Gbps'"]),
        (["run", "e1000", "--set", "host.costs.vmexit=1us"], ["did you mean 'host.costs.vm_exit'?"]),
        (["run", "e1000", "--set", "host.costs.vm_exit=1"], ["host.costs.vm_exit"]),
        (["run", "e1000", "--set", "host.costs.vm_exit=-1us"], ["host.costs.vm_exit"]),
        (["run", "e1000", "--set", "host.costs.vm_exit=3us..1us"], ["runs backwards"]),
        (["run", "e1000", "--set", "host.costs.copy_cold=5/byte"], ["host.costs.copy_cold", "no unit"]),
        (["run", "e1000", "--set", "host.costs.copy_cold=5ns/bite"], ["host.costs.copy_cold", "0.15ns/byte"]),
        (["run", "e1000", "--set", "host.costs.copy_cold=-5ns/byte"], ["host.costs.copy_cold"]),
        (["run", "e1000", "--set", "device.tx_queue_size=256"], ["unknown setting 'device.tx_queue_size'"]),
        (["run", "virtio-net", "--set", "device.tx_queue_size=100"], ["no power of two", "64 and 128"]),
        (["run", "virtio-net", "--set", "device.tx_queue_size=2"], ["device.tx_queue_size", "chain of 19", "32"]),
        (["run", "virtio-net", "--set", "device.rx_queue_size=1"], ["device.rx_queue_size: must be at least 2"]),
        (["run", "virtio-net", "--set", "device.event_idx=perhaps"], ["device.event_idx", "neither on nor off"]),
        (["compare", "e1000", "vhost-net", "--set", "device.nothing=1"], ["unknown setting 'device.nothing'"]),
        (["compare", "e1000", "--workers", "0"], ["--workers"]),
        (["qemu"], ["Missing argument"]),
        (["qemu", "gone.sh"], ["gone.sh"]),
        (["hosts", "nowhere"], ["unknown host 'nowhere'"]),
        (["settings", "e100"], ["did you mean 'e1000'?"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_one_line_and_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]) -> None:
    if arguments[0] in ("run", "compare") and "--requests" not in arguments and "--duration" not in arguments:
        arguments = [*arguments, *FAST]
    status, out, err = run(capsys, *arguments)
    assert status == 2, err
    assert out == ""
    assert err.startswith("iosim: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("kvm -net nic,model=tulip -net tap", "no model of the tulip"),
        ("kvm -net nik -net tap", "'nik'"),
        ("kvm -nett nic", "-nett"),
        ("kvm -m -5 -net nic -net tap", "-m"),
        ("kvm -drive file=a.img,if=floppyy -net nic -net tap", "floppyy"),
        ("kvm a.img", "user"),
        ("ls -l", "no"),
        ("", "no"),
        ("kvm 'unclosed", "quot"),
    ],
)
def test_a_command_line_that_cannot_be_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, part: str
) -> None:
    path = tmp_path / "machine.sh"
    path.write_text(text)
    out = tmp_path / "out"
    status, stdout, err = run(capsys, "compare", str(path), "--out", str(out), *FAST)
    assert (status, stdout) == (2, "")
    assert str(path) in err
    assert part in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["machine.sh"]


def test_no_partial_output_where_it_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    status, _, err = run(capsys, "compare", "vhost-net", "--out", str(blocked / "x"), *FAST)
    assert status == 2
    assert "cannot be written" in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_registered_name_wins_over_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e1000").write_text("kvm -net nic,model=virtio -net tap")
    status, out, _ = run(capsys, "compare", "e1000", "--json", *FAST)
    assert status == 0
    assert '"model": "e1000"' in out


def test_ctrl_c_ends_with_130_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("iosim.run.simulate", interrupted)
    status, out, err = run(capsys, "run", "e1000", "--out", str(tmp_path / "x"), *FAST)
    assert (status, out) == (130, "")
    assert err.count("\n") <= 2
    assert list(tmp_path.iterdir()) == []
