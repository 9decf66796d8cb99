"""The models of docs/guides/models.md, registered by entry points as a package of one's own would be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import DOCS, blocks, commands

from iosim.host.costs import new_cost

PAGE = DOCS / "guides" / "models.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The page's package as pip leaves it: the modules, and the entry points in the distribution's metadata."""
    files = {block.file: block.body for block in blocks(PAGE) if block.file}
    for name in ("doorbell.py", "vdpa.py"):
        (tmp_path / name).write_text(files[name], encoding="utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["iosim.models"]
    lines = ["[iosim.models]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def iosim(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iosim", *arguments],
        cwd=package,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.slow
def test_the_page_s_commands_know_the_models(package: Path) -> None:
    for command in commands(PAGE):
        fewer = ["--requests", "100"] if command[0] in ("run", "compare", "sweep") else []
        done = iosim(package, *command, *fewer)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert "doorbell" in done.stdout or "vdpa" in done.stdout or command[0] == "settings"


def test_its_settings_and_stages_reach_the_document(package: Path) -> None:
    done = iosim(package, "run", "doorbell", "--requests", "100", "--set", "device.work=5us", "--json")
    document = json.loads(done.stdout)
    assert document["settings"]["device.work"] == "5us"
    assert document["breakdown_ns"]["back end works"]["mean"]["value"] == 5000
    parts = sum(stage["mean"]["value"] for stage in document["breakdown_ns"].values())
    assert parts == pytest.approx(document["latency_ns"]["mean"]["value"], rel=1e-12)


THREE = ["device.queues=3", "guest.vcpus=2", "device.vectors=0"]


@pytest.mark.slow
@pytest.mark.parametrize(("workload", "settings"), [("rr", THREE), ("tx", []), ("rx", THREE)])
def test_the_network_path_is_the_same_on_both_engines_without_a_gap(
    package: Path, workload: str, settings: list[str]
) -> None:
    pytest.importorskip("llvmlite")
    documents = []
    for engine in ("simpy", "compiled"):
        chosen = [f"--set={setting}" for setting in settings]
        words = ["run", "vdpa", "--workload", workload, "--requests", "300", "--engine", engine, "--json", *chosen]
        done = iosim(package, *words)
        assert (done.returncode, done.stderr) == (0, "")
        documents.append(json.loads(done.stdout))
        assert documents[-1].pop("engine") == engine
    assert documents[0] == documents[1]
    parts = sum(stage["mean"]["value"] for stage in documents[0]["breakdown_ns"].values())
    assert parts == pytest.approx(documents[0]["latency_ns"]["mean"]["value"], rel=1e-9)


def test_a_cost_of_its_own_is_what_the_setting_says(package: Path) -> None:
    """The card is the slowest part of sending when it takes 10 us: so many packets a second, and no more."""
    words = ["run", "vdpa", "--workload", "tx", "--requests", "400", "--set", "device.card=10us", "--json"]
    document = json.loads(iosim(package, *words).stdout)
    assert document["breakdown_ns"]["card reads from the guest"]["mean"]["value"] == 10_000
    assert document["throughput_per_s"]["value"] == pytest.approx(1e5, rel=0.01)


def test_a_cost_s_name_is_one_cost_s() -> None:
    with pytest.raises(ValueError, match="there is a cost 'vm_exit' already: leave the guest"):
        new_cost("vm_exit", "something else")
