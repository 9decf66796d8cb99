"""Write the notebooks (.ipynb, with outputs) from their sources (.py): ``python notebooks/render.py``.

The sources are what is edited; the notebooks are for readers without Jupyter. Rendering twice gives the same file.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("[0-9]*.py"))
COLOURS = 48
"""Colours kept of a figure: enough for bars and text, and a fourth of the size."""
LIMIT_S = 120


def notebook(source: Path) -> Any:
    """Return the notebook of a source, not executed."""
    nb = jupytext.read(source)
    for number, cell in enumerate(nb.cells):
        cell["id"] = f"cell-{number:02}"
    nb["nbformat"], nb["nbformat_minor"] = 4, 5
    return nb


def execute(nb: Any) -> Any:
    """Run all cells in the notebook's own directory; an exception in one ends it."""
    client = NotebookClient(
        nb,
        timeout=LIMIT_S,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
    )
    client.execute()
    nb.metadata["language_info"] = {"name": "python"}
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            _tidy(output)
    return nb


def _tidy(output: Any) -> None:
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = _small(data["image/png"])
    elif "text/html" in data:
        data["text/plain"] = "(a table)"


def _small(png: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    out = io.BytesIO()
    image.quantize(COLOURS).save(out, "png", optimize=True)
    return base64.b64encode(out.getvalue()).decode() + "\n"


def main() -> None:
    """Render every notebook."""
    for source in SOURCES:
        target = source.with_suffix(".ipynb")
        nbformat.write(execute(notebook(source)), target)
        print(f"wrote {target.name}, {target.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
