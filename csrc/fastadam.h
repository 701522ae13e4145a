/* The whole C interface of fastadam.
 *
 * The caller (fastadam/_core.pyx) has validated everything before it comes here. For every task:
 *   - array[FA_PARAM] and the state arrays hold n elements of the kernel's type, aligned, and overlap nothing
 *     but themselves, or are NULL where there is none; array[FA_GRAD] holds n elements, is only read, and overlaps
 *     nothing that is written;
 *   - kernel and coefficients belong to the same rule, and all arrays that it needs are there. (Where a gradient only
 *     joins a sum, array[FA_PARAM] is array[FA_SUM].)
 * In return nothing here allocates, fails or calls Python. (api.c has callers of its own, and may refuse them.) It keeps
 * no state but threads and what it knows of threads and forks. A step does with the threads that the system has. A BLAS
 * call on our threads cannot do with fewer than it asked for: if they cannot be made, it ends the process (team_shared.c).
 */
#ifndef FASTADAM_H
#define FASTADAM_H

#include "platform.h"

#include <stddef.h>
#include <stdint.h>

/* ---- rules (rules.inc) ---------------------------------------------------------------------------------- */

/* A rule is a loop and the flags that are constant in it. */
typedef int fa_rule;

enum { /* loops, each with 16 numbers: one for each combination of its flags */
    FA_ADAM = 0,
    FA_SGD = 16,
    FA_RMSPROP = 32,
    FA_NADAM = 48,
    FA_ADAMAX = 64,
    FA_ROW_ADAGRAD = 80,
    FA_RULES = 96,
    FA_GRADIENT = FA_RULES,       /* runs before a rule: makes the gradient that it takes */
    FA_AVERAGE = FA_GRADIENT + 16, /* runs after a rule: the moving average of the parameters */
    FA_SUM_SQUARES,               /* changes nothing: the sum of squares of each FA_SQUARES elements of the gradient */
    FA_ALL_RULES
};

enum { /* flags */
    FA_L2 = 1,        /* decay as part of the gradient */
    FA_DECOUPLED = 2, /* decay as a step of its own */
    FA_AMSGRAD = 4,   /* Adam */
    FA_MOMENTUM = 4,  /* SGD, RMSprop */
    FA_NESTEROV = 8,  /* SGD */
    FA_CENTERED = 8,  /* RMSprop */
    FA_SUMMED = 1,    /* gradient: added to the sum of pending ones */
    FA_CLIPPED = 2,   /* gradient: by value */
    FA_IN_PLACE = 4   /* gradient: the sum itself becomes the result */
};

enum { FA_SQUARES = 4096 }; /* squares in a block; the last one may be shorter */
static inline int64_t fa_blocks_in(int64_t n) { return n / FA_SQUARES + (n % FA_SQUARES != 0); }

typedef enum { FA_FLOAT32, FA_FLOAT64, FA_REALS } fa_real;

/* The order of a task's arrays. M, V and W are state: the family says what each holds (coefficients.c). EMA is the
 * moving average of the parameters, SUM the sum of pending gradients. Formats keep part of a number in a second array:
 * PARAM's low bits, and a scale for M, V and W. */
enum {
    FA_PARAM, FA_GRAD, FA_M, FA_V, FA_W, FA_EMA, FA_SUM, FA_VALUES,
    FA_LOW = FA_VALUES, FA_M_SCALE, FA_V_SCALE, FA_W_SCALE, FA_ARRAYS,
    FA_STATE = FA_M, FA_STATES = FA_ARRAYS - FA_STATE
};

/* ---- families of rules (coefficients.c) ---------------------------------------------------------------------- */

/* What the user chose: every hyper-parameter of every family. Those that C's callers choose come first (api.c). */
typedef struct {
    double lr, beta1, beta2, eps, weight_decay, eps_root;
    double momentum, dampening, alpha, lr_decay, momentum_decay;
    int decoupled_weight_decay, amsgrad, maximize, bias_correction, eps_hat, nesterov, centered;
    int state_dtype; /* a fa_state_format */
    int master_bits; /* of bfloat16 parameters; 0: the default */
    double initial_accumulator_value;
} fa_options;

