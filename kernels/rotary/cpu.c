/* rotary_ in float32: each pair (i, i + half) of a head turned by its position's angle. */
#include <stdint.h>

#include "team.h"
#include "vector.h"

static void rotate(float *first, const float *cos, const float *sin, int64_t half)
{
    float *second = first + half;
    int64_t i = 0;
    for (; i + WIDTH <= half; i += WIDTH) {
        vec a = load(first + i), b = load(second + i), c = load(cos + i), s = load(sin + i);
        *(vec *)(first + i) = a * c - b * s;
        *(vec *)(second + i) = b * c + a * s;
    }
    for (; i < half; i++) {
        float a = first[i], b = second[i];
        first[i] = a * cos[i] - b * sin[i];
        second[i] = b * cos[i] + a * sin[i];
    }
}

/* x: [rows, heads, 2 * half], rows and heads the strides apart; cos, sin: [context, half];
 * positions: [rows]. */
typedef struct {
    float *x;
    const float *cos, *sin;
    const int64_t *positions;
    int64_t heads, half, row_stride, head_stride;
} rotation;

void weft_rotary(team *t, const rotation *r, int64_t rows)
{
    for (EACH_ROW(row, t, rows)) {
        const int64_t angle = r->positions[row] * r->half;
        for (int64_t h = 0; h < r->heads; h++)
            rotate(r->x + row * r->row_stride + h * r->head_stride, r->cos + angle,
                   r->sin + angle, r->half);
    }
}
