"""Host files: derived costs against the published wholes, sources on every number, errors with file and key."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.engine.distributions import Constant, LogNormal, Uniform
from iosim.errors import IosimError
from iosim.host import costs, hosts
from iosim.host.units import parse_time

COMPOSITE = hosts.load("composite")
FIGURES = hosts.published()
CYCLES = 1000 / 3.4  # ps at the 3.4 GHz of kvm_unit_tests_e3_1245v2
KVM = {k: v * CYCLES for k, v in FIGURES["kvm_unit_tests_e3_1245v2"].items() if isinstance(v, int)}


def mean(*names: str) -> float:
    return sum(COMPOSITE.cost(name).distribution.mean for name in names)


class TestNothingIsCountedTwice:
    """The parts of each measured whole, as the models spend them one after the other, sum to it again."""

    def test_an_exit_and_an_entry_are_a_vmcall(self) -> None:
        assert mean("vm_exit", "vm_entry") == pytest.approx(KVM["vmcall"])

    def test_a_kick_is_the_measured_kick(self) -> None:
        kick = FIGURES["notification_costs_vhost"]["guest_kick"]
        assert mean("vm_exit", "kvm_ioeventfd", "vm_entry") == pytest.approx(kick["mean"] * 1000)
        assert COMPOSITE.cost("kvm_ioeventfd").distribution.std == pytest.approx(kick["spread"] * 1000)

    def test_a_write_to_qemu_is_mmio_to_userspace(self) -> None:
        write = ("vm_exit", "kvm_mmio_decode", "kvm_run_return", "qemu_dispatch", "kvm_run_enter", "vm_entry")
        assert mean(*write) == pytest.approx(KVM["mmio_to_userspace"])

    def test_a_read_costs_what_inl_costs_above_outl(self) -> None:
        assert mean("mmio_read_result") == pytest.approx(KVM["inl_from_qemu"] - KVM["pio_to_userspace"])

    def test_an_end_of_interrupt_is_the_measured_one(self) -> None:
        assert mean("vm_exit", "kvm_eoi", "vm_entry") == pytest.approx(KVM["apic_eoi"])

    def test_a_coalesced_write_is_an_mmio_write_that_stays_in_the_kernel(self) -> None:
        write = mean("vm_exit", "kvm_mmio_decode", "kvm_coalesced_mmio", "vm_entry")
        assert write == pytest.approx(KVM["mmio_ioeventfd"])

    def test_a_halted_guest_starts_after_the_measured_delay(self) -> None:
        low, high = FIGURES["notification_costs_vhost"]["guest_wakeup_after_irq"].values()
        contained = mean("vm_exit", "vm_entry", "irq_entry", "driver_irq", "softirq_entry")
        wakeup = COMPOSITE.cost("vcpu_wakeup").distribution
        assert isinstance(wakeup, Uniform)
        assert wakeup.low + contained == pytest.approx(low * 1000)
        assert wakeup.high + contained == pytest.approx(high * 1000)

    def test_the_client_and_the_wire_are_bare_metal_latency(self) -> None:
        propagation = float(COMPOSITE.properties["wire_propagation"].value)
        one_way = mean("client_send", "client_receive") + propagation
        assert one_way == pytest.approx(FIGURES["two_nodes_25g"]["bare_metal"]["latency_us"] * 1e6)

    def test_copies_per_byte(self) -> None:
        copies = FIGURES["copies_and_wakeups"]["memcpy_1500B"]
        assert COMPOSITE.cost("copy_cold").per_byte * 1500 == pytest.approx(copies["cold"] * 1000)
        assert COMPOSITE.cost("copy_hot").per_byte * 1500 == pytest.approx(copies["hot"] * 1000)


def test_every_number_has_a_source_or_says_assumed() -> None:
    for cost in COMPOSITE.costs:
        if cost.kind in ("assumed", "memory"):
            continue
        section = cost.source.partition(":")[0]
        assert section in FIGURES, f"{cost.name}: {cost.source}"
    for prop in COMPOSITE.properties.values():
        assert prop.source
        assert prop.kind == "assumed" or len(prop.source) > 5


def test_the_line_that_outputs_carry_counts_what_is_assumed() -> None:
    assumed = sum(c.kind == "assumed" for c in COMPOSITE.costs)
    assert assumed > 0
    assert f"composite, {assumed} of {costs.HOST_COSTS} costs assumed" in COMPOSITE.describe()


def test_the_anchors_are_read_not_copied() -> None:
    """No figure of published.toml stands in the host file again: costs derived from it name it."""
    text = resources.files("iosim.models").joinpath("hosts/composite.toml").read_text()
    for entry in tomllib.loads(text)["costs"].values():
        if "of" in entry:
            assert not {"value", "mean", "low", "high"} & set(entry)


def test_a_file_of_one_machine_borrows_and_reports_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "mine"\n[costs.vm_exit]\nmean = 500\nspread = 20\nunit = "ns"\nsource = "my bench"\n')
    host = hosts.load(str(path))
    assert host.cost("vm_exit").distribution == LogNormal(500_000.0, 20_000.0)
    assert host.cost("vm_exit").origin == "mine"
    assert host.cost("vm_entry").origin == "composite"
    assert f"{costs.HOST_COSTS - 1} borrowed from composite" in host.describe()
    assert not host.composite


def test_constant_costs_keep_their_means() -> None:
    for before, after in zip(COMPOSITE.costs, COMPOSITE.constant().costs, strict=True):
        assert isinstance(after.distribution, Constant)
        assert after.distribution.mean == pytest.approx(before.distribution.mean, abs=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[costs.vm_exitt]\nvalue = 1\nunit = 'ns'", "f: unknown cost 'vm_exitt'; did you mean 'vm_exit'?"),
        ("[costs.vm_exit]\nvalue = 1", "f: costs.vm_exit: has no unit"),
        ("[costs.vm_exit]\nvalue = 1\nunit = 'parsec'", "f: costs.vm_exit: unknown unit 'parsec'"),
        ("[costs.vm_exit]\nvalue = -1\nunit = 'ns'", "f: costs.vm_exit"),
        ("[costs.vm_exit]\nvalue = nan\nunit = 'ns'", "f: costs.vm_exit"),
        ("[costs.vm_exit]\nvalue = inf\nunit = 'ns'", "f: costs.vm_exit"),
        ("[costs.vm_exit]\nvalue = 1e300\nunit = 's'", "f: costs.vm_exit"),
        ("[costs.vm_exit]\nlow = 3\nhigh = 2\nunit = 'ns'", "f: costs.vm_exit"),
        ("[costs.vm_exit]\nvalue = 'fast'\nunit = 'ns'", "f: costs.vm_exit"),
        ("[costs.vm_exit]\nvalu = 1\nunit = 'ns'", "did you mean 'value'?"),
        ("[costs.vm_exit]\nvalue = 5\nunit = 'cycles'", "is in cycles, but the file has no cycles_ghz"),
        ("[costs.vm_exit]\nof = 'nothing.here'", "unknown published figure 'nothing.here'"),
        ("[costs.vm_exit]\nof = 'defaults.nope'", "unknown published figure 'defaults.nope'"),
        ("[costs.vm_exit]\nof = 'copies_and_wakeups.ppoll_or_read'\nminus = ['vm_exit']", "worked out from itself"),
        ("[costs.vm_exit]\nof = 'copies_and_wakeups.ppoll_or_read'\nminus = ['vcpu_wakeup']", "would be negative"),
        ("[costs.vm_exit]\nof = 'copies_and_wakeups.ppoll_or_read'\nshare = 7", "share must lie between 0 and 1"),
        ("[costs.vm_exit]\nvalue = 5\nunit = 'ns'\nminus = ['vm_entry']", "has minus, which needs of"),
        ("[costs.vm_exit]\nvalue = 5\nunit = 'ns'\nshare = 0.5", "has share, which needs of"),
        ("[costs]\nvm_exit = 5", "must be a table"),
        ("costs = 5", "f: costs: must be a table"),
        ("[properties]\nhalt_pol_ns = {value='1us'}", "did you mean 'halt_poll_ns'?"),
        ("[properties]\nhalt_poll_ns = {value='1'}", "properties.halt_poll_ns"),
        ("[properties]\ncpus = {value=-1}", "properties.cpus"),
        ("[properties]\ncpus = 3", "must be a table"),
        ("[properties]\napicv = {value=1}", "neither true nor false"),
        ("[proprties]", "did you mean 'properties'?"),
        ("title = ", "f: not TOML"),
        ("cycles_ghz = 'x'", "f: cycles_ghz"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_and_key(text: str, message: str) -> None:
    with pytest.raises(IosimError) as caught:
        hosts.read(text, "f", "f")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["compsite", "no/such.toml", "nowhere.toml"])
def test_unknown_hosts(name: str) -> None:
    with pytest.raises(IosimError, match=r"did you mean 'composite'|no such host file"):
        hosts.load(name)


def test_a_host_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IosimError, match="not UTF-8"):
        hosts.load(str(path))
    with pytest.raises(IosimError, match="cannot read the host file"):
        hosts.load(f"{tmp_path}/")


@given(st.text(max_size=30))
@settings(derandomize=True, max_examples=300)
def test_a_time_is_a_time_or_one_line(text: str) -> None:
    try:
        time = parse_time(text)
    except IosimError as error:
        message = str(error)
        assert "\n" not in message
    else:
        assert 0 <= time <= 10**17


@pytest.mark.parametrize(
    ("text", "ps"),
    [("1ns", 1000), ("2.5us", 2_500_000), ("1e3 ms", 10**12), ("0", 0), ("1_000ps", 1000), ("3µs", 3_000_000)],
)
def test_times(text: str, ps: int) -> None:
    assert parse_time(text) == ps
