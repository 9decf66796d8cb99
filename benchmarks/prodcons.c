/* prodcons by hand: the producer and consumer of models/prodcons.py over one split ring with EVENT_IDX.
 *
 * Two state machines, a binary heap of timers, a real ring in memory, the time stamps of every item recorded.
 * Given: requests, warm-up, queue size, kp, kc.
 */
enum { STAMPS = 6, CONTEXTS = 2, COSTS = 8 };

#include "c_loop.h"

enum { ITEM = 64 };
enum { CREATED, AVAILABLE, KICKED, AWAKE, SEEN, CONSUMED };
enum { P_WORK, P_NOTIFY, P_START, P_REARM, C_WORK, C_NOTIFY, C_START, C_REARM };
enum { PRODUCER, CONSUMER };
enum { RUNNING, BLOCKED, WAKING };

/* -- processes: one channel each, on which the other one notifies it ----------------------------------------------- */

static struct { int state, at, latched, ready; } process[2];
static const int start_cost[2] = { P_START, C_START };

static int spend(int who, int cost)
{
    int64_t duration = draw(who, cost, 0);
    if (duration)
        push_event(duration, who);
    return duration != 0;
}

static int sleep_on_channel(int who)
{
    if (process[who].latched) {
        process[who].latched = 0;
        return 0;
    }
    process[who].state = BLOCKED;
    return 1;
}

static void notify(int who)
{
    if (process[who].state == RUNNING)
        process[who].latched = 1;
    else if (process[who].state == BLOCKED) {
        int64_t delay = draw(who, start_cost[who], 0);
        process[who].state = WAKING;
        if (delay)
            push_event(delay, who);
        else
            process[who].ready = 1;
    }
}

/* -- the two sides: `at` is where each goes on ---------------------------------------------------------------------- */

static int64_t kp, kc, making, working, awake, kicks, interrupts;
static int head;

#define WAIT_HERE(who, waits, n) do { process[who].at = n; if (waits) return; case n:; } while (0)

static void producer(void)
{
    switch (process[PRODUCER].at) {
    case 0:
        while (completed < target) {
            if (driver.num_free == 0)
                for (int64_t buffer; (buffer = get_used()) >= 0;)
                    free_buffers[free_count++] = buffer;
            if (driver.num_free > 0) {
                making = create();
                WAIT_HERE(PRODUCER, spend(PRODUCER, P_WORK), 1);
                int64_t buffer = free_buffers[--free_count];
                *(int64_t *)(memory + buffer) = making;
                add(buffer, ITEM);
                mark(making, AVAILABLE);
                if (kick_prepare()) {
                    kicks++;
                    WAIT_HERE(PRODUCER, spend(PRODUCER, P_NOTIFY), 2);
                    notify(CONSUMER);
                    mark(making, KICKED);
                }
            } else {
                arm_used_event(kc - 1);
                WAIT_HERE(PRODUCER, spend(PRODUCER, P_REARM), 3);
                if (!used_beyond(kc - 1))
                    WAIT_HERE(PRODUCER, sleep_on_channel(PRODUCER), 4);
                disable_cb();
            }
        }
        if (kp > 1) {
            WAIT_HERE(PRODUCER, spend(PRODUCER, P_NOTIFY), 5);
            notify(CONSUMER);
        }
        process[PRODUCER].at = 6;
    case 6:;
    }
}

static void consumer(void)
{
    switch (process[CONSUMER].at) {
    case 0:
        for (;;) {
            head = pop();
            if (head >= 0) {
                working = *(int64_t *)(memory + device.addr);
                mark_past(working, AWAKE, awake);
                mark(working, SEEN);
                WAIT_HERE(CONSUMER, spend(CONSUMER, C_WORK), 1);
                push(head);
                complete(working);
                if (should_notify()) {
                    interrupts++;
                    WAIT_HERE(CONSUMER, spend(CONSUMER, C_NOTIFY), 2);
                    notify(PRODUCER);
                }
            } else {
                device.notification = 1;
                used.avail_event = device.last_avail + kp - 1;
                WAIT_HERE(CONSUMER, spend(CONSUMER, C_REARM), 3);
                device.shadow = avail.idx;
                if ((uint16_t)(device.shadow - device.last_avail) < kp) {
                    WAIT_HERE(CONSUMER, sleep_on_channel(CONSUMER), 4);
                    awake = now;
                }
                device.notification = 0;
                device.shadow = avail.idx;
            }
        }
    }
}

static void turn(int who)
{
    process[who].ready = 0;
    if (process[who].state == WAKING) {
        process[who].state = RUNNING;
        process[who].latched = 0;
    }
    if (who == PRODUCER)
        producer();
    else
        consumer();
}

static void simulate(const int64_t *given)
{
    target = given[0] + given[1];
    new_queue(given[2], ITEM);
    kp = given[3], kc = given[4];
    /* A pair that has been at work for long: all indexes at 1, no interrupt wanted. */
    avail.idx = used.idx = used.avail_event = driver.avail_idx = driver.last_used = 1;
    device.last_avail = device.shadow = device.used_idx = device.signalled = 1;
    driver.no_interrupt = device.valid = 1;
    turn(PRODUCER);
    turn(CONSUMER);
    while (completed < target || completed < created) {
        struct event e = pop_event();
        now = e.time;
        turn(e.what);
        while (process[PRODUCER].ready || process[CONSUMER].ready)
            turn(process[PRODUCER].ready ? PRODUCER : CONSUMER);
    }
}
