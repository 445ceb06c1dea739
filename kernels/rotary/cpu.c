/* rotary_ in float32: each pair (i, i + half) of a head turned by its position's angle. */
#include <stdint.h>

#include "vector.h"

/* Floats that take one thread as long as it takes to wake the others, some 20 us. */
enum { WORTH_THREADS = 1 << 17 };

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

/* x: [tokens, heads, 2 * half], tokens and heads the strides apart; cos, sin: [context, half]. */
void weft_rotary(
    float *x, const float *cos, const float *sin, const int64_t *positions, int64_t tokens,
    int64_t heads, int64_t half, int64_t token_stride, int64_t head_stride)
{
#pragma omp parallel for schedule(static) if (tokens * heads * half > WORTH_THREADS)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < heads; h++)
            rotate(x + t * token_stride + h * head_stride, cos + positions[t] * half,
                   sin + positions[t] * half, half);
}
