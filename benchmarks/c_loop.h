/* What the hand-written loops share: draws, timers, a split ring in memory, a table of time stamps.
 *
 * Random numbers are iosim's own: splitmix64 of (key + index * gamma) selects a cell of a table of quantiles (ps).
 * Before this file: STAMPS (milestones of a request), CONTEXTS and COSTS (who draws, and what).
 *
 *     PROGRAM INPUT OUTPUT
 *
 * INPUT (int64): how many numbers, and those numbers; for each cost a constant (-1: drawn), a rate per byte (ps/1024)
 * and 6144 quantiles; for each context and each cost the key of its stream. OUTPUT (int64): requests created, the rows
 * in the order of completion, the stamps of each row. Printed: CPU seconds of the simulation (without reading and
 * writing these files), timers set.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CELLS = 1024, TABLE = 6 * CELLS, F_NEXT = 1 };

/* -- draws ------------------------------------------------------------------------------------------------------- */

static struct { int64_t constant, rate, table[TABLE]; } cost_table[COSTS];
static uint64_t keys[CONTEXTS][COSTS], indexes[CONTEXTS][COSTS];

static int64_t draw(int context, int cost, int64_t amount)
{
    int64_t extra = amount * cost_table[cost].rate >> 10;
    if (cost_table[cost].constant >= 0)
        return cost_table[cost].constant + extra;
    uint64_t z = keys[context][cost] + indexes[context][cost]++ * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    int64_t u = z >> 34, beyond = (INT64_C(1) << 30) - u, cell;
    if (u < 1 << 25)
        cell = CELLS + (u >> 15);
    else if (beyond > 1 << 25)
        cell = u >> 20;
    else if (beyond > 1 << 20)
        cell = 2 * CELLS + ((u >> 15) & (CELLS - 1));
    else if (beyond > 1 << 15)
        cell = 3 * CELLS + ((u >> 10) & (CELLS - 1));
    else if (beyond > 1 << 10)
        cell = 4 * CELLS + ((u >> 5) & (CELLS - 1));
    else
        cell = 5 * CELLS + (u & (CELLS - 1));
    return cost_table[cost].table[cell] + extra;
}

/* -- timers ------------------------------------------------------------------------------------------------------ */

struct event { int64_t time; uint64_t sequence; int what; };
static struct event heap[64];
static int heap_size;
static uint64_t sequence;
static int64_t now;

static int before(const struct event *a, const struct event *b)
{
    return a->time < b->time || (a->time == b->time && a->sequence < b->sequence);
}

