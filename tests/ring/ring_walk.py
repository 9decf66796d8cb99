"""A model whose one process drives both sides of a ring at random: for comparing the engines, not for what it costs.

The time a step takes depends on everything that the ring functions have answered so far, so a difference in one
answer shows in the time stamps.
"""

from __future__ import annotations

from typing import Any

from iosim.effects import spend
from iosim.engine.distributions import Constant
from iosim.engine.system import System
from iosim.host.costs import PRODUCER_WORK
from iosim.host.machine import Machine
from iosim.model import Model
from iosim.requests import RequestTable, Stage
from iosim.ring.memory import GuestMemory, allocate
from iosim.ring.queue import (
    add,
    add_batched,
    add_direct,
    arm_avail_event,
    arm_used_event,
    avail_in_ring,
    delayed_bufs,
    disable_cb,
    empty,
    enable_cb,
    enable_cb_delayed,
    enable_cb_prepare,
    fill,
    flush,
    get_used,
    kick_prepare,
    more_used,
    new_queue,
    poll,
    pop,
    publish,
    push,
    push_batch,
    set_notification,
    should_notify,
    unpop,
    used_beyond,
    vring_interrupt,
)
from iosim.settings import Flag, Settings, Whole
from iosim.window import Window, complete, new_request

built: list[Any] = []


class WalkSettings(Settings):
    size: Whole = 8
    start: Whole = 0
    seed: Whole = 1
    event_idx: Flag = True
    packed: Flag = False
    indirect: Flag = False
    in_order: Flag = False
    hostile: Flag = False


class Walk:
    def __init__(self, machine: Machine, s: WalkSettings) -> None:
        self.machine = machine
        self.driver, self.device = new_queue(
            machine.memory, s.size, s.event_idx, s.start, packed=s.packed, indirect=s.indirect, in_order=s.in_order
        )
        self.buffers = allocate(machine.memory, 4096, 64)
        self.held = [0] * s.size
        self.seed = s.seed
        self.sum = 0
        self.added = 0
        self.hostile = s.hostile


def note(w, value):
    w.sum = (w.sum * 31 + value + 7) & 0x3FFFFFFF


def rand(w, limit):
    w.seed = (w.seed * 1103515245 + 12345) & 0x7FFFFFFF
    return (w.seed >> 12) % limit


def segments(w, total):
    for k in range(total):
        w.driver.seg_addr[k] = w.buffers + rand(w, 4000)
        w.driver.seg_len[k] = 1 + rand(w, 90)


def step(w):
    d = w.driver
    q = w.device
    what = rand(w, 12)
    if what < 4:
        total = 1 + rand(w, min(4, d.size))
        outs = rand(w, total + 1)
        segments(w, total)
        if what == 0:
            note(w, add_batched(d, outs, total - outs, w.added))
        elif what == 1:
            note(w, add_direct(d, outs, total - outs, w.added))
            publish(d)
        else:
            note(w, add(d, outs, total - outs, w.added))
        w.added += 1
    elif what < 7:
        head = pop(q)
        note(w, head)
        if head >= 0:
            for k in range(q.elem_out_num + q.elem_in_num):
                note(w, q.elem_addr[k] + q.elem_len[k])
            if rand(w, 8) == 0:
                unpop(q, head)
            elif q.in_order and rand(w, 2) == 0:
                note(w, push_batch(q, head, rand(w, 100)))
            elif not q.in_order and q.inuse > 1 and rand(w, 2) == 0:
                fill(q, head, rand(w, 100), 0)
                flush(q, 1)
            elif not q.in_order:
                push(q, head, rand(w, 100))
    elif what < 9:
        note(w, get_used(d))
        note(w, d.used_len)
        note(w, d.num_free)
    elif what == 9:
        note(w, kick_prepare(d))
        note(w, more_used(d))
        note(w, vring_interrupt(d))
        note(w, used_beyond(d, rand(w, 4)))
    elif what == 10:
        how = rand(w, 5)
        if how == 0:
            disable_cb(d)
        elif how == 1:
            note(w, enable_cb(d))
        elif how == 2:
            note(w, enable_cb_delayed(d))
        elif how == 3:
            note(w, poll(d, enable_cb_prepare(d)))
        else:
            arm_used_event(d, delayed_bufs(d))
    else:
        note(w, should_notify(q))
        note(w, avail_in_ring(q))
        note(w, empty(q))
        how = rand(w, 3)
        if how < 2:
            set_notification(q, how == 1)
        else:
            arm_avail_event(q, q.last_avail_idx + rand(w, 3))
    if w.hostile and rand(w, 30) == 0:
        # Somebody scribbles over the ring: the answers are codes now, and stay the same in both engines.
        w.machine.memory.u16[(d.desc >> 1) + rand(w, 8 * d.size)] = rand(w, 65536)


def walker(w):
    m = w.machine
    while not m.window.draining:
        row = yield from new_request(m.window, m.clock.now)
        step(w)
        i = 0
        while i <= (w.sum & 3):
            yield spend(PRODUCER_WORK)
            i += 1
        yield from complete(m.window, row, m.clock.now)


def build(_host: Any, _workload: Any, settings: WalkSettings) -> Machine:
    system = System()
    table = RequestTable([Stage("work", "guest", "work")])
    machine = Machine(system, Window(system, table), GuestMemory(1 << 16))
    w = Walk(machine, settings)
    built.append(w)
    system.process("walker", walker(w), system.thread("walker"))
    return machine


MODEL = Model(
    "ring-walk", "both sides of a ring at random", WalkSettings, build, ("tx",),
    costs=lambda settings: {"producer_work": Constant(1000.0)},
)  # fmt: skip
