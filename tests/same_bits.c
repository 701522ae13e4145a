/* Runs every baseline loop over numbers of every magnitude and prints a digest of the results, so that two processors
 * can be compared (tests/test_aarch64.py). Rounding mode and threads are set to something else on purpose. Steps in
 * other formats run on every instruction set that there is, each with other threads, and must give the same digest. */
#include <fenv.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "fastadam.h"

static uint64_t state = 88172645463325252u;
static uint64_t digest = 1469598103934665603u;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static double number(int may_be_negative)
{
    uint64_t r = next();
    double x = ldexp(1.0 + (double)(r >> 40) / 16777216.0, (int)(r % 240) - 150);
    switch ((r >> 20) % 32) {
    case 0: x = 0.0; break;
    case 1: x = NAN; break;
    case 2: x = INFINITY; break;
    }
    return may_be_negative && ((r >> 30) & 1) ? -x : x;
}

static void add_to_digest(const unsigned char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        digest = (digest ^ bytes[i]) * 1099511628211u;
}

static void add_number(const void *array, int64_t i, fa_real real)
{
    size_t size = real == FA_FLOAT64 ? sizeof(double) : sizeof(float);
    int is_nan = real == FA_FLOAT64 ? isnan(((const double *)array)[i]) : isnan(((const float *)array)[i]);
    add_to_digest(is_nan ? (const unsigned char *)"NaN NaN" : (const unsigned char *)array + (size_t)i * size, size);
}

enum { FAR = 2 << 20, NEAR_N = (1 << 18) + 5 };

/* A parameter of NEAR_N float32 elements and its gradient, which trails it by 16 bytes modulo 1 MiB. */
static void place_near(fa_task *task)
{
    free(task->array[FA_GRAD]);
    free(task->array[FA_PARAM]);
    task->array[FA_PARAM] = malloc(FAR + NEAR_N * sizeof(float));
    task->array[FA_GRAD] = (char *)task->array[FA_PARAM] + FAR - 16;
}

/* Wrapped: with sums, clipping and averages. */
static void run(fa_rule rule, fa_real real, int64_t n, int threads, int wrapped)
{
    size_t size = real == FA_FLOAT64 ? sizeof(double) : sizeof(float);
    const char *families[] = {"Adam", "SGD", "RMSprop", "NAdam", "Adamax", "RowAdagrad"};
    const fa_family *family = rule < FA_RULES ? fa_family_named(families[rule / 16]) : NULL;
    fa_wrap wrap = {.s = 0.7, .mean = 1.0 / 3, .limit = 0.5, .decay = 0.9, .rest = 1.0 - 0.9};
    double sums[100000 / FA_SQUARES + 1] = {0};
    fa_options options = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1, .eps_root = 1e-12,
                          .bias_correction = 1, .momentum = 0.8, .alpha = 0.99, .momentum_decay = 4e-3};
    double product = 1.0;
    fa_rows all = {.width = 1, .count = n};
    fa_task task = {.kernel = fa_kernel_of(FA_BASELINE, rule, real), .n = n};
    if (task.kernel->add_mean)
        task.rows = &all;
    if (wrapped) {
        task.before = fa_kernel_of(FA_BASELINE, FA_GRADIENT + FA_SUMMED + FA_CLIPPED, real);
        task.after = rule < FA_RULES ? fa_kernel_of(FA_BASELINE, FA_AVERAGE, real) : NULL;
        task.wrap = &wrap;
    }
    for (int a = 0; a < FA_ARRAYS; a++)
        task.array[a] = malloc((size_t)n * size + 1);
    if (n == NEAR_N)
        place_near(&task);
    for (int a = 0; a < FA_ARRAYS; a++) {
        for (int64_t i = 0; i < n; i++) {
            double x = number(a <= FA_M);
            if (real == FA_FLOAT64)
                ((double *)task.array[a])[i] = x;
            else
                ((float *)task.array[a])[i] = (float)x;
        }
    }
    for (int64_t step = 1; step < 4; step++) {
        fa_coefficients coefficients;
        fesetround(FE_UPWARD);
        if (family)
            fa_coefficients_at(family, step, &options, 0.7, product, &coefficients);
        product = family ? coefficients.product : product;
        task.coefficients = family ? (void *)&coefficients : rule == FA_SUM_SQUARES ? (void *)sums : (void *)&wrap;
        fa_run(&task, 1, threads, threads, 0);
        if (fegetround() != FE_UPWARD)
            exit(1);
        fesetround(FE_TONEAREST);
    }
    add_to_digest(isnan(sums[0]) ? (const unsigned char *)"NaN NaN" : (const unsigned char *)sums, sizeof(double));
    for (int a = 0; a < FA_ARRAYS; a++) {
        for (int64_t i = 0; i < n; i += n > 5000 ? 97 : 1) {
            add_number(task.array[a], i, real);
        }
    }
    for (int a = 0; a < FA_ARRAYS; a++)
        if (n != NEAR_N || a != FA_GRAD)
            free(task.array[a]);
}

