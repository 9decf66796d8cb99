"""What is loaded before there is anything to simulate: facts about ``sys.modules``, no clocks.

How long it takes is measured by benchmarks/first_use.py.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import iosim

# Compilers, figures, tables: seconds to load, and nothing to do with a question that is answered in one line.
HEAVY = {"numba", "llvmlite", "matplotlib", "pandas", "pyarrow", "IPython", "dask"}
# What a simulation needs, and a help text does not.
SIMULATION = {"numpy", "scipy", "simpy", "pydantic"}

PROBE = """
import sys
before = set(sys.modules)
{statement}
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}), file=sys.stderr)
"""


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)


def command(*arguments: str) -> str:
    return f"from iosim.cli import main\nmain({list(arguments)!r})"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "says", "not_loaded"),
    [
        ("import iosim", "", HEAVY | SIMULATION | {"click", "rich"}),
        (command("--help"), "compare", HEAVY | SIMULATION | {"rich"}),
        (command("compare", "--help"), "--workload", HEAVY | SIMULATION | {"rich"}),
        (command("--version"), iosim.__version__, HEAVY | SIMULATION | {"rich"}),
        (command("workloads"), "rr ", HEAVY | SIMULATION | {"rich"}),
        # The models are modules with settings and rings, but none of them knows an engine.
        (command("models"), "vhost-net", HEAVY | {"scipy", "simpy", "rich"}),
        (command("hosts"), "composite", HEAVY | {"simpy"}),
        ('import iosim\niosim.simulate("vhost-net", requests=10)', "", HEAVY),
    ],
    ids=["import", "help", "compare help", "version", "workloads", "models", "hosts", "simulate"],
)
def test_what_is_loaded(statement: str, says: str, not_loaded: set[str]) -> None:
    done = python(PROBE.format(statement=statement))
    loaded = set(done.stderr.split())
    assert says in done.stdout
    assert "iosim" in loaded, "the probe sees nothing"
    assert not loaded & not_loaded


def test_public_names_are_the_same_for_type_checkers_and_at_run_time() -> None:
    tree = ast.parse(Path(iosim.__file__).read_text())
    seen_by_checkers = {
        alias.name: node.module
        for guard in tree.body
        if isinstance(guard, ast.If)
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert vars(iosim)["_HOMES"] == seen_by_checkers
    assert {*seen_by_checkers, "__version__"} == set(iosim.__all__)
    for name, module in seen_by_checkers.items():
        assert module is not None
        assert getattr(iosim, name) is getattr(sys.modules[module], name)
    assert set(iosim.__all__) <= set(dir(iosim))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'iosim' has no attribute 'simulat'"):
        iosim.simulat  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "import iosim",
        "import iosim.sweep, iosim.compare",
        "from iosim.sweep import Sweep; from iosim.compare import Comparison; import iosim",
        "from iosim import sweep, compare; import iosim",
        "import iosim.plot_sweep, iosim.show",
        "import iosim.cli; import iosim; iosim.install",
    ],
)
def test_compare_and_sweep_are_functions_whatever_was_imported_first(statement: str) -> None:
    """They are called as the modules that they stand in, and the import of a module puts it into its package."""
    python(
        f"{statement}\n"
        "from types import FunctionType\n"
        "from iosim import compare, sweep\n"
        "assert type(compare) is type(iosim.compare) is FunctionType, compare\n"
        "assert type(sweep) is type(iosim.sweep) is FunctionType, sweep\n"
        "from iosim.sweep import Sweep\n"
        "assert type(iosim.sweep) is FunctionType\n"
    )


@pytest.mark.slow
def test_a_cold_compilation_is_announced_and_a_warm_one_is_not(tmp_path: Path) -> None:
    """One line on stderr the first time a path is compiled; the second time its code is found on disk."""
    pytest.importorskip("llvmlite")
    command = [sys.executable, "-m", "iosim", "run", "vhost-net", "-n", "100", "--engine", "compiled"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    said = [subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(2)]
    assert said[0].stderr == "iosim: compiling this path (once)\n"
    assert said[1].stderr == ""
    assert said[0].stdout == said[1].stdout


@pytest.mark.slow
def test_without_the_extra_a_long_run_says_once_what_would_make_it_faster(tmp_path: Path) -> None:
    """llvmlite hidden: `auto` runs on SimPy, says so once, and the document is the same but for the engine."""
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'llvmlite' else find(name, *a)\n"
        "from iosim.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "compare", "prodcons", "prodcons", "-n", "5000", "--workers", "1"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stderr.count("pip install 'iosim[fast]'") == 1
    command = [sys.executable, "-c", code, "run", "prodcons", "-n", "100", "--engine", "compiled"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "iosim: run.engine: the compiled engine needs llvmlite: pip install 'iosim[fast]'\n"
