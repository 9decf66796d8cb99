"""bare-metal and vfio: a physical NIC driven by the host's kernel or by the guest's."""

from __future__ import annotations

import pytest

import iosim

POSTED = {"device.interrupts": "posted", "host.apicv": True}
ASLEEP = {"host.halt_poll_ns": "0ns"}


def exits(result: iosim.Result) -> int:
    return sum(value["value"] for value in result.to_dict()["per_request"]["exits"].values())


@pytest.mark.parametrize("workload", ["rr", "tx", "rx"])
def test_on_bare_metal_nothing_exits(workload: str) -> None:
    result = iosim.simulate("bare-metal", workload=workload, requests=500)
    assert exits(result) == 0
    assert result.count("kicks") == 0
    assert set(result.cpu_busy) == {"cpu0"}


def test_a_timer_on_bare_metal_is_set_without_an_exit() -> None:
    paced = {"workload.rate": 1000, "workload.arrivals": "constant"}
    result = iosim.simulate("bare-metal", workload="tx", requests=100, settings=paced)
    assert exits(result) == 0
    # The timer's, and the NIC's for the packet sent.
    assert result.per_request("interrupts").value == 2


@pytest.mark.parametrize("workload", ["tx", "rx"])
def test_a_vcpu_that_runs_exits_for_remapped_interrupts_and_not_for_posted_ones(workload: str) -> None:
    """A stream keeps the vCPU in the guest, so every exit is for an interrupt; to send needs none."""
    remapped = iosim.simulate("vfio", workload=workload, requests=2000)
    posted = iosim.simulate("vfio", workload=workload, requests=2000, settings=POSTED)
    assert remapped.count("exits.EXTERNAL_INTERRUPT") == remapped.count("interrupts") > 0
    assert exits(remapped) == remapped.per_request("exits.EXTERNAL_INTERRUPT").value
    assert exits(posted) == 0
    assert posted.count("interrupts") > 0
    assert posted.throughput.value > remapped.throughput.value


def test_remapped_interrupts_with_apicv_need_the_host_but_no_exit() -> None:
    result = iosim.simulate("vfio", workload="tx", requests=2000, settings={"host.apicv": True})
    assert exits(result) == 0
    assert result.cpu_busy["host-irq"].value > 0
    posted = iosim.simulate("vfio", workload="tx", requests=2000, settings=POSTED)
    assert posted.cpu_busy["host-irq"].value == 0


def test_a_doorbell_is_a_register_write_without_an_exit() -> None:
    result = iosim.simulate("vfio", requests=320, settings={"run.warmup": 16})
    assert result.count("exits.EPT_MISCONFIG") == 0
    # TDT for the reply, EIMS after each of two polls, RDT for every 16 packets received.
    assert result.per_request("register_accesses.mmio_write").value == 3 + 1 / 16


def test_only_a_sleeping_vcpu_needs_the_hosts_wake_up_vector() -> None:
    asleep = iosim.simulate("vfio", requests=300, settings={**POSTED, **ASLEEP})
    # The time it polls has grown in the warm-up.
    polling = iosim.simulate("vfio", requests=300, settings={**POSTED, "run.warmup": 100})
    assert asleep.cpu_busy["host-irq"].value > 0
    assert polling.cpu_busy["host-irq"].value == 0


@pytest.mark.parametrize("halts", [{**ASLEEP, "workload.peer_delay": "1ms"}, {"host.costs.cpu_idle_exit": "0ns"}])
def test_bare_metal_then_posted_then_remapped(halts: dict[str, object]) -> None:
    """Where a halted vCPU sleeps; and where it polls, if the idle CPU of bare metal polls as well."""
    bare = iosim.simulate("bare-metal", requests=1000, settings=halts)
    posted = iosim.simulate("vfio", requests=1000, settings={**POSTED, **halts})
    remapped = iosim.simulate("vfio", requests=1000, settings=halts)
    means = [run.latency["mean"].value for run in (bare, posted, remapped)]
    assert means == sorted(means)
    assert means[0] < means[1] < means[2]


def test_halt_polling_beats_a_cpu_that_halts() -> None:
    """A polling vCPU has no HLT to leave: what it burns, the idle CPU of bare metal pays in latency."""
    bare = iosim.simulate("bare-metal", requests=1000, settings={"host.constant": True})
    posted = iosim.simulate("vfio", requests=1000, settings={"host.constant": True, **POSTED})
    assert posted.latency["mean"].value < bare.latency["mean"].value
    assert posted.cpu_busy["vcpu0"].value > 0.99 > 0.3 > bare.cpu_busy["cpu0"].value


def test_passthrough_is_nearer_to_bare_metal_than_virtio() -> None:
    bare, vfio, vhost = (iosim.simulate(name, requests=500) for name in ("bare-metal", "vfio", "vhost-net"))
    assert bare.latency["mean"].value < vfio.latency["mean"].value < vhost.latency["mean"].value


def test_napi_holds_interrupts_off_under_a_flood() -> None:
    result = iosim.simulate("bare-metal", workload="rx", requests=3000, settings={"workload.rate": 2_000_000})
    assert result.per_request("interrupts").value < 0.1
    assert result.dropped > 0


def test_what_happens_while_napi_polls_is_told_once_more() -> None:
    """The cause stands although the poll has seen it: an interrupt for nothing, as the real device has it."""
    result = iosim.simulate("bare-metal", workload="rx", requests=1000, settings={"workload.rate": 100_000})
    assert 0 < result.count("spurious.interrupts") < result.count("interrupts")


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("vfio", {"device.interrupts": "posted"}, "posted interrupts need APICv"),
        ("vfio", {"device.interrupts": "post"}, "device.interrupts: unknown value 'post'; did you mean 'posted'"),
        ("bare-metal", {"device.interrupts": "posted"}, "unknown setting 'device.interrupts'"),
        ("bare-metal", {"device.tx_descriptors": 32}, "device.tx_descriptors: must be at least 64, not 32"),
        ("vfio", {"device.rx_descriptors": 8192}, "device.rx_descriptors: must be at most 4096, not 8192"),
        ("bare-metal", {"guest.vcpus": 2}, "guest.vcpus"),
    ],
)
def test_bad_values(model: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(iosim.IosimError) as caught:
        iosim.simulate(model, requests=10, settings=settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
