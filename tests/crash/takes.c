/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "content.h"
#include "disk/read.h"
#include "guest-parts.h"
#include "must-have.h"
#include "random.h"
#include "takes.h"
#include "workload.h"

void
takes_free (struct takes *t)
{
  unsigned i;

  for (i = 0; i < t->nr; ++i) {
    if (!t->one[i].borrowed)
      free (t->one[i].content);
  }
  t->nr = 0;
}

/* ---------------------------------------------------------------------- making */

/* The place of a new one; NULL: there is none left. */
static struct one_take *
begin (struct guest *r)
{
  struct takes *t = r->takes;
  struct one_take *one = NULL;

  guest_lock (r);
  if (t->nr < TAKES_MAX) {
    one = &t->one[t->nr++];
    *one = (struct one_take) {
      .issued = history_moment (r->history, crash_disk_now (r->disk)),
      .answered = HISTORY_NEVER,
    };
    snprintf (one->name, sizeof one->name, "taken-%" PRIu32 "-%u",
              r->first_number, t->named++);
  }
  guest_unlock (r);
  return one;
}

/* What was answered before is durable with it. */
static void
answer (struct guest *r, struct one_take *one)
{
  guest_lock (r);
  one->answered = history_moment (r->history, crash_disk_now (r->disk));
  history_flushed (r->history, one->issued, crash_disk_now (r->disk));
  guest_unlock (r);
}

/* Whether refcounts may be too narrow for one more reference. */
static bool
may_be_refused (const struct guest *r)
{
  return error_errno () == ENOTSUP && r->m->refcount_order <= 1;
}

bool
guest_make_snapshot (struct guest *r)
{
  struct one_take *one = begin (r);
  struct layer *disk;
  char export[64];
  bool ok;

  if (one == NULL)
    return true;
  snprintf (export, sizeof export, IMAGE_TAKE_PREFIX "%s", one->name);
  disk = image_open_disk (r->im, export);
  if (disk == NULL)
    return may_be_refused (r) ||
      guest_wrong (r, "%s: %s", export, error_message ());
  answer (r, one);
  one->content = must_have (malloc (r->m->disk_size));
  ok = layer_read (disk, one->content, r->m->disk_size,
                   (struct guest_off) { 0 }) == 0 ||
    guest_wrong (r, "%s: %s", export, error_message ());
  image_close_disk (disk);
  while (!image_points_have_ended (r->im)) /* so that each run is the same */
    sched_yield ();
  return ok && (r->sharing != NULL ||
                guest_compare_range (r, export, one->content, r->expect, 0,
                                     r->m->disk_size));
}

bool
takes_check_history (struct guest *r)
{
  unsigned i;
  uint64_t s;
  char name[160];

  for (i = 0; i < r->takes->nr; ++i) {
    const struct one_take *one = &r->takes->one[i];

    for (s = 0; one->content != NULL && s < r->history->nr_sectors; ++s) {
      const uint8_t *is = one->content + s * SECTOR;

      if (!history_held (r->history, s, is, one->issued, one->answered))
        return guest_wrong (r, "%s: sector %" PRIu64 " holds %s, which it did "
                            "not at any moment meanwhile", one->name, s,
                            content_name (is, name, sizeof name));
    }
  }
  return true;
}

/* ---------------------------------------------------------------- after a crash */

struct search {
  const char *name;
  bool found;
};

static int
compare_name (void *opaque, const char *name, const char *description)
{
  struct search *s = opaque;

  (void) description;
  s->found |= strcmp (name, s->name) == 0;
  return 0;
}

static bool
check_one (const struct one_take *one, struct guest *r, uint64_t moment,
           bool *found)
{
  char export[64];
  struct search s = { .name = export };

  snprintf (export, sizeof export, IMAGE_SNAPSHOT_PREFIX "%s", one->name);
  if (image_list (r->im, compare_name, &s) == -1)
    return guest_wrong (r, "%s", error_message ());
  *found = s.found;
  if (!s.found)
    return !history_is_by (one->answered, moment) ||
      guest_wrong (r, "\"%s\" is not there", export);
  if (!history_is_by (one->issued, moment))
    return guest_wrong (r, "\"%s\" is there already", export);
  if (!guest_read_range (r, export, r->buf2, r->m->disk_size, 0))
    return false;
  if (one->content == NULL)
    return guest_wrong (r, "\"%s\" is there, and was refused", export);
  return guest_compare_range (r, export, r->buf2, one->content, 0,
                              r->m->disk_size);
}

bool
takes_check (const struct takes *t, struct guest *r, uint64_t moment,
             struct takes *present)
{
  unsigned i;
  bool found = false;

  *present = (struct takes) { 0 };
  for (i = 0; i < t->nr; ++i) {
    if (!check_one (&t->one[i], r, moment, &found))
      return false;
    if (found) {
      struct one_take *one = &present->one[present->nr++];

      *one = t->one[i];
      one->issued = one->answered = 0; /* from then on it stays */
      one->borrowed = true;
    }
  }
  return true;
}

/* --------------------------------------------------------------------- scripts */

void
script_add_takes (struct script *s, uint64_t seed)
{
  const struct request take = { .kind = REQUEST_SNAPSHOT };
  uint64_t random = mix (seed + 11);
  unsigned nr = 1 + random_below (&random, 2);

  for (; nr > 0 && s->nr < SCRIPT_MAX; --nr) {
    const unsigned at = random_below (&random, s->nr + 1);

    memmove (&s->request[at + 1], &s->request[at],
             (s->nr - at) * sizeof s->request[0]);
    s->request[at] = take;
    s->nr++;
  }
}
