/* One call of an optimizer's step: the task of each parameter, and its counters. */
#include <math.h>
#include "fastadam.h"

static int summed(const fa_slot *slot)
{
    return slot->record->pending ? FA_SUMMED : 0;
}

/* What is not plain: a gradient of rows; formats; a rule that keeps a number for each row. */
static void take_form(const fa_call *c, const fa_slot *slot, fa_task *task, int by_row)
{
    task->rows = slot->rows;
    if (slot->rows)
        task->n = slot->rows->count * slot->width;
    if (slot->format)
        task->decode = fa_codec_of(c->isa, slot->format);
    task->formats = slot->coded && slot->steps ? &slot->group->formats[slot->coded - 1] : NULL;
    if (!by_row || !slot->steps)
        return;
    if (slot->width == 1) { /* a number for each element: Adagrad has the same bits, much sooner */
        task->kernel = fa_kernel_of(c->isa, FA_RMSPROP | fa_rule_of(c->family, &slot->group->options) % 16, slot->real);
    } else if (!slot->rows) { /* it takes all rows */
        fa_rows *all = &c->rows[task - c->tasks];
        *all = (fa_rows){.width = slot->width, .count = slot->height};
        task->rows = all;
    }
}

void fa_build_tasks(const fa_call *c)
{
    const int clipped = c->settings.max_value < INFINITY ? FA_CLIPPED : 0;
    const int blockwise = c->blockwise, average = c->settings.average;
    const int by_row = fa_kernel_of(c->isa, c->family->loop, FA_FLOAT32)->add_mean != NULL;
    const int forms = c->special || c->coded || by_row;
    const fa_slot *slot = c->slots, *end = slot + c->count;
    for (fa_task *task = c->tasks; slot < end; slot++, task++) {
        task->n = 0;
        if (!slot->active)
            continue;
        task->n = slot->n;
        task->before = task->after = NULL;
        if (!slot->steps) { /* the gradient only joins the sum */
            task->array[FA_PARAM] = task->array[FA_SUM];
            int loop = FA_GRADIENT + (summed(slot) ? FA_SUMMED + FA_IN_PLACE : 0);
            task->kernel = fa_kernel_of(c->isa, loop, slot->real);
        } else {
            task->array[FA_PARAM] = slot->place;
            task->kernel = slot->group->kernel[slot->real];
            if (blockwise)
                task->before = fa_kernel_of(c->isa, FA_GRADIENT + summed(slot) + clipped, slot->real);
            if (average)
                task->after = fa_kernel_of(c->isa, FA_AVERAGE, slot->real);
        }
        if (forms)
            take_form(c, slot, task, by_row);
    }
}

void fa_build_wraps(fa_call *c)
{
    int64_t made = 0;
    double mean = 0.0;
    fa_fp_state saved;
    fa_fp_default(&saved);
    for (int64_t i = 0; i < c->count; i++) {
        double its_mean = c->slots[i].steps ? 1.0 / (double)(c->slots[i].record->pending + 1) : 1.0;
        if (made == 0 || its_mean != mean) {
            mean = its_mean;
            c->wraps[made++] = (fa_wrap){
                .s = c->scale,
                .mean = mean,
                .limit = c->settings.max_value,
                .decay = c->settings.ema_decay,
                .rest = 1.0 - c->settings.ema_decay,
            };
        }
        c->tasks[i].wrap = &c->wraps[made - 1];
    }
    fa_fp_restore(&saved);
}

/* This comes before the arrays are updated, because that pushes the counters out of the cache. Nothing in between can
 * fail, and a state file says meanwhile that it is torn. */
void fa_advance_counters(fa_call *c, double scale)
{
    const int64_t number = ++c->number;
    const fa_slot *slot = c->slots, *end = slot + c->count;
    fa_coefficients *next = c->coefficients;
    for (fa_task *task = c->tasks; slot < end; slot++, task++) {
        fa_group *group = slot->group;
        fa_record *record = slot->record;
        if (!slot->active)
            continue;
        if (!slot->steps) {
            task->coefficients = task->wrap;
            record->pending++;
            continue;
        }
        int is_first = group->call != number;
        if (is_first) {
            group->call = number;
            group->taken = group->options;
            group->stepped = 1;
        }
        if (c->scales)
            scale = c->scales[task - c->tasks];
        if (is_first || group->step != record->step + 1 || group->product != record->product) {
            group->step = record->step + 1;
            group->product = record->product;
            group->coefficients = next++;
            fa_coefficients_at(c->family, group->step, &group->options, scale, record->product, group->coefficients);
        } else if (c->scales) { /* all else is the same */
            *next = *group->coefficients;
            next->s = fa_scale_for(&group->options, scale);
            group->coefficients = next++;
        }
        task->coefficients = group->coefficients;
        record->step = group->step;
        record->product = group->coefficients->product;
        record->pending = 0;
        if (slot->coded)
            task->seed = fa_seed_of_step(record->seed, record->step);
        if (group->count < record->step)
            group->count = record->step;
    }
}
