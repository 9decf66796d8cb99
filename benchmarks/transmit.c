/* The transmit path of virtio-net by hand, under an open load: models/virtio_net.py and what it stands on.
 *
 * The guest's application, its timer, its driver with NAPI, KVM with adaptive halt polling, QEMU's main loop, the host's
 * NIC: state machines in a loop with a binary heap, a scheduler of one vCPU thread with levels and preemption, a real
 * ring in memory, the time stamps of every packet recorded. Left out is what this path never does in this workload:
 * receiving, shared CPUs, APICv, contention for the big QEMU lock. A full queue ends the program.
 * Given: requests, warm-up, queue size, packet size, frame, wire bytes, tx_burst, halt_poll max, grow, grow_start,
 * shrink, pv_eoi.
 */
enum { STAMPS = 8, CONTEXTS = 11, COSTS = 36 };

#include "c_loop.h"

enum { CREATED, SENT, ROOM, AVAILABLE, KICKED, TX_SEEN, PROCESSED, ON_WIRE };

/* In the order in which c_loop.py gives their tables. */
enum {
    INTERARRIVAL, THINK_TIME, SYS_SENDMSG, COPY_HOT, COPY_COLD, GUEST_STACK_TX, REARM_WINDOW, DRIVER_XMIT, DRIVER_FREE,
    VM_EXIT, VM_ENTRY, KVM_IOEVENTFD, KVM_TSC_DEADLINE, KVM_EXTERNAL_INTERRUPT, KVM_INTERRUPT_WINDOW, KVM_EOI,
    IRQ_INJECTION, RESCHEDULE_IPI, VCPU_WAKEUP, THREAD_WAKEUP, SYS_PPOLL, SYS_READ, SYS_WRITE, SYS_IOCTL, QEMU_BH,
    QEMU_VIRTIO_PACKET, QEMU_NET_QUEUE, TAP_WRITE, BRIDGE, NIC_TX, WIRE, IRQ_ENTRY, DRIVER_IRQ, SOFTIRQ_ENTRY,
    GUEST_WAKEUP, GUEST_TIMER, NO_COST = -1
};
enum { IDLE, IPI, NIC, SINK, ARRIVALS, TIMER, APIC_TIMER, SOFTIRQ, XMIT_DONE, APPLICATION, MAIN_LOOP };
enum { VCPU, QEMU, THREADS, NONE = -1 };
enum { L_IDLE, L_KSOFTIRQD, L_TASK, L_SOFTIRQ, L_HARDIRQ, L_HOST };
enum { CH_WAKE, CH_IPI, CH_IRQ_TX, CH_IRQ_TIMER, CH_NIC, CH_CLIENT, CH_READABLE, CH_WRITABLE, CH_SOFTIRQ, CH_TX_WAKE,
       CH_QEMU, CH_TIMER, CHANNELS };
enum { BLOCKED, WAKING, READY };
enum { IN_GUEST, OUTSIDE, HALTED };
enum { BUFFER = 2048, LONGEST_CHAIN = 19, SIGNAL = 1 << 16, QUEUE = 1 << 16 };

/* -- contexts, threads, channels --------------------------------------------------------------------------------- */

struct context {
    void (*play)(struct context *);
    int thread, level, state, at, channel, wake, spinning;
    int64_t remaining, started, buffer;
    uint64_t timer, ready_at;
};
static struct context contexts[CONTEXTS];
static struct { struct context *current, *parked; int dirty, outranked; } threads[THREADS];
static struct { int latched; struct context *waiter; } channels[CHANNELS];
static struct context *ready[CONTEXTS + 1];
static int dirty[THREADS + 1], ready_first, ready_count, dirty_first, dirty_count;
static uint64_t readied;

static void set_timer(struct context *c, int64_t delay)
{
    push_event(delay, c - contexts);
    c->timer = sequence;
    c->started = now;
}

static void mark_dirty(int thread)
{
    if (!threads[thread].dirty) {
        threads[thread].dirty = 1;
        dirty[(dirty_first + dirty_count++) % (THREADS + 1)] = thread;
    }
}

static void push_ready(struct context *c)
{
    ready[(ready_first + ready_count++) % (CONTEXTS + 1)] = c;
}

static void make_ready(struct context *c)
{
    c->state = READY;
    c->ready_at = ++readied;
    if (c->thread == NONE) {
        push_ready(c);
        return;
    }
    struct context *current = threads[c->thread].current;
    if (!threads[c->thread].parked && current && c->level > current->level)
        threads[c->thread].outranked = 1;
    mark_dirty(c->thread);
}

