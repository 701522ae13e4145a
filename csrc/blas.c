/* Steps on the threads that NumPy's OpenBLAS computes on.
 *
 * OpenBLAS's threads do not sleep after a product: they look for the next one, busily, for a tenth of a second. In a
 * loop around NumPy's products they are awake when a step begins, and no other team is as good: any other has to be
 * woken, and to compete with them. OpenBLAS lends them out: gotoblas_pthread runs a function on them.
 *
 * After a step they stay awake as long as after a product. In a program that computes elsewhere, on threads of torch
 * for example, borrowing them would do the very harm that we want to avoid. So they are borrowed while they are awake
 * without us (awake.c).
 *
 * Where it does not lend them, it can be ordered to compute on ours (callback.c, team.c). */
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>
#include <unistd.h>
#include "fastadam.h"

/* Set while no step runs, read by steps (forks.c has the lock). */
static fa_lender lender;
static int only_ordered;

static int ordered; /* without a look at any clock */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the rest */
static fa_awake state;
static int was_ordered; /* by the last step that asked */

/* ---- the CPU clock of one of them */

#if defined(_POSIX_THREAD_CPUTIME) && _POSIX_THREAD_CPUTIME >= 0

static clockid_t introduced;

static void introduce(void)
{
    clockid_t mine;
    if (pthread_getcpuclockid(pthread_self(), &mine) == 0)
        __atomic_store_n(&introduced, mine, __ATOMIC_RELAXED);
}

static fa_reading read_clock(void)
{
    clockid_t clock = __atomic_load_n(&introduced, __ATOMIC_RELAXED);
    struct timespec t;
    fa_reading reading = {0, clock, 0};
    if (clock != 0 && clock_gettime(clock, &t) == 0) { /* not if the thread has ended */
        reading.known = 1;
        reading.seconds = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }
    return reading;
}

static void forget_clock(void)
{
    introduced = 0;
}

static int are_awake(double now)
{
    if (!fa_awake_is_due(&state, now))
        return fa_awake_borrows(&state);
    return fa_awake_decide(&state, now, read_clock());
}

#else /* no clock tells */

static void introduce(void)
{
}

static void forget_clock(void)
{
}

static int are_awake(double now)
{
    (void)now;
    return 0;
}

#endif

/* ---- borrowing */

typedef struct {
    fa_job run;
    void *data;
    int part, parts;
} job;

static void *run_job(void *argument)
{
    const job *j = argument;
    if (j->part == 1)
        introduce();
    j->run(j->part, j->parts, j->data);
    return 0;
}

void fa_borrow_from(fa_lender from, int if_ordered)
{
    fa_begin_alone();
    lender = from;
    only_ordered = if_ordered;
    fa_end_alone();
}

void fa_order_from_blas(int yes)
{
    __atomic_store_n(&ordered, yes, __ATOMIC_SEQ_CST);
}

static int is_ordered(void)
{
    return __atomic_load_n(&ordered, __ATOMIC_SEQ_CST);
}

static int should_borrow(double now)
{
    int order = is_ordered(), should = order;
    pthread_mutex_lock(&lock);
    if (was_ordered && !order)
        fa_awake_rest(&state, now); /* it may be ordered steps that keep them awake */
    was_ordered = order;
    if (!order && !only_ordered)
        should = are_awake(now);
    pthread_mutex_unlock(&lock);
    return should;
}

static int most_lent(void)
{
    int most = lender.run ? lender.count() : 0;
    return most < FA_MOST_LENT ? most : FA_MOST_LENT;
}

int fa_blas_team(int team, int exactly, double now)
{
    /* Ours may be in a product of another Python thread, for which a step should not wait. */
    int most = lender.run ? most_lent() : is_ordered() && fa_team_is_free() ? FA_MOST_WORKERS : 0;
    if (most < 2 || (exactly && team > most) || !should_borrow(now))
        return 0;
    return team < most ? team : most;
}

int fa_blas_room(int team)
{
    if (!is_ordered())
        return 0;
    return !lender.run ? fa_team_make(team, 0) : team <= most_lent() ? team : 0;
}

int fa_team_for_jobs(int count)
{
    return count <= most_lent() ? count : fa_team_make(count, 1);
}

int fa_run_on_blas(fa_job run, void *data, int team, int all)
{
    if (team > most_lent())
        return fa_team_run(run, data, team, all);
    job jobs[FA_MOST_LENT];
    for (int part = 0; part < team; part++)
        jobs[part] = (job){run, data, part, team};
    lender.run(team, run_job, jobs, sizeof *jobs);
    return team;
}

void fa_blas_forget(void)
{
    static const fa_awake nothing;
    pthread_mutex_init(&lock, 0);
    state = nothing;
    forget_clock();
    fa_team_forget();
}
