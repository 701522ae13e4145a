/* Threads of our own, for the jobs of an OpenBLAS that takes them from outside, and for steps beside it (callback.c).
 *
 * They are not OpenMP's, for two reasons. The jobs of a BLAS call wait for each other, so all must run at the same time,
 * whatever OpenMP would give. And OpenMP's workers, as long as they are to do no harm elsewhere, fall asleep between the
 * products of a training loop: waking them costs more than many a product. These look for work about as long as such a
 * loop leaves them without, and leave the core to others whenever those want it.
 *
 * Callers take turns: one call at a time. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "fastadam.h"

#ifdef _OPENMP
#include <omp.h>
#endif

static const double LOOK_FOR = 0.02, ASK_AGAIN = 0.1; /* seconds */
enum { LOOKS_A_CLOCK = 64 };

typedef struct {
    fa_job run;
    void *data;
    int parts;
} call;

typedef struct {
    _Alignas(64) const call *given; /* NULL: nothing to do, or done */
    int sleeps;
    pthread_cond_t wake;
} worker;

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* of callers, and of what they do here */
static pthread_mutex_t sleeping = PTHREAD_MUTEX_INITIALIZER; /* of workers that fall asleep, and of who wakes them */
static worker workers[FA_MOST_WORKERS];
static int started;

double fa_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const call *given_to(worker *w)
{
    return __atomic_load_n(&w->given, __ATOMIC_SEQ_CST);
}

static const call *sleep_until_called(worker *me)
{
    const call *found;
    pthread_mutex_lock(&sleeping);
    __atomic_store_n(&me->sleeps, 1, __ATOMIC_SEQ_CST);
    while (!(found = given_to(me)))
        pthread_cond_wait(&me->wake, &sleeping);
    __atomic_store_n(&me->sleeps, 0, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&sleeping);
    return found;
}

static const call *next_call(worker *me)
{
    const call *found;
    double until = fa_now() + LOOK_FOR;
    for (int looks = 1; !(found = given_to(me)); looks++) {
        if (looks % LOOKS_A_CLOCK == 0 && fa_now() > until)
            return sleep_until_called(me);
        sched_yield();
    }
    return found;
}

static void *work(void *argument)
{
    worker *me = argument;
    for (;;) {
        const call *c = next_call(me);
        c->run((int)(me - workers) + 1, c->parts, c->data);
        __atomic_store_n(&me->given, 0, __ATOMIC_SEQ_CST);
    }
    return 0;
}

static void give(worker *w, const call *c)
{
    __atomic_store_n(&w->given, c, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&w->sleeps, __ATOMIC_SEQ_CST)) { /* it said so before it looked for the last time */
        pthread_mutex_lock(&sleeping);
        pthread_cond_signal(&w->wake);
        pthread_mutex_unlock(&sleeping);
    }
}

/* A BLAS call has no other way: its jobs wait for each other. The threads were made when it was ordered to run here, so
 * this can be only after a fork, or if somebody has raised OpenBLAS's threads since. */
static void give_up(void)
{
    fputs("fastadam: a BLAS call needs more threads than the system, or fastadam, has to give\n", stderr);
    abort();
}

#if defined(_OPENMP) && defined(__GLIBC__)

/* OMP_PROC_BIND binds the thread that loads the runtime to one place, and what a thread starts, inherits that. */
static void unbind(pthread_attr_t *attributes)
{
    int ids[CPU_SETSIZE], places = omp_get_proc_bind() == omp_proc_bind_false ? 0 : omp_get_num_places();
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    for (int place = 0; place < places; place++) {
        int count = omp_get_place_num_procs(place);
        if (count > CPU_SETSIZE)
            return;
        omp_get_place_proc_ids(place, ids);
        for (int i = 0; i < count; i++)
            CPU_SET(ids[i], &cpus);
    }
    if (CPU_COUNT(&cpus) > 0)
        pthread_attr_setaffinity_np(attributes, sizeof cpus, &cpus);
}

#else

static void unbind(pthread_attr_t *attributes)
{
    (void)attributes;
}

#endif

static double refused; /* when the system last had no thread for a step; 0: it had */

static void start(int wanted, int must)
{
    pthread_attr_t detached;
    if (wanted <= started || (!must && refused > 0 && fa_now() - refused < ASK_AGAIN))
        return;
    if (wanted > FA_MOST_WORKERS)
        give_up();
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    unbind(&detached);
    refused = 0;
    for (int tries = 0; started < wanted && !(refused > 0); tries++) {
        pthread_t thread;
        worker *w = &workers[started];
        w->given = 0;
        w->sleeps = 0;
        pthread_cond_init(&w->wake, 0);
        if (pthread_create(&thread, &detached, work, w) == 0) {
            started++;
            tries = 0;
        } else if (!must) {
            refused = fa_now();
        } else if (tries == 5000) {
            give_up();
        } else {
            usleep(1000);
        }
    }
    pthread_attr_destroy(&detached);
}

static int threads_for(int parts)
{
    return started < parts - 1 ? started + 1 : parts;
}

int fa_team_run(fa_job run, void *data, int parts, int must)
{
    pthread_mutex_lock(&turn);
    start(parts - 1, must);
    parts = threads_for(parts);
    const call this_one = {run, data, parts};
    for (int i = 0; i < parts - 1; i++)
        give(&workers[i], &this_one);
    run(0, parts, data);
    for (int i = 0; i < parts - 1; i++)
        while (given_to(&workers[i]))
            sched_yield();
    pthread_mutex_unlock(&turn);
    return parts;
}

int fa_team_make(int parts, int waits)
{
    if (pthread_mutex_trylock(&turn) != 0) {
        if (!waits)
            return 0;
        pthread_mutex_lock(&turn);
    }
    start(parts - 1, 0);
    parts = threads_for(parts);
    pthread_mutex_unlock(&turn);
    return parts;
}

int fa_team_is_free(void)
{
    int free = pthread_mutex_trylock(&turn) == 0;
    if (free)
        pthread_mutex_unlock(&turn);
    return free;
}

/* A forked child has none of the threads; it starts others when it needs them. */
void fa_team_forget(void)
{
    started = 0;
    refused = 0;
    pthread_mutex_init(&sleeping, 0);
}
