"""The table of clauses names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "clauses.md"
NAMED = re.findall(r"`(test_\w+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))


def defined(file: str) -> set[str]:
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return names | {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
                    if isinstance(target, ast.Name)}  # fmt: skip


def test_every_test_that_the_page_names_exists() -> None:
    assert len(NAMED) > 50
    for file, test in NAMED:
        assert test in defined(file), f"{file}::{test}"


def test_every_row_names_a_clause_and_a_test() -> None:
    rows = [line.strip("|").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    rows = [row for row in rows if "---" not in row[0] and row[-1].strip() != "tests"]
    assert len(rows) > 30
    for clause, _, tests in rows:
        assert "test_" in tests or "the same two" in tests, clause
