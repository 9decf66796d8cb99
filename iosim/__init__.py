"""iosim: what does a virtualized I/O path cost, where does the time go, and what would change it?

Example:
    >>> import iosim
    >>> result = iosim.simulate("vhost-net", workload="rr", requests=100)
    >>> result.per_request("userspace_exits").value
    0.0
"""

from iosim.compare import Comparison, compare
from iosim.errors import IosimError
from iosim.result import Result
from iosim.run import Installed, install, simulate
from iosim.sweep import Sweep, sweep
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
