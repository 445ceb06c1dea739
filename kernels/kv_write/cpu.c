/* kv_write: float32 keys and values to pages of float32 or bfloat16. */
#include <stdint.h>
#include <string.h>

#include "vector.h"

/* Floats that take one thread as long as it takes to wake the others, some 20 us. */
enum { WORTH_THREADS = 1 << 17 };

static void narrow_all(uint16_t *out, const float *x, int64_t size)
{
    int64_t i = 0;
    for (; i + WIDTH <= size; i += WIDTH)
        *(short_vec *)(out + i) = narrow(load(x + i));
    if (i < size) {
        vec rest = {0};
        memcpy(&rest, x + i, (size - i) * sizeof *x);
        short_vec narrowed = narrow(rest);
        memcpy(out + i, &narrowed, (size - i) * sizeof *out);
    }
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
            narrow_all((uint16_t *)k_pages + place, key, size);
            narrow_all((uint16_t *)v_pages + place, value, size);
        } else {
            memcpy((float *)k_pages + place, key, size * sizeof(float));
            memcpy((float *)v_pages + place, value, size * sizeof(float));
        }
    }
}
