/* Drives the choice of threads through imagined programs, on an imagined clock (tests/test_threads.py). */
#include <stdio.h>
#include <string.h>
#include "fastadam.h"

/* A program: seconds of a step and of the rest of an iteration, with so many threads. */
typedef struct {
    const char *what;
    int most, expected;
    double step, least;   /* a step takes step / threads, but with several threads at least step * least ... */
    double rest, harm;    /* ... and the rest takes rest + harm for each thread after the first */
    double switching;     /* the first step after another number of threads takes so much longer */
} program;

static const program programs[] = {
    {"back to back, 2 cores", 2, 2, 1, 0, 0, 0, 0},
    {"back to back, 6 cores", 6, 6, 1, 0, 0, 0, 0},
    {"back to back, 16 cores", 16, 16, 1, 0, 0, 0, 0},
    {"waking workers takes long", 2, 2, 1, 0, 0, 0, 5},
    {"at the memory limit with 4", 16, 4, 1, 0.25, 0, 0.02, 0},
    {"the cores are busy", 2, 1, 1, 1, 10, 0, 0},
    {"worth it", 2, 2, 1, 0, 10, 0.1, 0},
    {"faster steps, slower rest", 2, 1, 1, 0, 10, 0.7, 0},
    {"one core", 1, 1, 1, 0, 1, 0, 0},
};

static unsigned random_state = 1;

static double noise(void) /* a tenth more or less, and now and then a long break */
{
    random_state = random_state * 1664525u + 1013904223u;
    unsigned r = random_state >> 16;
    return r % 23 == 0 ? 20 : 0.95 + 0.1 * (r % 1000) / 1000;
}

static double now;
static int last;
static const void *team;

static int take_step(fa_tuner *t, const program *p, int64_t lines)
{
    int threads = fa_tuner_next(t, lines, team, 1, p->most, now);
    if (threads < 1 || threads > p->most)
        return -1;
    double part = threads > 1 && p->least > 1.0 / threads ? p->least : 1.0 / threads;
    now += p->step * part * noise() + (threads != last ? p->switching : 0);
    fa_tuner_done(t, now);
    now += (p->rest + p->harm * (threads - 1)) * noise();
    last = threads;
    return threads;
}

/* Of so many steps, how many were taken with another number of threads than expected? */
static int astray(fa_tuner *t, const program *p, int64_t lines, int steps)
{
    int other = 0;
    for (int i = 0; i < steps; i++)
        other += take_step(t, p, lines) != p->expected;
    return other;
}

int main(void)
{
    int failed = 0;
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        fa_tuner t;
        memset(&t, 0, sizeof t);
        last = 1;
        astray(&t, &programs[i], 100000, 3000);
        int other = astray(&t, &programs[i], 100000, 10000);
        printf("%s: %d of 10000 steps astray\n", programs[i].what, other);
        failed += other > 300;
    }

    /* The program changes while it runs: a neighbour takes the other core, and goes. */
    fa_tuner t;
    memset(&t, 0, sizeof t);
    program busy = programs[0];
    busy.least = 8;
    busy.expected = 1;
    astray(&t, &programs[0], 100000, 10000);
    int hurt = astray(&t, &busy, 100000, 1000);
    int late = astray(&t, &programs[0], 100000, 5000);
    printf("a neighbour: %d steps with too many threads, then %d with too few\n", hurt, late);
    failed += hurt > 60 || late > 2500;

    /* Two kinds of work take turns: the first is learned, and its guess serves the other. */
    memset(&t, 0, sizeof t);
    int wrong = 0;
    for (int i = 0; i < 5000; i++) {
        int chosen = take_step(&t, &programs[0], 100000);
        wrong += i > 500 && chosen != 2;
        now += 0.1;
        wrong += fa_tuner_next(&t, 20000, team, 1, 2, now) != 1;
        fa_tuner_done(&t, now += 0.1);
    }
    printf("two kinds: %d of 10000 steps astray\n", wrong);
    failed += wrong > 150;

    /* The work that was learned first becomes rare: the other is learned instead. */
    memset(&t, 0, sizeof t);
    int late_learned = 0;
    for (int i = 0; i < 1000; i++)
        late_learned += take_step(&t, &programs[0], i % 8 ? 100000 : 20000) != 2 && i % 8 && i > 200;
    printf("rare and common: %d of 1000 steps astray\n", late_learned);
    failed += late_learned > 60;

    /* Other work: what was learned is forgotten. */
    int other = astray(&t, &programs[5], 1000000, 100);
    printf("other work: %d of 100 steps astray\n", other);
    failed += other > 20;

    /* Another team, for which that is not true: likewise. */
    astray(&t, &programs[5], 1000000, 3000);
    team = &t;
    other = astray(&t, &programs[0], 1000000, 100);
    printf("another team: %d of 100 steps astray\n", other);
    failed += other > 40;
    return failed;
}
