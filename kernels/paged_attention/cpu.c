/* Attention in float32 over pages of float32 or bfloat16, for decodes and chunks of prompts alike.
 *
 * Every query of every head is a sum of its own, whose order depends on nothing but its own keys:
 * the result does not change with the other rows, the tiling or the number of threads.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "vector.h"

/* Queries that are computed together, and vectors of sums that stay in registers. */
#ifdef __AVX512F__
enum { QUERIES = 8, SUMS = 24 };
#else
enum { QUERIES = 8, SUMS = 8 };
#endif

/* Vectors of one head that are summed up together, at most. */
enum { COLUMNS = 4 };

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")

/* What all pieces of work share. */
typedef struct {
    float *out;              /* [tokens, heads, size] */
    const float *q;          /* like out, tokens q_stride apart */
    const char *k;           /* pages of [page_tokens, kv_heads, size], and so is v */
    const char *v;
    const int64_t *tiles;    /* [tiles, 3]: first token, tokens, entry */
    const int64_t *positions; /* [tokens] */
    const int64_t *pages;    /* [entries, pages_max] */
    int64_t q_stride, pages_max;
    int64_t page_stride;     /* numbers from one page to the next */
    int64_t page_tokens, heads, kv_heads, size;
    int64_t window;          /* keys that a query sees, itself included; 0: all before it */
    int64_t is_half;         /* pages hold bfloat16, not float32 */
    float scale;
} work;

/* Number ``i`` of a cache and those after it, widened. */
INLINE vec cached(const int is_half, const char *cache, int64_t i)
{
    return is_half ? widen((const uint16_t *)cache + i) : load((const float *)cache + i);
}

/* Where the keys from ``key`` to ``last`` that follow each other begin, and how many they are. */
INLINE int64_t run_of(
    const work *w, const int64_t *pages, int64_t kv_head, int64_t key, int64_t last, int64_t *count)
{
    int64_t page = pages[key / w->page_tokens], offset = key % w->page_tokens;
    int64_t left = w->page_tokens - offset;
    *count = last + 1 - key < left ? last + 1 - key : left;
    return page * w->page_stride + (offset * w->kv_heads + kv_head) * w->size;
}

/* scores[i][j] = scale * q[i] . k[first + j] for Q queries and all keys up to last. */
INLINE void score(
    const int is_half, const int Q, const work *w, const float *const *q, const int64_t *pages,
    int64_t kv_head, int64_t first, int64_t last, float *scores, int64_t stride)
{
    int64_t count, key_stride = w->kv_heads * w->size;
    for (int64_t key = first; key <= last; key += count) {
        int64_t k = run_of(w, pages, kv_head, key, last, &count);
        for (int64_t j = key - first; j < key - first + count; j++, k += key_stride) {
            /* A constant size, not Q: an array of variable length would lie in memory. */
            vec sums[QUERIES];
            UNROLLED for (int i = 0; i < Q; i++)
                sums[i] = (vec){0};
            for (int64_t d = 0; d < w->size; d += WIDTH) {
                vec part = cached(is_half, w->k, k + d);
                UNROLLED for (int i = 0; i < Q; i++)
                    sums[i] += load(q[i] + d) * part;
            }
            UNROLLED for (int i = 0; i < Q; i++)
                scores[i * stride + j] = w->scale * sum_lanes(sums[i]);
        }
    }
}

/* Turn the scores of the keys [begin, end) into weights that add up to one, all others into 0. */
static void softmax(float *scores, int64_t begin, int64_t end, int64_t count)
{
    vec mosts = (vec){0} - INFINITY;
    int64_t j = begin;
    for (; j + WIDTH <= end; j += WIDTH) {
        vec some = load(scores + j);
        ivec is_more = some > mosts;
        mosts = (vec)(((ivec)some & is_more) | ((ivec)mosts & ~is_more));
    }
    float most = -INFINITY;
    for (int lane = 0; lane < WIDTH; lane++)
        most = mosts[lane] > most ? mosts[lane] : most;
    for (; j < end; j++)
        most = scores[j] > most ? scores[j] : most;
    vec sums = {0};
    float sum = 0;
    j = begin;
    for (; j + WIDTH <= end; j += WIDTH) {
        vec weights = exp_lanes(load(scores + j) - most);
        *(vec *)(scores + j) = weights;
        sums += weights;
    }
    if (j < end) {
        vec rest = (vec){0} - 1000.0f;
        for (int64_t i = j; i < end; i++)
            rest[i - j] = scores[i] - most;
        rest = exp_lanes(rest);
        for (int64_t i = j; i < end; i++)
            sum += scores[i] = rest[i - j];
    }
    float factor = 1.0f / (sum + sum_lanes(sums));
    for (int64_t i = 0; i < begin; i++)
        scores[i] = 0;
    for (int64_t i = begin; i < end; i++)
        scores[i] *= factor;
    for (int64_t i = end; i < count; i++)
        scores[i] = 0;
}

/* out[i] = sum over keys of weights[i][j] * v[first + j] for Q queries, D vectors of each. */
INLINE void weigh_columns(
    const int is_half, const int Q, const int D, const work *w, const float *weights,
    int64_t stride, const int64_t *pages, int64_t kv_head, int64_t first, int64_t last,
    int64_t column, float *const *out)
{
    vec sums[QUERIES][COLUMNS];
    UNROLLED for (int i = 0; i < Q; i++)
        UNROLLED for (int d = 0; d < D; d++)
            sums[i][d] = (vec){0};
    int64_t count, key_stride = w->kv_heads * w->size;
    for (int64_t key = first; key <= last; key += count) {
        int64_t v = run_of(w, pages, kv_head, key, last, &count) + column;
        for (int64_t j = key - first; j < key - first + count; j++, v += key_stride) {
            vec parts[COLUMNS];
            UNROLLED for (int d = 0; d < D; d++)
                parts[d] = cached(is_half, w->v, v + d * WIDTH);
            UNROLLED for (int i = 0; i < Q; i++)
                UNROLLED for (int d = 0; d < D; d++)
                    sums[i][d] += weights[i * stride + j] * parts[d];
        }
    }
    UNROLLED for (int i = 0; i < Q; i++)
        UNROLLED for (int d = 0; d < D; d++)
            *(vec *)(out[i] + column + d * WIDTH) = sums[i][d];
}

