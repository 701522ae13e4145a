/* What no step can be faster than, on this machine. `zero` is 0 and `one` is 1, which the compiler cannot know.
 *
 * memory_limit: read p, g and up to four more arrays (NULL where there is none), write all but g, with next to no
 * arithmetic; the arrays stay what they are.
 * reading_limit: read an array of whole cache lines once, each thread in eight places at once and half a page ahead; one,
 * four and sixteen places and other distances were slower.
 * rows_limit: the same for the rows that appear, ascending, four of them fetched ahead; of a row that was given several
 * times, the gradients are summed in `sum` first. Their order is given: no sorting. `scale` is 0, or 1 to check it.
 * arithmetic_limit: one square root and one division an element, in registers and the first-level cache.
 * Built by bench/limits.py with -O3 -march=native -fopenmp, once with REAL float and once with double. */
#include <stdint.h>
#include <string.h>
#include <tgmath.h>

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

#define MOVE(x) x[i] += nothing * g[i];
#define LOOP(moves)                                                                                           \
    _Pragma("omp parallel for simd schedule(static) num_threads(threads)") for (int64_t i = 0; i < n; i++)    \
    {                                                                                                         \
        moves MOVE(p)                                                                                         \
    }

void memory_limit(REAL *restrict p, const REAL *restrict g, REAL *restrict a, REAL *restrict b, REAL *restrict c,
                  REAL *restrict d, int64_t n, int threads, double zero)
{
    const REAL nothing = (REAL)zero;
    if (d)
        LOOP(MOVE(a) MOVE(b) MOVE(c) MOVE(d))
    else if (c)
        LOOP(MOVE(a) MOVE(b) MOVE(c))
    else if (b)
        LOOP(MOVE(a) MOVE(b))
    else if (a)
        LOOP(MOVE(a))
    else
        LOOP()
}

enum { AHEAD = 4, WIDEST = 1024 }; /* rows fetched ahead; elements in a row */

static void fetch(const REAL *from, int64_t width)
{
    for (int64_t i = 0; i < width; i += 64 / (int64_t)sizeof *from)
        __builtin_prefetch(from + i);
}

void rows_limit(REAL *p, const REAL *g, REAL *a, REAL *b, const int64_t *rows, const int64_t *places, const int64_t *start,
                int64_t count, int64_t width, int threads, double scale)
{
    const REAL factor = (REAL)scale;
    REAL *const arrays[] = {p, a, b};
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t j = 0; j < count; j++) {
        _Alignas(64) REAL sum[WIDEST];
        const REAL *grad = g + places[start[j]] * width;
        if (j + AHEAD < count) {
            for (int k = 0; k < 3; k++)
                fetch(arrays[k] + rows[j + AHEAD] * width, width);
            fetch(g + places[start[j + AHEAD]] * width, width);
        }
        if (start[j + 1] - start[j] > 1) {
            memcpy(sum, grad, (size_t)width * sizeof *sum);
            for (int64_t i = start[j] + 1; i < start[j + 1]; i++) {
                const REAL *more = g + places[i] * width;
                if (i + AHEAD < start[count])
                    fetch(g + places[i + AHEAD] * width, width);
                for (int64_t k = 0; k < width; k++)
                    sum[k] += more[k];
            }
            grad = sum;
        }
        REAL *restrict x = p + rows[j] * width, *restrict y = a + rows[j] * width, *restrict z = b + rows[j] * width;
        for (int64_t k = 0; k < width; k++) {
            x[k] += factor * grad[k];
            y[k] += factor * grad[k];
            z[k] += factor * grad[k];
        }
    }
}

double arithmetic_limit(int64_t n, int threads, double one)
{
    enum { BLOCK = 1024 };
    double sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
        REAL x[BLOCK];
        for (int i = 0; i < BLOCK; i++)
            x[i] = (REAL)one;
        for (int64_t left = (n + threads - 1) / threads; left > 0; left -= BLOCK)
            for (int64_t i = 0; i < (left < BLOCK ? left : BLOCK); i++)
                x[i] = (REAL)one / (sqrt(x[i]) + (REAL)one);
        sum += x[0];
    }
    return sum;
}
