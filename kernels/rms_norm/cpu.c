/* rms_norm in float32: out[t][h] = x[t][h] / sqrt(mean(x[t][h]^2) + epsilon) * weight.
 *
 * The order of a mean's sum depends on its length alone.
 */
#include <math.h>
#include <stdint.h>

#include "team.h"
#include "vector.h"

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

/* out: [rows, heads, size]; x: its rows and heads lie the strides apart. */
typedef struct {
    float *out, *x;
    const float *delta, *weight; /* delta: NULL, or added to x before, like which it lies */
    int64_t heads, size, row_stride, head_stride;
    float epsilon;
} norm;

static void norm_row(const norm *n, int64_t row, const float *weight)
{
    for (int64_t h = 0; h < n->heads; h++) {
        const int64_t place = row * n->row_stride + h * n->head_stride;
        float *x = n->x + place;
        float sum = n->delta ? squares(x, n->delta + place, n->size) : squares(x, NULL, n->size);
        scale(n->out + (row * n->heads + h) * n->size, x, weight,
              1 / sqrtf(sum / n->size + n->epsilon), n->size);
    }
}

void weft_rms_norm(team *t, const norm *n, int64_t rows)
{
    for (EACH_ROW(row, t, rows))
        norm_row(n, row, n->weight);
}

/* Some rows of a step, each with a weight of its own. */
typedef struct {
    const int64_t *rows;
    const float *const *weights;
    int64_t count;
} chosen;

typedef struct {
    norm norm; /* without a weight */
    const chosen *chosen;
} norm_chosen;

/* Whatever the rows of the batch are. */
void weft_rms_norm_chosen(team *t, const norm_chosen *n, int64_t rows)
{
    const chosen *c = n->chosen;
    for (EACH_ROW(i, t, c->count))
        norm_row(&n->norm, c->rows[i], c->weights[i]);
}
