/* fastadam's public C interface, ABI 1: steps of float32 and float64 arrays, without Python and without NumPy.
 *
 * An extension gets the table with fastadam_import() of fastadam_import.h, or from Cython with `cimport fastadam`.
 * docs/c-interface.md has a complete program for each. Every function may be called from any thread, with or without
 * the GIL, and leaves the floating-point environment as it was. A fork waits until it has returned.
 *
 * This table and fastadam_options only ever grow at their ends, and the table whenever the options do, so that
 * fastadam_import() notices both. Any other change is another ABI, in a capsule of another name. */
#ifndef FASTADAM_API_H
#define FASTADAM_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FASTADAM_ABI 1
#define FASTADAM_CAPSULE "fastadam._core._C_API"

/* Why a call was refused. Nothing has changed then. `explain` of the table has a sentence for each. */
enum {
    FASTADAM_BAD_CLASS = -1,
    FASTADAM_BAD_OPTIONS = -2,
    FASTADAM_BAD_VALUE = -3,
    FASTADAM_BAD_COUNT = -4,
    FASTADAM_BAD_SCALE = -5,
    FASTADAM_BAD_THREADS = -6,
    FASTADAM_BAD_DTYPE = -7,
    FASTADAM_BAD_LENGTH = -8,
    FASTADAM_BAD_STEP = -9,
    FASTADAM_BAD_PRODUCT = -10,
    FASTADAM_NULL_ARRAY = -11,
    FASTADAM_NOT_ALIGNED = -12,
    FASTADAM_UNUSED_STATE = -13,
    FASTADAM_NO_MEMORY = -14
};

enum { FASTADAM_FLOAT32 = 32, FASTADAM_FLOAT64 = 64 };

/* The hyper-parameters of a class of fastadam, by their names there; betas are beta1 and beta2. `options` of the table
 * fills it. Then change what you like. What the class does not have stays 0. AdamW without decoupled_weight_decay is
 * Adam. */
typedef struct {
    size_t size; /* set by options(): how much of this struct its caller knows */
    double lr, beta1, beta2, eps, weight_decay, eps_root;
    double momentum, dampening, alpha, lr_decay, momentum_decay;
    int32_t decoupled_weight_decay, amsgrad, maximize, bias_correction, eps_hat, nesterov, centered; /* 0 or 1 */
    int32_t rule; /* set by options(): which class */
} fastadam_options;

/* A parameter and its state: n elements each, aligned, in the same order. They must not overlap, which nobody checks.
 * If n is 0, they may be NULL.
 *
 * State is zeros before the first step; Adagrad's may be any number >= 0. Its places:
 *     Adam, AdamW, NAdam, RAdam   exp_avg, exp_avg_sq, max_exp_avg_sq
 *     Adamax                      exp_avg, exp_inf, -
 *     RMSprop                     grad_avg, square_avg, momentum_buffer
 *     Adagrad                     -, sum, -
 *     SGD                         momentum_buffer, -, -
 * `states` of the table says which ones these options need. The others must be NULL. */
typedef struct {
    void *param;      /* updated */
    const void *grad; /* only read */
    void *state[3];   /* updated */
    int64_t n;
    int32_t dtype;    /* FASTADAM_FLOAT32 or FASTADAM_FLOAT64: of all of them */
    int64_t step;     /* the number of this step, from 1 */
    double product;   /* NAdam's, updated: 1 before the first step. No other class looks at it */
} fastadam_array;

typedef struct {
    uint32_t abi;        /* FASTADAM_ABI */
    uint32_t size;       /* of this table, as the library has it: with the functions that were added */
    const char *version; /* of the package */

    /* The defaults of a class: "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SGD", "RMSprop" or "Adagrad". `size` is
     * sizeof(fastadam_options). Returns 0, or an error. */
    int (*options)(const char *name, fastadam_options *out, size_t size);

    /* Which places of state they need: 1 for state[0], 2 for state[1], 4 for state[2], added. Or an error. */
    int (*states)(const fastadam_options *options);

    /* One step of each array, all of them in one parallel pass; the bits are those of the class in Python. Gradients are
     * multiplied by grad_scale. threads is an order for exactly so many, 1 to 1024 (at most one for each cache line); 0
     * takes a thread for each 8 MiB of parameters (128 KiB while fastadam.share_threads_with_blas() is on), within the
     * bounds that Python's steps have.
     *
     * Returns how many threads it took, or an error. An array may be in one call at a time. More than 32 arrays need
     * memory, of which there may be none. */
    int (*update)(const fastadam_options *options, fastadam_array *arrays, int64_t count, double grad_scale,
                  int threads);

    /* The sum of the squares of all gradients, in float64. Its root has the bits of fastadam.reference.grad_norm. Reads
     * grad, n and dtype of each array, and returns as update does. */
    int (*sum_squares)(const fastadam_array *arrays, int64_t count, int threads, double *out);

    const char *(*explain)(int error); /* what is wrong, and what is allowed; never NULL */
} fastadam_api;

#ifdef __cplusplus
}
#endif
#endif
