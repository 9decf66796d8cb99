"""Every test of a device runs on a plain split queue, and on a packed one with indirect tables."""

from __future__ import annotations

import pytest

from iosim.ring.virtqueue import new_virtqueue
from iosim.virtio import transport


@pytest.fixture(params=["split", "packed+indirect"], autouse=True)
def ring(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of queue that `iosim.virtio.transport.Driver` makes, whatever else is negotiated."""
    made = {"split": {"indirect": False}, "packed+indirect": {"packed": True, "indirect": True}}[request.param]

    def new(mem, size, event_idx, **_negotiated):
        return new_virtqueue(mem, size, event_idx, **made)

    monkeypatch.setattr(transport, "new_virtqueue", new)
    return request.param