/* What the loops read: the same for all parameters of a group with the same counter. Kernels round each to their
 * element type, once. */
typedef struct {
    double s;                    /* multiplies the gradient */
    double wd, d;                /* L2: g += wd*p; decoupled: p *= d */
    double b1, c1, b2, c2;       /* averages: m = b1*m + c1*g, v = b2*v + c2*g*g */
    double step_size, inv_bc2;   /* learning rate and bias corrections */
    double eps_root, eps;
    double grad_size;            /* NAdam: multiplies the gradient in the step */
    double product;              /* NAdam: of the momenta of all steps, this one included */
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
    FA_FIXED_FLAG, /* needs state, so it is chosen when the group is made */
    FA_INITIAL,    /* a magnitude that only the first state depends on: no schedule */
    FA_STATE_DTYPE, /* a name; chosen when the group is made */
    FA_MASTER_BITS  /* None, 32 or 24; the same */
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
    int (*flags)(const fa_options *options);                      /* of the loop, or NULL: none but decay's */
    void (*coefficients)(int64_t step, const fa_options *options, fa_coefficients *f); /* or NULL: common ones do */
} fa_family;

const fa_family *fa_family_named(const char *name);               /* or NULL */
fa_rule fa_rule_of(const fa_family *family, const fa_options *options);

/* `product` is the one after the step before, 1 at the start. */
double fa_scale_for(const fa_options *options, double grad_scale); /* negated by maximize */
void fa_coefficients_at(const fa_family *family, int64_t step, const fa_options *options, double grad_scale, double product,
                        fa_coefficients *out);

/* ---- kernels and instruction sets (kernels.c, cpu.c) ---------------------------------------------------- */

typedef struct fa_task fa_task;

typedef struct {
    void (*run)(const fa_task *task, int64_t begin, int64_t end); /* updates elements [begin, end) */
    int64_t line;                                                 /* elements in a cache line of parameters */
    int states;                                                   /* the state arrays that it needs: 1 M + 2 V + 4 W */
    int64_t size;                                                 /* bytes of an element */
    /* Where squares are summed, else NULL: add those of elements [begin, end) of the gradient to 16 sums in turn. */
    void (*add_squares)(const fa_task *task, int64_t begin, int64_t end, double *sums);
    /* If V is one number for each row, else NULL: add to this row's the mean of its squares. Then run it. */
    void (*add_mean)(const fa_task *task, double mean);
} fa_kernel;

typedef enum { FA_BASELINE, FA_AVX2, FA_AVX512, FA_ISAS } fa_isa;

const fa_kernel *fa_kernel_of(fa_isa isa, fa_rule rule, fa_real real);

const char *fa_isa_name(fa_isa isa);
int fa_isa_available(fa_isa isa); /* compiled in, and this CPU and operating system have it */
extern fa_isa fa_chosen_isa;      /* what callers should take */

/* ---- formats (formats.c) --------------------------------------------------------------------------------------- */

/* How numbers are stored that a rule has as float32. M and V are for state: what may be negative, and what may not. */
typedef enum {
    FA_PLAIN, /* as they are */
    FA_FLOAT16, FA_BFLOAT16, /* gradients */
    FA_BFLOAT16_M, FA_BFLOAT16_V, FA_8BIT_M, FA_8BIT_V, FA_SPLIT_32, FA_SPLIT_24, FA_FORMATS
} fa_format;

/* Random bits are of blocks of so many elements, counted from an array's start; 8-bit numbers, of groups with one scale,
 * which is at least this. */
enum { FA_CODED = 512, FA_GROUP = 32, FA_LEAST_M = 16, FA_LEAST_V = 32 };

typedef struct {
    void (*decode)(float *to, const void *codes, const void *second, int64_t n);
    /* With 16 random bits for each. NULL: it is only read. */
    void (*encode)(const float *from, void *codes, void *second, int64_t n, const uint16_t *random);
    int64_t size, second_size, group; /* bytes of a code; of an element of the second array, and how many share it */
} fa_codec;

