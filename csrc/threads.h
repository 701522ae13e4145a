/* What the files about threads tell each other. Calls go down this list:
 *
 *     team_shared.c -> driver.c -> tuner.c, team_openmp.c -> room.c, fork.c
 */
#ifndef FASTADAM_THREADS_H
#define FASTADAM_THREADS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define FA_NEEDS_SYSTEM
#include "fastadam.h"

/* ---- teams (driver.c takes one) */

typedef void (*fa_part)(int part, int parts, void *data);

typedef struct {
    const char *name;
    int64_t at_first; /* lines for each thread, if nothing has been measured */
    /* How many of the wanted threads has it? 0: none now, take another team. If make, the system is asked. */
    int (*width)(int wanted, int make);
    int (*run)(fa_part part, void *data, int width); /* all parts, at the same time; returns how many there were */
} fa_team;

void fa_prefer_team(const fa_team *team); /* for all steps, while it has threads; NULL: OpenMP's */

extern const fa_team fa_openmp_team;
void fa_openmp_start(void); /* call once, before fa_gate_start */
int fa_is_serial_here(void); /* inside a parallel region, and in an orphaned child */

/* ---- room for OpenMP's threads (room.c) */

typedef struct fa_caller fa_caller; /* what is known of a Python thread's team */
void fa_room_start(void);           /* call once */
fa_caller *fa_caller_here(void);
int fa_room(fa_caller *caller, int team); /* threads that there are, of so many, for its next region */
int fa_room_for_region(fa_caller *caller, int team, int *held); /* the same; held: nobody else makes any, until fa_had_team */
void fa_works_for(fa_caller *caller);     /* said by each worker of a region */
void fa_had_team(fa_caller *caller, int team, int held);
void fa_promise(int team);                /* the calling thread has so many, until its next region */

/* ---- forks (fork.c) */

void fa_at_fork(void (*before)(void), void (*in_child)(void)); /* NULL: nothing */
void fa_gate_start(void);                                      /* call once */

#endif
