/* What no step can be faster than, on this machine. `zero` is 0 and `one` is 1, which the compiler cannot know.
 *
 * memory_limit: read p, g and up to four more arrays (NULL where there is none), write all but g, with next to no
 * arithmetic; the arrays stay what they are.
 * reading_limit: read an array of whole cache lines once, each thread in eight places at once and half a page ahead; one,
 * four and sixteen places and other distances were slower.
 * arithmetic_limit: one square root and one division an element, in registers and the first-level cache.
 * Built by bench/limits.py with -O3 -march=native -fopenmp; f32 and f64 by inclusion of itself. */
#ifndef REAL
#include <math.h>
#include <stdint.h>

enum { LINE = 8, PLACES = 8 }; /* words in a cache line; lines read at once */

uint64_t reading_limit(const uint64_t *words, int64_t lines, int threads)
{
    uint64_t all = 0;
    int64_t apart = lines / PLACES / threads;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : all)
    for (int part = 0; part < threads; part++) {
        const uint64_t *first = words + part * PLACES * apart * LINE;
        uint64_t seen[LINE] = {0};
        for (int64_t i = 0; i < apart; i++)
            for (int k = 0; k < PLACES; k++) {
                const uint64_t *line = first + (k * apart + i) * LINE;
                __builtin_prefetch((const char *)line + 2048);
                for (int j = 0; j < LINE; j++)
                    seen[j] |= line[j];
            }
        for (int j = 0; j < LINE; j++)
            all |= seen[j];
    }
    for (int64_t i = threads * PLACES * apart * LINE; i < lines * LINE; i++)
        all |= words[i];
    return all;
}

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
