/* The norm of the gradients of a call, before anything changes; and the search for NaN and infinity in them. */
#include <float.h>
#include <math.h>
#include <string.h>
#include "fastadam.h"

/* Each row is as an array of its own. */
static int64_t blocks_of(const fa_slot *slot, int64_t n)
{
    return slot->rows ? slot->rows->count * fa_blocks_in(slot->width) : fa_blocks_in(n);
}

int64_t fa_blocks_of_call(const fa_call *c)
{
    int64_t blocks = 0;
    for (int64_t i = 0; i < c->count; i++)
        blocks += blocks_of(&c->slots[i], c->slots[i].n);
    return blocks;
}

/* Pending gradients, too, so that NaN and infinity in them are found. */
void fa_sum_squares(fa_call *c, int threads)
{
    int64_t blocks = 0;
    for (int64_t i = 0; i < c->count; i++) {
        const fa_task *own = &c->tasks[i];
        const fa_slot *slot = &c->slots[i];
        fa_task *task = &c->squares[i];
        memset(task, 0, sizeof *task);
        task->kernel = fa_kernel_of(c->isa, FA_SUM_SQUARES, slot->real);
        task->array[FA_GRAD] = own->array[FA_GRAD];
        task->array[FA_SUM] = own->array[FA_SUM];
        task->n = own->n;
        task->rows = slot->rows;
        task->decode = own->decode;
        task->coefficients = &c->sums[blocks];
        task->wrap = own->wrap;
        if (own->before || !slot->steps) /* of the mean, not clipped; or of the sum */
            task->before = fa_kernel_of(c->isa, FA_GRADIENT + (slot->record->pending ? FA_SUMMED : 0), slot->real);
        blocks += blocks_of(slot, task->n);
    }
    if (blocks < threads) /* a smaller team than the step's would end some of its threads (libgomp) */
        threads = 1;
    fa_gate_enter(); /* only so that a fork waits */
    fa_run(c->squares, c->count, threads, threads, NULL);
    fa_gate_leave();
}

/* Of a gradient that takes a step, block by block to the total. */
static double add_squares(const fa_call *c, int64_t i, double total)
{
    for (int64_t block = 0; c->slots[i].steps && block < blocks_of(&c->slots[i], c->squares[i].n); block++)
        total += ((const double *)c->squares[i].coefficients)[block];
    return total;
}

double fa_add_squares(const fa_call *c)
{
    double total = 0.0;
    for (int64_t i = 0; i < c->count; i++)
        total = add_squares(c, i, total);
    return total;
}

double fa_clipped(double scale, double max_norm, double norm)
{
    double factor = max_norm / (norm + 1e-6);
    return factor >= 1.0 ? scale : scale * factor; /* NaN goes on */
}

static double norm_of(const fa_call *c, int64_t i)
{
    return sqrt(add_squares(c, i, 0.0)) * (c->blockwise ? 1.0 : fabs(c->scale));
}

void fa_clip_each(const fa_call *c, double scale)
{
    for (int64_t i = 0; i < c->count; i++)
        c->scales[i] = c->slots[i].steps ? fa_clipped(scale, c->settings.max_norm_each, norm_of(c, i)) : scale;
}

static double element(const void *array, int is32, int64_t i)
{
    return is32 ? (double)((const float *)array)[i] : ((const double *)array)[i];
}

/* A float32 product or sum is the same if it is made in float64 and then rounded. */
static double rounded(double x, int is32)
{
    return is32 ? (double)(float)x : x;
}

/* Of the gradient; `at` counts through the row that `row` says, or through the array. */
static double gradient(const fa_task *t, int is32, int64_t row, int64_t at)
{
    double block;
    return element(fa_row_gradient(t, t->rows, row, t->array[FA_GRAD], at, 1, &block), is32, 0);
}

/* One element of a gradient; and, scaled, what the rule would take, or the sum that it joins. */
static fa_anomaly classify(const fa_task *t, int is32, int pending, double scale, int64_t row, int64_t i)
{
    double x = gradient(t, is32, row, i);
    if (!isfinite(x))
        return FA_NONFINITE;
    if (t->before) {
        x = rounded(rounded(t->wrap->s, is32) * x, is32);
        if (pending)
            x = rounded(element(t->array[FA_SUM], is32, i) + x, is32);
        x = rounded(x * rounded(t->wrap->mean, is32), is32);
    }
    return isfinite(rounded(rounded(scale, is32) * x, is32)) ? FA_FINITE : FA_OVERFLOWS;
}

fa_anomaly fa_find_anomaly(const fa_call *c, double norm, double scale, int64_t *which)
{
    double most = -1.0;
    int64_t largest = -1;
    int clips = c->settings.max_norm < INFINITY, hides = 0; /* clipping by a norm that is not finite hides what is not */
    for (int64_t i = 0; i < c->count; i++) {
        if (c->scales) {
            norm = norm_of(c, i);
            scale = c->scales[i];
            clips = c->slots[i].steps;
        }
        hides = clips && !isfinite(norm);
        if (hides)
            scale = 1.0;
        const fa_task *task = &c->squares[i];
        const fa_slot *slot = &c->slots[i];
        int pending = slot->record->pending != 0, is32 = slot->real == FA_FLOAT32;
        double limit = 0.999 * (is32 ? FLT_MAX : DBL_MAX); /* a little less than the largest number: sums are rounded */
        const int64_t n = slot->rows ? slot->width : task->n, each = slot->rows ? fa_blocks_in(n) : INT64_MAX;
        for (int64_t block = 0; block < blocks_of(slot, task->n); block++) {
            double squares = ((const double *)task->coefficients)[block];
            if (slot->steps && squares > most) {
                most = squares;
                largest = i;
            }
            /* No element is larger than the root of its block's sum. */
            if (fabs(scale) < limit && fabs(scale) * sqrt(squares) < limit)
                continue;
            int64_t begin = block % each * FA_SQUARES, end = n - begin < FA_SQUARES ? n : begin + FA_SQUARES;
            for (int64_t k = begin; k < end; k++) {
                fa_anomaly found = classify(task, is32, pending, scale, block / each, k);
                *which = i;
                if (found != FA_FINITE)
                    return found;
            }
        }
        if (c->scales && hides) {
            *which = i;
            return FA_NORM_OVERFLOWS;
        }
    }
    *which = largest;
    return hides && largest >= 0 ? FA_NORM_OVERFLOWS : FA_FINITE;
}
