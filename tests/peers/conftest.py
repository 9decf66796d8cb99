"""What the peer tests have verified, counted, and shown at the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from guest import GuestRun
from guest_backends import Served

_LINES = pytest.StashKey[list[str]]()
Report = Callable[[Served, GuestRun], None]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Note what a guest and `iosim serve` say of the same run."""

    def note(served: Served, run: GuestRun) -> None:
        lines = request.config.stash.setdefault(_LINES, [])
        lines.append(f"{request.node.name}: {run.seconds:.1f} s; {served.last_line()}")

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show it."""
    lines = config.stash.get(_LINES, [])
    if lines:
        terminalreporter.section("verified with real guests")
        for line in lines:
            terminalreporter.line(line)
