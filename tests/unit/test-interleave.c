/* SPDX-License-Identifier: BSD-3-Clause */

/* Requests that meet, at every point where they can.
 *
 *   test-interleave        a part, which is always the same
 *   test-interleave all    all of it, which takes hours
 *   test-interleave DISK SUBJECT STATE POINT ORDER SCRIPT...
 *                          one, as it is printed when it fails
 *
 * With TEST_SECONDS in the environment, schedules from a random seed are run
 * for so long instead.
 */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "check.h"
#include "interleave.h"
#include "random.h"
#include "seconds.h"

#define ARRAY_SIZE(a) (sizeof (a) / sizeof (a)[0])

static uint64_t nr_pairs; /* of scripts, subject and state */

/* The case from its words. */
static struct interleaving
parse (const char *text)
{
  static char words[16][80];
  char *w[16];
  struct interleaving c;
  int nr = 0, used;

  for (; nr < 16 && sscanf (text, "%79s%n", words[nr], &used) == 1; ++nr) {
    w[nr] = words[nr];
    text += used;
  }
  if (!interleave_parse (&c, w, nr)) {
    fprintf (stderr, "%s ...: there is no such case\n", words[0]);
    abort ();
  }
  return c;
}

/* Stop the first one at each of its points.  In part: whoever is let go on
 * goes first or last in turns, and of many points crashes are looked at near
 * the end, where things are written, and now and then before.
 */
#define FEW_POINTS 25

static void
run_all_points (struct interleaving c, bool all)
{
  uint64_t nr, point = 1;

  nr_pairs++;
  c.point = TURNS_NO_STOP;
  c.crash = true;
  nr = interleave_run (&c);
  for (; point <= nr && !check_any_failed (); ++point) {
    if (!all && point % TEST_EACH (12) != 0)
      continue;
    c.point = point;
    c.polite = !all && point / TEST_EACH (12) % 2 == 0;
    c.crash = all || nr <= FEW_POINTS || point + 16 > nr ||
      point % 24 == 0;
    interleave_run (&c);
    c.polite = true;
    if (all)
      interleave_run (&c);
  }
}

/* -------------------------------------------- what has hurt data elsewhere */

/* Who is stopped, who runs meanwhile, and then. */
static const char *const meetings[] = {
  /* Both want the same cluster, or the same L2 table. */
  "v3-512 no-table warm 0 rude write-low write-two",
  "v3-512 unallocated cold 0 rude write-low write-fua",
  "v3-512 unallocated warm 0 rude write-two write-next",
  "v3-512 shared-table warm 0 rude write-low write-mid",
  "v2-512 shared-table warm 0 rude write write-next",
  "v2-512 shared warm 0 rude write-low write-fua",
  "v3-512 compressed warm 0 rude write-two write-low",
  "v3-4k-base unallocated warm 0 rude write-two write-mid flush",
  "v3-4k-base no-table crowded 0 rude write write-low",
  "extl2-base mixed warm 0 rude write-low write-mid",
  "extl2-snap shared warm 0 rude write-mid write-two",

  /* One allocates it, the other one takes it away. */
  "v3-512 unallocated warm 0 rude write-low trim,flush other1,flush",
  "v3-512 data warm 0 rude trim write-low flush",
  "v2-512 compressed warm 0 rude write-mid trim,flush other1",
  "extl2-base mixed warm 0 rude write-low trim-mid,flush other1",
  "extl2-base mixed crowded 0 rude trim-mid write-low flush",

  /* Reads, and writes in place, of what is given to others: I4. */
  "v3-512 data cold 0 rude read trim,flush other1,flush,late,flush",
  "v2-512 data cold 0 rude read-two trim,flush other1,flush",
  "v3-512 data cold 0 rude write-low trim,flush other1,flush",
  "v3-512 data cold 0 rude write-low zero-trim,flush late,flush",
  "v3-512 data cold 0 rude write-fua trim,flush other1,flush",
  "v3-4k-base data cold 0 rude zero-mid trim,flush late,flush",
  "extl2-snap data cold 0 rude write-mid trim,flush other1,flush",
  "extl2-base mixed cold 0 rude read trim,flush other1,flush",
  "v3-4k-base compressed cold 0 rude read-two trim-two,flush other1,flush",
  "v2-512 compressed cold 0 rude read trim-two,flush late,flush",

  /* The same with an L2 table, of which another slice is being read. */
  "extl2-snap twin-table cold 0 rude read-slice write,twin,flush late,flush",

  /* A hole is about to be punched into what others might be given. */
  "v3-512 data cold 0 rude trim,flush other1,flush",
  "extl2-base data cold 0 rude zero-trim,flush other1,late,flush flush",

  /* Zeros beside data. */
  "v3-512 unallocated warm 0 rude zero-high write-low",
  "v3-4k-base unallocated warm 0 rude write-low zero-high",
  "v3-4k-base unallocated warm 0 rude zero-high write-low flush",
  "v3-4k-base unallocated crowded 0 rude zero-trim write-low flush",
  "v3-4k-base zero-alloc warm 0 rude zero-keep write-low",
  "v2-4k-base unallocated warm 0 rude zero-keep write-mid",
  "extl2-base unallocated warm 0 rude write-mid zero-high flush",
  "extl2-base mixed crowded 0 rude zero-mid write-low flush",
  "extl2-snap zero-alloc crowded 0 rude write-low zero-trim,flush other1",

  /* Changes of more tables than the cache may keep. */
  "v3-512 unallocated crowded 0 rude far1,far2,far3,far4,far5 write,flush",
  "v3-4k-base data warm 0 rude flush far1,far2,far3,far4,far5",

  /* What a flush promises is there, whoever did it. */
  "v3-512 unallocated warm 0 rude flush write-low,flush",
  "v3-512 unallocated warm 0 rude write,flush write-mid,flush flush",
  "v2-512 shared-table warm 0 rude flush write-fua flush",
  "extl2-base mixed warm 0 rude flush write-low,flush trim,flush",
  "v3-4k-base data warm 0 rude flush write-low write-fua,flush",

  "v3-512 data warm 0 rude flush write-low flush",
  "v3-512 data warm 0 rude write-low,flush flush",
  "v3-512 unallocated cold 0 rude write,flush read",
  "v3-4k-base unallocated warm 0 rude write-low,flush read",
  "v3-4k-base data cold 0 rude write-low write-mid,flush",
  "v3-512 compressed warm 0 rude flush write,write-next",

  /* Caches: tables that are being written, or decoded clusters. */
  "v3-512 data crowded 0 rude flush "
    "read-two,read-far5,view,read-far1,read-far2,read-far3,read-far4",
  "v3-512 data cold 0 rude read "
    "read-far1,read-far2,read-far3,read-far4,read-far5,view",
  "v3-4k-base compressed cold 0 rude read-low read-low,read write,flush",

  /* A snapshot, and what the disk shares with it. */
  "v3-512 shared cold 0 rude view write,flush trim,flush",
  "v3-512 shared-table cold 0 rude view write,flush,trim,flush other1,flush",
  "v2-512 shared-table warm 0 rude write-low,flush view",
  "extl2-snap shared warm 0 rude trim,flush view other1,flush",
};

