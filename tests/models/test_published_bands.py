"""A VM with virtio against the same VM with e1000: ratios within the bands that were published.

Which, by whom, and how much of the source was read, stands with each band in models/anchors/e1000_virtio.toml.
"""

from __future__ import annotations

import csv
import io
from importlib import resources

import pytest
from published_bands import BANDS, PAGE, measured, ratio, renewed, within

import iosim
from iosim.host.hosts import published

INSIDE = [name for name, band in BANDS.items() if "deviates" not in band]
DEVIATING = [name for name, band in BANDS.items() if "deviates" in band]


@pytest.mark.slow
@pytest.mark.parametrize("name", INSIDE)
def test_the_simulated_ratio_is_in_the_published_band(name: str) -> None:
    band = BANDS[name]
    assert band["low"] <= ratio(name) <= band["high"], f"{band['what']}: {band['source']}"


@pytest.mark.parametrize("name", DEVIATING)
def test_a_known_deviation_is_still_one(name: str) -> None:
    """Who closes it takes it out of the file, and off the page."""
    assert within(name) == BANDS[name]["deviates"]
    assert BANDS[name]["why"]


def test_known_deviations_are_few_and_named() -> None:
    assert DEVIATING == ["stream_qemu"]


@pytest.mark.parametrize("name", BANDS)
def test_every_band_says_where_it_is_from(name: str) -> None:
    band = BANDS[name]
    assert band["kind"] in ("primary", "quoted", "derived", "memory")
    assert len(band["source"]) > 40
    assert len(band["read"]) > 20
    assert 0 < band["low"] <= band["high"]


def test_the_band_of_requests_is_what_its_sources_give() -> None:
    """Two virtio figures over the most interrupts a second that QEMU's e1000 raises."""
    most = 1e9 / (500 * 256)
    assert most == 7812.5
    virtio = (12931.13, published()["vm_to_vm_virtio_tap"]["tcp_rr_per_s"])
    assert [BANDS["requests_per_second"][end] for end in ("low", "high")] == pytest.approx(
        [each / most for each in virtio], rel=1e-3
    )
    assert 0.9 * most < measured("e1000", "requests_per_second") < most


def test_the_bands_of_exits_are_the_measured_accesses() -> None:
    text = resources.files("iosim.models").joinpath("anchors/nic_accesses.csv").read_text()
    accesses = {(r["config"], r["workload"]): float(r["accesses_per"]) for r in csv.DictReader(io.StringIO(text))}
    sent = accesses["e1000", "utx_18B_paced3ms"] / accesses["virtio-net", "utx_18B_paced3ms"]
    assert BANDS["exits_per_packet_sent"]["low"] == BANDS["exits_per_packet_sent"]["high"] == sent
    there_and_back = accesses["e1000", "rr_1B"] / accesses["virtio-net", "rr_1B"]
    assert BANDS["exits_per_round_trip"]["low"] <= there_and_back <= BANDS["exits_per_round_trip"]["high"]


def bulk(model: str, **settings: str) -> float:
    fixed = {"workload.size": 65536, "run.requests": 400, **{f"host.{key}": value for key, value in settings.items()}}
    return iosim.simulate(model, workload="tx", settings=fixed).bits_per_s.value / 1e9


@pytest.mark.slow
def test_what_the_page_says_besides() -> None:
    """Over a link of 10 Gbit/s, and with more to do for each write to the tap."""
    e1000, virtio = bulk("e1000"), bulk("virtio-net")
    assert [round(e1000, 1), round(virtio, 1), round(virtio / e1000, 1)] == [2.4, 9.4, 4.0]
    apart = {"workload.size": 65536, "workload.peer": "host", "run.requests": 600}
    virtio, e1000 = (
        iosim.simulate(model, workload="tx", settings=apart).bits_per_s.value for model in ("virtio-net", "e1000")
    )
    assert virtio / e1000 == pytest.approx(16, abs=0.5)


def test_the_page_has_the_table_as_it_is() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == renewed(text), "write it anew: python tests/models/published_bands.py"
    for name in DEVIATING:
        assert BANDS[name]["what"] in text
