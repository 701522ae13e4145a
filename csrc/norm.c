/* The norm of the gradients of a call, before anything changes; and where NaN or infinity comes from. */
#include <float.h>
#include <math.h>
#include <string.h>
#include "fastadam.h"

static int64_t blocks_of(int64_t n)
{
    return n / FA_SQUARES + (n % FA_SQUARES != 0);
}

int64_t fa_blocks_of_call(const fa_call *c)
{
    int64_t blocks = 0;
    for (int64_t i = 0; i < c->count; i++)
        blocks += blocks_of(c->slots[i].n);
    return blocks;
}

/* Gradients that only join a sum are squared, too, so that NaN and infinity in them are found. */
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
        task->coefficients = &c->sums[blocks];
        task->wrap = own->wrap;
        if (own->before || !slot->steps) /* the mean, not clipped; or the sum */
            task->before = fa_kernel_of(c->isa, FA_GRADIENT + (slot->record->pending ? FA_SUMMED : 0), slot->real);
        blocks += blocks_of(task->n);
    }
    if (blocks < threads) /* a smaller team than the step's would end some of its threads (libgomp) */
        threads = 1;
    fa_gate_enter(); /* only so that a fork waits */
    fa_run(c->squares, c->count, threads, threads, NULL);
    fa_gate_leave();
}

double fa_add_squares(const fa_call *c)
{
    double total = 0.0;
    for (int64_t i = 0; i < c->count; i++)
        for (int64_t block = 0; c->slots[i].steps && block < blocks_of(c->squares[i].n); block++)
            total += ((const double *)c->squares[i].coefficients)[block];
    return total;
}

/* One element of a gradient; and, scaled, what the rule would take, or the sum that it joins. */
static fa_anomaly classify32(const fa_task *t, int pending, double scale, int64_t i)
{
    float x = ((const float *)t->array[FA_GRAD])[i];
    if (!isfinite(x))
        return FA_NONFINITE;
    if (t->before) {
        x = (float)t->wrap->s * x;
        if (pending)
            x = ((const float *)t->array[FA_SUM])[i] + x;
        x = x * (float)t->wrap->mean;
    }
    return isfinite((float)scale * x) ? FA_FINITE : FA_OVERFLOWS;
}

static fa_anomaly classify64(const fa_task *t, int pending, double scale, int64_t i)
{
    double x = ((const double *)t->array[FA_GRAD])[i];
    if (!isfinite(x))
        return FA_NONFINITE;
    if (t->before) {
        x = t->wrap->s * x;
        if (pending)
            x = ((const double *)t->array[FA_SUM])[i] + x;
        x = x * t->wrap->mean;
    }
    return isfinite(scale * x) ? FA_FINITE : FA_OVERFLOWS;
}

fa_anomaly fa_find_anomaly(const fa_call *c, int norm_counts, double scale, int64_t *which)
{
    double most = -1.0;
    int64_t largest = -1;
    for (int64_t i = 0; i < c->count; i++) {
        const fa_task *task = &c->squares[i];
        const fa_slot *slot = &c->slots[i];
        int pending = slot->record->pending != 0, is32 = slot->real == FA_FLOAT32;
        double limit = 0.999 * (is32 ? FLT_MAX : DBL_MAX); /* less than the most, because of rounding */
        for (int64_t block = 0; block < blocks_of(task->n); block++) {
            double squares = ((const double *)task->coefficients)[block];
            if (slot->steps && squares > most) {
                most = squares;
                largest = i;
            }
            /* No element is larger than the root of its block's sum. */
            if (fabs(scale) < limit && fabs(scale) * sqrt(squares) < limit)
                continue;
            int64_t end = task->n - block * FA_SQUARES < FA_SQUARES ? task->n : (block + 1) * FA_SQUARES;
            for (int64_t k = block * FA_SQUARES; k < end; k++) {
                fa_anomaly found = (is32 ? classify32 : classify64)(task, pending, scale, k);
                *which = i;
                if (found != FA_FINITE)
                    return found;
            }
        }
    }
    *which = largest;
    return norm_counts && largest >= 0 ? FA_NORM_OVERFLOWS : FA_FINITE;
}
