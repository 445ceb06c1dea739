/* sgmv for weights in pages: y[rows] += weight scale (x[rows] A^T) B^T for each segment's own
 * adapter, and then y = factor y + weight offset where the adapter has that. Segments of several
 * adapters are added to by one after the other.
 *
 * granules.py says where weights lie. They are float32 or bfloat16, everything else is float32. A
 * sum's order does not depend on the other rows of the batch, on the tile it is computed in, or on
 * the number of threads: one chain over x's columns in steps of WIDTH, its lanes added up in pairs,
 * then the columns that are left; and one chain over the ranks.
 */
#include <stddef.h>
#include <stdint.h>

#include "team.h"
#include "vector.h"

enum { RANKS = 8, COLUMNS = 128, PARTS_MAX = 3 };

/* Numbers of 128 columns' factors and offsets, float32 whatever weights are; two such blocks lie in
 * one granule. */
enum { AFFINE_FLOATS = 2 * COLUMNS, AFFINE_BLOCKS = 2 };

/* Rows that pass through the cache together, and blocks of columns, in one piece of work. */
enum { TOKEN_BLOCK = 32, COLUMN_BLOCKS = 1 };

/* Pieces of work that a thread takes at once, as long as there are so many for each. */
enum { TAKEN = 4, PARTS_PER_THREAD = 6 };

/* Granules that are asked for before they are needed: reading one takes less time than its way
 * from memory. */
enum { AHEAD = 4, LINE = 64 };

/* The sums of a tile fit into the registers: less of the rest for four tokens than for fewer. */
enum { TILE_TOKENS = 4 };
#if WIDTH == 16
enum { TILE_RANKS = 4, TILE_VECTORS = 8, TILE_VECTORS_4 = 4 };
#else
enum { TILE_RANKS = 2, TILE_VECTORS = 4, TILE_VECTORS_4 = 2 };
#endif

/* Tables of granules.py, and the arena: see PagedLora in cpu.py. */
typedef struct {
    const char *arena;
    const int32_t *pages, *groups, *a_start, *b_start, *affine_start;
    const float *scales;
    float *v; /* what shrink gives: of each row's n-th adapters the ranks, [n, rows, v_stride] */
    int64_t layer_bytes, pages_max, page_granules, layers, sites, is_half, v_stride;
} adapters;

/* One site: the columns of its inputs, and of each part's output. */
typedef struct {
    int64_t in, parts, out[PARTS_MAX];
} shape;

/* One slot's weights at one site of one layer. */
typedef struct {
    const char *layer;
    const int32_t *pages, *groups, *b_start, *affine_start;
    const float *scales;
    int64_t page_granules, granule_bytes, a_start, total; /* groups of all parts */
    float weight; /* of the update, beside the parts' scales */
} weights;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t blocks(int64_t count, int64_t block) { return (count + block - 1) / block; }

static weights find(
    const adapters *a, int64_t layer, int64_t site, int64_t slot, float weight)
{
    int64_t place = (slot * a->layers + layer) * a->sites + site;
    weights w = {
        .layer = a->arena + layer * a->layer_bytes,
        .pages = a->pages + slot * a->pages_max,
        .groups = a->groups + place * PARTS_MAX,
        .b_start = a->b_start + place * PARTS_MAX,
        .affine_start = a->affine_start + place * PARTS_MAX,
        .scales = a->scales + place * PARTS_MAX,
        .page_granules = a->page_granules,
        .granule_bytes = RANKS * COLUMNS * (a->is_half ? 2 : 4),
        .a_start = a->a_start[place],
        .weight = weight,
    };
    for (int p = 0; p < PARTS_MAX; p++)
        w.total += w.groups[p];
    return w;
}

static inline const char *granule(const weights *w, int64_t index)
{
    uint32_t page = (uint32_t)index / (uint32_t)w->page_granules;
    uint32_t rest = (uint32_t)index % (uint32_t)w->page_granules;
    return w->layer + (w->pages[page] * w->page_granules + rest) * w->granule_bytes;
}

/* A tile's sums stay in registers only where every loop over it is unrolled, and its array is of a
 * size that the compiler knows before it inlines. */
#define UNROLL _Pragma("GCC unroll 32")
#define INLINE static inline __attribute__((always_inline))

INLINE vec read(const char *granule, int64_t i, const int is_half)
{
    return is_half ? widen((const uint16_t *)granule + i) : load((const float *)granule + i);
}

INLINE float read_one(const char *granule, int64_t i, const int is_half)
{
    return is_half ? widen_one(((const uint16_t *)granule)[i]) : ((const float *)granule)[i];
}

/* Ask for the line that begins with a granule's i-th number, if one begins there. */
INLINE void prefetch(const char *granule, int64_t i, const int is_half)
{
    const int64_t bytes = is_half ? 2 : 4;
    if (i * bytes % LINE == 0)
        __builtin_prefetch(granule + i * bytes);
}

