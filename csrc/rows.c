/* Rows of tables: their order, and steps on them. Every row is one run of the rule's ordinary loop. */
#include <string.h>
#include "fastadam.h"

/* ---- the order: a stable radix sort, of numbers that hold a row and its place among those given */

enum { DIGIT = 11, DIGITS = 1 << DIGIT };

static int bits_of(int64_t most)
{
    int bits = 0;
    for (; most > 0; most >>= 1)
        bits++;
    return bits;
}

int fa_rows_bits(int64_t given, int64_t height)
{
    return bits_of(given - 1) + bits_of(height - 1);
}

int64_t fa_rows_room(int64_t given)
{
    return 2 * (given + 1) + DIGITS;
}

/* Sorts by the bits above `shift`, through `other`. Returns the one of both that has the result. */
static uint64_t *sort(uint64_t *keys, uint64_t *other, int64_t count, int shift, int bits, uint64_t *begins)
{
    int passes = (bits + DIGIT - 1) / DIGIT, width = passes ? (bits + passes - 1) / passes : 0;
    const uint64_t mask = ((uint64_t)1 << width) - 1;
    for (int pass = 0; pass < passes; pass++, shift += width) {
        memset(begins, 0, (mask + 1) * sizeof *begins);
        for (int64_t i = 0; i < count; i++)
            begins[keys[i] >> shift & mask]++;
        for (uint64_t digit = 0, sum = 0; digit <= mask; digit++) {
            uint64_t there = begins[digit];
            begins[digit] = sum;
            sum += there;
        }
        for (int64_t i = 0; i < count; i++)
            other[begins[keys[i] >> shift & mask]++] = keys[i];
        uint64_t *sorted = other;
        other = keys;
        keys = sorted;
    }
    return keys;
}

int64_t fa_rows_sort(fa_rows *r, const void *list, int is_int64, int64_t given, int64_t height, uint64_t *work, int64_t *bad)
{
    uint64_t *keys = work, *other = work + given + 1;
    int64_t before = 0;
    int ascending = 1;
    r->shift = bits_of(given - 1);
    r->count = 0;
    r->order = keys;
    r->start = (int64_t *)other;
    for (int64_t i = 0; i < given; i++) {
        /* Once: another thread may be writing there, and what was checked is what is used. */
        int64_t row = is_int64 ? ((const volatile int64_t *)list)[i] : ((const volatile int32_t *)list)[i];
        if (row < 0 || row >= height) {
            *bad = row;
            return i;
        }
        ascending &= before <= row;
        before = row;
        if (r->width > 0)
            keys[i] = (uint64_t)row << r->shift | (uint64_t)i;
    }
    if (r->width == 0) /* nothing to do, and heights may be of any size */
        return -1;
    uint64_t *sorted = ascending ? keys : sort(keys, other, given, r->shift, bits_of(height - 1), work + 2 * (given + 1));
    int64_t *start = (int64_t *)(sorted == keys ? other : keys);
    for (int64_t i = 0; i < given; i++)
        if (i == 0 || sorted[i] >> r->shift != sorted[i - 1] >> r->shift)
            start[r->count++] = i;
    start[r->count] = given;
    r->order = sorted;
    r->start = start;
    return -1;
}

/* ---- steps */

enum {
    AHEAD = 4,     /* rows that are fetched before they are needed */
    MOST = 1024,   /* bytes of each that are; the processor then goes on by itself */
    NARROW = 8     /* bytes of rows that are gathered, to be updated side by side */
};

static int64_t row_at(const fa_rows *r, int64_t j)
{
    return r->order ? (int64_t)(r->order[r->start[j]] >> r->shift) : j;
}

/* The arrays that a step needs, but for the gradient, and bytes from one row to the next. */
typedef struct {
    int count, array[FA_ARRAYS];
    char *base[FA_ARRAYS];
    int64_t stride[FA_ARRAYS];
} columns;

static void add_column(columns *c, const fa_task *t, int array, int64_t stride)
{
    c->array[c->count] = array;
    c->base[c->count] = t->array[array];
    c->stride[c->count++] = stride;
}

static columns columns_of(const fa_task *t)
{
    const int64_t width = t->rows->width;
    columns c = {0};
    for (int a = 0; a < FA_VALUES; a++)
        if (a != FA_GRAD && t->array[a] && !(t->rows->order && (a == FA_EMA || a == FA_SUM))) { /* those are of whole arrays */
            const fa_codec *codec = fa_format_of(t, a);
            int is_number = a == FA_V && t->kernel->add_mean;
            add_column(&c, t, a, is_number ? t->kernel->size : width * fa_size_of(t, a));
            if (codec && codec->group)
                add_column(&c, t, fa_second(a), width / codec->group * codec->second_size);
        }
    return c;
}

/* The gradient of the j-th row, the first one if there are several. */
static const char *first_gradient(const fa_task *t, int64_t j)
{
    const fa_rows *r = t->rows;
    if (!r->order)
        return (const char *)t->array[FA_GRAD] + j * r->width * fa_grad_size(t);
    return fa_given_gradient(r, r->start[j], t->array[FA_GRAD], fa_grad_size(t), 0);
}

