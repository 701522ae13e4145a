# cimport fastadam: the C interface (include/fastadam_api.h says what each is). Compile with fastadam.get_include().
from libc.stdint cimport int32_t, int64_t, uint32_t

cdef extern from "fastadam_import.h" nogil:
    enum: FASTADAM_ABI, FASTADAM_FLOAT32, FASTADAM_FLOAT64
    enum: FASTADAM_BAD_CLASS, FASTADAM_BAD_OPTIONS, FASTADAM_BAD_VALUE, FASTADAM_BAD_COUNT, FASTADAM_BAD_SCALE
    enum: FASTADAM_BAD_THREADS, FASTADAM_BAD_DTYPE, FASTADAM_BAD_LENGTH, FASTADAM_BAD_STEP, FASTADAM_BAD_PRODUCT
    enum: FASTADAM_NULL_ARRAY, FASTADAM_NOT_ALIGNED, FASTADAM_UNUSED_STATE, FASTADAM_NO_MEMORY

    ctypedef struct fastadam_options:
        size_t size
        double lr, beta1, beta2, eps, weight_decay, eps_root
        double momentum, dampening, alpha, lr_decay, momentum_decay
        int32_t decoupled_weight_decay, amsgrad, maximize, bias_correction, eps_hat, nesterov, centered
        int32_t rule

    ctypedef struct fastadam_array:
        void *param
        const void *grad
        void *state[3]
        int64_t n
        int32_t dtype
        int64_t step
        double product

    ctypedef struct fastadam_api:
        uint32_t abi, size
        const char *version
        int (*options)(const char *name, fastadam_options *out, size_t size) noexcept nogil
        int (*states)(const fastadam_options *options) noexcept nogil
        int (*update)(const fastadam_options *options, fastadam_array *arrays, int64_t count, double grad_scale,
                      int threads) noexcept nogil
        int (*sum_squares)(const fastadam_array *arrays, int64_t count, int threads, double *out) noexcept nogil
        const char *(*explain)(int error) noexcept nogil

    const fastadam_api *fastadam_import() except NULL with gil