typedef void (*fa_random)(uint16_t *random, uint32_t key, int begin, int n);

/* Of a task's arrays, by their places; NULL: plain. */
typedef struct {
    const fa_codec *of[FA_VALUES];
    fa_random random; /* or NULL: none of them needs it */
} fa_formats;

typedef enum { FA_STATE_PLAIN, FA_STATE_BFLOAT16, FA_STATE_8BIT } fa_state_format;

enum { FA_ALL_BITS = 32 }; /* of the parameters that bfloat16 ones stand for */

const fa_codec *fa_codec_of(fa_isa isa, fa_format format);
fa_formats fa_formats_for(fa_isa isa, const fa_family *family, fa_state_format state, int master_bits);

static inline int fa_second(int array) /* the place of its second array */
{
    return array == FA_PARAM ? FA_LOW : FA_M_SCALE + array - FA_M;
}

/* The random bits of n elements from `first` of an array, all of them in one block, in a step. */
uint64_t fa_seed_of_step(uint64_t seed, int64_t step);
void fa_random_bits(fa_random random, uint64_t seed_of_step, int64_t first, int64_t n, uint16_t *bits);

/* Between steps: n numbers, from the start of an array. Encoding is to nearest. */
fa_format fa_format_for(fa_state_format state, int array); /* of M, V or W */
void fa_encode_array(fa_format format, const float *from, void *codes, void *second, int64_t n);
/* The low bits of numbers whose upper ones are there already; returns -1, or the first place where those are of another. */
int64_t fa_low_bits(fa_format format, const float *from, const uint16_t *upper, void *low, int64_t n);
void fa_exchange(const fa_codec *codec, void *codes, void *second, float *others, int64_t n);

/* ---- rows of a table (rows.c) ---------------------------------------------------------------------------- */

/* The rows that a task updates, ascending. array[FA_GRAD] of the task holds one row for each that was given. */
typedef struct {
    int64_t width;           /* elements of a row */
    int64_t count;           /* distinct rows */
    const uint64_t *order;   /* each row that was given, and its place among them, sorted: row << shift | place */
    const int64_t *start;    /* where in `order` each distinct row begins; start[count] is its end */
    int shift;
    const fa_kernel *add;    /* array[FA_PARAM] += array[FA_GRAD] */
} fa_rows;                   /* order is NULL: all rows of the table, whose gradient is one as large */

/* Reads `given` rows of a table, each of them once, and sorts them in `work`, of fa_rows_room(given) words. Returns -1,
 * or the first place whose row is not from 0 to height - 1, and that row. */
enum { FA_MOST_BITS = 63 }; /* of a row and a place together */
int64_t fa_rows_room(int64_t given);
int fa_rows_bits(int64_t given, int64_t height);
int64_t fa_rows_sort(fa_rows *rows, const void *list, int is_int64, int64_t given, int64_t height, uint64_t *work,
                     int64_t *bad);

void fa_run_rows(const fa_task *task, int64_t begin, int64_t end); /* the rows that begin in [begin, end) */

/* ---- the driver (driver.c) ------------------------------------------------------------------------------ */

struct fa_task {
    const fa_kernel *kernel;
    void *array[FA_ARRAYS];
    int64_t n;                /* elements; of rows, those of all that it updates */
    const fa_rows *rows;      /* or NULL: the whole array */
    const void *coefficients; /* fa_coefficients; fa_wrap for loops before and after; FA_SUM_SQUARES: where sums go */
    const fa_kernel *before, *after; /* loops that run block by block with the rule, or NULL */
    const fa_wrap *wrap;
    const fa_codec *decode;    /* of the gradient, or NULL */
    const fa_formats *formats; /* of the other arrays, or NULL: all are plain */
    uint64_t seed;             /* of random bits, in this step */
    int64_t origin;            /* which element of the whole array is the first one here */
    int64_t first; /* the driver's own: cache lines in the tasks before this one */
};

