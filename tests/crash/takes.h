/* SPDX-License-Identifier: BSD-3-Clause */

/* Internal snapshots that a guest has made of the disk that it writes, and what
 * becomes of them after a crash.
 */

#ifndef CRASH_TAKES_H
#define CRASH_TAKES_H

#include <stdbool.h>
#include <stdint.h>

#include "guest.h"

#define TAKES_MAX 3

/* Moments are those of history.h. */
struct one_take {
  char name[24];
  uint64_t issued;
  uint64_t answered; /* HISTORY_NEVER: not yet */
  uint8_t *content;  /* NULL: it was refused */
  bool borrowed;     /* content is someone else's */
};

struct takes {
  struct one_take one[TAKES_MAX];
  unsigned nr;
  unsigned named; /* how many names were given */
};

extern void takes_free (struct takes *t);

/* Make one, if there is room, and the image can have one.  By several threads,
 * too; what it has must be known to be right by takes_check_history then.
 */
extern bool guest_make_snapshot (struct guest *r);

/* Once no request is running: each has what its disk held at some moment between
 * its request and the answer.
 */
extern bool takes_check_history (struct guest *r);

/* After a crash at this moment: what r has open has all snapshots that were
 * answered, none that was not asked for, and none that is wrong.  present is set to
 * those that are there, whose contents stay those of t.
 */
extern bool takes_check (const struct takes *t, struct guest *r,
                         uint64_t moment, struct takes *present);

#endif /* CRASH_TAKES_H */
