/* SPDX-License-Identifier: BSD-3-Clause */

/* Scripts: what is asked of an image, in order. */

#ifndef CRASH_WORKLOAD_H
#define CRASH_WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "maker.h"

enum request_kind {
  REQUEST_WRITE,
  REQUEST_ZERO,
  REQUEST_TRIM,
  REQUEST_FLUSH,
  REQUEST_REOPEN, /* close the image, and open it again */
  REQUEST_TAKE,   /* a point in time, which is read from then on ... */
  REQUEST_END,    /* ... until its end: which one is in offset */
  REQUEST_SNAPSHOT, /* an internal snapshot that stays */
};

struct request {
  enum request_kind kind;
  uint64_t offset, count;
  bool fua;
  bool may_trim; /* ZERO */
  bool fast;     /* ZERO */
};

static inline bool
request_has_range (const struct request *r)
{
  return r->kind == REQUEST_WRITE || r->kind == REQUEST_ZERO ||
    r->kind == REQUEST_TRIM;
}

#define SCRIPT_MAX 1000

struct script {
  struct request request[SCRIPT_MAX];
  unsigned nr;
};

/* As text: requests joined by commas, each a letter, `!' for FUA, and for
 * most a range OFFSET+COUNT in bytes:
 *
 *   w write   z zero   y zero, may trim   q zero, may trim, fast
 *   t trim    f flush  o close and open  p take a point in time
 *
 *   s make an internal snapshot
 *
 *   eN  end the N-th point in time, if there is one
 *
 * script_format returns false if it does not fit.
 */
extern bool script_format (const struct script *s, char *buf, size_t size);
extern bool script_parse (struct script *s, const char *text);

/* Take points in time among the requests of a script, and end them. */
extern void script_add_points (struct script *s, uint64_t seed);

/* Make one or two internal snapshots among them. */
extern void script_add_takes (struct script *s, uint64_t seed);

/* nr requests at random. */
extern void script_random (struct script *s, const struct made *m,
                           uint64_t seed, unsigned nr);

/* The same, but mostly writes and trims of many whole clusters, so that what
 * was freed is soon used again.
 */
extern void script_churn (struct script *s, const struct made *m,
                          uint64_t seed, unsigned nr);

/* The number-th of all systematic scripts for this image: each request on a
 * cluster of each state, and what is known to be dangerous.  False if there
 * are no more.
 */
extern bool script_systematic (struct script *s, const struct made *m,
                               uint64_t number);

/* How many there are for this image. */
extern uint64_t script_systematic_nr (const struct made *m);

/* The number of the number-th of them in an order that mixes them, so that a
 * short run sees some of all.
 */
extern uint64_t script_scattered (const struct made *m, uint64_t number);

/* Pairs of requests on the same cluster, at random. */
extern void script_pair (struct script *s, const struct made *m,
                         uint64_t seed);

#endif /* CRASH_WORKLOAD_H */
