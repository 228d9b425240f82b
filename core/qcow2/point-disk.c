/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/point-disk.h"
#include "qcow2/points.h"

static int __attribute__ ((__cold__))
has_failed (const struct point_disk *d)
{
  error_set (EIO, "%s: this point in time could not be kept: there is no memory "
             "for more of what was changed since, or the image was repaired",
             d->disk.layer.tables->name);
  if (atomic_exchange (&d->point->told, true))
    error_set_repeated ();
  return -1;
}

int
point_disk_check (const struct point_disk *d)
{
  return d->point != NULL && atomic_load (&d->point->failed)
    ? has_failed (d) : 0;
}

/* S1, S2: whoever sees an entry that has changed finds the shadow then.  And if
 * there was no memory for one, that the point has failed.
 */
static int
lookup (const struct layer *layer, struct guest_off offset, uint64_t max,
        struct run *run)
{
  const struct point_disk *d = (const struct point_disk *) layer;
  const struct map *m = &d->disk.map;
  const uint64_t left = map_slice_end (m, offset) - offset.v;
  int r = 0;

  if (max > left)
    max = left;
  if (!points_lookup (d->points, d->point, m, offset, max, run)) {
    r = map_lookup (m, offset, max, run);
    if (points_lookup (d->points, d->point, m, offset, max, run))
      r = 0;
  }
  if (point_disk_check (d) == -1)
    return -1;
  if (r == 0 && run->kind == RUN_DATA && d->ops.read_guest_data != NULL)
    run->kind = RUN_GUEST_DATA;
  return r;
}

void
point_disk_init (struct point_disk *d, const struct qcow2_file *f,
                 struct point *point)
{
  *d = (struct point_disk) {
    .disk = f->disk, .ops = *f->layer.format, .points = f->points,
    .point = point,
  };
  d->ops.lookup = lookup;
  if (point != NULL)
    d->disk.layer.format = &d->ops;
}

struct layer *
point_disk_new (const struct qcow2_file *f, struct point *point)
{
  struct point_disk *d = malloc (sizeof *d);

  if (d == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  point_disk_init (d, f, point);
  return &d->disk.layer;
}
