/* Are OpenBLAS's threads awake without us? (blas.c says why that counts.)
 *
 * A program begins by borrowing them. From time to time steps leave them alone for longer than they look for work, and
 * then the CPU clock of one of them tells whether products keep it awake; if not, they are left alone until some do. The
 * clock also tells, while they are borrowed, that other programs want their cores: then they are no good team, because a
 * step ends with its last thread. Clocks are read by the caller, so that a test can imagine them. */
#include "fastadam.h"

enum { NOTHING_KNOWN, BORROWING, RESTING, WATCHING };

/* Seconds. They look for work for 2^28 ticks of a clock of 2 GHz and more (a user who sets OPENBLAS_THREAD_TIMEOUT to
 * longer wants them awake). */
static const double REST = 0.25, FIRST_TERM = 1, LONGEST_TERM = 32;
static const double TO_SEE_THEM_AWAKE = 0.01, TO_SEE_THEM_HINDERED = 0.1;
static const double AWAKE = 0.75; /* of the time: less where others want the cores */

static int begin(fa_awake *a, int next, double seconds, double now)
{
    a->phase = next;
    a->until = now + seconds;
    return next == BORROWING;
}

int fa_awake_is_due(const fa_awake *a, double now)
{
    switch (a->phase) {
    case RESTING:
        return now >= a->until;
    case WATCHING:
        return now - a->seen >= TO_SEE_THEM_AWAKE;
    case BORROWING:
        return now - a->seen >= TO_SEE_THEM_HINDERED;
    default:
        return 1;
    }
}

int fa_awake_borrows(const fa_awake *a)
{
    return a->phase == BORROWING;
}

int fa_awake_decide(fa_awake *a, double now, fa_reading clock)
{
    fa_reading before = a->clock;
    double since = now - a->seen;
    int known = clock.known && before.known && clock.whose == before.whose;
    int awake = known && clock.seconds - before.seconds > AWAKE * since;
    a->seen = now;
    a->clock = clock;
    switch (a->phase) {
    case NOTHING_KNOWN:
        a->term = FIRST_TERM;
        return begin(a, BORROWING, a->term, now);
    case BORROWING:
        if (known && !awake) { /* they sleep between steps, or have to share their cores */
            a->term = FIRST_TERM / 2;
            return begin(a, RESTING, REST, now);
        }
        if (now < a->until)
            return 1;
        return begin(a, RESTING, clock.known ? REST : LONGEST_TERM, now);
    case RESTING:
        if (!clock.known) /* the one that was known has ended, in a fork: a step introduces another */
            return begin(a, BORROWING, 0, now);
        return begin(a, WATCHING, 0, now);
    default:
        if (!clock.known)
            return begin(a, BORROWING, 0, now);
        if (!awake) {
            a->term = FIRST_TERM / 2;
            return 0;
        }
        a->term = a->term < LONGEST_TERM ? 2 * a->term : LONGEST_TERM;
        return begin(a, BORROWING, a->term, now);
    }
}

void fa_awake_rest(fa_awake *a, double now)
{
    begin(a, RESTING, REST, now);
}
