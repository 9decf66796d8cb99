"""The emulated NICs besides the e1000, against what was measured on real drivers and real devices.

Measured: QEMU 7.2.22, Debian kernel 6.1.0-56, 1 vCPU (models/anchors/nic_accesses.csv, register_sequences.json).
"""

from __future__ import annotations

import csv
import io
import json
from importlib import resources
from itertools import pairwise
from typing import Any

import pytest

import iosim
from iosim.host.frames import MSS, TCP_HEADERS
from iosim.host.intx import named
from iosim.result import Result
from iosim.run import run
from iosim.specification import specify

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


def paced(model: str, direction: str) -> Result:
    settings = PACED_TX if direction == "tx" else PACED_RX
    return iosim.simulate(model, workload=direction, requests=64, settings=settings)


# What the measured rows have besides the packets' own accesses, per packet. e100 polls the PHY and asks for statistics
# every two seconds (R MDI 0.067 to 0.1, W MDI half of it, and less than 0.02 each of SCBCmd, SCBIrqMask, SCBPointer and
# one interrupt); pcnet32 reads the link (R BDP16 0.003 to 0.005); and where 195 interrupts served 200 packets of pcnet,
# 0.025 of its 14 accesses are missing.
BESIDES = {**dict.fromkeys(EEPRO100, 0.15), "pcnet": 0.3}


def expected_counts(model: str, workload: str) -> tuple[list[float], float]:
    """The measured row, as whole numbers per packet: accesses by kind, interrupt messages."""
    row = ROWS[model, workload]
    measured = [float(row[column]) for column in COLUMNS]
    accesses = [round(value) for value in measured]
    assert accesses == pytest.approx(measured, abs=BESIDES.get(model, 0.0))
    interrupts = float(row["irq_messages_per"])
    assert round(interrupts) == pytest.approx(interrupts, abs=0.026)
    return accesses, round(interrupts)


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
        # Constant costs: where the driver is when a round trip completes must not vary between the window's two ends.
        result = iosim.simulate(model, requests=200, settings={"host.constant": True})
        assert sum(counted(result)) == BOTH_ENDS[model][1]


PER_INTERRUPT = {"rtl8139": 8, "pcnet": 14, **dict.fromkeys(EEPRO100, 6)}


@pytest.mark.parametrize("model", PER_INTERRUPT)
def test_packets_under_one_interrupt_give_one_handler_sequence(model: str) -> None:
    """8 packets under way: several have come when the handler runs, and NAPI takes them all in one poll."""
    result = iosim.simulate(model, workload="rx", requests=400, settings={"workload.depth": 8, "host.constant": True})
    interrupts = result.per_request("interrupts").value
    assert 0 < interrupts < 0.5
    assert sum(counted(result)) == pytest.approx(PER_INTERRUPT[model] * interrupts, abs=0.05)


def test_two_packets_under_one_interrupt_of_ne2k_pci_share_its_head_and_tail() -> None:
    """Two packets that arrive together: of their 88 accesses the frame around the packets (6 and the last look, 4) and
    the acknowledgement are there once."""
    settings = {"workload.depth": 2, "workload.size": 18, "host.constant": True, **AT_ONCE}
    trace = trace_of("ne2k_pci", settings, "rx")
    starts = [i for i, entry in enumerate(trace) if entry == "IRQ"]
    sequences = [trace[a + 1 : b] for a, b in pairwise(starts)]
    two = [sequence for sequence in sequences if sequence.count("W BOUNDARY") == 2]
    assert two
    single = unfolded(SEQUENCES["ne2k_pci.urx_18B_paced5ms"]["sequence"])[1:]
    first, last = single.index("R ISR/CURPAG") + 1, single.index("W BOUNDARY") + 1
    assert min(two, key=len) == single[:first] + 2 * single[first:last] + single[last:]


def test_napi_that_finds_more_work_does_not_enable_interrupts() -> None:
    """64 packets under way and a budget of 16: several polls, each with its acknowledgement, under one unmasking."""
    trace = trace_of("rtl8139", {"workload.depth": 64, "host.costs.driver_receive": "5us"}, "rx")
    interrupts = trace.count("IRQ")
    assert trace.count("W IntrMask") == pytest.approx(2 * interrupts, abs=2)
    assert trace.count("W IntrStatus") > 4 * interrupts


def data_accesses(frame: int, byte_reads: bool) -> int:
    """Accesses to the data port for a frame: 32 bits at a time, a rest of 16, and where it is read one of 8."""
    if not byte_reads:
        frame += frame % 2
    return frame // 4 + frame % 4 // 2 + frame % 2


