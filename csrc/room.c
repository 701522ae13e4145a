/* Has the system threads for a team of OpenMP's?
 *
 * libgomp and LLVM's runtime end the process if it has not (RLIMIT_NPROC, a container's pids limit, RLIMIT_AS). So before
 * a region that needs threads which its caller does not have yet, as many are made here, all alive at the same time, and
 * one more, for what the runtime needs itself. They end at once. If some cannot be made, the team is smaller.
 *
 * Every Python thread that steps has a team of its own. libgomp ends the threads that a smaller region leaves over, ours or
 * somebody else's, and all of them before a fork; LLVM's runtime may give them to another caller. So workers are counted:
 * one says whose it is when it works, and its end is noticed. */
#include "threads.h"

#if FA_POSIX && defined(_OPENMP)
#include <stdlib.h>
#include <string.h>

static const double BELIEVED = 0.1; /* for so many seconds, what was found */
enum { CALLERS = 256 /* with a record; others ask each time */ };

struct fa_caller {
    int taken;    /* by a thread that is alive */
    int workers;  /* that are alive and worked for it last */
    int last;     /* the size of its last team */
    int found;    /* the threads that there were, when it asked last */
    int all;      /* these were all: it had asked for more */
    double asked; /* when that was */
    unsigned after; /* how many regions had made threads by then */
    int promised; /* so many were found for an order, and it has had no team since */
};

static fa_caller callers[CALLERS];
static pthread_key_t of_caller, of_worker; /* a thread's own record; its caller's */
static int have_keys;

static void end_caller(void *record)
{
    fa_store(&((fa_caller *)record)->taken, 0);
}

static void end_worker(void *record)
{
    fa_add(&((fa_caller *)record)->workers, -1);
}

static void begin(fa_caller *c)
{
    fa_store(&c->workers, 0);
    c->last = c->found = c->all = c->promised = 0;
    c->asked = -1;
}

/* NULL if there is no record left. */
fa_caller *fa_caller_here(void)
{
    fa_caller *mine = have_keys ? pthread_getspecific(of_caller) : 0;
    for (fa_caller *c = callers; have_keys && !mine && c < callers + CALLERS; c++) {
        if (!fa_claim(&c->taken))
            continue;
        if (fa_load(&c->workers) != 0) { /* workers of its last owner have not ended */
            end_caller(c);
        } else {
            begin(c);
            mine = pthread_setspecific(of_caller, c) ? 0 : c;
            if (!mine)
                end_caller(c);
            break;
        }
    }
    return mine;
}

void fa_works_for(fa_caller *caller)
{
    fa_caller *before = have_keys ? pthread_getspecific(of_worker) : caller;
    if (before == caller || pthread_setspecific(of_worker, caller))
        return;
    if (before)
        end_worker(before);
    if (caller)
        fa_add(&caller->workers, 1);
}

/* Held while threads are made, as a test or for a region, so that nobody else takes them in between. */
static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;
static unsigned regions; /* that have made threads */

void fa_had_team(fa_caller *caller, int team, int held)
{
    if (caller) {
        caller->last = team;
        caller->promised = 0;
    }
    if (held) {
        regions++;
        pthread_mutex_unlock(&making);
    }
}

#ifdef FA_WEAK
extern size_t kmp_get_stacksize_s(void) FA_WEAK; /* LLVM's and Intel's runtimes have it */
#endif

static int keeps_threads; /* the runtime, those that a smaller region does not need */

/* The caller included. Threads that its last region did not need may be about to end. */
static int threads_of(const fa_caller *c)
{
    int workers = c ? fa_load(&c->workers) : 0;
    if (c && !keeps_threads && workers > c->last - 1)
        workers = c->last - 1;
    return workers < 1 ? 1 : workers + 1;
}

/* ---- threads that only show that they can be made */

static pthread_mutex_t barrier = PTHREAD_MUTEX_INITIALIZER; /* closed until all are there */
static pthread_t made[FA_MOST_THREADS];
static long ids[FA_MOST_THREADS];

static void *show(void *id)
{
    *(long *)id = fa_thread();
    pthread_mutex_lock(&barrier);
    pthread_mutex_unlock(&barrier);
    return 0;
}

/* Limits count a thread for some microseconds after it could be joined. */
static void wait_until_gone(long id)
{
    for (int tries = 0; tries < 1000 && fa_thread_counts(id); tries++)
        if (tries < 100)
            sched_yield();
        else
            usleep(100);
}

static size_t stack_size; /* of the runtime's threads; 0: it leaves that to the system */

