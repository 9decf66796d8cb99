"""The rooms of the house: imports only go down (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import iosim

ROOT = Path(iosim.__file__).parent
# Lowest first; a room may import itself and those before it. Names without a dot are single modules.
ROOMS = [
    ["version", "errors", "files"],
    ["ring", "virtio"],
    ["vhost_user"],
    ["requests", "fifo", "summary"],
    ["effects", "engine"],
    ["window"],
    ["host"],
    ["guest"],
    ["settings", "workload"],
    ["model"],
    ["models"],
    ["specification"],
    ["statistics"],
    ["kept"],
    ["result"],
    ["run"],
    ["queues"],
    ["workers"],
    ["parallel", "qemu"],
    ["compare"],
    ["serve"],
    ["sweep_values", "sweep_workers", "sweep"],
    ["plot", "plot_sweep", "show", "show_ring", "listing"],
    ["cli", "__main__", "__init__"],
]
RANK = {name: rank for rank, room in enumerate(ROOMS) for name in room}
# Methods that hand over to a figure or a table import it when they are called: `result.plot()` is the public face.
LAZY = {("result", "plot"), ("compare", "plot"), ("compare", "show"), ("sweep", "plot_sweep")}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(tree: ast.Module) -> list[tuple[str, bool]]:
    """The rooms a module imports, and whether at its top level."""
    top = set(map(id, tree.body))
    found = []
    guarded = {
        id(child) for node in tree.body if isinstance(node, ast.If) for child in ast.walk(node)
    }  # TYPE_CHECKING
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "iosim" else [f"iosim.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("iosim.") and id(node) not in guarded:
                found.append((name.split(".")[1], id(node) in top))
    return found


MODULES = sorted(path for path in ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_go_down(path: Path) -> None:
    room = room_of(path)
    assert room in RANK, f"{path} belongs to no room"
    for target, at_top in imports(ast.parse(path.read_text())):
        if target not in RANK:
            continue  # a name of the package itself, as iosim.simulate
        if RANK[target] > RANK[room]:
            assert not at_top, f"{path} imports {target}, a room above"
            assert (room, target) in LAZY, f"{path} imports {target}, a room above"


def test_no_module_imports_a_model_by_name() -> None:
    for path in MODULES:
        if room_of(path) == "models":
            continue
        for target, _ in imports(ast.parse(path.read_text())):
            assert target != "models", f"{path} imports a model; models register by entry point"


@pytest.mark.parametrize("name", ["simpy", "iosim.engine"])
def test_models_know_no_engine(name: str) -> None:
    """A model, and what it is made of, imports neither SimPy nor an engine: only effects and the `System`."""
    for path in MODULES:
        if room_of(path) in ("models", "guest", "host", "workload", "ring", "virtio", "vhost_user"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    allowed = node.module in ("iosim.engine.system", "iosim.engine.distributions")
                    assert allowed or not node.module.startswith(name), f"{path} imports {node.module}"


HOT = ("guest", "models", "workload", "host")


def hot_functions() -> list[tuple[str, ast.FunctionDef]]:
    """Every generator of effects in the rooms that models are made of."""
    found = []
    for path in MODULES:
        if room_of(path) in HOT:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef) and any(
                    isinstance(inner, (ast.Yield, ast.YieldFrom)) for inner in ast.walk(node)
                ):
                    found.append((f"{path.relative_to(ROOT)}:{node.name}", node))
    return found


@pytest.mark.parametrize(("name", "function"), hot_functions(), ids=[name for name, _ in hot_functions()])
def test_processes_keep_to_what_can_be_compiled(name: str, function: ast.FunctionDef) -> None:
    """No walrus, string, dictionary, closure, try or with; one return, at the end; `yield from` alone or assigned."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    returns = []
    for statement in body:
        for node in ast.walk(statement):
            forbidden = (ast.NamedExpr, ast.Dict, ast.DictComp, ast.Lambda, ast.Try, ast.With, ast.JoinedStr)
            assert not isinstance(node, forbidden), f"{name}: {ast.dump(node)[:80]}"
            assert not isinstance(node, (ast.FunctionDef, ast.ClassDef)), f"{name}: closure"
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, str)), f"{name}: string"
            if isinstance(node, ast.Return):
                returns.append(node)
    assert len(returns) <= 1
    assert not returns or body[-1] is returns[0], f"{name}: a return that is not at the end"
    allowed = {
        id(node.value)
        for node in ast.walk(function)
        if isinstance(node, (ast.Expr, ast.Assign)) and isinstance(node.value, (ast.YieldFrom, ast.Yield))
    }
    for node in ast.walk(function):
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            assert id(node) in allowed, f"{name}: a yield inside an expression"
