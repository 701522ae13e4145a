/* Runs the driver with kernels that only record their calls, and checks how the work was shared
 * (tests/test_threads.py). Prints the number of mixtures that passed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "fastadam.h"

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

enum { MOST_THREADS = 9, MOST_TASKS = 9, MOST_ELEMENTS = 5000 };

static int64_t lines_of[MOST_THREADS];
static unsigned char runs[MOST_TASKS][MOST_ELEMENTS]; /* how often each element was updated */
static int misaligned;

static void record(const fa_task *task, int64_t begin, int64_t end)
{
    int64_t line = task->kernel->line;
    if (begin % line != 0 || (end % line != 0 && end != task->n))
        misaligned = 1;
    lines_of[omp_get_thread_num()] += (end - begin + line - 1) / line;
    for (int64_t i = begin; i < end; i++)
        ((unsigned char *)task->array[FA_PARAM])[i]++;
}

static const fa_kernel kernels[2] = {{record, 16}, {record, 8}};

static int fail(const char *what, int64_t count, int threads)
{
    printf("%s: %lld tasks, %d threads\n", what, (long long)count, threads);
    return 0;
}

static int check(fa_task *tasks, int64_t count, int threads)
{
    int64_t lines = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t line = tasks[i].kernel->line;
        lines += (tasks[i].n + line - 1) / line;
    }
    memset(lines_of, 0, sizeof lines_of);
    memset(runs, 0, sizeof runs);
    misaligned = 0;
    int team = fa_run(tasks, count, threads, threads, 0);
    int64_t expected = threads < lines ? threads : lines;
    if (!fa_has_openmp() || expected < 1)
        expected = 1;
    if (team != expected)
        return fail("wrong team", count, threads);
    for (int t = 0; t < MOST_THREADS; t++) {
        int64_t least = t < team ? lines / team : 0, most = t < team ? (lines + team - 1) / team : 0;
        if (lines_of[t] < least || lines_of[t] > most)
            return fail("unequal shares", count, threads);
    }
    for (int64_t i = 0; i < count; i++)
        for (int64_t e = 0; e < MOST_ELEMENTS; e++)
            if (runs[i][e] != (e < tasks[i].n))
                return fail("an element was not updated exactly once", count, threads);
    return misaligned ? fail("a cut inside a cache line", count, threads) : 1;
}

/* Tasks too large for memory: nothing is touched, only whether each share begins where the last one ended is seen. */
static int64_t first_of[MOST_THREADS], end_of[MOST_THREADS];

static void record_range(const fa_task *task, int64_t begin, int64_t end)
{
    int me = omp_get_thread_num();
    int64_t before = task->first * task->kernel->line;
    if (end_of[me] == 0)
        first_of[me] = before + begin;
    else if (end_of[me] != before + begin)
        misaligned = 1;
    end_of[me] = before + end;
}

static int check_huge(int64_t n, int threads)
{
    static const fa_kernel kernel = {record_range, 16};
    fa_task tasks[2] = {{.kernel = &kernel, .n = n}, {.kernel = &kernel, .n = n}}; /* n is a multiple of 16 */
    memset(first_of, 0, sizeof first_of);
    memset(end_of, 0, sizeof end_of);
    misaligned = 0;
    int team = fa_run(tasks, 2, threads, threads, 0);
    for (int t = 0; t < team; t++)
        if (first_of[t] != (t ? end_of[t - 1] : 0) || end_of[t] - first_of[t] < 2 * n / team - 16)
            misaligned = 1;
    return misaligned || end_of[team - 1] != 2 * n ? fail("shares of huge tasks do not meet", 2, threads) : 1;
}

int main(void)
{
    for (int bits = 30; bits < 58; bits++)
        for (int threads = 1; threads <= MOST_THREADS; threads++)
            if (!check_huge(((int64_t)1 << bits) + 16 * 12345, threads))
                return 1;
    static const int64_t sizes[] = {0, 1, 7, 8, 9, 15, 16, 17, 33, 500, 4999};
    int mixtures = 0;
    srand(1);
    for (int64_t count = 0; count <= MOST_TASKS; count++)
        for (int threads = 1; threads <= MOST_THREADS; threads++)
            for (int trial = 0; trial < 5; trial++) {
                fa_task tasks[MOST_TASKS];
                memset(tasks, 0, sizeof tasks);
                for (int64_t i = 0; i < count; i++) {
                    tasks[i].kernel = &kernels[rand() % 2];
                    tasks[i].n = sizes[rand() % (sizeof sizes / sizeof *sizes)];
                    tasks[i].array[FA_PARAM] = runs[i];
                }
                if (!check(tasks, count, threads))
                    return 1;
                mixtures++;
            }
#ifdef _OPENMP
    int nested = 0;
    omp_set_max_active_levels(2);
#pragma omp parallel num_threads(2) reduction(+ : nested)
    {
        unsigned char mine[100] = {0};
        fa_task task = {.kernel = &kernels[0], .array = {mine}, .n = 100};
        nested += fa_run(&task, 1, 4, 4, 0) != 1;
    }
    if (nested)
        return fail("more than one thread inside a parallel region", 1, 4);
#endif
    printf("%d mixtures\n", mixtures);
    return 0;
}
