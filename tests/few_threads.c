/* Preloaded, a system that has few threads to give: pthread_create fails with EAGAIN where MOST_THREADS, an environment
 * variable that is read at each call, are alive beside the first one. (RLIMIT_NPROC does not hold for root, and containers
 * let nobody set a pids limit.) Counts what is made (tests/test_few_threads.py). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

typedef struct {
    void *(*run)(void *);
    void *argument;
} start;

int threads_alive, threads_made, threads_refused;

static void end(void *unused)
{
    (void)unused;
    __atomic_sub_fetch(&threads_alive, 1, __ATOMIC_SEQ_CST);
}

static void *run(void *argument)
{
    start mine = *(start *)argument;
    void *result;
    free(argument);
    pthread_cleanup_push(end, 0);
    result = mine.run(mine.argument);
    pthread_cleanup_pop(1);
    return result;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *), void *argument)
{
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    const char *most = getenv("MOST_THREADS");
    *(void **)&create = dlsym(RTLD_NEXT, "pthread_create");
    start *its = malloc(sizeof *its);
    *its = (start){function, argument};
    if (__atomic_add_fetch(&threads_alive, 1, __ATOMIC_SEQ_CST) <= (most ? atoi(most) : 1 << 30)) {
        int error = create(thread, attributes, run, its);
        if (error == 0) {
            __atomic_add_fetch(&threads_made, 1, __ATOMIC_SEQ_CST);
            return 0;
        }
    }
    free(its);
    end(0);
    __atomic_add_fetch(&threads_refused, 1, __ATOMIC_SEQ_CST);
    return EAGAIN;
}
