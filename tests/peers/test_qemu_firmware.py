"""The device's side against QEMU and the virtio driver of its firmware, in seconds: no kernel needed.

SeaBIOS boots from iosim's disk; the boot sector copies what lies behind it to another place, through the BIOS.
QEMU's memory has holes (below 1 MiB, and up to the firmware), which makes it the test of memory regions, too.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from peer import find, running

from iosim.vhost_user.backend import Backend
from iosim.virtio.blk import BlkDevice
from iosim.virtio.disk import MemoryDisk

PASSES = 31
PER_PASS = 32
#: Distance of the copy, in sectors.
AWAY = 1024
#: What the boot sector writes to isa-debug-exit, as QEMU's exit status: (value << 1) | 1.
DONE = 0x10 << 1 | 1

# Assembled with `as --32`; 16-bit code at 0x7c00, the drive's number in DL throughout.
BOOT = bytes.fromhex(
    "31c0 8ed8 8ed0 bc007c fc"  #           xor ax,ax; mov ds,ax; mov ss,ax; mov sp,0x7c00; cld
    "b442 be3b7c cd13 7221"  #        next: mov ah,0x42 (read); mov si,packet; int 0x13; jc fail
    "be3b7c 8144080004"  #                  mov si,packet; add word [si+8],1024
    "b80043 cd13 7212"  #                   mov ax,0x4300 (write); int 0x13; jc fail
    "be3b7c 816c08e003"  #                  mov si,packet; sub word [si+8],1024-32
    "ff0e397c 75da"  #                      dec word [count]; jnz next
    "b010 eb02"  #                          mov al,0x10; jmp out
    "b020 e6f4 f4"  #                 fail: mov al,0x20; out: out 0xf4,al; hlt
    "1f00"  #                        count: 31
    "1000 2000 0000 0010 0100000000000000"  # packet: 32 sectors at sector 1, to 1000:0000
)


@pytest.mark.parametrize("options", ["", ",event_idx=off", ",indirect_desc=off,queue-size=64", ",num-queues=2"])
def test_seabios_boots_and_copies(tmp_path: Path, options: str) -> None:
    program = find("qemu-system-x86_64", "qemu-system-x86")
    content = bytearray(random.Random(options).randbytes(4096 * 512))
    content[:512] = BOOT.ljust(510, b"\0") + b"\x55\xaa"
    disk = MemoryDisk(content)
    device = BlkDevice(disk, num_queues=2)
    reports: list[str] = []
    socket = tmp_path / "blk.sock"
    backend = Backend(device, socket, report=lambda line, detail=False: None if detail else reports.append(line))
    thread = threading.Thread(target=backend.run, daemon=True)
    thread.start()
    command = [
        program,
        # Software emulation, never KVM.
        *("-machine", "pc,accel=tcg,memory-backend=mem", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-object", "memory-backend-memfd,id=mem,size=64M,share=on", "-m", "64M"),
        *("-chardev", f"socket,id=blk,path={socket}"),
        *("-device", f"vhost-user-blk-pci,chardev=blk,bootindex=0{options}"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
    ]
    try:
        with running(command, tmp_path / "qemu.log") as peer:
            assert peer.process.wait(60) == DONE
    finally:
        backend.stop()
        thread.join(10)
        backend.close()
    count = PASSES * PER_PASS * 512
    content[(1 + AWAY) * 512 : (1 + AWAY) * 512 + count] = content[512 : 512 + count]
    assert disk.data == content
    assert reports == []
