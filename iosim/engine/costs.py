"""What an engine needs to know of costs; what they mean is the host's business."""

from __future__ import annotations

from collections.abc import Sequence

from iosim.engine.distributions import Distribution


class CostTable:
    """What the engine needs to know of costs: a distribution and a rate for each number.

    Args:
        names: The costs' names; they key the random streams.
        distributions: One a cost, in ps.
        rates: Additional ps per byte, in 1/1024 ps, one a cost.
    """

    def __init__(self, names: Sequence[str], distributions: Sequence[Distribution], rates: Sequence[int]) -> None:
        self.names = list(names)
        self.distributions = list(distributions)
        self.rates = list(rates)
