/* rules x element type x instruction set, by inclusion, and the table that names them.
 *
 * Instruction sets are attributes of single functions, so one ordinary compilation makes them all and the rest
 * of the extension runs on any CPU of the architecture. */
#include <float.h>
#include <math.h>
#include <string.h>
#include "fastadam.h"

enum { BLOCK = 1024 }; /* elements between two looks at the processor's underflow flag */

/* Has a result been subnormal, in this thread, since the share began or this was forgotten? */
#if defined(__x86_64__)
#include <xmmintrin.h>
static inline int underflowed(void)
{
    return (_mm_getcsr() & _MM_EXCEPT_UNDERFLOW) != 0;
}

static inline void forget_underflow(void)
{
    _mm_setcsr(_mm_getcsr() & ~(unsigned)_MM_EXCEPT_UNDERFLOW);
}
#else /* subnormal numbers are as fast as others */
static inline int underflowed(void)
{
    return 0;
}

static inline void forget_underflow(void)
{
}
#endif

#define PASTE_(a, b, c) a##_##b##_##c
#define PASTE(a, b, c) PASTE_(a, b, c)
#define NAME(x) PASTE(x, REAL_NAME, ISA_NAME)

#define ISA_NAME baseline
#define TARGET
#include "reals.inc"
#undef ISA_NAME
#undef TARGET

#if defined(__x86_64__)
#define ISA_NAME avx2
#define TARGET __attribute__((target("avx2")))
#include "reals.inc"
#undef ISA_NAME
#undef TARGET

#define ISA_NAME avx512
#if defined(__clang__)
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl")))
#else /* gcc's generic tuning would use only half of each register */
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#include "reals.inc"
#undef ISA_NAME
#undef TARGET
#endif

static const fa_kernel *const table[FA_ISAS][FA_REALS] = {
    [FA_BASELINE] = {rules_f32_baseline, rules_f64_baseline},
#if defined(__x86_64__)
    [FA_AVX2] = {rules_f32_avx2, rules_f64_avx2},
    [FA_AVX512] = {rules_f32_avx512, rules_f64_avx512},
#endif
};

const fa_kernel *fa_kernel_of(fa_isa isa, fa_rule rule, fa_real real)
{
    return &table[isa][real][rule];
}
