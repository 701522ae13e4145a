/* Tasks that are run block by block, with copies on the stack.
 *
 * What stands before a rule writes the gradient that the rule takes into such a block; what stands after it reads the
 * parameters again, while they are in the first-level cache. Both read little else, so the memory would rest meanwhile:
 * what they will read for the next block is fetched ahead, just before each of them runs.
 *
 * And arrays that lie nearly a multiple of 1 MiB apart: where an array that is read lies a few bytes behind one that is
 * written, modulo 1 MiB, and both in huge pages (whose addresses are the hardware's own up to that size), Intel's
 * processors take loads from the one for loads of what was just stored in the other: steps take up to three times as
 * long. malloc makes such pairs: arrays of 4 MiB, one after the other, are 4 MiB + 16 apart. So the one that trails is
 * first copied to the stack: its loads and those stores are then apart in time. */
#include <string.h>
#include "fastadam.h"

enum { ALIAS = 1 << 20, REACH = 192, BLOCK = 2048 }; /* bytes */

static int trails(const fa_task *t, int read, int written)
{
    /* Loops store each state array before they load the next one: in one and the same turn, too, it must be apart. */
    uintptr_t turn = written >= FA_STATE && read > written ? 64 : 0;
    uintptr_t behind = ((uintptr_t)t->array[written] - (uintptr_t)t->array[read] + turn) % ALIAS;
    return behind > 0 && behind < REACH + turn;
}

static int is_used(const fa_task *t, int array)
{
    int own = array == FA_M || array == FA_V || array == FA_W;
    return t->array[array] && (own ? t->kernel->states >> (array - FA_STATE) & 1 : array != FA_EMA || t->after);
}

/* Fills `which` with the arrays that trail another, and returns how many these are. */
static int trailing(const fa_task *t, int *which)
{
    int count = 0;
    if (t->n * t->kernel->size < ALIAS)
        return 0; /* too small for huge pages */
    for (int read = 0; read < FA_ARRAYS; read++)
        for (int written = 0; written < FA_ARRAYS; written++)
            if (written != FA_GRAD && written != FA_SUM && is_used(t, read) && is_used(t, written)
                && trails(t, read, written)) {
                which[count++] = read;
                break;
            }
    return count;
}

static void run_loop(const fa_kernel *kernel, const fa_task *staged, void *written, int64_t n)
{
    fa_task loop = *staged;
    loop.array[FA_PARAM] = written;
    loop.coefficients = staged->wrap;
    kernel->run(&loop, 0, n);
}

static void fetch(const void *array, int64_t begin, int64_t end)
{
    for (int64_t at = begin; array && at < end; at += 64)
        fa_prefetch((const char *)array + at);
}

/* Of a small stack: blocks are half as long if there are more than four. */
static FA_NOINLINE void run_blocks(const fa_task *t, int64_t begin, int64_t end, const int *which, int count)
{
    _Alignas(64) char blocks[4 * BLOCK];
    int64_t size = t->kernel->size, bytes = count + (t->before != NULL) <= 4 ? BLOCK : BLOCK / 2, block = bytes / size;
    char *gradient = blocks + count * bytes;
    for (; begin < end; begin += block) {
        int64_t n = end - begin < block ? end - begin : block;
        int64_t next = (begin + n) * size, after_next = (end - begin < 2 * block ? end : begin + 2 * block) * size;
        fa_task staged = *t;
        for (int i = 0; i < FA_ARRAYS; i++)
            if (t->array[i])
                staged.array[i] = (char *)t->array[i] + begin * size;
        for (int i = 0; i < count; i++) {
            memcpy(blocks + i * bytes, staged.array[which[i]], (size_t)(n * size));
            staged.array[which[i]] = blocks + i * bytes;
        }
        if (t->before) {
            fetch(t->array[FA_GRAD], next, after_next);
            fetch(t->array[FA_SUM], next, after_next);
            run_loop(t->before, &staged, gradient, n);
            staged.array[FA_GRAD] = gradient;
        }
        t->kernel->run(&staged, 0, n);
        if (t->after) {
            fetch(t->array[FA_EMA], next, after_next);
            run_loop(t->after, &staged, staged.array[FA_PARAM], n);
        }
        for (int i = 0; i < count; i++)
            if (which[i] != FA_GRAD && which[i] != FA_SUM)
                memcpy((char *)t->array[which[i]] + begin * size, blocks + i * bytes, (size_t)(n * size));
    }
}

void fa_run_range(const fa_task *t, int64_t begin, int64_t end)
{
    int which[FA_ARRAYS], count = trailing(t, which);
    if (t->before && t->kernel->run_made)
        t->kernel->run_made(t, begin, end);
    else if (count == 0 && !t->before && !t->after)
        t->kernel->run(t, begin, end);
    else
        run_blocks(t, begin, end, which, count);
}
