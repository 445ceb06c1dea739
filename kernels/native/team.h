/* A team of threads that compute operations together, each of them a part of each.
 *
 * An operation is a function that all threads of the team call. It divides its work among them by
 * ``take`` or ``share``, and does not wait for the others: program.c does, between operations.
 */
#ifndef WEFT_TEAM_H
#define WEFT_TEAM_H

#include <stdatomic.h>
#include <stdint.h>

typedef struct {
    int64_t thread, threads;
    _Atomic int64_t *next; /* of the operation's pieces of work, the first that nobody has taken */
} team;

/* rows: of the batch. */
typedef void operation(const team *t, const void *arguments, int64_t rows);

/* Take the next ``count`` pieces of work; return the first. Each is taken once. */
static inline int64_t take(const team *t, int64_t count)
{
    return atomic_fetch_add_explicit(t->next, count, memory_order_relaxed);
}

/* The items from ``first`` to ``end`` are this thread's: as many as everyone's, and of an equal
 * count always the same. */
typedef struct {
    int64_t first, end;
} span;

static inline span share(const team *t, int64_t count)
{
    return (span){t->thread * count / t->threads, (t->thread + 1) * count / t->threads};
}

#endif
