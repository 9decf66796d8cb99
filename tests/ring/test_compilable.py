"""The hot path stays within what a compiler of numeric Python takes: numbers, loops, calls, nothing else."""

from __future__ import annotations

import ast
import inspect
from types import FunctionType

import pytest

from iosim.ring import (
    device,
    driver,
    event,
    memory,
    packed_device,
    packed_driver,
    split_device,
    split_driver,
)
from iosim.ring.device_queue import DeviceQueue
from iosim.ring.driver_queue import DriverQueue

COLD = {"read_bytes", "write_bytes", "copy", "allocate", "_check", "extent", "set_regions", "shared_fence"}
MODULES = (event, memory, driver, device, split_driver, split_device, packed_driver, packed_device)
HOT = [
    pytest.param(function, id=f"{module.__name__.rpartition('.')[2]}.{name}")
    for module in MODULES
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
    ast.IfExp,
    ast.Global,
    ast.Nonlocal,
    ast.Yield,
    ast.YieldFrom,
    ast.Starred,
    ast.Match,
)


def test_the_hot_functions_are_found() -> None:
    assert len(HOT) > 90


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
            of_module = isinstance(node.func, ast.Attribute) and inspect.ismodule(
                function.__globals__.get(ast.unparse(node.func.value))
            )
            assert of_module or isinstance(node.func, ast.Name), f"line {node.lineno}: a method is called"


@pytest.mark.parametrize("function", HOT)
def test_hot_functions_have_one_return_type(function: FunctionType) -> None:
    assert inspect.signature(function, eval_str=True).return_annotation in (int, bool, None)


@pytest.mark.parametrize("side", [DriverQueue, DeviceQueue])
@pytest.mark.parametrize("packed", [False, True])
def test_state_objects_hold_numbers_lists_of_numbers_and_memory(side, packed: bool) -> None:
    queue = side(memory.GuestMemory(4096), 4, 0, 64, 128, True, packed, indirect=True, in_order=True)
    assert not hasattr(queue, "__dict__")
    for name in side.__slots__:
        value = getattr(queue, name)
        if isinstance(value, list):
            assert value
            assert all(type(item) is int for item in value)
        else:
            assert type(value) in (int, bool, memory.GuestMemory), name