static void woken(struct context *c)
{
    channels[c->channel].latched = 0;
    channels[c->channel].waiter = NULL;
    make_ready(c);
}

static void end_spin(struct context *c)
{
    channels[c->spinning].waiter = NULL;
    c->spinning = NONE;
}

static void notify_channel(int channel)
{
    struct context *c = channels[channel].waiter;
    if (!c)
        channels[channel].latched = 1;
    else if (c->spinning == channel) {
        end_spin(c);
        c->timer = 0;
        c->remaining = 0;
        mark_dirty(c->thread);
    } else if (c->state == BLOCKED) {
        int64_t delay = c->wake == NO_COST ? 0 : draw(c - contexts, c->wake, 0);
        if (delay) {
            c->state = WAKING;
            set_timer(c, delay);
        } else
            woken(c);
    }
}

static struct context *pick(int thread)
{
    struct context *parked = threads[thread].parked, *current = threads[thread].current;
    if (parked)
        return parked->state == READY ? parked : NULL;
    struct context *best = current && current->state == READY ? current : NULL;
    for (struct context *c = contexts; c < contexts + CONTEXTS; c++)
        if (c->thread == thread && c->state == READY && c != best &&
            (!best || c->level > best->level ||
             (c->level == best->level && best != current && c->ready_at < best->ready_at)))
            best = c;
    return best;
}

static struct context *dispatch(int thread)
{
    threads[thread].dirty = threads[thread].outranked = 0;
    struct context *best = pick(thread), *current = threads[thread].current;
    if (current && current != best) {
        if (current->state == READY && current->timer) {
            current->remaining -= now - current->started;
            current->timer = 0;
            if (current->remaining == 0 && current->spinning != NONE)
                end_spin(current);
        }
        threads[thread].current = NULL;
    }
    if (!best)
        return NULL;
    threads[thread].current = best;
    if (best->timer)
        return NULL;
    if (best->remaining > 0) {
        set_timer(best, best->remaining);
        return NULL;
    }
    return best;
}

static void drain(void)
{
    while (ready_count || dirty_count) {
        struct context *c;
        if (ready_count) {
            c = ready[ready_first];
            ready_first = (ready_first + 1) % (CONTEXTS + 1);
            ready_count--;
        } else {
            int thread = dirty[dirty_first];
            dirty_first = (dirty_first + 1) % (THREADS + 1);
            dirty_count--;
            c = dispatch(thread);
        }
        if (c)
            c->play(c);
    }
}

/* -- effects: each tells whether the context now waits ------------------------------------------------------------- */

static int outranked(struct context *c)
{
    return c->thread != NONE && threads[c->thread].outranked;
}

static int spend(struct context *c, int cost, int64_t amount)
{
    c->remaining = draw(c - contexts, cost, amount);
    if (c->remaining && !outranked(c))
        set_timer(c, c->remaining);
    return c->remaining != 0;
}

static int notify(struct context *c, int channel)
{
    notify_channel(channel);
    return outranked(c);
}

static int notify_after(struct context *c, int channel, int cost)
{
    int64_t delay = draw(c - contexts, cost, 0);
    if (delay)
        push_event(delay, channel | SIGNAL);
    else
        notify_channel(channel);
    return outranked(c);
}

static int sleep_on(struct context *c, int channel, int wake)
{
    if (channels[channel].latched) {
        channels[channel].latched = 0;
        return 0;
    }
    channels[channel].waiter = c;
    c->channel = channel;
    c->wake = wake;
    c->state = BLOCKED;
    if (c->thread != NONE)
        mark_dirty(c->thread);
    return 1;
}

static int spin(struct context *c, int channel, int64_t limit)
{
    if (channels[channel].latched) {
        channels[channel].latched = 0;
        return 0;
    }
    if (limit <= 0)
        return 0;
    c->remaining = limit;
    c->spinning = channel;
    channels[channel].waiter = c;
    if (!outranked(c))
        set_timer(c, limit);
    return 1;
}

static int checkpoint(struct context *c)
{
    if (pick(c->thread) == c)
        return 0;
    threads[c->thread].outranked = 1;
    mark_dirty(c->thread);
    return 1;
}