static inline __attribute__((always_inline)) void fetch(const fa_task *t, const columns *c, int64_t j)
{
    const int64_t width = t->rows->width * t->kernel->size, bytes = width < MOST ? width : MOST, row = row_at(t->rows, j);
    fa_fetch(first_gradient(t, j), bytes);
    for (int i = 0; i < c->count; i++)
        fa_fetch(c->base[i] + row * c->stride[i], bytes < c->stride[i] ? bytes : c->stride[i]);
}

static int is_single(const fa_rows *r, int64_t j)
{
    return !r->order || r->start[j + 1] - r->start[j] == 1;
}

/* Sums of squares: of each block, for the norm; or the mean of a row's, for its state. */
static void take_squares(const fa_task *t, fa_task *row, int64_t j)
{
    const fa_rows *r = t->rows;
    const int64_t blocks = fa_blocks_in(r->width);
    double total = 0.0;
    for (int64_t block = 0; block < blocks; block++) {
        int64_t begin = block * FA_SQUARES, end = block + 1 < blocks ? begin + FA_SQUARES : r->width;
        double squares, sums[16] = {0};
        if (is_single(r, j) && !t->before && !t->decode && !t->formats) { /* the same without a copy */
            row->array[FA_GRAD] = (void *)first_gradient(t, j);
            t->kernel->add_squares(row, begin, end, sums);
            squares = fa_in_pairs(sums);
        } else {
            squares = fa_block_squares(row, r, j, t->array[FA_GRAD], begin, end, end);
        }
        total += squares;
        if (!t->kernel->add_mean)
            ((double *)t->coefficients)[j * blocks + block] = squares;
    }
    if (t->kernel->add_mean)
        t->kernel->add_mean(row, total / (double)r->width);
}

static FA_NOINLINE void update_repeated(const fa_rows *r, const fa_task *row, int64_t j, const void *grads)
{
    _Alignas(64) char block[FA_PIECE];
    const int64_t size = row->kernel->size;
    for (int64_t at = 0, n; at < r->width; at += n) {
        n = r->width - at < FA_PIECE / size ? r->width - at : FA_PIECE / size;
        fa_task piece = fa_piece_of(row, at, n);
        piece.array[FA_GRAD] = (void *)fa_row_gradient(row, r, j, grads, at, n, block);
        piece.decode = NULL; /* it was */
        fa_run_range(&piece, 0, n);
    }
}

static void copy(char *to, const char *from, int64_t bytes) /* of constant sizes: calls would take most of the time */
{
    if (bytes == 4)
        memcpy(to, from, 4);
    else
        memcpy(to, from, 8);
}

/* Rows of 4 or 8 bytes. Nothing is fetched: their copies do not wait for each other. */
static FA_NOINLINE void run_gathered(const fa_task *t, int64_t begin, int64_t end)
{
    enum { BYTES = 512 };
    _Alignas(64) char grads[BYTES], blocks[FA_ARRAYS][BYTES];
    const fa_rows *r = t->rows;
    const int64_t size = t->kernel->size, bytes = r->width * size, most = BYTES / bytes;
    const columns c = columns_of(t);
    fa_task piece = *t;
    piece.rows = NULL;
    piece.array[FA_GRAD] = grads;
    piece.decode = NULL;
    for (int i = 0; i < c.count; i++)
        piece.array[c.array[i]] = blocks[i];
    for (int64_t n; begin < end; begin += n) {
        n = end - begin < most ? end - begin : most;
        for (int64_t k = 0; k < n; k++) {
            const int64_t j = begin + k, row = row_at(r, j);
            if (is_single(r, j) && !t->decode)
                copy(grads + k * bytes, first_gradient(t, j), bytes);
            else
                fa_row_gradient(t, r, j, t->array[FA_GRAD], 0, r->width, grads + k * bytes);
            for (int i = 0; i < c.count; i++)
                copy(blocks[i] + k * bytes, c.base[i] + row * bytes, bytes);
        }
        piece.n = n * r->width;
        fa_run_range(&piece, 0, piece.n);
        for (int64_t k = 0; k < n; k++)
            for (int i = 0; i < c.count; i++)
                copy(c.base[i] + row_at(r, begin + k) * bytes, blocks[i] + k * bytes, bytes);
    }
}

void fa_run_rows(const fa_task *t, int64_t begin, int64_t end)
{
    const fa_rows *r = t->rows;
    const int64_t width = r->width;
    begin = (begin + width - 1) / width;
    end = (end + width - 1) / width;
    if (width * t->kernel->size <= NARROW && r->order && !t->kernel->add_squares && !t->formats) {
        run_gathered(t, begin, end);
        return;
    }
    const int is_norm = t->kernel->add_squares && !t->kernel->add_mean;
    const columns c = columns_of(t);
    fa_task row = *t;
    row.n = width;
    row.rows = NULL;
    for (int64_t j = begin; j < end; j++) {
        if (j + AHEAD < r->count)
            fetch(t, &c, j + AHEAD);
        for (int i = 0; i < c.count; i++)
            row.array[c.array[i]] = c.base[i] + row_at(r, j) * c.stride[i];
        row.origin = row_at(r, j) * width;
        if (t->kernel->add_squares)
            take_squares(t, &row, j);
        if (is_norm)
            continue;
        if (is_single(r, j)) {
            row.array[FA_GRAD] = (void *)first_gradient(t, j);
            fa_run_range(&row, 0, width);
        } else {
            update_repeated(r, &row, j, t->array[FA_GRAD]);
        }
    }
}
