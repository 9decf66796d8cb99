# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Three paths of a packet
#
# A guest has a network card. Three command lines give it one in three ways: all of it emulated by QEMU, a
# virtio card served by QEMU, a virtio card served by the host's kernel. They are the command lines of a
# classical introduction to KVM, and it claims:
#
# * full emulation is slow because of the many VM exits, entries and context switches;
# * virtio leaves the I/O trap out, and needs far fewer exits;
# * vhost-net moves the back end into the kernel: more throughput, less latency again.
#
# Here each claim is looked at. Some hold only in part. The last part is for you: change one thing at a time.

# %%
from pathlib import Path

import matplotlib.pyplot as plt

import iosim

# %matplotlib inline

machines = Path("../models/machines")
paths = ["full-emulation", "virtio-net", "vhost-net"]
files = [f"{machines}/{path}.sh" for path in paths]
for file in files:
    print(Path(file).read_text())

# %% [markdown]
# The load is `rr`: a client outside sends one byte, the guest answers, and only then comes the next
# request. One request is one round trip, and its latency is what the client sees.

# %%
comparison = iosim.compare(*files, requests=2000)
comparison.plot()

# %% [markdown]
# Read a bar from left to right: it is the life of a mean request. Hatched is waiting. The grey ends are the
# client. They are the same in all three paths, and long: what you compare is what lies between them.
#
# The same in numbers, and what each request costs besides time:

# %%
comparison

# %% [markdown]
# Every number here is an estimate for the *composite* host, put together from published measurements and
# from assumptions. The line under the figure says how many are assumed.
#

# ## Where does full emulation's time go?
#
# The guest's driver talks to the card through registers. Each access leaves the guest, and most of them go
# out to QEMU, which finds the device, takes the big QEMU lock, plays the card, and enters the guest again.
# Let us watch one round trip, register by register. `iosim.install` puts a path into a SimPy environment,
# where it can be stopped at any time.

# %%
from iosim.host.e1000 import REGISTER_NAMES, WRITTEN

watched = iosim.install("e1000", host__constant=True)
device = watched.machine.parts["device"]
completed = watched.machine.window

while completed.completed < 20:  # let it settle
    watched.env.run(until=watched.env.now + 1_000_000)  # 1 µs
device.tracing = True
while completed.completed < 21:
    watched.env.run(until=watched.env.now + 1_000_000)

print("  ".join(f"{'W' if entry & WRITTEN else 'R'} {REGISTER_NAMES[entry >> 1]}" for entry in device.trace))

# %% [markdown]
# That is the interrupt handler (read the cause, mask, flush), NAPI (give buffers back, unmask, flush) and
# the one write that sends the answer (TDT). Only the write of RDT is not urgent: KVM notes it down, and
# QEMU learns of it at the next exit.
#
# What is a trip out to QEMU and back? Not its price, but its parts have names:

# %%
emulated, virtio, vhost = comparison.results
host = emulated.specification.host


def microseconds(*costs):
    return sum(host.cost(cost).distribution.mean for cost in costs) / 1e6


trip = ["vm_exit", "kvm_mmio_decode", "kvm_run_return", "qemu_dispatch", "kvm_run_enter", "vm_entry"]
for cost in trip:
    print(f"{cost:16} {microseconds(cost):5.2f} µs")

exits = emulated.per_request("userspace_exits").value
print(f"\none trip {microseconds(*trip):.2f} µs, {exits:.0f} trips a request: {exits * microseconds(*trip):.1f} µs")
print(f"of a latency of {emulated.latency['mean'].value / 1e3:.1f} µs")

# %% [markdown]
# So the exits are expensive. But they are not the longest part. What is?

# %%
for stage in sorted(emulated.breakdown(), key=lambda stage: -stage.mean.value)[:5]:
    print(f"{stage.mean.value / 1e3:6.1f} µs  {stage.name:38} {stage.layer}, {stage.kind}")