/* The granule of A that is so many blocks after a group's first one, or of the groups after it. */
static const char *shrunk_later(const weights *w, int64_t blocks, int64_t block, int64_t group)
{
    for (; block >= blocks; block -= blocks)
        group++;
    return granule(w, w->a_start + (group < w->total ? block * w->total + group : 0));
}

/* v[t][r] = x[t] . a[first + r] for a tile of T tokens and R ranks of one group. */
INLINE void shrink_tile(
    const int T, const int R, const int is_half, const int is_first, const weights *w,
    int64_t group, int64_t first, const float *x, int64_t x_stride, int64_t in, float *v,
    int64_t v_stride)
{
    const int64_t all = blocks(in, COLUMNS);
    vec sums[TILE_TOKENS][RANKS];
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < R; r++)
            sums[t][r] = (vec){0};
    const char *last = NULL;
    for (int64_t block = 0; block < all; block++) {
        const char *a = last = granule(w, w->a_start + block * w->total + group);
        const char *next = is_first ? shrunk_later(w, all, block + AHEAD, group) : NULL;
        const float *rows = x + block * COLUMNS;
        int64_t columns = in - block * COLUMNS < COLUMNS ? in - block * COLUMNS : COLUMNS, k = 0;
        for (; k + WIDTH <= columns; k += WIDTH) {
            vec ranks[RANKS];
            UNROLL for (int r = 0; r < R; r++) {
                if (is_first)
                    prefetch(next, (first + r) * COLUMNS + k, is_half);
                ranks[r] = read(a, (first + r) * COLUMNS + k, is_half);
            }
            UNROLL for (int t = 0; t < T; t++) {
                vec row = load(rows + t * x_stride + k);
                UNROLL for (int r = 0; r < R; r++)
                    sums[t][r] += row * ranks[r];
            }
        }
    }
    const int64_t whole = in / WIDTH * WIDTH;
    vec tile[WIDTH] = {{0}};
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < R; r++)
            tile[t * R + r] = sums[t][r];
    const vec added = sums_of_lanes(tile);
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < R; r++) {
            float sum = added[t * R + r];
            for (int64_t k = whole; k < in; k++)
                sum += x[t * x_stride + k]
                     * read_one(last, (first + r) * COLUMNS + k % COLUMNS, is_half);
            v[t * v_stride + first + r] = sum;
        }
}

#define SHRINK(T, R, is_first)                                                                     \
    for (int64_t r = 0; r < RANKS; r += R)                                                         \
    shrink_tile(T, R, is_half, is_first, w, group, r, x + t * x_stride, x_stride, in,              \
                v + t * v_stride, v_stride)

/* One group of ranks for all tokens. */
INLINE void shrink_group(
    const int is_half, const weights *w, int64_t group, int64_t tokens, const float *x,
    int64_t x_stride, int64_t in, float *v, int64_t v_stride)
{
    int64_t t = 0;
    if (tokens >= TILE_TOKENS) {
        SHRINK(TILE_TOKENS, TILE_RANKS, 1);
        t = TILE_TOKENS;
    }
    for (; t + TILE_TOKENS <= tokens; t += TILE_TOKENS)
        SHRINK(TILE_TOKENS, TILE_RANKS, 0);
    switch (tokens - t) {
    case 3: SHRINK(3, TILE_RANKS, 1); break;
    case 2: SHRINK(2, TILE_RANKS, 1); break;
    case 1: SHRINK(1, RANKS, 1);
    }
}

/* y[t][c] += scale v[t] . b[:, c] for a tile of T tokens and C vectors of one block of columns. */
INLINE void expand_tile(
    const int T, const int C, const int is_half, const int is_first, const weights *w, int64_t part,
    int64_t block, int64_t last, int64_t first, int64_t columns, const float *v, int64_t v_stride,
    float *y, int64_t y_stride)
{
    vec sums[TILE_TOKENS][TILE_VECTORS];
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int c = 0; c < C; c++)
            sums[t][c] = (vec){0};
    int64_t index = w->b_start[part] + block * w->groups[part];
    for (int64_t group = 0; group < w->groups[part]; group++) {
        const char *b = granule(w, index + group);
        const char *next = is_first ? granule(w, smaller(index + group + AHEAD, last)) : NULL;
        const float *ranks = v + group * RANKS;
        for (int64_t r = 0; r < RANKS; r++)
            UNROLL for (int c = 0; c < C; c++) {
                if (is_first)
                    prefetch(next, r * COLUMNS + first + c * WIDTH, is_half);
                vec row = read(b, r * COLUMNS + first + c * WIDTH, is_half);
                UNROLL for (int t = 0; t < T; t++)
                    sums[t][c] += ranks[t * v_stride + r] * row;
            }
    }
    float scale = w->weight * w->scales[part];
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int c = 0; c < C; c++) {
            float *out = y + t * y_stride + first + c * WIDTH;
            int64_t left = columns - first - c * WIDTH;
            if (left >= WIDTH)
                *(vec *)out += scale * sums[t][c];
            else
                for (int64_t lane = 0; lane < left; lane++)
                    out[lane] = __builtin_fmaf(scale, sums[t][c][lane], out[lane]);
        }
}

