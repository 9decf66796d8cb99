"""Which features a device may offer and a driver may accept (virtio 1.2, 2.2, 5.1.3.1, 5.2.5.2, 6.1).

Example:
    >>> from iosim.virtio.features import feature_set
    >>> offered = feature_set(["VERSION_1", "MQ", "CTRL_VQ"], "net")
    >>> check_accepted(offered, feature_set(["VERSION_1", "MQ"], "net"), "net")
    Traceback (most recent call last):
    ...
    iosim.virtio.errors.NegotiationError: VIRTIO_NET_F_MQ needs VIRTIO_NET_F_CTRL_VQ
    >>> feature_names(acceptable(offered, feature_set(["VERSION_1", "MQ"], "net"), "net"), "net")
    ['VIRTIO_F_VERSION_1']
"""

from __future__ import annotations

from typing import Final

from iosim.virtio import features as f
from iosim.virtio.errors import NegotiationError
from iosim.virtio.features import feature_name, feature_names, has_feature

_TSO: Final = (f.VIRTIO_NET_F_HOST_TSO4, f.VIRTIO_NET_F_HOST_TSO6)
_GUEST_TSO: Final = (f.VIRTIO_NET_F_GUEST_TSO4, f.VIRTIO_NET_F_GUEST_TSO6)
_GUEST_CSUM: Final = (f.VIRTIO_NET_F_GUEST_CSUM,)
_CSUM: Final = (f.VIRTIO_NET_F_CSUM,)
_CTRL_VQ: Final = (f.VIRTIO_NET_F_CTRL_VQ,)

#: For each device type: feature -> the features of which it needs at least one.
_NEEDS: Final[dict[str, dict[int, tuple[int, ...]]]] = {
    # 5.1.3.1
    "net": {
        f.VIRTIO_NET_F_GUEST_TSO4: _GUEST_CSUM,
        f.VIRTIO_NET_F_GUEST_TSO6: _GUEST_CSUM,
        f.VIRTIO_NET_F_GUEST_ECN: _GUEST_TSO,
        f.VIRTIO_NET_F_GUEST_UFO: _GUEST_CSUM,
        f.VIRTIO_NET_F_GUEST_USO4: _GUEST_CSUM,
        f.VIRTIO_NET_F_GUEST_USO6: _GUEST_CSUM,
        f.VIRTIO_NET_F_HOST_TSO4: _CSUM,
        f.VIRTIO_NET_F_HOST_TSO6: _CSUM,
        f.VIRTIO_NET_F_HOST_ECN: _TSO,
        f.VIRTIO_NET_F_HOST_UFO: _CSUM,
        f.VIRTIO_NET_F_HOST_USO: _CSUM,
        f.VIRTIO_NET_F_CTRL_RX: _CTRL_VQ,
        f.VIRTIO_NET_F_CTRL_VLAN: _CTRL_VQ,
        f.VIRTIO_NET_F_GUEST_ANNOUNCE: _CTRL_VQ,
        f.VIRTIO_NET_F_MQ: _CTRL_VQ,
        f.VIRTIO_NET_F_CTRL_MAC_ADDR: _CTRL_VQ,
        f.VIRTIO_NET_F_NOTF_COAL: _CTRL_VQ,
        f.VIRTIO_NET_F_RSC_EXT: _TSO,
        f.VIRTIO_NET_F_RSS: _CTRL_VQ,
    },
}
#: The same for what a device offers: rules that bind only the device.
_OFFER_NEEDS: Final[dict[str, dict[int, tuple[int, ...]]]] = {
    # 5.2.5.2: a device that offers CONFIG_WCE MUST offer FLUSH. A driver may still accept the one alone.
    "blk": {f.VIRTIO_BLK_F_CONFIG_WCE: (f.VIRTIO_BLK_F_FLUSH,)},
}
#: A legacy driver, one without VERSION_1, sees 32 bits and no more (4.1.4.8, 4.2.4).
_LEGACY_BITS: Final = 32


def _missing(features: int, rules: dict[int, tuple[int, ...]]) -> tuple[int, tuple[int, ...]] | None:
    """Return the first feature in ``features`` that lacks what it needs, with what that is."""
    for feature, alternatives in rules.items():
        if has_feature(features, feature) and not any(has_feature(features, a) for a in alternatives):
            return feature, alternatives
    if not has_feature(features, f.VIRTIO_F_VERSION_1) and features >> _LEGACY_BITS:
        beyond = features >> _LEGACY_BITS << _LEGACY_BITS
        return (beyond & -beyond).bit_length() - 1, (f.VIRTIO_F_VERSION_1,)
    return None


def _check_needs(features: int, rules: dict[int, tuple[int, ...]], device: str | None) -> None:
    missing = _missing(features, rules)
    if missing is not None:
        feature, alternatives = missing
        needed = " or ".join(feature_name(bit, device) for bit in alternatives)
        raise NegotiationError(f"{feature_name(feature, device)} needs {needed}")


def check_offered(offered: int, device: str | None = None) -> None:
    """Raise unless a device may offer these features.

    Args:
        offered: The set.
        device: ``net`` and so on, for the rules of this type of device.

    Raises:
        NegotiationError: A feature is offered without another that it needs (2.2.2), or the set is negative.
    """
    if offered < 0:
        raise NegotiationError(f"a set of features is not negative: {offered}")
    rules = _NEEDS.get(device or "", {}) | _OFFER_NEEDS.get(device or "", {})
    _check_needs(offered, rules, device)


def check_accepted(offered: int, accepted: int, device: str | None = None, transitional: bool = False) -> None:
    """Raise unless a device can work with what the driver accepted; it then keeps FEATURES_OK clear (3.1.1).

    Args:
        offered: What the device offered.
        accepted: What the driver wrote.
        device: ``net`` and so on, for the rules of this type of device.
        transitional: Whether the device also works for a driver without VIRTIO_F_VERSION_1 (6.1.2).

    Raises:
        NegotiationError: A feature was not offered (2.2.1), lacks another that it needs, or VERSION_1 is
            missing.
    """
    if accepted < 0:
        raise NegotiationError(f"a set of features is not negative: {accepted}")
    extra = accepted & ~offered
    if extra:
        names = ", ".join(feature_names(extra, device))
        raise NegotiationError(f"the driver accepted what the device did not offer (2.2.1): {names}")
    _check_needs(accepted, _NEEDS.get(device or "", {}), device)
    if not transitional and not has_feature(accepted, f.VIRTIO_F_VERSION_1):
        raise NegotiationError("the driver did not accept VIRTIO_F_VERSION_1; this device is no legacy device (6.1)")


def acceptable(offered: int, understood: int, device: str | None = None) -> int:
    """Return what a driver that understands these features accepts: all that are offered and complete.

    A feature that lacks what it needs is dropped, and so is what needed that in turn (as Linux's
    ``virtnet_probe`` does, which looks for TSO only behind CSUM).
    """
    features = offered & understood
    rules = _NEEDS.get(device or "", {})
    while (missing := _missing(features, rules)) is not None:
        features &= ~(1 << missing[0])
    return features
