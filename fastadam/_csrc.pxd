# What Cython uses of csrc/fastadam.h, nothing else.
from libc.stdint cimport int64_t, uint16_t, uint64_t, uintptr_t

cdef extern from "fastadam.h" nogil:
    ctypedef int fa_rule

    enum: FA_GRADIENT, FA_SUMMED, FA_IN_PLACE

    ctypedef enum fa_real: FA_FLOAT32, FA_FLOAT64, FA_REALS
    enum: FA_PARAM, FA_GRAD, FA_M, FA_V, FA_W, FA_EMA, FA_SUM, FA_VALUES, FA_LOW, FA_M_SCALE, FA_ARRAYS
    enum: FA_STATE, FA_STATES, FA_SQUARES, FA_MOST_THREADS

    ctypedef struct fa_options:     # what Cython names; fa_hypers has all
        double momentum, dampening, initial_accumulator_value
        int amsgrad, nesterov, centered, state_dtype, master_bits

    ctypedef enum fa_kind:
        FA_MAGNITUDE, FA_BETA, FA_BETAS, FA_FLAG, FA_FIXED_FLAG, FA_INITIAL, FA_STATE_DTYPE, FA_MASTER_BITS

    ctypedef struct fa_hyper:
        const char *name
        fa_kind kind
        size_t offset

    const fa_hyper *fa_hypers

    ctypedef struct fa_coefficients:
        double product

    ctypedef struct fa_wrap:
        double s, mean

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
    fa_isa chosen_isa "fa_chosen_isa"

    ctypedef enum fa_format: FA_PLAIN, FA_FLOAT16, FA_BFLOAT16, FA_SPLIT_32, FA_SPLIT_24
    enum: FA_GROUP, FA_LEAST_M, FA_LEAST_V, FA_ALL_BITS

    ctypedef struct fa_codec:
        void (*decode)(float *to, const void *codes, const void *second, int64_t n) noexcept nogil
        int64_t size, second_size, group

    ctypedef struct fa_formats:
        pass

    ctypedef enum fa_state_format: FA_STATE_PLAIN, FA_STATE_BFLOAT16, FA_STATE_8BIT

    const fa_codec *fa_codec_of(fa_isa isa, fa_format format)
    fa_formats fa_formats_for(fa_isa isa, const fa_family *family, fa_state_format state, int master_bits)
    int fa_second(int array)
    fa_format fa_format_for(fa_state_format state, int array)
    void fa_encode_array(fa_format format, const float *values, void *codes, void *second, int64_t n)
    int64_t fa_low_bits(fa_format format, const float *values, const uint16_t *upper, void *low, int64_t n)
    void fa_exchange(const fa_codec *codec, void *codes, void *second, float *others, int64_t n)

    ctypedef struct fa_task:
        const fa_kernel *kernel
        void *array[FA_ARRAYS]
        int64_t n
        const fa_rows *rows
        const void *coefficients
        const fa_codec *decode
        int64_t origin

    ctypedef struct fa_rows:
        int64_t width, count
        const fa_kernel *add

    enum: FA_MOST_BITS

    int64_t fa_rows_room(int64_t given)
    int fa_rows_bits(int64_t given, int64_t height)
    int64_t fa_rows_sort(fa_rows *rows, const void *list, int is_int64, int64_t given, int64_t height, uint64_t *work,
                         int64_t *bad)

    ctypedef struct fa_tuner:
        pass

    int fa_run(fa_task *tasks, int64_t count, int threads, int bound, fa_tuner *tuner)
    void fa_set_thread_bound(int most)
    int fa_thread_bound()
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
        uint64_t seed

    ctypedef struct fa_settings:
        int threads
        double max_norm, max_norm_each, max_value
        int nonfinite
        int64_t accumulate
        int average
        double ema_decay

    ctypedef struct fa_group:
        fa_options options, taken
        int stepped
        const fa_kernel *kernel[2]    # FA_REALS
        int state_dtype, master_bits
        fa_formats formats[2]
        int64_t count

    ctypedef struct fa_slot:
        void *place
        int64_t n, height, width
        fa_rows *rows
        fa_format format
        int coded
        fa_real real
        fa_group *group
        fa_record *record
        int active, steps

    ctypedef struct fa_call:
        const fa_family *family
        fa_isa isa
        fa_settings settings
        double scale
        int special, coded, blockwise
        fa_slot *slots
        fa_task *tasks
        fa_rows *rows
        int64_t count
        fa_wrap *wraps
        fa_coefficients *coefficients
        fa_task *squares
        double *sums
        double *scales

    void fa_build_tasks(const fa_call *call)
    void fa_build_wraps(fa_call *call)
    void fa_advance_counters(fa_call *call, double scale)
    int64_t fa_blocks_of_call(const fa_call *call)
    void fa_sum_squares(fa_call *call, int threads)
    double fa_add_squares(const fa_call *call)
    double fa_clipped(double scale, double max_norm, double norm)
    void fa_clip_each(const fa_call *call, double scale)

    ctypedef enum fa_anomaly: FA_FINITE, FA_NONFINITE, FA_OVERFLOWS, FA_NORM_OVERFLOWS

    fa_anomaly fa_find_anomaly(const fa_call *call, double norm, double scale, int64_t *which)

    ctypedef struct fa_range:
        uintptr_t begin, end
        int64_t slot
        int array

    const fa_range *fa_ranges_sort(fa_range *ranges, fa_range *room, int64_t count)
    const fa_range *fa_ranges_find(const fa_range *ranges, int64_t count, uintptr_t begin, uintptr_t end, int64_t *near)

    const void *fa_api_start(const char *version)
    int fa_adam_f32(int64_t n, float *param, const float *grad, float *m, float *v, int64_t step, double lr,
                    double beta1, double beta2, double eps, double weight_decay, int decoupled, int threads)
    int fa_adam_f64(int64_t n, double *param, const double *grad, double *m, double *v, int64_t step, double lr,
                    double beta1, double beta2, double eps, double weight_decay, int decoupled, int threads)

    ctypedef struct fa_fp_state:
        pass

    void fa_fp_default(fa_fp_state *saved)
    void fa_fp_restore(const fa_fp_state *saved)
