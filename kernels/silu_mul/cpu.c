/* silu_mul in float32: out[t] = silu(gate[t]) * up[t], where gate_up[t] holds both. */
#include <stdint.h>

#include "vector.h"

/* Floats that take one thread as long as it takes to wake the others, some 20 us. */
enum { WORTH_THREADS = 1 << 16 };

static inline vec silu(vec x)
{
    ivec sign = (ivec)x & INT32_MIN;
    ivec is_negative = sign != 0;
    vec small = exp_lanes((vec)((ivec)x | INT32_MIN)); /* exp(-|x|) */
    vec one = (vec){0} + 1.0f;
    vec top = (vec)(((ivec)small & is_negative) | ((ivec)one & ~is_negative));
    return x * (top / (one + small));
}

void weft_silu_mul(
    float *out, const float *gate_up, int64_t stride, int64_t tokens, int64_t columns)
{
#pragma omp parallel for schedule(static) if (tokens * columns > WORTH_THREADS)
    for (int64_t t = 0; t < tokens; t++) {
        const float *gate = gate_up + t * stride, *up = gate + columns;
        float *row = out + t * columns;
        int64_t c = 0;
        for (; c + WIDTH <= columns; c += WIDTH)
            *(vec *)(row + c) = silu(load(gate + c)) * load(up + c);
        if (c < columns) {
            vec rest = {0};
            for (int64_t i = c; i < columns; i++)
                rest[i - c] = gate[i];
            rest = silu(rest);
            for (int64_t i = c; i < columns; i++)
                row[i] = rest[i - c] * up[i];
        }
    }
}
