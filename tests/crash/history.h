/* SPDX-License-Identifier: BSD-3-Clause */

/* What each sector of a disk may hold after a crash (I1, I2): its last
 * stable value, or one that a later request gave it before the crash.
 *
 * Moments are places in the log of a crash_disk: what is at moment m came
 * before the m-th call of the log, which may be one that m happens to be as
 * well.
 */

#ifndef CRASH_HISTORY_H
#define CRASH_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HISTORY_NEVER UINT64_MAX

struct history_request {
  uint64_t issued;
  uint64_t answered; /* HISTORY_NEVER: not yet */
  uint64_t stable;   /* when its values were promised to survive */
  bool failed;       /* its values may be there, and no flush promises them */
};

struct history_value {
  uint64_t hash;
  uint32_t request;
  uint32_t older; /* of the same sector, + 1; 0: the initial one */
};

struct history {
  uint64_t nr_sectors;
  uint8_t *initial; /* the disk as it was at first: stable */
  uint32_t *newest; /* value + 1 of each; 0: the initial one */
  struct history_value *value;
  uint32_t nr_values, values_allocated;
  struct history_request *request;
  uint32_t nr_requests, requests_allocated;
  uint64_t ticks;
};

/* disk has these many sectors, whose values are stable. */
extern void history_init (struct history *h, const void *disk, uint64_t nr);
extern void history_free (struct history *h);

/* A request begins; returns its number. */
extern uint32_t history_begin (struct history *h, uint64_t now);

/* It may give this sector this content. */
extern void history_value (struct history *h, uint32_t request,
                           uint64_t sector, const void *content);

/* It was answered with success; with fua its values are stable. */
extern void history_answer (struct history *h, uint32_t request, uint64_t now,
                            bool fua);
extern void history_fail (struct history *h, uint32_t request, uint64_t now);

/* A moment, for history_flushed: later than all that was told before. */
extern uint64_t history_moment (struct history *h, uint64_t now);

/* A flush that began at the moment `issued' was answered. */
extern void history_flushed (struct history *h, uint64_t issued, uint64_t now);

/* True if, after a crash at this moment, the sector may hold this. */
extern bool history_allows (const struct history *h, uint64_t sector,
                            const void *content, uint64_t moment);

/* Whether what such a moment is of happened before a crash at this one. */
extern bool history_is_by (uint64_t what, uint64_t moment);

/* True if the sector may have held this at some time between two moments, of
 * history_moment: it was not replaced by what was answered before the first, nor
 * asked for after the second.
 */
extern bool history_held (const struct history *h, uint64_t sector,
                          const void *content, uint64_t from, uint64_t to);

/* True if the sector was ever given this. */
extern bool history_has_ever (const struct history *h, uint64_t sector,
                              const void *content);

/* The first sector of a disk that may not be as it is; nr_sectors if there
 * is none.
 */
extern uint64_t history_check (const struct history *h, const void *disk,
                               uint64_t moment);

/* Print what the sector might hold. */
extern void history_explain (const struct history *h, uint64_t sector,
                             uint64_t moment);

#endif /* CRASH_HISTORY_H */