static size_t read_size(const char *text)
{
    static const char units[] = "bBkKmMgG";
    char *end;
    unsigned long long size = strtoull(text, &end, 10);
    while (*end == ' ' || *end == '\t')
        end++;
    const char *unit = strchr(units, *end ? *end : 'k');
    int shift = unit ? 10 * (int)((unit - units) / 2) : 0;
    return unit && size < (size_t)-1 >> shift ? (size_t)size << shift : 0;
}

static size_t read_stack_size(void)
{
#ifdef FA_WEAK
    keeps_threads = kmp_get_stacksize_s != 0;
    if (keeps_threads) /* and some more for each number of a thread; glibc gives it ours, if those are large enough */
        return kmp_get_stacksize_s() + ((size_t)1 << 18);
#endif
    const char *size = getenv("OMP_STACKSIZE");
    if (!size)
        size = getenv("GOMP_STACKSIZE");
    return size ? read_size(size) : 0;
}

static int make(int wanted)
{
    int count = 0;
    pthread_attr_t like_theirs;
    pthread_attr_init(&like_theirs);
    if (stack_size)
        pthread_attr_setstacksize(&like_theirs, stack_size); /* if refused, the runtime takes the default, too */
    pthread_mutex_lock(&barrier);
    while (count < wanted && pthread_create(&made[count], &like_theirs, show, &ids[count]) == 0)
        count++;
    pthread_mutex_unlock(&barrier);
    for (int i = 0; i < count; i++)
        pthread_join(made[i], 0);
    for (int i = 0; i < count; i++)
        wait_until_gone(ids[i]);
    pthread_attr_destroy(&like_theirs);
    return count;
}

/* ---- how many threads there are */

static int room(fa_caller *caller, int team)
{
    int there = threads_of(caller);
    double now = fa_now();
    int known = caller && caller->asked >= 0 && now - caller->asked < BELIEVED && caller->after == regions;
    if (known && (team <= caller->found || caller->all))
        return team <= caller->found ? team : caller->found > there ? caller->found : there;
    int more = make((team < FA_MOST_THREADS ? team : FA_MOST_THREADS) - there + 1) - 1;
    int found = there + (more > 0 ? more : 0);
    if (caller) {
        caller->found = found;
        caller->all = found < team;
        caller->asked = now;
        caller->after = regions;
        if (caller->all)
            caller->promised = found;
    }
    return found < team ? found : team;
}

int fa_room(fa_caller *caller, int team)
{
    if (team <= threads_of(caller))
        return team;
    pthread_mutex_lock(&making);
    team = room(caller, team);
    pthread_mutex_unlock(&making);
    return team;
}

int fa_room_for_region(fa_caller *caller, int team, int *held)
{
    *held = 0;
    if (team <= threads_of(caller))
        return team;
    pthread_mutex_lock(&making);
    team = room(caller, team);
    *held = team > threads_of(caller);
    if (!*held)
        pthread_mutex_unlock(&making);
    return team;
}

int fa_has_room(int team)
{
    const fa_caller *caller = team > 1 ? fa_caller_here() : 0;
    return team <= 1 || (caller && (team <= caller->promised || team <= threads_of(caller)));
}

void fa_promise(int team)
{
    fa_caller *caller = fa_caller_here();
    if (caller && team > caller->promised)
        caller->promised = team;
}

int fa_known_room(void)
{
    const fa_caller *caller = fa_caller_here();
    return caller && caller->all ? caller->found : FA_MOST_THREADS;
}

static void forget(void) /* in a forked child, which has one thread */
{
    fa_caller *mine = have_keys ? pthread_getspecific(of_caller) : 0;
    for (fa_caller *c = callers; c < callers + CALLERS; c++) {
        c->taken = c == mine;
        begin(c);
    }
}

void fa_room_start(void)
{
    have_keys = !pthread_key_create(&of_caller, end_caller) && !pthread_key_create(&of_worker, end_worker);
    stack_size = read_stack_size();
    fa_at_fork(0, forget);
}

#else /* no threads, or nobody knows */

int fa_has_room(int team) { (void)team; return 1; }
int fa_known_room(void) { return FA_MOST_THREADS; }
void fa_room_start(void) {}
fa_caller *fa_caller_here(void) { return 0; }
int fa_room(fa_caller *caller, int team) { (void)caller; return team; }
int fa_room_for_region(fa_caller *caller, int team, int *held) { *held = 0; return fa_room(caller, team); }
void fa_works_for(fa_caller *caller) { (void)caller; }
void fa_had_team(fa_caller *caller, int team, int held) { (void)caller, (void)team, (void)held; }
void fa_promise(int team) { (void)team; }

#endif
