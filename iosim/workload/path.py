"""The milestones of a request, in the order in which it passes them, and the stages between them.

Every network path passes the same milestones; what happens on the way to each (and hence the stage's name, layer and
kind) is the path's own: a model gives the stages of its two directions, and here they are put together for a workload.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from iosim.requests import Stage
from iosim.workload.spec import ROLES, RR, RX, TX, Workload

WAIT_CPU: Final = "wait: CPU"
WAIT_NOTIFICATION: Final = "wait: notification"
WAIT_QUEUE: Final = "wait: queue"
WAIT_MODERATION: Final = "wait: moderation"
WORK: Final = "work"

CLIENT_IN: Final = {
    "client_sent": Stage("client send", "client", WORK),
    "arrived": Stage("wire to host", "device", WORK),
    "nic_taken": Stage("NIC interrupt", "device", WAIT_MODERATION),
    "tap_queued": Stage("host receive, bridge, tap", "host kernel", WORK),
}
HOST_KERNEL: Final = ("nic_taken", "tap_queued")
"""What a packet does not pass whose NIC is not the host kernel's."""
CLIENT_OUT: Final = {
    "on_wire": Stage("NIC transmit", "device", WORK),
    "client_arrived": Stage("wire to client", "device", WORK),
    "client_received": Stage("client receive", "client", WORK),
}
HOST_IN: Final = {
    "client_sent": Stage("client: sendmsg, stack", "client", WORK),
    "tap_queued": Stage("bridge, tap", "host kernel", WORK),
}
HOST_OUT: Final = {
    "client_arrived": Stage("bridge, host's stack", "host kernel", WORK),
    "client_woken": Stage("client wakes", "client", WAIT_CPU),
    "client_received": Stage("client: recvmsg", "client", WORK),
}
"""Where the client is a process on the host."""
APPLICATION_TX: Final = {
    "sent": Stage("application, sendmsg, stack", "guest", WORK),
}
BRIDGED: Final = Stage("bridge, tap", "host kernel", WORK)
"""Between guests, from one tap into the other, on the thread that writes; it ends with ``tap_queued``."""
RX_NAMES: Final = ("rx_seen", "rx_used", "rx_signalled", "irq", "handled", "taken", "received", "dequeued", "delivered")
TX_NAMES: Final = ("room", "available", "kicked", "tx_seen", "processed")


def between_guests(workload: Workload, rx: Mapping[str, Stage], tx: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stages between two guests, each named by whose it is: ``client_sent``, "client: kick".

    ``processed`` is then the write to the sender's tap, and ``tap_queued`` what its thread does below that.
    """
    out, back = ROLES[workload.name]
    send, receive = {**APPLICATION_TX, **tx}, {"tap_queued": BRIDGED, **rx}
    legs = [(out, send), (back, receive)]
    if workload.kind == RR:
        legs += [(back, send), (out, receive)]
    return {
        f"{role}_{name}": Stage(f"{role}: {stage.name}", stage.layer, stage.kind)
        for role, leg in legs
        for name, stage in leg.items()
    }


class Milestones:
    """The numbers of the milestones of one workload on one path; -1 for those it does not pass.

    Args:
        workload: The workload.
        rx: The path's stages of the receive direction, by milestone, from the tap's queue to the application.
        tx: The path's stages of the transmit direction, from the driver to the host's NIC.
        bypass: Packets bypass the host's kernel, tap and all; milestones that stand in neither ``rx`` nor ``tx`` are
            not passed.
        side: Between guests: 0 or 1, for who makes the requests and for who answers or receives. The numbers are of
            the milestones in that guest and in what serves it.

    Attributes:
        stages: All stages in order; stage ``i`` ends at milestone ``i + 1``.
        names: All milestones' names, ``created`` first.
    """

    __slots__ = (
        "arrived", "available", "client_arrived", "client_received", "client_sent", "client_woken", "delivered",
        "dequeued", "handled", "irq", "kicked", "names", "nic_taken", "on_wire", "processed", "received", "room",
        "rx_seen", "rx_signalled", "rx_used", "sent", "stages", "taken", "tap_queued", "tx_seen",
    )  # fmt: skip

    def __init__(
        self, workload: Workload, rx: Mapping[str, Stage], tx: Mapping[str, Stage], bypass: bool = False, side: int = 0
    ) -> None:
        assert list(rx) == [name for name in RX_NAMES if name in rx or not bypass], rx
        assert list(tx) == [name for name in TX_NAMES if name in tx or not bypass], tx
        chain: dict[str, Stage] = {}
        client_in = {name: stage for name, stage in CLIENT_IN.items() if not (bypass and name in HOST_KERNEL)}
        mine = ""
        if workload.between_guests:
            chain = between_guests(workload, rx, tx)
            mine = f"{ROLES[workload.name][side]}_"
        elif workload.with_host:
            incoming = {**HOST_IN, **rx} if workload.kind != TX else {}
            outgoing = {**APPLICATION_TX, **tx, **HOST_OUT} if workload.kind != RX else {}
            chain = {**incoming, **outgoing}
        elif workload.kind == RR:
            chain = {**client_in, **rx, **APPLICATION_TX, **tx, **CLIENT_OUT}
        elif workload.kind == RX:
            incoming = {name: stage for name, stage in client_in.items() if name != "client_sent"}
            chain = {**incoming, **rx}
        elif workload.kind == TX:
            chain = {**APPLICATION_TX, **tx, "on_wire": CLIENT_OUT["on_wire"]}
        for name in self.__slots__:
            if name not in ("names", "stages"):
                setattr(self, name, -1)
        for number, name in enumerate(chain, start=1):
            if name.startswith(mine):
                setattr(self, name.removeprefix(mine), number)
        self.stages = list(chain.values())
        self.names = ["created", *chain]

    arrived: int
    available: int
    client_arrived: int
    client_received: int
    client_sent: int
    client_woken: int
    delivered: int
    dequeued: int
    handled: int
    irq: int
    kicked: int
    names: list[str]
    nic_taken: int
    on_wire: int
    processed: int
    received: int
    room: int
    rx_seen: int
    rx_signalled: int
    rx_used: int
    sent: int
    stages: list[Stage]
    taken: int
    tap_queued: int
    tx_seen: int
