/* Tasks that run block by block, with blocks of arrays on the stack. There are three reasons for it.
 *
 * Loops before and after a rule: `before` writes the gradient that the rule takes into a block on the stack; `after`
 * reads the parameters again, while they are in the first-level cache. Both read little else, so memory would be idle
 * meanwhile. So what they read in the next block is fetched just before each of them runs.
 *
 * Arrays nearly a multiple of 1 MiB apart: an array that is read lies a few bytes behind one that is written, modulo 1
 * MiB, and both in huge pages, where addresses modulo 1 MiB are physical ones. Intel's processors then make loads from
 * the one wait for stores to the other, and a step takes up to three times as long. malloc makes such pairs:
 * consecutive arrays of 4 MiB are 4 MiB + 16 apart. So the array that trails is first copied to the stack.
 *
 * Formats: what is stored in fewer bits is decoded into a block, and encoded again (formats.inc). The rule in between
 * is the one for float32. The codes of the next block are fetched meanwhile: 8 to 15 % for bfloat16 parameters. Fetching
 * plain arrays, too, which the rule reads where they are, takes a fifth longer. */
#include <string.h>
#include "fastadam.h"

enum { ALIAS = 1 << 20, REACH = 192, BLOCK = 2048 }; /* bytes */
_Static_assert(BLOCK == FA_CODED * sizeof(float), "random bits are of whole blocks");

static int trails(const fa_task *t, int read, int written)
{
    /* Loops store a state array before they load the next one, so these must not even be in the same place. */
    uintptr_t same = written >= FA_STATE && read > written ? 64 : 0;
    uintptr_t behind = ((uintptr_t)t->array[written] - (uintptr_t)t->array[read] + same) % ALIAS;
    return behind > 0 && behind < REACH + same;
}

static int is_used(const fa_task *t, int array)
{
    int is_state = array == FA_M || array == FA_V || array == FA_W;
    if ((array == FA_V && t->kernel->add_mean) || (array == FA_GRAD && t->decode)) /* one number; has a block anyway */
        return 0;
    return t->array[array] && (is_state ? t->kernel->states >> (array - FA_STATE) & 1 : array != FA_EMA || t->after);
}

static int is_trailing(const fa_task *t, int read)
{
    for (int written = 0; written < FA_VALUES; written++)
        if (written != FA_GRAD && written != FA_SUM && is_used(t, written) && !fa_format_of(t, written)
            && trails(t, read, written))
            return 1;
    return 0;
}

/* Finds the arrays that are not used where they are; returns their number. */
static int find_staged(const fa_task *t, int *found, int is_small)
{
    int count = 0;
    for (int a = 0; a < FA_VALUES; a++)
        if (is_used(t, a) && (fa_format_of(t, a) || (!is_small && is_trailing(t, a))))
            found[count++] = a;
    return count;
}

static void load(const fa_task *t, const fa_task *piece, int a, void *block)
{
    const fa_codec *codec = fa_format_of(t, a);
    if (codec)
        codec->decode(block, piece->array[a], piece->array[fa_second(a)], piece->n);
    else
        memcpy(block, piece->array[a], (size_t)(piece->n * fa_size_of(t, a)));
}

static void store(const fa_task *t, const fa_task *piece, int a, const void *block, const uint16_t *random)
{
    const fa_codec *codec = fa_format_of(t, a);
    if (codec)
        codec->encode(block, piece->array[a], piece->array[fa_second(a)], piece->n, random);
    else if (a != FA_GRAD && a != FA_SUM)
        memcpy(piece->array[a], block, (size_t)(piece->n * fa_size_of(t, a)));
}

/* Stacks may be small: blocks are half as long if there are more than four. */
static FA_NOINLINE void run_blocks(const fa_task *t, int64_t begin, int64_t end, const int *staged, int count)
{
    _Alignas(64) char blocks[4 * BLOCK];
    uint16_t random[FA_CODED];
    const int64_t size = t->kernel->size, bytes = count + (t->before != NULL) + (t->decode != NULL) <= 4 ? BLOCK : BLOCK / 2;
    const int64_t block = bytes / size;
    char *gradient = blocks + count * bytes, *decoded = gradient + (t->before ? bytes : 0);
    for (int64_t n; begin < end; begin += n) {
        n = block - (t->origin + begin) % block; /* random bits are of blocks of the whole array */
        n = end - begin < n ? end - begin : n;
        const int64_t next = end - begin - n < block ? end - begin - n : block;
        const fa_task where = fa_piece_of(t, begin, n);
        fa_task piece = where;
        for (int i = 0; i < count; i++) {
            load(t, &where, staged[i], blocks + i * bytes);
            piece.array[staged[i]] = blocks + i * bytes;
        }
        if (t->decode)
            piece.array[FA_GRAD] = (void *)fa_row_gradient(t, NULL, 0, t->array[FA_GRAD], begin, n, decoded);
        for (int i = 0; t->formats && i < count; i++)
            fa_fetch((char *)where.array[staged[i]] + n * fa_size_of(t, staged[i]), next * fa_size_of(t, staged[i]));
        if (t->before || (t->formats && t->decode))
            fa_fetch((char *)where.array[FA_GRAD] + n * fa_grad_size(t), next * fa_grad_size(t));
        if (t->before) {
            if (t->array[FA_SUM])
                fa_fetch((char *)where.array[FA_SUM] + n * size, next * size);
            fa_run_before(&piece, gradient, n);
            piece.array[FA_GRAD] = gradient;
        }
        t->kernel->run(&piece, 0, n);
        if (t->after) {
            const fa_codec *codec = fa_format_of(t, FA_PARAM);
            if (codec && codec->second_size == 1) { /* 24 bits: the average is of what is stored, which is rounded */
                store(t, &where, FA_PARAM, piece.array[FA_PARAM], NULL);
                load(t, &where, FA_PARAM, piece.array[FA_PARAM]);
            }
            fa_fetch((char *)where.array[FA_EMA] + n * size, next * size);
            fa_task average = piece;
            average.coefficients = t->wrap;
            t->after->run(&average, 0, n);
        }
        if (t->formats && t->formats->random)
            fa_random_bits(t->formats->random, t->seed, t->origin + begin, n, random);
        for (int i = 0; i < count; i++)
            store(t, &where, staged[i], blocks + i * bytes, random);
    }
}

static FA_NOINLINE void run_carefully(const fa_task *t, int64_t begin, int64_t end, int is_small)
{
    int staged[FA_VALUES], count = find_staged(t, staged, is_small);
    if ((t->before || t->decode) && t->kernel->add_squares && !t->kernel->add_mean)
        fa_wrapped_squares(t, begin, end);
    else if (count == 0 && !t->before && !t->after && !t->decode)
        t->kernel->run(t, begin, end);
    else
        run_blocks(t, begin, end, staged, count);
}

void fa_run_range(const fa_task *t, int64_t begin, int64_t end)
{
    int is_small = t->n * t->kernel->size < ALIAS; /* for huge pages */
    if (is_small && !t->before && !t->after && !t->decode && !t->formats)
        t->kernel->run(t, begin, end);
    else
        run_carefully(t, begin, end, is_small);
}
