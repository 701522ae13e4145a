/* Threads of our own for OpenBLAS's jobs and for steps: one team, so that no two compete for the cores.
 *
 * OpenBLAS lets a program supply its threads, and then hands it the jobs of a call. These wait for each other, so all
 * must run at the same time, which OpenMP does not promise. And OpenMP's workers fall asleep between the products of a
 * training loop; waking them takes longer than many products. Ours look for work about as long as such a loop leaves
 * them without, and leave the core to others that want it.
 *
 * A job is told a number, which chooses its work buffer. Calls use the same few numbers, so only one may run its jobs
 * at once: callers, of steps and of BLAS, take turns. */
#include "threads.h"

#if FA_SHARED_TEAM
#include <stdio.h>
#include <stdlib.h>

#ifdef _OPENMP
#include <omp.h>
#endif

static const double LOOK_FOR = 0.02, ASK_AGAIN = 0.1; /* seconds */
enum { LOOKS_A_CLOCK = 64 };

typedef struct {
    fa_part run;
    void *data;
    int parts;
} work;

typedef struct {
    _Alignas(64) const work *given; /* NULL: nothing to do, or done */
    int sleeps;
    pthread_cond_t wake;
} worker;

/* Free in a forked child: taken behind the gate only. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t sleeping = PTHREAD_MUTEX_INITIALIZER; /* of workers that fall asleep, and of who wakes them */
static worker workers[FA_MOST_THREADS];
static int started;

/* ---- the workers */

static const work *sleep_until_given(worker *me)
{
    const work *found;
    pthread_mutex_lock(&sleeping);
    fa_store(&me->sleeps, 1);
    while (!(found = fa_load(&me->given)))
        pthread_cond_wait(&me->wake, &sleeping);
    fa_store(&me->sleeps, 0);
    pthread_mutex_unlock(&sleeping);
    return found;
}

static const work *next_work(worker *me)
{
    const work *found;
    double until = fa_now() + LOOK_FOR;
    for (int looks = 1; !(found = fa_load(&me->given)); looks++) {
        if (looks % LOOKS_A_CLOCK == 0 && fa_now() > until)
            return sleep_until_given(me);
        sched_yield();
    }
    return found;
}

static void *live(void *argument)
{
    worker *me = argument;
    for (;;) {
        const work *w = next_work(me);
        w->run((int)(me - workers) + 1, w->parts, w->data);
        fa_store(&me->given, 0);
    }
    return 0;
}

static void give(worker *to, const work *w)
{
    fa_store(&to->given, w);
    if (fa_load(&to->sleeps)) { /* it said so before it looked for the last time */
        pthread_mutex_lock(&sleeping);
        pthread_cond_signal(&to->wake);
        pthread_mutex_unlock(&sleeping);
    }
}

/* ---- starting them */

/* A BLAS call needs all its threads, because its jobs wait for each other. They were made when sharing was ordered. So
 * this happens only after a fork, or if somebody has raised OpenBLAS's threads since. */
static void give_up(void)
{
    fputs("fastadam: a BLAS call needs more threads than the system, or fastadam, has to give\n", stderr);
    abort();
}

/* OMP_PROC_BIND binds the thread that loads the runtime to one place, and threads that it starts inherit that. */
static void unbind(pthread_attr_t *attributes)
{
#if defined(_OPENMP) && FA_AFFINITY
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
#else
    (void)attributes;
#endif
}

static double refused; /* when the system last refused a thread for a step; 0: not since */

static void start(int wanted, int must)
{
    pthread_attr_t detached;
    if (wanted <= started || (!must && refused > 0 && fa_now() - refused < ASK_AGAIN))
        return;
    if (wanted > FA_MOST_THREADS)
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
        if (pthread_create(&thread, &detached, live, w) == 0) {
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

/* ---- a turn */

static int make(int parts, int must) /* returns how many of so many parts can run at the same time */
{
    start(parts - 1, must);
    return started < parts - 1 ? started + 1 : parts;
}

static int run_parts(fa_part run, void *data, int parts, int must)
{
    parts = make(parts, must);
    const work this_turn = {run, data, parts};
    for (int i = 0; i < parts - 1; i++)
        give(&workers[i], &this_turn);
    run(0, parts, data);
    for (int i = 0; i < parts - 1; i++)
        while (fa_load(&workers[i].given))
            sched_yield();
    return parts;
}

/* ---- steps */

/* A step does not wait for a product of another Python thread. */
static int width(int wanted, int makes)
{
    if (pthread_mutex_trylock(&turn) != 0)
        return 0;
    int there = makes ? make(wanted, 0) : wanted;
    pthread_mutex_unlock(&turn);
    if (makes && there == wanted)
        fa_promise(wanted);
    return there;
}

static int run(fa_part part, void *data, int team)
{
    pthread_mutex_lock(&turn);
    team = run_parts(part, data, team, 0);
    pthread_mutex_unlock(&turn);
    return team;
}

static const fa_team shared = {"fastadam", 1, width, run};

void fa_share_steps(int yes)
{
    fa_prefer_team(yes ? &shared : 0);
}

/* ---- OpenBLAS's calls */

typedef struct {
    fa_blas_job run; /* each library has its own */
    int forks;       /* how many there were, at its last call */
    double settled;  /* when its own workers will have been made anew after the last one; 0: they have been */
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

/* A job writes "busy" and "free" into the mailbox of OpenBLAS's own worker of its number, and uses its work buffer.
 * These workers have the lowest numbers, and LU hands them jobs past the callback: it hangs if ours have the same
 * numbers. So jobs get the highest. But after a fork every Python thread whose call finds the workers gone makes them
 * anew, one thread after the other, and frees the buffers of all other numbers. So for a second, in which all such
 * calls should arrive, jobs get the lowest. */
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

typedef struct {
    fa_blas_job run;
    size_t size;
    char *data;
    int extra, last; /* the number of job 0; job i has last - i */
} blas_call;

static void run_job(int job, int jobs, void *data)
{
    const blas_call *call = data;
    (void)jobs;
    call->run(call->last - job, call->data + (size_t)job * call->size, call->extra);
}

static void run_call(int sync, fa_blas_job run, int jobs, size_t size, void *data, int extra)
{
    (void)sync; /* all are done when this returns, asked for or not */
    blas_call call = {run, size, data, extra, 0};
    if (jobs < 1)
        return;
    fa_gate_enter(); /* a fork waits for it, as for a step */
    pthread_mutex_lock(&turn);
    call.last = last_number(run, jobs);
    run_parts(run_job, &call, jobs, 1);
    pthread_mutex_unlock(&turn);
    fa_gate_leave();
}

int fa_share_room(int jobs)
{
    fa_gate_enter();
    pthread_mutex_lock(&turn);
    int there = make(jobs, 0);
    pthread_mutex_unlock(&turn);
    fa_gate_leave();
    return there;
}

void fa_share_with_blas(fa_blas_setter set, int yes)
{
    fa_gate_lock();
    set(yes ? run_call : 0);
    fa_gate_unlock();
}

/* ---- forks */

static void count_fork(void) /* when no call runs */
{
    forks++;
}

static void forget(void) /* a child has none of the threads; it starts others when it needs them */
{
    started = 0;
    refused = 0;
    pthread_mutex_init(&sleeping, 0);
}

void fa_share_start(void)
{
    fa_at_fork(count_fork, forget);
}

#endif
