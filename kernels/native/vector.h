/* Vectors of floats, as wide as the processor's registers. */
#ifndef WEFT_VECTOR_H
#define WEFT_VECTOR_H

#include <stdint.h>

#ifdef __AVX512F__
#define WIDTH 16
#else
#define WIDTH 8
#endif

typedef float vec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(WIDTH * 4)));
typedef float half __attribute__((vector_size(WIDTH * 2)));
typedef float four __attribute__((vector_size(16)));

typedef uint16_t short_vec __attribute__((vector_size(WIDTH * 2), aligned(2), may_alias));
typedef uint32_t uvec __attribute__((vector_size(WIDTH * 4)));

static inline vec load(const float *p) { return *(const vec *)p; }

/* bfloat16 is the upper half of a float. */
static inline vec widen(const uint16_t *p)
{
    return (vec)(__builtin_convertvector(*(const short_vec *)p, uvec) << 16);
}

static inline float widen_one(uint16_t x)
{
    union { uint32_t bits; float value; } wide = {(uint32_t)x << 16};
    return wide.value;
}

static inline float sum_lanes(vec x)
{
#if WIDTH == 16
    half h = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7)
           + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    four f = __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
#else
    four f = __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
#endif
    return (f[0] + f[2]) + (f[1] + f[3]);
}

/* exp for x <= 0 within 2 units in the last place: 2^n by the exponent's bits, the rest by a
 * polynomial (coefficients of the Cephes library's expf). What is not finite becomes NaN. */
static inline vec exp_lanes(vec x)
{
    const vec nan_unless_finite = x - x;
    const vec low = (vec){0} - 87.0f;
    ivec is_low = x < low;
    x = (vec)(((ivec)low & is_low) | ((ivec)x & ~is_low));
    vec n = x * 1.44269504f + 12582912.0f; /* rounds to an integer */
    ivec bits = (ivec)n << 23;
    n -= 12582912.0f;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = (vec){0} + 1.9875691500e-4f;
    p = p * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * x * x + x + 1.0f;
    return (vec)((ivec)p + bits) + nan_unless_finite;
}

#endif
