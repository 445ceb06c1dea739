/* A team of threads that compute operations together, each of them some pieces of each.
 *
 * An operation is a function that every thread of the team calls, unless it comes too late. It does
 *
 *     for (int64_t piece; (piece = take(t, pieces)) >= 0;)
 *         ...
 *
 * and is complete when all pieces are: a thread that has lost its core to another program is waited
 * for only while it holds one. Operations do not wait themselves: program.c does, between them.
 */
#ifndef WEFT_TEAM_H
#define WEFT_TEAM_H

#include <stdatomic.h>
#include <stdint.h>

/* How far an operation is. All threads count in it, so nothing else lies in its line of the cache. */
typedef struct {
    _Atomic int64_t taken; /* the first piece that nobody has taken, or more */
    _Atomic int64_t done;
    char rest[48];
} progress;

typedef struct {
    int64_t thread, threads;
    progress *progress;
    int64_t pieces, held; /* of the operation that the thread is in */
    void (*all_done)(void);
} team;

/* rows: of the batch. */
typedef void operation(team *t, const void *arguments, int64_t rows);

/* Finish the piece that was taken before and take the next of so many: -1 if there is none. Each
 * thread asks until there is none. */
static inline int64_t take(team *t, int64_t pieces)
{
    progress *p = t->progress;
    if (t->held && atomic_fetch_add_explicit(&p->done, 1, memory_order_acq_rel) + 1 == pieces)
        t->all_done();
    t->pieces = pieces;
    t->held = 0;
    /* Who comes late leaves the count alone, which is in the caches of others. */
    if (atomic_load_explicit(&p->taken, memory_order_relaxed) >= pieces)
        return -1;
    int64_t piece = atomic_fetch_add_explicit(&p->taken, 1, memory_order_relaxed);
    if (piece >= pieces)
        return -1;
    t->held = 1;
    return piece;
}

/* Rows of which each takes a moment are taken so many at once. */
enum { ROWS_TAKEN = 8 };

typedef struct {
    int64_t first, end;
} span;

/* Take some of the rows; none are left if first is not before end. */
static inline span take_rows(team *t, int64_t rows)
{
    int64_t piece = take(t, (rows + ROWS_TAKEN - 1) / ROWS_TAKEN);
    if (piece < 0)
        return (span){0, 0};
    int64_t first = piece * ROWS_TAKEN, left = rows - first;
    return (span){first, first + (left < ROWS_TAKEN ? left : ROWS_TAKEN)};
}

/* All rows that this thread takes, one after the other. */
#define EACH_ROW(row, t, rows)                                                                     \
    span some = take_rows(t, rows);                                                                \
    some.first < some.end;                                                                         \
    some = take_rows(t, rows))                                                                     \
    for (int64_t row = some.first; row < some.end; row++

#endif
