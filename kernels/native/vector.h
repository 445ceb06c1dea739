/* Vectors of floats, as wide as the processor's registers. */
#ifndef WEFT_VECTOR_H
#define WEFT_VECTOR_H

#include <stdint.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

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
    /* GCC converts vectors in two halves unless it is told the instruction. */
#if WIDTH == 16
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16);
#elif defined(__AVX2__)
    return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16);
#else
    return (vec)(__builtin_convertvector(*(const short_vec *)p, uvec) << 16);
#endif
}

/* The nearest bfloat16, an even one if two are as near; what is not a number stays so. */
static inline short_vec narrow(vec x)
{
    uvec bits = (uvec)x, is_nan = (uvec)(x != x);
    uvec rounded = bits + 0x7fff + (bits >> 16 & 1);
    uvec upper = ((rounded & ~is_nan) | ((bits | 0x400000) & is_nan)) >> 16;
#if WIDTH == 16
    return (short_vec)_mm512_cvtepi32_epi16((__m512i)upper);
#else
    return __builtin_convertvector(upper, short_vec);
#endif
}

/* IEEE half precision. */
static inline vec widen_half(const void *p)
{
#if WIDTH == 16
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256(p));
#elif defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128(p));
#else
    typedef _Float16 halves __attribute__((vector_size(WIDTH * 2), aligned(2), may_alias));
    return __builtin_convertvector(*(const halves *)p, vec);
#endif
}

/* Signed bytes. */
static inline vec widen_bytes(const void *p)
{
#if WIDTH == 16
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)));
#else
    typedef int8_t bytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));
    return __builtin_convertvector(__builtin_convertvector(*(const bytes *)p, ivec), vec);
#endif
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

/* The sum of each vector's lanes, in the same order as sum_lanes has. */
static inline __attribute__((always_inline)) vec sums_of_lanes(const vec *x)
{
    /* Each step adds the halves of twice as many parts of vectors, into half as many vectors. */
#if WIDTH == 16
#define HALVES_OF_16(a, b)                                                                         \
    (__builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)         \
     + __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#define HALVES_OF_8(a, b)                                                                          \
    (__builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)       \
     + __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
#define HALVES_OF_4(a, b)                                                                          \
    (__builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)       \
     + __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
#define HALVES_OF_2(a, b)                                                                          \
    (__builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30)      \
     + __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31))
#define FOURS(i) HALVES_OF_8(HALVES_OF_16(x[i], x[i + 8]), HALVES_OF_16(x[i + 4], x[i + 12]))
#else
#define FOURS(i)                                                                                 \
    (__builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11)                             \
     + __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15))
#define HALVES_OF_4(a, b)                                                                          \
    (__builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)                                       \
     + __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15))
#define HALVES_OF_2(a, b)                                                                          \
    (__builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14)                                      \
     + __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15))
#endif
    vec first = HALVES_OF_4(FOURS(0), FOURS(1)), second = HALVES_OF_4(FOURS(2), FOURS(3));
    return HALVES_OF_2(first, second);
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
