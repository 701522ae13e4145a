/* Forking. libgomp's threads do not exist in a forked child, but its records of them do, so that a child's first
 * parallel region waits for ever. Giving the threads back before the fork (OpenMP 5's omp_pause_resource_all, hard)
 * leaves parent and child with records that are true: both make new threads when they need them. LLVM's and Intel's
 * runtimes see to it themselves, and deadlock if paused. In a child of any other runtime steps are serial. */
#define _GNU_SOURCE
#include "fastadam.h"

#ifdef _OPENMP
#include <dlfcn.h>
#include <omp.h>
#include <pthread.h>
#include <string.h>

enum { HARD = 2 }; /* omp_pause_hard, which old headers do not have */

static int (*pause_all)(int); /* libgomp's, if it has it */
static int safe;              /* the runtime, or the last pause, makes children whole */
static int orphaned;          /* this process is a child without the threads that its runtime believes in */

static void before_fork(void)
{
    if (pause_all)
        safe = !omp_in_parallel() && pause_all(HARD) == 0;
}

static void in_child(void)
{
    if (!safe)
        orphaned = 1;
}

void fa_watch_forks(void)
{
    Dl_info runtime;
    if (dladdr((void *)(uintptr_t)omp_get_max_threads, &runtime) && runtime.dli_fname) {
        const char *slash = strrchr(runtime.dli_fname, '/'), *name = slash ? slash + 1 : runtime.dli_fname;
        void *library = dlopen(runtime.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
        if (strncmp(name, "libgomp", 7) == 0 && library)
            *(void **)&pause_all = dlsym(library, "omp_pause_resource_all");
        safe = strncmp(name, "libomp", 6) == 0 || strncmp(name, "libiomp", 7) == 0;
    }
    pthread_atfork(before_fork, 0, in_child);
}

int fa_orphaned(void)
{
    return orphaned;
}

#else

void fa_watch_forks(void)
{
}

int fa_orphaned(void)
{
    return 0;
}

#endif