# %% [markdown]
# The guest waits for an interrupt that QEMU holds back. The e1000 has *interrupt mitigation*: after one
# interrupt the next must wait for a timer, 128 µs at least. A loop that is faster than that runs at the
# timer's pace. Take it away:

# %%
eager = iosim.compare(files[0], requests=1000, settings={"device.mitigation": "off"}).results[0]


def show(rows):
    """Print one line for each result."""
    columns = ("latency µs", "requests/s", "interrupts", "kicks", "to user space", "vCPU busy")
    print(" " * 24 + "".join(f"{column:>14}" for column in columns))
    for name, r in rows:
        values = (
            r.latency["mean"].value / 1e3,
            r.throughput.value,
            *(r.per_request(counter).value for counter in ("interrupts", "kicks", "userspace_exits")),
            r.cpu_busy["vcpu0"].value,
        )
        formats = ("14.1f", "14.0f", "14.2f", "14.2f", "14.2f", "14.0%")
        print(f"{name:24}" + "".join(format(v, f) for v, f in zip(values, formats, strict=True)))


show([("full-emulation", emulated), ("  mitigation off", eager)])
assert eager.latency["mean"].value < emulated.latency["mean"].value
assert eager.per_request("userspace_exits").value > emulated.per_request("userspace_exits").value

# %% [markdown]
# Mitigation is a trade: fewer exits, longer waits. Without it the answer's own interrupt ("sent") comes
# extra, and the handler runs twice. And the latency is still well above virtio's: most of that rest is
# exits.
#
# ## What does virtio leave out?
#
# "Virtio leaves the I/O trap out" is not quite true. Look at the kick:

# %%
for name in ("kicks", "exits.EPT_MISCONFIG", "userspace_exits"):
    print(f"{name:20} {virtio.per_request(name).value:.2f}")
kick = ["vm_exit", "kvm_ioeventfd", "vm_entry"]
print(f"\na kick {microseconds(*kick):.2f} µs, a trip out to QEMU {microseconds(*trip):.2f} µs")
assert virtio.per_request("exits.EPT_MISCONFIG").value == virtio.per_request("kicks").value

# %% [markdown]
# Each kick **is** an exit, for the same reason (EPT_MISCONFIG) as a register access of the e1000. What is
# left out is the rest of the trip: KVM finds an *ioeventfd* at this address, signals it, and enters the
# guest again. QEMU hears of it on another thread. And there is one such write for a packet where the e1000
# needed a handful: the rest of what has to be said stands in the ring, in shared memory.
#
# It is not free either. The other thread sleeps, and has to be woken:

# %%
for stage in virtio.breakdown():
    if stage.kind == "wait: notification":
        print(f"{stage.mean.value / 1e3:6.1f} µs  {stage.name}")

# %% [markdown]
# ## What does vhost-net move?
#
# The guest is the same, the ring is the same, the kicks are the same. What serves the ring is now a thread
# of the kernel.

# %%
for result, path in ((virtio, "virtio-net"), (vhost, "vhost-net")):
    calls = {c: result.per_request(f"syscalls.{c}").value for c in ("ppoll", "read", "writev", "ioctl")}
    print(f"{path:12}", "  ".join(f"{name} {value:.2f}" for name, value in calls.items()))
    for stage in result.breakdown():
        if stage.layer in ("QEMU", "back end"):
            print(f"{stage.mean.value / 1e3:12.1f} µs  {stage.name}")

# %% [markdown]
# No system call is left on the way, a received packet is copied once and not twice, and the worker wakes up
# sooner than QEMU's main loop.
#
# ## One thing at a time
#
# **Halt polling.** Between two packets the guest has nothing to do and executes HLT. KVM polls a while
# before it lets the thread sleep: it burns the CPU, and saves the wake-up.

# %%
def beside(changed, how):
    """Print each path as it was above, and below it the same with one thing changed."""
    rows = []
    for path, before, after in zip(paths, comparison.results, changed.results, strict=True):
        rows += [(path, before), (f"  {how}", after)]
    show(rows)


