"""`iosim ring`: what it prints at 80 and 200 columns, and its JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from iosim import cli

IMAGE = str(Path(__file__).parents[1] / "ring" / "data" / "blk_split_evidx_indirect.json")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    cli.main(arguments)
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "200"])
@pytest.mark.parametrize("packed", [[], ["--packed"]])
def test_nothing_is_cut_off(capsys, monkeypatch, columns, packed) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = run(capsys, "ring", "step", *packed, "add out 64 in 512; kick; pop; push 512; interrupt; get")
    assert max(map(len, out.splitlines())) <= int(columns)
    assert "…" not in out
    for name in ("last_avail_idx", "used_idx", "signalled_used", "inuse", "kick", "interrupt"):
        assert name in out


def test_each_step_says_why(capsys) -> None:
    out = run(capsys, "ring", "step", "-q", "add out 8; kick; add out 8; kick")
    assert "kick: yes: the avail index went from 0 to 1, past avail_event 0" in out
    assert "kick: no: the avail index went from 1 to 2, not past avail_event 0" in out


def test_steps_come_from_stdin_too(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("add out 8  # a comment\n\nkick; pop\nquit\nadd out 8\n"))
    out = run(capsys, "ring", "step", "-q")
    assert [line.partition(":")[0] for line in out.splitlines()[:3]] == ["add", "kick", "pop"]
    assert out.count("add:") == 1


def test_a_broken_ring_is_shown_and_is_no_failure_of_the_command(capsys) -> None:
    out = run(capsys, "ring", "step", "-q", "add out 8; poke desc[0].next 0; poke desc[0].flags 1; pop")
    assert "pop: DescriptorLoopError" in out


def test_an_image_is_decoded(capsys) -> None:
    out = run(capsys, "ring", "decode", IMAGE, "--snapshot", "1")
    assert "taken by the device" in out
    assert "inuse=8" in out
    documents = json.loads(run(capsys, "ring", "decode", IMAGE, "--json"))
    assert [len(document["in_flight"]) for document in documents] == [0, 8]


def test_a_simulated_ring_is_shown_at_a_moment(capsys) -> None:
    document = json.loads(run(capsys, "ring", "show", "vhost-net", "--at", "0.5ms", "--json"))
    assert list(document) == ["rx", "tx"]
    rx = document["rx"]
    # Receive buffers that were used are given back by the batch: the driver refills when few are left.
    assert len(rx["in_flight"]) == 256 - rx["driver"]["num_free"]
    assert run(capsys, "ring", "show", "vhost-net", "--at", "0.5ms").count("descriptors, split") == 2


def test_every_step_is_listed(capsys) -> None:
    out = run(capsys, "ring", "steps")
    assert len(out.splitlines()) == 12
