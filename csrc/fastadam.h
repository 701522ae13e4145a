/* The whole C interface of fastadam.
 *
 * The caller (fastadam/_core.pyx) has validated everything before it comes here. For every task:
 *   - array[FA_PARAM] and the state arrays hold n elements of the kernel's type, aligned, and overlap nothing
 *     but themselves, or are NULL where there is none; array[FA_GRAD] holds n elements, is only read, and overlaps
 *     nothing that is written;
 *   - kernel and factors belong to the same rule.
 * In return nothing here (but blas.c, which cannot go back once a call's jobs run) allocates, fails, calls Python or keeps state, except what is known about forks.
 */
#ifndef FASTADAM_H
#define FASTADAM_H

#include <stddef.h>
#include <stdint.h>

/* ---- rules (rules.inc) ---------------------------------------------------------------------------------- */

/* One entry for each loop that is compiled: a rule and the flags that are constant in it. */
typedef enum {
    FA_ADAM,
    FA_ADAM_L2,
    FA_ADAM_DECOUPLED,
    FA_ADAM_AMSGRAD,
    FA_ADAM_L2_AMSGRAD,
    FA_ADAM_DECOUPLED_AMSGRAD,
    FA_RULES,
    FA_SUM_SQUARES = FA_RULES /* updates nothing: a double for each block of FA_SQUARES elements of the gradient */
} fa_rule;

enum { FA_SQUARES = 4096 };

typedef enum { FA_FLOAT32, FA_FLOAT64, FA_REALS } fa_real;

/* The order of a task's arrays; the state of a rule follows the gradient. */
enum { FA_PARAM, FA_GRAD, FA_STATE, FA_EXP_AVG = FA_STATE, FA_EXP_AVG_SQ, FA_MAX_EXP_AVG_SQ, FA_ARRAYS };

/* ---- factors (factors.c) -------------------------------------------------------------------------------- */

/* What the user chose for Adam. */
typedef struct {
    double lr, beta1, beta2, eps, weight_decay, eps_root;
    int decoupled, amsgrad, maximize, bias_correction, eps_hat;
} fa_adam_options;

/* What the Adam loops read: the same for all elements of one group at one step. Kernels round each to their
 * element type, once. */
typedef struct {
    double s;                    /* multiplies the gradient */
    double wd, d;                /* L2: g += wd*p; decoupled: p *= d */
    double b1, c1, b2, c2;       /* moments: m = b1*m + c1*g, v = b2*v + c2*g*g */
    double step_size, inv_bc2;   /* bias corrections, and where eps is put */
    double eps_root, eps;
} fa_adam_factors;

fa_rule fa_adam_rule(const fa_adam_options *options);
void fa_adam_factors_at(int64_t step, const fa_adam_options *options, double grad_scale, fa_adam_factors *out);

/* ---- kernels and instruction sets (kernels.c, cpu.c) ---------------------------------------------------- */

typedef struct fa_task fa_task;

typedef struct {
    void (*run)(const fa_task *task, int64_t begin, int64_t end); /* updates elements [begin, end) */
    int64_t line;                                                 /* elements in a cache line of parameters */
} fa_kernel;

typedef enum { FA_BASELINE, FA_AVX2, FA_AVX512, FA_ISAS } fa_isa;

const fa_kernel *fa_kernel_of(fa_isa isa, fa_rule rule, fa_real real);

const char *fa_isa_name(fa_isa isa);
int fa_isa_available(fa_isa isa); /* compiled in, and this CPU and operating system have it */

/* ---- the driver (driver.c) ------------------------------------------------------------------------------ */

struct fa_task {
    const fa_kernel *kernel;
    void *array[FA_ARRAYS];
    int64_t n;
    const void *factors; /* of FA_SUM_SQUARES: where its sums go */
    int64_t first; /* the driver's own: cache lines in the tasks before this one */
};

/* What an optimizer has learned about the number of threads (tuner.c); zeros at the start. */
enum { FA_TUNER_TRIES = 8 };
typedef struct {
    int64_t lines;                     /* the work that it knows, in cache lines */
    int most, best;                    /* threads: the bound, and what is best so far */
    int candidates[3], count;          /* threads on trial; count is 0 between trials */
    int candidate, tried;
    int others, is_other;              /* steps of other work, less those of known; was the last one such? */
    int rest, rested, slow;            /* steps between trials; since the last; in a row that took too long */
    double started, usual;             /* seconds: when the last step began; what a step takes */
    double own[3][FA_TUNER_TRIES], period[3][FA_TUNER_TRIES];
} fa_tuner;

/* The number of threads for a step that begins now, between 1 and most; `start` is the first guess. */
int fa_tuner_next(fa_tuner *tuner, int64_t lines, int start, int most, double now);
void fa_tuner_done(fa_tuner *tuner, double now);

/* Run all tasks, in one parallel region, and return the number of threads it was given.
 * threads > 0 is an order: exactly min(threads, cache lines). threads == 0: at most bound, and no more than have enough
 * to do; what is best within that is learned by the tuner, if there is one. Inside a parallel region, and in an
 * orphaned child, it is always 1. */
int fa_run(fa_task *tasks, int64_t count, int threads, int bound, fa_tuner *tuner);

/* Update elements [begin, end) of one task with its kernel (staging.c). */
void fa_run_range(const fa_task *task, int64_t begin, int64_t end);

int fa_has_openmp(void);
int fa_max_threads(void);       /* what the OpenMP runtime would give the calling thread; 1 without OpenMP */

/* ---- forks (forks.c) ------------------------------------------------------------------------------------ */

void fa_watch_forks(void);      /* call once */
int fa_orphaned(void);          /* is this a forked child in which parallel regions would hang? */
void fa_begin_writing(void);    /* a fork waits until the end; nothing in between may need the GIL */
void fa_end_writing(void);

/* ---- one team with OpenBLAS (blas.c) -------------------------------------------------------------------- */

/* OpenBLAS's interface to a program that supplies its threads. */
typedef void (*fa_blas_job)(int number, void *data, int extra);
typedef void (*fa_blas_callback)(int sync, fa_blas_job run, int count, size_t size, void *data, int extra);
typedef void (*fa_blas_setter)(fa_blas_callback callback);

/* Let the OpenBLAS that this function belongs to run its jobs on our team, or on its own threads again. */
void fa_share_with_blas(fa_blas_setter set, int share);

/* ---- floating point (cpu.c) ----------------------------------------------------------------------------- */

/* The floating-point control state of the calling thread: round to nearest, subnormals kept, no traps.
 * Restoring brings back everything, sticky exception flags included. */
typedef struct { unsigned char opaque[64]; } fa_fp_state;
void fa_fp_default(fa_fp_state *saved);
void fa_fp_restore(const fa_fp_state *saved);

#endif