beside(iosim.compare(*files, requests=1000, settings={"host.halt_poll_ns": 0}), "halt_poll_ns = 0")

# %% [markdown]
# Two of the three get slower, and all use less CPU. (Why does the first not care? An exercise below.)
#
# **Size.** Bytes are copied, and sent at the wire's rate; little else changes.

# %%
beside(iosim.compare(*files, requests=1000, workload__size=1400), "1400 bytes")

# %% [markdown]
# **Depth.** One request at a time is the worst case for a ring: each packet finds the other side asleep and
# has to wake it. With more requests under way, notifications begin to merge. While a back end works it does
# not want to be kicked; while the guest polls it does not want interrupts. How far does that go? A small
# sweep:

# %%
deeper = iosim.sweep(["e1000", "virtio-net", "vhost-net"], ["workload.depth=1..64*4"], requests=1000)
deeper.plot()

# %%
table = deeper.table.to_pylist()
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
shown = {"kicks": "kicks", "userspace_exits": "exits to user space", "interrupts": "interrupts"}
styles = {"e1000": "o-", "virtio-net": "s--", "vhost-net": "^:"}
for ax, (column, label) in zip(axes, shown.items(), strict=True):
    for model, style in styles.items():
        rows = [row for row in table if row["model"] == model]
        ax.plot([r["workload.depth"] for r in rows], [r[column] for r in rows], style, label=model)
    ax.set_xscale("log", base=4)
    ax.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    ax.set_xlabel("requests under way")
    ax.set_ylabel(f"{label} per request")
    ax.set_ylim(bottom=0)
axes[0].legend()
plt.show()

# %% [markdown]
# Full emulation batches too: one interrupt, one run of the handler, many packets. But each packet sent
# still costs its write of TDT, and that one goes out to QEMU.
#
# Now look at the kicks. QEMU's back end is slow, so under load it is always at work, and is hardly ever
# kicked. **The faster back end is kicked more**: vhost has done a packet before the guest has the next one
# ready, goes back to sleep, and asks to be woken again. Each kick costs the *guest* an exit. With enough
# requests under way the guest is what limits the path, and then the slower back end gets more through, at
# the price of two busy threads:

# %%
deep = {
    model: iosim.simulate(model, requests=1000, workload__depth=64) for model in ("virtio-net", "vhost-net")
}
for model, result in deep.items():
    busy = ", ".join(f"{name} {e.value:.0%}" for name, e in result.cpu_busy.items())
    print(f"{model:12} {result.throughput.value:8.0f} /s   kicks {result.per_request('kicks').value:.2f}   {busy}")
assert deep["vhost-net"].per_request("kicks").value > deep["virtio-net"].per_request("kicks").value

# %% [markdown]
# So "far fewer exits" and "more throughput" are true of a load, not of a device. The paper to read is
# Rizzo, Garzarella, Lettieri, Maffione, *A Study of Speed Mismatches Between Communicating Virtual
# Machines* (ANCS 2016); `iosim run prodcons` has its model.
#
# ## Exercises
#
# **1.** Halt polling made no difference to the e1000's latency. Why not? Find a setting with which it does.
#
# <details><summary>Answer</summary>
#
# The loop runs at the pace of the mitigation timer. Whatever the guest saves or loses on its way to the
# wait, the timer fires when it fires. With `device.mitigation=off` the wake-up of the halted vCPU is in the
# latency. The next cell, folded, checks that.
#
# </details>

# %% jupyter={"source_hidden": true}
change = {}
for mitigation in ("on", "off"):
    both = [
        iosim.simulate("e1000", requests=500, settings={"device.mitigation": mitigation, "host.halt_poll_ns": poll})
        for poll in ("200us", "0")
    ]
    change[mitigation] = (both[1].latency["mean"].value - both[0].latency["mean"].value) / 1e3
    print(f"mitigation {mitigation:3}: without polling {round(change[mitigation], 1) + 0:+.1f} µs")
