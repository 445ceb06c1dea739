/* Runs a list of operations with one team of threads, which stays awake from the first to the last.
 *
 * To wake threads that sleep takes 20 to 30 us, as long as many an operation of a small model: so
 * who waits for the others spins for about that long before it sleeps. It does not spin on: where
 * another program has a core, the thread that is waited for needs one.
 */
#include <limits.h>
#include <linux/futex.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "team.h"

enum { LINE = 64, SPINS = 2000 };

typedef struct {
    operation *compute;
    const void *arguments;
    int64_t waits;        /* for what the whole team has done before */
    _Atomic int64_t next; /* see team.h */
    char rest[LINE - 32]; /* a line of the cache for each: all threads count in it */
} call;

/* Where the threads of a team meet. */
typedef struct {
    _Alignas(LINE) _Atomic int32_t arrived, sleepers;
    _Alignas(LINE) _Atomic int32_t turn; /* how often all have met */
} meeting;

static inline void pause_briefly(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

static void meet(meeting *m, int64_t threads)
{
    int32_t turn = atomic_load(&m->turn);
    if (atomic_fetch_add(&m->arrived, 1) + 1 == threads) {
        atomic_store(&m->arrived, 0);
        atomic_store(&m->turn, turn + 1);
        if (atomic_load(&m->sleepers))
            syscall(SYS_futex, &m->turn, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
        return;
    }
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(&m->turn, memory_order_acquire) != turn)
            return;
        pause_briefly();
    }
    atomic_fetch_add(&m->sleepers, 1);
    while (atomic_load(&m->turn) == turn)
        syscall(SYS_futex, &m->turn, FUTEX_WAIT_PRIVATE, turn, NULL, NULL, 0);
    atomic_fetch_sub(&m->sleepers, 1);
}

void weft_run(call *calls, int64_t count, int64_t rows, int64_t threads)
{
    meeting place = {0};
    for (int64_t i = 0; i < count; i++)
        atomic_store_explicit(&calls[i].next, 0, memory_order_relaxed);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        team own = {.thread = omp_get_thread_num(), .threads = omp_get_num_threads()};
        for (int64_t i = 0; i < count; i++) {
            if (calls[i].waits)
                meet(&place, own.threads);
            own.next = &calls[i].next;
            calls[i].compute(&own, calls[i].arguments, rows);
        }
    }
}
