/* Products with a matrix whose rows lie in panels of PANEL, side by side: how they are cut.
 *
 * A tile of sums, some rows of x by one panel or more, stays in registers while it walks over the
 * inputs. Which tile a row is in, and on which thread, must not matter to its bits.
 */
#ifndef WEFT_PANELS_H
#define WEFT_PANELS_H

#include <stdint.h>
#include <string.h>

#include "team.h"
#include "vector.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")

/* Sums of ROWS by VECTORS, and what is added to them, fit into the 32 or 16 registers. */
enum { VECTORS = 2, PANEL = VECTORS * WIDTH };
#ifdef __AVX512F__
enum { ROWS = 12 };
#else
enum { ROWS = 6 };
#endif

/* One or two rows alone would wait for each sum in turn: they walk over several panels at once. */
enum { PANELS_OF_ONE = 4, PANELS_OF_TWO = 2, PANELS_MAX = 4 };

/* Rows of x that pass through the second-level cache together. */
enum { ROW_BLOCK = 10 * ROWS };

/* Weights are asked for so many bytes ahead: the processor's own prefetching reads one stream at a
 * third to a half of the memory's speed. 2 to 16 KiB do about the same. */
enum { AHEAD = 8192, LINE = 64 };

/* Pieces of work for each thread: enough that none waits long for one that lost its core. */
enum { PIECES_PER_THREAD = 8 };

/* What is multiplied: a row of x is x_bytes long, one of y ``out`` floats. */
typedef struct {
    const void *layer;
    int64_t out;
    const char *x;
    int64_t x_bytes;
    float *y;
} panel_product;

/* The panels from ``panel`` to ``end`` for the first rows of a product, a fixed number of them. */
typedef void rows_function(const panel_product *p, int64_t panel, int64_t end);

/* Something for each number of rows that a tile may have. */
#define EACH_COUNT_TO_6(do, ...)                                                                   \
    do(1, __VA_ARGS__) do(2, __VA_ARGS__) do(3, __VA_ARGS__)                                       \
    do(4, __VA_ARGS__) do(5, __VA_ARGS__) do(6, __VA_ARGS__)
#ifdef __AVX512F__
#define EACH_COUNT(do, ...)                                                                        \
    EACH_COUNT_TO_6(do, __VA_ARGS__)                                                               \
    do(7, __VA_ARGS__) do(8, __VA_ARGS__) do(9, __VA_ARGS__)                                       \
    do(10, __VA_ARGS__) do(11, __VA_ARGS__) do(12, __VA_ARGS__)
#else
#define EACH_COUNT(do, ...) EACH_COUNT_TO_6(do, __VA_ARGS__)
#endif

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t blocks(int64_t count, int64_t block) { return (count + block - 1) / block; }

/* How many panels a tile of R rows walks over. */
INLINE int panels_of(const int R) { return R == 1 ? PANELS_OF_ONE : R == 2 ? PANELS_OF_TWO : 1; }

/* Ask for what P panels, so many bytes apart, have some way ahead of a step of so many bytes. */
INLINE void prefetch(const char *weights, const int P, int64_t panel_bytes, const int step_bytes)
{
    UNROLLED for (int p = 0; p < P; p++)
        UNROLLED for (int byte = 0; byte < step_bytes; byte += LINE)
            __builtin_prefetch(weights + p * panel_bytes + AHEAD + byte);
}

/* Write the sums of a row: all, or the columns that there are. */
INLINE void put(float *y, const vec *sums, const int vectors, int64_t columns)
{
    if (columns >= vectors * WIDTH)
        UNROLLED for (int c = 0; c < vectors; c++)
            *(vec *)(y + c * WIDTH) = sums[c];
    else {
        vec last[PANELS_MAX * VECTORS]; /* the sums themselves have no address */
        UNROLLED for (int c = 0; c < vectors; c++)
            last[c] = sums[c];
        memcpy(y, last, columns * sizeof(float));
    }
}

/* The panels from ``panel`` to ``end`` for any number of rows, cut into tiles of equal height. */
static void multiply_panels(
    rows_function *const functions[ROWS], const panel_product *p, int64_t panel, int64_t end,
    int64_t rows)
{
    const int64_t tiles = blocks(rows, ROWS);
    /* A panel that several tiles need stays in the cache while they take their turns. */
    const int64_t step = tiles == 1 ? end - panel : 1;
    for (; panel < end; panel += step)
        for (int64_t t = 0; t < tiles; t++) {
            int64_t first = t * rows / tiles, count = (t + 1) * rows / tiles - first;
            panel_product some = *p;
            some.x += first * p->x_bytes;
            some.y += first * p->out;
            functions[count - 1](&some, panel, panel + step);
        }
}

/* Multiply, each thread some panels of some rows. */
static inline void multiply(
    team *t, rows_function *const functions[ROWS], const panel_product *p, int64_t rows)
{
    const int64_t panels = blocks(p->out, PANEL), row_blocks = blocks(rows, ROW_BLOCK);
    const int64_t wanted = blocks(t->threads * PIECES_PER_THREAD, row_blocks ? row_blocks : 1);
    const int64_t parts = smaller(panels, wanted);
    for (int64_t piece; (piece = take(t, parts * row_blocks)) >= 0;) {
        int64_t block = piece / parts, part = piece % parts;
        int64_t first = block * rows / row_blocks, last = (block + 1) * rows / row_blocks;
        panel_product some = *p;
        some.x += first * p->x_bytes;
        some.y += first * p->out;
        multiply_panels(functions, &some, part * panels / parts, (part + 1) * panels / parts,
                        last - first);
    }
}

#endif
