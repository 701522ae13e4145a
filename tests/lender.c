/* Callers in several threads take steps on threads that are lent: every element must be updated once a step, whoever
 * decides meanwhile whether to borrow (tests/test_threads.py, .ci/sanitize). Prints how many steps were lent. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "fastadam.h"

enum { CALLERS = 3, STEPS = 300, MOST = 4, N = 1 << 17 };

static int lent, available = MOST;

/* As gotoblas_pthread, on threads that are made for each call. */
static int lend(int count, void *(*function)(void *), void *arguments, int stride)
{
    pthread_t threads[MOST];
    for (int i = 1; i < count; i++)
        if (pthread_create(&threads[i], 0, function, (char *)arguments + i * stride))
            exit(2);
    function(arguments);
    for (int i = 1; i < count; i++)
        pthread_join(threads[i], 0);
    __atomic_fetch_add(&lent, 1, __ATOMIC_SEQ_CST);
    return 0;
}

static int count_them(void)
{
    return __atomic_load_n(&available, __ATOMIC_SEQ_CST);
}

static void add_one(const fa_task *task, int64_t begin, int64_t end)
{
    unsigned short *x = task->array[FA_PARAM];
    for (int64_t i = begin; i < end; i++)
        x[i]++;
}

static const fa_kernel kernel = {add_one, 16, 0, 0, 0};

static void *take_steps(void *threads)
{
    fa_tuner tuners[FA_TUNERS];
    fa_task task;
    unsigned short *x = calloc(N, sizeof *x);
    memset(tuners, 0, sizeof tuners);
    memset(&task, 0, sizeof task);
    task.kernel = &kernel;
    task.array[FA_PARAM] = x;
    task.n = N;
    for (int i = 0; i < STEPS; i++) {
        fa_begin_writing();
        int team = fa_run(&task, 1, *(int *)threads, MOST, tuners);
        fa_end_writing();
        if (team < 1 || team > MOST || (fa_has_openmp() && *(int *)threads && team != *(int *)threads))
            exit(3);
    }
    for (int i = 0; i < N; i++)
        if (x[i] != STEPS)
            exit(4);
    free(x);
    return 0;
}

/* Takes the lender away, and brings it back. */
static void *come_and_go(void *done)
{
    while (!__atomic_load_n((int *)done, __ATOMIC_SEQ_CST)) {
        fa_borrow_from((fa_lender){0, 0}, 0);
        fa_borrow_from((fa_lender){lend, count_them}, 0);
    }
    return 0;
}

static int steps_lent(void)
{
    static int threads[CALLERS] = {0, 2, MOST}; /* 0: chosen */
    pthread_t callers[CALLERS];
    lent = 0;
    for (int i = 0; i < CALLERS; i++)
        if (pthread_create(&callers[i], 0, take_steps, &threads[i]))
            exit(2);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(callers[i], 0);
    return lent;
}

int main(void)
{
    fa_watch_forks();
    int without = steps_lent();
    fa_borrow_from((fa_lender){lend, count_them}, 0);
    fa_order_from_blas(1);
    int ordered = steps_lent();
    __atomic_store_n(&available, 3, __ATOMIC_SEQ_CST);
    int few = steps_lent(); /* not those of MOST threads, ordered */
    pthread_t other;
    int done = 0;
    if (pthread_create(&other, 0, come_and_go, &done))
        return 2;
    steps_lent();
    __atomic_store_n(&done, 1, __ATOMIC_SEQ_CST);
    pthread_join(other, 0);
    fa_order_from_blas(0);
    int chosen = steps_lent();
    fa_borrow_from((fa_lender){lend, count_them}, 1);
    int forbidden = steps_lent();
    printf("%d, %d, %d, %d, %d steps lent\n", without, ordered, few, chosen, forbidden);
    int openmp = fa_has_openmp();
    return without || forbidden || (openmp && (ordered < 2 * STEPS || few < STEPS || few > 2 * STEPS));
}