/* Steps on rows of a table, and their norm. */
static void run_rows(fa_rule rule, fa_real real, int64_t width, int64_t given, int threads, int wrapped)
{
    enum { HEIGHT = 9 };
    const int64_t size = real == FA_FLOAT64 ? 8 : 4, blocks = (width + FA_SQUARES - 1) / FA_SQUARES;
    fa_wrap wrap = {.s = 0.7, .mean = 1.0, .limit = 0.5};
    fa_coefficients coefficients = {.s = 0.9, .wd = 0.1, .d = 0.9, .b1 = 0.9, .c1 = 0.1, .b2 = 0.9, .c2 = 0.1,
                                    .step_size = 0.01, .inv_bc2 = 2.0, .eps = 1e-8, .grad_size = 0.1};
    int64_t *list = malloc((size_t)given * sizeof *list + 1), bad;
    uint64_t *work = malloc((size_t)fa_rows_room(given) * sizeof *work);
    fa_rows rows = {.width = width, .add = fa_kernel_of(FA_BASELINE, FA_GRADIENT + FA_SUMMED + FA_IN_PLACE, real)};
    for (int64_t i = 0; i < given; i++)
        list[i] = (int64_t)(next() >> 20) % HEIGHT;
    if (fa_rows_sort(&rows, list, 1, given, HEIGHT, work, &bad) >= 0)
        exit(1);
    double *sums = calloc((size_t)(rows.count * blocks) + 1, sizeof *sums);
    fa_task task = {.kernel = fa_kernel_of(FA_BASELINE, rule, real), .n = rows.count * width, .rows = &rows, .wrap = &wrap,
                    .coefficients = rule == FA_SUM_SQUARES ? (void *)sums : (void *)&coefficients};
    if (wrapped)
        task.before = fa_kernel_of(FA_BASELINE, FA_GRADIENT + FA_CLIPPED, real);
    for (int a = 0; a < FA_SUM; a++) {
        int64_t n = (a == FA_GRAD ? given : HEIGHT) * (a == FA_V && task.kernel->add_mean ? 1 : width);
        if (a == FA_EMA || (rule == FA_SUM_SQUARES && a != FA_GRAD))
            continue;
        task.array[a] = malloc((size_t)(n * size) + 1);
        for (int64_t i = 0; i < n; i++) {
            double x = number(a <= FA_M);
            if (real == FA_FLOAT64)
                ((double *)task.array[a])[i] = x;
            else
                ((float *)task.array[a])[i] = (float)x;
        }
    }
    fa_run(&task, 1, threads, threads, 0);
    for (int64_t i = 0; i < rows.count * blocks; i++)
        add_to_digest(isnan(sums[i]) ? (const unsigned char *)"NaN NaN" : (const unsigned char *)&sums[i], sizeof(double));
    for (int64_t i = 0; task.array[FA_PARAM] && i < HEIGHT * width; i++) {
        add_number(task.array[FA_PARAM], i, real);
    }
    for (int a = 0; a < FA_SUM; a++)
        free(task.array[a]);
    free(sums);
    free(work);
    free(list);
}

/* ---- formats ---- */

typedef struct {
    const char *family;
    fa_state_format state;
    int master_bits;
    fa_format grad;
    int64_t n, width; /* width > 0: of some rows of a table; of all, if V is one number for each */
    int wrapped;
} form;

/* Near its neighbours in magnitude; one in 512 is any number. */
static float near(int64_t i, int may_be_negative)
{
    uint64_t r = next();
    if (r % 512 == 0)
        return (float)number(may_be_negative);
    double x = ldexp(1.0 + (double)(r >> 40) / 16777216.0, (int)(r >> 10) % 24 + (int)(i / 32 * 29 % 200) - 130);
    return (float)(may_be_negative && ((r >> 30) & 1) ? -x : x);
}