#define EXPAND(T, C, is_first)                                                                     \
    for (int64_t first = 0; first < columns; first += C * WIDTH)                                   \
    expand_tile(T, C, is_half, is_first, w, part, block, last, first, columns, v + t * v_stride,   \
                v_stride, y + t * y_stride, y_stride)

/* One block of columns for all tokens. */
INLINE void expand_block(
    const int is_half, const weights *w, int64_t part, int64_t block, int64_t last, int64_t columns,
    int64_t tokens, const float *v, int64_t v_stride, float *y, int64_t y_stride)
{
    int64_t t = 0;
    if (tokens >= TILE_TOKENS) {
        EXPAND(TILE_TOKENS, TILE_VECTORS_4, 1);
        t = TILE_TOKENS;
    }
    for (; t + TILE_TOKENS <= tokens; t += TILE_TOKENS)
        EXPAND(TILE_TOKENS, TILE_VECTORS_4, 0);
    switch (tokens - t) {
    case 3: EXPAND(3, TILE_VECTORS_4, 1); break;
    case 2: EXPAND(2, TILE_VECTORS, 1); break;
    case 1: EXPAND(1, TILE_VECTORS, 1);
    }
}

/* y[t][c] = factor[c] y[t][c] + weight offset[c] for all tokens, if the part has these. */
static void apply_affine(
    const weights *w, int64_t part, int64_t block, int64_t columns, int64_t tokens, float *y,
    int64_t y_stride)
{
    if (!w->affine_start[part])
        return;
    const float *factor = (const float *)granule(w, w->affine_start[part] + block / AFFINE_BLOCKS)
                          + block % AFFINE_BLOCKS * AFFINE_FLOATS;
    const float *offset = factor + COLUMNS;
    for (int64_t t = 0; t < tokens; t++, y += y_stride)
        for (int64_t c = 0; c < columns; c++)
            y[c] = __builtin_fmaf(factor[c], y[c], w->weight * offset[c]);
}

/* Pieces of work of one segment in both phases. */
static int64_t shrink_pieces(const weights *w, int64_t tokens)
{
    return blocks(tokens, TOKEN_BLOCK) * w->total;
}

/* The same whatever an adapter has, so that all of a segment's are added in one piece. */
static int64_t part_pieces(const shape *s, int64_t part)
{
    return blocks(s->out[part], COLUMN_BLOCKS * COLUMNS);
}

static int64_t expand_pieces(const shape *s, int64_t tokens)
{
    int64_t pieces = 0;
    for (int64_t p = 0; p < s->parts; p++)
        pieces += part_pieces(s, p);
    return blocks(tokens, TOKEN_BLOCK) * pieces;
}

static void shrink_piece(
    const weights *w, int is_half, int64_t piece, int64_t tokens, const float *x, int64_t x_stride,
    int64_t in, float *v, int64_t v_stride)
{
    int64_t t = piece / w->total * TOKEN_BLOCK, group = piece % w->total;
    int64_t count = smaller(tokens - t, TOKEN_BLOCK);
    x += t * x_stride;
    v += t * v_stride + group * RANKS;
    if (is_half)
        shrink_group(1, w, group, count, x, x_stride, in, v, v_stride);
    else
        shrink_group(0, w, group, count, x, x_stride, in, v, v_stride);
}

static void expand_piece(
    const weights *w, const shape *s, int is_half, int64_t piece, int64_t tokens, const float *v,
    int64_t v_stride, float *y, int64_t y_stride)
{
    int64_t token_blocks = blocks(tokens, TOKEN_BLOCK);
    int64_t t = piece % token_blocks * TOKEN_BLOCK, part = 0;
    int64_t count = smaller(tokens - t, TOKEN_BLOCK);
    piece /= token_blocks;
    v += t * v_stride;
    y += t * y_stride;
    for (; piece >= part_pieces(s, part); part++) {
        piece -= part_pieces(s, part);
        v += w->groups[part] * RANKS;
        y += s->out[part];
    }
    if (!w->groups[part])
        return;
    int64_t last = w->b_start[part] + blocks(s->out[part], COLUMNS) * w->groups[part] - 1;
    for (int64_t block = piece * COLUMN_BLOCKS; block < (piece + 1) * COLUMN_BLOCKS; block++) {
        int64_t columns = smaller(s->out[part] - block * COLUMNS, COLUMNS);
        if (columns <= 0)
            return;
        if (is_half)
            expand_block(1, w, part, block, last, columns, count, v, v_stride,
                         y + block * COLUMNS, y_stride);
        else
            expand_block(0, w, part, block, last, columns, count, v, v_stride,
                         y + block * COLUMNS, y_stride);
        apply_affine(w, part, block, columns, count, y + block * COLUMNS, y_stride);
    }
}

