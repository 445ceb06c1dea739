/* rms_norm in float32: out[t][h] = x[t][h] / sqrt(mean(x[t][h]^2) + epsilon) * weight.
 *
 * The order of a mean's sum depends on its length alone.
 */
#include <math.h>
#include <stdint.h>

#include "vector.h"

/* Floats that take one thread as long as it takes to wake the others, some 20 us. */
enum { WORTH_THREADS = 1 << 17 };

/* Sums under way at once: each waits some cycles for its last addition. */
enum { SUMS = 4 };

/* Add delta to x if there is one; return the sum of x's squares. */
static inline __attribute__((always_inline)) float squares(
    float *x, const float *delta, int64_t size)
{
    vec sums[SUMS] = {{0}};
    float rest[WIDTH] = {0};
    int64_t i = 0;
    for (; i + SUMS * WIDTH <= size; i += SUMS * WIDTH)
        for (int s = 0; s < SUMS; s++) {
            vec some = load(x + i + s * WIDTH);
            if (delta)
                *(vec *)(x + i + s * WIDTH) = some += load(delta + i + s * WIDTH);
            sums[s] += some * some;
        }
    for (int lane = 0; i < size; i++, lane = (lane + 1) % WIDTH) {
        if (delta)
            x[i] += delta[i];
        rest[lane] += x[i] * x[i];
    }
    return sum_lanes(((sums[0] + sums[1]) + (sums[2] + sums[3])) + load(rest));
}

static void scale(float *out, const float *x, const float *weight, float factor, int64_t size)
{
    int64_t i = 0;
    for (; i + WIDTH <= size; i += WIDTH)
        *(vec *)(out + i) = load(x + i) * factor * load(weight + i);
    for (; i < size; i++)
        out[i] = x[i] * factor * weight[i];
}

/* out: [tokens, heads, size]; x: its tokens and heads lie the strides apart. */
void weft_rms_norm(
    float *out, const float *x, const float *weight, float epsilon, int64_t tokens, int64_t heads,
    int64_t size, int64_t token_stride, int64_t head_stride)
{
#pragma omp parallel for schedule(static) if (tokens * heads * size > WORTH_THREADS)
    for (int64_t row = 0; row < tokens * heads; row++) {
        const float *own = x + row / heads * token_stride + row % heads * head_stride;
        /* Nothing is written without a delta. */
        float sum = squares((float *)own, NULL, size);
        scale(out + row * size, own, weight, 1 / sqrtf(sum / size + epsilon), size);
    }
}

/* x += delta before. All: [rows, size]. */
void weft_add_rms_norm(
    float *out, float *x, const float *delta, const float *weight, float epsilon, int64_t rows,
    int64_t size)
{
#pragma omp parallel for schedule(static) if (rows * size > WORTH_THREADS)
    for (int64_t first = 0; first < rows * size; first += size) {
        float sum = squares(x + first, delta + first, size);
        scale(out + first, x + first, weight, 1 / sqrtf(sum / size + epsilon), size);
    }
}
