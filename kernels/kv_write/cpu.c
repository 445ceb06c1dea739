/* kv_write: float32 keys and values to pages of float32 or bfloat16. */
#include <stdint.h>
#include <string.h>

#include "vector.h"

/* Floats that take one thread as long as it takes to wake the others, some 20 us. */
enum { WORTH_THREADS = 1 << 17 };

/* The nearest bfloat16, an even one if two are as near; not a number stays so. */
static uint16_t narrow_one(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (x != x ? bits | 0x400000 : rounded) >> 16;
}

static void narrow(uint16_t *restrict out, const float *restrict x, int64_t size)
{
    for (int64_t i = 0; i < size; i++)
        out[i] = narrow_one(x[i]);
}

/* Keys and values: [tokens, size], their tokens the strides apart. Pages, of bfloat16 if is_half:
 * [page_tokens, size], page_stride numbers apart. */
void weft_kv_write(
    char *k_pages, char *v_pages, const int64_t *slots, int64_t tokens, const float *keys,
    const float *values, int64_t key_stride, int64_t value_stride, int64_t size,
    int64_t page_stride, int64_t page_tokens, int64_t is_half)
{
#pragma omp parallel for schedule(static) if (tokens * size > WORTH_THREADS)
    for (int64_t t = 0; t < tokens; t++) {
        const float *key = keys + t * key_stride, *value = values + t * value_stride;
        int64_t place = slots[t] / page_tokens * page_stride + slots[t] % page_tokens * size;
        if (is_half) {
            narrow((uint16_t *)k_pages + place, key, size);
            narrow((uint16_t *)v_pages + place, value, size);
        } else {
            memcpy((float *)k_pages + place, key, size * sizeof(float));
            memcpy((float *)v_pages + place, value, size * sizeof(float));
        }
    }
}
