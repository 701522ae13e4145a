/* What this CPU can do, and its floating-point control state. */
#include "fastadam.h"

fa_isa fa_chosen_isa;

const char *fa_isa_name(fa_isa isa)
{
    static const char *const names[FA_ISAS] = {"baseline", "avx2", "avx512"};
    return names[isa];
}

int fa_isa_available(fa_isa isa)
{
    return isa == FA_BASELINE || (isa == FA_AVX2 && fa_cpu_has_avx2()) || (isa == FA_AVX512 && fa_cpu_has_avx512());
}

void fa_fp_default(fa_fp_state *saved)
{
    fa_fp_read(saved);
    fa_fp_reset();
}

void fa_fp_restore(const fa_fp_state *saved)
{
    fa_fp_write(saved);
}