/* The second one is stopped as well: what was freed by one writeback while
 * another one is written; and a third range, beside two others.
 */
static const char *const double_meetings[] = {
  "v3-512 compressed warm 0 rude trim,flush write-next,flush",
  "v3-512 unallocated warm 0 rude write-low write-next write-mid",
  "v3-4k-base data warm 0 rude write-low,flush trim,flush other1,flush",
};

/* Stop both at each of their points; in part, not at all pairs of them.  How
 * many the second one has depends on where the first one is stopped.
 */
static void
run_all_points_twice (struct interleaving c, bool all)
{
  uint64_t nr[2];

  nr_pairs++;
  c.crash = true;
  c.point = TURNS_NO_STOP;
  nr[0] = interleave_run (&c);
  for (c.point = 1; c.point <= nr[0]; ++c.point) {
    c.second = TURNS_NO_STOP;
    c.crash = all;
    (void) interleave_run (&c);
    c.crash = true;
    nr[1] = turns_points (1);
    for (c.second = 1; c.second <= nr[1] && !check_any_failed (); ++c.second) {
      if (all || (c.point + c.second) % (4 * TEST_EACH (12)) == 0)
        (void) interleave_run (&c);
    }
  }
}

/* --------------------------------------------------------------- all pairs */

static const char *const scripts[] = {
  "write", "write-low", "write-mid", "write-fua", "write-two", "write-next",
  "zero-mid", "zero-high", "zero-keep", "zero-trim", "trim-mid", "trim",
  "read-two", "view", "flush", "far1,far2,far3,far4,far5",
};

#define NR_SCRIPTS ARRAY_SIZE (scripts)

#define MAX_SUBJECTS 16
#define MAX_STATES 4
#define MAX_DISKS 8

/* A third one, which may be given what the others have freed. */
static const char third_script[] = "flush,other1,late,flush";

/* One point of each pair, and not the same for all: one of as many as the
 * first thread came to last time.
 */
static void
run_one_point (struct interleaving c, uint64_t number, unsigned a)
{
  static uint64_t points[MAX_DISKS][MAX_SUBJECTS][MAX_STATES][NR_SCRIPTS];
  uint64_t *nr = &points[c.disk][c.subject][c.state][a];

  nr_pairs++;
  c.point = *nr > 0 ? mix (number) % *nr + 1 : TURNS_NO_STOP;
  c.polite = number / 2 % 2;
  c.crash = number % 16 == 0;
  *nr = interleave_run (&c);
}

