/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of images of all kinds that were damaged at random: what could be
 * read before reads the same, the image is sound for another checker, and a
 * second repair finds nothing to do.  And all that if the power is cut.
 *
 * test-repair [STATES [SEED [FIRST]]]
 */

#include <config.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../crash/checker.h"
#include "../crash/crash-storage.h"
#include "../crash/maker.h"
#include "../crash/power-cut.h"
#include "base/bytes.h"
#include "base/error.h"
#include "disk-view.h"
#include "memory-storage.h"
#include "qcow2/check/check.h"
#include "qcow2/check/repair.h"
#include "qcow2/header.h"
#include "random.h"
#include "spoil.h"

static unsigned failures;
static unsigned nothing_wrong, repaired, partly, hidden, refused, with_cuts;
static uint64_t cuts;

struct state {
  uint64_t number;
  struct made made;
  struct spoiled spoiled;
  struct disk_view view; /* before the repair */
  uint64_t low;          /* refcounts before it */
  enum repair_mode mode;
};

static void __attribute__ ((__format__ (__printf__, 2, 3)))
complain (const struct state *s, const char *fmt, ...)
{
  va_list ap;

  if (failures++ >= 10)
    return;
  fprintf (stderr, "%s, state %" PRIu64 ": %s\n  ", s->made.name, s->number,
           s->spoiled.text);
  va_start (ap, fmt);
  vfprintf (stderr, fmt, ap);
  va_end (ap);
  fprintf (stderr, "\n");
}

static const struct check_options quiet;

static void
look (const struct state *s, struct disk_view *v, const void *bytes,
      uint64_t size)
{
  disk_view_read (v, bytes, size, s->made.backing, s->made.backing_size);
}

static void
check_kept (const struct state *s, const char *when, const struct disk_view *a,
            const struct disk_view *b)
{
  char text[200];

  if (!disk_view_is_kept (a, b, text, sizeof text))
    complain (s, "%s: %s", when, text);
}

/* What a repair leaves as it is. */
static bool
may_be_left (const struct repair_report *r)
{
  return r->why_not != NULL || r->after.found[CHECK_OVERFLOW] > 0 ||
    r->after.found[CHECK_SNAPSHOT] > 0 || r->after.blind;
}

/* The verdict after a repair, and another checker's. */
static void
check_verdict (const struct state *s, const struct repair_report *r,
               const void *bytes, uint64_t size)
{
  const bool sound = check_report_is_sound (&r->after);
  struct check_result other;

  if (!sound && !may_be_left (r))
    complain (s, "errors are left: %" PRIu64 " (before: %" PRIu64 ")",
              r->after.corruptions, r->before.corruptions);
  if (sound && r->why_not == NULL && r->after.leaks > 0)
    complain (s, "leaks are left");
  if (sound && (r->after.dirty || r->after.corrupt))
    complain (s, "still marked as dirty or corrupt");
  if (!sound)
    return;
  check_image (bytes, size, 0, &other);
  if (!other.opens || other.corruptions > 0 || other.errors > 0 ||
      other.leaks != r->after.leaks ||
      (r->before.corruptions > 0 && r->why_not == NULL && other.beyond > 0))
    complain (s, "the other checker finds: %s (opens %d, corruptions %" PRIu64
              ", leaks %" PRIu64 ", beyond %" PRIu64 ")", other.why,
              other.opens, other.corruptions, other.leaks, other.beyond);
}

static void
count_outcome (const struct repair_report *r)
{
  if (check_report_is_sound (&r->before) && r->before.leaks == 0)
    nothing_wrong++;
  else if (check_report_is_sound (&r->after) && r->after.leaks == 0)
    repaired++;
  else if (r->before.blind)
    hidden++;
  else
    partly++;
}

/* ----------------------------------------------------------- uninterrupted */

static void
check_again (const struct state *s, struct memory_disk *disk,
             const struct repair_report *first)
{
  const uint64_t size = disk->size;
  struct memory_control control = { 0 };
  struct storage *storage = memory_disk_open (disk, "again", &control);
  struct repair_report r;

  if (repair_storage (storage, s->mode, &quiet, &r) == -1)
    complain (s, "a second repair fails: %s", error_message ());
  else if (first->why_not == NULL &&
           (control.writes > 0 || control.zeros > 0 || disk->size != size))
    complain (s, "a second repair writes");
  storage_close (storage);
}

