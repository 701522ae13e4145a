/* Every rule for every element type and instruction set, by inclusion, and the table of them.
 *
 * Instruction sets are attributes of single functions, so one ordinary compilation makes them all and the rest
 * of the extension runs on any CPU of the architecture. */
#include <math.h>
#include <string.h>
#include "fastadam.h"

enum { BLOCK = 1024 }; /* elements between two looks at the processor's underflow flag */

#define PASTE_(a, b, c) a##_##b##_##c
#define PASTE(a, b, c) PASTE_(a, b, c)
#define NAME(x) PASTE(x, REAL_NAME, ISA_NAME)

#define ISA_NAME baseline
#define TARGET
#include "reals.inc"
#undef ISA_NAME
#undef TARGET

#if FA_X86_64
#define ISA_NAME avx2
#define TARGET FA_TARGET_AVX2
#include "reals.inc"
#undef ISA_NAME
#undef TARGET

#define ISA_NAME avx512
#define TARGET FA_TARGET_AVX512
#include "reals.inc"
#undef ISA_NAME
#undef TARGET
#endif

static const fa_kernel *const table[FA_ISAS][FA_REALS] = {
    [FA_BASELINE] = {rules_f32_baseline, rules_f64_baseline},
#if FA_X86_64
    [FA_AVX2] = {rules_f32_avx2, rules_f64_avx2},
    [FA_AVX512] = {rules_f32_avx512, rules_f64_avx512},
#endif
};

const fa_kernel *fa_kernel_of(fa_isa isa, fa_rule rule, fa_real real)
{
    return &table[isa][real][rule];
}