static void
run_pairs_of (unsigned disk, unsigned subject, bool all)
{
  struct interleaving c = { .disk = disk, .subject = subject };
  const uint64_t first = (disk * MAX_SUBJECTS + subject) * NR_SCRIPTS *
    NR_SCRIPTS;
  unsigned i;

  for (i = 0; i < NR_SCRIPTS * NR_SCRIPTS && !check_any_failed (); ++i) {
    const unsigned a = i / NR_SCRIPTS;

    c.script[0] = scripts[a];
    c.script[1] = scripts[i % NR_SCRIPTS];
    c.script[2] = all || (first + i) % 3 == 0 ? third_script : NULL;
    if (!interleave_is_possible (&c) ||
        (!all && mix (first + i) % TEST_EACH (12) != 0))
      continue;
    c.state = (first + i) % 7 % 3;
    if (!all)
      run_one_point (c, first + i, a);
    for (c.state = 0; all && interleave_state (c.state) != NULL; ++c.state)
      run_all_points (c, true);
  }
}

/* Each subject on each disk that can have it; or, in part, on one of them.
 * But the last one, whose flags are right only if both twins were written.
 */
static void
run_pairs (bool all)
{
  unsigned disk, subject, nr_disks = 0;

  while (interleave_disk (nr_disks) != NULL)
    nr_disks++;
  for (subject = 0; interleave_subject (subject + 1) != NULL; ++subject) {
    for (disk = 0; disk < nr_disks; ++disk) {
      const struct interleaving c = {
        .disk = (disk + subject) % nr_disks, .subject = subject,
      };

      if (!interleave_is_possible (&c))
        continue;
      run_pairs_of (c.disk, subject, all);
      if (!all)
        break;
    }
  }
}

/* -------------------------------------------------------- random schedules */

/* Two to four threads, of one to three requests each. */
static void
run_random (uint64_t seed)
{
  static char text[TURNS_MAX][100];
  struct interleaving c = { .seed = seed, .crash = true };
  uint64_t state = seed;
  unsigned nr_requests = 0, nr, t, i;

  while (interleave_request (nr_requests) != NULL)
    nr_requests++;
  c.state = random_below (&state, 3);
  nr = 2 + random_below (&state, TURNS_MAX - 1);
  do {
    c.disk = random_below (&state, 6);
    c.subject = random_below (&state, 9);
    for (t = 0; t < nr; ++t) {
      text[t][0] = '\0';
      for (i = random_below (&state, 3) + 1; i > 0; --i) {
        strcat (text[t], interleave_request (random_below (&state,
                                                           nr_requests)));
        if (i > 1)
          strcat (text[t], ",");
      }
      c.script[t] = text[t];
    }
  } while (!interleave_is_possible (&c));
  interleave_run (&c);
}

static void
run_randoms (uint64_t first, uint64_t nr, double limit)
{
  const double start = seconds ();
  uint64_t i;

  for (i = 0; i < nr && !check_any_failed (); ++i) {
    if (limit > 0 && seconds () - start > limit)
      break;
    run_random (first + i);
  }
}

static void
run (bool all)
{
  const double limit = test_seconds (0);
  unsigned i;

  if (limit > 0) {
    check_time_limit (limit + 100);
    run_randoms ((uint64_t) time (NULL) << 24, UINT64_MAX, limit);
    return;
  }
  if (!all)
    check_time_limit (200);
  for (i = 0; i < ARRAY_SIZE (meetings) && !check_any_failed (); ++i)
    run_all_points (parse (meetings[i]), all);
  for (i = 0; i < ARRAY_SIZE (double_meetings) && !check_any_failed (); ++i)
    run_all_points_twice (parse (double_meetings[i]), all);
  run_pairs (all);
  run_randoms (1, all ? 100000 : 300 / TEST_EACH (12), 0);
}

int
main (int argc, char *argv[])
{
  struct interleaving c;

  if (argc == 1 || (argc == 2 && strcmp (argv[1], "all") == 0))
    run (argc == 2);
  else if (interleave_parse (&c, argv + 1, argc - 1))
    interleave_run (&c);
  else {
    fprintf (stderr, "%s: there is no such case\n", argv[0]);
    return 2;
  }
  interleave_end ();
  printf ("%" PRIu64 " pairs, %" PRIu64 " interleavings (%" PRIu64
          " with a thread that waited), %" PRIu64 " requests, %" PRIu64
          " crashes, %u violations\n", nr_pairs, interleave_counts.runs,
          interleave_counts.blocked, interleave_counts.requests,
          interleave_counts.crashes, atomic_load (&check_failures));
  return check_result ();
}
