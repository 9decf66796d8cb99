"""What to type so that a guest uses the device: QEMU's options, user-mode Linux's parameter."""

from __future__ import annotations

import shlex
from typing import Final

#: Device numbers of the specification, section 5; user-mode Linux wants to be told.
_DEVICE_IDS: Final = {"vhost-user-net": 1, "vhost-user-blk": 2}


def qemu_options(
    kind: str, socket: str, *, queues: int = 1, queue_size: int | None = None, packed: bool = False
) -> list[str]:
    """Return the options that connect a QEMU machine of 1 GB to the device.

    Example:
        >>> for line in qemu_options("vhost-user-net", "/run/s"):
        ...     print(line)
        -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -machine pc,memory-backend=mem
        -chardev socket,id=iosim,path=/run/s
        -netdev vhost-user,id=net,chardev=iosim -device virtio-net-pci,netdev=net,vectors=0
    """
    properties = ""
    ring = ",packed=on" if packed else ""
    if kind == "vhost-user-blk":
        properties += f",num-queues={queues}"
        properties += f",queue-size={queue_size}" if queue_size else ""
        device = [f"-device vhost-user-blk-pci,chardev=iosim{properties}{ring}"]
    else:
        pairs = f",queues={queues}" if queues > 1 else ""
        properties += ",mq=on" if queues > 1 else ""
        properties += f",rx_queue_size={queue_size},tx_queue_size={queue_size}" if queue_size else ""
        # vectors=0: QEMU 7.2 without KVM crashes when vhost-user-net uses MSI-X.
        device = [
            f"-netdev vhost-user,id=net,chardev=iosim{pairs} "
            f"-device virtio-net-pci,netdev=net,vectors=0{properties}{ring}"
        ]
    return [
        # The device reads and writes the guest's memory, so the guest's memory has to be shared.
        "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -machine pc,memory-backend=mem",
        f"-chardev socket,id=iosim,path={shlex.quote(socket.replace(',', ',,'))}",
        *device,
    ]


def uml_parameter(kind: str, socket: str) -> str:
    """Return the parameter that connects user-mode Linux to the device.

    Example:
        >>> uml_parameter("vhost-user-blk", "/run/s")
        'virtio_uml.device=/run/s:2'
    """
    return f"virtio_uml.device={shlex.quote(socket)}:{_DEVICE_IDS[kind]}"
