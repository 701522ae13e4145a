# Mirrors csrc/fastadam.h, nothing else.
from libc.stdint cimport int64_t

cdef extern from "fastadam.h" nogil:
    ctypedef int fa_rule

    enum:
        FA_GRADIENT
        FA_SUMMED
        FA_CLIPPED
        FA_IN_PLACE
        FA_AVERAGE
        FA_SUM_SQUARES
        FA_SQUARES

    ctypedef enum fa_real:
        FA_FLOAT32
        FA_FLOAT64
        FA_REALS

    enum:
        FA_PARAM
        FA_GRAD
        FA_EMA
        FA_SUM
        FA_STATE
        FA_STATES
        FA_ARRAYS

    ctypedef struct fa_options:
        double lr, beta1, beta2, eps, weight_decay, eps_root
        double momentum, dampening, alpha, lr_decay, initial_accumulator_value, momentum_decay
        int decoupled_weight_decay, amsgrad, maximize, bias_correction, eps_hat, nesterov, centered

    ctypedef struct fa_factors:
        double product

    ctypedef struct fa_around:
        double s, mean, limit, decay, rest

    ctypedef struct fa_family:
        const char *name
        const char *state[3]

    const fa_family *fa_family_named(const char *name)
    fa_rule fa_rule_of(const fa_family *family, const fa_options *options)
    void fa_factors_at(const fa_family *family, int64_t step, const fa_options *options, double grad_scale,
                       double product, fa_factors *out)

    ctypedef struct fa_kernel:
        int states

    ctypedef enum fa_isa:
        FA_BASELINE
        FA_ISAS

    const fa_kernel *fa_kernel_of(fa_isa isa, fa_rule rule, fa_real real)
    const char *fa_isa_name(fa_isa isa)
    int fa_isa_available(fa_isa isa)

    ctypedef struct fa_task:
        const fa_kernel *kernel
        void *array[FA_ARRAYS]
        int64_t n
        const void *factors
        const fa_kernel *before
        const fa_kernel *after
        const fa_around *around

    ctypedef struct fa_tuner:
        pass

    enum:
        FA_TUNERS

    int fa_run(fa_task *tasks, int64_t count, int threads, int bound, fa_tuner *tuners)
    int fa_order(int threads)
    int fa_has_room(int team)
    int fa_known_room()
    int fa_ran_on_blas()
    int fa_has_openmp()
    int fa_max_threads()
    void fa_watch_forks()
    void fa_begin_writing()
    void fa_end_writing()
    void fa_mark(int64_t *where, int64_t value)

    ctypedef struct fa_lender:
        void *run       # functions that only C calls
        void *count

    void fa_borrow_from(fa_lender lender, int only_if_ordered)
    void fa_order_from_blas(int yes)

    ctypedef void *fa_blas_setter   # as above
    enum:
        FA_BLAS_NUMBERS
        FA_MOST_CALLBACK
    int fa_callback_room(int count)
    void fa_share_with_blas(fa_blas_setter set, int share)

    ctypedef struct fa_fp_state:
        pass

    void fa_fp_default(fa_fp_state *saved)
    void fa_fp_restore(const fa_fp_state *saved)
