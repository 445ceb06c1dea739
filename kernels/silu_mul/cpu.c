/* silu_mul in float32: out[t] = silu(gate[t]) * up[t], where gate_up[t] holds both. */
#include <stdint.h>

#include "team.h"
#include "vector.h"

static inline vec silu(vec x)
{
    ivec sign = (ivec)x & INT32_MIN;
    ivec is_negative = sign != 0;
    vec small = exp_lanes((vec)((ivec)x | INT32_MIN)); /* exp(-|x|) */
    vec one = (vec){0} + 1.0f;
    vec top = (vec)(((ivec)small & is_negative) | ((ivec)one & ~is_negative));
    return x * (top / (one + small));
}

/* out: [rows, columns]; gate_up: rows the stride apart. */
typedef struct {
    float *out;
    const float *gate_up;
    int64_t stride, columns;
} product;

void weft_silu_mul(team *t, const product *p, int64_t rows)
{
    for (EACH_ROW(r, t, rows)) {
        const float *gate = p->gate_up + r * p->stride, *up = gate + p->columns;
        float *row = p->out + r * p->columns;
        int64_t c = 0;
        for (; c + WIDTH <= p->columns; c += WIDTH)
            *(vec *)(row + c) = silu(load(gate + c)) * load(up + c);
        if (c < p->columns) {
            vec rest = {0};
            for (int64_t i = c; i < p->columns; i++)
                rest[i - c] = gate[i];
            rest = silu(rest);
            for (int64_t i = c; i < p->columns; i++)
                row[i] = rest[i - c] * up[i];
        }
    }
}