static fa_format format_of(const form *f, int array)
{
    return array == FA_GRAD ? f->grad : array == FA_PARAM ? (f->master_bits == 24 ? FA_SPLIT_24 : FA_SPLIT_32)
                                                          : fa_format_for(f->state, array);
}

/* An array, or a pair, of exactly n elements; returns the bytes of its codes, 0 if it is plain. */
static int64_t make_array(fa_task *task, const form *f, const fa_codec *codec, int a, int64_t n)
{
    float *values = malloc((size_t)n * sizeof *values);
    for (int64_t i = 0; i < n; i++)
        values[i] = near(i, a <= FA_M || a == FA_W);
    if (!codec) {
        task->array[a] = values;
        return 0;
    }
    uint16_t *codes = task->array[a] = malloc((size_t)(n * codec->size));
    if (a == FA_GRAD) {
        for (int64_t i = 0; i < n; i++) /* below 2, but for one in 512 */
            codes[i] = (uint16_t)(next() >> 20 & (next() % 512 ? 0xBFFF : 0xFFFF));
    } else {
        if (codec->group)
            task->array[fa_second(a)] = malloc((size_t)((n + codec->group - 1) / codec->group * codec->second_size));
        fa_encode_array(format_of(f, a), values, codes, task->array[fa_second(a)], n);
    }
    free(values);
    return n * codec->size;
}

static void run_form(const form *f, fa_isa isa, int threads)
{
    enum { HEIGHT = 9, GIVEN = 13 };
    const fa_family *family = fa_family_named(f->family);
    const fa_formats formats = fa_formats_for(isa, family, f->state, f->master_bits);
    const fa_options options = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.1, .momentum = 0.8,
                                .bias_correction = 1, .alpha = 0.9, .momentum_decay = 4e-3};
    const fa_wrap wrap = {.s = 0.7, .mean = 1.0 / 3, .limit = 0.5, .decay = 0.9, .rest = 1.0 - 0.9};
    const int64_t n = f->width ? HEIGHT * f->width : f->n;
    fa_task task = {.kernel = fa_kernel_of(isa, fa_rule_of(family, &options), FA_FLOAT32), .n = n, .wrap = &wrap,
                    .decode = f->grad ? fa_codec_of(isa, f->grad) : NULL,
                    .formats = f->state || f->master_bits ? &formats : NULL};
    const int by_row = task.kernel->add_mean != NULL, some = f->width && !by_row;
    int64_t list[GIVEN], bad, codes[FA_VALUES], sizes[FA_VALUES];
    uint64_t *work = malloc((size_t)fa_rows_room(GIVEN) * sizeof *work);
    fa_rows rows = {.width = f->width, .count = HEIGHT,
                    .add = fa_kernel_of(isa, FA_GRADIENT + FA_SUMMED + FA_IN_PLACE, FA_FLOAT32)};
    for (int i = 0; i < GIVEN; i++)
        list[i] = (int64_t)(next() >> 20) % HEIGHT;
    if (some && fa_rows_sort(&rows, list, 1, GIVEN, HEIGHT, work, &bad) >= 0)
        exit(1);
    if (f->width) {
        task.rows = &rows;
        task.n = rows.count * f->width;
    }
    if (f->wrapped) {
        task.before = fa_kernel_of(isa, FA_GRADIENT + (some ? 0 : FA_SUMMED) + FA_CLIPPED, FA_FLOAT32);
        task.after = some ? NULL : fa_kernel_of(isa, FA_AVERAGE, FA_FLOAT32);
    }
    for (int a = 0; a < FA_VALUES; a++) {
        const int is_state = a == FA_M || a == FA_V || a == FA_W;
        const fa_codec *codec = a == FA_GRAD ? task.decode : formats.of[a];
        sizes[a] = a == FA_GRAD && some ? GIVEN * f->width : a == FA_V && by_row ? HEIGHT : n;
        if (is_state ? !(task.kernel->states >> (a - FA_STATE) & 1) : a >= FA_EMA && (!f->wrapped || some))
            sizes[a] = 0;
        codes[a] = sizes[a] ? make_array(&task, f, codec, a, sizes[a]) : 0;
    }
    double product = 1.0;
    for (int64_t step = 1; step < 4; step++) {
        fa_coefficients coefficients;
        fa_coefficients_at(family, step, &options, 0.7, product, &coefficients);
        product = coefficients.product;
        task.coefficients = &coefficients;
        task.seed = fa_seed_of_step(7, step);
        fa_run(&task, 1, threads, threads, 0);
    }
    for (int a = 0; a < FA_VALUES; a++) {
        const fa_codec *codec = a == FA_GRAD ? NULL : formats.of[a];
        add_to_digest(task.array[a], (size_t)codes[a]);
        if (codes[a] && codec && codec->group)
            add_to_digest(task.array[fa_second(a)],
                          (size_t)((sizes[a] + codec->group - 1) / codec->group * codec->second_size));
        for (int64_t i = 0; !codes[a] && i < sizes[a]; i++)
            add_number(task.array[a], i, FA_FLOAT32);
    }
    for (int a = 0; a < FA_ARRAYS; a++)
        free(task.array[a]);
    free(work);
}

