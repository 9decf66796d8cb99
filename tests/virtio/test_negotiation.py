"""Feature negotiation (virtio 1.2, 2.2, 5.1.3.1, 5.2.5.2, 6.1)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iosim.virtio import negotiation
from iosim.virtio.errors import NegotiationError
from iosim.virtio.features import feature_set
from iosim.virtio.negotiation import acceptable, check_accepted, check_offered

ALL = (1 << 64) - 1
NET_RULES = [
    ("GUEST_TSO4", "GUEST_CSUM"),
    ("GUEST_TSO6", "GUEST_CSUM"),
    ("GUEST_UFO", "GUEST_CSUM"),
    ("GUEST_USO4", "GUEST_CSUM"),
    ("GUEST_USO6", "GUEST_CSUM"),
    ("HOST_TSO4", "CSUM"),
    ("HOST_TSO6", "CSUM"),
    ("HOST_UFO", "CSUM"),
    ("HOST_USO", "CSUM"),
    ("CTRL_RX", "CTRL_VQ"),
    ("CTRL_VLAN", "CTRL_VQ"),
    ("GUEST_ANNOUNCE", "CTRL_VQ"),
    ("MQ", "CTRL_VQ"),
    ("CTRL_MAC_ADDR", "CTRL_VQ"),
    ("NOTF_COAL", "CTRL_VQ"),
    ("RSS", "CTRL_VQ"),
]


@pytest.mark.parametrize(("feature", "needed"), NET_RULES)
def test_5_1_3_1_a_feature_needs_another(feature: str, needed: str) -> None:
    alone = feature_set(["VERSION_1", feature], "net")
    both = alone | feature_set([needed], "net")
    message = f"^VIRTIO_NET_F_{feature} needs VIRTIO_NET_F_{needed}$"
    for check in (lambda s: check_accepted(ALL, s, "net"), lambda s: check_offered(s, "net")):
        with pytest.raises(NegotiationError, match=message):
            check(alone)
        check(both)


@pytest.mark.parametrize(("feature", "prefix"), [("GUEST_ECN", "GUEST"), ("HOST_ECN", "HOST"), ("RSC_EXT", "HOST")])
def test_5_1_3_1_either_tso_will_do(feature: str, prefix: str) -> None:
    base = ["VERSION_1", "CSUM", "GUEST_CSUM", feature]
    with pytest.raises(NegotiationError, match=f"needs VIRTIO_NET_F_{prefix}_TSO4 or VIRTIO_NET_F_{prefix}_TSO6"):
        check_accepted(ALL, feature_set(base, "net"), "net")
    for either in ("TSO4", "TSO6"):
        check_accepted(ALL, feature_set([*base, f"{prefix}_{either}"], "net"), "net")


def test_2_2_1_a_driver_accepts_only_what_was_offered() -> None:
    offered = feature_set(["VERSION_1", "EVENT_IDX"])
    with pytest.raises(NegotiationError, match=r"did not offer \(2\.2\.1\): VIRTIO_RING_F_INDIRECT_DESC, bit 50"):
        check_accepted(offered, offered | 1 << 28 | 1 << 50)
    with pytest.raises(NegotiationError, match="not negative"):
        check_accepted(offered, -1)
    with pytest.raises(NegotiationError, match="not negative"):
        check_offered(-1)


def test_6_1_version_1() -> None:
    """Without it only a transitional device works, and no bit beyond the 32 that a legacy driver sees."""
    with pytest.raises(NegotiationError, match="no legacy device"):
        check_accepted(ALL, 0)
    check_accepted(ALL, 0, transitional=True)
    check_accepted(ALL, feature_set(["EVENT_IDX", "INDIRECT_DESC"]), transitional=True)
    with pytest.raises(NegotiationError, match="VIRTIO_F_RING_PACKED needs VIRTIO_F_VERSION_1"):
        check_accepted(ALL, feature_set(["RING_PACKED"]), transitional=True)


def test_ring_features_are_independent_of_each_other() -> None:
    for name in ("INDIRECT_DESC", "EVENT_IDX", "RING_PACKED", "IN_ORDER"):
        check_accepted(ALL, feature_set(["VERSION_1", name]))


def test_5_2_5_2_a_device_with_config_wce_offers_flush() -> None:
    wce = feature_set(["VERSION_1", "CONFIG_WCE"], "blk")
    with pytest.raises(NegotiationError, match="VIRTIO_BLK_F_CONFIG_WCE needs VIRTIO_BLK_F_FLUSH"):
        check_offered(wce, "blk")
    check_accepted(ALL, wce, "blk")  # a rule for the device, not for the driver


@given(st.integers(0, ALL), st.integers(0, ALL))
@settings(derandomize=True, deadline=None)
def test_what_a_driver_may_accept_is_accepted_and_cannot_be_larger(offered: int, understood: int) -> None:
    best = acceptable(offered, understood, "net")
    check_accepted(offered, best, "net", transitional=True)
    assert best & ~understood == 0
    for bit in range(64):
        more = best | 1 << bit
        if more != best and more & ~(offered & understood) == 0:
            with pytest.raises(NegotiationError):
                check_accepted(offered, more, "net", transitional=True)


def test_the_tables_know_only_their_own_device() -> None:
    assert set(negotiation._NEEDS) | set(negotiation._OFFER_NEEDS) == {"net", "blk"}
    check_accepted(ALL, 1 << 32 | 1 << 22, "blk")  # bit 22 means MQ to a network device only
