/* Attention in float32 over pages of float32 or bfloat16, for decodes and chunks of prompts alike.
 *
 * Every query of every head is a sum of its own, whose order depends on nothing but its own keys:
 * the result does not change with the other rows, the tiling or the number of threads.
 */
#include <math.h>
#include <stdint.h>

#include "team.h"
#include "vector.h"

/* Queries that are computed together, and vectors of sums that stay in registers. */
#ifdef __AVX512F__
enum { QUERIES = 8, SUMS = 24 };
#else
enum { QUERIES = 8, SUMS = 8 };
#endif

/* Vectors of one head that are summed up together, at most. */
enum { COLUMNS = 4 };

/* Keys whose scores are computed together, for as many queries as fill a vector with scores. */
enum { KEYS = 8, TOGETHER = WIDTH / KEYS };
typedef float eight __attribute__((vector_size(KEYS * 4), aligned(4), may_alias));

enum { LINE = 64 };

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")

/* A step's rows. */
typedef struct {
    const int64_t *tiles;     /* [count, 3]: first token, tokens, entry */
    const int64_t *positions; /* [tokens] */
    const int64_t *pages;     /* [entries, pages_max] */
    float *scores;            /* scratch: [threads, QUERIES, scores_stride] */
    int64_t count, pages_max;
    int64_t scores_stride;    /* the most keys that any tile sees, and KEYS more */
} plan;

/* What all pieces of work share. */
typedef struct {
    float *out;              /* [tokens, heads, size] */
    const float *q;          /* like out, tokens q_stride apart */
    const char *k;           /* pages of [page_tokens, kv_heads, size], and so is v */
    const char *v;
    const plan *plan;
    int64_t q_stride;
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

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Keys that follow each other in one page: a pass over all keys goes from run to run. */
typedef struct {
    int64_t key, count;
    int64_t place; /* of the first one of a head in a cache */
    int64_t next;  /* of the next run; of this one if it is the last */
    int64_t index; /* among the pages */
} run;

INLINE int64_t place_of(const work *w, int64_t page, int64_t offset, int64_t kv_head)
{
    return page * w->page_stride + (offset * w->kv_heads + kv_head) * w->size;
}

INLINE run run_at(
    const work *w, const int64_t *pages, int64_t kv_head, int64_t index, int64_t offset,
    int64_t key, int64_t last)
{
    run r = {.key = key, .index = index};
    if (key > last)
        return r;
    r.count = smaller(w->page_tokens - offset, last + 1 - key);
    r.place = place_of(w, pages[index], offset, kv_head);
    r.next = key + r.count <= last ? place_of(w, pages[index + 1], 0, kv_head) : r.place;
    return r;
}

/* All keys from first to last. */
#define EACH_RUN(r)                                                                                \
    run r = run_at(                                                                                \
        w, pages, kv_head, first / w->page_tokens, first % w->page_tokens, first, last);           \
    r.key <= last;                                                                                 \
    r = run_at(w, pages, kv_head, r.index + 1, 0, r.key + r.count, last)

/* Ask for what a pass over the keys reads next: pages lie anywhere, so the processor cannot. */
INLINE void fetch(const int is_half, const work *w, const char *cache, int64_t place)
{
    const char *key = cache + place * (is_half ? 2 : 4);
    for (int64_t byte = 0; byte < w->size * (is_half ? 2 : 4); byte += LINE)
        __builtin_prefetch(key + byte);
}

/* scores[i][j] = scale * q[i] . k[first + j] for some queries and all keys up to last. As many as
 * fill a whole number of blocks of KEYS are written. */
INLINE void score(
    const int is_half, const work *w, const float *const *q, int64_t queries, const int64_t *pages,
    int64_t kv_head, int64_t first, int64_t last, float *scores, int64_t stride)
{
    const int64_t key_stride = w->kv_heads * w->size;
    for (EACH_RUN(r))
        for (int64_t j = 0; j < r.count; j += KEYS) {
            int64_t at[KEYS]; /* of the block's keys; the last one stands for those it lacks */
            at[0] = r.place + j * key_stride;
            for (int k = 1; k < KEYS; k++)
                at[k] = at[k - 1] + (j + k < r.count ? key_stride : 0);
            for (int k = 0; k < KEYS; k++)
                fetch(is_half, w, w->k, at[k] + r.next - r.place);
            for (int64_t i = 0; i < queries; i += TOGETHER) {
                const float *one = q[i], *other = q[smaller(i + 1, queries - 1)];
                vec sums[WIDTH];
                UNROLLED for (int k = 0; k < WIDTH; k++)
                    sums[k] = (vec){0};
                for (int64_t d = 0; d < w->size; d += WIDTH)
                    UNROLLED for (int k = 0; k < KEYS; k++) {
                        vec key = cached(is_half, w->k, at[k] + d);
                        sums[k] += load(one + d) * key;
                        if (TOGETHER == 2)
                            sums[WIDTH - KEYS + k] += load(other + d) * key;
                    }
                float *place = scores + i * stride + r.key - first + j;
                vec some = w->scale * sums_of_lanes(sums);
#if WIDTH == 16
                *(eight *)place = __builtin_shufflevector(some, some, 0, 1, 2, 3, 4, 5, 6, 7);
                if (i + 1 < queries)
                    *(eight *)(place + stride) =
                        __builtin_shufflevector(some, some, 8, 9, 10, 11, 12, 13, 14, 15);
#else
                *(vec *)place = some;
#endif
            }
        }
}

/* Turn the scores of the keys [begin, end) into weights, all others into 0. Returns by what the
 * weights add up to one. */
static float softmax(float *scores, int64_t begin, int64_t end, int64_t count)
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
    for (int64_t i = 0; i < begin; i++)
        scores[i] = 0;
    for (int64_t i = end; i < count; i++)
        scores[i] = 0;
    return 1.0f / (sum + sum_lanes(sums));
}

