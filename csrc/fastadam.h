/* The whole C interface of fastadam.
 *
 * The caller (fastadam/_core.pyx) has validated everything before it comes here. For every task:
 *   - array[FA_PARAM] and the state arrays hold n elements of the kernel's type, aligned, and overlap nothing
 *     but themselves, or are NULL where there is none; array[FA_GRAD] holds n elements, is only read, and overlaps
 *     nothing that is written;
 *   - kernel and coefficients belong to the same rule, and the arrays are those that it needs, or more. (Where a gradient only
 *     joins a sum, array[FA_PARAM] is array[FA_SUM].)
 * In return nothing here allocates, fails, calls Python or keeps state, except what is known about forks and OpenBLAS,
 * and threads. Where the system has no threads to give, steps take those that there are. A BLAS call on our threads cannot
 * do with fewer than it asked for: if they cannot be made, it ends the process (team.c).
 */
#ifndef FASTADAM_H
#define FASTADAM_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

/* setup.py switches these off behind the user's flags, where a later flag can. */
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    defined(__NO_SIGNED_ZEROS__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "fastadam promises bits that -ffast-math and its parts break: remove them from CFLAGS"
#endif
#if FLT_EVAL_METHOD != 0
#error "fastadam promises bits that wider arithmetic breaks: add -msse2 -mfpmath=sse to CFLAGS"
#endif
_Static_assert((int)16777217.0 == 16777217, "fastadam promises bits that -fsingle-precision-constant breaks: remove it");

/* ---- rules (rules.inc) ---------------------------------------------------------------------------------- */

/* A rule is a loop and the flags that are constant in it. */
typedef int fa_rule;

enum { /* loops */
    FA_ADAM = 0,
    FA_SGD = 16,
    FA_RMSPROP = 32,
    FA_NADAM = 48,
    FA_ADAMAX = 64,
    FA_RULES = 80,
    FA_GRADIENT = FA_RULES, /* what stands before a rule: makes the gradient that it takes */
    FA_AVERAGE = 96,        /* what stands after a rule: the moving average of the parameters */
    FA_SUM_SQUARES,         /* updates nothing: a double for each block of FA_SQUARES elements of the gradient */
    FA_ALL_RULES
};

enum { /* flags */
    FA_L2 = 1,        /* decay as part of the gradient */
    FA_DECOUPLED = 2, /* decay as a step of its own */
    FA_AMSGRAD = 4,   /* Adam */
    FA_MOMENTUM = 4,  /* SGD, RMSprop */
    FA_NESTEROV = 8,  /* SGD */
    FA_CENTERED = 8,  /* RMSprop */
    FA_SUMMED = 1,    /* gradient: added to the sum of those before */
    FA_CLIPPED = 2,   /* gradient: by value */
    FA_IN_PLACE = 4   /* gradient: the sum itself becomes the result */
};

enum { FA_SQUARES = 4096 };

typedef enum { FA_FLOAT32, FA_FLOAT64, FA_REALS } fa_real;

/* The order of a task's arrays. M, V and W are state: what each holds is said by the family (coefficients.c). EMA is the
 * moving average of the parameters, SUM that of gradients that wait for a step. */
enum { FA_PARAM, FA_GRAD, FA_M, FA_V, FA_W, FA_EMA, FA_SUM, FA_ARRAYS, FA_STATE = FA_M, FA_STATES = 5 };

/* ---- families of rules (coefficients.c) ---------------------------------------------------------------------- */

/* What the user chose: every hyper-parameter of every family. */
typedef struct {
    double lr, beta1, beta2, eps, weight_decay, eps_root;
    double momentum, dampening, alpha, lr_decay, initial_accumulator_value, momentum_decay;
    int decoupled_weight_decay, amsgrad, maximize, bias_correction, eps_hat, nesterov, centered;
} fa_options;

/* What the loops read: the same for all elements of one group at one step. Kernels round each to their element type,
 * once. */
typedef struct {
    double s;                    /* multiplies the gradient */
    double wd, d;                /* L2: g += wd*p; decoupled: p *= d */
    double b1, c1, b2, c2;       /* averages: m = b1*m + c1*g, v = b2*v + c2*g*g */
    double step_size, inv_bc2;   /* learning rate and bias corrections */
    double eps_root, eps;
    double grad_size;            /* NAdam: what the gradient itself contributes */
    double product;              /* NAdam: of all momenta up to and with this step */
} fa_coefficients;

/* What the loops before and after a rule read. */
typedef struct {
    double s, mean, limit;       /* gradient: (SUM + s*g) * mean, clipped to [-limit, limit] */
    double decay, rest;          /* average: EMA = decay*EMA + rest*p, rest is 1 - decay */
} fa_wrap;

/* What each hyper-parameter may be, and where it is in fa_options. */
typedef enum {
    FA_MAGNITUDE, /* a number, finite, >= 0 */
    FA_BETA,      /* a number in [0, 1) */
    FA_BETAS,     /* a pair of these */
    FA_FLAG,
    FA_FIXED_FLAG, /* decided when the group is made, because it needs state */
    FA_INITIAL     /* a magnitude that only the first state depends on, so no schedule */
} fa_kind;
typedef struct {
    const char *name;
    fa_kind kind;
    size_t offset;
} fa_hyper;
extern const fa_hyper fa_hypers[]; /* the last has no name */

/* An optimizer: its loop, its coefficients, its state. */
typedef struct {
    const char *name;
    const char *state[3];                                         /* names of M, V, W, or NULL */
    fa_rule loop;
    int (*flags)(const fa_options *options);                      /* those of the loop that decay does not decide */
    void (*coefficients)(int64_t step, const fa_options *options, fa_coefficients *f);
} fa_family;

const fa_family *fa_family_named(const char *name);               /* or NULL */
fa_rule fa_rule_of(const fa_family *family, const fa_options *options);

/* `product` is the one after the step before, 1 at the start. */
void fa_coefficients_at(const fa_family *family, int64_t step, const fa_options *options, double grad_scale, double product,
                   fa_coefficients *out);

/* ---- kernels and instruction sets (kernels.c, cpu.c) ---------------------------------------------------- */

typedef struct fa_task fa_task;

typedef struct {
    void (*run)(const fa_task *task, int64_t begin, int64_t end); /* updates elements [begin, end) */
    int64_t line;                                                 /* elements in a cache line of parameters */
    int states;                                                   /* the state arrays that it needs: 1 M, 2 V, 4 W */
    int64_t size;                                                 /* bytes of an element */
    void (*run_made)(const fa_task *task, int64_t begin, int64_t end); /* run, after what stands before it; or NULL */
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
    const void *coefficients; /* of FA_SUM_SQUARES: where its sums go; of loops before and after a rule: fa_wrap */
    const fa_kernel *before, *after; /* loops that run block by block with the rule, or NULL */
    const fa_wrap *wrap;
    int64_t first; /* the driver's own: cache lines in the tasks before this one */
};

/* What an optimizer has learned about the number of threads of one team (tuner.c); zeros at the start. */
enum { FA_TUNER_TRIES = 8 };
typedef struct {
    int64_t lines;                     /* the work that it knows, in cache lines */
    int most, best;                    /* threads: the bound, and what is best so far */
    int candidates[3], count;          /* threads on trial; count is 0 between trials */
    int candidate, tried;
    int others, is_other;              /* steps of other work, less those of known; was the last one such? */
    int rest, rested, slow;            /* steps between trials; since the last; in a row that took too long */
    int away;                          /* the optimizer's last step was on the other team */
    double started, usual;             /* seconds: when the last step began; what a step takes */
    double own[3][FA_TUNER_TRIES], period[3][FA_TUNER_TRIES];
} fa_tuner;

/* The number of threads for a step that begins now, between 1 and most; `start` is the first guess. */
int fa_tuner_next(fa_tuner *tuner, int64_t lines, int start, int most, double now);
void fa_tuner_done(fa_tuner *tuner, double now);

/* Run all tasks, in one parallel region, and return the number of threads it was given.
 * threads > 0 is an order: exactly min(threads, cache lines), as far as the system has them. threads == 0: at most bound,
 * and no more than have enough to do; what is best within that is learned by the tuners, if there are any: the first for
 * OpenMP's threads, the second for the team that OpenBLAS computes on. Inside a parallel region, and in an orphaned child, it is always 1. Between
 * fa_begin_writing and fa_end_writing only. */
enum { FA_TUNERS = 2 };
int fa_run(fa_task *tasks, int64_t count, int threads, int bound, fa_tuner *tuners);
int fa_order(int threads); /* how many there are for such an order; fa_has_room asks without a call of the system */
int fa_ran_on_blas(void); /* did the last step that could take several threads run on OpenBLAS's team? */

/* Update elements [begin, end) of one task with its kernel (blocks.c). */
void fa_run_range(const fa_task *task, int64_t begin, int64_t end);

int fa_has_openmp(void);
int fa_max_threads(void);       /* what the OpenMP runtime would give the calling thread; 1 without OpenMP */

/* ---- a step of many parameters (step.c, norm.c) ----------------------------------------------------------- */

/* The counters of a parameter, in memory or in a state file. */
typedef struct {
    int64_t step;
    double product;  /* NAdam's */
    int64_t pending; /* gradients in its sum, which wait for a step */
} fa_record;
_Static_assert(sizeof(fa_record) == 24, "state files have it so");

/* What an optimizer does before and after its rule. */
typedef struct {
    int threads;                /* 0: chosen by measuring */
    double max_norm, max_value; /* infinity: no clipping */
    int nonfinite;
    int64_t accumulate;
    int average;
    double ema_decay;
} fa_settings;

/* Parameters with the same hyper-parameters. */
typedef struct {
    fa_options options, taken;         /* now; those of its last step, if */
    int stepped;                       /* it has taken one */
    const fa_kernel *kernel[FA_REALS]; /* for each element type */
    int64_t count;                     /* its largest step counter */
    int64_t call;                      /* the last one that it took part in */
    fa_coefficients *coefficients;     /* the last made then, for this counter and product: */
    int64_t step;
    double product;
} fa_group;

/* A parameter. */
typedef struct {
    void *place; /* where it was when last looked at */
    int64_t n;
    fa_real real;
    fa_group *group;
    fa_record *record;
    int active; /* has a gradient in this call */
    int steps;  /* which completes its sum, so it takes a step */
} fa_slot;

/* A call of step: of all parameters, or of one. */
typedef struct {
    const fa_family *family;
    fa_isa isa;
    fa_settings settings;
    double scale;   /* grad_scale */
    int blockwise;  /* sums of gradients, or clipping by value: block by block, before the rule */
    int64_t number; /* of such calls */
    fa_slot *slots; /* the parameters that it is about */
    fa_task *tasks; /* one for each, of no length while it has nothing to do */
    int64_t count;
    fa_wrap *wraps;                /* room for as many */
    fa_coefficients *coefficients; /* as above */
    fa_task *squares;              /* the same gradients, to be summed before */
    double *sums;                  /* of the squares, one for each block */
} fa_call;

void fa_build_task(const fa_call *call, int64_t i);
void fa_build_wraps(fa_call *call); /* one for each number of gradients that have been summed */
void fa_advance_counters(fa_call *call, double scale); /* and make coefficients for each group, counter and product */

/* The norm is made in two: sums of squares for each block, and their total in a fixed order, so that threads do not
 * matter. */
int64_t fa_blocks_of_call(const fa_call *call);
void fa_sum_squares(fa_call *call, int threads);
double fa_add_squares(const fa_call *call);

/* After fa_sum_squares: the first parameter with NaN or infinity in its gradient, or in what is made of it. If the norm is
 * infinite and counts, it is the largest gradient where there is no other. */
typedef enum { FA_FINITE, FA_NONFINITE, FA_OVERFLOWS, FA_NORM_OVERFLOWS } fa_anomaly;
fa_anomaly fa_find_anomaly(const fa_call *call, int norm_counts, double scale, int64_t *which);

/* ---- memory that is written (ranges.c) -------------------------------------------------------------------- */

typedef struct {
    uintptr_t begin, end;
    int64_t slot;
    int array;
} fa_range;

const fa_range *fa_ranges_sort(fa_range *ranges, int64_t count); /* the first that overlaps the one behind it, or NULL */
const fa_range *fa_ranges_find(const fa_range *ranges, int64_t count, uintptr_t begin, uintptr_t end); /* that touches it */

/* ---- room for OpenMP's threads (room.c) ------------------------------------------------------------------ */

typedef struct fa_caller fa_caller; /* what is known of a Python thread's team */
fa_caller *fa_caller_here(void);
int fa_room(fa_caller *caller, int team); /* threads that there are, of so many, for its next region */
int fa_room_for_region(fa_caller *caller, int team, int *held); /* the same; held: until fa_had_team nobody makes others */
void fa_works_for(fa_caller *caller);     /* said by each worker of a region */
void fa_had_team(fa_caller *caller, int team, int held);
int fa_has_room(int team);                /* is it known that there are so many? */
void fa_promise(fa_caller *caller, int team); /* yes, until that region */
int fa_known_room(void);                  /* threads that there were, if fewer than were asked for; else many */
void fa_watch_threads(void);              /* call once */
void fa_room_forget(void);                /* in a forked child */

/* ---- forks (forks.c) ------------------------------------------------------------------------------------ */

void fa_watch_forks(void);      /* call once */
int fa_orphaned(void);          /* is this a forked child in which parallel regions would hang? */
void fa_begin_writing(void);    /* a fork waits until the end; nothing in between may need the GIL */
void fa_end_writing(void);
void fa_begin_alone(void);      /* what began writing before has ended; nothing begins until the end of this */
void fa_end_alone(void);

/* For a file that is mapped: whatever ends the process, what stands before is written before, what follows after. */
static inline void fa_mark(int64_t *where, int64_t value)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    __atomic_store_n(where, value, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* ---- one team for OpenBLAS and steps (blas.c, awake.c, callback.c, team.c) -------------------------------- */

/* OpenBLAS's gotoblas_pthread, which runs function(arguments + i * stride) for all i < count, and how many threads it
 * has. FA_MOST_LENT is what NumPy's wheels are built for. */
typedef struct {
    int (*run)(int count, void *(*function)(void *), void *arguments, int stride);
    int (*count)(void);
} fa_lender;
enum { FA_MOST_LENT = 64 };
typedef void (*fa_job)(int part, int parts, void *data);

/* The library must have been loaded before us (forks.c). Zeros: nobody lends any more. */
void fa_borrow_from(fa_lender lender, int only_if_ordered);
void fa_order_from_blas(int yes);                   /* steps take no other team, ours if nobody lends */
/* How many threads of OpenBLAS's team should a step of so many, or exactly so many, take that begins now? 0: none. */
int fa_blas_team(int team, int exactly, double now);
int fa_blas_room(int team); /* how many that team has, made if need be, for a step that orders so many; 0: takes others */
/* All parts at the same time, in as many as there are threads, or exactly so many. Returns their number. */
int fa_run_on_blas(fa_job job, void *data, int team, int exactly);
int fa_team_for_jobs(int count); /* as fa_blas_room, for a BLAS call */
void fa_blas_forget(void);                          /* in a forked child */

/* OpenBLAS's threads callback: run job(n, data + i * size, extra) for i = 0 .. count - 1, all at the same time, with a
 * number n of its own for each. */
typedef void (*fa_blas_job)(int number, void *data, int extra);
typedef void (*fa_blas_callback)(int sync, fa_blas_job job, int count, size_t size, void *data, int extra);
typedef void (*fa_blas_setter)(fa_blas_callback callback);

/* Let the OpenBLAS that this function belongs to run its jobs on the team of steps, or on its own threads again. It must
 * take as many numbers as FA_BLAS_NUMBERS (NumPy's and SciPy's wheels do), and have FA_MOST_CALLBACK threads at most. */
enum { FA_BLAS_NUMBERS = 64, FA_MOST_CALLBACK = FA_BLAS_NUMBERS / 2 };
void fa_share_with_blas(fa_blas_setter set, int share);
int fa_callback_room(int count);                    /* make threads for so many jobs; how many are there? */
void fa_callback_before_fork(void);                 /* when no job runs */

/* Our own team. */
enum { FA_MOST_WORKERS = 1024 };
int fa_team_run(fa_job job, void *data, int parts, int exactly);
int fa_team_make(int parts, int waits);             /* how many there are; 0: it is busy */
int fa_team_is_free(void);                          /* nobody is in fa_team_run */
double fa_now(void);                                /* seconds since some moment */
void fa_team_forget(void);                          /* in a forked child */

/* Whether they are awake without us; zeros at the start. */
typedef struct {
    int known;      /* could the clock be read? */
    int64_t whose;
    double seconds; /* of CPU time */
} fa_reading;
typedef struct {
    int phase;
    double until, term; /* of borrowing or resting */
    double seen;        /* when the clock was read last */
    fa_reading clock;   /* and what it said */
} fa_awake;
int fa_awake_is_due(const fa_awake *awake, double now); /* is it time to read the clock again? */
int fa_awake_borrows(const fa_awake *awake);            /* what was decided last */
int fa_awake_decide(fa_awake *awake, double now, fa_reading clock);
void fa_awake_rest(fa_awake *awake, double now);        /* nothing is known about who kept them awake until now */

/* ---- floating point (cpu.c) ----------------------------------------------------------------------------- */

/* The floating-point control state of the calling thread: round to nearest, subnormals kept, no traps.
 * Restoring brings back everything, sticky exception flags included. */
typedef struct { unsigned char opaque[64]; } fa_fp_state;
void fa_fp_default(fa_fp_state *saved);
void fa_fp_restore(const fa_fp_state *saved);

#endif
