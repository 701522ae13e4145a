/* Tasks to threads.
 *
 * All tasks of a step are laid end to end and measured in cache lines of parameters, so a float64 element counts
 * twice a float32 one. Each thread takes one contiguous share of equal length: a thousand small arrays cost one
 * parallel region, and one large array is cut evenly. The threads are those that
 * OpenBLAS computes on, while that can be (blas.c), else OpenMP's. */
#include "fastadam.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* The automatic choice never gives a thread less than ENOUGH: alone, two threads break even there. What it takes if
 * nothing has been measured is one for each AT_FIRST (8 MiB of parameters), because between BLAS calls, whose own
 * workers still spin on the other cores, more threads gain nothing before that (python -m bench loop). */
enum { ENOUGH = 2048, AT_FIRST = 131072 }; /* cache lines */

static int64_t lay_end_to_end(fa_task *tasks, int64_t count)
{
    int64_t lines = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t line = tasks[i].kernel->line;
        tasks[i].first = lines;
        lines += tasks[i].n / line + (tasks[i].n % line != 0);
    }
    return lines;
}

/* The last task that begins at or before the given line. */
static int64_t task_at(const fa_task *tasks, int64_t count, int64_t line)
{
    int64_t low = 0, high = count;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (tasks[middle].first <= line)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void run_share(const fa_task *tasks, int64_t count, int64_t lines, int part, int parts)
{
    int64_t each = lines / parts, rest = lines % parts;
    int64_t from = each * part + (part < rest ? part : rest);
    int64_t to = from + each + (part < rest);

    fa_fp_state saved;
    fa_fp_default(&saved);
    for (int64_t i = task_at(tasks, count, from); i < count && tasks[i].first < to; i++) {
        const fa_task *t = &tasks[i];
        int64_t line = t->kernel->line;
        int64_t begin = from > t->first ? (from - t->first) * line : 0;
        int64_t end = t->n / line < to - t->first ? t->n : (to - t->first) * line;
        if (begin < end)
            fa_run_range(t, begin, end);
    }
    fa_fp_restore(&saved);
}

#ifdef _OPENMP

int fa_has_openmp(void)
{
    return 1;
}

int fa_max_threads(void)
{
    if (fa_orphaned() || omp_in_parallel())
        return 1;
    int threads = omp_get_max_threads(), cpus = omp_get_num_procs();
    return threads < cpus ? threads : cpus;
}

typedef struct {
    const fa_task *tasks;
    int64_t count, lines;
} step;

static void run_part(int part, int parts, void *data)
{
    const step *s = data;
    run_share(s->tasks, s->count, s->lines, part, parts);
}

static int between_one_and(int64_t most, int64_t threads)
{
    if (threads > most)
        threads = most;
    return threads < 1 ? 1 : (int)threads;
}

static int ran_on_blas;

int fa_ran_on_blas(void)
{
    return __atomic_load_n(&ran_on_blas, __ATOMIC_RELAXED);
}

static int run_team(step *s, int team, int lent)
{
    if (lent && team > 1)
        return fa_run_on_blas(run_part, s, team, 0);
    fa_caller *caller = team > 1 ? fa_caller_here() : 0;
    int held = 0;
    if (team > 1)
        team = fa_room_for_region(caller, between_one_and(omp_get_thread_limit(), team), &held);
    if (team == 1) {
        run_part(0, 1, s);
        return 1;
    }
#pragma omp parallel num_threads(team)
    {
        if (omp_get_thread_num() > 0)
            fa_works_for(caller);
#pragma omp single nowait
        team = omp_get_num_threads(); /* the runtime may give fewer than asked for */
        run_part(omp_get_thread_num(), omp_get_num_threads(), s);
    }
    fa_had_team(caller, team, held);
    return team;
}

int fa_order(int threads)
{
    if (threads <= 1 || fa_orphaned() || omp_in_parallel())
        return threads; /* there is no team anyway */
    fa_fp_state saved;
    fa_fp_default(&saved);
    fa_caller *caller = fa_caller_here();
    int team = between_one_and(omp_get_thread_limit(), threads), there = fa_blas_room(team);
    if (there == 0)
        there = fa_room(caller, team);
    if (there == team)
        fa_promise(caller, threads);
    fa_fp_restore(&saved);
    return there < team ? there : threads;
}

int fa_run(fa_task *tasks, int64_t count, int threads, int bound, fa_tuner *tuners)
{
    step all = {tasks, count, lay_end_to_end(tasks, count)};
    int most = threads > 0 ? between_one_and(all.lines, threads) : between_one_and(all.lines / ENOUGH, bound);
    if (most > 1 && (fa_orphaned() || omp_in_parallel()))
        most = 1;
    if (most > 1 && threads <= 0)
        most = between_one_and(most, fa_max_threads());
    if (most == 1)
        return run_team(&all, 1, 0);
    fa_fp_state saved; /* reading clocks, too, raises flags, and rounds */
    fa_fp_default(&saved);
    double now = omp_get_wtime();
    int lent = fa_blas_team(most, threads > 0, now), on_blas = lent > 0;
    __atomic_store_n(&ran_on_blas, on_blas, __ATOMIC_RELAXED);
    if (lent)
        most = lent;
    int team = threads > 0 || lent ? most : between_one_and(most, all.lines / AT_FIRST);
    if (threads > 0 || !tuners) {
        team = run_team(&all, team, on_blas);
    } else {
        fa_tuner *tuner = &tuners[on_blas];
        tuners[!on_blas].away = 1;
        team = run_team(&all, fa_tuner_next(tuner, all.lines, team, most, now), on_blas);
        fa_tuner_done(tuner, omp_get_wtime());
    }
    fa_fp_restore(&saved);
    return team;
}

#else

int fa_has_openmp(void)
{
    return 0;
}

int fa_max_threads(void)
{
    return 1;
}

int fa_ran_on_blas(void)
{
    return 0;
}

int fa_order(int threads)
{
    return threads;
}

int fa_run(fa_task *tasks, int64_t count, int threads, int bound, fa_tuner *tuners)
{
    (void)threads;
    (void)bound;
    (void)tuners;
    run_share(tasks, count, lay_end_to_end(tasks, count), 0, 1);
    return 1;
}

#endif
