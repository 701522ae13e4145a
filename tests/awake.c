/* Decides about OpenBLAS's threads on imagined clocks (tests/test_threads.py). They stay awake for 0.11 s after a product
 * or a step that borrows them. Prints what share of the steps borrowed. */
#include <stdio.h>
#include <string.h>
#include "fastadam.h"

static double now, busy, asleep_at; /* the time, the thread's CPU clock, when it falls asleep */
static int64_t whose = 1;
static int readable;                /* once it has been borrowed */

static void pass(double seconds, double of_the_core)
{
    double awake = asleep_at - now;
    awake = awake < 0 ? 0 : awake > seconds ? seconds : awake;
    busy += awake * of_the_core;
    now += seconds;
}

typedef struct {
    const char *what;
    double product, pause, step; /* seconds of an iteration: a product if any, then nothing, then a step */
    double of_the_core;          /* what other programs leave of it */
    double least, most;          /* share of the steps that should borrow, in the long run */
} program;

static const program programs[] = {
    {"products, short steps", 0.0003, 0, 0.00005, 1, 0.9, 1},
    {"products, long steps", 0.06, 0, 0.02, 1, 0.9, 1},
    {"products now and then", 0.001, 0.09, 0.001, 1, 0.9, 1},
    {"no products, short steps", 0, 0, 0.0003, 1, 0, 0.02},
    {"no products, steps now and then", 0, 0.05, 0.001, 1, 0, 0.02},
    {"no products, rare steps", 0, 0.5, 0.01, 1, 0, 0.02},
    {"products beside a neighbour", 0.001, 0, 0.001, 0.6, 0, 0.02},
};

static int take_step(fa_awake *a, const program *p)
{
    if (p->product > 0) {
        asleep_at = now + p->product + 0.11;
        pass(p->product, p->of_the_core);
    }
    pass(p->pause, p->of_the_core);
    fa_reading clock = {readable, whose, busy};
    int borrows = fa_awake_is_due(a, now) ? fa_awake_decide(a, now, clock) : fa_awake_borrows(a);
    if (borrows) {
        asleep_at = now + p->step + 0.11;
        readable = 1;
    }
    pass(p->step, p->of_the_core);
    return borrows;
}

/* The share of the steps within so many seconds. */
static double borrowed(fa_awake *a, const program *p, double seconds)
{
    int steps = 0, lent = 0;
    for (double until = now + seconds; now < until; steps++)
        lent += take_step(a, p);
    return (double)lent / steps;
}

static int check(const char *what, const program *p, double share)
{
    printf("%s: %.3f\n", what, share);
    return share < p->least || share > p->most;
}

int main(void)
{
    int failed = 0;
    fa_awake a;
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        const program *p = &programs[i];
        memset(&a, 0, sizeof a);
        readable = 0;
        failed += !take_step(&a, p); /* a program begins with them */
        borrowed(&a, p, 60);
        failed += check(p->what, p, borrowed(&a, p, 300));
    }

    /* Products end, and begin again: either is seen within the longest term. */
    const program *with = &programs[0], *without = &programs[3];
    memset(&a, 0, sizeof a);
    borrowed(&a, with, 100);
    borrowed(&a, without, 33);
    failed += check("products ended", without, borrowed(&a, without, 10));
    borrowed(&a, with, 0.1);
    failed += borrowed(&a, with, 0.5) < 0.9;

    /* A fork: another thread, another clock. One step introduces it, and what was known holds on. */
    borrowed(&a, without, 40);
    whose++, busy = 0, readable = 0;
    failed += check("a fork without products", without, borrowed(&a, without, 10));
    whose++, busy += 1000; /* it has worked more than the one before ever did, which does not mean now */
    failed += check("another thread without products", without, borrowed(&a, without, 10));
    borrowed(&a, with, 100);
    whose++, busy = 0, readable = 0;
    failed += check("a fork with products", with, borrowed(&a, with, 40));

    /* Nobody can read the clock: hardly ever. */
    memset(&a, 0, sizeof a);
    int lent = 0;
    for (int i = 0; i < 1000000; i++, readable = 0)
        lent += take_step(&a, with);
    printf("no clock: %.3f\n", lent / 1e6);
    failed += lent > 50000;

    /* Ordered steps kept them awake until now, which says nothing. */
    memset(&a, 0, sizeof a);
    borrowed(&a, without, 40);
    asleep_at = now + 10;
    pass(10, 1);
    asleep_at = now + 0.11;
    fa_awake_rest(&a, now);
    failed += check("after an order", without, borrowed(&a, without, 10));
    return failed;
}
