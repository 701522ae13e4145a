/* The memory limit of an Adam step: read p, g, m and v, write p, m and v, and next to no arithmetic. `zero` is
 * 0, which the compiler cannot know: the arrays stay what they are.
 * Built by bench/harness.py with -O3 -march=native -fopenmp; f32 and f64 by inclusion of itself. */
#ifndef REAL
#include <stdint.h>

#define REAL float
#define NAME memory_limit_f32
#include "memory_limit.c"
#undef REAL
#undef NAME

#define REAL double
#define NAME memory_limit_f64
#include "memory_limit.c"

#else

void NAME(REAL *restrict p, const REAL *restrict g, REAL *restrict m, REAL *restrict v, int64_t n, int threads, double zero)
{
    const REAL nothing = (REAL)zero;
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        m[i] += nothing * g[i];
        v[i] += nothing * g[i];
        p[i] += nothing * g[i];
    }
}

#endif
