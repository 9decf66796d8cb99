"""The notebooks are in step with their sources, small, and run; what they show is what comes out today."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
import render

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SOURCES = render.SOURCES
AGAIN = "render it anew: python notebooks/render.py"
MOST_BYTES = 400_000


def stored(source: Path) -> Any:
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def cells(nb: Any) -> list[tuple[str, str, dict[str, Any]]]:
    return [(cell["cell_type"], cell["source"], dict(cell["metadata"])) for cell in nb.cells]


def texts(nb: Any) -> list[str]:
    """What the cells print, and the tables they show; the bytes of a figure depend on fonts and are left out."""
    shown = []
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", output
            if output["output_type"] == "stream" and output["name"] == "stdout":
                shown.append(output["text"])
            elif "text/html" in output.get("data", {}):
                shown.append(output["data"]["text/html"])
    return shown


def figures(nb: Any) -> int:
    return sum("image/png" in output.get("data", {}) for cell in nb.cells for output in cell.get("outputs", []))


def test_there_are_notebooks() -> None:
    assert [source.stem for source in SOURCES] == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    assert SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_and_source_are_in_step(source: Path) -> None:
    assert cells(stored(source)) == cells(jupytext.read(source)), AGAIN


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_is_small_and_names_no_place_of_one_machine(source: Path) -> None:
    file = source.with_suffix(".ipynb")
    assert file.stat().st_size < MOST_BYTES
    images_apart = re.sub(r'"image/png": "[^"]*"', "", file.read_text(encoding="utf-8"))
    assert not re.search(r"/(work|tmp|home|root)/|site-packages", images_apart)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_what_is_stored(source: Path) -> None:
    run = render.execute(render.notebook(source))
    assert texts(run) == texts(stored(source)), AGAIN
    assert figures(run) == figures(stored(source)) > 0, AGAIN
