/* What this CPU can do, and its floating-point control state. */
#include <fenv.h>
#include <string.h>
#include "fastadam.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

const char *fa_isa_name(fa_isa isa)
{
    static const char *const names[FA_ISAS] = {"baseline", "avx2", "avx512"};
    return names[isa];
}

int fa_isa_available(fa_isa isa)
{
    switch (isa) {
    case FA_BASELINE:
        return 1;
#if defined(__x86_64__) /* these built-ins also ask whether the operating system saves the registers */
    case FA_AVX2:
        return __builtin_cpu_supports("avx2") != 0;
    case FA_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#endif
    default:
        return 0;
    }
}

/* On x86-64 only MXCSR governs the arithmetic used here; <fenv.h> would also store and load the x87 state, ten
 * times slower. */
#if defined(__x86_64__)
void fa_fp_default(fa_fp_state *saved)
{
    unsigned int mxcsr = _mm_getcsr();
    memcpy(saved->opaque, &mxcsr, sizeof mxcsr);
    _mm_setcsr(0x1F80); /* the value at reset: all exceptions masked, nearest, no FTZ, no DAZ */
}

void fa_fp_restore(const fa_fp_state *saved)
{
    unsigned int mxcsr;
    memcpy(&mxcsr, saved->opaque, sizeof mxcsr);
    _mm_setcsr(mxcsr);
}
#else
_Static_assert(sizeof(fenv_t) <= sizeof(fa_fp_state), "fa_fp_state is too small for this platform's fenv_t");

void fa_fp_default(fa_fp_state *saved)
{
    fenv_t env;
    fegetenv(&env);
    memcpy(saved->opaque, &env, sizeof env);
    fesetenv(FE_DFL_ENV);
}

void fa_fp_restore(const fa_fp_state *saved)
{
    fenv_t env;
    memcpy(&env, saved->opaque, sizeof env);
    fesetenv(&env);
}
#endif
