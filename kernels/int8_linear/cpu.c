/* y = x W^T + bias as reference.py says it: bytes times bytes, which are summed as integers.
 *
 * There are two operations. The first rounds rows of x, once for all outputs; the second multiplies
 * them by W, which was packed once: panels (panels.h) of which each holds, step by step, STEP columns
 * of its PANEL rows together, as the processor multiplies them: [panels][steps][PANEL][STEP], filled
 * up with zeros. A tile keeps the integers of one group in registers; what they give is added to sums
 * of floats before the next group. Integers are exact, and floats are added group after group, so a
 * row's bits depend neither on other rows, nor on the tile, the number of threads or instructions.
 */
#include <stdint.h>
#include <string.h>

#include "panels.h"
#include "team.h"
#include "vector.h"

/* As in reference.py. */
enum { GROUP = 64, MOST = 127 };
static const float least = 1e-30f;

/* How many bytes are multiplied and added at once, and how x is kept for that. */
#if WIDTH == 16 && defined(__AVX512VNNI__) || WIDTH == 8 && defined(__AVXVNNI__)
/* VNNI takes W's bytes as unsigned: 128 is added to them, and taken off the sum beforehand. */
enum { STEP = 4, OFFSET = 128 };
typedef int8_t value;
#elif WIDTH == 16 && defined(__AVX512BW__) || WIDTH == 8 && defined(__AVX2__)
/* 16 bits: the sum of two products of bytes may not fit into the 16 that vpmaddubsw has for it. */
enum { STEP = 2, OFFSET = 0 };
typedef int16_t value;
#else
enum { STEP = 1, OFFSET = 0 };
typedef int32_t value;
#endif

/* Int8Linear in cpu.py holds one. ``scales`` and ``bias`` are filled up to whole panels. */
typedef struct {
    int64_t in;
    int64_t out;
    const char *panels;
    const float *scales;
    const float *bias;
} layer;

/* x: [rows, in], its rows x_stride apart. A row of ``rounded`` holds the scales of its groups, what
 * their sums begin with, and their values. */
typedef struct {
    const float *x;
    char *rounded;
    int64_t x_stride, in;
} rounding;

/* y: [rows, out]. */
typedef struct {
    const layer *layer;
    const char *rounded;
    float *y;
} product;

INLINE float *scales_of(const char *rounded) { return (float *)rounded; }

INLINE int32_t *starts_of(const char *rounded, int64_t in)
{
    return (int32_t *)rounded + blocks(in, GROUP);
}

INLINE value *values_of(const char *rounded, int64_t in)
{
    return (value *)(starts_of(rounded, in) + blocks(in, GROUP));
}

/* The bytes of a rounded row. */
int64_t weft_int8_row(int64_t in)
{
    const int64_t group_bytes = sizeof(float) + sizeof(int32_t) + GROUP * sizeof(value);
    return blocks(blocks(in, GROUP) * group_bytes, LINE) * LINE;
}

/* A product that is not contracted with the sum it goes into: other processors, and torch, round
 * both. */
INLINE vec apart(vec product)
{
#if defined(__FMA__)
    __asm__("" : "+v"(product));
#elif !defined(__x86_64__)
    __asm__("" : "+m"(product));
#endif
    return product;
}

INLINE ivec larger(ivec a, ivec b)
{
#if WIDTH == 16
    return (ivec)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (ivec)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    ivec is_larger = a > b;
    return (a & is_larger) | (b & ~is_larger);
#endif
}

/* ``sums`` and the products of STEP values of a row of x with those of each of WIDTH rows of W. */
INLINE ivec dot(ivec sums, const char *w, const value *x)
{
    int32_t step;
    memcpy(&step, x, sizeof step);
#if WIDTH == 16 && defined(__AVX512VNNI__)
    return (ivec)_mm512_dpbusd_epi32((__m512i)sums, _mm512_loadu_si512(w), _mm512_set1_epi32(step));
#elif WIDTH == 8 && defined(__AVXVNNI__)
    return (ivec)_mm256_dpbusd_avx_epi32(
        (__m256i)sums, _mm256_loadu_si256((const void *)w), _mm256_set1_epi32(step));
#elif WIDTH == 16 && defined(__AVX512BW__)
    __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)w));
    return sums + (ivec)_mm512_madd_epi16(wide, _mm512_set1_epi32(step));
#elif WIDTH == 8 && defined(__AVX2__)
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)w));
    return sums + (ivec)_mm256_madd_epi16(wide, _mm256_set1_epi32(step));
#else
    typedef int8_t bytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));
    return sums + __builtin_convertvector(*(const bytes *)w, ivec) * step;
#endif
}

/* Round a group of x: its scale, what sums begin with, and its values. */
INLINE void round_group(const float *x, float *scale, int32_t *start, value *values)
{
    ivec most = {0};
    UNROLLED for (int i = 0; i < GROUP; i += WIDTH)
        most = larger(most, (ivec)load(x + i) & INT32_MAX); /* what is no number is the largest */
    union { int32_t bits; float magnitude; } top = {0};
    for (int lane = 0; lane < WIDTH; lane++)
        top.bits = most[lane] > top.bits ? most[lane] : top.bits;
    const int is_finite = top.magnitude - top.magnitude == 0;
    const int is_any = is_finite && top.magnitude >= least;
    const float inverse = is_any ? MOST / top.magnitude : 0.0f;
    *scale = is_any ? top.magnitude / MOST : is_finite ? 0.0f : __builtin_nanf("");
    const float rounder = 12582912.0f; /* 3 * 2^22: floats next to it are whole numbers */
    typedef value some __attribute__((vector_size(WIDTH * sizeof(value)), aligned(1), may_alias));
    ivec sums = {0};
    UNROLLED for (int i = 0; i < GROUP; i += WIDTH) {
        ivec whole = (ivec)(apart(load(x + i) * inverse) + rounder) - 0x4b400000;
        *(some *)(values + i) = __builtin_convertvector(whole, some);
        sums += whole;
    }
    int32_t sum = 0;
    for (int lane = 0; lane < WIDTH; lane++)
        sum += sums[lane];
    *start = -OFFSET * sum;
}

