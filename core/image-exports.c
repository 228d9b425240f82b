/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "image-parts.h"

static void
describe_snapshot (const struct snapshot *sn, char *buf, size_t len)
{
  const time_t t = sn->date_sec;
  char date[64] = "";
  char vm_state[64] = "";
  struct tm tm;

  if (gmtime_r (&t, &tm) != NULL)
    strftime (date, sizeof date, "%Y-%m-%d %H:%M:%S UTC", &tm);
  if (sn->vm_state_size > 0)
    snprintf (vm_state, sizeof vm_state, ", with %" PRIu64
              " bytes of VM state", sn->vm_state_size);
  snprintf (buf, len, "internal snapshot of %s, disk size %" PRIu64 "%s",
            date, sn->disk_size, vm_state);
}

int
image_list (const struct image *im, export_fn fn, void *opaque)
{
  char description[256];
  uint32_t i;

  if (image_describe (im, "", description, sizeof description) == -1 ||
      fn (opaque, "", description) == -1)
    return -1;
  for (i = 0; i < im->snapshots.nr; ++i) {
    const struct snapshot *sn = &im->snapshots.snapshot[i];
    char *name;
    int r;

    if (sn->label == NULL)
      continue;
    if (asprintf (&name, IMAGE_SNAPSHOT_PREFIX "%s", sn->label) == -1) {
      error_set (ENOMEM, "out of memory");
      return -1;
    }
    describe_snapshot (sn, description, sizeof description);
    r = fn (opaque, name, description);
    free (name);
    if (r == -1)
      return -1;
  }
  return 0;
}

/* The snapshot behind an export other than "", or NULL with the error set. */
static const struct snapshot *
find_snapshot (const struct image *im, const char *export)
{
  const size_t prefix = strlen (IMAGE_SNAPSHOT_PREFIX);
  const struct snapshot *sn = NULL;

  if (strncmp (export, IMAGE_SNAPSHOT_PREFIX, prefix) == 0)
    sn = snapshots_find (&im->snapshots, export + prefix);
  if (sn != NULL)
    return sn;
  error_set (ENOENT, "%s: there is no export \"%.256s\"",
             image_top (im)->layer.tables->name, export);
  if (snapshots_find (&im->snapshots, export) != NULL)
    error_append (": that snapshot is \"" IMAGE_SNAPSHOT_PREFIX "%.256s\"",
                  export);
  return NULL;
}

int
image_describe (const struct image *im, const char *export,
                char *buf, size_t len)
{
  const struct snapshot *sn;

  if (export[0] == '\0') {
    snprintf (buf, len, "live disk, size %" PRIu64, image_top (im)->layer.size);
    return 0;
  }
  sn = find_snapshot (im, export);
  if (sn == NULL)
    return -1;
  describe_snapshot (sn, buf, len);
  return 0;
}

struct layer *
image_open_disk (const struct image *im, const char *export)
{
  const struct qcow2_file *f = image_top (im);
  const struct snapshot *sn = NULL;
  struct qcow2_disk *disk;

  if (export[0] != '\0') {
    sn = find_snapshot (im, export);
    if (sn == NULL)
      return NULL;
    if (snapshot_check (sn, &f->header, f->layer.tables) == -1) {
      const uint64_t index = sn - im->snapshots.snapshot;

      /* Clients that list the exports try this one each time. */
      if (!damage_is_new (f->layer.damage,
                          f->header.snapshots_offset.v + index))
        error_set_repeated ();
      return NULL;
    }
  }
  disk = malloc (sizeof *disk);
  if (disk == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  *disk = f->disk;
  if (sn != NULL) {
    disk->layer.size = sn->disk_size / 512 * 512;
    disk->map.l1_offset = sn->l1_offset;
    disk->map.l1_size = sn->l1_size;
  }
  return &disk->layer;
}

void
image_close_disk (struct layer *disk)
{
  free (disk); /* the first member of what image_open_disk made */
}