/* `at` is where a context goes on; 0 is its beginning. */
#define BEGIN switch (c->at) { case 0:
#define END }
#define AWAIT_AT(waits, n) do { c->at = (n); if (waits) return; case n:; } while (0)
#define AWAIT(waits) AWAIT_AT(waits, __COUNTER__ + 1)
#define SPEND(cost) AWAIT(spend(c, cost, 0))
#define WAIT(channel) AWAIT(sleep_on(c, channel, NO_COST))
#define NOTIFY(channel) AWAIT(notify(c, channel))

/* -- KVM --------------------------------------------------------------------------------------------------------- */

enum { V_TX, V_TIMER, VECTORS };
static int mode, pending, handlers, irr[VECTORS], pv_eoi;
static int64_t halt_poll, halt_poll_max, grow, grow_start, shrink;

#define VMEXIT do { threads[c->thread].parked = c; threads[c->thread].outranked = 0; mode = OUTSIDE; SPEND(VM_EXIT); } while (0)
#define VMENTRY do { \
        SPEND(VM_ENTRY); \
        mode = IN_GUEST; \
        if (pending > 0 && handlers == 0) \
            NOTIFY(inject()); \
        threads[c->thread].parked = NULL; \
        AWAIT(checkpoint(c)); \
    } while (0)
#define DELIVER(vector) do { \
        SPEND(IRQ_INJECTION); \
        if (!irr[vector]) { \
            irr[vector] = 1; \
            pending++; \
            if (mode == HALTED) \
                NOTIFY(CH_WAKE); \
            else if (mode == IN_GUEST) \
                AWAIT(notify_after(c, CH_IPI, RESCHEDULE_IPI)); \
        } \
    } while (0)
#define IRQ_ENTER(channel) do { \
        WAIT(channel); \
        SPEND(IRQ_ENTRY); \
        if (pending > 0 || !pv_eoi) { \
            VMEXIT; \
            SPEND(KVM_EOI); \
            VMENTRY; \
        } \
    } while (0)
#define IRQ_RETURN do { \
        handlers--; \
        if (pending > 0) { \
            VMEXIT; \
            SPEND(KVM_INTERRUPT_WINDOW); \
            VMENTRY; \
        } \
    } while (0)

static int inject(void)
{
    int vector = irr[V_TX] ? V_TX : V_TIMER;
    irr[vector] = 0;
    pending--;
    handlers++;
    return vector == V_TX ? CH_IRQ_TX : CH_IRQ_TIMER;
}

static void adapt_halt_poll(int64_t halted)
{
    if (halted <= halt_poll)
        return;
    if (halt_poll > 0 && halted > halt_poll_max) {
        halt_poll = shrink ? halt_poll / shrink : 0;
        if (halt_poll < grow_start)
            halt_poll = 0;
    } else if (halt_poll < halt_poll_max && halted < halt_poll_max && grow > 0) {
        halt_poll = halt_poll * grow > grow_start ? halt_poll * grow : grow_start;
        if (halt_poll > halt_poll_max)
            halt_poll = halt_poll_max;
    }
}

static void play_idle(struct context *c)
{
    static int64_t halted_at;
    BEGIN
    for (;;) {
        VMEXIT;
        mode = HALTED;
        halted_at = now;
        if (pending == 0 && halt_poll > 0)
            AWAIT(spin(c, CH_WAKE, halt_poll));
        while (pending == 0)
            AWAIT(sleep_on(c, CH_WAKE, VCPU_WAKEUP));
        mode = OUTSIDE;
        adapt_halt_poll(now - halted_at);
        VMENTRY;
    }
    END
}

static void play_ipi(struct context *c)
{
    BEGIN
    for (;;) {
        WAIT(CH_IPI);
        if (mode == IN_GUEST) {
            VMEXIT;
            SPEND(KVM_EXTERNAL_INTERRUPT);
            VMENTRY;
        }
    }
    END
}

/* -- queues of rows ----------------------------------------------------------------------------------------------- */

struct queue { int64_t rows[QUEUE]; int first, count; };
static struct queue arrived, nic_queue, wire;

static void put(struct queue *q, int64_t row, int limit)
{
    if (q->count >= limit)
        exit(5);
    q->rows[(q->first + q->count++) & (QUEUE - 1)] = row;
}

static int64_t take(struct queue *q)
{
    int64_t row = q->rows[q->first];
    q->first = (q->first + 1) & (QUEUE - 1);
    q->count--;
    return row;
}

/* -- the guest ------------------------------------------------------------------------------------------------------ */

