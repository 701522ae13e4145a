/* Forking.
 *
 * A fork waits for what other threads are writing, so that no child sees half a step. (OpenBLAS ends its threads before
 * a fork, and makes others after it. It was loaded before us, so it does that after our wait: nothing of ours runs there.)
 *
 * libgomp's threads do not exist in a forked child, but its records of them do, so that a child's first parallel region
 * waits for ever. Giving the threads back before the fork (OpenMP 5's omp_pause_resource_all, hard) leaves parent and
 * child with records that are true: both make new threads when they need them. LLVM's and Intel's runtimes see to it
 * themselves, and deadlock if paused. In a child of any other runtime steps are serial. */
#define _GNU_SOURCE
#include <pthread.h>
#include "fastadam.h"

#ifdef _OPENMP
#include <dlfcn.h>
#include <omp.h>

enum { HARD = 2 }; /* omp_pause_hard, which old headers do not have */

static int (*pause_all)(int); /* libgomp's, if it has it */
static int safe;              /* the runtime, or the last pause, makes children whole */
static int orphaned;          /* this process is a child without the threads that its runtime believes in */

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

int fa_orphaned(void)
{
    return orphaned;
}

#else

static void find_runtime(void)
{
}

static void give_threads_back(void)
{
}

static void mark_child(void)
{
}

int fa_orphaned(void)
{
    return 0;
}

#endif

/* Steps share it; a fork has it alone, and is not kept waiting by steps that begin after it asked. */
static pthread_rwlock_t writing;

static void make_lock(void)
{
    pthread_rwlockattr_t kind;
    pthread_rwlockattr_init(&kind);
#ifdef __GLIBC__
    pthread_rwlockattr_setkind_np(&kind, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
    pthread_rwlock_init(&writing, &kind);
    pthread_rwlockattr_destroy(&kind);
}

static void before_fork(void)
{
    pthread_rwlock_wrlock(&writing);
    fa_callback_before_fork();
    give_threads_back();
}

static void in_parent(void)
{
    pthread_rwlock_unlock(&writing);
}

static void in_child(void)
{
    make_lock();
    fa_blas_forget();
    fa_room_forget();
    mark_child();
}

void fa_watch_forks(void)
{
    make_lock();
    find_runtime();
    fa_watch_threads();
    pthread_atfork(before_fork, in_parent, in_child);
}

void fa_begin_writing(void)
{
    pthread_rwlock_rdlock(&writing);
}

void fa_end_writing(void)
{
    pthread_rwlock_unlock(&writing);
}

void fa_begin_alone(void)
{
    pthread_rwlock_wrlock(&writing);
}

void fa_end_alone(void)
{
    pthread_rwlock_unlock(&writing);
}
