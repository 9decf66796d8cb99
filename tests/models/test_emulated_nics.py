"""The emulated NICs besides the e1000, against what was measured on real drivers and real devices.

Measured: QEMU 7.2.22, Debian kernel 6.1.0-56, 1 vCPU (models/anchors/nic_accesses.csv, register_sequences.json).
"""

from __future__ import annotations

import csv
import io
import json
from importlib import resources
from typing import Any

import numpy as np
import pytest

import iosim
from iosim.host.hosts import load
from iosim.host.intx import named
from iosim.result import Result

ANCHORS = resources.files("iosim.models").joinpath("anchors")
ROWS = {
    (row["config"], row["workload"]): row
    for row in csv.DictReader(io.StringIO(ANCHORS.joinpath("nic_accesses.csv").read_text()))
}
SEQUENCES = json.loads(ANCHORS.joinpath("register_sequences.json").read_text())

EEPRO100 = ("i82551", "i82557b", "i82559er")
NICS = ("ne2k_pci", "rtl8139", "pcnet", *EEPRO100)
KINDS = ("pio_read", "pio_write", "mmio_read", "mmio_write")
COLUMNS = ("pio_r_per", "pio_w_per", "mmio_r_per", "mmio_w_per")
PACED_TX = {"workload.rate": 1000 / 3, "workload.arrivals": "constant", "workload.size": 18}
PACED_RX = {"workload.rate": 200, "workload.arrivals": "constant", "workload.size": 18}
# A client that answers at once over a wire without length, and a tap that is read at once: what the measured guest
# had, whose peer ran on the same host.
AT_ONCE = {
    "host.wire_propagation": "0us",
    "host.wire_rate": "1000Gbit/s",
    **{
        f"host.costs.{name}": "0ns"
        for name in ("client_send", "client_receive", "nic_rx_delay", "host_irq", "host_receive", "tap_queue",
                     "bridge", "thread_wakeup", "sys_ppoll", "sys_read", "copy_cold", "copy_hot", "qemu_net_queue",
                     "qemu_nic_packet", "tap_write", "nic_tx")
    },
}  # fmt: skip


def counted(result: Result) -> list[float]:
    return [result.per_request(f"register_accesses.{kind}").value for kind in KINDS]


def others(row: dict[str, str], *mine: str) -> list[float]:
    """What a measured row counts besides the path of a packet, by the names in its list of registers.

    That is the driver's watchdog, which polls the PHY every two seconds.
    """
    left = [0.0] * 4
    offset = 0 if float(row["pio_r_per"]) + float(row["pio_w_per"]) > 0 else 2
    for entry in row["top_regs"].split("; "):
        access, times = entry.rsplit(" x", 1)
        if access in mine:
            left[offset + (access[0] == "W")] += float(times)
    return left


def paced(model: str, direction: str) -> Result:
    settings = PACED_TX if direction == "tx" else PACED_RX
    return iosim.simulate(model, workload=direction, requests=64, settings=settings)


def expected_counts(model: str, workload: str) -> tuple[list[float], float]:
    """The measured row, as whole numbers per packet: accesses by kind, interrupt messages."""
    row = ROWS[model, workload]
    return [round(float(row[column])) for column in COLUMNS], round(float(row["irq_messages_per"]))


@pytest.mark.parametrize("model", NICS)
def test_accesses_and_interrupts_per_packet_sent(model: str) -> None:
    accesses, interrupts = expected_counts(model, "utx_18B_paced3ms")
    result = paced(model, "tx")
    assert counted(result) == accesses
    # Besides the NIC's interrupts each packet has one of the guest's own timer, by which the sender was paced.
    assert result.per_request("interrupts").value == interrupts + 1


@pytest.mark.parametrize("model", NICS)
def test_accesses_and_interrupts_per_packet_received(model: str) -> None:
    accesses, interrupts = expected_counts(model, "urx_18B_paced5ms")
    result = paced(model, "rx")
    assert counted(result) == accesses
    assert result.per_request("interrupts").value == interrupts


def trace_of(model: str, settings: dict[str, Any], workload: str) -> list[str]:
    module = __import__(f"iosim.host.{DEVICE[model]}", fromlist=["REGISTER_NAMES"])
    path = iosim.install(model, workload=workload, **{k.replace(".", "__"): v for k, v in settings.items()})
    trace = path.machine.parts["device"].trace
    path.env.run(until=20_000_000_000)
    trace.on = True
    path.env.run(until=path.env.now + 50_000_000_000)
    return named(trace, module.REGISTER_NAMES)


DEVICE = {
    "rtl8139": "rtl8139", "pcnet": "pcnet", "ne2k_pci": "ne2000",
    **dict.fromkeys(EEPRO100, "eepro100"),
}  # fmt: skip


def unfolded(sequence: list[str]) -> list[str]:
    """``R DATAPORT x15`` written out; the number of the interrupt left out."""
    unit = []
    for entry in sequence:
        access, _, times = entry.partition(" x")
        unit += ["IRQ" if access.startswith("IRQ") else access] * int(times or 1)
    return unit


@pytest.mark.parametrize(("name", "workload", "settings"), [
    ("utx_18B_paced3ms", "tx", PACED_TX),
    ("urx_18B_paced5ms", "rx", PACED_RX),
])  # fmt: skip
@pytest.mark.parametrize("model", NICS)
def test_order_of_accesses_and_interrupts(model: str, name: str, workload: str, settings: dict[str, Any]) -> None:
    """The trace is the measured sequence over and over, from some place in it on; interrupts in their places."""
    unit = unfolded(SEQUENCES[f"{model}.{name}"]["sequence"])
    trace = trace_of(model, settings, workload)
    assert len(trace) >= 8 * len(unit)
    start = next(i for i in range(len(unit)) if (unit * 2)[i : i + len(unit)] == trace[: len(unit)])
    assert trace == (unit * (len(trace) // len(unit) + 2))[start:][: len(trace)]


BOTH_ENDS = {"ne2k_pci": (83, 87), "rtl8139": (9, 12), "pcnet": (16, 30), **dict.fromkeys(EEPRO100, (8, 14))}


@pytest.mark.parametrize("model", NICS)
class TestRoundTrip:
    """Both ends of the measured table: one interrupt serves completion and next request, or two do."""

    def test_request_is_there_before_the_handler_reads_the_cause(self, model: str) -> None:
        result = iosim.simulate(model, requests=200, settings=AT_ONCE)
        assert sum(counted(result)) == BOTH_ENDS[model][0]

    def test_handler_has_finished_when_the_request_comes(self, model: str) -> None:
        # Constant costs: where ne2k_pci is in its handler when the reply arrives must not vary at the window's two ends.
        result = iosim.simulate(model, requests=200, settings={"host.constant": True})
        assert sum(counted(result)) == BOTH_ENDS[model][1]
