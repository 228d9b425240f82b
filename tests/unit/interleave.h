/* SPDX-License-Identifier: BSD-3-Clause */

/* Requests that meet on one cluster of an image in memory.  Each of up to
 * TURNS_MAX threads runs a script; what they read, what the disk, its snapshot
 * and the image hold afterwards, and what a crash leaves meanwhile, is
 * compared with what serial.h allows.
 */

#ifndef UNIT_INTERLEAVE_H
#define UNIT_INTERLEAVE_H

#include <stdbool.h>
#include <stdint.h>

#include "turns.h"

/* Names, "v3-512" and such; NULL from their number on.  Disks are kinds of
 * images, subjects what the cluster is at first, and states what came before.
 */
extern const char *interleave_disk (unsigned i);
extern const char *interleave_subject (unsigned i);
extern const char *interleave_state (unsigned i);

/* The requests that scripts are made of, with commas between them. */
extern const char *interleave_request (unsigned i);

struct interleaving {
  unsigned disk, subject, state;
  const char *script[TURNS_MAX]; /* NULL from the number of threads on */

  /* The first thread stops at this point; the others then run one after the
   * other, each as far as it can, but the second one only up to its own such
   * point; then the first goes on.  If polite is set, whoever lets another one
   * go on stops for that.
   */
  uint64_t point, second; /* or TURNS_NO_STOP */
  bool polite;
  bool crash; /* look at what a crash leaves whenever one stops */

  uint64_t seed; /* not 0: any thread goes on for a while, at random */
};

/* Whether the disk can have such a subject, and these requests. */
extern bool interleave_is_possible (const struct interleaving *c);

/* Failed checks are printed, and then a line that repeats it.  Returns how
 * many points the first thread came to.
 */
extern uint64_t interleave_run (const struct interleaving *c);

/* From DISK SUBJECT STATE POINT ORDER SCRIPT..., where POINT is a number, or
 * two as in "3/4" (0: no stop), and ORDER "polite" or "rude"; or POINT is
 * "random", and ORDER the seed.  False if there is no such case.
 */
extern bool interleave_parse (struct interleaving *c, char *const *words,
                              int nr);

struct interleave_counts {
  uint64_t runs, requests, crashes;
  uint64_t blocked; /* runs where one thread waited for another */
};
extern struct interleave_counts interleave_counts;

/* Give back all memory and end the threads. */
extern void interleave_end (void);

#endif /* UNIT_INTERLEAVE_H */
