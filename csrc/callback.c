/* OpenBLAS's jobs on the team that steps take, so that there is one team and nothing waits against anything.
 *
 * OpenBLAS lets a program supply its threads: it then hands over the jobs of a call, which wait for each other and so
 * must all run at the same time. It keeps one set of work buffers for them, so only one call may run its jobs at once:
 * Python threads that multiply matrices take turns. */
#define _GNU_SOURCE
#include <pthread.h>
#include <unistd.h>
#include "fastadam.h"

typedef struct {
    fa_blas_job run;
    size_t size;
    char *data;
    int extra;
} jobs;

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* free in a forked child: held between begin and end only */

/* A job marks the worker of its number as busy, for one of OpenBLAS's own, too, which goes on looking for work if that is
 * what it sees when its time is over. So none may run until they sleep, or they never do. */
enum { ASLEEP_AFTER = 150000 }; /* us; they look for 2^28 ticks of a clock of 2 GHz and more */

static void run_job(int number, int count, void *data)
{
    const jobs *all = data;
    (void)count;
    all->run(number, all->data + (size_t)number * all->size, all->extra);
}

static void run_jobs(int sync, fa_blas_job run, int count, size_t size, void *data, int extra)
{
    (void)sync; /* all are done when this returns, asked for or not */
    jobs all = {run, size, data, extra};
    if (count < 1)
        return;
    fa_begin_writing(); /* a fork waits for it, as for a step */
    pthread_mutex_lock(&turn);
    fa_run_on_blas(run_job, &all, count);
    pthread_mutex_unlock(&turn);
    fa_end_writing();
}

void fa_share_with_blas(fa_blas_setter set, int share)
{
    fa_begin_alone();
    set(share ? run_jobs : 0);
    if (share)
        usleep(ASLEEP_AFTER);
    fa_end_alone();
}
