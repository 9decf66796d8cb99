"""Paths side by side: the same workload on the same host under the same random numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from iosim import model as registry
from iosim import qemu
from iosim.errors import IosimError, nearest, unknown
from iosim.files import write_aside
from iosim.host import hosts
from iosim.host.hosts import Host
from iosim.kept import latency_ratios
from iosim.parallel import Progress, run_all
from iosim.result import Result
from iosim.run import dotted
from iosim.specification import Specification, specify, valid_keys
from iosim.statistics import Estimate, ratio

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

RATIOS: Final = ("latency_mean", "latency_p50", "latency_p90", "latency_p99", "latency_p99_9", "throughput")


@dataclass(frozen=True)
class Asked:
    """One path to compare: a model with settings, and where it was asked for.

    Args:
        label: How it is called in tables: the model's or the file's name.
        source: The file, or the model's name.
        model: The registered model.
        settings: What the command line asks of the device.
        notes: What the command line holds besides, one line each.
        warnings: What looks like a mistake in it.
    """

    label: str
    source: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(repr=False)
class Comparison:
    """Several results, the first of which is the baseline.

    Attributes:
        asked: What was compared, in order.
        results: The results, in the same order.
        warnings: One line each, of all runs and command lines.
    """

    asked: list[Asked]
    results: list[Result]
    warnings: list[str]

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self.labels)}>"

    @property
    def labels(self) -> list[str]:
        """The names of the paths."""
        return [a.label for a in self.asked]

    @cached_property
    def ratios(self) -> list[dict[str, Estimate]]:
        """For each path the ratio of its latencies and throughput to the first path's, with intervals."""
        return [_ratios(result, self.results[0]) for result in self.results]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document: ``runs``, ``baseline``, ``ratios``, ``warnings``."""
        return {
            "runs": [
                {"label": a.label, "source": a.source, **result.to_dict(), "notes": list(a.notes)}
                for a, result in zip(self.asked, self.results, strict=True)
            ],
            "baseline": self.asked[0].label,
            "ratios": [
                {"label": a.label, **{name: e.to_dict() for name, e in ratios.items()}}
                for a, ratios in zip(self.asked, self.ratios, strict=True)
            ],
            "warnings": self.warnings,
        }

    def to_json(self) -> str:
        """Return the document as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @cached_property
    def table(self) -> pa.Table:
        """Every figure of every path as an Arrow table: path, model, metric, unit, value, low, high, confidence."""
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        for a, result, ratios in zip(self.asked, self.results, self.ratios, strict=True):
            for metric, unit, e in _figures(result, ratios):
                rows.append({"path": a.label, "model": a.model, "metric": metric, "unit": unit, **e.to_dict()})
        schema = pa.schema(
            [(name, pa.string()) for name in ("path", "model", "metric", "unit")]
            + [(name, pa.float64()) for name in ("value", "low", "high", "confidence")],
            metadata={"iosim": json.dumps(self.to_dict(), sort_keys=True)},
        )
        return pa.Table.from_pylist(rows, schema=schema)

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write `table` to a Parquet file; the JSON document is in its metadata."""
        import pyarrow.parquet as pq

        with write_aside(path) as aside:
            pq.write_table(self.table, aside)
        return Path(path)

    def plot(self) -> Figure:
        """Draw the breakdown of the latency by stage as stacked bars, the throughput beside it."""
        from iosim.plot import plot_comparison

        return plot_comparison(self)

    def _repr_html_(self) -> str:
        from iosim.show import comparison_html

        return comparison_html(self)


def _ratios(result: Result, base: Result) -> dict[str, Estimate]:
    if result is base:
        return {name: Estimate(1.0, 1.0, 1.0, result.confidence) for name in RATIOS}
    out = latency_ratios(result.kept, base.kept)
    ours, theirs = _rates(result), _rates(base)
    if len(ours) == len(theirs):
        out["throughput"] = ratio(ours, theirs)
    else:
        value = result.throughput.value / base.throughput.value
        out["throughput"] = Estimate(value, None, None, result.confidence)
    return out


def _rates(result: Result) -> Any:
    """The throughput of each batch of the window, requests per ps."""
    completed = np.diff([s.completed for s in result.snapshots])
    elapsed = np.diff([s.time for s in result.snapshots])
    return completed / np.maximum(elapsed, 1)


def _figures(result: Result, ratios: Mapping[str, Estimate]) -> list[tuple[str, str, Estimate]]:
    document = result.to_dict()
    found: list[tuple[str, str, Estimate]] = []
    for name, e in result.latency.items():
        found.append((f"latency.{name}", "ns", e))
    found.append(("throughput", "1/s", result.throughput))
    found.append(("bits_per_s", "bit/s", result.bits_per_s))
    for name, value in document["per_request"].items():
        if "value" in value:
            found.append((f"per_request.{name}", "1", Estimate(**value)))
        else:
            found += [(f"per_request.{name}.{item}", "1", Estimate(**e)) for item, e in value.items()]
    found += [(f"cpu_busy.{name}", "1", e) for name, e in result.cpu_busy.items()]
    found += [(f"breakdown.{stage.name}", "ns", stage.mean) for stage in result.breakdown()]
    found += [(f"ratio.{name}", "1", e) for name, e in ratios.items()]
    return found


def ask(name: str) -> Asked:
    """Return the path that a registered model's name or a file with a QEMU command line asks for.

    A registered name wins over a file of that name.

    Raises:
        IosimError: Neither; or the file cannot be read, or asks for what iosim cannot simulate.
    """
    if name in registry.names():
        return Asked(name, name, name)
    path = Path(name)
    if not path.exists() and "/" not in name and not path.suffix:
        guess = nearest(name, registry.names())
        if guess:
            raise unknown("model", name, registry.names())
        raise IosimError(
            f"'{name}' is neither a model ({', '.join(registry.names())}) nor a file with a QEMU command line"
        )
    machines = qemu.read_machines(name)
    found = qemu.network_paths(machines)
    notes = tuple(dict.fromkeys([*found.notes, *(note for machine in machines for note in machine.notes)]))
    warnings = tuple(dict.fromkeys(warning for machine in machines for warning in machine.warnings))
    return Asked(path.stem, name, found.model, dict(found.settings), notes, warnings)


def specify_all(
    asked: Sequence[Asked], workload: str | None, host: str | Host, settings: Mapping[str, Any]
) -> list[Specification]:
    """Return the specifications of paths that are to be compared, all under the same settings.

    A ``device.`` or ``guest.`` setting goes to the models that have it; one that no model has is an error.
    """
    devices = {key: value for key, value in settings.items() if key.startswith(("device.", "guest."))}
    common = {key: value for key, value in settings.items() if key not in devices}
    known = [set(valid_keys(registry.find(a.model))) for a in asked]
    for key in devices:
        if not any(key in keys for keys in known):
            raise unknown("setting", key, set().union(*known))
    return [
        specify(
            a.model,
            workload=workload,
            host=host,
            settings={**a.settings, **common, **{k: v for k, v in devices.items() if k in keys}},
        )
        for a, keys in zip(asked, known, strict=True)
    ]


def compare(
    *paths: str,
    workload: str | None = None,
    host: str | Host = hosts.DEFAULT,
    requests: int | str | None = None,
    duration: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    **more: Any,
) -> Comparison:
    """Compare I/O paths under the same workload, host and random numbers; the first is the baseline.

    Args:
        paths: Registered models' names, or files with QEMU command lines.
        workload, host, requests, duration, seed, settings, more: As in `iosim.simulate`, for all paths.
        workers: Processes to use; all cores by default.
        progress: Called with the fraction of all runs that is done.

    Raises:
        IosimError: Something given is unknown or impossible; the message is one line.
    """
    if not paths:
        raise IosimError("nothing to compare; name models, or files with QEMU command lines")
    given = {**dotted(more), **(settings or {})}
    for name, value in (("requests", requests), ("duration", duration), ("seed", seed)):
        if value is not None:
            given[f"run.{name}"] = value
    asked = _unique([ask(path) for path in paths])
    results = run_all(specify_all(asked, workload, host, given), progress, workers)
    warnings = [f"{a.label}: {note}" for a in asked for note in a.warnings]
    warnings += _unequal_flows(asked, results)
    warnings += [f"{a.label}: {line}" for a, r in zip(asked, results, strict=True) for line in r.warnings]
    return Comparison(asked, results, warnings)


def _unequal_flows(asked: Sequence[Asked], results: Sequence[Result]) -> list[str]:
    """Say so where the paths are not under the same load, since each has one flow for each queue pair."""
    flows = [r.specification.workload.flows for r in results]
    if len(set(flows)) == 1:
        return []
    each = ", ".join(f"{a.label} {n}" for a, n in zip(asked, flows, strict=True))
    able = all(r.specification.model.smp for r in results)
    hint = f"; workload.flows={max(flows)} gives each the same load" if able else ""
    return [f"the paths play different numbers of flows ({each}), so not the same load{hint}"]


def _unique(asked: list[Asked]) -> list[Asked]:
    """Number labels that occur more than once."""
    labels = [a.label for a in asked]
    out = []
    for i, a in enumerate(asked):
        if labels.count(a.label) > 1:
            out.append(replace(a, label=f"{a.label} ({labels[: i + 1].count(a.label)})"))
        else:
            out.append(a)
    return out