/* What an optimizer has measured of numbers of threads (tuner.c); zeros at the start. */
enum { FA_TUNER_TRIES = 8 };
typedef struct {
    int64_t lines;                     /* the work that was measured, in cache lines */
    const void *team;                  /* whose threads did it */
    int most, best;                    /* threads: the bound; the best so far */
    int candidates[3], count;          /* threads on trial; count is 0 between trials */
    int candidate, tried;
    int others, is_other;              /* steps of other work, less those of this; was the last step other work? */
    int rest, rested, slow;            /* steps between trials; since the last trial; slow ones in a row */
    double started, usual;             /* seconds: when the last step began; how long a step takes */
    double own[3][FA_TUNER_TRIES], period[3][FA_TUNER_TRIES];
} fa_tuner;

/* The number of threads for a step that begins now, between 1 and most; `start` is the first guess. */
int fa_tuner_next(fa_tuner *tuner, int64_t lines, const void *team, int start, int most, double now);
void fa_tuner_done(fa_tuner *tuner, double now);

/* Run all tasks, on one team of threads, and return how many it had. threads > 0 is an order: exactly min(threads,
 * cache lines), or as many as the system has. threads == 0: at most bound, and no more than have enough to do; the
 * tuner, if there is one, measures which number is best. Inside a parallel region, and in a forked child without its
 * threads, it is always 1. Call it between fa_gate_enter and fa_gate_leave. */
int fa_run(fa_task *tasks, int64_t count, int threads, int bound, fa_tuner *tuner);
int fa_guess(int64_t lines, int bound); /* how many it would take without an order and a tuner, for so much work */
enum { FA_MOST_THREADS = 1024 }; /* of a step */
int fa_order(int threads);      /* how many threads would such an order get? It may ask the system */
/* The bound that callers should pass: what Python sets for all threads. */
void fa_set_thread_bound(int most);
int fa_thread_bound(void);
const char *fa_steps_on(void);  /* whose threads took the last step of several threads: "OpenMP" or "fastadam" */

/* Update elements [begin, end) of one task with its kernel (blocks.c). */
void fa_run_range(const fa_task *task, int64_t begin, int64_t end);

/* Gradients that must be made first, piece by piece (gradients.c): the n elements from `at` of a row's, the sum of all
 * that were given for it; one block's sum of squares. `rows` may be NULL: of the whole array. */
enum { FA_PIECE = 2048 }; /* bytes */
fa_task fa_piece_of(const fa_task *task, int64_t at, int64_t n);
void fa_run_before(const fa_task *task, void *made, int64_t n);
const void *fa_row_gradient(const fa_task *task, const fa_rows *rows, int64_t j, const void *grads, int64_t at, int64_t n,
                            void *block);
double fa_block_squares(const fa_task *task, const fa_rows *rows, int64_t j, const void *grads, int64_t begin,
                        int64_t end, int64_t last);
void fa_wrapped_squares(const fa_task *task, int64_t begin, int64_t end);

/* Bytes of an element of the gradient, as it was given. */
static inline int64_t fa_grad_size(const fa_task *t)
{
    return t->decode ? t->decode->size : t->kernel->size;
}

/* The format of an array, or NULL; bytes of an element. */
static inline const fa_codec *fa_format_of(const fa_task *t, int array)
{
    return t->formats ? t->formats->of[array] : NULL;
}

static inline int64_t fa_size_of(const fa_task *t, int array)
{
    const fa_codec *codec = fa_format_of(t, array);
    return array == FA_GRAD ? fa_grad_size(t) : codec ? codec->size : t->kernel->size;
}

/* Of the i-th in their order, from its element `at`. */
static inline const char *fa_given_gradient(const fa_rows *r, int64_t i, const void *grads, int64_t size, int64_t at)
{
    int64_t place = (int64_t)(r->order[i] & (((uint64_t)1 << r->shift) - 1));
    return (const char *)grads + (place * r->width + at) * size;
}