@pytest.mark.parametrize("size", [1, 18, 19, 20, 21, 700, 1471, 1472])
class TestProgrammedIo:
    def test_accesses_of_a_packet_sent_grow_with_it(self, size: int) -> None:
        frame = max(60, 42 + size)
        settings = {**PACED_TX, "workload.size": size}
        result = iosim.simulate("ne2k_pci", workload="tx", requests=32, settings=settings)
        assert sum(counted(result)) == 28 + data_accesses(frame, byte_reads=False)
        # rep outsl goes out to QEMU with each item.
        pio = counted(result)[0] + counted(result)[1]
        assert result.per_request("exits.IO_INSTRUCTION").value == pio

    def test_accesses_of_a_packet_received_grow_with_it_and_exits_hardly(self, size: int) -> None:
        frame = max(60, 42 + size)
        settings = {**PACED_RX, "workload.size": size}
        result = iosim.simulate("ne2k_pci", workload="rx", requests=32, settings=settings)
        assert sum(counted(result)) == 29 + data_accesses(frame, byte_reads=True)
        # One exit of rep insl fetches up to 1024 bytes.
        runs = -(-(frame // 4 * 4) // 1024)
        assert result.per_request("exits.IO_INSTRUCTION").value == 29 + runs + data_accesses(frame % 4, byte_reads=True)


def test_io_apic_accesses_end_in_the_kernel() -> None:
    """The line is masked and unmasked once around each packet sent: 5 exits that QEMU does not see."""
    result = paced("ne2k_pci", "tx")
    assert result.per_request("exits.EPT_MISCONFIG").value == 5
    assert result.per_request("userspace_exits").value == result.per_request("exits.IO_INSTRUCTION").value == 38


@pytest.mark.parametrize("model", ["rtl8139", "pcnet"])
def test_each_port_access_is_an_exit_to_qemu(model: str) -> None:
    result = iosim.simulate(model, requests=100, settings={"host.constant": True})
    assert result.per_request("exits.IO_INSTRUCTION").value == sum(counted(result))
    assert result.per_request("userspace_exits").value == sum(counted(result))


def test_registers_of_rtl8139_by_memory() -> None:
    """8139cp maps BAR 1, which QEMU makes an alias of the ports: the same accesses, by the other kind of exit."""
    ports = iosim.simulate("rtl8139", requests=100)
    memory = iosim.simulate("rtl8139", requests=100, settings={"device.mmio": True})
    assert counted(memory) == [0, 0, *counted(ports)[:2]]
    assert memory.per_request("exits.EPT_MISCONFIG").value == ports.per_request("exits.IO_INSTRUCTION").value


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rtl8139", "pcnet", "i82551"])
def test_a_driver_that_is_too_slow_loses_packets_and_goes_on(model: str) -> None:
    """The ring runs dry: RxEmpty, MISS or RNR. The e100 has to start the receive unit again."""
    settings = {"workload.rate": 300_000, "host.costs.driver_receive": "30us"}
    result = iosim.simulate(model, workload="rx", requests=600, settings=settings)
    assert result.dropped > 0
    trace = trace_of(model, settings, "rx")
    if model == "i82551":
        assert trace.count("W SCBPointer") > 0


def test_any_access_starts_a_transmission_of_pcnet() -> None:
    """The line is raised within W RAP, and the handler runs when the driver turns interrupts on again."""
    trace = trace_of("pcnet", PACED_TX, "tx")
    sent = [trace[i : i + 3] for i, entry in enumerate(trace[:-3]) if trace[i + 1] == "IRQ"]
    assert len(sent) > 10
    assert all(entry == ["W RAP16", "IRQ", "W RDP"] for entry in sent)
    assert iosim.simulate("pcnet", requests=50).per_request("exits.INTERRUPT_WINDOW").value >= 1


def test_an_idle_pcnet_wakes_the_main_loop_by_its_poll_timer() -> None:
    """65536 clocks of 33 MHz: 2.5 times in the 5 ms between two packets, besides the two reads of the tap."""
    idle = paced("pcnet", "rx").per_request("syscalls.ppoll").value
    assert idle - paced("rtl8139", "rx").per_request("syscalls.ppoll").value > 2


def test_without_napi_a_flood_is_a_receive_livelock() -> None:
    """The handler of ne2k_pci finds another packet each time it looks; rtl8139 polls, so the application runs."""
    flood = {"workload.rate": 50_000, "host.constant": True}
    with pytest.raises(iosim.IosimError, match="overloaded: no request completed"):
        iosim.simulate("ne2k_pci", requests=50, settings=flood)
    assert iosim.simulate("rtl8139", requests=50, settings=flood).throughput.value > 1_000


STREAM = {"workload.size": 4 * MSS, "workload.depth": 1, "run.warmup": 5, "host.constant": True}


def stream(model: str, requests: int = 10, **more: Any) -> Result:
    return iosim.simulate(model, workload="tx", requests=requests, settings={**STREAM, "run.engine": "simpy", **more})


class TestStreams:
    """None of them has TSO, nor scatter-gather by default: the guest's stack segments, sums, and sends each frame."""

    @pytest.mark.parametrize("model", ["ne2k_pci", "rtl8139", "pcnet", "i82551"])
    def test_a_send_call_is_its_segments_from_the_driver_on(self, model: str) -> None:
        result = stream(model)
        assert result.count("wire_frames") == 10 * 4
        assert result.per_request("syscalls.writev").value == 4
        assert (result.stamps[:, 1:] >= result.stamps[:, :-1]).all()
        assert (result.stamps[:, -1] - result.stamps[:, 0] == result.latency_ps).all()

    @pytest.mark.parametrize("model", ["ne2k_pci", "rtl8139", "i82551"])
    def test_segmenting_and_sums_are_the_guest_s(self, model: str) -> None:
        """A ns more for each byte summed, and 1 us for each segment: that much later is the last on the wire.

        Interrupts of earlier segments may come at other times, and so may find more or less done. (With pcnet each
        access wakes QEMU's main loop, for whose lock the next one waits: there the guest has that time to spare.)
        """
        more = {"host.costs.gso_segment": "1250ns", "host.costs.guest_checksum": "1.1ns/byte"}
        later = stream(model, **more).latency["mean"].value - stream(model).latency["mean"].value
        assert later == pytest.approx(4 * (1000 + MSS + TCP_HEADERS), rel=0.25)

    def test_each_word_of_each_segment_goes_through_the_data_port(self) -> None:
        """Of the smallest acknowledgement too: 66 bytes in, 1514 out for each segment."""
        result = stream("ne2k_pci")
        accesses = sum(counted(result))
        sent = 4 * (28 + data_accesses(MSS + TCP_HEADERS, byte_reads=False))
        received = 29 + data_accesses(TCP_HEADERS, byte_reads=True)
        # One interrupt may serve what two did, and its handler looks at the ring after each.
        assert accesses == pytest.approx(sent + received, rel=0.05)

    @pytest.mark.slow
    def test_how_much_of_a_link_each_emulation_can_use(self) -> None:
        """From programmed I/O by way of a register access or more for each frame to one write for 45 of them."""
        large = {"workload.size": 45 * MSS, "workload.depth": 4}
        rates = [stream(m, **large).bits_per_s.value for m in ("ne2k_pci", "pcnet", "i82551", "rtl8139", "e1000")]
        assert all(1.5 * slower < faster for slower, faster in pairwise(rates))
        assert rates[0] < 20e6
        assert rates[-1] > 2e9

    @pytest.mark.slow
    @pytest.mark.parametrize("model", ["ne2k_pci", "rtl8139", "pcnet", "i82551"])
    def test_requests_beside_a_stream(self, model: str) -> None:
        settings = {"workload.background": 2 * MSS, "workload.background_depth": 2}
        result = iosim.simulate(model, requests=60, settings={**settings, "run.engine": "simpy", "run.warmup": 5})
        assert result.per_request("background_bytes").value > 0
        assert len(result.latency_ps) == 60

    @pytest.mark.slow
    @pytest.mark.parametrize("model", ["ne2k_pci", "rtl8139", "pcnet", "i82551"])
    @pytest.mark.parametrize(
        ("workload", "chosen"),
        [
            ("tx", {"workload.size": 65536, "workload.depth": 4}),
            ("tx", {"workload.background": 3000, "host.qdisc": "fq"}),
            ("rr", {"workload.background": 9000, "host.tap_queue": 1, "host.cpus": 2}),
        ],
    )
    def test_engines_agree(self, model: str, workload: str, chosen: dict[str, Any]) -> None:
        pytest.importorskip("iosim.engine.compiled.code")
        one, two = (
            run(specify(model, workload=workload, settings={"run.requests": 40, **chosen, "run.engine": engine}))
            for engine in ("simpy", "compiled")
        )
        assert one.stamps.tolist() == two.stamps.tolist()
        assert one.snapshots == two.snapshots
        assert {**one.to_dict(), "engine": ""} == {**two.to_dict(), "engine": ""}
