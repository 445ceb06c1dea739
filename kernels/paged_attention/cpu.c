/* Attention over pages in float32, for decodes and chunks of prompts alike.
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

/* What all pieces of work share. */
typedef struct {
    float *out;              /* [tokens, heads, size], and so is q */
    const float *q;
    const float *k;          /* [pages, page_tokens, kv_heads, size], and so is v; */
    const float *v;          /* a page begins page_stride floats after the one before it */
    const int64_t *tiles;    /* [tiles, 3]: first token, tokens, entry */
    const int64_t *positions; /* [tokens] */
    const int64_t *pages;    /* [entries, pages_max] */
    int64_t pages_max, page_stride, page_tokens, heads, kv_heads, size;
    int64_t window;          /* keys that a query sees, itself included; 0: all before it */
    float scale;
} work;

/* The first of the keys from ``key`` to ``last`` that follow each other in memory, and how many. */
static inline const float *run_of(
    const work *w, const float *cache, const int64_t *pages, int64_t kv_head, int64_t key,
    int64_t last, int64_t *count)
{
    int64_t page = pages[key / w->page_tokens], offset = key % w->page_tokens;
    int64_t left = w->page_tokens - offset;
    *count = last + 1 - key < left ? last + 1 - key : left;
    return cache + page * w->page_stride + (offset * w->kv_heads + kv_head) * w->size;
}

/* scores[i][j] = scale * q[i] . k[first + j] for Q queries and all keys up to last. */
static inline __attribute__((always_inline)) void score(
    const int Q, const work *w, const float *const *q, const int64_t *pages, int64_t kv_head,
    int64_t first, int64_t last, float *scores, int64_t stride)
{
    int64_t count, key_stride = w->kv_heads * w->size;
    for (int64_t key = first; key <= last; key += count) {
        const float *k = run_of(w, w->k, pages, kv_head, key, last, &count);
        for (int64_t j = key - first; j < key - first + count; j++, k += key_stride) {
            vec sums[Q];
            for (int i = 0; i < Q; i++)
                sums[i] = (vec){0};
            for (int64_t d = 0; d < w->size; d += WIDTH) {
                vec part = load(k + d);
                for (int i = 0; i < Q; i++)
                    sums[i] += load(q[i] + d) * part;
            }
            for (int i = 0; i < Q; i++)
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
static inline __attribute__((always_inline)) void weigh_columns(
    const int Q, const int D, const work *w, const float *weights, int64_t stride,
    const int64_t *pages, int64_t kv_head, int64_t first, int64_t last, int64_t column,
    float *const *out)
{
    vec sums[Q][D];
    for (int i = 0; i < Q; i++)
        for (int d = 0; d < D; d++)
            sums[i][d] = (vec){0};
    int64_t count, key_stride = w->kv_heads * w->size;
    for (int64_t key = first; key <= last; key += count) {
        const float *v = run_of(w, w->v, pages, kv_head, key, last, &count) + column;
        for (int64_t j = key - first; j < key - first + count; j++, v += key_stride)
            for (int d = 0; d < D; d++) {
                vec part = load(v + d * WIDTH);
                for (int i = 0; i < Q; i++)
                    sums[i][d] += weights[i * stride + j] * part;
            }
    }
    for (int i = 0; i < Q; i++)
        for (int d = 0; d < D; d++)
            *(vec *)(out[i] + column + d * WIDTH) = sums[i][d];
}

static inline __attribute__((always_inline)) void weigh(
    const int Q, const work *w, const float *weights, int64_t stride, const int64_t *pages,
    int64_t kv_head, int64_t first, int64_t last, float *const *out)
{
    /* As many sums as leave registers for what is added to them. */
    const int D = SUMS / Q >= 4 ? 4 : SUMS / Q >= 2 ? 2 : 1;
    int64_t d = 0;
    for (; d + D * WIDTH <= w->size; d += D * WIDTH)
        weigh_columns(Q, D, w, weights, stride, pages, kv_head, first, last, d, out);
    for (; d < w->size; d += WIDTH)
        weigh_columns(Q, 1, w, weights, stride, pages, kv_head, first, last, d, out);
}

#define FOR_EACH_COUNT(call)                                                                       \
    switch (count) {                                                                               \
    case 1: call(1); break;                                                                        \
    case 2: call(2); break;                                                                        \
    case 3: call(3); break;                                                                        \
    case 4: call(4); break;                                                                        \
    case 5: call(5); break;                                                                        \
    case 6: call(6); break;                                                                        \
    case 7: call(7); break;                                                                        \
    default: call(8);                                                                              \
    }

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
            q[i] = w->q + (token * w->heads + head) * w->size;
            out[i] = w->out + (token * w->heads + head) * w->size;
        }
#define SCORE(Q) score(Q, w, q, pages, kv_head, first, last, scores, stride)
        FOR_EACH_COUNT(SCORE)
        for (int64_t i = 0; i < count; i++) {
            int64_t position = w->positions[tile[0] + (begin + i) / fold];
            int64_t own = w->window && position - w->window + 1 > first ? position - w->window + 1 : first;
            softmax(scores + i * stride, own - first, position + 1 - first, last + 1 - first);
        }
#define WEIGH(Q) weigh(Q, w, scores, stride, pages, kv_head, first, last, out)
        FOR_EACH_COUNT(WEIGH)
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