/* Returns false if the image can't be checked. */
static bool
repair_once (struct state *s, size_t memory)
{
  const struct check_options options = { .memory = memory };
  struct repair_report r;
  struct memory_disk disk;
  struct disk_view after;
  struct storage *storage;
  int ret;

  memory_disk_init (&disk, s->spoiled.bytes, s->spoiled.size);
  storage = memory_disk_open (&disk, "image", NULL);
  ret = repair_storage (storage, s->mode, &options, &r);
  storage_close (storage);
  if (ret == 0) {
    look (s, &after, disk.data, disk.size);
    check_kept (s, "after the repair", &s->view, &after);
    disk_view_free (&after);
    check_verdict (s, &r, disk.data, disk.size);
    check_again (s, &disk, &r);
    if (memory == 0)
      count_outcome (&r);
  }
  else if (disk.size != s->spoiled.size ||
           memcmp (disk.data, s->spoiled.bytes, disk.size) != 0)
    complain (s, "written, and failed: %s", error_message ());
  memory_disk_free (&disk);
  return ret == 0;
}

/* -------------------------------------------------------------- power cuts */

/* Clusters whose refcount is lower than their references: what makes a writer
 * destroy data.  Those behind the end that the file had at first don't count:
 * a refcount table with entries beyond it refers to them as they are added.
 */
struct low {
  uint64_t limit;
  uint64_t nr;
};

static void
find_low (void *opaque, enum check_kind kind, const char *text)
{
  struct low *low = opaque;
  uint64_t offset;

  if (kind == CHECK_REFCOUNT &&
      sscanf (text, "cluster at 0x%" SCNx64, &offset) == 1 &&
      offset < low->limit)
    low->nr++;
}

static uint64_t
low_refcounts (const struct state *s, const void *bytes, uint64_t size)
{
  struct low low = { .limit = s->spoiled.size };
  const struct check_options options = {
    .messages = CHECK_MAX_MESSAGES, .found = find_low, .opaque = &low,
  };
  struct storage *storage = memory_storage_new ("image", bytes, size, NULL);
  struct check_report r;

  (void) check_storage (storage, &options, &r);
  storage_close (storage);
  return low.nr;
}

/* A state in which a power cut left the disk. */
static void
check_cut (struct state *s, const struct disk_state *d,
           const struct disk_view *repaired_view, const char *when)
{
  struct memory_disk disk;
  struct disk_view view;
  struct repair_report r;
  struct storage *storage;

  look (s, &view, d->bytes, d->size);
  check_kept (s, when, &s->view, &view);
  disk_view_free (&view);
  if (low_refcounts (s, d->bytes, d->size) > s->low)
    complain (s, "%s: more refcounts are too low", when);

  memory_disk_init (&disk, d->bytes, d->size);
  storage = memory_disk_open (&disk, "image", NULL);
  if (repair_storage (storage, s->mode, &quiet, &r) == -1)
    complain (s, "%s: no second repair: %s", when, error_message ());
  else {
    check_verdict (s, &r, disk.data, disk.size);
    look (s, &view, disk.data, disk.size);
    check_kept (s, when, repaired_view, &view);
    disk_view_free (&view);
  }
  storage_close (storage);
  memory_disk_free (&disk);
  cuts++;
}

static void
check_cuts_at (struct state *s, struct cut *cut, uint64_t k,
               const struct disk_view *repaired_view, uint64_t *random)
{
  const unsigned pending = cut_pending (cut);
  struct disk_state d = { 0 };
  unsigned i;

  for (i = 0; i < 3 + (pending > 0); ++i) {
    const struct landed landed[] = {
      { LANDED_ALL, 0 },
      { LANDED_TORN, random_next (random) },
      { LANDED_TORN, random_next (random) },
      { LANDED_ONLY, pending > 0 ? random_below (random, pending) : 0 },
    };
    char text[32], when[80];

    cut_state (cut, landed[i], &d);
    snprintf (when, sizeof when, "cut at call %" PRIu64 ", %s", k,
              landed_format (landed[i], text, sizeof text));
    check_cut (s, &d, repaired_view, when);
  }
  disk_state_free (&d);
}

