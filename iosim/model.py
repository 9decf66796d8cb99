"""What a model is to the rest of iosim, and the registry: models come by entry point, from any package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final

from iosim.errors import IosimError, unknown
from iosim.host.machine import Machine
from iosim.settings import Settings

GROUP: Final = "iosim.models"


@dataclass(frozen=True)
class Model:
    """An I/O path that can be simulated.

    Args:
        name: Its registered name.
        summary: One line for people.
        settings: Its ``device.*`` settings.
        build: Makes the machine room of one run, processes installed in its `System`, from the host, the workload and
            the model's settings.
        workloads: The workloads it can play; the first is its default.
        costs: Costs that its settings define, in ps (a distribution each), by name: none for a path on a host.
        smp: Its guest may have several vCPUs, and its workload several flows: `build` gets the number of vCPUs too,
            and the settings have ``queues``.
        vms: There may be several guests with such a NIC, and flows between them: `build` gets the number of guests as
            ``vms``.
        streams: Its guest can send TCP streams, and so packets larger than a frame.
        receives_streams: It can receive them, too.
    """

    name: str
    summary: str
    settings: type[Settings]
    build: Callable[..., Machine]
    workloads: tuple[str, ...] = ("rr", "tx", "rx")
    costs: Callable[[Any], dict[str, Any]] | None = None
    smp: bool = False
    vms: bool = False
    streams: bool = False
    receives_streams: bool = False


@cache
def _found() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """Return the names of the registered models, in alphabetical order."""
    return sorted(_found())


@cache
def find(name: str) -> Model:
    """Return a registered model.

    Raises:
        IosimError: No such model; or what is registered under the name cannot be loaded or is no model.
    """
    points = _found()
    if name not in points:
        raise unknown("model", name, points)
    try:
        model = points[name].load()
    except (ImportError, AttributeError) as error:
        raise IosimError(f"model '{name}' ({points[name].value}) cannot be loaded: {error}") from None
    if not isinstance(model, Model):
        raise IosimError(f"'{points[name].value}' is registered as model '{name}' but is no iosim.model.Model")
    return model
