/* An imagined OpenBLAS hands its jobs to our team while steps run there, from several threads and beside forks: every
 * job must run once, at the same time as the others of its call, no two calls at once, and every element must be updated
 * once a step (tests/test_threads.py, .ci/sanitize). Prints the number of calls. */
#define _GNU_SOURCE
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "fastadam.h"

#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define NO_FORKS /* it does not follow them */
#endif
#endif

enum { CALLERS = 3, CALLS = 150, MOST = 6, N = 1 << 15, ASLEEP = 40000 /* us, after which the team sleeps */ };

static fa_blas_callback callback; /* the imagined library's */
static int calls_at_once, long_jobs, forked, done, lowest;

static int is_set(int *flag)
{
    return __atomic_load_n(flag, __ATOMIC_SEQ_CST);
}

static void set_callback(fa_blas_callback to)
{
    callback = to;
}

typedef struct {
    int *arrived, count, ran;
} job;

static void meet(int number, void *data, int extra)
{
    job *j = data;
    int low = number < MOST; /* the numbers of its own workers, which jobs may have soon after a fork */
    int end = low ? j->count : FA_BLAS_NUMBERS;
    int first = number == end - 1;
    if (extra != 7 || number >= end || number < end - j->count || (low && !is_set(&forked)))
        abort();
    if (first)
        __atomic_store_n(&lowest, low, __ATOMIC_SEQ_CST);
    j->ran++;
    if (first && __atomic_add_fetch(&calls_at_once, 1, __ATOMIC_SEQ_CST) != 1)
        exit(3);
    __atomic_add_fetch(j->arrived, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(j->arrived, __ATOMIC_SEQ_CST) < j->count)
        sched_yield(); /* for ever, unless all run */
    if (is_set(&long_jobs))
        usleep(1000);
    if (first)
        __atomic_sub_fetch(&calls_at_once, 1, __ATOMIC_SEQ_CST);
}

static void *multiply(void *calls)
{
    for (int i = 0; i < *(int *)calls && !is_set(&done); i++) {
        int arrived = 0, count = 1 + i % MOST;
        job jobs[MOST];
        for (int k = 0; k < MOST; k++)
            jobs[k] = (job){&arrived, count, 0};
        callback(1, meet, count, sizeof *jobs, jobs, 7);
        for (int k = 0; k < MOST; k++)
            if (jobs[k].ran != (k < count)) {
                printf("job %d of %d ran %d times\n", k, count, jobs[k].ran);
                exit(4);
            }
        if (i % 50 == 49 && !is_set(&long_jobs))
            usleep(ASLEEP);
    }
    return 0;
}

static void add_one(const fa_task *task, int64_t begin, int64_t end)
{
    unsigned short *x = task->array[FA_PARAM];
    for (int64_t i = begin; i < end; i++)
        x[i]++;
}

static const fa_kernel kernel = {add_one, 16, 0, 0, 0};

static void *take_steps(void *calls)
{
    fa_task task;
    int taken = 0;
    unsigned short *x = calloc(N, sizeof *x);
    memset(&task, 0, sizeof task);
    task.kernel = &kernel;
    task.array[FA_PARAM] = x;
    task.n = N;
    for (; taken < *(int *)calls && !is_set(&done); taken++) {
        fa_gate_enter();
        int threads = 1 + taken % MOST, used = fa_run(&task, 1, threads, MOST, 0);
        fa_gate_leave();
        if (used != (fa_has_openmp() ? threads : 1))
            exit(5);
    }
    for (int i = 0; i < N; i++)
        if (x[i] != taken % (1 << 16))
            exit(6);
    free(x);
    return 0;
}

static void run(int calls)
{
    pthread_t threads[2 * CALLERS];
    for (int i = 0; i < 2 * CALLERS; i++)
        if (pthread_create(&threads[i], 0, i < CALLERS ? multiply : take_steps, &calls))
            exit(2);
    for (int i = 0; i < 2 * CALLERS; i++)
        pthread_join(threads[i], 0);
}

int main(void)
{
    fa_start();
    fa_share_start();
    fa_share_steps(1);
    fa_share_with_blas(set_callback, 1);
    run(CALLS);
    int six = MOST;
    take_steps(&six); /* alone, the last with several threads */
    if (fa_has_openmp() && strcmp(fa_steps_on(), "fastadam") != 0)
        return 7;
    int forks = 0;
#ifndef NO_FORKS
    pthread_t others[2];
    int calls = INT_MAX;
    forked = 1;
    long_jobs = 1; /* so that most forks come while one runs */
    if (pthread_create(&others[0], 0, multiply, &calls) || pthread_create(&others[1], 0, take_steps, &calls))
        return 2;
    for (; forks < 20; forks++) {
        pid_t child = fork();
        if (child == 0) {
            long_jobs = 0;
            run(10);
            _exit(0);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status != 0)
            return 8;
        usleep(forks * 100);
    }
    __atomic_store_n(&done, 1, __ATOMIC_SEQ_CST);
    pthread_join(others[0], 0);
    pthread_join(others[1], 0);
    int one = 1;
    done = 0;
    pid_t child = fork();
    multiply(&one);
    if (child == 0)
        _exit(!lowest);
    int status;
    if (waitpid(child, &status, 0) != child || status != 0 || !lowest)
        return 9;
    usleep(1100000);
    multiply(&one);
    if (lowest)
        return 10;
#endif
    fa_share_with_blas(set_callback, 0);
    printf("%d calls, %d forks\n", 2 * CALLERS * CALLS, forks);
    return callback != 0;
}
