/* kv_write: float32 keys and values to pages of float32 or bfloat16. */
#include <stdint.h>
#include <string.h>

#include "vector.h"

/* Floats of work that are worth waking the other threads for. */
enum { WORTH_THREADS = 1 << 16 };

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

/* x: [tokens, size], token_stride apart; pages: page_bytes apart, [page_tokens, size] each, of
 * bfloat16 if is_half and of float32 otherwise. */
static void store(
    char *pages, int64_t page_bytes, int64_t page_tokens, int is_half, const float *x,
    int64_t token_stride, int64_t size, const int64_t *slots, int64_t tokens)
{
#pragma omp parallel for schedule(static) if (tokens * size > WORTH_THREADS)
    for (int64_t t = 0; t < tokens; t++) {
        char *page = pages + slots[t] / page_tokens * page_bytes;
        int64_t first = slots[t] % page_tokens * size;
        if (is_half)
            narrow((uint16_t *)page + first, x + t * token_stride, size);
        else
            memcpy((float *)page + first, x + t * token_stride, size * sizeof(float));
    }
}

/* Where the tokens of both go, and how many floats each has; see above. */
typedef struct {
    const int64_t *slots;
    int64_t tokens, size, page_bytes, page_tokens, is_half;
} places;

void weft_kv_write(
    const places *p, char *k_pages, const float *key, int64_t key_stride, char *v_pages,
    const float *value, int64_t value_stride)
{
    store(k_pages, p->page_bytes, p->page_tokens, p->is_half, key, key_stride, p->size, p->slots,
          p->tokens);
    store(v_pages, p->page_bytes, p->page_tokens, p->is_half, value, value_stride, p->size,
          p->slots, p->tokens);
}