/* out[i] = factors[i] * sum over keys of weights[i][j] * v[first + j]: D vectors of Q queries. */
INLINE void weigh_columns(
    const int is_half, const int Q, const int D, const work *w, const float *weights,
    int64_t stride, const int64_t *pages, int64_t kv_head, int64_t first, int64_t last,
    int64_t column, const float *factors, float *const *out)
{
    vec sums[QUERIES][COLUMNS];
    UNROLLED for (int i = 0; i < Q; i++)
        UNROLLED for (int d = 0; d < D; d++)
            sums[i][d] = (vec){0};
    const int64_t key_stride = w->kv_heads * w->size;
    for (EACH_RUN(r)) {
        const float *own = weights + r.key - first;
        for (int64_t j = 0, v = r.place + column; j < r.count; j++, v += key_stride) {
            if (column == 0)
                fetch(is_half, w, w->v, r.next + j * key_stride);
            vec parts[COLUMNS];
            UNROLLED for (int d = 0; d < D; d++)
                parts[d] = cached(is_half, w->v, v + d * WIDTH);
            UNROLLED for (int i = 0; i < Q; i++)
                UNROLLED for (int d = 0; d < D; d++)
                    sums[i][d] += own[i * stride + j] * parts[d];
        }
    }
    UNROLLED for (int i = 0; i < Q; i++)
        UNROLLED for (int d = 0; d < D; d++)
            *(vec *)(out[i] + column + d * WIDTH) = factors[i] * sums[i][d];
}

