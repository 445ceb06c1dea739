/* sgmv in float32: y[rows] += (x[rows] A^T) B^T for each segment's own adapter.
 *
 * A sum's order does not depend on the other rows of the batch, on the tile it is computed in, or
 * on the number of threads: one chain over x's columns in steps of WIDTH, its lanes added up in
 * order, then the rest; and one chain over the ranks.
 */
#include <stdint.h>

#include "vector.h"

/* A tile's sums fit into the registers: 32 of 16 floats, or 16 of 8. */
#if WIDTH == 16
enum { TILE_RANKS = 4, TILE_TOKENS = 4 };
#else
enum { TILE_RANKS = 2, TILE_TOKENS = 2 };
#endif

/* Rows of x that pass through the cache together, ranks and columns of one piece of work. */
enum { TOKEN_BLOCK = 64, RANK_BLOCK = 8, COLUMN_BLOCK = 256 };

/* One adapter's weights for the modules that share x: see SiteTable in cpu.py. */
typedef struct {
    int64_t rank;
    int64_t column; /* of the first output in y */
    int64_t columns;
    const float *b; /* [rank, columns], scale included */
} part;

typedef struct {
    int64_t rank; /* of all parts */
    int64_t parts;
    const float *a; /* [rank, in] */
    part part[];
} site;

/* v[t][r] = x[t] . a[r] for a tile of T tokens and R ranks. */
static inline __attribute__((always_inline)) void shrink_tile(
    const int T, const int R, const float *x, int64_t x_stride, const float *a, int64_t in,
    float *v, int64_t v_stride)
{
    vec sums[T][R];
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++)
            sums[t][r] = (vec){0};
    int64_t k = 0;
    for (; k + WIDTH <= in; k += WIDTH)
        for (int t = 0; t < T; t++) {
            vec row = load(x + t * x_stride + k);
            for (int r = 0; r < R; r++)
                sums[t][r] += row * load(a + r * in + k);
        }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) {
            float sum = 0;
            for (int lane = 0; lane < WIDTH; lane++)
                sum += sums[t][r][lane];
            for (int64_t rest = k; rest < in; rest++)
                sum += x[t * x_stride + rest] * a[r * in + rest];
            v[t * v_stride + r] = sum;
        }
}

#define SHRINK(T, R)                                                                               \
    shrink_tile(T, R, x + t * x_stride, x_stride, a + r * in, in, v + t * v_stride + r, v_stride)

static void shrink(
    int64_t tokens, int64_t ranks, const float *x, int64_t x_stride, const float *a, int64_t in,
    float *v, int64_t v_stride)
{
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) {
        int64_t r = 0;
        for (; r + TILE_RANKS <= ranks; r += TILE_RANKS)
            SHRINK(4, TILE_RANKS);
        for (; r < ranks; r++)
            SHRINK(4, 1);
    }
    for (; t < tokens; t++) {
        int64_t r = 0;
        for (; r + 4 <= ranks; r += 4)
            SHRINK(1, 4);
        for (; r < ranks; r++)
            SHRINK(1, 1);
    }
}

/* y[t][c] += v[t] . b[:, c] for a tile of T tokens and C vectors of columns. */
static inline __attribute__((always_inline)) void expand_tile(
    const int T, const int C, const float *v, int64_t v_stride, const float *b, int64_t b_stride,
    int64_t ranks, float *y, int64_t y_stride)
{
    vec sums[T][C];
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++)
            sums[t][c] = (vec){0};
    for (int64_t r = 0; r < ranks; r++)
        for (int c = 0; c < C; c++) {
            vec weights = load(b + r * b_stride + c * WIDTH);
            for (int t = 0; t < T; t++)
                sums[t][c] += v[t * v_stride + r] * weights;
        }
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++)
            *(vec *)(y + t * y_stride + c * WIDTH) += sums[t][c];
}

#define EXPAND(T, C)                                                                               \
    expand_tile(T, C, v + t * v_stride, v_stride, b + c, b_stride, ranks, y + t * y_stride + c,    \
                y_stride)

