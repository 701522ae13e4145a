/* Tasks that run block by block, with blocks of arrays on the stack. There are two reasons for it.
 *
 * Loops before and after a rule: `before` writes the gradient that the rule takes into a block on the stack; `after`
 * reads the parameters again, while they are in the first-level cache. Both read little else, so memory would be idle
 * meanwhile. So what they read in the next block is fetched just before each of them runs.
 *
 * Arrays nearly a multiple of 1 MiB apart: an array that is read lies a few bytes behind one that is written, modulo 1
 * MiB, and both in huge pages, where addresses modulo 1 MiB are physical ones. Intel's processors then make loads from
 * the one wait for stores to the other, and a step takes up to three times as long. malloc makes such pairs:
 * consecutive arrays of 4 MiB are 4 MiB + 16 apart. So the array that trails is first copied to the stack. */
#include <string.h>
#include "fastadam.h"

enum { ALIAS = 1 << 20, REACH = 192, BLOCK = 2048 }; /* bytes */

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
    if ((array == FA_V && t->kernel->add_mean) || (array == FA_GRAD && t->decode)) /* one number; decoded first anyway */
        return 0;
    return t->array[array] && (is_state ? t->kernel->states >> (array - FA_STATE) & 1 : array != FA_EMA || t->after);
}

/* Finds the arrays that trail another; returns their number. */
static int trailing(const fa_task *t, int *found)
{
    int count = 0;
    for (int read = 0; read < FA_ARRAYS; read++)
        for (int written = 0; written < FA_ARRAYS; written++)
            if (written != FA_GRAD && written != FA_SUM && is_used(t, read) && is_used(t, written)
                && trails(t, read, written)) {
                found[count++] = read;
                break;
            }
    return count;
}

/* Stacks may be small: blocks are half as long if there are more than four. */
static FA_NOINLINE void run_blocks(const fa_task *t, int64_t begin, int64_t end, const int *copied, int count)
{
    _Alignas(64) char blocks[4 * BLOCK];
    int64_t size = t->kernel->size, grad_size = fa_grad_size(t);
    int64_t bytes = count + (t->before != NULL) + (t->decode != NULL) <= 4 ? BLOCK : BLOCK / 2, block = bytes / size;
    char *gradient = blocks + count * bytes, *decoded = gradient + (t->before ? bytes : 0);
    for (; begin < end; begin += block) {
        int64_t n = end - begin < block ? end - begin : block;
        int64_t next = (begin + n) * size, after_next = (end - begin < 2 * block ? end : begin + 2 * block) * size;
        fa_task piece = fa_piece_of(t, begin, n);
        for (int i = 0; i < count; i++) {
            memcpy(blocks + i * bytes, piece.array[copied[i]], (size_t)(n * size));
            piece.array[copied[i]] = blocks + i * bytes;
        }
        if (t->decode)
            piece.array[FA_GRAD] = (void *)fa_row_gradient(t, NULL, 0, t->array[FA_GRAD], begin, n, decoded);
        if (t->before) {
            fa_fetch((char *)t->array[FA_GRAD] + next / size * grad_size, (after_next - next) / size * grad_size);
            if (t->array[FA_SUM])
                fa_fetch((char *)t->array[FA_SUM] + next, after_next - next);
            fa_run_before(&piece, gradient, n);
            piece.array[FA_GRAD] = gradient;
        }
        t->kernel->run(&piece, 0, n);
        if (t->after) {
            fa_fetch((char *)t->array[FA_EMA] + next, after_next - next);
            fa_task average = piece;
            average.coefficients = t->wrap;
            t->after->run(&average, 0, n);
        }
        for (int i = 0; i < count; i++)
            if (copied[i] != FA_GRAD && copied[i] != FA_SUM)
                memcpy((char *)t->array[copied[i]] + begin * size, blocks + i * bytes, (size_t)(n * size));
    }
}

static FA_NOINLINE void run_carefully(const fa_task *t, int64_t begin, int64_t end, int is_small)
{
    int copied[FA_ARRAYS], count = is_small ? 0 : trailing(t, copied);
    if ((t->before || t->decode) && t->kernel->add_squares && !t->kernel->add_mean)
        fa_wrapped_squares(t, begin, end);
    else if (count == 0 && !t->before && !t->after && !t->decode)
        t->kernel->run(t, begin, end);
    else
        run_blocks(t, begin, end, copied, count);
}

void fa_run_range(const fa_task *t, int64_t begin, int64_t end)
{
    int is_small = t->n * t->kernel->size < ALIAS; /* for huge pages */
    if (is_small && !t->before && !t->after && !t->decode)
        t->kernel->run(t, begin, end);
    else
        run_carefully(t, begin, end, is_small);
}
