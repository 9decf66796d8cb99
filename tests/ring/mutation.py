"""Runs the tests of the ring on ring code with one mistake in it (`mutants`), in a process of its own.

The mistake never touches a file: a pytest plugin (this module) puts a loader in front that changes the source
of one module while it is imported.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

import hypothesis
from mutants import MUTANTS, Mutant

HERE = Path(__file__).parent
RING = HERE.parents[1] / "iosim" / "ring"
VARIABLE = "IOSIM_MUTANT"

#: What runs, in this order, until the first failure; a mutant's own killer goes first.
SUITE = [
    "test_event",
    "test_layout",
    "test_ring_memory",
    "test_small_print",
    "test_pump",
    "test_queue_sides",
    "test_hostile_packed",
    "test_hostile",
    "test_packed_snapshots",
    "test_snapshots",
    "test_interleavings",
    "test_queue_model",
]
#: Of the interleavings the small cases; of the rest all that is not slow.
SELECT = "not test_interleavings or small_case"


def mutate(mutant: Mutant) -> str:
    """Return the module's source with the mistake in it.

    Raises:
        ValueError: The text is not there, or more than once: the mutant must follow the code.
    """
    source = (RING / f"{mutant.module}.py").read_text()
    start, end = 0, len(source)
    if mutant.within:
        functions = list(re.finditer(r"^(?:def|class) (\w+)", source, re.MULTILINE))
        places = [k for k, m in enumerate(functions) if m[1] == mutant.within]
        if len(places) != 1:
            raise ValueError(f"{mutant.module} has no function {mutant.within}")
        start = functions[places[0]].start()
        if places[0] + 1 < len(functions):
            end = functions[places[0] + 1].start()
    # A docstring may quote the code.
    start += _docstring(source[start:end]) if mutant.within else 0
    if (count := source.count(mutant.old, start, end)) != 1:
        raise ValueError(f"{mutant.module}.{mutant.within} has {mutant.old!r} {count} times")
    new = mutant.new
    if mutant.new == "pass":
        new = mutant.old.replace(mutant.old.split("\n")[0], "pass", 1)
    return source[:start] + source[start:end].replace(mutant.old, new) + source[end:]


def _docstring(function: str) -> int:
    first = function.find('"""')
    return function.find('"""', first + 3) + 3 if first >= 0 else 0


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source.encode()

    def path_stats(self, path: Any) -> Any:
        # Without these nothing compiled is read or written.
        raise OSError

    def get_data(self, path: Any) -> bytes:
        return self._source if str(path) == self.path else super().get_data(path)


class _Finder:
    def __init__(self, mutant: Mutant) -> None:
        self.name = f"iosim.ring.{mutant.module}"
        self.path = str(RING / f"{mutant.module}.py")
        self.source = mutate(mutant)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        loader = _Loader(fullname, self.path, self.source)
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


# The first failure will do: it need not be made small, and nothing is to be remembered of it.
hypothesis.settings.register_profile(
    "mutation", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], database=None
)
if number := os.environ.get(VARIABLE):
    hypothesis.settings.load_profile("mutation")
    assert not any(name.startswith("iosim.ring") for name in sys.modules), "too late to change anything"
    sys.meta_path.insert(0, _Finder(MUTANTS[int(number)]))  # type: ignore[arg-type]


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Put the test that is expected to notice before all others."""
    if number := os.environ.get(VARIABLE):
        file, _, test = MUTANTS[int(number)].kills.partition("::")
        items.sort(key=lambda item: not (f"{file}.py::" in item.nodeid and test in item.nodeid))


def run(number: int | None, timeout: float = 120) -> tuple[bool, str]:
    """Run the suite on mutant ``number`` (None: on the code as it is); return whether it passed, and the output.

    A suite that hangs has noticed something, too.
    """
    files = list(SUITE)
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", VARIABLE):
        environment.pop(name, None)
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    if number is not None:
        environment[VARIABLE] = str(number)
        killer = MUTANTS[number].kills.partition("::")[0]
        files.remove(killer)
        files.insert(0, killer)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "mutation"]
    command += ["-k", SELECT, "-m", "not slow", "--tb=line", *(str(HERE / f"{name}.py") for name in files)]
    try:
        done = subprocess.run(
            command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return False, "it hangs"
    assert done.returncode in (0, 1, 2), done.stdout + done.stderr
    return done.returncode == 0, done.stdout + done.stderr
