/* SPDX-License-Identifier: BSD-3-Clause */

/* Threads that take turns: one runs at a time, up to a point where it was
 * told to stop, so that an interleaving of requests can be had, and had again.
 *
 * The linker puts functions of turns.c in the place of those by which core/
 * locks and waits (turns_wrap in Makefile.am).  Who can't go on says so and
 * hands over, and nobody waits in the kernel for a lock: that a request is
 * blocked is known without looking at a clock, and so is a deadlock.
 *
 * Points are where a thread can be stopped: before it takes a lock, before and
 * after it looks for a slice in the cache, after it has entered an epoch and
 * before it leaves one; and those of turns_point, which tests have before and
 * after each call of the storage.
 */

#ifndef UNIT_TURNS_H
#define UNIT_TURNS_H

#include <stdbool.h>
#include <stdint.h>

#define TURNS_MAX 4

enum turn {
  TURN_OVER,    /* it has nothing to do (any more) */
  TURN_READY,   /* it can go on */
  TURN_BLOCKED, /* it waits for what another one holds */
};

#define TURNS_NO_STOP 0 /* points are counted from 1 */

/* Give a thread that has nothing to do this function to run.  It does not
 * start yet.
 */
extern void turns_give (unsigned t, void (*fn) (void *), void *opaque);

/* Have a thread that is ready go on until its function has returned, it is
 * blocked, or it is at its stop-th point since turns_give.  With polite set it
 * also stops when another thread that was blocked no longer is.
 */
extern enum turn turns_run (unsigned t, uint64_t stop, bool polite);

extern enum turn turns_state (unsigned t);

/* How many points it came to since turns_give, and the last one's name. */
extern uint64_t turns_points (unsigned t);
extern const char *turns_where (unsigned t);

/* End the threads, none of which has anything to do. */
extern void turns_end (void);

/* Called by these threads (for others it does nothing): a point. */
extern void turns_point (const char *name);

/* The same, and it stops there in any case. */
extern void turns_stop (const char *name);

/* No points from here on, or points again. */
extern void turns_hold (void);
extern void turns_release (void);

#endif /* UNIT_TURNS_H */
