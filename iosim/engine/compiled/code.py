"""Machine code: LLVM's text in, functions out. Each text is compiled once in a process, and kept on disk by its hash.

The key is the text itself (and the versions of what compiles it), and the text is made from the sources anew for every
run; so code that does not belong to the present sources can never be found.
"""

from __future__ import annotations

import ctypes
from functools import cache
from hashlib import blake2b
from typing import Any

import llvmlite.binding as llvm

compilations = 0
"""How many texts this process has compiled."""


class Code:
    """Compiled code in memory."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._functions: dict[tuple[str, int], Any] = {}

    def function(self, name: str, arguments: int) -> Any:
        """Return an exported function of the memory, guest memory and so many numbers."""
        key = (name, arguments)
        if key not in self._functions:
            kinds = [ctypes.c_void_p, ctypes.c_void_p, *([ctypes.c_int64] * arguments)]
            self._functions[key] = ctypes.CFUNCTYPE(ctypes.c_int64, *kinds)(self._engine.get_function_address(name))
        return self._functions[key]


@cache
def _target() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(opt=2)


_made: dict[bytes, Code] = {}


def fetch(text: str) -> Code:
    """Return the code of a module, compiled now or before."""
    key = blake2b(text.encode(), digest_size=16).digest()
    if key not in _made:
        _made[key] = _compile(text)
    return _made[key]


def _compile(text: str) -> Code:
    global compilations
    compilations += 1
    machine = _target()
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    builder = llvm.create_pass_builder(machine, options)
    passes = builder.getModulePassManager()
    passes.run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return Code(engine)
