/* SPDX-License-Identifier: BSD-3-Clause */

/* A host that has lost what was written tells so once for each descriptor: to
 * one of the threads that wait for it to be durable.  The others, which it concerns
 * as much, learn it here: of calls that overlap in time all fail if one does, and
 * so do all later ones (I10).
 */

#ifndef CORE_STORAGE_REPORTS_H
#define CORE_STORAGE_REPORTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* A call under way, on its caller's stack. */
struct report_wait {
  struct report_wait *next; /* begun later */
  uint64_t number;
};

/* What goes through one descriptor. */
struct reports {
  pthread_mutex_t lock; /* held for moments; taken last */
  pthread_cond_t ended;
  struct report_wait *first, *last;
  uint64_t begun;
  bool lost;
};

extern void reports_init (struct reports *r);
extern void reports_destroy (struct reports *r);

/* Before a call that makes something durable, and after it.  result: what came of
 * it, 0, or -1 with errno set.  Returns the same, when all calls that overlap
 * with a good one have ended; or -1 with errno set to EIO if one has failed.
 */
extern void reports_begin (struct reports *r, struct report_wait *w);
extern int reports_end (struct reports *r, struct report_wait *w, int result);

/* The same after a write that has failed by itself, for lack of space or by a
 * signal, and has lost nothing: it fails, with errno as it is now, and no other
 * call does for that.
 */
extern int reports_end_alone (struct reports *r, struct report_wait *w);

#endif /* CORE_STORAGE_REPORTS_H */