static void run_everywhere(form f)
{
    const uint64_t start = state, before = digest;
    uint64_t first = 0;
    for (int isa = 0; isa < FA_ISAS; isa++) {
        if (!fa_isa_available(isa))
            continue;
        state = start;
        digest = before;
        run_form(&f, isa, 1 + ((int)f.n + 3 * isa) % 5);
        first = isa ? first : digest;
        if (digest != first) {
            fprintf(stderr, "%s, state %d, master_bits %d, gradient %d, n %d, width %d, wrapped %d: another digest with %s\n",
                    f.family, f.state, f.master_bits, f.grad, (int)f.n, (int)f.width, f.wrapped, fa_isa_name(isa));
            exit(1);
        }
    }
}

static void run_formats(void)
{
    const char *families[] = {"Adam", "SGD", "RMSprop", "NAdam", "Adamax", "Adagrad", "RowAdagrad"};
    const int master_bits[] = {0, 32, 24};
    const int64_t sizes[] = {1, 31, 33, 255, 512, 513, 1500, 2600}, widths[] = {1, 7, 513}, whole_groups[] = {32, 96, 1056};
    for (int count = 0; count < 7 * 3 * 3; count++) { /* every pair of a family, a state and a parameter; gradients in turn */
        const int family = count / 9, form_of_state = count / 3 % 3;
        form f = {families[family], form_of_state, master_bits[count % 3], (count + count / 3 + count / 9) % 3,
                  .n = sizes[count % 8], .wrapped = count / 3 % 2};
        int64_t width = form_of_state == FA_STATE_8BIT ? whole_groups[count / 9 % 3] : widths[count / 9 % 3];
        if (strcmp(f.family, "RowAdagrad") == 0)
            f.width = width + 1;
        run_everywhere(f);
        f.width = width;
        if (count % 2 && strcmp(f.family, "RowAdagrad") != 0)
            run_everywhere(f);
    }
}

int main(void)
{
    const fa_rule by_rows[] = {FA_ADAM | FA_AMSGRAD, FA_SGD, FA_ROW_ADAGRAD | FA_L2, FA_SUM_SQUARES};
    for (int real = 0; real < FA_REALS; real++)
        for (int i = 0; i < 4; i++)
            for (int64_t width = 1; width < 5000; width = 5 * width + 2)
                for (int64_t given = 0; given < 40; given += 13)
                    run_rows(by_rows[i], real, width, given, 1 + (int)given % 4, (int)(width + given) & 1);
    for (int real = 0; real < FA_REALS; real++)
        for (int rule = 0; rule < FA_ALL_RULES; rule++)
            for (int64_t n = 0; n < 2000; n += n < 70 ? 1 : 311)
                if (fa_kernel_of(FA_BASELINE, rule, real)->run)
                    run(rule, real, n, 1 + (int)(n % 3), 0);
    for (int real = 0; real < FA_REALS; real++)
        for (int wrapped = 0; wrapped < 2; wrapped++) {
            run(FA_ADAM, real, 5000, 2, wrapped);
            run(FA_SUM_SQUARES, real, 5 * 4 * FA_SQUARES + 37, 1 + wrapped, wrapped);
        }
    run(FA_ADAM, FA_FLOAT32, NEAR_N, 1, 0);
    run(FA_ADAM, FA_FLOAT32, NEAR_N, 2, 1);
    run_formats();
    printf("%016llx\n", (unsigned long long)digest);
    return 0;
}
