"""Published ratios of virtio to e1000 beside the simulated ones; run this file to write the table on its page anew.

The ratios, their sources and the set-ups stand in models/anchors/e1000_virtio.toml.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache, reduce
from importlib import resources
from pathlib import Path
from typing import Any

import iosim

PAGE = Path(__file__).parents[2] / "docs" / "background" / "published.md"
MARKED = re.compile(r"(<!-- bands -->\n).*?(<!-- end of bands -->)", re.DOTALL)
TEXT = resources.files("iosim.models").joinpath("anchors/e1000_virtio.toml").read_text(encoding="utf-8")
BANDS: dict[str, dict[str, Any]] = tomllib.loads(TEXT)


@cache
def measured(model: str, name: str) -> float:
    """What a band is about, of one model in the band's set-up."""
    band = BANDS[name]
    settings = {"run.requests": 2000, **band["settings"]}
    document = iosim.simulate(model, workload=band["workload"], settings=settings).to_dict()
    field = f"{band['measure']}_per_s" if band["measure"] == "throughput" else band["measure"]
    return float(reduce(lambda inner, key: inner[key], field.split("."), document)["value"])


def ratio(name: str) -> float:
    """The simulated ratio of a band."""
    return measured(BANDS[name]["over"], name) / measured(BANDS[name]["under"], name)


def within(name: str) -> str:
    """Where the simulated ratio lies: ``below``, ``in`` or ``above`` its band."""
    low, high = BANDS[name]["low"], BANDS[name]["high"]
    simulated = ratio(name)
    if simulated < low:
        return "below"
    return "above" if simulated > high else "in"


def bands() -> str:
    """The table of all bands."""
    rows = ["| of | over | published | read | simulated | in the band |", "| --- | --- | --- | --- | --- | --- |"]
    for name, band in BANDS.items():
        low, high = f"{band['low']:.3g}", f"{band['high']:.3g}"
        published = low if low == high else f"{low} to {high}"
        cells = (
            band["what"],
            f"`{band['over']}` / `{band['under']}`",
            published,
            band["kind"],
            f"{ratio(name):.3g}",
            {"in": "yes"}.get(within(name), f"no, {within(name)}"),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def renewed(text: str) -> str:
    """The page's text with its table as it should be."""
    return MARKED.sub(lambda m: f"{m[1]}{bands()}{m[2]}", text)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
