# Mirrors csrc/fastadam.h, nothing else.
from libc.stdint cimport int64_t

cdef extern from "fastadam.h" nogil:
    ctypedef enum fa_rule:
        FA_SUM_SQUARES

    enum:
        FA_SQUARES

    ctypedef enum fa_real:
        FA_FLOAT32
        FA_FLOAT64
        FA_REALS

    enum:
        FA_PARAM
        FA_GRAD
        FA_STATE
        FA_ARRAYS

    ctypedef struct fa_adam_options:
        double lr, beta1, beta2, eps, weight_decay, eps_root
        int decoupled, amsgrad, maximize, bias_correction, eps_hat

    ctypedef struct fa_adam_factors:
        pass

    fa_rule fa_adam_rule(const fa_adam_options *options)
    void fa_adam_factors_at(int64_t step, const fa_adam_options *options, double grad_scale, fa_adam_factors *out)

    ctypedef struct fa_kernel:
        pass

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

    ctypedef struct fa_tuner:
        pass

    int fa_run(fa_task *tasks, int64_t count, int threads, int bound, fa_tuner *tuner)
    int fa_has_openmp()
    int fa_max_threads()
    void fa_watch_forks()
    void fa_begin_writing()
    void fa_end_writing()

    ctypedef void *fa_blas_setter   # a function that only C calls
    void fa_share_with_blas(fa_blas_setter set, int share)

    ctypedef struct fa_fp_state:
        pass

    void fa_fp_default(fa_fp_state *saved)
    void fa_fp_restore(const fa_fp_state *saved)
