/* Preloaded: each thread is told that it runs on the first CPU that it may use. Changes of what it may use are counted,
 * and refused if `refuses`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>

int changes, refuses;

int sched_getcpu(void)
{
    cpu_set_t mine;
    sched_getaffinity(0, sizeof mine, &mine);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &mine))
            return cpu;
    return -1;
}

int sched_setaffinity(pid_t thread, size_t size, const cpu_set_t *cpus)
{
    int (*real)(pid_t, size_t, const cpu_set_t *) = (int (*)(pid_t, size_t, const cpu_set_t *))dlsym(RTLD_NEXT, __func__);
    __atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST);
    if (!refuses)
        return real(thread, size, cpus);
    errno = EPERM;
    return -1;
}
