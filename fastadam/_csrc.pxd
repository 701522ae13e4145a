# Mirrors csrc/fastadam.h, nothing else.
from libc.stdint cimport int64_t, uint64_t, uintptr_t

cdef extern from "fastadam.h" nogil:
    ctypedef int fa_rule

    enum: FA_GRADIENT

    ctypedef enum fa_real: FA_FLOAT32, FA_FLOAT64, FA_REALS
    ctypedef enum fa_format: FA_PLAIN, FA_FLOAT16, FA_BFLOAT16
    enum: FA_DECODE
    enum: FA_PARAM, FA_GRAD, FA_V, FA_EMA, FA_SUM, FA_STATE, FA_STATES, FA_ARRAYS

    ctypedef struct fa_options:     # what Cython names; fa_hypers has all
        double lr, beta1, beta2, eps, weight_decay, eps_root, dampening, initial_accumulator_value
        int decoupled_weight_decay, amsgrad, maximize, bias_correction, eps_hat, nesterov, centered

    ctypedef enum fa_kind: FA_MAGNITUDE, FA_BETA, FA_BETAS, FA_FLAG, FA_FIXED_FLAG, FA_INITIAL

    ctypedef struct fa_hyper:
        const char *name
        fa_kind kind
        size_t offset

    const fa_hyper *fa_hypers

    ctypedef struct fa_coefficients:
        pass

    ctypedef struct fa_wrap:
        pass

    ctypedef struct fa_family:
        const char *name
        const char *state[3]
        fa_rule loop

    const fa_family *fa_family_named(const char *name)
    fa_rule fa_rule_of(const fa_family *family, const fa_options *options)
    void fa_coefficients_at(const fa_family *family, int64_t step, const fa_options *options, double grad_scale,
                            double product, fa_coefficients *out)

    ctypedef struct fa_task

    ctypedef struct fa_kernel:
        int states
        void (*add_mean)(const fa_task *task, double mean) noexcept

    ctypedef enum fa_isa: FA_BASELINE, FA_ISAS

    const fa_kernel *fa_kernel_of(fa_isa isa, fa_rule rule, fa_real real)
    const char *fa_isa_name(fa_isa isa)
    int fa_isa_available(fa_isa isa)

    ctypedef struct fa_task:
        const fa_kernel *kernel
        void *array[FA_ARRAYS]
        int64_t n
        const fa_rows *rows
        const fa_kernel *decode
        const void *coefficients

    ctypedef struct fa_rows:
        int64_t width, count
        const fa_kernel *add

    enum: FA_MOST_BITS, FA_SUMMED, FA_IN_PLACE

    int64_t fa_rows_room(int64_t given)
    int fa_rows_bits(int64_t given, int64_t height)
    int64_t fa_rows_sort(fa_rows *rows, const void *list, int is_int64, int64_t given, int64_t height, uint64_t *work,
                         int64_t *bad)

    ctypedef struct fa_tuner:
        pass

    int fa_run(fa_task *tasks, int64_t count, int threads, int bound, fa_tuner *tuner)
    int fa_order(int threads)
    int fa_has_room(int team)
    int fa_known_room()
    const char *fa_steps_on()
    int fa_has_openmp()
    int fa_max_threads()
    void fa_start()
    void fa_gate_enter()
    void fa_gate_leave()
    void fa_mark(int64_t *where, int64_t value)

    enum: FA_SHARED_TEAM, FA_BLAS_NUMBERS, FA_MOST_CALLBACK
    ctypedef void *fa_blas_setter   # a function that only C calls
    void fa_share_start()
    void fa_share_steps(int yes)
    void fa_share_with_blas(fa_blas_setter set, int yes)
    int fa_share_room(int count)

    void prefetch "fa_prefetch" (const void *address)
    int getpid "fa_process" ()

    ctypedef struct fa_record:
        int64_t step
        double product
        int64_t pending

    ctypedef struct fa_settings:
        int threads
        double max_norm, max_value
        int nonfinite
        int64_t accumulate
        int average
        double ema_decay

    ctypedef struct fa_group:
        fa_options options, taken
        int stepped
        const fa_kernel *kernel[2]    # FA_REALS
        int64_t count

    ctypedef struct fa_slot:
        void *place
        int64_t n, height, width
        fa_rows *rows
        fa_format format
        fa_real real
        fa_group *group
        fa_record *record
        int active, steps

    ctypedef struct fa_call:
        const fa_family *family
        fa_isa isa
        fa_settings settings
        double scale
        int special, blockwise
        fa_slot *slots
        fa_task *tasks
        fa_rows *rows
        int64_t count
        fa_wrap *wraps
        fa_coefficients *coefficients
        fa_task *squares
        double *sums

    void fa_build_tasks(const fa_call *call)
    void fa_build_wraps(fa_call *call)
    void fa_advance_counters(fa_call *call, double scale)
    int64_t fa_blocks_of_call(const fa_call *call)
    void fa_sum_squares(fa_call *call, int threads)
    double fa_add_squares(const fa_call *call)

    ctypedef enum fa_anomaly: FA_FINITE, FA_NONFINITE, FA_OVERFLOWS, FA_NORM_OVERFLOWS

    fa_anomaly fa_find_anomaly(const fa_call *call, int norm_counts, double scale, int64_t *which)

    ctypedef struct fa_range:
        uintptr_t begin, end
        int64_t slot
        int array

    const fa_range *fa_ranges_sort(fa_range *ranges, int64_t count)
    const fa_range *fa_ranges_find(const fa_range *ranges, int64_t count, uintptr_t begin, uintptr_t end)

    ctypedef struct fa_fp_state:
        pass

    void fa_fp_default(fa_fp_state *saved)
    void fa_fp_restore(const fa_fp_state *saved)
