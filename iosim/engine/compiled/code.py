"""Machine code: LLVM's text in, functions out. A text is compiled once; its object code is kept on disk by its hash.

The key is the text itself, with the versions and the processor that the code is made by and for; and the text is made
anew from the present sources for every run. So code that does not belong to the present sources cannot be found.

Where it is kept: ``$XDG_CACHE_HOME/iosim`` or ``~/.cache/iosim``; nowhere if ``IOSIM_CACHE=off``, or if that directory
cannot be written.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from iosim.errors import IosimError
from iosim.files import write_aside

compilations = 0
"""How many texts this process has compiled; those found on disk do not count."""

announce: Callable[[str], None] | None = None
"""Called with one line before a compilation that takes a while: a user interface may show it."""

_lock = Lock()
_made: dict[str, Code] = {}


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


def fetch(text: str) -> Code:
    """Return the code of a module: made before, found on disk, or compiled now."""
    with _lock:
        key = _key(text)
        if key not in _made:
            _made[key] = _load(text, key)
        return _made[key]


@cache
def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _target() -> Any:
    """A target machine for this processor; each execution engine owns the one it is given."""
    _initialize()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )


def _key(text: str) -> str:
    made_by = f"{llvmlite.__version__} {llvm.llvm_version_info} {llvm.get_host_cpu_name()}"
    return blake2b(f"{made_by}\0{text}".encode(), digest_size=20).hexdigest()


def directory() -> Path | None:
    """Return where object code is kept, or None."""
    if os.environ.get("IOSIM_CACHE", "").lower() in ("off", "0", "no"):
        return None
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "iosim"


def _load(text: str, key: str) -> Code:
    machine = _target()
    place = directory()
    path = None if place is None else place / f"{key}.o"
    found = None
    if path is not None:
        with contextlib.suppress(OSError):
            found = path.read_bytes()
    if found:
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(found))
    else:
        module = _optimized(text, machine)
        engine = llvm.create_mcjit_compiler(module, machine)
        if path is not None:
            engine.set_object_cache(notify_func=lambda _module, code: _keep(path, code))
    engine.finalize_object()
    return Code(engine)


def _optimized(text: str, machine: Any) -> Any:
    global compilations
    compilations += 1
    if announce is not None:
        announce("compiling this path (once)")
    module = llvm.parse_assembly(text)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
    builder.getModulePassManager().run(module, builder)
    return module


def _keep(path: Path, code: bytes) -> None:
    # A cache that cannot be written is no reason to fail: the code is in memory.
    with contextlib.suppress(IosimError, OSError), write_aside(path) as aside:
        Path(aside).write_bytes(code)
