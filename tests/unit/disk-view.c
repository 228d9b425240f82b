/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk-view.h"
#include "disk/read.h"
#include "image.h"
#include "memory-storage.h"

#define SECTOR 512

/* Enough for a test's disks; a damaged header may say anything. */
#define MAX_SECTORS 65536

static int
take_name (void *opaque, const char *name, const char *description)
{
  struct disk_view *v = opaque;

  (void) description;
  /* A bitmap's has the data of the live disk, and a repair may give it up. */
  if (v->nr == VIEW_MAX_DISKS ||
      strncmp (name, IMAGE_BITMAP_PREFIX, strlen (IMAGE_BITMAP_PREFIX)) == 0)
    return 0;
  v->name[v->nr] = strdup (name);
  if (v->name[v->nr++] == NULL)
    abort ();
  return 0;
}

/* All at once if that goes. */
static void
read_disk (struct disk_view *v, unsigned i, const struct layer *disk)
{
  const uint64_t sectors = disk->size / SECTOR < MAX_SECTORS
    ? disk->size / SECTOR : MAX_SECTORS;
  uint64_t at;

  v->sectors[i] = sectors;
  v->bytes[i] = calloc (sectors + 1, SECTOR);
  v->readable[i] = calloc (sectors + 1, sizeof (bool));
  if (v->bytes[i] == NULL || v->readable[i] == NULL)
    abort ();
  if (sectors > 0 && layer_read (disk, v->bytes[i], sectors * SECTOR,
                                 (struct guest_off) { 0 }) == 0) {
    memset (v->readable[i], true, sectors);
    return;
  }
  for (at = 0; at < sectors; ++at)
    v->readable[i][at] =
      layer_read (disk, v->bytes[i] + at * SECTOR, SECTOR,
                  (struct guest_off) { at * SECTOR }) == 0;
}

void
disk_view_read (struct disk_view *v, const void *bytes, uint64_t size,
                const void *backing, uint64_t backing_size)
{
  struct storage *storages[2];
  struct image *im;
  unsigned i;

  memset (v, 0, sizeof *v);
  storages[0] = memory_storage_new ("image", bytes, size, NULL);
  if (backing != NULL)
    storages[1] = memory_storage_new ("backing", backing, backing_size, NULL);
  im = image_open_storages (storages, backing != NULL ? 2 : 1,
                            CACHE_MIN_BYTES);
  v->opens = im != NULL;
  if (im == NULL)
    return;
  if (image_list (im, take_name, v) == -1)
    abort ();
  for (i = 0; i < v->nr; ++i) {
    struct layer *disk = image_open_disk (im, v->name[i]);

    if (disk != NULL) {
      read_disk (v, i, disk);
      image_close_disk (disk);
    }
  }
  image_close (im);
}

void
disk_view_free (struct disk_view *v)
{
  unsigned i;

  for (i = 0; i < v->nr; ++i) {
    free (v->name[i]);
    free (v->bytes[i]);
    free (v->readable[i]);
  }
  memset (v, 0, sizeof *v);
}

static const uint8_t *
sector (const struct disk_view *v, unsigned i, uint64_t at)
{
  return v->bytes[i] + at * SECTOR;
}

bool
disk_view_is_kept (const struct disk_view *a, const struct disk_view *b,
                   char *text, size_t size)
{
  uint64_t at;
  unsigned i;

  if (a->opens && (!b->opens || a->nr != b->nr)) {
    snprintf (text, size, "the image does not open as before");
    return false;
  }
  for (i = 0; i < a->nr; ++i) {
    for (at = 0; at < a->sectors[i]; ++at) {
      if (!a->readable[i][at] ||
          (at < b->sectors[i] && b->readable[i][at] &&
           memcmp (sector (a, i, at), sector (b, i, at), SECTOR) == 0))
        continue;
      snprintf (text, size, "disk \"%s\", sector %" PRIu64 ": %s",
                a->name[i], at, at < b->sectors[i] && b->readable[i][at]
                ? "it reads otherwise" : "it can't be read any more");
      return false;
    }
  }
  return true;
}