/* At each call of the storage, if there are not too many of them. */
static void
repair_with_cuts (struct state *s, uint64_t *random)
{
  struct disk_view repaired_view;
  struct repair_report r;
  struct crash_disk disk;
  struct storage *storage;
  struct cut *cut;
  uint64_t k;

  s->low = low_refcounts (s, s->spoiled.bytes, s->spoiled.size);
  crash_disk_init (&disk, s->spoiled.bytes, s->spoiled.size);
  storage = crash_storage_open (&disk, "image");
  if (repair_storage (storage, s->mode, &quiet, &r) == -1)
    complain (s, "no repair: %s", error_message ());
  storage_close (storage);
  look (s, &repaired_view, disk.bytes, disk.size);
  cut = cut_new (s->spoiled.bytes, s->spoiled.size, disk.op, disk.nr);
  for (k = 1; k <= disk.nr; ++k) {
    cut_advance (cut, k);
    if (disk.nr <= 30 || random_below (random, disk.nr) < 30)
      check_cuts_at (s, cut, k, &repaired_view, random);
  }
  with_cuts += disk.nr > 0;
  cut_free (cut);
  disk_view_free (&repaired_view);
  crash_disk_free (&disk);
}

/* ------------------------------------------------------------------- states */

static void
mark (struct spoiled *s, uint64_t *random)
{
  if (get_be32 (s->bytes + 4) < 3 || random_below (random, 3) != 0)
    return;
  put_be64 (s->bytes + 72, get_be64 (s->bytes + 72) |
            (random_below (random, 2) ? QCOW2_INCOMPAT_DIRTY
             : QCOW2_INCOMPAT_CORRUPT));
}

static void
run_state (uint64_t number, uint64_t seed)
{
  uint64_t random = mix (seed ^ mix (number));
  struct state s = { .number = number };
  unsigned nr = 0;

  while (made_names[nr] != NULL)
    nr++;
  if (!made_image (&s.made, made_names[number % nr]))
    abort ();
  s.spoiled.size = s.made.size;
  s.spoiled.bytes = malloc (s.made.size);
  if (s.spoiled.bytes == NULL)
    abort ();
  memcpy (s.spoiled.bytes, s.made.bytes, s.made.size);
  spoil (&s.spoiled, random_below (&random, 2) ? SPOIL_ANY
         : SPOIL_ENTRIES | SPOIL_REFCOUNTS, &random);
  mark (&s.spoiled, &random);
  s.mode = random_below (&random, 8) == 0 ? REPAIR_LEAKS : REPAIR_ALL;

  look (&s, &s.view, s.spoiled.bytes, s.spoiled.size);
  if (!repair_once (&s, 0))
    refused++;
  else {
    repair_once (&s, 1);
    if (number % 4 == 0)
      repair_with_cuts (&s, &random);
  }
  disk_view_free (&s.view);
  free (s.spoiled.bytes);
  made_free (&s.made);
}

int
main (int argc, char *argv[])
{
  const char *states_wanted = getenv ("CHECK_STATES");
  uint64_t states = states_wanted ? strtoull (states_wanted, NULL, 0) : 120;
  const uint64_t seed = argc > 2 ? strtoull (argv[2], NULL, 0) : 1;
  const uint64_t first = argc > 3 ? strtoull (argv[3], NULL, 0) : 0;
  uint64_t i;

  if (argc > 1)
    states = strtoull (argv[1], NULL, 0);
  for (i = first; i < first + states; ++i)
    run_state (i, seed);
  printf ("%" PRIu64 " images (seed %" PRIu64 "): %u had nothing wrong, %u "
          "repaired, %u not wholly, %u not since damage hides references, %u "
          "can't be checked; %u of them with %" PRIu64 " power cuts; %u "
          "failures\n", states, seed, nothing_wrong, repaired, partly, hidden,
          refused, with_cuts, cuts, failures);
  return failures > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
