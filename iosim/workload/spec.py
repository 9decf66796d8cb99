"""What a workload is: rr, tx or rx, and its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from iosim.host.frames import TCP_HEADERS, WIRE_OVERHEAD

RR: Final = 0
TX: Final = 1
RX: Final = 2
STREAM: Final = 3
SINK: Final = 4
"""Not workloads of their own: what the application of a background stream does that it sends, or receives."""
REQUEST: Final = 5
"""Nor this: what the client's application does in rr between guests."""
CLIENT: Final = "client"

MEANINGS: Final[dict[str, str]] = {
    "rr": "request/response: a client outside sends, the guest echoes; one request is one round trip",
    "tx": "the guest sends UDP packets; one request is one packet, from the send call to the last bit on the wire",
    "rx": "the guest receives UDP packets; one request is one packet, from its first bit to the application",
}
NAMES: Final = tuple(MEANINGS)

OUTSIDE: Final = "outside"
GUEST: Final = "guest"
HOST: Final = "host"
PEERS: Final = (OUTSIDE, GUEST, HOST)
ROLES: Final[dict[str, tuple[str, str]]] = {"rr": ("client", "server"), "tx": ("sender", "receiver")}
"""What the two guests are that a workload between guests has; the first makes the requests."""

CLOSED: Final = "closed"
POISSON: Final = "poisson"
CONSTANT: Final = "constant"
ARRIVALS: Final = (CLOSED, POISSON, CONSTANT)

DEFAULT_DEPTH: Final[dict[str, int]] = {"rr": 1, "tx": 32, "rx": 32}
"""Requests under way in a closed loop. tx, rx: assumed, a socket buffer of some tens of packets."""

MAX_PAYLOAD: Final = 1472
"""Bytes of UDP payload in one Ethernet frame of 1500 bytes (IPv4, RFC 791 and 768): one request is one frame."""
HEADERS: Final = 42
"""Bytes of Ethernet (14), IPv4 (20) and UDP (8) headers before the payload."""
MIN_FRAME: Final = 60
"""The shortest Ethernet frame without its check sequence, bytes (IEEE 802.3)."""
MAX_SEND: Final = 65536
"""Bytes of a send call of a TCP stream."""
STREAM_DEPTH: Final = 16
"""Send calls of a stream that may be unacknowledged (assumed: 1 MiB of 64 KiB each, a window after its start)."""


@dataclass(frozen=True)
class Workload:
    """A workload, complete.

    Args:
        name: ``rr``, ``tx`` or ``rx``.
        size: Payload bytes of a packet, each way; above ``MAX_PAYLOAD``, in ``tx`` and ``rx``, of a send call.
        depth: Requests under way in a closed loop, in each flow.
        rate: Requests per second of an open loop, of all flows together; 0 in a closed one.
        arrivals: ``closed``, ``poisson`` or ``constant`` (open loops at ``rate``).
        think_time: ps that the guest's application works on a request before it answers or sends.
        peer_delay: ps that the client waits after a reply before its next request (closed loops).
        flows: Sockets in the guest (in all guests), each with an application of its own, and their peers.
        background: Bytes of each send call of a TCP stream that flows besides; 0: there is none.
        background_depth: Send calls of it that may be unacknowledged.
        background_from: ``guest`` or ``client``: who sends it.
        peer: The other end of each flow: ``outside``, another ``guest`` of the host, or a process on the ``host``.
    """

    name: str
    size: int
    depth: int
    rate: float
    arrivals: str
    think_time: int
    peer_delay: int
    flows: int = 1
    background: int = 0
    background_depth: int = STREAM_DEPTH
    background_from: str = GUEST
    peer: str = OUTSIDE

    @property
    def between_guests(self) -> bool:
        """Whether both ends of a flow are guests."""
        return self.peer == GUEST

    @property
    def with_host(self) -> bool:
        """Whether the other end of each flow is a process on the host."""
        return self.peer == HOST

    @property
    def sides(self) -> int:
        """Ends of a flow that are guests."""
        return 2 if self.between_guests else 1

    @property
    def stream(self) -> bool:
        """Whether a request is a send call of a TCP stream, and not a UDP packet: it does not fit one frame."""
        return self.kind != RR and self.size > MAX_PAYLOAD

    def sends_background(self, side: int = 0) -> bool:
        """Tell whether the guests at an end of the flows send the background stream, if there is one.

        Between guests that is the sender of tx; in rr ``client`` and ``guest`` are what they are outside: who makes the
        requests, and who answers them.
        """
        if self.between_guests:
            return side == (1 if self.kind == RR and self.background_from == GUEST else 0)
        return self.background_from == GUEST

    def received(self, side: int = 0) -> list[bool]:
        """Which flows are streams that the guests at an end of them receive, the background's last."""
        receives = side == 1 if self.between_guests else self.kind == RX
        flows = [self.stream and receives] * self.flows
        return [*flows, not self.sends_background(side)] if self.background else flows

    @property
    def guests_receive(self) -> bool:
        """Whether any guest receives a stream."""
        return any(any(self.received(side)) for side in range(self.sides))

    @property
    def streams(self) -> bool:
        """Whether there are packets of any TCP stream."""
        return self.stream or self.background > 0

    @property
    def kind(self) -> int:
        """``RR``, ``TX`` or ``RX``."""
        return NAMES.index(self.name)

    @property
    def open_loop(self) -> bool:
        """Whether requests arrive at a rate, whatever became of earlier ones."""
        return self.arrivals != CLOSED

    @property
    def frame(self) -> int:
        """Bytes of a request's frame in memory: headers and payload, padded to the shortest.

        Of a stream it is an acknowledgement's: its own packets say their sizes themselves.
        """
        return TCP_HEADERS if self.stream else max(MIN_FRAME, HEADERS + self.size)

    @property
    def wire_bytes(self) -> int:
        """Bytes a frame takes on the wire."""
        return self.frame + WIRE_OVERHEAD
