/* Runs lists of operations with a team of threads, which stays awake from the first to the last.
 *
 * To wake a thread that sleeps takes 20 to 50 us, as long as many an operation of a small model. So
 * who has to wait spins for about that long before it sleeps; no longer, for where another program
 * has a core, whoever is waited for needs one. And nobody waits for a thread to come: it finds out
 * how far the others are and helps them from there.
 */
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "team.h"

enum { SPINS = 1000, THREADS_MAX = 256, LINE = 64 };

typedef struct {
    operation *compute;
    const void *arguments;
    const int64_t *rows;
    int64_t waits; /* for all operations before */
    char rest[32];
    progress progress;
} call;

/* What is computed, and by how many. */
typedef struct {
    call *calls;
    int64_t count, threads;
} run;

/* The threads beside those that call, and the run that is open to them. A thread that is inside may touch it; it is closed before it is empty,
 * and empty before the next is opened. */
static struct {
    _Alignas(LINE) _Atomic uint64_t gate; /* how often it was opened or closed; inside: INSIDE bits */
    _Alignas(LINE) _Atomic uint32_t bell; /* changes when a run is opened */
    _Atomic int32_t asleep;
    _Alignas(LINE) _Atomic uint32_t news; /* changes when an operation is complete, or all are out */
    _Atomic int32_t awaiting_news;
    const run *run;
    int64_t workers;
    pthread_mutex_t mutex;
} own = {.mutex = PTHREAD_MUTEX_INITIALIZER};

enum { INSIDE = 16 };

static inline void pause_briefly(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

static void sleep_while(_Atomic uint32_t *word, uint32_t value, _Atomic int32_t *sleepers)
{
    atomic_fetch_add(sleepers, 1);
    if (atomic_load(word) == value)
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
    atomic_fetch_sub(sleepers, 1);
}

static void change(_Atomic uint32_t *word, _Atomic int32_t *sleepers)
{
    atomic_fetch_add(word, 1);
    if (atomic_load(sleepers))
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void tell_all(void) { change(&own.news, &own.awaiting_news); }

/* Wait until somebody tells that COND may hold, and it does. */
#define AWAIT(condition)                                                                           \
    for (int64_t spin = 0; !(condition); spin++) {                                                 \
        pause_briefly();                                                                           \
        if (spin < SPINS)                                                                          \
            continue;                                                                              \
        uint32_t heard = atomic_load(&own.news);                                                   \
        if (!(condition))                                                                          \
            sleep_while(&own.news, heard, &own.awaiting_news);                                     \
    }

/* Compute what there is to compute of all calls. Thread 0 returns when everything is complete. */
static void compute(const run *r, int64_t thread)
{
    team t = {.thread = thread, .threads = r->threads, .all_done = tell_all};
    int64_t unsure = 0; /* the first call that may not be complete */
    int64_t pieces[r->count];
    for (int64_t i = 0; i <= r->count; i++) {
        if (i < r->count ? r->calls[i].waits : thread == 0)
            for (; unsure < i; unsure++)
                AWAIT(atomic_load(&r->calls[unsure].progress.done) >= pieces[unsure]);
        if (i == r->count)
            break;
        const call *c = r->calls + i;
        t.progress = (progress *)&c->progress;
        c->compute(&t, c->arguments, *c->rows);
        pieces[i] = t.pieces;
    }
}

static void *work(void *argument)
{
    const int64_t thread = (intptr_t)argument;
    uint32_t heard = 0;
    for (;;) {
        for (int64_t spin = 0; atomic_load(&own.bell) == heard; spin++) {
            pause_briefly();
            if (spin >= SPINS)
                sleep_while(&own.bell, heard, &own.asleep);
        }
        heard = atomic_load(&own.bell);
        uint64_t gate = atomic_load(&own.gate);
        /* Odd: open. */
        while (gate >> INSIDE & 1 && !atomic_compare_exchange_weak(&own.gate, &gate, gate + 1))
            ;
        if (!(gate >> INSIDE & 1))
            continue;
        if (thread < own.run->threads)
            compute(own.run, thread);
        atomic_fetch_sub(&own.gate, 1);
        tell_all();
    }
    return NULL;
}

/* Start the threads that are lacking. Signals are for others; fewer threads do the same work. */
static void hire(int64_t workers)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (pthread_t made; own.workers < workers; own.workers++) {
        if (pthread_create(&made, NULL, work, (void *)(intptr_t)(own.workers + 1)))
            break;
        pthread_detach(made);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Each call's progress is 0 before and after. */
void weft_run(call *calls, int64_t count, int64_t threads)
{
    const run r = {calls, count, threads < THREADS_MAX ? threads : THREADS_MAX};
    /* A second run at the same time is its caller's alone. */
    if (r.threads > 1 && !pthread_mutex_trylock(&own.mutex)) {
        hire(r.threads - 1);
        own.run = &r;
        atomic_fetch_add(&own.gate, 1 << INSIDE);
        change(&own.bell, &own.asleep);
        compute(&r, 0);
        atomic_fetch_add(&own.gate, 1 << INSIDE);
        AWAIT(!(atomic_load(&own.gate) & ((1 << INSIDE) - 1)));
        pthread_mutex_unlock(&own.mutex);
    } else
        compute(&r, 0);
    for (int64_t i = 0; i < count; i++) {
        atomic_store_explicit(&calls[i].progress.taken, 0, memory_order_relaxed);
        atomic_store_explicit(&calls[i].progress.done, 0, memory_order_relaxed);
    }
}
