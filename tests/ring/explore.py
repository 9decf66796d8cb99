"""Prints how much there is to explore: ``python tests/ring/explore.py [all]``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from interleavings import SC, TSO, WEAK
from programs import check
from test_interleavings import LARGER, SMALL


def main() -> None:
    total = {"small": (SMALL, (SC, TSO, WEAK))}
    if "all" in sys.argv[1:]:
        total["larger"] = (LARGER, (WEAK,))
    for name, (cases, machines) in total.items():
        for machine in machines:
            states = transitions = executions = 0
            start = time.process_time()
            for case in cases:
                found = check(machine, case, count=name == "small")
                assert found.failure is None, f"{case}: {found}"
                states += found.states
                transitions += found.transitions
                executions += found.executions
            print(
                f"{name}: {len(cases)} cases on {machine.name}: {states} states, {transitions} transitions,"
                f" {executions:.2g} executions, {time.process_time() - start:.1f} s"
            )


if __name__ == "__main__":
    main()
