/* Runs every baseline loop over numbers of every magnitude and prints a digest of the results, so that two processors
 * can be compared (tests/test_aarch64.py). Rounding mode and threads are set to something else on purpose. */
#include <fenv.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
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
    printf("%016llx\n", (unsigned long long)digest);
    return 0;
}
