/* y = x W^T + bias in float32, for weights of several types that are packed once.
 *
 * The rows of W lie in panels (panels.h): [panels][in][PANEL], the last one filled up with zeros.
 * Weights are widened on the way. A sum is one chain over ``in``, first to last: its bits depend
 * neither on the other rows, nor on the tile, nor on the number of threads.
 */
#include <stdint.h>
#include <string.h>

#include "panels.h"
#include "team.h"
#include "vector.h"

enum { FLOAT32, BFLOAT16, FLOAT16 };

/* PackedLinear in cpu.py holds one. ``bias`` is filled up to whole panels. */
typedef struct {
    int64_t storage; /* of the panels, one of the above */
    int64_t in;
    int64_t out;
    const char *panels;
    const float *bias;
} layer;

/* x: [rows, in], its rows x_stride apart; y: [rows, out]. */
typedef struct {
    const layer *layer;
    const float *x;
    float *y;
    int64_t x_stride;
} product;

INLINE int64_t bytes_of(const int64_t storage) { return storage == FLOAT32 ? 4 : 2; }

INLINE vec stored(const int storage, const char *p)
{
    switch (storage) {
    case FLOAT32: return load((const float *)p);
    case BFLOAT16: return widen((const uint16_t *)p);
    default: return widen_half(p);
    }
}

/* All outputs of R rows and P panels. */
INLINE void tile(
    const int storage, const int R, const int P, const panel_product *p, int64_t panel)
{
    const layer *l = p->layer;
    const float *x = (const float *)p->x;
    const int64_t x_stride = p->x_bytes / sizeof(float);
    /* Sizes are constants, not R and P: an array of variable length would lie in memory. */
    vec sums[ROWS][PANELS_MAX * VECTORS];
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int c = 0; c < P * VECTORS; c++)
            sums[r][c] = (vec){0};
    const int64_t panel_bytes = l->in * PANEL * bytes_of(storage);
    const char *weights = l->panels + panel * panel_bytes;
    for (int64_t k = 0; k < l->in; k++) {
        vec columns[PANELS_MAX * VECTORS];
        UNROLLED for (int c = 0; c < P * VECTORS; c++)
            columns[c] = stored(storage, weights + c / VECTORS * panel_bytes
                                             + c % VECTORS * WIDTH * bytes_of(storage));
        UNROLLED for (int r = 0; r < R; r++)
            UNROLLED for (int c = 0; c < P * VECTORS; c++)
                sums[r][c] += x[r * x_stride + k] * columns[c];
        prefetch(weights, P, panel_bytes, PANEL * bytes_of(storage));
        weights += PANEL * bytes_of(storage);
    }
    const float *bias = l->bias + panel * PANEL;
    UNROLLED for (int r = 0; r < R; r++) {
        UNROLLED for (int c = 0; c < P * VECTORS; c++)
            sums[r][c] += load(bias + c * WIDTH);
        put(p->y + r * p->out + panel * PANEL, sums[r], P * VECTORS, p->out - panel * PANEL);
    }
}

#define ROWS_FUNCTION(R, storage)                                                                  \
    static void storage##_##R(const panel_product *p, int64_t panel, int64_t end)                  \
    {                                                                                              \
        const int P = panels_of(R);                                                                \
        for (; panel + P <= end; panel += P)                                                       \
            tile(storage, R, P, p, panel);                                                         \
        for (; P > 1 && panel < end; panel++)                                                      \
            tile(storage, R, 1, p, panel);                                                         \
    }

EACH_COUNT(ROWS_FUNCTION, FLOAT32)
EACH_COUNT(ROWS_FUNCTION, BFLOAT16)
EACH_COUNT(ROWS_FUNCTION, FLOAT16)

#define NAME(R, storage) storage##_##R,
static rows_function *const functions[3][ROWS] = {
    {EACH_COUNT(NAME, FLOAT32)},
    {EACH_COUNT(NAME, BFLOAT16)},
    {EACH_COUNT(NAME, FLOAT16)},
};

void weft_linear(team *t, const product *p, int64_t rows)
{
    const layer *l = p->layer;
    const panel_product all = {
        l, l->out, (const char *)p->x, p->x_stride * (int64_t)sizeof(float), p->y};
    multiply(t, functions[l->storage], &all, rows);
}

/* Lay out weights, [rows, in] of size_bytes each, as ``panels``: room for whole panels. */
typedef struct {
    char *panels;
    const char *weights;
    int64_t in, size_bytes;
} packing;

void weft_linear_pack(team *t, const packing *p, int64_t rows)
{
    const int64_t in = p->in, size = p->size_bytes;
    for (int64_t piece; (piece = take(t, blocks(rows, PANEL))) >= 0;) {
        int64_t first = piece * PANEL;
        char *panel = p->panels + first * in * size;
        memset(panel, 0, PANEL * in * size);
        for (int64_t n = 0; n < smaller(rows - first, PANEL); n++)
            for (int64_t k = 0; k < in; k++)
                memcpy(panel + (k * PANEL + n) * size, p->weights + ((first + n) * in + k) * size,
                       size);
    }
}

int64_t weft_linear_panel(void) { return PANEL; }
