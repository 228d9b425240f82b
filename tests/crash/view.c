/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk/read.h"
#include "manage/bitmap-ranges.h"
#include "memory-storage.h"
#include "must-have.h"
#include "qcow2/bitmaps.h"
#include "qcow2/qcow2.h"
#include "view.h"

struct image *
view_open (const struct made *m, struct storage *s)
{
  struct storage *storages[2] = { s };
  unsigned nr = 1;

  if (m->backing != NULL)
    storages[nr++] = memory_storage_new ("backing", m->backing,
                                         m->backing_size, NULL);
  return image_open_encrypted (storages, nr, CACHE_MIN_BYTES,
                               made_unlock (m));
}

static int
note_export (void *opaque, const char *name, const char *description)
{
  struct view *v = opaque;

  (void) description;
  if (strncmp (name, IMAGE_BITMAP_PREFIX, strlen (IMAGE_BITMAP_PREFIX)) == 0)
    return 0;
  if (v->nr == VIEW_MAX_EXPORTS)
    abort ();
  snprintf (v->name[v->nr++], sizeof v->name[0], "%s", name);
  return 0;
}

static bool
read_export (const struct image *im, struct view *v, unsigned i)
{
  struct layer *disk = image_open_disk (im, v->name[i]);
  bool ok;

  if (disk == NULL)
    return false;
  v->size[i] = disk->size;
  v->content[i] = must_have (malloc (disk->size + 1));
  ok = layer_read (disk, v->content[i], disk->size,
                   (struct guest_off) { 0 }) == 0;
  image_close_disk (disk);
  return ok;
}

static void
note (struct view *v, const char *text, uint64_t a, uint64_t b)
{
  v->length += snprintf (v->bitmaps + v->length,
                         sizeof v->bitmaps - v->length, "%s %" PRIu64 " %"
                         PRIu64 "\n", text, a, b);
  if (v->length >= sizeof v->bitmaps)
    abort ();
}

static int
note_range (void *opaque, uint64_t start, uint64_t length)
{
  note (opaque, "", start, length);
  return 0;
}

struct bitmaps_view {
  struct storage *storage;
  struct header header;
  struct view *view;
};

static int
note_bitmap (void *opaque, const struct bitmap_info *b)
{
  const struct bitmaps_view *v = opaque;

  note (v->view, b->name, b->granularity_bits, b->state);
  return bitmap_ranges (v->storage, &v->header, b->name, note_range, v->view);
}

static bool
view_bitmaps (const void *bytes, uint64_t size, struct view *v)
{
  struct bitmaps_view b = {
    .storage = memory_storage_new ("state", bytes, size, NULL), .view = v,
  };
  const bool ok = qcow2_read_header (b.storage, &b.header) == 0 &&
    bitmaps_list (b.storage, &b.header, note_bitmap, &b) == 0;

  storage_close (b.storage);
  return ok;
}

bool
view_image (const struct image *im, struct view *v)
{
  unsigned i;

  memset (v, 0, sizeof *v);
  if (image_list (im, note_export, v) == -1)
    return false;
  for (i = 0; i < v->nr; ++i)
    if (!read_export (im, v, i))
      return false;
  return true;
}

void
view_free (struct view *v)
{
  unsigned i;

  for (i = 0; i < v->nr; ++i)
    free (v->content[i]);
}

bool
views_equal (const struct view *a, const struct view *b, bool live)
{
  unsigned i;

  if (a->nr != b->nr || (live && strcmp (a->bitmaps, b->bitmaps) != 0))
    return false;
  for (i = live ? 0 : 1; i < a->nr; ++i)
    if (strcmp (a->name[i], b->name[i]) != 0 || a->size[i] != b->size[i] ||
        memcmp (a->content[i], b->content[i], a->size[i]) != 0)
      return false;
  return true;
}

bool
view_state (const struct made *m, const void *bytes, uint64_t size,
            struct view *v)
{
  struct image *im = view_open (m, memory_storage_new ("state", bytes, size,
                                                       NULL));
  bool ok;

  memset (v, 0, sizeof *v);
  ok = im != NULL && view_image (im, v) && view_bitmaps (bytes, size, v);
  (void) image_close (im);
  return ok;
}
