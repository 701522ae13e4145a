/* Tasks to threads.
 *
 * All tasks of a step are laid end to end and measured in cache lines of parameters, so a float64 element counts
 * twice a float32 one. Each thread takes one contiguous share of equal length: a thousand small arrays cost one
 * parallel region, and one large array is cut evenly. The threads are a team's, of which only width and run are known
 * here. */
#include "threads.h"
#include <limits.h>

/* The automatic choice never gives a thread less: alone, two threads break even there. */
enum { ENOUGH = 2048 }; /* cache lines */

static int64_t lay_end_to_end(fa_task *tasks, int64_t count)
{
    int64_t lines = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t line = tasks[i].kernel->line;
        tasks[i].first = lines;
        lines += (tasks[i].n + line - 1) / line;
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

/* A thread takes whole cache lines; of arrays in other formats, whole blocks. */
static int64_t cut_at(const fa_task *t, int64_t line)
{
    int64_t at = line * t->kernel->line;
    return t->formats ? (at + FA_CODED - 1) / FA_CODED * FA_CODED : at;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void run_share(const fa_task *tasks, int64_t count, int64_t lines, int part, int parts)
{
    int64_t each = lines / parts, rest = lines % parts;
    int64_t from = each * part + (part < rest ? part : rest);
    int64_t to = from + each + (part < rest);

    fa_fp_state saved;
    fa_fp_default(&saved);
    const fa_task *end_of_tasks = tasks + count;
    for (const fa_task *t = tasks + task_at(tasks, count, from); t < end_of_tasks && t->first < to; t++) {
        int64_t next = t + 1 < end_of_tasks ? t[1].first : lines;
        int64_t begin = from <= t->first ? 0 : cut_at(t, from - t->first);
        int64_t end = next <= to ? t->n : least(cut_at(t, to - t->first), t->n);
        if (begin < end)
            (t->rows ? fa_run_rows : fa_run_range)(t, begin, end);
    }
    fa_fp_restore(&saved);
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

static const fa_team *preferred, *last = &fa_openmp_team;

void fa_prefer_team(const fa_team *team)
{
    fa_store(&preferred, team);
}

static const fa_team *team_for(int wanted, int make, int *width)
{
    const fa_team *team = fa_load(&preferred);
    if (!team || (*width = team->width(wanted, make)) < 1) {
        team = &fa_openmp_team;
        *width = team->width(wanted, make);
    }
    return team;
}

int fa_order(int threads)
{
    if (threads <= 1 || fa_is_serial_here())
        return threads; /* there is no team anyway */
    fa_fp_state saved; /* clocks are read, which raises flags, and rounds */
    fa_fp_default(&saved);
    int there;
    team_for(threads, 1, &there);
    fa_fp_restore(&saved);
    return there;
}

static int bound_of_all = INT_MAX; /* threads */

void fa_set_thread_bound(int most)
{
    fa_store(&bound_of_all, most);
}

int fa_thread_bound(void)
{
    return fa_load(&bound_of_all);
}

/* Without an order. */
static int most_for(int64_t lines, int bound)
{
    int most = between_one_and(lines / ENOUGH, bound);
    return most > 1 ? between_one_and(most, fa_max_threads()) : most;
}

int fa_guess(int64_t lines, int bound)
{
    int most = most_for(lines, bound);
    if (most == 1)
        return 1;
    const fa_team *team = team_for(most, 0, &most);
    return between_one_and(most, lines / team->at_first);
}

int fa_run(fa_task *tasks, int64_t count, int threads, int bound, fa_tuner *tuner)
{
    step all = {tasks, count, lay_end_to_end(tasks, count)};
    int most = threads > 0 ? between_one_and(all.lines, threads) : most_for(all.lines, bound);
    if (most > 1 && fa_is_serial_here())
        most = 1;
    if (most == 1) {
        run_part(0, 1, &all);
        return 1;
    }
    fa_fp_state saved;
    fa_fp_default(&saved);
    const fa_team *team = team_for(most, 0, &most);
    fa_store(&last, team);
    int width = threads > 0 ? most : between_one_and(most, all.lines / team->at_first);
    const fa_team *wanted = fa_load(&preferred);
    int learns = tuner && threads <= 0 && (!wanted || team == wanted); /* not from what stands in for a busy team */
    if (learns)
        width = fa_tuner_next(tuner, all.lines, team, width, most, fa_now());
    width = team->run(run_part, &all, width);
    if (learns)
        fa_tuner_done(tuner, fa_now());
    fa_fp_restore(&saved);
    return width;
}

const char *fa_steps_on(void)
{
    return fa_load(&last)->name;
}

void fa_start(void)
{
    fa_openmp_start();
    fa_gate_start();
}
