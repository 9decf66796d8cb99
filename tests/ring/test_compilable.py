"""The hot path stays within what a compiler of numeric Python takes: numbers, loops, calls, nothing else."""

from __future__ import annotations

import ast
import inspect
from types import FunctionType

import pytest

from iosim.ring import event, memory, split_device, split_driver

COLD = {"read_bytes", "write_bytes", "copy", "allocate", "_check"}
HOT = [
    pytest.param(function, id=f"{module.__name__.rpartition('.')[2]}.{name}")
    for module in (event, memory, split_driver, split_device)
    for name, function in vars(module).items()
    if isinstance(function, FunctionType) and function.__module__ == module.__name__ and name not in COLD
]
FORBIDDEN = (
    ast.NamedExpr,
    ast.Try,
    ast.TryStar,
    ast.Raise,
    ast.With,
    ast.Assert,
    ast.Dict,
    ast.DictComp,
    ast.Set,
    ast.ListComp,
    ast.GeneratorExp,
    ast.JoinedStr,
    ast.Lambda,
    ast.Global,
    ast.Nonlocal,
    ast.Yield,
    ast.YieldFrom,
    ast.Starred,
    ast.Match,
)


def test_the_hot_functions_are_found() -> None:
    assert len(HOT) > 30


@pytest.mark.parametrize("function", HOT)
def test_hot_functions_use_numbers_only(function: FunctionType) -> None:
    tree = ast.parse(inspect.getsource(function)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    body = tree.body[1:] if ast.get_docstring(tree) else tree.body
    for node in (node for statement in body for node in ast.walk(statement)):
        assert not isinstance(node, FORBIDDEN), f"line {node.lineno}: {type(node).__name__}"
        assert not isinstance(node, ast.FunctionDef | ast.ClassDef), f"line {node.lineno}: a closure"
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int), f"line {node.lineno}: {node.value!r}"
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name), f"line {node.lineno}: a method is called"


@pytest.mark.parametrize("function", HOT)
def test_hot_functions_have_one_return_type(function: FunctionType) -> None:
    assert inspect.signature(function, eval_str=True).return_annotation in (int, bool, None)


@pytest.mark.parametrize("side", [split_driver.DriverQueue, split_device.DeviceQueue])
def test_state_objects_hold_numbers_lists_of_numbers_and_memory(side) -> None:
    queue = side(memory.GuestMemory(4096), 4, 0, 64, 128, True)
    assert not hasattr(queue, "__dict__")
    for name in side.__slots__:
        value = getattr(queue, name)
        if isinstance(value, list):
            assert len(value) == 4
            assert all(type(item) is int for item in value)
        else:
            assert type(value) in (int, bool, memory.GuestMemory), name
