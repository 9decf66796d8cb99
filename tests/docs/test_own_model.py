"""The model of docs/guides/models.md, registered by its entry point as a package of one's own would be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import DOCS, blocks, commands

PAGE = DOCS / "guides" / "models.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The page's package as pip leaves it: the module, and the entry point in the distribution's metadata."""
    files = {block.file: block.body for block in blocks(PAGE) if block.file}
    (tmp_path / "doorbell.py").write_text(files["doorbell.py"], encoding="utf-8")
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
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_page_s_commands_know_the_model(package: Path) -> None:
    for command in commands(PAGE):
        fewer = ["--requests", "100"] if command[0] in ("run", "compare") else []
        done = iosim(package, *command, *fewer)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert "doorbell" in done.stdout or command[0] == "settings"


def test_its_settings_and_stages_reach_the_document(package: Path) -> None:
    done = iosim(package, "run", "doorbell", "--requests", "100", "--set", "device.work=5us", "--json")
    document = json.loads(done.stdout)
    assert document["settings"]["device.work"] == "5us"
    assert document["breakdown_ns"]["back end works"]["mean"]["value"] == 5000
    parts = sum(stage["mean"]["value"] for stage in document["breakdown_ns"].values())
    assert parts == pytest.approx(document["latency_ns"]["mean"]["value"], rel=1e-12)
