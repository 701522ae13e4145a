/* OpenBLAS's jobs on the team that steps take, so that there is one team and nothing waits against anything.
 *
 * OpenBLAS lets a program supply its threads: it then hands over the jobs of a call, which wait for each other and so
 * must all run at the same time. Each is told the number of the thread that it runs on, which chooses its work buffer.
 * Calls use the same few numbers, so only one may run its jobs at once: Python threads that multiply matrices take turns. */
#include <pthread.h>
#include "fastadam.h"

typedef struct {
    fa_blas_job run;
    size_t size;
    char *data;
    int extra, last; /* the number of job 0; job i has last - i */
} jobs;

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* free in a forked child: held between begin and end only */

typedef struct {
    fa_blas_job run; /* each library has its own */
    int forks;       /* that its calls know of */
    double settled;  /* when all that came first after the last one have made its workers; 0: they have */
} library;

enum { MOST_LIBRARIES = 16, SETTLING = 1 /* s */ };
static library libraries[MOST_LIBRARIES];
static int forks;

static library *library_of(fa_blas_job run)
{
    for (library *l = libraries; l < libraries + MOST_LIBRARIES; l++) {
        if (!l->run)
            l->run = run;
        if (l->run == run)
            return l;
    }
    return 0;
}

/* A job writes "busy" and "free" where OpenBLAS's own worker of its number has its mailbox, and uses the same work buffer
 * as it. LU hands jobs to these workers, past the callback: with their numbers it hangs. They have the lowest ones, so
 * jobs get the highest. But every Python thread whose call finds the workers gone after a fork makes them anew, once the
 * one before has, and frees the buffers of all other numbers: for a second, in which any that is on its way should get
 * there, jobs get the lowest. */
static int last_number(fa_blas_job run, int count)
{
    library *l = library_of(run);
    if (!l || count > FA_MOST_CALLBACK) /* somebody has raised its threads since */
        return count - 1;
    if (l->forks != forks)
        l->settled = fa_now() + SETTLING;
    l->forks = forks;
    if (l->settled > 0 && fa_now() > l->settled)
        l->settled = 0;
    return l->settled > 0 ? count - 1 : FA_BLAS_NUMBERS - 1;
}

static void run_job(int job, int count, void *data)
{
    const jobs *all = data;
    (void)count;
    all->run(all->last - job, all->data + (size_t)job * all->size, all->extra);
}

static void run_jobs(int sync, fa_blas_job run, int count, size_t size, void *data, int extra)
{
    (void)sync; /* all are done when this returns, asked for or not */
    jobs all = {run, size, data, extra, 0};
    if (count < 1)
        return;
    fa_begin_writing(); /* a fork waits for it, as for a step */
    pthread_mutex_lock(&turn);
    all.last = last_number(run, count);
    fa_run_on_blas(run_job, &all, count, 1);
    pthread_mutex_unlock(&turn);
    fa_end_writing();
}

void fa_callback_before_fork(void)
{
    forks++;
}

int fa_callback_room(int count)
{
    fa_begin_writing();
    int there = fa_team_for_jobs(count);
    fa_end_writing();
    return there;
}

void fa_share_with_blas(fa_blas_setter set, int share)
{
    fa_begin_alone();
    set(share ? run_jobs : 0);
    fa_end_alone();
}
