"""What the page on proofs says is what the tests hold."""

from __future__ import annotations

import re
from pathlib import Path

from interleavings import TSO_KICK
from mutants import MUTANTS
from programs import Case, check, fences, ring_functions
from test_interleavings import NEEDED, SMALL

PAGE = (Path(__file__).parents[2] / "docs" / "background" / "ring-proofs.md").read_text(encoding="utf-8")


def test_the_table_of_fences() -> None:
    rows = re.findall(r"^\| `(\w+\.[^`]+)` \| [^|]+ \| ([^|]*)\| ([^|]*)\|$", PAGE, re.MULTILINE)
    kinds = {("lost wake-up", "lost wake-up"): "tso", ("", "lost data"): "weak", ("", "nothing"): None}
    assert {name: kinds[tso.strip(), weak.strip()] for name, tso, weak in rows} == NEEDED


def test_the_figures() -> None:
    assert {int(number) for number in re.findall(r"(?:lists|All) (\d+)", PAGE)} == {len(MUTANTS)}
    assert f"The small cases, {len(SMALL)} of them" in PAGE


def test_the_finding() -> None:
    (missing,) = [one for one in fences() if str(one) == "split_driver.kick_prepare"]
    found = check(TSO_KICK, Case(one_way=True), functions=ring_functions(missing), shortest=True)
    (shown,) = re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)
    assert "\n".join(found.trace).endswith("\n" + shown)
