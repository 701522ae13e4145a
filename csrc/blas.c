/* OpenBLAS on our OpenMP team, so that there is one team in the process and nothing waits against anything.
 *
 * OpenBLAS lets a program supply its threads: it then hands over the jobs of a call, which wait for each other and so
 * must all run at the same time. It keeps one set of work buffers for them, so only one call may run its jobs at once:
 * Python threads that multiply matrices take turns here. */
#define _GNU_SOURCE
#include "fastadam.h"

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct {
    fa_blas_job run;
    size_t size;
    char *data;
    int extra, number;
} job;

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static void *run_job(void *argument)
{
    const job *j = argument;
    j->run(j->number, j->data + (size_t)j->number * j->size, j->extra);
    return 0;
}

/* What OpenMP's runtimes do, too: the jobs that run already wait for the others, so there is no way back. */
static void give_up(void)
{
    fputs("fastadam: the system has no more threads to give, and a BLAS call needs them\n", stderr);
    abort();
}

/* Where OpenMP gives too few threads (inside a parallel region, by OMP_THREAD_LIMIT, in an orphaned child). */
static void run_on_threads_of_their_own(const job *first, int count)
{
    job jobs[count];
    pthread_t threads[count];
    for (int i = 1; i < count; i++) {
        jobs[i] = *first;
        jobs[i].number = i;
        for (int tries = 0; pthread_create(&threads[i], 0, run_job, &jobs[i]) != 0; tries++) {
            if (tries == 5000)
                give_up();
            usleep(1000);
        }
    }
    run_job((void *)first);
    for (int i = 1; i < count; i++)
        pthread_join(threads[i], 0);
}

static void run_jobs(int sync, fa_blas_job run, int count, size_t size, void *data, int extra)
{
    (void)sync; /* all are done when this returns, asked for or not */
    job first = {run, size, data, extra, 0};
    if (count < 1)
        return;
    pthread_mutex_lock(&turn);
    int enough = count == 1;
    if (enough)
        run_job(&first);
    else if (!fa_orphaned()) {
#pragma omp parallel num_threads(count)
        if (omp_get_num_threads() == count) {
            job mine = first;
            mine.number = omp_get_thread_num();
            run_job(&mine);
            if (mine.number == 0)
                enough = 1;
        }
    }
    if (!enough)
        run_on_threads_of_their_own(&first, count);
    pthread_mutex_unlock(&turn);
}

/* A fork waits for a call that is running its jobs. */
static void before_fork(void)
{
    pthread_mutex_lock(&turn);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&turn);
}

void fa_share_with_blas(fa_blas_setter set, int share)
{
    static int watching;
    pthread_mutex_lock(&turn);
    if (!watching)
        pthread_atfork(before_fork, after_fork, after_fork);
    watching = 1;
    set(share ? run_jobs : 0);
    pthread_mutex_unlock(&turn);
}

#else

void fa_share_with_blas(fa_blas_setter set, int share)
{
    (void)set;
    (void)share;
}

#endif
