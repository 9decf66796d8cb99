"""What a page holds: its fenced blocks, its tables, its links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

FENCED = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (?P<name>[\w-]+\.\w+)\n")
LINK = re.compile(r"\[[^\]]+\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block; one that begins with ``# NAME.EXT`` is a file of that name."""

    kind: str
    body: str

    @property
    def file(self) -> str | None:
        match = FILE.match(self.body)
        return match["name"] if match else None


def blocks(page: Path) -> list[Block]:
    return [Block(m["kind"], m["body"]) for m in FENCED.finditer(page.read_text(encoding="utf-8"))]


def commands(page: Path) -> list[list[str]]:
    """The ``iosim`` commands on a page, split into words."""
    lines = [line for b in blocks(page) if b.kind == "sh" for line in b.body.splitlines()]
    return [line.split()[1:] for line in lines if line.startswith("iosim ")]


def links(page: Path) -> list[str]:
    """The targets of a page's links within the project, without their anchors."""
    found = [m["target"] for m in LINK.finditer(FENCED.sub("", page.read_text(encoding="utf-8")))]
    return [target.split("#")[0] for target in found if "://" not in target and not target.startswith("#")]


def first_cells(page: Path) -> list[str]:
    """What stands in backticks at the start of each table row, in order."""
    return re.findall(r"^\| `([^`]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)


def section(page: Path, title: str) -> str:
    """The text under a heading of the second level."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no section '{title}'"
    return found[1]
