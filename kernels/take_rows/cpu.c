/* take_rows: out[i] = x[indices[i]]. */
#include <stdint.h>
#include <string.h>

#include "team.h"

/* x: its rows the stride apart; out: [rows, columns]; indices: [rows]. */
typedef struct {
    float *out;
    const float *x;
    const int64_t *indices;
    int64_t columns, stride;
} taking;

void weft_take_rows(team *t, const taking *k, int64_t rows)
{
    for (EACH_ROW(row, t, rows))
        memcpy(k->out + row * k->columns, k->x + k->indices[row] * k->stride,
               k->columns * sizeof(float));
}