/* The rows of a step: those of segment i are starts[i] .. starts[i + 1] and use slots[i][n], whose
 * updates are multiplied by weights[i][n], for each n below the width or up to a slot of -1. */
typedef struct {
    const int64_t *starts, *slots;
    const float *weights;
    int64_t count, width;
} segments;

/* One site of one layer. */
typedef struct {
    const adapters *adapters;
    const segments *segments;
    float *y;
    const float *x;
    int64_t y_stride, x_stride, layer, site;
    shape shape;
} update;

/* Pieces of work are counted over all segments. A thread's only grow, so it finds the segment of
 * each by going on from that of the one before. */
typedef struct {
    int64_t segment, row, rows;
    int64_t first, end; /* the segment's pieces */
    weights weights;    /* of its first adapter */
} cursor;

/* A segment's n-th adapter, if there is one. */
INLINE int find_nth(const update *u, int64_t segment, int64_t n, weights *w)
{
    const segments *s = u->segments;
    const int64_t place = segment * s->width + n;
    if (n >= s->width || s->slots[place] < 0)
        return 0;
    *w = find(u->adapters, u->layer, u->site, s->slots[place], s->weights[place]);
    return 1;
}

INLINE void go_on(cursor *c, const update *u, const int is_expand)
{
    const segments *s = u->segments;
    c->row = s->starts[++c->segment];
    c->rows = s->starts[c->segment + 1] - c->row;
    find_nth(u, c->segment, 0, &c->weights);
    int64_t shrunk = shrink_pieces(&c->weights, c->rows);
    weights further;
    for (int64_t n = 1; find_nth(u, c->segment, n, &further); n++)
        shrunk += shrink_pieces(&further, c->rows);
    c->first = c->end;
    c->end += !is_expand ? shrunk : shrunk ? expand_pieces(&u->shape, c->rows) : 0;
}

INLINE int64_t all_pieces(const update *u, const int is_expand)
{
    cursor c = {.segment = -1};
    while (c.segment + 1 < u->segments->count)
        go_on(&c, u, is_expand);
    return c.end;
}

static int64_t taken_at_once(const team *t, int64_t pieces)
{
    int64_t even = pieces / (t->threads * PARTS_PER_THREAD);
    return even < 1 ? 1 : smaller(even, TAKEN);
}

/* v = x A^T. */
void weft_sgmv_shrink(team *t, const update *u, int64_t rows)
{
    const adapters *a = u->adapters;
    const int64_t all = all_pieces(u, 0), some = taken_at_once(t, all);
    cursor c = {.segment = -1};
    for (int64_t part; (part = take(t, blocks(all, some))) >= 0;)
        for (int64_t piece = part * some; piece < smaller(all, (part + 1) * some); piece++) {
            while (piece >= c.end)
                go_on(&c, u, 0);
            weights further;
            const weights *w = &c.weights;
            int64_t own = piece - c.first, n = 0;
            while (own >= shrink_pieces(w, c.rows)) {
                own -= shrink_pieces(w, c.rows);
                find_nth(u, c.segment, ++n, &further);
                w = &further;
            }
            shrink_piece(w, a->is_half, own, c.rows, u->x + c.row * u->x_stride, u->x_stride,
                         u->shape.in, a->v + (n * rows + c.row) * a->v_stride, a->v_stride);
        }
}

/* y += scale v B^T, and what comes last. */
void weft_sgmv_expand(team *t, const update *u, int64_t rows)
{
    const adapters *a = u->adapters;
    const int64_t all = all_pieces(u, 1), some = taken_at_once(t, all);
    cursor c = {.segment = -1};
    for (int64_t part; (part = take(t, blocks(all, some))) >= 0;)
        for (int64_t piece = part * some; piece < smaller(all, (part + 1) * some); piece++) {
            while (piece >= c.end)
                go_on(&c, u, 1);
            weights further;
            const weights *w = &c.weights;
            for (int64_t n = 0; n == 0 || find_nth(u, c.segment, n, &further); n++) {
                expand_piece(w, &u->shape, a->is_half, piece - c.first, c.rows,
                             a->v + (n * rows + c.row) * a->v_stride, a->v_stride,
                             u->y + c.row * u->y_stride, u->y_stride);
                w = &further;
            }
        }
}
