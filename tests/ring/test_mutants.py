"""The tests of the ring notice every mistake in the list (`mutants`), and nothing where there is none."""

from __future__ import annotations

import re

import mutation
import pytest
from mutants import MUTANTS, Mutant


def name(mutant: Mutant) -> str:
    return re.sub(r"\W+", "-", f"{mutant.module}.{mutant.within} {mutant.why}")[:80].strip("-")


@pytest.mark.parametrize("mutant", MUTANTS, ids=name)
def test_every_mutant_still_fits_the_code(mutant: Mutant) -> None:
    source = mutation.mutate(mutant)
    compile(source, "mutant", "exec")
    assert source != (mutation.RING / f"{mutant.module}.py").read_text()


def test_no_two_mutants_are_the_same() -> None:
    assert len({mutation.mutate(mutant) for mutant in MUTANTS}) == len(MUTANTS)
    assert len({name(mutant) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.slow
def test_the_suite_passes_where_nothing_is_wrong() -> None:
    # Whole, and on a machine that may be busy: only for a mutant is it a finding that the suite hangs.
    passed, output = mutation.run(None, timeout=900)
    assert passed, output


def marked(number: int) -> object:
    """One mutant of each function is tried with everything else, the others by ``make test-mutants``."""
    mutant = MUTANTS[number]
    first = next(m for m in MUTANTS if (m.module, m.within) == (mutant.module, mutant.within))
    marks = [pytest.mark.slow] if mutant is first else [pytest.mark.slow, pytest.mark.mutants]
    return pytest.param(number, id=name(mutant), marks=marks)


@pytest.mark.parametrize("number", [marked(number) for number in range(len(MUTANTS))])
def test_the_suite_kills(number: int) -> None:
    passed, output = mutation.run(number)
    assert not passed, f"nobody notices: {MUTANTS[number].why}"
    assert "error" not in output.splitlines()[-1] or "SyntaxError" not in output, output
