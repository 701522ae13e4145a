/* Four threads call the public C interface at once, beside forks: every result is that of one thread alone, and a child
 * finds whole steps (tests/test_threads.py, .ci/sanitize). Prints the numbers of steps and forks. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../fastadam/include/fastadam_api.h"
#include "fastadam.h"

#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define NO_FORKS /* it does not follow them */
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define NO_FORKS /* a child waits for ever for its allocator's lock, if another thread held that (gcc 12) */
#endif

enum { CALLERS = 4, MANY = 40, ROUNDS = 2, STEPS = 60, FORKS = 10, SIZE = 20000 };
static const char *const names[CALLERS] = {"AdamW", "NAdam", "RMSprop", "SGD"};
static const fastadam_api *api;

/* A caller's parameters; all elements of all arrays are equal, so that half a step is seen. */
typedef struct {
    const char *name;
    int threads, count, failed, done;
    fastadam_array arrays[MANY];
    void *memory;
    fastadam_options options;
} caller;

static int64_t size_of(const caller *c, int i)
{
    return c->count == MANY ? 1 + (i * 37) % 200 : SIZE;
}

static void begin(caller *c, const char *name, int count, int threads)
{
    *c = (caller){.name = name, .threads = threads, .count = count};
    if (api->options(name, &c->options, sizeof c->options))
        abort();
    c->options.weight_decay = 0.1;
    if (strcmp(name, "SGD") == 0)
        c->options.momentum = 0.5;
    const int needed = api->states(&c->options);
    int64_t all = 0;
    for (int i = 0; i < count; i++)
        all += 5 * size_of(c, i);
    double *next = c->memory = calloc((size_t)all, sizeof *next);
    for (int i = 0; i < count; i++) {
        fastadam_array *a = &c->arrays[i];
        const int64_t n = size_of(c, i);
        *a = (fastadam_array){.param = next, .grad = next + n, .n = n, .dtype = FASTADAM_FLOAT64, .product = 1.0};
        for (int64_t j = 0; j < n; j++) {
            next[j] = 1.0;
            next[n + j] = 0.25;
        }
        next += 2 * n;
        for (int k = 0; k < 3; k++, next += n)
            a->state[k] = needed >> k & 1 ? next : NULL;
    }
}

static void *train(void *data)
{
    caller *c = data;
    for (int step = 1; step <= STEPS; step++) {
        double squares;
        for (int i = 0; i < c->count; i++)
            c->arrays[i].step = step;
        if (api->update(&c->options, c->arrays, c->count, 0.5, c->threads) < 1 ||
            api->sum_squares(c->arrays, c->count, c->threads, &squares) < 1 || !(squares > 0.0))
            c->failed = 1;
    }
    fa_store(&c->done, 1);
    return NULL;
}

static double value_of(const caller *c)
{
    return *(const double *)c->arrays[0].param;
}

static int is_whole(const caller *c)
{
    for (int i = 0; i < c->count; i++)
        for (int64_t j = 0; j < c->arrays[i].n; j++)
            if (((const double *)c->arrays[i].param)[j] != value_of(c))
                return 0;
    return 1;
}

#ifndef NO_FORKS
static int all_done(const caller *callers)
{
    int all = 1;
    for (int i = 0; i < CALLERS; i++)
        all = all && fa_load(&callers[i].done);
    return all;
}

static int forks(caller *callers, int count)
{
    int made = 0;
    for (; made < count && !all_done(callers); made++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(60);
            for (int i = 0; i < CALLERS; i++)
                if (!is_whole(&callers[i]))
                    _exit(1);
            caller own;
            begin(&own, "Adam", 1, 2);
            train(&own);
            _exit(own.failed || !is_whole(&own));
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
            puts("a child found half a step, or none");
            exit(1);
        }
    }
    return made;
}
#else
static int forks(caller *callers, int count)
{
    (void)callers, (void)count;
    return 0;
}
#endif

int main(void)
{
    fa_start();
    api = fa_api_start("a version");
    int made = 0, calls = 0;
    for (int count = 1; count <= MANY; count += MANY - 1) { /* on the stack, and in memory that is asked for */
        double alone[CALLERS];
        caller callers[CALLERS];
        pthread_t threads[CALLERS];
        for (int i = 0; i < CALLERS; i++) {
            begin(&callers[i], names[i], count, 1);
            train(&callers[i]);
            alone[i] = value_of(&callers[i]);
            free(callers[i].memory);
        }
        for (int round = 0; round < ROUNDS; round++) {
            for (int i = 0; i < CALLERS; i++) {
                begin(&callers[i], names[i], count, i % 3);
                pthread_create(&threads[i], NULL, train, &callers[i]);
            }
            made += forks(callers, FORKS);
            for (int i = 0; i < CALLERS; i++) {
                pthread_join(threads[i], NULL);
                if (callers[i].failed || !is_whole(&callers[i]) || value_of(&callers[i]) != alone[i]) {
                    printf("%s: %d arrays, another result than alone\n", names[i], count);
                    return 1;
                }
                calls += STEPS;
                free(callers[i].memory);
            }
        }
    }
    printf("%d steps, %s\n", calls, made ? "and forks" : "no forks");
    return 0;
}
