/* Collectives between processes of one machine, through memory that all of them have mapped.
 *
 * The memory holds a line for each rank, then two slots for each. A collective has a number, the
 * same on every rank. A rank that has reached number n has finished number n - 1, so nobody reads
 * its slot of number n - 2 any more, and with two slots it may write again once all others have
 * reached n - 1. Who writes a slot first writes, then reaches (release); who reads it waits for
 * that (acquire).
 *
 * Whoever waits spins for as long as a sleep and a waking would take, and then sleeps: ranks are
 * not always given a core of their own. */
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "team.h"

enum {
    SPIN_NS = 50000,     /* a sleep and a waking took 5000 to 100000, half of them up to 30000 */
    SPINS_PER_LOOK = 16, /* at the clock, which takes as long as a few spins */
    SLEEP_MS = 20,       /* between two looks at whether the other still lives */
    BLOCK = 1024,        /* floats that are summed at a time, in the first-level cache */
};

/* Processors fetch pairs of cache lines of 64 bytes. */
typedef struct {
    _Atomic uint32_t reached;  /* number of the collective that this rank is in */
    _Atomic uint32_t sleepers; /* ranks that sleep until it changes */
    int32_t pid;               /* written once, when the rank joins */
    char padding[116];
} line;

typedef struct {
    char *memory;
    char *slots;
    int64_t slot_bytes;
    int64_t timeout_ms;
    const int32_t *pid_fds; /* by rank */
    int32_t rank;
    int32_t size;
    uint32_t number;
} group;

static line *line_of(const group *g, int rank) { return (line *)g->memory + rank; }

