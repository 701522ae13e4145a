/* Gradients that must be made first, piece by piece on the stack: decoded, if they have 16 bits an element; of a row that
 * was given several times, the sum; with `before`, scaled, added to pending ones, clipped. And the sum of their squares. */
#include <string.h>
#include "fastadam.h"

enum { AHEAD = 4 }; /* gradients of rows that are fetched before they are needed */

fa_task fa_piece_of(const fa_task *t, int64_t at, int64_t n)
{
    fa_task piece = *t;
    for (int i = 0; i < FA_VALUES; i++) {
        const fa_codec *codec = fa_format_of(t, i);
        if (!t->array[i] || (i == FA_V && t->kernel->add_mean)) /* which is one number */
            continue;
        piece.array[i] = (char *)t->array[i] + at * fa_size_of(t, i);
        if (codec && codec->group)
            piece.array[fa_second(i)] = (char *)t->array[fa_second(i)] + at / codec->group * codec->second_size;
    }
    piece.origin = t->origin + at;
    piece.n = n;
    return piece;
}

void fa_run_before(const fa_task *t, void *made, int64_t n)
{
    fa_task before = *t;
    before.array[FA_PARAM] = made;
    before.coefficients = t->wrap;
    t->before->run(&before, 0, n);
}

/* What was given, where it is; or decoded in a block. */
static const void *decoded(const fa_task *t, const char *given, int64_t n, void *block)
{
    if (!t->decode)
        return given;
    t->decode->decode(block, given, NULL, n);
    return block;
}

/* Repeated rows: the first as it is, the others added in their order. */
static const void *sum_of(const fa_task *t, const fa_rows *r, int64_t j, const void *grads, int64_t at, int64_t n, void *block)
{
    static const fa_wrap once = {.s = 1.0, .mean = 1.0};
    _Alignas(64) char more[FA_PIECE];
    fa_task sum = {.array = {[FA_PARAM] = block}, .coefficients = &once};
    const int64_t given = r->start[r->count], size = fa_grad_size(t);
    const void *first = decoded(t, fa_given_gradient(r, r->start[j], grads, size, at), n, block);
    if (first != block)
        memcpy(block, first, (size_t)(n * size));
    for (int64_t i = r->start[j] + 1; i < r->start[j + 1]; i++) {
        if (i + AHEAD < given)
            fa_fetch(fa_given_gradient(r, i + AHEAD, grads, size, at), n * size);
        sum.array[FA_GRAD] = (void *)decoded(t, fa_given_gradient(r, i, grads, size, at), n, more);
        r->add->run(&sum, 0, n);
    }
    return block;
}

const void *fa_row_gradient(const fa_task *t, const fa_rows *r, int64_t j, const void *grads, int64_t at, int64_t n, void *block)
{
    const int64_t size = fa_grad_size(t);
    if (!r || !r->order)
        return decoded(t, (const char *)grads + ((r ? j * r->width : 0) + at) * size, n, block);
    if (r->start[j + 1] - r->start[j] == 1)
        return decoded(t, fa_given_gradient(r, r->start[j], grads, size, at), n, block);
    return sum_of(t, r, j, grads, at, n, block);
}

/* Elements [begin, end) of the gradient of a row, or of an array, whose task this is. Up to `last` they will be needed. */
double fa_block_squares(const fa_task *t, const fa_rows *r, int64_t j, const void *grads, int64_t begin, int64_t end,
                        int64_t last)
{
    _Alignas(64) char summed[FA_PIECE], made[FA_PIECE], param[FA_PIECE];
    const int64_t size = t->kernel->size, most = FA_PIECE / size;
    double sums[16] = {0};
    for (int64_t at = begin, n; at < end; at += n) {
        n = end - at < most ? end - at : most;
        int64_t left = last - at - n, next = left < most ? left : most;
        fa_task piece = fa_piece_of(t, at, n);
        if (!r) /* the next piece */
            fa_fetch((const char *)piece.array[FA_GRAD] + n * fa_grad_size(t), next * fa_grad_size(t));
        if (!r && piece.array[FA_SUM])
            fa_fetch((const char *)piece.array[FA_SUM] + n * size, next * size);
        piece.array[FA_GRAD] = (void *)fa_row_gradient(t, r, j, grads, at, n, summed);
        if (t->before) {
            fa_run_before(&piece, made, n);
            piece.array[FA_GRAD] = made;
        }
        if (fa_format_of(t, FA_PARAM)) { /* RowAdagrad's decay */
            fa_format_of(t, FA_PARAM)->decode((float *)param, piece.array[FA_PARAM], piece.array[FA_LOW], n);
            piece.array[FA_PARAM] = param;
        }
        t->kernel->add_squares(&piece, 0, n, sums);
    }
    return fa_in_pairs(sums);
}

void fa_wrapped_squares(const fa_task *t, int64_t begin, int64_t end)
{
    double *sum = (double *)t->coefficients + begin / FA_SQUARES;
    for (; begin < end; begin += FA_SQUARES)
        *sum++ = fa_block_squares(t, NULL, 0, t->array[FA_GRAD], begin, end - begin < FA_SQUARES ? end : begin + FA_SQUARES, end);
}
