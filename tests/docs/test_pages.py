"""The pages hold: their examples run, their commands work, their links lead somewhere."""

from __future__ import annotations

import doctest
import os
import re
import sys
from pathlib import Path

import pytest
from pages import DOCS, PAGES, ROOT, blocks, commands, links

from iosim.cli import main

FEWER = {"run": ["--requests", "100"], "compare": ["--requests", "100"], "sweep": ["--requests", "100"]}
"""Appended to a command: the last one counts, and the tests need no small intervals."""


def name(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A directory as the reader of a page has it: with the files that the page shows, and the models beside."""
    for block in blocks(request.getfixturevalue("page")):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.body, encoding="utf-8")
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - known:
        if (tmp_path / f"{module}.py").exists():
            del sys.modules[module]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_examples_on_the_page_run(page: Path, room: Path) -> None:
    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert failed == 0
    shown = sum(">>> " in block.body for block in blocks(page))
    assert tried >= shown


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p) and p.name != "models.md"], ids=name)
def test_the_commands_on_the_page_work(page: Path, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(page):
        main([*command, *FEWER.get(command[0], [])])
        out, err = capsys.readouterr()
        assert err == "", f"iosim {' '.join(command)}"
        assert out != "", f"iosim {' '.join(command)}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def test_the_index_leads_to_every_page() -> None:
    index = DOCS / "README.md"
    listed = {os.path.normpath(DOCS / target) for target in links(index)}
    missing = [name(page) for page in PAGES if page != index and str(page) not in listed]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_name_no_place_of_one_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"/(work|tmp|home|root)/", text)
    assert text.endswith("\n")
    assert "\t" not in text
