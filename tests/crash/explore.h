/* SPDX-License-Identifier: BSD-3-Clause */

/* One workload, and the states in which power cuts leave its image. */

#ifndef CRASH_EXPLORE_H
#define CRASH_EXPLORE_H

#include <stdbool.h>
#include <stdint.h>

#include "guest.h"
#include "power-cut.h"

/* Shared by all workers. */
struct explore_stats {
  _Atomic uint64_t workloads;
  _Atomic uint64_t threaded; /* of them, by threads */
  _Atomic uint64_t calls;   /* of storage, that changed something */
  _Atomic uint64_t cuts;
  _Atomic uint64_t states;  /* after a first cut */
  _Atomic uint64_t second;  /* after a second one */
  _Atomic uint64_t asked;   /* states that qemu-img judged, too */
  _Atomic uint64_t dirty;   /* states with the dirty bit */
  _Atomic uint64_t mended;  /* of them: a repair only clears it */
  _Atomic uint64_t leaking; /* states with leaks */
  _Atomic uint64_t most_leaks;
  _Atomic uint64_t violations;
  struct crash_server_stats far;
};

/* Where a worker is, for a line that repeats it. */
#define EXPLORE_SCRIPT_TEXT 2048

struct explore_place {
  char image[96];
  char script[EXPLORE_SCRIPT_TEXT];
  uint64_t seed;
  unsigned threads;
  bool points;
  char far[96]; /* the kind of server; empty: none */
  bool in_state, in_second;
  uint64_t cut, cut2;
  struct landed landed, landed2;
};

#define EXPLORE_ANY UINT64_MAX

struct explore_options {
  uint64_t seed;
  uint64_t cut;          /* EXPLORE_ANY: all of them */
  bool have_landed;
  struct landed landed;
  uint64_t cut2;
  bool have_landed2;
  struct landed landed2;
  unsigned threads;      /* that the requests are dealt to; 1: in order */
  unsigned cuts;         /* of each workload, at most */
  unsigned torn;         /* random states at each cut */
  unsigned second_every; /* one state of so many is cut a second time */
  unsigned ask_every;    /* qemu-img judges one state of so many; 0: none */
  bool points;           /* are taken after a cut, too */
  bool far;              /* the image is on a server ... */
  struct crash_server_kind far_kind; /* ... of this kind */
  bool verbose;          /* print the calls of storage */
};

struct explore {
  const struct explore_options *options;
  struct explore_stats *stats;
  struct explore_place *place;
  uint64_t violations;   /* of this worker */
  struct guest guest, again;
  struct disk_state state, state2;
  struct crash_server_plan far;
  uint64_t leaks;        /* of the state that is written again */
  bool uncounted;        /* that is not known: refcounts were not looked at */
  bool taken;            /* snapshots are made: what it says of clusters' refcounts
                          * may be wrong where it is dirty, or of version 2 */
  uint64_t number;       /* of states, for what is done to some of them */
  char directory[64];    /* for what qemu-img is to see */
};

/* Run a script on an image and look at all power cuts.  text is what repeats
 * the script.  Returns the number of violations, which are printed.
 */
extern uint64_t explore (struct explore *e, const struct made *m,
                         const struct script *s, const char *text);

extern void explore_free (struct explore *e);

/* The line that repeats a place. */
extern const char *explore_line (const struct explore_place *p, char *buf,
                                 size_t size);

#endif /* CRASH_EXPLORE_H */
