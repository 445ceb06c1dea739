/* y = x W^T + bias in float32, for weights of several types that are packed once.
 *
 * The rows of W lie in panels of PANEL, side by side: [panels][in][PANEL], the last one filled up
 * with zeros. A tile of sums, some rows of x by one panel, stays in registers while it walks over
 * ``in``; weights are widened on the way. So a sum is one chain over ``in``, first to last: its
 * bits depend neither on the other rows, nor on the tile, nor on the number of threads.
 */
#include <stdint.h>
#include <string.h>

#include "team.h"
#include "vector.h"

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

enum { FLOAT32, BFLOAT16, FLOAT16, INT8 };

/* PackedLinear in cpu.py holds one. Arrays of ``out`` are filled up to whole panels. */
typedef struct {
    int64_t storage; /* of the panels, one of the above */
    int64_t in;
    int64_t out;
    const char *panels;
    const float *bias;
    const float *scales; /* of INT8: W = scale * what is stored */
} layer;

/* x: [rows, in], its rows x_stride apart; y: [rows, out]. */
typedef struct {
    const layer *layer;
    const float *x;
    float *y;
    int64_t x_stride;
} product;

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t blocks(int64_t count, int64_t block) { return (count + block - 1) / block; }

INLINE int64_t bytes_of(const int64_t storage)
{
    return storage == FLOAT32 ? 4 : storage == INT8 ? 1 : 2;
}

INLINE vec stored(const int storage, const char *p)
{
    switch (storage) {
    case FLOAT32: return load((const float *)p);
    case BFLOAT16: return widen((const uint16_t *)p);
    case FLOAT16: return widen_half(p);
    default: return widen_bytes(p);
    }
}

/* All outputs of R rows and P panels. */
INLINE void tile(
    const int storage, const int R, const int P, const layer *l, int64_t panel, const float *x,
    int64_t x_stride, float *y)
{
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
        UNROLLED for (int p = 0; p < P; p++)
            UNROLLED for (int64_t byte = 0; byte < PANEL * bytes_of(storage); byte += LINE)
                __builtin_prefetch(weights + p * panel_bytes + AHEAD + byte);
        weights += PANEL * bytes_of(storage);
    }
    y += panel * PANEL;
    const float *bias = l->bias + panel * PANEL, *scales = l->scales + panel * PANEL;
    const int64_t columns = smaller(l->out - panel * PANEL, P * PANEL);
    UNROLLED for (int r = 0; r < R; r++, y += l->out) {
        UNROLLED for (int c = 0; c < P * VECTORS; c++) {
            if (storage == INT8)
                sums[r][c] *= load(scales + c * WIDTH);
            sums[r][c] += load(bias + c * WIDTH);
        }
        if (columns == P * PANEL)
            UNROLLED for (int c = 0; c < P * VECTORS; c++)
                *(vec *)(y + c * WIDTH) = sums[r][c];
        else {
            vec last[PANELS_MAX * VECTORS]; /* the sums themselves have no address */
            UNROLLED for (int c = 0; c < P * VECTORS; c++)
                last[c] = sums[r][c];
            memcpy(y, last, columns * sizeof(float));
        }
    }
}

/* The panels from ``panel`` to ``end`` for R rows. */
INLINE void some_rows(
    const int storage, const int R, const layer *l, int64_t panel, int64_t end, const float *x,
    int64_t x_stride, float *y)
{
    const int P = R == 1 ? PANELS_OF_ONE : R == 2 ? PANELS_OF_TWO : 1;
    for (; panel + P <= end; panel += P)
        tile(storage, R, P, l, panel, x, x_stride, y);
    for (; P > 1 && panel < end; panel++)
        tile(storage, R, 1, l, panel, x, x_stride, y);
}

typedef void rows_function(
    const layer *l, int64_t panel, int64_t end, const float *x, int64_t x_stride, float *y);

#define ROWS_FUNCTION(storage, R)                                                                  \
    static void storage##_##R(                                                                     \
        const layer *l, int64_t panel, int64_t end, const float *x, int64_t x_stride, float *y)    \
    {                                                                                              \
        some_rows(storage, R, l, panel, end, x, x_stride, y);                                      \
    }

#define EACH_COUNT_TO_6(do, storage)                                                               \
    do(storage, 1) do(storage, 2) do(storage, 3) do(storage, 4) do(storage, 5) do(storage, 6)
#ifdef __AVX512F__
#define EACH_COUNT(do, storage)                                                                    \
    EACH_COUNT_TO_6(do, storage)                                                                   \
    do(storage, 7) do(storage, 8) do(storage, 9) do(storage, 10) do(storage, 11) do(storage, 12)
#else
#define EACH_COUNT(do, storage) EACH_COUNT_TO_6(do, storage)
#endif

EACH_COUNT(ROWS_FUNCTION, FLOAT32)
EACH_COUNT(ROWS_FUNCTION, BFLOAT16)
EACH_COUNT(ROWS_FUNCTION, FLOAT16)
EACH_COUNT(ROWS_FUNCTION, INT8)

#define NAME(storage, R) storage##_##R,
static rows_function *const functions[4][ROWS] = {
    {EACH_COUNT(NAME, FLOAT32)},
    {EACH_COUNT(NAME, BFLOAT16)},
    {EACH_COUNT(NAME, FLOAT16)},
    {EACH_COUNT(NAME, INT8)},
};

/* The panels from ``panel`` to ``end`` for any number of rows, cut into tiles of equal height. */
static void multiply(
    const layer *l, int64_t panel, int64_t end, int64_t rows, const float *x, int64_t x_stride,
    float *y)
{
    int64_t tiles = blocks(rows, ROWS);
    /* A panel that several tiles need stays in the cache while they take their turns. */
    int64_t step = tiles == 1 ? end - panel : 1;
    for (; panel < end; panel += step)
        for (int64_t t = 0; t < tiles; t++) {
            int64_t first = t * rows / tiles, count = (t + 1) * rows / tiles - first;
            functions[l->storage][count - 1](
                l, panel, panel + step, x + first * x_stride, x_stride, y + first * l->out);
        }
}

void weft_linear(team *t, const product *p, int64_t rows)
{
    const layer *l = p->layer;
    const int64_t panels = blocks(l->out, PANEL), row_blocks = blocks(rows, ROW_BLOCK);
    const int64_t wanted = blocks(t->threads * PIECES_PER_THREAD, row_blocks ? row_blocks : 1);
    const int64_t parts = smaller(panels, wanted);
    for (int64_t piece; (piece = take(t, parts * row_blocks)) >= 0;) {
        int64_t block = piece / parts, part = piece % parts;
        int64_t first = block * rows / row_blocks, last = (block + 1) * rows / row_blocks;
        multiply(l, part * panels / parts, (part + 1) * panels / parts, last - first,
                 p->x + first * p->x_stride, p->x_stride, p->y + first * l->out);
    }
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