assert abs(change["on"]) < 1 < 10 < change["off"]

# %% [markdown]
# **2.** The client now waits a while after each reply (`workload.peer_delay`), so that the card has less to do.
# What becomes of the latency as that delay grows, with mitigation and without? Guess before you look.
#
# <details><summary>Answer</summary>
#
# With mitigation it is a saw. While round trip and delay fit into one window, the loop runs at the timer's
# pace: what the client waits, the interrupt need not wait any more. With a longer delay the request misses
# that window and meets the next one: "packet sent" is an interrupt too, it was held back until the first
# window ended, and opened a window of its own. Only when the delay is longer than both does the request find
# the line free. At the foot of a tooth the mitigated card even wins, for it announces two things at once.
#
# Where a line steps up late, halts have become too long for KVM to poll: the guest has to be woken. Mitigation
# puts that off, since its interrupts cut the halts short.
#
# </details>

# %% jupyter={"source_hidden": true}
saw = iosim.sweep(
    "e1000",
    {"device.mitigation": [True, False], "workload.peer_delay": "0us..240us:20us"},
    requests=200,
    settings={"host.constant": True},
)
figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
lines = {}
for on, style in ((True, "o-"), (False, "s--")):
    rows = [row for row in saw.table.to_pylist() if row["device.mitigation"] is on]
    x = [row["workload.peer_delay_ns"] / 1e3 for row in rows]
    lines[on] = [row["latency_mean_ns"] / 1e3 for row in rows]
    ax.plot(x, lines[on], style, label=f"mitigation {'on' if on else 'off'}")
ax.set_xlabel("workload.peer_delay (µs)")
ax.set_ylabel("mean latency (µs)")
ax.set_ylim(bottom=0)
ax.legend()
plt.show()
assert max(lines[True]) > lines[True][0] > min(lines[True])
assert abs(lines[True][-1] - lines[False][-1]) < 1

# %% [markdown]
# **3.** Whose fault is it? Make the exit itself twice as expensive (`host.costs.vm_exit`,
# `host.costs.vm_entry`), and see which path suffers most. Then do the same to the wake-up of a sleeping
# thread (`host.costs.thread_wakeup`).
#
# <details><summary>Answer</summary>
#
# Under mitigation the e1000 hides both: it waits for its timer anyway. Turn mitigation off, and it suffers
# from the exit more than the others do, since it has many. The wake-up of a thread hurts virtio-net most:
# QEMU's main loop is woken twice a round trip. vhost-net's worker has a wake-up of its own,
# `vhost_worker_wakeup`.
#
# </details>

# %% jupyter={"source_hidden": true}
cases = {
    "as it is": {},
    "exits twice": {f"host.costs.{c}": f"{2 * microseconds(c):.3f}us" for c in ("vm_exit", "vm_entry")},
    "wake-up twice": {"host.costs.thread_wakeup": f"{2 * microseconds('thread_wakeup'):.3f}us"},
}
slower = {}
for case, settings in cases.items():
    for model in ("e1000", "virtio-net", "vhost-net"):
        device = {"device.mitigation": "off"} if model == "e1000" else {}
        mean = iosim.simulate(model, requests=500, settings={**settings, **device}).latency["mean"].value / 1e3
        slower[case, model] = mean - slower.get(("as it is", model), 0)
    sign = "+" if settings else ""
    print(f"{case:14}", "   ".join(f"{m} {sign}{slower[case, m]:.1f} µs" for m in ("e1000", "virtio-net", "vhost-net")))
assert slower["exits twice", "e1000"] > 2 * slower["exits twice", "virtio-net"]
assert slower["wake-up twice", "virtio-net"] > slower["wake-up twice", "e1000"]
assert abs(slower["wake-up twice", "vhost-net"]) < 0.5
