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
             image_storage (im)->name, export);
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
    snprintf (buf, len, "live disk, size %" PRIu64, im->chain.layer[0]->size);
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
  const struct snapshot *sn = NULL;

  if (export[0] != '\0') {
    sn = find_snapshot (im, export);
    if (sn == NULL)
      return NULL;
  }
  return im->kind->new_disk (im, sn);
}

void
image_close_disk (struct layer *disk)
{
  free (disk); /* the first member of what the kind made */
}
