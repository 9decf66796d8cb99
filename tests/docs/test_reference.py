"""The reference is complete: every setting, every field of the JSON, every dependency, every room; and no other."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pages import DOCS, PAGES, ROOT, first_cells, section
from tables import MARKED, TABLES, renewed

import iosim
from iosim import model as registry
from iosim.engine import simpy_engine
from iosim.specification import valid_keys

REFERENCE = DOCS / "reference"
MACHINES = ROOT / "models" / "machines"

# -- tables made from the code ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [p for p in PAGES if MARKED.search(p.read_text())], ids=lambda p: p.name)
def test_tables_are_those_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == renewed(text), "write it anew: python tests/docs/tables.py"


def test_every_table_has_its_place() -> None:
    marked = [m["name"] for page in PAGES for m in MARKED.finditer(page.read_text(encoding="utf-8"))]
    assert sorted(marked) == sorted(TABLES)


def test_every_setting_of_every_model_is_documented() -> None:
    valid = {key for name in registry.names() for key in valid_keys(registry.find(name))}
    documented = [cell for cell in first_cells(REFERENCE / "settings.md") if "." in cell]
    assert set(documented) == valid


# -- JSON -------------------------------------------------------------------------------------------------------

ESTIMATE = {"value", "low", "high", "confidence"}
NAMED = {"settings": "<setting>", "breakdown_ns": "<stage>"}
"""Maps whose keys are names of the run's own."""
NAMED |= dict.fromkeys(("cpu_busy", "cpu_polling", "cpu_by_process", "lock_wait"), "<thread>")
NAMED |= {"<thread>": "<process>"}


def fields(value: Any, path: str = "") -> dict[str, str]:
    """The fields of a document, and the type of each."""
    if isinstance(value, dict) and set(value) == ESTIMATE:
        return {path: "estimate"}
    if isinstance(value, dict):
        found: dict[str, str] = {}
        for key, item in value.items():
            parent = path.rpartition(".")[2]
            name = f"{path}.{NAMED.get(parent, key)}" if path else key
            found |= {name: "value"} if parent == "settings" else fields(item, name)
        return found
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {p: t for item in value for p, t in fields(item, f"{path}[]").items()}
    kinds = {str: "text", int: "integer", float: "number", list: "list of text"}
    return {path: kinds[type(value)]}


def documented(title: str) -> dict[str, str]:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", section(REFERENCE / "json.md", title), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return dict(rows)


def test_the_fields_of_a_run_are_documented() -> None:
    result = iosim.simulate("e1000", requests=100)
    assert fields(result.to_dict()) == documented("A run")


def test_the_fields_of_a_comparison_are_documented() -> None:
    files = [str(MACHINES / f"{name}.sh") for name in ("full-emulation", "vhost-net")]
    found = fields(iosim.compare(*files, requests=100, workers=1).to_dict())
    run = {f"runs[].{name}": kind for name, kind in documented("A run").items()}
    assert found == run | documented("A comparison")


def test_stages_have_the_documented_layers_and_kinds() -> None:
    page = (REFERENCE / "json.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `breakdown_ns.<stage>.(layer|kind)`(.*)$", page, re.MULTILINE)
    allowed = {name: set(re.findall(r"`([^`]+)`", rest)) for name, rest in rows}
    for model in ("e1000", "virtio-net", "vhost-net"):
        for stage in iosim.simulate(model, requests=20).breakdown():
            assert stage.layer in allowed["layer"]
            assert stage.kind in allowed["kind"]


def test_settings_in_a_document_are_documented() -> None:
    known = set(first_cells(REFERENCE / "settings.md"))
    for model in ("e1000", "virtio-net", "vhost-net", "prodcons"):
        document = iosim.simulate(model, requests=20).to_dict()
        assert set(document["settings"]) <= known


# -- dependencies -----------------------------------------------------------------------------------------------


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = {
        "To run": project["project"]["dependencies"],
        **{f"`{name}`": packages for name, packages in project["project"]["optional-dependencies"].items()},
        "To build": project["build-system"]["requires"],
    }
    page = REFERENCE / "dependencies.md"
    titles = re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [title.split(":")[0] for title in titles] == list(groups)
    for title, packages in zip(titles, groups.values(), strict=True):
        explained = re.findall(r"^- `([\w-]+)`: \S.*\.$", section(page, title), re.MULTILINE)
        named = [re.split(r"[<>=!~\[; ]", package)[0] for package in packages]
        assert sorted(explained) == sorted(named)


# -- architecture and engine ------------------------------------------------------------------------------------


def test_the_rooms_on_the_page_are_those_that_are_enforced() -> None:
    path = ROOT / "tests" / "architecture" / "test_rooms.py"
    spec = importlib.util.spec_from_file_location("rooms", path)
    assert spec is not None
    assert spec.loader is not None
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    text = section(DOCS / "architecture.md", "The rooms of `iosim/`")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == rooms.ROOMS
    exceptions = re.findall(r"`(\w+)` → `(\w+)`", (DOCS / "architecture.md").read_text(encoding="utf-8"))
    assert set(exceptions) == rooms.LAZY


def test_the_order_of_simultaneous_events_stands_there_word_for_word() -> None:
    assert simpy_engine.__doc__ is not None
    rules = re.findall(r"^\d\. .*?(?=^\d\. |\Z)", simpy_engine.__doc__, re.DOTALL | re.MULTILINE)
    assert len(rules) == 4
    page = " ".join((DOCS / "background" / "engine.md").read_text(encoding="utf-8").split())
    for rule in rules:
        assert " ".join(rule.split()) in page
