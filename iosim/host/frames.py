"""Sizes of frames: what headers and the wire add to a payload."""

from __future__ import annotations

from typing import Final

TCP_HEADERS: Final = 66
"""Bytes of Ethernet (14), IPv4 (20) and TCP (32, with time stamps: Linux's default) headers of each segment."""
MSS: Final = 1448
"""Payload bytes of a full segment: 1500 less IPv4 and TCP headers."""
WIRE_OVERHEAD: Final = 24
"""Bytes on the wire besides a frame: preamble 8, check sequence 4, inter-packet gap 12 (IEEE 802.3)."""