INLINE void weigh(
    const int is_half, const int Q, const work *w, const float *weights, int64_t stride,
    const int64_t *pages, int64_t kv_head, int64_t first, int64_t last, float *const *out)
{
    /* As many sums as leave registers for what is added to them. */
    const int D = SUMS / Q >= COLUMNS ? COLUMNS : SUMS / Q >= 2 ? 2 : 1;
    int64_t d = 0;
    for (; d + D * WIDTH <= w->size; d += D * WIDTH)
        weigh_columns(is_half, Q, D, w, weights, stride, pages, kv_head, first, last, d, out);
    for (; D > 1 && d < w->size; d += WIDTH)
        weigh_columns(is_half, Q, 1, w, weights, stride, pages, kv_head, first, last, d, out);
}

/* One tile's scores, or its weighted values, for so many queries. */
#define FUNCTIONS(is_half, Q)                                                                      \
    static void score_##is_half##_##Q(                                                             \
        const work *w, const float *const *q, const int64_t *pages, int64_t kv_head,               \
        int64_t first, int64_t last, float *scores, int64_t stride)                                \
    {                                                                                              \
        score(is_half, Q, w, q, pages, kv_head, first, last, scores, stride);                      \
    }                                                                                              \
    static void weigh_##is_half##_##Q(                                                             \
        const work *w, float *const *out, const int64_t *pages, int64_t kv_head, int64_t first,    \
        int64_t last, const float *weights, int64_t stride)                                        \
    {                                                                                              \
        weigh(is_half, Q, w, weights, stride, pages, kv_head, first, last, out);                   \
    }
#define EACH_COUNT(do, is_half)                                                                    \
    do(is_half, 1) do(is_half, 2) do(is_half, 3) do(is_half, 4)                                    \
    do(is_half, 5) do(is_half, 6) do(is_half, 7) do(is_half, 8)

EACH_COUNT(FUNCTIONS, 0)
EACH_COUNT(FUNCTIONS, 1)

typedef void score_function(
    const work *w, const float *const *q, const int64_t *pages, int64_t kv_head, int64_t first,
    int64_t last, float *scores, int64_t stride);
typedef void weigh_function(
    const work *w, float *const *out, const int64_t *pages, int64_t kv_head, int64_t first,
    int64_t last, const float *weights, int64_t stride);

#define SCORE(is_half, Q) score_##is_half##_##Q,
#define WEIGH(is_half, Q) weigh_##is_half##_##Q,
static score_function *const scores_of[2][QUERIES] = {{EACH_COUNT(SCORE, 0)}, {EACH_COUNT(SCORE, 1)}};
static weigh_function *const weigh_of[2][QUERIES] = {{EACH_COUNT(WEIGH, 0)}, {EACH_COUNT(WEIGH, 1)}};

/* One tile of tokens with all heads that share the keys of one. */
static void attend(const work *w, const int64_t *tile, int64_t kv_head, float *scores, int64_t stride)
{
    int64_t fold = w->heads / w->kv_heads, queries = tile[1] * fold;
    const int64_t *pages = w->pages + tile[2] * w->pages_max;
    int64_t last = w->positions[tile[0] + tile[1] - 1];
    int64_t first = w->positions[tile[0]] - w->window + 1;
    if (w->window == 0 || first < 0)
        first = 0;
    for (int64_t begin = 0; begin < queries; begin += QUERIES) {
        int64_t count = queries - begin < QUERIES ? queries - begin : QUERIES;
        const float *q[QUERIES];
        float *out[QUERIES];
        for (int64_t i = 0; i < count; i++) {
            int64_t token = tile[0] + (begin + i) / fold;
            int64_t head = kv_head * fold + (begin + i) % fold;
            q[i] = w->q + token * w->q_stride + head * w->size;
            out[i] = w->out + (token * w->heads + head) * w->size;
        }
        scores_of[w->is_half][count - 1](
            w, q, pages, kv_head, first, last, scores, stride);
        for (int64_t i = 0; i < count; i++) {
            int64_t position = w->positions[tile[0] + (begin + i) / fold];
            int64_t own = w->window && position - w->window + 1 > first ? position - w->window + 1 : first;
            softmax(scores + i * stride, own - first, position + 1 - first, last + 1 - first);
        }
        weigh_of[w->is_half][count - 1](w, out, pages, kv_head, first, last, scores, stride);
    }
}

/* Returns 0, or -1 if there is no memory. keys_max: the most keys that any tile sees. */
int weft_paged_attention(const work *w, int64_t tiles, int64_t keys_max)
{
    int64_t pieces = tiles * w->kv_heads;
    int failed = 0;
#pragma omp parallel if (pieces > 1)
    {
        float *scores = malloc(sizeof(float) * QUERIES * keys_max);
        if (scores == NULL) {
#pragma omp atomic write
            failed = -1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t piece = 0; piece < pieces; piece++)
            if (scores != NULL)
                attend(w, w->tiles + 3 * (piece / w->kv_heads), piece % w->kv_heads, scores, keys_max);
        free(scores);
    }
    return failed;
}
