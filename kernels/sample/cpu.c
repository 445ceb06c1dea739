/* highest: of each row of logits the greatest, and the first token that has it. */
#include <math.h>
#include <stdint.h>

#include "team.h"
#include "vector.h"

/* logits: [rows, tokens], rows the stride apart; values, tokens: [rows]. */
typedef struct {
    float *values;
    int64_t *found;
    const float *logits;
    int64_t tokens, stride;
} search;

/* Which comes first of two that are equal is decided last: each lane remembers its own first. A sum
 * shows whether there is a NaN, to which no comparison is true. */
static void search_row(const float *logits, int64_t tokens, float *value, int64_t *found)
{
    vec most = (vec){0} - INFINITY, zeros = {0};
    ivec where = {0}, at, step = (ivec){0} + WIDTH;
    for (int lane = 0; lane < WIDTH; lane++)
        at[lane] = lane;
    int64_t i = 0;
    for (; i + WIDTH <= tokens; i += WIDTH, at += step) {
        vec some = load(logits + i);
        ivec is_more = some > most;
        most = (vec)(((ivec)some & is_more) | ((ivec)most & ~is_more));
        where = (at & is_more) | (where & ~is_more);
        zeros += some * 0; /* NaN of NaN, and of infinities */
    }
    float best = -INFINITY, nothing = 0;
    int64_t first = 0;
    for (int lane = 0; lane < WIDTH; lane++) {
        nothing += zeros[lane];
        if (most[lane] > best || (most[lane] == best && where[lane] < first)) {
            best = most[lane];
            first = where[lane];
        }
    }
    for (; i < tokens; i++) {
        nothing += logits[i] * 0;
        if (logits[i] > best) {
            best = logits[i];
            first = i;
        }
    }
    if (nothing != nothing) /* rarely: an infinity below the greatest does no harm */
        for (i = 0; i < tokens; i++)
            if (logits[i] != logits[i])
                best = NAN;
    *value = best;
    *found = first;
}

void weft_highest(team *t, const search *s, int64_t rows)
{
    for (EACH_ROW(row, t, rows))
        search_row(s->logits + row * s->stride, s->tokens, s->values + row, s->found + row);
}