static void expand(
    int64_t tokens, int64_t columns, const float *v, int64_t v_stride, const float *b,
    int64_t b_stride, int64_t ranks, float *y, int64_t y_stride)
{
    int64_t c = 0;
    for (; c + 4 * WIDTH <= columns; c += 4 * WIDTH) {
        int64_t t = 0;
        for (; t + TILE_TOKENS <= tokens; t += TILE_TOKENS)
            EXPAND(TILE_TOKENS, 4);
        for (; t < tokens; t++)
            EXPAND(1, 4);
    }
    for (; c + WIDTH <= columns; c += WIDTH)
        for (int64_t t = 0; t < tokens; t++)
            EXPAND(1, 1);
    for (; c < columns; c++)
        for (int64_t t = 0; t < tokens; t++) {
            float sum = 0;
            for (int64_t r = 0; r < ranks; r++)
                sum += v[t * v_stride + r] * b[r * b_stride + c];
            y[t * y_stride + c] += sum;
        }
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t blocks(int64_t count, int64_t block) { return (count + block - 1) / block; }

/* Pieces of work of one segment in both phases. */
static int64_t shrink_pieces(const site *s, int64_t tokens)
{
    return blocks(tokens, TOKEN_BLOCK) * blocks(s->rank, RANK_BLOCK);
}

static int64_t expand_pieces(const site *s, int64_t tokens)
{
    int64_t pieces = 0;
    for (int64_t p = 0; p < s->parts; p++)
        pieces += blocks(s->part[p].columns, COLUMN_BLOCK);
    return blocks(tokens, TOKEN_BLOCK) * pieces;
}

static void shrink_piece(
    const site *s, int64_t piece, int64_t tokens, const float *x, int64_t x_stride, int64_t in,
    float *v, int64_t v_stride)
{
    int64_t rank_blocks = blocks(s->rank, RANK_BLOCK);
    int64_t t = piece / rank_blocks * TOKEN_BLOCK, r = piece % rank_blocks * RANK_BLOCK;
    shrink(smaller(tokens - t, TOKEN_BLOCK), smaller(s->rank - r, RANK_BLOCK), x + t * x_stride,
           x_stride, s->a + r * in, in, v + t * v_stride + r, v_stride);
}

static void expand_piece(
    const site *s, int64_t piece, int64_t tokens, const float *v, int64_t v_stride, float *y,
    int64_t y_stride)
{
    int64_t token_blocks = blocks(tokens, TOKEN_BLOCK);
    int64_t t = piece % token_blocks * TOKEN_BLOCK, column_block = piece / token_blocks, rank = 0;
    const part *p = s->part;
    while (column_block >= blocks(p->columns, COLUMN_BLOCK)) {
        column_block -= blocks(p->columns, COLUMN_BLOCK);
        rank += p->rank;
        p++;
    }
    int64_t c = column_block * COLUMN_BLOCK;
    expand(smaller(tokens - t, TOKEN_BLOCK), smaller(p->columns - c, COLUMN_BLOCK),
           v + t * v_stride + rank, v_stride, p->b + c, p->columns, p->rank,
           y + t * y_stride + p->column + c, y_stride);
}

/* sites[slots[i]] is 0 where an adapter has nothing here; v has room for the ranks of every row:
 * [rows, v_stride]. pieces is scratch for 2 * (segments + 1) numbers. */
void weft_sgmv(
    float *y, int64_t y_stride, const float *x, int64_t x_stride, int64_t in,
    const int64_t *starts, const int64_t *slots, int64_t segments, const int64_t *sites, float *v,
    int64_t v_stride, int64_t *pieces)
{
    int64_t *shrinks = pieces, *expands = pieces + segments + 1;
    shrinks[0] = expands[0] = 0;
    for (int64_t i = 0; i < segments; i++) {
        const site *s = (const site *)sites[slots[i]];
        int64_t tokens = starts[i + 1] - starts[i];
        shrinks[i + 1] = shrinks[i] + (s ? shrink_pieces(s, tokens) : 0);
        expands[i + 1] = expands[i] + (s ? expand_pieces(s, tokens) : 0);
    }
#pragma omp parallel if (expands[segments] > 1)
    {
        int64_t i = 0;
#pragma omp for schedule(dynamic, 4)
        for (int64_t piece = 0; piece < shrinks[segments]; piece++) {
            while (piece >= shrinks[i + 1]) i++;
            while (piece < shrinks[i]) i--;
            int64_t first = starts[i];
            shrink_piece((const site *)sites[slots[i]], piece - shrinks[i], starts[i + 1] - first,
                         x + first * x_stride, x_stride, in, v + first * v_stride, v_stride);
        }
        i = 0;
#pragma omp for schedule(dynamic, 4)
        for (int64_t piece = 0; piece < expands[segments]; piece++) {
            while (piece >= expands[i + 1]) i++;
            while (piece < expands[i]) i--;
            int64_t first = starts[i];
            expand_piece((const site *)sites[slots[i]], piece - expands[i], starts[i + 1] - first,
                         v + first * v_stride, v_stride, y + first * y_stride, y_stride);
        }
    }
}
