"""The milestones of a request, in the order in which it passes them, and the stages between them.

Every network path passes the same milestones; what happens on the way to each (and hence the stage's name, layer and
kind) is the path's own: a model gives the stages of its two directions, and here they are put together for a workload.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from iosim.requests import Stage
from iosim.workload.spec import RR, RX, TX, Workload

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
CLIENT_OUT: Final = {
    "on_wire": Stage("NIC transmit", "device", WORK),
    "client_arrived": Stage("wire to client", "device", WORK),
    "client_received": Stage("client receive", "client", WORK),
}
APPLICATION_TX: Final = {
    "sent": Stage("application, sendmsg, stack", "guest", WORK),
}
RX_NAMES: Final = ("rx_seen", "rx_used", "rx_signalled", "irq", "handled", "taken", "received", "dequeued", "delivered")
TX_NAMES: Final = ("room", "available", "kicked", "tx_seen", "processed")


class Milestones:
    """The numbers of the milestones of one workload on one path; -1 for those it does not pass.

    Args:
        workload: The workload.
        rx: The path's stages of the receive direction, by milestone, from the tap's queue to the application.
        tx: The path's stages of the transmit direction, from the driver to the host's NIC.

    Attributes:
        stages: All stages in order; stage ``i`` ends at milestone ``i + 1``.
        names: All milestones' names, ``created`` first.
    """

    __slots__ = (
        "arrived", "available", "client_arrived", "client_received", "client_sent", "delivered", "dequeued",
        "handled", "irq", "kicked", "names", "nic_taken", "on_wire", "processed", "received", "room", "rx_seen",
        "rx_signalled", "rx_used", "sent", "stages", "taken", "tap_queued", "tx_seen",
    )  # fmt: skip

    def __init__(self, workload: Workload, rx: Mapping[str, Stage], tx: Mapping[str, Stage]) -> None:
        assert tuple(rx) == RX_NAMES, rx
        assert tuple(tx) == TX_NAMES, tx
        chain: dict[str, Stage] = {}
        if workload.kind == RR:
            chain = {**CLIENT_IN, **rx, **APPLICATION_TX, **tx, **CLIENT_OUT}
        elif workload.kind == RX:
            incoming = {name: stage for name, stage in CLIENT_IN.items() if name != "client_sent"}
            chain = {**incoming, **rx}
        elif workload.kind == TX:
            chain = {**APPLICATION_TX, **tx, "on_wire": CLIENT_OUT["on_wire"]}
        for name in self.__slots__:
            if name not in ("names", "stages"):
                setattr(self, name, -1)
        for number, name in enumerate(chain, start=1):
            setattr(self, name, number)
        self.stages = list(chain.values())
        self.names = ["created", *chain]

    arrived: int
    available: int
    client_arrived: int
    client_received: int
    client_sent: int
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
