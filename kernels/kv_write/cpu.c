/* kv_write: float32 keys and values to pages of float32 or bfloat16. */
#include <stdint.h>
#include <string.h>

#include "team.h"
#include "vector.h"

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

/* Keys and values: [rows, size], their rows the strides apart; slots: [rows]. Pages, of bfloat16 if
 * is_half: [page_tokens, size], page_stride numbers apart. */
typedef struct {
    char *k_pages, *v_pages;
    const int64_t *slots;
    const float *keys, *values;
    int64_t key_stride, value_stride, size, page_stride, page_tokens, is_half;
} writing;

void weft_kv_write(team *t, const writing *w, int64_t rows)
{
    for (EACH_ROW(row, t, rows)) {
        const float *key = w->keys + row * w->key_stride, *value = w->values + row * w->value_stride;
        int64_t place = w->slots[row] / w->page_tokens * w->page_stride
                      + w->slots[row] % w->page_tokens * w->size;
        if (w->is_half) {
            narrow_all((uint16_t *)w->k_pages + place, key, w->size);
            narrow_all((uint16_t *)w->v_pages + place, value, w->size);
        } else {
            memcpy((float *)w->k_pages + place, key, w->size * sizeof(float));
            memcpy((float *)w->v_pages + place, value, w->size * sizeof(float));
        }
    }
}