void weft_int8_round(team *t, const rounding *r, int64_t rows)
{
    const int64_t in = r->in, whole = in / GROUP, row_bytes = weft_int8_row(in);
    for (EACH_ROW(row, t, rows)) {
        const float *x = r->x + row * r->x_stride;
        char *rounded = r->rounded + row * row_bytes;
        float *scales = scales_of(rounded);
        int32_t *starts = starts_of(rounded, in);
        value *values = values_of(rounded, in);
        for (int64_t g = 0; g < whole; g++)
            round_group(x + g * GROUP, scales + g, starts + g, values + g * GROUP);
        if (in > whole * GROUP) {
            float rest[GROUP] = {0};
            memcpy(rest, x + whole * GROUP, (in - whole * GROUP) * sizeof(float));
            round_group(rest, scales + whole, starts + whole, values + whole * GROUP);
        }
    }
}

/* All outputs of R rows and P panels. */
INLINE void tile(const int R, const int P, const panel_product *p, int64_t panel)
{
    const layer *l = p->layer;
    const int64_t in = l->in, panel_bytes = blocks(in, STEP) * STEP * PANEL;
    const char *weights = l->panels + panel * panel_bytes;
    vec sums[ROWS][PANELS_MAX * VECTORS];
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int c = 0; c < P * VECTORS; c++)
            sums[r][c] = (vec){0};
    for (int64_t first = 0; first < in; first += GROUP) {
        ivec dots[ROWS][PANELS_MAX * VECTORS];
        UNROLLED for (int r = 0; r < R; r++)
            UNROLLED for (int c = 0; c < P * VECTORS; c++)
                dots[r][c] = (ivec){0} + starts_of(p->x + r * p->x_bytes, in)[first / GROUP];
        const int64_t end = smaller(in, first + GROUP);
        for (int64_t k = first; k < end; k += STEP) {
            UNROLLED for (int r = 0; r < R; r++)
                UNROLLED for (int c = 0; c < P * VECTORS; c++)
                    dots[r][c] = dot(
                        dots[r][c],
                        weights + c / VECTORS * panel_bytes + c % VECTORS * WIDTH * STEP,
                        values_of(p->x + r * p->x_bytes, in) + k);
            prefetch(weights, P, panel_bytes, PANEL * STEP);
            weights += PANEL * STEP;
        }
        UNROLLED for (int r = 0; r < R; r++) {
            const float scale = scales_of(p->x + r * p->x_bytes)[first / GROUP];
            UNROLLED for (int c = 0; c < P * VECTORS; c++)
                sums[r][c] += apart(__builtin_convertvector(dots[r][c], vec) * scale);
        }
    }
    const float *bias = l->bias + panel * PANEL, *scales = l->scales + panel * PANEL;
    UNROLLED for (int r = 0; r < R; r++) {
        UNROLLED for (int c = 0; c < P * VECTORS; c++)
            sums[r][c] = apart(sums[r][c] * load(scales + c * WIDTH)) + load(bias + c * WIDTH);
        put(p->y + r * p->out + panel * PANEL, sums[r], P * VECTORS, p->out - panel * PANEL);
    }
}

#define ROWS_FUNCTION(R, _)                                                                        \
    static void rows_##R(const panel_product *p, int64_t panel, int64_t end)                       \
    {                                                                                              \
        const int P = panels_of(R);                                                                \
        for (; panel + P <= end; panel += P)                                                       \
            tile(R, P, p, panel);                                                                  \
        for (; P > 1 && panel < end; panel++)                                                      \
            tile(R, 1, p, panel);                                                                  \
    }

EACH_COUNT(ROWS_FUNCTION, )

#define NAME(R, _) rows_##R,
static rows_function *const functions[ROWS] = {EACH_COUNT(NAME, )};

void weft_int8_linear(team *t, const product *p, int64_t rows)
{
    const layer *l = p->layer;
    const panel_product all = {l, l->out, p->rounded, weft_int8_row(l->in), p->y};
    multiply(t, functions, &all, rows);
}

/* Lay out weights, [rows, in], as ``panels``: room for whole panels of whole steps. */
typedef struct {
    char *panels;
    const int8_t *weights;
    int64_t in;
} packing;

void weft_int8_pack(team *t, const packing *p, int64_t rows)
{
    const int64_t in = p->in, panel_bytes = blocks(in, STEP) * STEP * PANEL;
    for (int64_t piece; (piece = take(t, blocks(rows, PANEL))) >= 0;) {
        const int64_t first = piece * PANEL;
        char *panel = p->panels + piece * panel_bytes;
        memset(panel, OFFSET, panel_bytes);
        for (int64_t n = 0; n < smaller(rows - first, PANEL); n++)
            for (int64_t k = 0; k < in; k++)
                panel[(k / STEP * PANEL + n) * STEP + k % STEP] =
                    (char)(p->weights[(first + n) * in + k] + OFFSET);
    }
}

/* The bytes of weights, [rows, in], as panels. */
int64_t weft_int8_panels(int64_t rows, int64_t in)
{
    return blocks(rows, PANEL) * PANEL * blocks(in, STEP) * STEP;
}

int64_t weft_int8_panel(void) { return PANEL; }
