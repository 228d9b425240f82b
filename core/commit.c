/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "commit.h"
#include "commit-parts.h"
#include "disk/read.h"
#include "image-parts.h"
#include "manage/door.h"
#include "manage/edit.h"
#include "manage/empty.h"
#include "manage/resize.h"
#include "qcow2/disk.h"
#include "qcow2/qcow2.h"
#include "raw/raw.h"
#include "storage/open.h"

static const unsigned writes = STORAGE_WRITE | STORAGE_RESIZE;

/* --------------------------------------------------------------- which files */

int
commit_check_base (const struct image *im)
{
  if (im->chain.nr > 1)
    return 0;
  error_set (EINVAL, "%s: it has no backing file", image_storage (im)->name);
  return -1;
}

int
commit_find_base (const struct image *im, const char *path, unsigned *above)
{
  const struct nbd_options nbd = NBD_DEFAULTS;
  struct storage *s = storage_open (path, &nbd);
  unsigned i;

  if (s == NULL)
    return -1;
  for (i = 1; i < im->chain.nr; ++i)
    if (storage_same (s, im->chain.layer[i]->tables))
      break;
  storage_close (s);
  *above = i;
  if (i < im->chain.nr)
    return 0;
  error_set (EINVAL, "%s: it is not below %s", path, image_storage (im)->name);
  return -1;
}

/* ------------------------------------------------------------------ refusing */

/* Snapshots of a file above the base read from that what they lack. */
static int
check_snapshots (struct layer *l)
{
  if (l->format != &qcow2_format || qcow2_file (l)->header.nr_snapshots == 0)
    return 0;
  error_set (ENOTSUP, "%s: it has internal snapshots, which would show what the "
             "base gets", l->tables->name);
  return -1;
}

static int
check_top (const struct image *im, const struct commit_options *o)
{
  const struct writer_options any_bitmaps = { .invalidate_bitmaps = true };
  struct storage *s = image_storage (im);

  if (im->kind->check (im, &any_bitmaps, false, IMAGE_REPAIR_NONE) == -1)
    return -1;
  if (im->kind == &image_qcow2)
    return o->keep ? edit_check_references (s) : empty_check (s);
  if (o->keep)
    return 0;
  error_set (ENOTSUP, "%s: a %s image can't be emptied", s->name,
             im->kind->format->name);
  return -1;
}

static int
check_all (const struct image *im, unsigned above,
           const struct commit_options *o)
{
  unsigned i;

  for (i = 0; i < im->chain.nr; ++i) {
    struct layer *l = im->chain.layer[i];

    if (door_check (l, i >= above || im->chain.layer[above]->encrypted) == -1)
      return -1;
    if (i < above && check_snapshots (l) == -1)
      return -1;
  }
  return check_top (im, o);
}

/* Nobody may be reading the files between the two, which will show what the base
 * gets.
 */
static int
lock_between (const struct image *im, unsigned above)
{
  unsigned i;

  for (i = 1; i < above; ++i)
    if (storage_lock (im->chain.layer[i]->tables, STORAGE_CONSISTENT_READ,
                      STORAGE_CONSISTENT_READ | writes) == -1)
      return -1;
  return 0;
}

/* The locks, and what there is to check under them. */
static int
prepare (struct image *im, unsigned above, const struct commit_options *o)
{
  if (lock_between (im, above) == -1 ||
      (!o->keep && image_lock_for_writing (im) == -1))
    return -1;
  return check_all (im, above, o);
}

/* ------------------------------------------------------------------- growing */

/* Bytes beyond the end of a disk, in its last cluster, would appear if it grew:
 * for the image, too.
 */
