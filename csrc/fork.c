/* The gate that forks wait at.
 *
 * A fork waits for what other threads are writing, so that no child sees half a step. Teams register what they do before
 * a fork and in the child. (OpenBLAS ends its threads before a fork, and makes others after it. It was loaded before us,
 * so it does that after our wait: nothing of ours runs there.) */
#include "threads.h"

#if FA_POSIX

enum { MOST_HOOKS = 4 }; /* more than there are teams */
static struct {
    void (*before)(void), (*in_child)(void);
} hooks[MOST_HOOKS];
static int count;

static pthread_rwlock_t gate;

void fa_at_fork(void (*before)(void), void (*in_child)(void))
{
    hooks[count].before = before;
    hooks[count++].in_child = in_child;
}

static void before_fork(void)
{
    pthread_rwlock_wrlock(&gate);
    for (int i = 0; i < count; i++)
        if (hooks[i].before)
            hooks[i].before();
}

static void in_parent(void)
{
    pthread_rwlock_unlock(&gate);
}

static void in_child(void)
{
    fa_rwlock_init(&gate);
    for (int i = 0; i < count; i++)
        if (hooks[i].in_child)
            hooks[i].in_child();
}

int fa_process(void)
{
    return (int)getpid();
}

void fa_gate_start(void)
{
    fa_rwlock_init(&gate);
    pthread_atfork(before_fork, in_parent, in_child);
}

void fa_gate_enter(void)
{
    pthread_rwlock_rdlock(&gate);
}

void fa_gate_leave(void)
{
    pthread_rwlock_unlock(&gate);
}

void fa_gate_lock(void)
{
    pthread_rwlock_wrlock(&gate);
}

void fa_gate_unlock(void)
{
    pthread_rwlock_unlock(&gate);
}

#else /* nothing forks */

void fa_at_fork(void (*before)(void), void (*in_child)(void)) { (void)before; (void)in_child; }
int fa_process(void) { return 0; }
void fa_gate_start(void) {}
void fa_gate_enter(void) {}
void fa_gate_leave(void) {}
void fa_gate_lock(void) {}
void fa_gate_unlock(void) {}

#endif
