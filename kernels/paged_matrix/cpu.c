/* y = v M and y = x M^T in float32, for a matrix M [rows, columns] of float32 or bfloat16 that is
 * cut into granules of 8 rows by 128 columns, each anywhere in memory.
 *
 * A sum's order does not depend on the other rows of v or x, nor on the number of threads: one
 * chain over M's rows, or one over its columns in steps of WIDTH, whose lanes are added up in
 * pairs, and then the columns that are left.
 */
#include <stdint.h>
#include <string.h>

#include "team.h"
#include "vector.h"

enum { ROWS = 8, COLUMNS = 128, GRANULE = ROWS * COLUMNS };

/* Sums that stay in registers: of one row of x with a granule's rows, of two with half of them, and
 * of one row of v with so many columns. */
enum { TILE_TOKENS = 2, TILE_VECTORS = 8 };

/* Groups of rows in one piece of work, granules that are asked for before they are needed, for they
 * lie anywhere, and the bytes that come together. */
enum { GROUPS = 8, AHEAD = 4, LINE = 64 };

/* Granule (block of columns, group of rows) is granules[places[block * groups + group]]. */
typedef struct {
    const char *granules;
    const int64_t *places;
    int64_t rows, columns, is_half;
} matrix;

/* What is multiplied with it, a row for each of the batch's. */
typedef struct {
    matrix matrix;
    const float *x;
    float *y;
} product;

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t blocks(int64_t count, int64_t block) { return (count + block - 1) / block; }

INLINE const char *granule(const matrix *m, int64_t block, int64_t group)
{
    int64_t place = m->places[block * blocks(m->rows, ROWS) + group];
    return m->granules + place * GRANULE * (m->is_half ? 2 : 4);
}

INLINE vec read(const char *granule, int64_t i, const int is_half)
{
    return is_half ? widen((const uint16_t *)granule + i) : load((const float *)granule + i);
}

INLINE float read_one(const char *granule, int64_t i, const int is_half)
{
    return is_half ? widen_one(((const uint16_t *)granule)[i]) : ((const float *)granule)[i];
}

/* The granule that is so many blocks after a group's first one, or of the groups after it. */
static const char *later(const matrix *m, int64_t block, int64_t group)
{
    const int64_t all = blocks(m->columns, COLUMNS);
    for (; block >= all; block -= all)
        group++;
    return group < blocks(m->rows, ROWS) ? granule(m, block, group) : m->granules;
}

/* The sums of T rows of x with R rows of a group, ``first`` and on. */
INLINE void tile(
    const int T, const int R, const int is_half, const int is_first, const matrix *m,
    int64_t group, int64_t first, const float *x, float *y)
{
    const int64_t bytes = is_half ? 2 : 4;
    vec sums[TILE_TOKENS][ROWS];
    float rests[TILE_TOKENS][ROWS] = {{0}};
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < R; r++)
            sums[t][r] = (vec){0};
    for (int64_t block = 0; block < blocks(m->columns, COLUMNS); block++) {
        const char *weights = granule(m, block, group);
        const char *next = is_first ? later(m, block + AHEAD, group) : 0;
        const float *own = x + block * COLUMNS;
        int64_t columns = smaller(m->columns - block * COLUMNS, COLUMNS), k = 0;
        for (; k + WIDTH <= columns; k += WIDTH)
            UNROLL for (int r = 0; r < R; r++) {
                const int64_t i = (first + r) * COLUMNS + k;
                if (is_first && i * bytes % LINE == 0)
                    __builtin_prefetch(next + i * bytes);
                vec row = read(weights, i, is_half);
                UNROLL for (int t = 0; t < T; t++)
                    sums[t][r] += load(own + t * m->columns + k) * row;
            }
        for (; k < columns; k++)
            for (int r = 0; r < R; r++)
                for (int t = 0; t < T; t++)
                    rests[t][r] += own[t * m->columns + k]
                                   * read_one(weights, (first + r) * COLUMNS + k, is_half);
    }
    const int64_t row = group * ROWS + first;
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < R; r++)
            if (row + r < m->rows)
                y[t * m->rows + row + r] = sum_lanes(sums[t][r]) + rests[t][r];
}

INLINE void group_of_rows(
    const int is_half, const matrix *m, int64_t group, const float *x, int64_t count, float *y)
{
    if (count == 1) {
        tile(1, ROWS, is_half, 1, m, group, 0, x, y);
        return;
    }
    for (int64_t t = 0; t < count; t += TILE_TOKENS)
        for (int64_t first = 0; first < ROWS; first += ROWS / 2) {
            const float *own = x + t * m->columns;
            float *out = y + t * m->rows;
            if (t == 0)
                tile(TILE_TOKENS, ROWS / 2, is_half, 1, m, group, first, own, out);
            else if (count - t >= TILE_TOKENS)
                tile(TILE_TOKENS, ROWS / 2, is_half, 0, m, group, first, own, out);
            else
                tile(1, ROWS / 2, is_half, 0, m, group, first, own, out);
        }
}

/* x [rows, columns of M], y [rows, rows of M]. */
void weft_matrix_times_transposed(team *t, const product *p, int64_t rows)
{
    const matrix *m = &p->matrix;
    const int64_t groups = blocks(m->rows, ROWS);
    for (int64_t piece; (piece = take(t, blocks(groups, GROUPS))) >= 0;)
        for (int64_t g = piece * GROUPS; g < smaller((piece + 1) * GROUPS, groups); g++)
            if (m->is_half)
                group_of_rows(1, m, g, p->x, rows, p->y);
            else
                group_of_rows(0, m, g, p->x, rows, p->y);
}

/* A row of y, as far as it is in one block of columns. */
INLINE void block_of_columns(
    const int is_half, const matrix *m, int64_t block, const float *v, float *y)
{
    float out[COLUMNS];
    for (int64_t first = 0; first < COLUMNS; first += TILE_VECTORS * WIDTH) {
        vec sums[TILE_VECTORS];
        UNROLL for (int c = 0; c < TILE_VECTORS; c++)
            sums[c] = (vec){0};
        for (int64_t row = 0; row < m->rows; row++) {
            const char *weights = granule(m, block, row / ROWS);
            UNROLL for (int c = 0; c < TILE_VECTORS; c++)
                sums[c] += v[row]
                           * read(weights, row % ROWS * COLUMNS + first + c * WIDTH, is_half);
        }
        UNROLL for (int c = 0; c < TILE_VECTORS; c++)
            *(vec *)(out + first + c * WIDTH) = sums[c];
    }
    const int64_t columns = smaller(m->columns - block * COLUMNS, COLUMNS);
    memcpy(y + block * COLUMNS, out, columns * sizeof(float));
}

/* x [rows, rows of M], y [rows, columns of M]. */
void weft_matrix_times(team *t, const product *p, int64_t rows)
{
    const matrix *m = &p->matrix;
    for (int64_t block; (block = take(t, blocks(m->columns, COLUMNS))) >= 0;)
        for (int64_t r = 0; r < rows; r++)
            if (m->is_half)
                block_of_columns(1, m, block, p->x + r * m->rows, p->y + r * m->columns);
            else
                block_of_columns(0, m, block, p->x + r * m->rows, p->y + r * m->columns);
}