static void push_event(int64_t delay, int what)
{
    struct event e = { now + delay, ++sequence, what };
    int i = heap_size++;
    while (i > 0 && before(&e, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = e;
}

static struct event pop_event(void)
{
    struct event first = heap[0], e = heap[--heap_size];
    int i = 0, child;
    while ((child = 2 * i + 1) < heap_size) {
        if (child + 1 < heap_size && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &e))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = e;
    return first;
}

/* -- the ring ---------------------------------------------------------------------------------------------------- */

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct used_elem { uint32_t id, len; };
static struct desc *desc;
static struct { uint16_t flags, idx, *ring, used_event; } avail;
static struct { uint16_t flags, idx, avail_event; struct used_elem *ring; } used;
static uint8_t *memory;
static int64_t size, memory_size;

static struct { uint16_t free_head, avail_idx, last_used, added; int num_free, no_interrupt, event_triggered; int64_t *state; } driver;
static struct { uint16_t last_avail, shadow, used_idx, signalled; int valid, notification; uint64_t addr; } device;

static int need_event(uint16_t event, uint16_t new, uint16_t old)
{
    return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

static void add(uint64_t addr, uint32_t len)
{
    uint16_t head = driver.free_head;
    desc[head].addr = addr;
    desc[head].len = len;
    desc[head].flags = 0;
    driver.free_head = desc[head].next;
    driver.num_free--;
    driver.state[head] = addr;
    avail.ring[driver.avail_idx & (size - 1)] = head;
    avail.idx = ++driver.avail_idx;
    driver.added++;
}

static int kick_prepare(void)
{
    uint16_t new = driver.avail_idx, old = new - driver.added;
    driver.added = 0;
    return need_event(used.avail_event, new, old);
}

static int64_t get_used(void)
{
    if (used.idx == driver.last_used)
        return -1;
    uint32_t head = used.ring[driver.last_used & (size - 1)].id;
    if (head >= size || driver.state[head] < 0)
        exit(3);
    int64_t buffer = driver.state[head];
    driver.state[head] = -1;
    desc[head].next = driver.free_head;
    driver.free_head = head;
    driver.num_free++;
    driver.last_used++;
    if (!driver.no_interrupt)
        avail.used_event = driver.last_used;
    return buffer;
}

static void disable_cb(void)
{
    if (!driver.no_interrupt) {
        driver.no_interrupt = 1;
        if (!driver.event_triggered)
            avail.used_event = 0;
    }
}

static void arm_used_event(int64_t more)
{
    driver.event_triggered = driver.no_interrupt = 0;
    avail.used_event = driver.last_used + more;
}

static int used_beyond(int64_t count)
{
    return (uint16_t)(used.idx - driver.last_used) > count;
}

static int pop(void)
{
    if (device.shadow == device.last_avail && (device.shadow = avail.idx) == device.last_avail)
        return -1;
    uint16_t head = avail.ring[device.last_avail & (size - 1)], i = head;
    if (head >= size)
        exit(3);
    for (;;) {
        if (desc[i].len == 0 || desc[i].addr > memory_size - desc[i].len)
            exit(3);
        device.addr = desc[i].addr;
        if (!(desc[i].flags & F_NEXT))
            break;
        i = desc[i].next;
    }
    device.last_avail++;
    if (device.notification)
        used.avail_event = device.last_avail;
    return head;
}

static void push(int head)
{
    used.ring[device.used_idx & (size - 1)] = (struct used_elem){ head, 0 };
    used.idx = ++device.used_idx;
    uint16_t distance = device.used_idx - device.signalled;
    if (distance >= 0x8000 || distance < 1)
        device.valid = 0;
}

static int should_notify(void)
{
    int valid = device.valid;
    uint16_t old = device.signalled;
    device.valid = 1;
    device.signalled = device.used_idx;
    return !valid || need_event(avail.used_event, device.used_idx, old);
}

static int64_t *free_buffers, free_count;

static void new_queue(int64_t descriptors, int64_t buffer)
{
    size = descriptors;
    memory_size = size * buffer;
    desc = calloc(size, sizeof *desc);
    avail.ring = calloc(size, sizeof *avail.ring);
    used.ring = calloc(size, sizeof *used.ring);
    memory = calloc(size, buffer);
    driver.state = malloc(size * sizeof *driver.state);
    free_buffers = malloc(size * sizeof *free_buffers);
    for (int64_t i = 0; i < size; i++) {
        desc[i].next = (i + 1) & (size - 1);
        driver.state[i] = -1;
        free_buffers[i] = i * buffer;
    }
    free_count = driver.num_free = size;
    device.notification = 1;
}

/* -- the requests' time stamps --------------------------------------------------------------------------------------- */

static int64_t *stamps, *order, capacity = 1 << 14, created, completed, target;
static int8_t *last;

static void room(int64_t from)
{
    stamps = realloc(stamps, capacity * STAMPS * sizeof *stamps);
    order = realloc(order, capacity * sizeof *order);
    last = realloc(last, capacity);
    if (!stamps || !order || !last)
        exit(4);
    for (int64_t i = from; i < capacity; i++)
        last[i] = 0;
    for (int64_t i = from * STAMPS; i < capacity * STAMPS; i++)
        stamps[i] = -1;
}

static int64_t create(void)
{
    if (created == capacity) {
        capacity *= 2;
        room(created);
    }
    stamps[created * STAMPS] = now;
    return created++;
}

static void mark(int64_t row, int milestone)
{
    if (milestone > last[row]) {
        stamps[row * STAMPS + milestone] = now;
        last[row] = milestone;
    }
}

static void mark_past(int64_t row, int milestone, int64_t then)
{
    if (milestone > last[row] && then >= stamps[row * STAMPS + last[row]]) {
        stamps[row * STAMPS + milestone] = then;
        last[row] = milestone;
    }
}

static void complete(int64_t row)
{
    mark(row, STAMPS - 1);
    order[completed++] = row;
}

/* -- input and output ---------------------------------------------------------------------------------------------- */

static void simulate(const int64_t *given);

static double cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int count, char **names)
{
    int64_t numbers, given[64];
    FILE *in = count == 3 ? fopen(names[1], "rb") : NULL;
    if (!in || fread(&numbers, sizeof numbers, 1, in) != 1 || numbers > 64 ||
        fread(given, sizeof *given, numbers, in) != (size_t)numbers ||
        fread(cost_table, sizeof cost_table, 1, in) != 1 || fread(keys, sizeof keys, 1, in) != 1)
        return 2;
    fclose(in);
    double began = cpu();
    room(0);
    simulate(given);
    double took = cpu() - began;
    FILE *out = fopen(names[2], "wb");
    if (!out || fwrite(&created, sizeof created, 1, out) != 1 ||
        fwrite(order, sizeof *order, completed, out) != (size_t)completed ||
        fwrite(stamps, sizeof *stamps, created * STAMPS, out) != (size_t)(created * STAMPS) || fclose(out))
        return 2;
    printf("%.9f %llu\n", took, (unsigned long long)sequence);
    return 0;
}
