/* The public C interface (fastadam/include/fastadam_api.h): checks what can be checked without Python, and then steps.
 *
 * The only file of csrc/ that refuses anything, or asks for memory: for more than FEW arrays, before it changes one. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../fastadam/include/fastadam_api.h"
#include "fastadam.h"

/* ---- both structs of options have the same fields in the same order ------------------------------------------ */

enum { NUMBERS = 11, FLAGS = 7 };
enum { BEGIN = offsetof(fastadam_options, lr), SAME = NUMBERS * sizeof(double) + FLAGS * sizeof(int32_t) };

#define IS_SAME(name)                                                                          \
    _Static_assert(offsetof(fastadam_options, name) - BEGIN == offsetof(fa_options, name) &&   \
                   sizeof(((fastadam_options *)0)->name) == sizeof(((fa_options *)0)->name), #name)
IS_SAME(lr);
IS_SAME(beta1);
IS_SAME(beta2);
IS_SAME(eps);
IS_SAME(weight_decay);
IS_SAME(eps_root);
IS_SAME(momentum);
IS_SAME(dampening);
IS_SAME(alpha);
IS_SAME(lr_decay);
IS_SAME(momentum_decay);
IS_SAME(decoupled_weight_decay);
IS_SAME(amsgrad);
IS_SAME(maximize);
IS_SAME(bias_correction);
IS_SAME(eps_hat);
IS_SAME(nesterov);
IS_SAME(centered);
_Static_assert(offsetof(fa_options, momentum_decay) == (NUMBERS - 1) * sizeof(double), "NUMBERS");
_Static_assert(offsetof(fa_options, centered) == SAME - sizeof(int32_t), "FLAGS");
_Static_assert(sizeof(fastadam_options) == BEGIN + SAME + sizeof(int32_t), "no room between or behind the fields");

/* ---- classes ------------------------------------------------------------------------------------------------- */

/* The classes of fastadam/rules.py whose state has an element for each of the parameter's. What they have not is NO. */
#define NO (-1)
static const struct {
    const char *name, *family;
    double number[NUMBERS];
    int32_t flag[FLAGS];
} classes[] = {
    /*                       lr    beta1 beta2  eps    decay root momentum, alpha       lr_    momentum_
     *                                                            dampening             decay  decay         in that order */
    {"Adam", "Adam",       {1e-3, 0.9, 0.999, 1e-8,  0.0,  0.0, NO,  NO,  NO,   NO,  NO},   {0,  0,  0, 1,  0,  NO, NO}},
    {"AdamW", "Adam",      {1e-3, 0.9, 0.999, 1e-8,  1e-2, 0.0, NO,  NO,  NO,   NO,  NO},   {1,  0,  0, 1,  0,  NO, NO}},
    {"NAdam", "NAdam",     {2e-3, 0.9, 0.999, 1e-8,  0.0,  NO,  NO,  NO,  NO,   NO,  4e-3}, {0,  NO, 0, NO, NO, NO, NO}},
    {"RAdam", "RAdam",     {1e-3, 0.9, 0.999, 1e-8,  0.0,  NO,  NO,  NO,  NO,   NO,  NO},   {0,  NO, 0, NO, NO, NO, NO}},
    {"Adamax", "Adamax",   {2e-3, 0.9, 0.999, 1e-8,  0.0,  NO,  NO,  NO,  NO,   NO,  NO},   {NO, NO, 0, NO, NO, NO, NO}},
    {"SGD", "SGD",         {1e-3, NO,  NO,    NO,    0.0,  NO,  0.0, 0.0, NO,   NO,  NO},   {NO, NO, 0, NO, NO, 0,  NO}},
    {"RMSprop", "RMSprop", {1e-2, NO,  NO,    1e-8,  0.0,  NO,  0.0, NO,  0.99, NO,  NO},   {NO, NO, 0, NO, NO, NO, 0}},
    {"Adagrad", "Adagrad", {1e-2, NO,  NO,    1e-10, 0.0,  NO,  NO,  NO,  NO,   0.0, NO},   {NO, NO, 0, NO, NO, NO, NO}},
};
enum { CLASSES = sizeof(classes) / sizeof(classes[0]), ADAM = 0 };

/* What is allowed: numbers from 0 to below, flags from 0 to most. */
typedef struct {
    const fa_family *family;
    double below[NUMBERS];
    int32_t most[FLAGS];
} limits;
static limits limits_of[CLASSES];

static void find_limits(void)
{
    for (int c = 0; c < CLASSES; c++) {
        limits *l = &limits_of[c];
        l->family = fa_family_named(classes[c].family);
        for (int i = 0; i < NUMBERS; i++)
            l->below[i] = INFINITY;
        for (const fa_hyper *h = fa_hypers; h->name; h++) {
            size_t i = h->offset / sizeof(double);
            if (h->kind == FA_BETA || h->kind == FA_BETAS)
                l->below[i] = 1.0;
            if (h->kind == FA_BETAS)
                l->below[i + 1] = 1.0;
        }
        for (int i = 0; i < NUMBERS; i++)
            if (classes[c].number[i] == NO)
                l->below[i] = DBL_TRUE_MIN; /* nothing but 0 */
        for (int i = 0; i < FLAGS; i++)
            l->most[i] = classes[c].flag[i] != NO;
    }
}

/* When the struct has grown, `size` may also be what it was before, and no more is written. */
static int options(const char *name, fastadam_options *out, size_t size)
{
    if (!out || size != sizeof *out)
        return FASTADAM_BAD_OPTIONS;
    for (int c = 0; name && c < CLASSES; c++) {
        if (strcmp(classes[c].name, name) != 0)
            continue;
        double number[NUMBERS];
        int32_t flag[FLAGS];
        for (int i = 0; i < NUMBERS; i++)
            number[i] = classes[c].number[i] == NO ? 0.0 : classes[c].number[i];
        for (int i = 0; i < FLAGS; i++)
            flag[i] = classes[c].flag[i] == NO ? 0 : classes[c].flag[i];
        *out = (fastadam_options){.size = size, .rule = c + 1};
        memcpy(&out->lr, number, sizeof number);
        memcpy(&out->decoupled_weight_decay, flag, sizeof flag);
        return 0;
    }
    return FASTADAM_BAD_CLASS;
}

/* ---- one call ------------------------------------------------------------------------------------------------ */

/* What was checked of options. */
typedef struct {
    const fa_family *family;
    fa_options options;
    fa_rule rule;
    int states;
} chosen;

static int choose(const fastadam_options *o, chosen *c)
{
    if (!o || o->size != sizeof *o || o->rule < 1 || o->rule > CLASSES)
        return FASTADAM_BAD_OPTIONS;
    const limits *l = &limits_of[o->rule - 1];
    memset(&c->options, 0, sizeof c->options);
    memcpy(&c->options, &o->lr, SAME);
    double number[NUMBERS];
    int32_t flag[FLAGS];
    memcpy(number, &o->lr, sizeof number);
    memcpy(flag, &o->decoupled_weight_decay, sizeof flag);
    for (int i = 0; i < NUMBERS; i++)
        if (!(number[i] >= 0.0 && number[i] < l->below[i]))
            return FASTADAM_BAD_VALUE;
    for (int i = 0; i < FLAGS; i++)
        if (flag[i] < 0 || flag[i] > l->most[i])
            return FASTADAM_BAD_VALUE;
    if (c->options.nesterov && !(c->options.momentum > 0.0 && c->options.dampening == 0.0))
        return FASTADAM_BAD_VALUE;
    c->family = l->family;
    c->rule = fa_rule_of(c->family, &c->options);
    c->states = fa_kernel_of(FA_BASELINE, c->rule, FA_FLOAT32)->states;
    return 0;
}

static int states(const fastadam_options *o)
{
    chosen c;
    fa_fp_state saved; /* comparing NaN raises a flag, or an exception that the caller has switched on */
    fa_fp_default(&saved);
    int error = choose(o, &c);
    fa_fp_restore(&saved);
    return error ? error : c.states;
}

static int check_call(const fastadam_array *arrays, int64_t count, int threads)
{
    if (count < 0 || (count > 0 && !arrays))
        return FASTADAM_BAD_COUNT;
    return threads < 0 || threads > FA_MOST_THREADS ? FASTADAM_BAD_THREADS : 0;
}

static int check_one(const void *array, size_t size)
{
    return !array ? FASTADAM_NULL_ARRAY : (uintptr_t)array % size ? FASTADAM_NOT_ALIGNED : 0;
}

static size_t size_of(const fastadam_array *a)
{
    return a->dtype == FASTADAM_FLOAT32 ? sizeof(float) : sizeof(double);
}

static fa_real real_of(const fastadam_array *a)
{
    return a->dtype == FASTADAM_FLOAT32 ? FA_FLOAT32 : FA_FLOAT64;
}

static int check_gradient(const fastadam_array *a)
{
    if (a->dtype != FASTADAM_FLOAT32 && a->dtype != FASTADAM_FLOAT64)
        return FASTADAM_BAD_DTYPE;
    if (a->n < 0 || (uint64_t)a->n > PTRDIFF_MAX / size_of(a))
        return FASTADAM_BAD_LENGTH;
    return a->n ? check_one(a->grad, size_of(a)) : 0;
}

static int check_array(const chosen *c, const fastadam_array *a)
{
    int error = check_gradient(a);
    if (error)
        return error;
    if (a->step < 1)
        return FASTADAM_BAD_STEP;
    if (c->family->loop == FA_NADAM && (a->step == 1 ? a->product != 1.0 : !(a->product >= 0.0 && a->product < 1.0)))
        return FASTADAM_BAD_PRODUCT;
    if (a->n)
        error = check_one(a->param, size_of(a));
    for (int k = 0; k < 3 && !error; k++) {
        if (!(c->states >> k & 1))
            error = a->state[k] ? FASTADAM_UNUSED_STATE : 0;
        else if (a->n)
            error = check_one(a->state[k], size_of(a));
    }
    return error;
}

enum { FEW = 32 }; /* arrays that a call has room for on the stack: 10 KiB */

static void fill(const chosen *c, const fastadam_array *a, fa_task *task)
{
    memset(task, 0, sizeof *task);
    task->kernel = fa_kernel_of(fa_chosen_isa, c->rule, real_of(a));
    task->array[FA_PARAM] = a->param;
    task->array[FA_GRAD] = (void *)a->grad; /* only read */
    for (int k = 0; k < 3; k++)
        task->array[FA_M + k] = a->state[k];
    task->n = a->n;
}

static int step_all(const chosen *c, fastadam_array *arrays, int64_t count, double scale, int threads, fa_task *tasks,
                    fa_coefficients *coefficients)
{
    const int is_nadam = c->family->loop == FA_NADAM;
    int64_t made = 0;
    for (int64_t i = 0; i < count; i++) {
        const fastadam_array *a = &arrays[i];
        if (i == 0 || a->step != a[-1].step || (is_nadam && a->product != a[-1].product))
            fa_coefficients_at(c->family, a->step, &c->options, scale, is_nadam ? a->product : 1.0, &coefficients[made++]);
        fill(c, a, &tasks[i]);
        tasks[i].coefficients = &coefficients[made - 1];
    }
    fa_gate_enter();
    int team = fa_run(tasks, count, threads, fa_thread_bound(), NULL);
    for (int64_t i = 0; is_nadam && i < count; i++)
        arrays[i].product = ((const fa_coefficients *)tasks[i].coefficients)->product;
    fa_gate_leave();
    return team;
}

static int step_checked(const fastadam_options *o, fastadam_array *arrays, int64_t count, double scale, int threads)
{
    chosen c;
    int error = choose(o, &c);
    if (!error)
        error = check_call(arrays, count, threads);
    if (!error && !isfinite(scale))
        error = FASTADAM_BAD_SCALE;
    for (int64_t i = 0; i < count && !error; i++)
        error = check_array(&c, &arrays[i]);
    if (error)
        return error;
    if (count <= FEW) {
        fa_task tasks[FEW];
        fa_coefficients coefficients[FEW];
        return step_all(&c, arrays, count, scale, threads, tasks, coefficients);
    }
    fa_task *tasks = malloc((size_t)count * (sizeof(fa_task) + sizeof(fa_coefficients)));
    if (!tasks)
        return FASTADAM_NO_MEMORY;
    int team = step_all(&c, arrays, count, scale, threads, tasks, (fa_coefficients *)(tasks + count));
    free(tasks);
    return team;
}

static int update(const fastadam_options *o, fastadam_array *arrays, int64_t count, double grad_scale, int threads)
{
    fa_fp_state saved;
    fa_fp_default(&saved);
    int result = step_checked(o, arrays, count, grad_scale, threads);
    fa_fp_restore(&saved);
    return result;
}

/* ---- the norm ------------------------------------------------------------------------------------------------ */

/* As norm.c has it. */
static int add_all(const fastadam_array *arrays, int64_t count, int threads, fa_task *tasks, double *sums, double *total)
{
    int64_t blocks = 0, lines = 0;
    memset(tasks, 0, (size_t)count * sizeof *tasks);
    for (int64_t i = 0; i < count; i++) {
        tasks[i].kernel = fa_kernel_of(fa_chosen_isa, FA_SUM_SQUARES, real_of(&arrays[i]));
        tasks[i].array[FA_GRAD] = (void *)arrays[i].grad;
        tasks[i].n = arrays[i].n;
        tasks[i].coefficients = &sums[blocks];
        blocks += fa_blocks_in(arrays[i].n);
        lines += (int64_t)((uint64_t)arrays[i].n * size_of(&arrays[i]) / 64);
    }
    fa_gate_enter();
    if (threads == 0)
        threads = fa_guess(lines, fa_thread_bound());
    int team = fa_run(tasks, count, blocks < threads ? 1 : threads, threads, NULL);
    fa_gate_leave();
    *total = 0.0;
    for (int64_t i = 0; i < blocks; i++)
        *total += sums[i];
    return team;
}

static int add_checked(const fastadam_array *arrays, int64_t count, int threads, double *out)
{
    int64_t blocks = 0;
    int error = out ? check_call(arrays, count, threads) : FASTADAM_NULL_ARRAY;
    for (int64_t i = 0; i < count && !error; i++) {
        error = check_gradient(&arrays[i]);
        blocks += error ? 0 : fa_blocks_in(arrays[i].n);
    }
    if (error)
        return error;
    if (count <= FEW && blocks <= FEW) {
        fa_task tasks[FEW];
        double sums[FEW];
        return add_all(arrays, count, threads, tasks, sums, out);
    }
    fa_task *tasks = malloc((size_t)count * sizeof *tasks + 1); /* 0 bytes may be NULL */
    double *sums = malloc((size_t)blocks * sizeof *sums + 1);
    int team = tasks && sums ? add_all(arrays, count, threads, tasks, sums, out) : FASTADAM_NO_MEMORY;
    free(tasks);
    free(sums);
    return team;
}

static int sum_squares(const fastadam_array *arrays, int64_t count, int threads, double *out)
{
    fa_fp_state saved;
    fa_fp_default(&saved);
    int result = add_checked(arrays, count, threads, out);
    fa_fp_restore(&saved);
    return result;
}

/* ---- the table, and what needs no structs ---------------------------------------------------------------------- */

static const char *explain(int error)
{
    switch (error) {
    case FASTADAM_BAD_CLASS:
        return "no class of this name has a C interface: Adam, AdamW, NAdam, RAdam, Adamax, SGD, RMSprop, Adagrad";
    case FASTADAM_BAD_OPTIONS:
        return "the options are NULL, or were not filled by options(), or by one of another version of fastadam_api.h";
    case FASTADAM_BAD_VALUE:
        return "a hyper-parameter is out of range: numbers are finite and >= 0, betas and alpha in [0, 1), flags 0 or 1, "
               "what the class does not have is 0, and nesterov needs momentum > 0 and dampening 0";
    case FASTADAM_BAD_COUNT:
        return "count must be >= 0, and arrays not NULL";
    case FASTADAM_BAD_SCALE:
        return "grad_scale must be finite";
    case FASTADAM_BAD_THREADS:
        return "threads must be 1 to 1024, or 0 for an automatic choice";
    case FASTADAM_BAD_DTYPE:
        return "dtype must be FASTADAM_FLOAT32 or FASTADAM_FLOAT64";
    case FASTADAM_BAD_LENGTH:
        return "n must be >= 0, and no more than fits in memory";
    case FASTADAM_BAD_STEP:
        return "step counts from 1";
    case FASTADAM_BAD_PRODUCT:
        return "NAdam's product is 1 before the first step, and what the step before left in it later";
    case FASTADAM_NULL_ARRAY:
        return "param, grad, out or a place of state that is needed is NULL; states() says which places are";
    case FASTADAM_NOT_ALIGNED:
        return "an array does not begin at a multiple of its elements' size";
    case FASTADAM_UNUSED_STATE:
        return "a place of state is not NULL that these options do not need; states() says which they need";
    case FASTADAM_NO_MEMORY:
        return "there is no memory for a call with so many arrays";
    default:
        return error < 0 ? "an error that this version of fastadam does not know" : "no error";
    }
}

static fastadam_api table = {FASTADAM_ABI, sizeof table, NULL, options, states, update, sum_squares, explain};

const void *fa_api_start(const char *version)
{
    find_limits();
    table.version = version;
    return &table;
}

static int adam(fastadam_array *array, double lr, double beta1, double beta2, double eps, double weight_decay, int decoupled,
                int threads)
{
    fastadam_options o;
    options(classes[ADAM].name, &o, sizeof o);
    o.lr = lr;
    o.beta1 = beta1;
    o.beta2 = beta2;
    o.eps = eps;
    o.weight_decay = weight_decay;
    o.decoupled_weight_decay = decoupled;
    return update(&o, array, 1, 1.0, threads);
}

#define ADAM_OF(name, real, dtype)                                                                               \
    int name(int64_t n, real *param, const real *grad, real *m, real *v, int64_t step, double lr, double beta1,  \
             double beta2, double eps, double weight_decay, int decoupled, int threads)                          \
    {                                                                                                            \
        fastadam_array a = {param, grad, {m, v, NULL}, n, dtype, step, 1.0};                                     \
        return adam(&a, lr, beta1, beta2, eps, weight_decay, decoupled, threads);                                \
    }
ADAM_OF(fa_adam_f32, float, FASTADAM_FLOAT32)
ADAM_OF(fa_adam_f64, double, FASTADAM_FLOAT64)
