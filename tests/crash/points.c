/* SPDX-License-Identifier: BSD-3-Clause */

/* Points in time: scripts that take some, and the guest that reads them. */

#include <config.h>

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "content.h"
#include "disk/read.h"
#include "guest.h"
#include "must-have.h"
#include "random.h"
#include "workload.h"

/* Enough for all shadows that there can be. */
#define POINTS_MEMORY (UINT64_C (4) << 20)

static bool
wrong (struct guest *r, unsigned i, const char *why)
{
  snprintf (r->why, sizeof r->why, "point in time %u: %s", i, why);
  return false;
}

bool
guest_allow_points (struct guest *r)
{
  return image_allow_points (r->im, 0, POINTS_MEMORY) == 0 ||
    wrong (r, 0, error_message ());
}

/* All of it is still what it was. */
static bool
check_one (struct guest *r, unsigned i)
{
  const struct guest_point *p = &r->point[i];
  uint8_t *buf = must_have (malloc (r->m->disk_size));
  char is[160], should[160], text[400];
  bool ok = true;
  uint64_t at = 0;

  if (layer_read (p->disk, buf, r->m->disk_size,
                  (struct guest_off) { 0 }) == -1)
    ok = (r->disk->failed_kinds & FAULT_READ) != 0 ||
      (r->failing && strstr (error_message (), "could not be kept") != NULL) ||
      wrong (r, i, error_message ());
  else if (memcmp (buf, p->content, r->m->disk_size) != 0) {
    while (memcmp (buf + at, p->content + at, SECTOR) == 0)
      at += SECTOR;
    snprintf (text, sizeof text, "sector %" PRIu64 " holds %s; it should be %s",
              at / SECTOR, content_name (buf + at, is, sizeof is),
              content_name (p->content + at, should, sizeof should));
    ok = wrong (r, i, text);
  }
  free (buf);
  return ok;
}

bool
guest_check_points (struct guest *r)
{
  unsigned i;

  for (i = 0; i < GUEST_POINTS; ++i) {
    if (r->point[i].disk != NULL && !check_one (r, i))
      return false;
  }
  return true;
}

bool
guest_take_point (struct guest *r)
{
  char name[64];
  unsigned i = 0;

  while (i < GUEST_POINTS && r->point[i].disk != NULL)
    i++;
  if (i == GUEST_POINTS)
    return true;
  snprintf (name, sizeof name, IMAGE_POINT_PREFIX "%u", r->points_taken++);
  r->point[i].disk = image_open_disk (r->im, name);
  if (r->point[i].disk == NULL)
    return wrong (r, i, error_message ());
  r->point[i].content = must_have (malloc (r->m->disk_size));
  memcpy (r->point[i].content, r->expect, r->m->disk_size);
  return check_one (r, i);
}

static void
let_go (struct guest_point *p)
{
  image_close_disk (p->disk);
  free (p->content);
  *p = (struct guest_point) { 0 };
}

/* What only that point had is given up before anything else happens, so that
 * each run is the same.
 */
void
guest_end_point (struct guest *r, unsigned which)
{
  struct guest_point *p = &r->point[which % GUEST_POINTS];

  if (p->disk == NULL)
    return;
  let_go (p);
  while (!image_points_have_ended (r->im))
    sched_yield ();
}

void
guest_drop_points (struct guest *r)
{
  unsigned i;

  for (i = 0; i < GUEST_POINTS; ++i) {
    if (r->point[i].disk != NULL)
      let_go (&r->point[i]);
  }
}

void
script_add_points (struct script *s, uint64_t seed)
{
  const struct script old = *s;
  const struct request take = { .kind = REQUEST_TAKE };
  uint64_t random = mix (seed + 9);
  unsigned i;

  s->nr = 0;
  s->request[s->nr++] = take;
  for (i = 0; i < old.nr && s->nr + 3 <= SCRIPT_MAX; ++i) {
    s->request[s->nr++] = old.request[i];
    if (random_below (&random, 4) == 0)
      s->request[s->nr++] = take;
    if (random_below (&random, 4) == 0)
      s->request[s->nr++] = (struct request) {
        .kind = REQUEST_END, .offset = random_below (&random, 4),
      };
  }
}
