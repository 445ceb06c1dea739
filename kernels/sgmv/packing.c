/* Cuts an adapter's matrices into granules, where they lie in pages: see packing.py.
 *
 * One thread, which Python does not wait for: it copies beside the steps.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vector.h"

enum { RANKS = 8, COLUMNS = 128 };

/* Types of numbers; others' sizes do not matter here. */
enum { FLOAT32, BFLOAT16, FLOAT16 };

/* A matrix [ranks, columns]: strides in numbers. */
typedef struct {
    const char *numbers;
    int64_t type, ranks, columns, rank_stride, column_stride;
    int64_t first, stride; /* granules: the first, and from a block of columns to the next */
} piece;

typedef struct {
    char *memory; /* of one layer */
    const int32_t *pages;
    int64_t page_count, page_granules, granules, type;
} place;

#define INLINE static inline __attribute__((always_inline))

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t size_of(const int type) { return type == FLOAT32 ? 4 : 2; }

static char *granule(const place *to, int64_t index)
{
    int64_t at = to->pages[index / to->page_granules] * to->page_granules
                 + index % to->page_granules;
    return to->memory + at * RANKS * COLUMNS * size_of(to->type);
}

INLINE float half_to_float(uint16_t bits)
{
#ifdef __F16C__
    return _cvtsh_ss(bits);
#else
    _Float16 value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

INLINE uint16_t float_to_half(float value)
{
#ifdef __F16C__
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
    _Float16 half = (_Float16)value;
    uint16_t bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
#endif
}

/* The nearest bfloat16, an even one if two are as near. */
INLINE uint16_t float_to_bfloat(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value)
        return (bits | 0x400000) >> 16;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

INLINE float read(const char *from, const int type)
{
    uint16_t bits;
    float value;
    if (type == FLOAT32) {
        memcpy(&value, from, sizeof value);
        return value;
    }
    memcpy(&bits, from, sizeof bits);
    return type == BFLOAT16 ? widen_one(bits) : half_to_float(bits);
}

INLINE void write(char *to, float value, const int type)
{
    uint16_t bits;
    if (type == FLOAT32) {
        memcpy(to, &value, sizeof value);
        return;
    }
    bits = type == BFLOAT16 ? float_to_bfloat(value) : float_to_half(value);
    memcpy(to, &bits, sizeof bits);
}

/* Numbers of one type are copied as they are, whatever they mean. */
INLINE void convert(char *to, const char *from, const int from_type, const int to_type)
{
    if (from_type == to_type)
        memcpy(to, from, size_of(to_type));
    else
        write(to, read(from, from_type), to_type);
}

/* One granule: so many ranks by so many columns, and zeros. */
INLINE void fill(
    char *to, const char *from, const piece *p, int64_t ranks, int64_t columns,
    const int from_type, const int to_type)
{
    const int64_t from_size = size_of(from_type), to_size = size_of(to_type);
    const int64_t rank_bytes = p->rank_stride * from_size;
    const int64_t column_bytes = p->column_stride * from_size;
    if (ranks < RANKS || columns < COLUMNS)
        memset(to, 0, RANKS * COLUMNS * to_size);
    if (p->column_stride == 1 && from_type == to_type) {
        for (int64_t r = 0; r < ranks; r++)
            memcpy(to + r * COLUMNS * to_size, from + r * rank_bytes, columns * to_size);
        return;
    }
    if (p->column_stride == 1 && from_type == BFLOAT16 && to_type == FLOAT32
        && columns % WIDTH == 0) {
        for (int64_t r = 0; r < ranks; r++)
            for (int64_t c = 0; c < columns; c += WIDTH)
                *(vec *)(to + (r * COLUMNS + c) * to_size) =
                    widen((const void *)(from + r * rank_bytes + c * from_size));
        return;
    }
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < ranks; r++)
            convert(to + (r * COLUMNS + c) * to_size, from + r * rank_bytes + c * column_bytes,
                    from_type, to_type);
}

#define FILL(from_type, to_type)                                                                   \
    case from_type * 4 + to_type:                                                                  \
        fill(to, from, p, ranks, columns, from_type, to_type);                                     \
        break

static void put(const piece *p, const place *where, int64_t block, int64_t group)
{
    char *to = granule(where, p->first + block * p->stride + group);
    const char *from = p->numbers
                       + (group * RANKS * p->rank_stride + block * COLUMNS * p->column_stride)
                             * size_of(p->type);
    const int64_t ranks = smaller(RANKS, p->ranks - group * RANKS);
    const int64_t columns = smaller(COLUMNS, p->columns - block * COLUMNS);
    switch (p->type * 4 + where->type) {
        FILL(FLOAT32, FLOAT32);
        FILL(FLOAT32, BFLOAT16);
        FILL(FLOAT32, FLOAT16);
        FILL(BFLOAT16, FLOAT32);
        FILL(BFLOAT16, BFLOAT16);
        FILL(BFLOAT16, FLOAT16);
        FILL(FLOAT16, FLOAT32);
        FILL(FLOAT16, BFLOAT16);
        FILL(FLOAT16, FLOAT16);
    }
}

/* Put pieces into their granules, and zeros into what is left of the last page. */
void weft_pack(const piece *pieces, int64_t count, const place *where)
{
    for (const piece *p = pieces; p < pieces + count; p++)
        for (int64_t block = 0; block * COLUMNS < p->columns; block++)
            for (int64_t group = 0; group * RANKS < p->ranks; group++)
                put(p, where, block, group);
    for (int64_t i = where->granules; i < where->page_count * where->page_granules; i++)
        memset(granule(where, i), 0, RANKS * COLUMNS * size_of(where->type));
}