INLINE void weigh(
    const int is_half, const int Q, const work *w, const float *weights, int64_t stride,
    const int64_t *pages, int64_t kv_head, int64_t first, int64_t last, const float *factors,
    float *const *out)
{
    /* As many sums as leave registers for what is added to them. */
    const int D = SUMS / Q >= COLUMNS ? COLUMNS : SUMS / Q >= 2 ? 2 : 1;
    int64_t d = 0;
    for (; d + D * WIDTH <= w->size; d += D * WIDTH)
        weigh_columns(
            is_half, Q, D, w, weights, stride, pages, kv_head, first, last, d, factors, out);
    for (; D > 1 && d < w->size; d += WIDTH)
        weigh_columns(
            is_half, Q, 1, w, weights, stride, pages, kv_head, first, last, d, factors, out);
}

typedef void weigh_function(
    const work *w, const float *weights, int64_t stride, const int64_t *pages, int64_t kv_head,
    int64_t first, int64_t last, const float *factors, float *const *out);

#define WEIGH_FUNCTION(is_half, Q)                                                                 \
    static void weigh_##is_half##_##Q(                                                             \
        const work *w, const float *weights, int64_t stride, const int64_t *pages,                 \
        int64_t kv_head, int64_t first, int64_t last, const float *factors, float *const *out)     \
    {                                                                                              \
        weigh(is_half, Q, w, weights, stride, pages, kv_head, first, last, factors, out);          \
    }
#define EACH_COUNT(do, is_half)                                                                    \
    do(is_half, 1) do(is_half, 2) do(is_half, 3) do(is_half, 4)                                    \
    do(is_half, 5) do(is_half, 6) do(is_half, 7) do(is_half, 8)

EACH_COUNT(WEIGH_FUNCTION, 0)
EACH_COUNT(WEIGH_FUNCTION, 1)

#define NAME(is_half, Q) weigh_##is_half##_##Q,
static weigh_function *const weigh_functions[2][QUERIES] = {
    {EACH_COUNT(NAME, 0)},
    {EACH_COUNT(NAME, 1)},
};

/* One tile of tokens with all heads that share the keys of one. */
static void attend(const work *w, const int64_t *tile, int64_t kv_head, float *scores)
{
    const plan *p = w->plan;
    const int64_t stride = p->scores_stride;
    int64_t fold = w->heads / w->kv_heads, queries = tile[1] * fold;
    const int64_t *pages = p->pages + tile[2] * p->pages_max;
    int64_t last = p->positions[tile[0] + tile[1] - 1];
    int64_t first = p->positions[tile[0]] - w->window + 1;
    if (w->window == 0 || first < 0)
        first = 0;
    for (int64_t begin = 0; begin < queries; begin += QUERIES) {
        int64_t count = queries - begin < QUERIES ? queries - begin : QUERIES;
        const float *q[QUERIES];
        float *out[QUERIES], factors[QUERIES];
        for (int64_t i = 0; i < count; i++) {
            int64_t token = tile[0] + (begin + i) / fold;
            int64_t head = kv_head * fold + (begin + i) % fold;
            q[i] = w->q + token * w->q_stride + head * w->size;
            out[i] = w->out + (token * w->heads + head) * w->size;
        }
        if (w->is_half)
            score(1, w, q, count, pages, kv_head, first, last, scores, stride);
        else
            score(0, w, q, count, pages, kv_head, first, last, scores, stride);
        for (int64_t i = 0; i < count; i++) {
            int64_t position = p->positions[tile[0] + (begin + i) / fold];
            int64_t own = w->window ? position - w->window + 1 : first;
            factors[i] = softmax(scores + i * stride, own > first ? own - first : 0,
                                 position + 1 - first, last + 1 - first);
        }
        weigh_functions[w->is_half][count - 1](
            w, scores, stride, pages, kv_head, first, last, factors, out);
    }
}

void weft_paged_attention(team *t, const work *w, int64_t rows)
{
    const plan *p = w->plan;
    float *scores = p->scores + t->thread * QUERIES * p->scores_stride;
    for (int64_t piece; (piece = take(t, p->count * w->kv_heads)) >= 0;)
        attend(w, p->tiles + 3 * (piece / w->kv_heads), piece % w->kv_heads, scores);
}
