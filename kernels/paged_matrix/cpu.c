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

/* Sums that stay in registers: of two rows of x with half of a granule's rows, and of one row of v
 * with so many columns. */
enum { TILE_TOKENS = 2, TILE_ROWS = 4, TILE_VECTORS = 8 };

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

/* The sums of T rows of x with TILE_ROWS rows of a group, ``first`` and on. */
INLINE void tile(
    const int T, const int is_half, const matrix *m, int64_t group, int64_t first, const float *x,
    float *y)
{
    vec sums[TILE_TOKENS][TILE_ROWS];
    float rests[TILE_TOKENS][TILE_ROWS] = {{0}};
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < TILE_ROWS; r++)
            sums[t][r] = (vec){0};
    for (int64_t block = 0; block < blocks(m->columns, COLUMNS); block++) {
        const char *weights = granule(m, block, group);
        const float *own = x + block * COLUMNS;
        int64_t columns = smaller(m->columns - block * COLUMNS, COLUMNS), k = 0;
        for (; k + WIDTH <= columns; k += WIDTH)
            UNROLL for (int r = 0; r < TILE_ROWS; r++) {
                vec row = read(weights, (first + r) * COLUMNS + k, is_half);
                UNROLL for (int t = 0; t < T; t++)
                    sums[t][r] += load(own + t * m->columns + k) * row;
            }
        for (; k < columns; k++)
            for (int r = 0; r < TILE_ROWS; r++)
                for (int t = 0; t < T; t++)
                    rests[t][r] += own[t * m->columns + k]
                                   * read_one(weights, (first + r) * COLUMNS + k, is_half);
    }
    const int64_t row = group * ROWS + first;
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < TILE_ROWS; r++)
            if (row + r < m->rows)
                y[t * m->rows + row + r] = sum_lanes(sums[t][r]) + rests[t][r];
}

INLINE void group_of_rows(
    const int is_half, const matrix *m, int64_t group, const float *x, int64_t count, float *y)
{
    for (int64_t t = 0; t < count; t += TILE_TOKENS)
        for (int64_t first = 0; first < ROWS; first += TILE_ROWS)
            if (count - t >= TILE_TOKENS)
                tile(TILE_TOKENS, is_half, m, group, first, x + t * m->columns, y + t * m->rows);
            else
                tile(1, is_half, m, group, first, x + t * m->columns, y + t * m->rows);
}

/* x [rows, columns of M], y [rows, rows of M]. */
void weft_matrix_times_transposed(team *t, const product *p, int64_t rows)
{
    const matrix *m = &p->matrix;
    for (int64_t group; (group = take(t, blocks(m->rows, ROWS))) >= 0;)
        if (m->is_half)
            group_of_rows(1, m, group, p->x, rows, p->y);
        else
            group_of_rows(0, m, group, p->x, rows, p->y);
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