static int64_t packet_size, frame, wire_bytes, tx_burst;
static int armed, stopped, scheduled, polls, work, queued;

#define NAPI_SCHEDULE do { if (!scheduled) { scheduled = 1; disable_cb(); polls++; NOTIFY(CH_SOFTIRQ); } } while (0)
#define FREE_OLD_XMIT do { \
        while ((c->buffer = get_used()) >= 0) { \
            SPEND(DRIVER_FREE); \
            free_buffers[free_count++] = c->buffer; \
            NOTIFY(CH_WRITABLE); \
        } \
    } while (0)

static void play_arrivals(struct context *c)
{
    BEGIN
    while (completed < target) {
        SPEND(INTERARRIVAL);
        if (completed < target) {
            put(&arrived, create(), QUEUE);
            if (armed) {
                armed = 0;
                NOTIFY(CH_TIMER);
            }
        }
    }
    c->at = -1;
    END
}

static void play_timer(struct context *c)
{
    BEGIN
    for (;;) {
        IRQ_ENTER(CH_IRQ_TIMER);
        SPEND(GUEST_TIMER);
        NOTIFY(CH_READABLE);
        IRQ_RETURN;
    }
    END
}

static void play_apic_timer(struct context *c)
{
    BEGIN
    for (;;) {
        WAIT(CH_TIMER);
        DELIVER(V_TIMER);
    }
    END
}

static void play_xmit_done(struct context *c)
{
    BEGIN
    for (;;) {
        IRQ_ENTER(CH_IRQ_TX);
        SPEND(DRIVER_IRQ);
        if (used.idx != driver.last_used) {
            driver.event_triggered = 1;
            NAPI_SCHEDULE;
        }
        IRQ_RETURN;
    }
    END
}

static void play_softirq(struct context *c)
{
    static uint16_t seen;
    BEGIN
    for (;;) {
        while (polls == 0)
            WAIT(CH_SOFTIRQ);
        polls--;
        SPEND(SOFTIRQ_ENTRY);
        disable_cb();
        FREE_OLD_XMIT;
        if (stopped && driver.num_free >= LONGEST_CHAIN) {
            stopped = 0;
            NOTIFY(CH_TX_WAKE);
        }
        seen = driver.last_used;
        arm_used_event(0);
        scheduled = 0;
        SPEND(REARM_WINDOW);
        if (used.idx != seen)
            NAPI_SCHEDULE;
    }
    END
}

static void play_application(struct context *c)
{
    static int64_t row, bufs;
    BEGIN
    for (;;) {
        while (arrived.count == 0) {
            armed = 1;
            VMEXIT;
            SPEND(KVM_TSC_DEADLINE);
            VMENTRY;
            while (armed)
                WAIT(CH_READABLE);
            SPEND(GUEST_WAKEUP);
        }
        SPEND(THINK_TIME);
        row = take(&arrived);
        SPEND(SYS_SENDMSG);
        AWAIT(spend(c, COPY_HOT, packet_size));
        SPEND(GUEST_STACK_TX);
        mark(row, SENT);
        while (stopped)
            WAIT(CH_TX_WAKE);
        mark(row, ROOM);
        c->level = L_SOFTIRQ;
        do {
            disable_cb();
            FREE_OLD_XMIT;
            bufs = (uint16_t)(driver.avail_idx - driver.last_used) * 3 / 4;
            arm_used_event(bufs);
            SPEND(REARM_WINDOW);
        } while (used_beyond(bufs));
        SPEND(DRIVER_XMIT);
        c->buffer = free_buffers[--free_count];
        *(int64_t *)(memory + c->buffer + 16) = row;
        add(c->buffer, 12 + frame);
        mark(row, AVAILABLE);
        if (driver.num_free < LONGEST_CHAIN)
            stopped = 1;
        if (kick_prepare()) {
            VMEXIT;
            SPEND(KVM_IOEVENTFD);
            mark(row, KICKED);
            if (!queued) {
                queued = 1;
                work++;
                NOTIFY(CH_QEMU);
            }
            VMENTRY;
        }
        c->level = L_TASK;
        AWAIT(checkpoint(c));
    }
    END
}

/* -- QEMU and the host's network ------------------------------------------------------------------------------------ */

static int bh, tx_waiting;

static void set_notification(int enable)
{
    device.notification = enable;
    device.shadow = avail.idx;
    if (enable)
        used.avail_event = device.shadow;
}

