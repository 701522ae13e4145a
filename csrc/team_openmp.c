/* OpenMP's team: one parallel region a step, of no more threads than there are (room.c). */
#include "threads.h"

/* If nothing has been measured, a step takes a thread for each AT_FIRST (8 MiB of parameters): between BLAS calls, whose
 * workers still spin on the other cores, more threads gain nothing (python -m bench loop). */
enum { AT_FIRST = 131072 }; /* cache lines */

enum { /* how often one looks whether the others have come, at 10 to 50 ns a look */
    AWAKE = 50,     /* to begin: who is awake takes less */
    SHARES = 10000, /* to end: as long as shares of work differ */
};
enum { /* nanoseconds */
    SLOW = 500000,       /* a move that took a time slice: the other CPUs are busy */
    REST = 50,           /* times as long as it took nobody moves */
    LONGEST = 1000000000 /* but no longer */
};

#ifdef _OPENMP
#include <omp.h>

/* ---- forks
 *
 * libgomp's threads do not exist in a forked child, but its records of them do, so that a child's first parallel region
 * waits for ever. Giving the threads back before the fork (OpenMP 5's omp_pause_resource_all, hard) leaves parent and
 * child with records that are true: both make new threads when they need them. LLVM's and Intel's runtimes see to it
 * themselves, and deadlock if paused. In a child of any other runtime steps are serial. */

static int orphaned; /* this process is a child without the threads that its runtime believes in */

#if FA_POSIX
#include <dlfcn.h>

enum { HARD = 2 }; /* omp_pause_hard, which old headers do not have */

static int (*pause_all)(int); /* libgomp's, if it has it */
static int safe;              /* children have whole teams, by the runtime or by the last pause */

static void find_runtime(void)
{
    Dl_info runtime;
    void *library = 0;
    if (dladdr((void *)(uintptr_t)omp_get_max_threads, &runtime) && runtime.dli_fname)
        library = dlopen(runtime.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (!library)
        return;
    safe = dlsym(library, "kmp_get_blocktime") != 0; /* LLVM's or Intel's, which may pose as libgomp */
    if (safe)
        omp_get_max_threads(); /* it registers its own handlers now, so that ours, which wait for regions, run first */
    if (!safe && dlsym(library, "GOMP_parallel"))
        *(void **)&pause_all = dlsym(library, "omp_pause_resource_all");
}

static void give_threads_back(void)
{
    if (pause_all)
        safe = !omp_in_parallel() && pause_all(HARD) == 0;
}

static void mark_child(void)
{
    if (!safe)
        orphaned = 1;
}

void fa_openmp_start(void)
{
    find_runtime();
    fa_at_fork(give_threads_back, mark_child);
    fa_room_start();
}

#else

void fa_openmp_start(void)
{
    fa_room_start();
}

#endif

/* ---- the team */

int fa_has_openmp(void)
{
    return 1;
}

int fa_is_serial_here(void)
{
    return orphaned || omp_in_parallel();
}

int fa_max_threads(void)
{
    if (fa_is_serial_here())
        return 1;
    int threads = omp_get_max_threads(), cpus = omp_get_num_procs();
    return threads < cpus ? threads : cpus;
}

static int limited(int threads)
{
    int most = omp_get_thread_limit();
    return threads < most ? threads : most < 1 ? 1 : most;
}

static int width(int wanted, int make)
{
    int team = limited(wanted), there = make ? fa_room(fa_caller_here(), team) : team;
    if (there < team)
        return there;
    if (make)
        fa_promise(wanted);
    return wanted; /* who limits the runtime's threads knows why there are fewer */
}

static int meet(int *arrived, int team, int looks) /* are all there? */
{
    fa_add(arrived, 1);
    while (fa_load(arrived) < team && looks-- > 0)
        fa_relax();
    return fa_load(arrived) == team;
}

/* ---- a CPU for each worker (docs/design.md) */

#if FA_AFFINITY

static int64_t not_before; /* nobody moves */

static void let_worker_run(void) /* it may wait for this CPU */
{
    if (fa_nanoseconds() >= fa_load(&not_before))
        sched_yield();
}

static void leave_cpu(int cpu)
{
    cpu_set_t mine, others;
    int64_t now;
    if (cpu < 0 || fa_cpu() != cpu || (now = fa_nanoseconds()) < fa_load(&not_before))
        return;
    int failed = sched_getaffinity(0, sizeof mine, &mine);
    if (!failed) {
        others = mine;
        CPU_CLR(cpu, &others);
        failed = sched_setaffinity(0, sizeof others, &others) || sched_setaffinity(0, sizeof mine, &mine);
    }
    int64_t took = fa_nanoseconds() - now;
    if (failed || took > LONGEST / REST)
        fa_store(&not_before, now + LONGEST);
    else if (took > SLOW)
        fa_store(&not_before, now + REST * took);
}

#else

static void let_worker_run(void) {}
static void leave_cpu(int cpu) { (void)cpu; }

#endif

static int run(fa_part part, void *data, int team)
{
    fa_caller *caller = team > 1 ? fa_caller_here() : 0;
    int held = 0, begun = 0, done = 0;
    if (team > 1)
        team = fa_room_for_region(caller, limited(team), &held);
    if (team <= 1) {
        part(0, 1, data);
        return 1;
    }
    int crowded = team > omp_get_num_procs(), cpu = crowded ? -1 : fa_cpu(); /* then nobody waits or moves */
#pragma omp parallel num_threads(team)
    {
        int number = omp_get_thread_num(), there = omp_get_num_threads(); /* the runtime may give fewer than asked for */
        if (number > 0) {
            leave_cpu(cpu);
            fa_works_for(caller);
            fa_add(&begun, 1);
        } else {
            team = there;
            if (!meet(&begun, there, crowded ? 0 : AWAKE) && !crowded)
                let_worker_run();
        }
        part(number, there, data);
        /* Who is done first would fall asleep in OpenMP's barrier and have to be woken. Who has not begun needs a CPU. */
        meet(&done, there, crowded || fa_load(&begun) < there ? 0 : SHARES);
    }
    fa_had_team(caller, team, held);
    return team;
}

#else /* serial */

void fa_openmp_start(void) {}
int fa_has_openmp(void) { return 0; }
int fa_is_serial_here(void) { return 1; }
int fa_max_threads(void) { return 1; }
static int width(int wanted, int make) { (void)make; return wanted; }
static int run(fa_part part, void *data, int team) { (void)team; part(0, 1, data); return 1; }

#endif

const fa_team fa_openmp_team = {"OpenMP", AT_FIRST, width, run};
