/* What no step can be faster than, on this machine. `zero` is 0 and `one` is 1, which the compiler cannot know.
 *
 * memory_limit: read p, g and up to four more arrays (NULL where there is none), write all but g, with next to no
 * arithmetic; the arrays stay what they are.
 * arithmetic_limit: one square root and one division an element, in registers and the first-level cache.
 * Built by bench/harness.py with -O3 -march=native -fopenmp; f32 and f64 by inclusion of itself. */
#ifndef REAL
#include <math.h>
#include <stdint.h>

#define REAL float
#define SQRT sqrtf
#define NAME(x) x##_f32
#include "limits.c"
#undef REAL
#undef SQRT
#undef NAME

#define REAL double
#define SQRT sqrt
#define NAME(x) x##_f64
#include "limits.c"

#else

void NAME(memory_limit)(REAL *restrict p, const REAL *restrict g, REAL *restrict a, REAL *restrict b, REAL *restrict c,
                        REAL *restrict d, int64_t n, int threads, double zero)
{
    const REAL nothing = (REAL)zero;
#define LOOP(body)                                                                                            \
    _Pragma("omp parallel for simd schedule(static) num_threads(threads)") for (int64_t i = 0; i < n; i++)    \
    {                                                                                                         \
        body                                                                                                  \
        p[i] += nothing * g[i];                                                                               \
    }
    if (d)
        LOOP(a[i] += nothing * g[i]; b[i] += nothing * g[i]; c[i] += nothing * g[i]; d[i] += nothing * g[i];)
    else if (c)
        LOOP(a[i] += nothing * g[i]; b[i] += nothing * g[i]; c[i] += nothing * g[i];)
    else if (b)
        LOOP(a[i] += nothing * g[i]; b[i] += nothing * g[i];)
    else if (a)
        LOOP(a[i] += nothing * g[i];)
    else
        LOOP(;)
#undef LOOP
}

double NAME(arithmetic_limit)(int64_t n, int threads, double one)
{
    enum { BLOCK = 1024 };
    double sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
        REAL x[BLOCK];
        for (int i = 0; i < BLOCK; i++)
            x[i] = (REAL)one;
        int64_t left = (n + threads - 1) / threads;
        for (; left > 0; left -= BLOCK) {
            int64_t now = left < BLOCK ? left : BLOCK;
            for (int64_t i = 0; i < now; i++)
                x[i] = (REAL)one / (SQRT(x[i]) + (REAL)one);
        }
        sum += x[0];
    }
    return sum;
}

#endif
