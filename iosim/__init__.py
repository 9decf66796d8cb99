"""iosim: what does a virtualized I/O path cost, where does the time go, and what would change it?"""

from iosim.version import __version__

__all__ = ["__version__"]