static int
check_tail (struct image *im, unsigned above)
{
  struct image *base = image_open_backing (im, above);
  struct layer *disk = base != NULL ? base->kind->new_disk (base, NULL) : NULL;
  const uint64_t end = disk != NULL ? disk->size : 0;
  const uint64_t rest = disk != NULL ? -end & (base->cluster_size - 1) : 0;
  uint8_t *tail = calloc (1, rest + 1);
  int r = disk != NULL && tail != NULL ? 0 : -1;
  uint64_t i;

  if (disk != NULL && tail == NULL)
    error_set (ENOMEM, "out of memory");
  if (r == 0) {
    disk->size = end + rest;
    r = layer_read (disk, tail, rest, (struct guest_off) { end });
  }
  for (i = 0; r == 0 && i < rest; ++i)
    if (tail[i] != 0) {
      error_set (ENOTSUP, "%s: it is to grow, and has data beyond the end of its "
                 "disk, at %" PRIu64 ", which would appear",
                 image_storage (base)->name, end + i);
      r = -1;
    }
  free (tail);
  free (disk);
  (void) image_close (base); /* it was not written */
  return r;
}

/* Whether a disk that grows gets zeros instead: see resize_disk. */
static bool
hides_tail (const struct layer *l)
{
  return l->backing != NULL && l->backing->size > l->size;
}

static int
grow (struct image *im, unsigned above, uint64_t size)
{
  const struct layer *l = im->chain.layer[above];
  const struct resize_options options = {
    .size = size, .disk = l, .data = l->encrypted ? l->data : NULL,
  };

  if (l->format == &raw_format)
    return storage_resize (l->tables, size) == -1 ? -1
      : storage_flush (l->tables);
  if (l->format == &qcow2_format)
    return !hides_tail (l) && check_tail (im, above) == -1 ? -1
      : resize_disk (l->tables, &options);
  error_set (ENOTSUP, "%s: it has %" PRIu64 " bytes, fewer than %s, and a %s "
             "image can't grow", l->tables->name, l->size,
             image_storage (im)->name, l->format->name);
  return -1;
}

int
commit_grow_base (struct image *im, unsigned above,
                  const struct commit_options *o, bool *grown)
{
  const uint64_t size = im->chain.layer[0]->size;
  const struct layer *l = im->chain.layer[above];

  *grown = l->size < size;
  if (!*grown)
    return 0;
  if (prepare (im, above, o) == -1 ||
      storage_make_writable (l->tables, STORAGE_CONSISTENT_READ | writes,
                             writes) == -1)
    return -1;
  return grow (im, above, size);
}

/* ------------------------------------------------------------------- copying */

static int
copy_to_raw (struct image *im, unsigned above, const struct commit_options *o)
{
  struct storage *s = im->chain.layer[above]->tables;

  if (storage_make_writable (s, STORAGE_CONSISTENT_READ | writes,
                             writes) == -1 ||
      commit_copy (im, above, NULL, o) == -1)
    return -1;
  return storage_flush (s);
}

static int
copy_to_image (struct image *im, unsigned above,
               const struct commit_options *o)
{
  const struct writer_options options = { 0 };
  struct image *base = image_open_backing (im, above);
  struct error_kept kept;
  int r = -1;

  if (base == NULL)
    return -1;
  image_detect_zeroes (base, DETECT_ZEROES_UNMAP);
  if (image_make_writable (base, &options) == 0 &&
      commit_copy (im, above, base, o) == 0)
    r = image_flush (base);
  if (r == 0)
    return image_close (base);
  error_keep (&kept);
  (void) image_close (base);
  error_restore (&kept);
  return -1;
}

static int
copy (struct image *im, unsigned above, const struct commit_options *o)
{
  const struct layer *l = im->chain.layer[above];

  if (l->size < im->chain.layer[0]->size) {
    error_set (EINVAL, "%s: it is smaller than %s", l->tables->name,
               image_storage (im)->name);
    return -1;
  }
  return l->format == &raw_format ? copy_to_raw (im, above, o)
    : copy_to_image (im, above, o);
}

int
commit_image (struct image *im, unsigned above,
              const struct commit_options *o)
{
  if (prepare (im, above, o) == -1 || copy (im, above, o) == -1)
    return -1;
  if (o->keep || empty_disk (image_storage (im)) == 0)
    return 0;
  error_append (" (the base has all of it, and it reads as before)");
  return -1;
}