static inline __attribute__((always_inline)) double fa_in_pairs(double *sums) /* the total of 16 */
{
    for (int half = 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            sums[j] += sums[j + half];
    return sums[0];
}

void fa_start(void);            /* call once, before all else here */

/* ---- OpenMP's team (team_openmp.c, room.c) -------------------------------------------------------------- */

int fa_has_openmp(void);
int fa_max_threads(void);       /* what the OpenMP runtime would give the calling thread; 1 without OpenMP */
int fa_has_room(int team);      /* is it known, without asking the system, that there are so many? */
int fa_known_room(void);        /* threads that there were, if fewer than were asked for; else many */

/* ---- a step of many parameters (step.c, norm.c) ----------------------------------------------------------- */

/* The counters of a parameter, in memory or in a state file. */
typedef struct {
    int64_t step;
    double product;  /* NAdam's */
    int64_t pending; /* gradients in its sum */
    uint64_t seed;   /* of random bits */
} fa_record;
_Static_assert(sizeof(fa_record) == 32, "fastadam/_layout.py: RECORD");

/* What an optimizer does before and after its rule. */
typedef struct {
    int threads;                /* 0: chosen by measuring */
    double max_norm, max_norm_each, max_value; /* infinity: no clipping */
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
    int state_dtype, master_bits;      /* as in the options, when it was made */
    fa_formats formats[2];             /* of plain parameters; of bfloat16 ones */
    int64_t count;                     /* its largest step counter */
    int64_t call;                      /* the last call of step that it took part in */
    fa_coefficients *coefficients;     /* the last made in it, for this counter and product: */
    int64_t step;
    double product;
} fa_group;

/* A parameter. */
typedef struct {
    void *place; /* its address, when last read */
    int64_t n;
    int64_t height, width; /* the length of its first axis, and elements of each row */
    fa_rows *rows;         /* that appear in this call, if they were given; or NULL */
    fa_format format;      /* of its gradient in this call */
    int coded;             /* some of its arrays are: 1 with a plain parameter, 2 with a bfloat16 one; else 0 */
    fa_real real;
    fa_group *group;
    fa_record *record;
    int active; /* has a gradient in this call */
    int steps;  /* takes a step in this call; else the gradient joins its sum */
} fa_slot;

/* A call of step: of all parameters, or of one. */
typedef struct {
    const fa_family *family;
    fa_isa isa;
    fa_settings settings;
    double scale;   /* grad_scale */
    int special;    /* some gradient is of rows, or in another format; else tasks have neither rows nor decode */
    int coded;      /* some slot is */
    int blockwise;  /* sums of gradients, or clipping by value: block by block, before the rule */
    int64_t number; /* counts calls */
    fa_slot *slots; /* the parameters of this call */
    fa_task *tasks; /* one for each slot; n is 0 if it has nothing to do */
    fa_rows *rows;  /* room for one a slot */
    int64_t count;                 /* of slots */
    fa_wrap *wraps;                /* room for one a slot */
    fa_coefficients *coefficients; /* as many */
    fa_task *squares;              /* tasks that sum the squares of the gradients */
    double *sums;                  /* of squares, one for each block */
    double *scales;                /* with max_norm_each, one for each slot, else NULL: what its gradient is multiplied by */
} fa_call;

void fa_build_tasks(const fa_call *call);
void fa_build_wraps(fa_call *call); /* the same for neighbours with as many pending gradients */
void fa_advance_counters(fa_call *call, double scale); /* and make coefficients for each group, counter, product, scale */

/* The norm takes two calls: the sum of squares of each block, and their total in a fixed order, so that threads do not
 * matter. */
int64_t fa_blocks_of_call(const fa_call *call);
void fa_sum_squares(fa_call *call, int threads);
double fa_add_squares(const fa_call *call);

/* Then: times min(1, max_norm / (norm + 1e-6)), as torch has it; NaN if the norm is. The same for each slot alone. */
double fa_clipped(double scale, double max_norm, double norm);
void fa_clip_each(const fa_call *call, double scale);

/* Then: which is the first parameter with NaN or infinity in its gradient, or in the sum or scaled gradient made of it?
 * If there is none, but the norm to clip by is infinite, the one with the largest gradient. */
typedef enum { FA_FINITE, FA_NONFINITE, FA_OVERFLOWS, FA_NORM_OVERFLOWS } fa_anomaly;
fa_anomaly fa_find_anomaly(const fa_call *call, double norm, double scale, int64_t *which);

/* ---- memory that is written (ranges.c) ------------------------------------------------------------------ */

typedef struct {
    uintptr_t begin, end;
    int64_t slot;
    int array;
} fa_range;

/* Sort, with room for as many; the first range that overlaps the next one, or NULL. */
const fa_range *fa_ranges_sort(fa_range *ranges, fa_range *room, int64_t count);
/* The first of sorted, disjoint ranges that shares a byte with [begin, end), or NULL. `near`, 0 to count, is where to look
 * first, and then where it was: arrays that were made one after the other lie between the same two ranges. */
const fa_range *fa_ranges_find(const fa_range *ranges, int64_t count, uintptr_t begin, uintptr_t end, int64_t *near);

/* ---- forks (fork.c) ------------------------------------------------------------------------------------- */

int fa_process(void);           /* a number that a forked child does not share with its parent */
void fa_gate_enter(void);       /* a fork waits until all have left; nothing in between may need the GIL */
void fa_gate_leave(void);
void fa_gate_lock(void);        /* all have left; nobody enters until it is unlocked */
void fa_gate_unlock(void);

/* Write into a mapped file, after every write before this call and before every write after it. */
static inline void fa_mark(int64_t *where, int64_t value)
{
    fa_fence();
    fa_store(where, value);
    fa_fence();
}

/* ---- one team for OpenBLAS and steps (team_shared.c, without which a build works) ------------------------ */

#if FA_POSIX && __has_include("team_shared.c")
#define FA_SHARED_TEAM 1
#else
#define FA_SHARED_TEAM 0
#endif

/* OpenBLAS's threads callback: run job(n, data + i * size, extra) for i = 0 .. count - 1, all at the same time. Each
 * has a number n of its own. */
typedef void (*fa_blas_job)(int number, void *data, int extra);
typedef void (*fa_blas_callback)(int sync, fa_blas_job job, int count, size_t size, void *data, int extra);
typedef void (*fa_blas_setter)(fa_blas_callback callback);

/* An OpenBLAS must allow FA_BLAS_NUMBERS numbers, as NumPy's and SciPy's wheels do, and have FA_MOST_CALLBACK threads
 * at most. */
enum { FA_BLAS_NUMBERS = 64, FA_MOST_CALLBACK = FA_BLAS_NUMBERS / 2 };

#if FA_SHARED_TEAM
void fa_share_start(void);          /* call once, after fa_start */
void fa_share_steps(int yes);       /* steps run on our own threads; or no longer */
void fa_share_with_blas(fa_blas_setter set, int yes); /* so do the jobs of the OpenBLAS whose setter this is */
int fa_share_room(int count);       /* make threads for so many jobs; how many are there? */
#else
static inline void fa_share_start(void) {}
static inline void fa_share_steps(int yes) { (void)yes; }
static inline void fa_share_with_blas(fa_blas_setter set, int yes) { (void)set, (void)yes; }
static inline int fa_share_room(int count) { (void)count; return 1; }
#endif

/* ---- for other people's extensions (api.c) -------------------------------------------------------------------- */

/* The table of fastadam/include/fastadam_api.h. Call it once; the version must stay. */
const void *fa_api_start(const char *version);
/* One step of Adam for callers that have no structs; decoupled, threads and the result are as in the table. */
int fa_adam_f32(int64_t n, float *param, const float *grad, float *m, float *v, int64_t step, double lr, double beta1,
                double beta2, double eps, double weight_decay, int decoupled, int threads);
int fa_adam_f64(int64_t n, double *param, const double *grad, double *m, double *v, int64_t step, double lr, double beta1,
                double beta2, double eps, double weight_decay, int decoupled, int threads);

/* ---- floating point (cpu.c) ----------------------------------------------------------------------------- */

/* The floating-point control state of the calling thread: round to nearest, subnormals kept, no traps.
 * Restoring brings back everything, sticky exception flags included. */
void fa_fp_default(fa_fp_state *saved);
void fa_fp_restore(const fa_fp_state *saved);

#endif
