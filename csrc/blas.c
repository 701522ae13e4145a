/* Steps on OpenBLAS's threads.
 *
 * OpenBLAS's threads do not sleep after a product: they look for the next one, busily, for a tenth of a second. In a
 * loop around NumPy's products they are awake when a step begins, and no other team is as good: any other has to be
 * woken, and to compete with them. OpenBLAS lends them out: gotoblas_pthread runs a function on them.
 *
 * After a step they stay awake as long as after a product. In a program that computes elsewhere, on threads of torch
 * for example, borrowing them would do the very harm that we want to avoid. So they are borrowed while they are awake
 * without us. Whether they are is seen from time to time: steps leave them alone for longer than they look for work,
 * and then the first one's CPU clock tells. It also tells when other programs want their cores: then they are no good
 * team, because a step ends with its last thread. */
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>
#include <unistd.h>
#include "fastadam.h"

static fa_lender lender;
static int ordered; /* by so many users, without a look at any clock */

/* ---- are they awake without us? */

#if defined(_POSIX_THREAD_CPUTIME) && _POSIX_THREAD_CPUTIME >= 0

/* Seconds. They look for work for 2^28 ticks of a clock, which is slower on other processors than on x86. */
#if defined(__x86_64__) || defined(__i386__)
static const double REST = 0.25;
#else
static const double REST = 3;
#endif
static const double FIRST_TERM = 1, LONGEST_TERM = 32;
static const double WINDOW = 0.01, AWAKE = 0.75 /* of the time: less where others want the cores */;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static enum { NOTHING_KNOWN, BORROWING, RESTING, WATCHING } phase;
static double until, term;   /* of borrowing or resting */
static double seen, busy = -1; /* when the clock was read, and what it said; -1: it could not be read */
static clockid_t first_ones; /* CPU clock of the first of them; of a thread that has ended it cannot be read */

static void introduce(void)
{
    clockid_t mine;
    if (pthread_getcpuclockid(pthread_self(), &mine) == 0)
        __atomic_store_n(&first_ones, mine, __ATOMIC_RELAXED);
}

static double read_clock(void)
{
    clockid_t clock = __atomic_load_n(&first_ones, __ATOMIC_RELAXED);
    struct timespec t;
    if (clock == 0 || clock_gettime(clock, &t) != 0)
        return -1;
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int begin(int next, double seconds, double now)
{
    phase = next;
    until = now + seconds;
    return phase == BORROWING;
}

static int decide(double now)
{
    double since = now - seen, before = busy;
    if (phase == RESTING ? now < until : phase != NOTHING_KNOWN && since < WINDOW)
        return phase == BORROWING;
    seen = now;
    busy = read_clock();
    int known = before >= 0 && busy >= 0, awake = known && busy - before > AWAKE * since;
    if (phase == BORROWING) {
        if (known && !awake)
            term = FIRST_TERM / 2; /* they sleep between steps, or have to share their cores */
        if ((known && !awake) || now >= until)
            return begin(RESTING, REST, now);
        return 1;
    }
    if (busy < 0) { /* at the beginning, and after a fork: they introduce themselves */
        term = FIRST_TERM;
        return begin(BORROWING, term, now);
    }
    if (phase == WATCHING && awake) {
        term = term < LONGEST_TERM ? 2 * term : LONGEST_TERM;
        return begin(BORROWING, term, now);
    }
    if (phase == WATCHING)
        term = FIRST_TERM / 2;
    return begin(WATCHING, 0, now);
}

static int are_awake(double now)
{
    pthread_mutex_lock(&lock);
    int yes = decide(now);
    pthread_mutex_unlock(&lock);
    return yes;
}

void fa_blas_forget(void)
{
    pthread_mutex_init(&lock, 0);
    phase = NOTHING_KNOWN;
    first_ones = 0;
    busy = -1;
}

#else /* no clock tells */

static void introduce(void)
{
}

static int are_awake(double now)
{
    (void)now;
    return 0;
}

void fa_blas_forget(void)
{
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

void fa_borrow_from(fa_lender from)
{
    lender.count = from.count; /* whoever sees the one, sees the other */
    __atomic_store_n(&lender.run, from.run, __ATOMIC_RELEASE);
}

void fa_order_from_blas(int change)
{
    __atomic_fetch_add(&ordered, change, __ATOMIC_SEQ_CST);
}

int fa_blas_lends(int team, double now)
{
    if (!__atomic_load_n(&lender.run, __ATOMIC_ACQUIRE) || team > FA_MOST_LENT || team > lender.count())
        return 0;
    return __atomic_load_n(&ordered, __ATOMIC_SEQ_CST) > 0 || are_awake(now);
}

void fa_run_on_blas(fa_job run, void *data, int team)
{
    job jobs[FA_MOST_LENT];
    for (int part = 0; part < team; part++)
        jobs[part] = (job){run, data, part, team};
    lender.run(team, run_job, jobs, sizeof *jobs);
}