#define FLUSH_TX do { \
        sent = 0; \
        head = pop(); \
        while (head >= 0) { \
            row = *(int64_t *)(memory + device.addr + 16); \
            mark(row, TX_SEEN); \
            SPEND(QEMU_VIRTIO_PACKET); \
            SPEND(QEMU_NET_QUEUE); \
            SPEND(SYS_WRITE); \
            AWAIT(spend(c, COPY_COLD, frame)); \
            SPEND(TAP_WRITE); \
            SPEND(BRIDGE); \
            SPEND(NIC_TX); \
            put(&nic_queue, row, 1000); \
            NOTIFY(CH_NIC); \
            mark(row, PROCESSED); \
            push(head); \
            if (should_notify()) { \
                SPEND(SYS_IOCTL); \
                DELIVER(V_TX); \
            } \
            sent++; \
            head = sent < tx_burst ? pop() : -1; \
        } \
    } while (0)

static void play_main_loop(struct context *c)
{
    static int64_t row, sent, ready_items;
    static int head;
    BEGIN
    for (;;) {
        while (!bh && work == 0)
            AWAIT(sleep_on(c, CH_QEMU, THREAD_WAKEUP));
        SPEND(SYS_PPOLL);
        if (bh) {
            bh = tx_waiting = 0;
            SPEND(QEMU_BH);
            FLUSH_TX;
            if (sent < tx_burst) {
                set_notification(1);
                SPEND(REARM_WINDOW);
                FLUSH_TX;
                if (sent > 0)
                    set_notification(0);
            }
            if (sent > 0)
                tx_waiting = bh = 1;
        }
        for (ready_items = work; ready_items > 0; ready_items--) {
            work--;
            queued = 0;
            SPEND(SYS_READ);
            if (!tx_waiting) {
                tx_waiting = bh = 1;
                set_notification(0);
            }
        }
    }
    END
}

static void play_nic(struct context *c)
{
    static int64_t row;
    BEGIN
    for (;;) {
        while (nic_queue.count == 0)
            WAIT(CH_NIC);
        row = take(&nic_queue);
        AWAIT(spend(c, WIRE, wire_bytes));
        mark(row, ON_WIRE);
        put(&wire, row, QUEUE);
        NOTIFY(CH_CLIENT);
    }
    END
}

static void play_sink(struct context *c)
{
    BEGIN
    for (;;) {
        while (wire.count == 0)
            WAIT(CH_CLIENT);
        complete(take(&wire));
    }
    END
}

/* -- the loop ------------------------------------------------------------------------------------------------------- */

static void simulate(const int64_t *given)
{
    static const struct { void (*play)(struct context *); int thread, level; } parts[CONTEXTS] = {
        { play_idle, VCPU, L_IDLE }, { play_ipi, VCPU, L_HOST }, { play_nic, NONE, L_TASK },
        { play_sink, NONE, L_TASK }, { play_arrivals, NONE, L_TASK }, { play_timer, VCPU, L_HARDIRQ },
        { play_apic_timer, NONE, L_TASK },
        { play_softirq, VCPU, L_SOFTIRQ }, { play_xmit_done, VCPU, L_HARDIRQ },
        { play_application, VCPU, L_TASK }, { play_main_loop, QEMU, L_TASK },
    };
    target = given[0] + given[1];
    new_queue(given[2], BUFFER);
    packet_size = given[3], frame = given[4], wire_bytes = given[5], tx_burst = given[6];
    halt_poll_max = given[7], grow = given[8], grow_start = given[9], shrink = given[10], pv_eoi = given[11];
    for (int i = 0; i < CONTEXTS; i++) {
        contexts[i].play = parts[i].play;
        contexts[i].thread = parts[i].thread;
        contexts[i].level = parts[i].level;
        contexts[i].spinning = NONE;
        make_ready(&contexts[i]);
    }
    drain();
    while (completed < target || completed < created) {
        struct event e = pop_event();
        if (e.what & SIGNAL) {
            now = e.time;
            notify_channel(e.what & ~SIGNAL);
        } else {
            struct context *c = &contexts[e.what];
            if (c->timer != e.sequence)
                continue;
            now = e.time;
            c->timer = 0;
            if (c->state == WAKING)
                woken(c);
            else {
                c->remaining = 0;
                if (c->spinning != NONE)
                    end_spin(c);
                c->play(c);
            }
        }
        drain();
    }
}
