"""iosim: what does a virtualized I/O path cost, where does the time go, and what would change it?

Example:
    >>> import iosim
    >>> result = iosim.simulate("vhost-net", workload="rr", requests=100)
    >>> result.per_request("userspace_exits").value
    0.0
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from iosim.version import __version__

__all__ = [
    "Comparison",
    "Installed",
    "IosimError",
    "Result",
    "Sweep",
    "__version__",
    "compare",
    "install",
    "simulate",
    "sweep",
]

# `import iosim` stands at the start of every command, `iosim --help` too, so the public names are imported when they
# are first used (PEP 562): numpy, SimPy and pydantic load with the first simulation, not before. Each name stands here
# twice, for type checkers and for the interpreter; tests/cli/test_first_use.py compares the two.
if TYPE_CHECKING:
    from iosim.compare import Comparison, compare
    from iosim.errors import IosimError
    from iosim.result import Result
    from iosim.run import Installed, install, simulate
    from iosim.sweep import Sweep, sweep
else:
    _HOMES = {
        "Comparison": "iosim.compare",
        "Installed": "iosim.run",
        "IosimError": "iosim.errors",
        "Result": "iosim.result",
        "Sweep": "iosim.sweep",
        "compare": "iosim.compare",
        "install": "iosim.run",
        "simulate": "iosim.run",
        "sweep": "iosim.sweep",
    }

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'iosim' has no attribute '{name}'")
        found = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

    class _Package(ModuleType):
        """The type of this module: `iosim.compare` and `iosim.sweep` are the functions, not the modules they are in.

        Python puts a submodule into its package under its own name once it is imported, over the function.
        """

        def __setattr__(self, name: str, value: object) -> None:
            if not (name in _HOMES and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

    sys.modules[__name__].__class__ = _Package
