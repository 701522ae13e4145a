/* How many threads? Measured, because nothing else can know what the cores are busy with.
 *
 * Results do not depend on the number of threads, so each step is free to try another one. What counts is the whole
 * period from one step's start to the next one's: threads that make the step shorter may make the rest of the program
 * slower, by competing with the workers of a BLAS. From time to time a few steps are taken with half as many, as many
 * and twice as many threads as now; more are kept if they make the step itself shorter and the period, too. */
#include <string.h>
#include "fastadam.h"

enum {
    TRIES = FA_TUNER_TRIES, /* steps with each number of threads; the first ones, which wake workers, do not count */
    WAKING = 2,
    SHORTEST = 128,         /* steps between trials, doubled as long as nothing changes */
    LONGEST = 2048,
    PATIENCE = 8,           /* slow steps (twice the usual time) that start a trial; steps of other work that begin anew */
};

static double median(const double *samples)
{
    double sorted[TRIES - WAKING];
    for (int i = 0; i < TRIES - WAKING; i++) {
        int place = i;
        for (; place > 0 && sorted[place - 1] > samples[WAKING + i]; place--)
            sorted[place] = sorted[place - 1];
        sorted[place] = samples[WAKING + i];
    }
    return sorted[(TRIES - WAKING) / 2];
}

static void start_trial(fa_tuner *t)
{
    t->count = 0;
    if (t->best > 1)
        t->candidates[t->count++] = t->best / 2;
    t->candidates[t->count++] = t->best;
    if (t->best < t->most)
        t->candidates[t->count++] = 2 * t->best < t->most ? 2 * t->best : t->most;
    t->candidate = t->tried = 0;
}

static void decide(fa_tuner *t)
{
    int best = 0;
    for (int i = 1; i < t->count; i++)
        if (median(t->own[i]) < 0.9 * median(t->own[best]) && median(t->period[i]) < median(t->period[best]))
            best = i;
    t->rest = t->candidates[best] == t->best ? 2 * t->rest : SHORTEST;
    if (t->rest < SHORTEST)
        t->rest = SHORTEST;
    if (t->rest > LONGEST)
        t->rest = LONGEST;
    t->best = t->candidates[best];
    t->usual = median(t->own[best]);
    t->count = t->rested = t->slow = 0;
}

int fa_tuner_next(fa_tuner *t, int64_t lines, const void *team, int start, int most, double now)
{
    int known = lines > t->lines / 4 * 3 && lines / 4 * 3 < t->lines && team == t->team && most == t->most;
    t->is_other = !known;
    t->others += known ? -(t->others > 0) : 1;
    if (!known && t->lines && t->others < PATIENCE)
        return start; /* a step now and then of other work, which is not to spoil what is known */
    if (!known) {
        memset(t, 0, sizeof *t);
        t->lines = lines;
        t->team = team;
        t->most = most;
        t->best = start;
        start_trial(t);
    } else if (t->count) {
        t->period[t->candidate][t->tried] = now - t->started;
        if (++t->tried == TRIES) {
            t->tried = 0;
            if (++t->candidate == t->count)
                decide(t);
        }
    } else if (++t->rested >= t->rest || t->slow >= PATIENCE) {
        if (t->slow >= PATIENCE)
            t->rest = 0;
        start_trial(t);
    }
    t->started = now;
    return t->count ? t->candidates[t->candidate] : t->best;
}

void fa_tuner_done(fa_tuner *t, double now)
{
    double own = now - t->started;
    if (t->is_other)
        return;
    if (t->count)
        t->own[t->candidate][t->tried] = own;
    else
        t->slow = own > 2 * t->usual ? t->slow + 1 : 0;
}