static char *slot_of(const group *g, int rank)
{
    return g->slots + ((g->number & 1) * g->size + rank) * g->slot_bytes;
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static inline void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Numbers wrap around; ranks are never further apart than a few. */
static int has_reached(line *l, uint32_t number)
{
    return (int32_t)(atomic_load_explicit(&l->reached, memory_order_acquire) - number) >= 0;
}

static int has_ended(int pid_fd)
{
    struct pollfd p = {.fd = pid_fd, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

static void sleep_until_changed(line *l, uint32_t number)
{
    struct timespec most = {.tv_nsec = SLEEP_MS * 1000000L};
    atomic_fetch_add(&l->sleepers, 1);
    uint32_t seen = atomic_load(&l->reached);
    if ((int32_t)(seen - number) < 0)
        syscall(SYS_futex, &l->reached, FUTEX_WAIT, seen, &most, 0, 0);
    atomic_fetch_sub(&l->sleepers, 1);
}

/* 0, or rank + 1 of one that has ended, or -(rank + 1) of one that did not come in time. */
static int await_rank(const group *g, int rank, uint32_t number)
{
    line *l = line_of(g, rank);
    if (has_reached(l, number))
        return 0;
    int64_t begun = now_ns();
    do {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (has_reached(l, number))
                return 0;
            pause_briefly();
        }
    } while (now_ns() - begun < SPIN_NS);
    while (!has_reached(l, number)) {
        sleep_until_changed(l, number);
        if (has_ended(g->pid_fds[rank])) /* it may have come before it ended */
            return has_reached(l, number) ? 0 : rank + 1;
        if (now_ns() - begun > g->timeout_ms * 1000000)
            return has_reached(l, number) ? 0 : -(rank + 1);
    }
    return 0;
}

static int await_all(const group *g, uint32_t number)
{
    for (int rank = 0; rank < g->size; rank++) {
        int lost = rank == g->rank ? 0 : await_rank(g, rank, number);
        if (lost)
            return lost;
    }
    return 0;
}

static void reach(const group *g)
{
    line *l = line_of(g, g->rank);
    /* Sequentially consistent, as the sleeper's two steps are: it sees the number, or we see it. */
    atomic_store(&l->reached, g->number);
    if (atomic_load(&l->sleepers))
        syscall(SYS_futex, &l->reached, FUTEX_WAKE, INT32_MAX, 0, 0, 0);
}

/* Begin the next collective, with something to say or, if bytes is 0, nothing. */
static int say(group *g, const void *what, int64_t bytes)
{
    g->number++;
    if (bytes) {
        int lost = await_all(g, g->number - 1);
        if (lost)
            return lost;
        memcpy(slot_of(g, g->rank), what, bytes);
    }
    reach(g);
    return 0;
}

/* x becomes the sum of every rank's, added in the order of the ranks: the same bits on all. One
 * thread does it: even for 512 tokens it takes a thousandth of what the matrix products take, and
 * threads that meet once more wait for the slowest once more. */
static void add_up(const group *g, float *x, int64_t count)
{
    for (int64_t at = 0; at < count; at += BLOCK) {
        int64_t floats = count - at < BLOCK ? count - at : BLOCK;
        float sum[BLOCK];
        for (int rank = 0; rank < g->size; rank++) {
            const float *part = rank == g->rank ? x + at : (const float *)slot_of(g, rank) + at;
            if (rank == 0)
                memcpy(sum, part, floats * sizeof *sum);
            else
                for (int64_t i = 0; i < floats; i++)
                    sum[i] += part[i];
        }
        memcpy(x + at, sum, floats * sizeof *sum);
    }
}

int weft_all_reduce(group *g, float *x, int64_t count)
{
    int64_t most = g->slot_bytes / (int64_t)sizeof *x;
    for (int64_t at = 0; at < count; at += most) {
        int64_t floats = count - at < most ? count - at : most;
        int lost = say(g, x + at, floats * sizeof *x);
        if (!lost)
            lost = await_all(g, g->number);
        if (lost)
            return lost;
        add_up(g, x + at, floats);
    }
    return 0;
}

/* x: [rows, columns]; lost: of all that were computed since it was 0, the first that was not 0. */
typedef struct {
    group *group;
    float *x;
    int32_t *lost;
    int64_t columns;
} sum;

/* All-reduce as an operation of a program: a single piece of work. */
void weft_all_reduce_rows(team *t, const sum *s, int64_t rows)
{
    while (take(t, 1) >= 0)
        if (!*s->lost)
            *s->lost = weft_all_reduce(s->group, s->x, rows * s->columns);
}

/* Spread bytes of a matrix with rows of row_bytes over one whose rows are size times as long. */
static void place(const group *g, char *out, const char *bytes, int rank, int64_t row_bytes,
                  int64_t at, int64_t count)
{
    while (count) {
        int64_t in_row = at % row_bytes;
        int64_t piece = row_bytes - in_row < count ? row_bytes - in_row : count;
        memcpy(out + (at / row_bytes * g->size + rank) * row_bytes + in_row, bytes, piece);
        bytes += piece;
        at += piece;
        count -= piece;
    }
}

/* Rank 0 gets every rank's rows side by side in out; the others' out is not used. */
int weft_gather(group *g, char *out, const char *x, int64_t rows, int64_t row_bytes)
{
    int64_t bytes = rows * row_bytes;
    for (int64_t at = 0; at < bytes; at += g->slot_bytes) {
        int64_t count = bytes - at < g->slot_bytes ? bytes - at : g->slot_bytes;
        int lost = say(g, x + at, g->rank ? count : 0);
        if (lost)
            return lost;
        if (g->rank)
            continue;
        place(g, out, x + at, 0, row_bytes, at, count);
        for (int rank = 1; rank < g->size; rank++) {
            lost = await_rank(g, rank, g->number);
            if (lost)
                return lost;
            place(g, out, slot_of(g, rank), rank, row_bytes, at, count);
        }
    }
    return 0;
}

/* x of rank 0 becomes everybody's. */
int weft_broadcast(group *g, char *x, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at += g->slot_bytes) {
        int64_t count = bytes - at < g->slot_bytes ? bytes - at : g->slot_bytes;
        int lost = say(g, x + at, g->rank ? 0 : count);
        if (!lost && g->rank)
            lost = await_rank(g, 0, g->number);
        if (lost)
            return lost;
        if (g->rank)
            memcpy(x + at, slot_of(g, 0), count);
    }
    return 0;
}
