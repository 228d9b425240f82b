/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "disk/read.h"
#include "image-parts.h"
#include "image-rebase.h"
#include "manage/door.h"
#include "manage/header-change.h"

#define CHUNK (UINT64_C (2) << 20) /* is compared at once; whole clusters */

_Static_assert (CHUNK == UINT64_C (1) << QCOW2_MAX_CLUSTER_BITS,
                "no cluster is cut");

#define LOOK_AHEAD (UINT64_C (1) << 30) /* for holes */

/* One disk of the image, live or a snapshot's, over both backing files. */
struct rebase {
  struct image *im;
  const struct layer *disk;  /* over the old one */
  const struct layer *below; /* the new one; NULL: there is none */
  bool copies;               /* else a difference is an error */
  uint64_t granule;          /* what has its own mapping, in bytes */
  uint8_t *old, *now;        /* CHUNK bytes of each */

  /* Bytes of a file that are no hole.  Some hosts look through all of them to find
   * the next one: not again for each piece.
   */
  struct { const struct storage *file; uint64_t from, end; } data;

  image_rebase_fn *fn;
  void *opaque;
  uint64_t done, total; /* of all disks, in pieces of CHUNK bytes */
};

/* ------------------------------------------------------------- what is the same */

static int
lookup (const struct layer *l, uint64_t at, uint64_t max, struct run *run,
        const struct layer **owner)
{
  const unsigned token = epoch_enter (l->shared->epoch);
  const int r = layer_lookup (l, (struct guest_off) { at }, max, run, owner);

  epoch_leave (l->shared->epoch, token);
  return r;
}

/* The same over the new backing file, where the image has nothing. */
static int
lookup_below (const struct rebase *r, uint64_t at, uint64_t max,
              struct run *run, const struct layer **owner)
{
  const struct layer *below = r->below;

  if (below != NULL && at < below->size)
    return lookup (below, at, max < below->size - at ? max : below->size - at,
                   run, owner);
  *run = (struct run) { .kind = RUN_ZERO_PLAIN, .length = max };
  *owner = below;
  return 0;
}

/* Whether a run of data is a hole of the host's file; the run may become shorter.
 * What has been no hole need not be looked at again: nobody else writes the files,
 * and data that has become zeros is only read.  Returns -1 with the error set.
 */
static int
find_hole (struct rebase *r, const struct layer *owner, struct run *run,
           bool *hole)
{
  const uint64_t at = run->host.v;
  struct run ahead = *run;

  *hole = false;
  if (r->data.file == owner->data_file && at >= r->data.from &&
      at < r->data.end)
    ahead.length = r->data.end - at;
  else {
    if (ahead.length < LOOK_AHEAD)
      ahead.length = LOOK_AHEAD;
    if (owner->format->find_hole (owner, &ahead, hole) == -1)
      return -1;
    if (!*hole) {
      r->data.file = owner->data_file;
      r->data.from = at;
      r->data.end = at + ahead.length;
    }
  }
  if (run->length > ahead.length)
    run->length = ahead.length;
  return 0;
}

/* Whether a run reads as zeros by what the tables or, of data, the host says; the
 * run may become shorter.  Returns -1 with the error set.
 */
static int
find_zeros (struct rebase *r, const struct layer *owner, struct run *run,
            bool *zero)
{
  bool hole;

  *zero = run->kind == RUN_ZERO_PLAIN || run->kind == RUN_ZERO_ALLOC;
  if (run->kind != RUN_DATA || owner->format->find_hole == NULL ||
      !storage_holes_read_zero (owner->data))
    return 0;
  if (find_hole (r, owner, run, &hole) == -1)
    return -1;
  *zero = hole;
  return 0;
}

/* Whether two runs are the same bytes of the same file, as where both backing
 * files have one below.
 */
static bool
is_same_place (const struct run *a, const struct layer *x,
               const struct run *b, const struct layer *y)
{
  return a->kind == RUN_DATA && b->kind == RUN_DATA &&
    a->host.v == b->host.v && x->encrypted == y->encrypted &&
    storage_same (x->data_file, y->data_file);
}

/* How far from here on both are known to be the same without being read: 0, if
 * they are not.
 */
static int
skip_same (struct rebase *r, uint64_t at, uint64_t max, uint64_t *length)
{
  const struct layer *x, *y;
  bool zero = false;
  struct run a, b;

  *length = 0;
  if (lookup (r->disk, at, max, &a, &x) == -1 ||
      lookup_below (r, at, a.length, &b, &y) == -1)
    return -1;
  if (is_same_place (&a, x, &b, y)) {
    *length = b.length;
    return 0;
  }
  if (find_zeros (r, x, &a, &zero) == -1 ||
      (zero && find_zeros (r, y, &b, &zero) == -1))
    return -1;
  if (zero)
    *length = a.length < b.length ? a.length : b.length;
  return 0;
}

/* -------------------------------------------------------------- what is not */

static int
read_below (const struct rebase *r, uint64_t at, uint64_t count)
{
  const uint64_t size = r->below != NULL ? r->below->size : 0;
  const uint64_t n = at >= size ? 0 : count < size - at ? count : size - at;

  memset (r->now + n, 0, count - n);
  return n == 0 ? 0
    : layer_read (r->below, r->now, n, (struct guest_off) { at });
}

/* Whether the image itself has all of a range now. */
static int
check_hidden (const struct rebase *r, uint64_t at, uint64_t count, bool *hidden)
{
  const uint64_t end = at + count;
  struct run run = { .kind = RUN_ZERO_PLAIN };

  for (; at < end && run.kind != RUN_UNALLOCATED; at += run.length) {
    const unsigned token = epoch_enter (r->disk->shared->epoch);
    const int ret = r->disk->format->lookup (r->disk,
                                             (struct guest_off) { at },
                                             end - at, &run);

    epoch_leave (r->disk->shared->epoch, token);
    if (ret == -1)
      return -1;
  }
  *hidden = run.kind != RUN_UNALLOCATED;
  return 0;
}

static bool
is_zero (const uint8_t *p, uint64_t count)
{
  return p[0] == 0 && memcmp (p, p + 1, count - 1) == 0;
}

/* Have the image hide this range with what the old backing file has.  Zeros are
 * marked as such.  Where there is no backing file now, version 2 stores nothing
 * for them, so that they are written.
 */
static int
copy (const struct rebase *r, const uint8_t *p, uint64_t at, uint64_t count,
      bool zero)
{
  const struct guest_off offset = { at };
  bool hidden = false;

  if (zero && (image_zero (r->im, count, offset,
                           IMAGE_MAY_TRIM | IMAGE_HIDE) == -1 ||
               check_hidden (r, at, count, &hidden) == -1))
    return -1;
  return hidden ? 0 : image_write (r->im, p, count, offset, 0);
}

/* What to do with a granule. */
enum difference { SAME, ZEROS, DATA };

static enum difference
compare (const struct rebase *r, uint64_t i, uint64_t count)
{
  return memcmp (r->old + i, r->now + i, count) == 0 ? SAME
    : is_zero (r->old + i, count) ? ZEROS : DATA;
}

/* count bytes of both are read: copy what differs. */
static int
copy_differences (const struct rebase *r, uint64_t at, uint64_t count)
{
  uint64_t i, n;

  for (i = 0; i < count; i += n) {
    enum difference d = SAME, next = SAME;

    for (n = 0; i + n < count && next == d;) {
      uint64_t size = r->granule - (at + i + n) % r->granule;

      if (size > count - i - n)
        size = count - i - n;
      next = compare (r, i + n, size);
      if (n == 0)
        d = next;
      if (next == d)
        n += size;
    }
    if (d != SAME && !r->copies) {
      error_set (ENOTSUP, "%s: it has internal snapshots, and one of them "
                 "would change, at %" PRIu64 ", over that backing file",
                 r->disk->tables->name, at + i);
      return -1;
    }
    if (d != SAME && copy (r, r->old + i, at + i, n, d == ZEROS) == -1)
      return -1;
  }
  return 0;
}

/* The image has nothing in this range. */
static int
rebase_gap (struct rebase *r, uint64_t at, uint64_t end)
{
  uint64_t n;

  for (; at < end; at += n) {
    const uint64_t max = CHUNK - at % CHUNK < end - at ? CHUNK - at % CHUNK
      : end - at;

    if (skip_same (r, at, max, &n) == -1)
      return -1;
    /* What is compared is whole granules. */
    if (n < max)
      n &= -r->granule;
    if (n > 0)
      continue;
    n = max;
    if (layer_read (r->disk, r->old, n, (struct guest_off) { at }) == -1 ||
        read_below (r, at, n) == -1 || copy_differences (r, at, n) == -1)
      return -1;
  }
  return 0;
}

static uint64_t
pieces (uint64_t bytes)
{
  return bytes / CHUNK + (bytes % CHUNK != 0);
}

static int
rebase_disk (struct rebase *r)
{
  const uint64_t before = r->done;
  const struct layer *l = r->disk;
  uint64_t at = 0;

  while (at < l->size) {
    const uint64_t max = CHUNK - at % CHUNK < l->size - at
      ? CHUNK - at % CHUNK : l->size - at;
    const unsigned token = epoch_enter (l->shared->epoch);
    struct run run;
    int ret;

    ret = l->format->lookup (l, (struct guest_off) { at }, max, &run);
    epoch_leave (l->shared->epoch, token);
    if (ret == 0 && run.kind == RUN_DAMAGED)
      ret = layer_damaged (l, run.host);
    if (ret == -1 ||
        (run.kind == RUN_UNALLOCATED &&
         rebase_gap (r, at, at + run.length) == -1))
      return -1;
    at += run.length;
    r->done = before + pieces (at);
    if (!r->fn (r->opaque, r->done, r->total)) {
      error_set (ECANCELED, "%s: interrupted; it has its old backing file, and "
                 "the same content", l->tables->name);
      return -1;
    }
  }
  return 0;
}

/* ------------------------------------------------------------------ the whole */

/* What the image is to lie on must not be its data file. */
static int
check_uses (const struct image *im, const struct image *below)
{
  const struct layer *l = im->chain.layer[0];
  unsigned i;

  for (i = 1; below != NULL && i < below->chain.nr; ++i)
    if (storage_same (below->chain.layer[i]->tables, l->data_file) ||
        storage_same (below->chain.layer[i]->data_file, l->data_file)) {
      error_set (EINVAL, "%s: it is the external data file of %s already",
                 below->chain.layer[i]->tables->name, l->tables->name);
      return -1;
    }
  return 0;
}

/* The image's own data is not copied, nor is that of the new backing file. */
static int
check_doors (const struct image *im, const struct image *below)
{
  const bool encrypted = im->chain.layer[0]->encrypted;
  unsigned i;

  for (i = 0; i < im->chain.nr; ++i)
    if (door_check (im->chain.layer[i], encrypted) == -1)
      return -1;
  for (i = 1; below != NULL && i < below->chain.nr; ++i)
    if (door_check (below->chain.layer[i], true) == -1)
      return -1;
  return 0;
}

/* No snapshot may change, since it can't be written. */
static int
check_snapshots (struct rebase *r)
{
  const struct snapshots *t = &r->im->snapshots;
  uint32_t i;
  int ret = 0;

  r->copies = false;
  for (i = 0; ret == 0 && i < t->nr; ++i) {
    struct layer *disk = r->im->kind->new_disk (r->im, &t->snapshot[i]);

    if (disk == NULL)
      return -1;
    r->disk = disk;
    ret = rebase_disk (r);
    image_close_disk (disk);
  }
  return ret;
}

static int
copy_all (struct rebase *r)
{
  const struct snapshots *t = &r->im->snapshots;
  struct layer *disk;
  uint32_t i;
  int ret;

  if (r->im->chain.nr == 1 && r->below == NULL)
    return 0; /* nothing is below, and nothing will be */
  r->total = pieces (r->im->chain.layer[0]->size);
  for (i = 0; i < t->nr; ++i)
    r->total += pieces (t->snapshot[i].disk_size / 512 * 512);
  if (check_snapshots (r) == -1)
    return -1;
  disk = image_open_disk (r->im, "");
  if (disk == NULL)
    return -1;
  r->disk = disk;
  r->copies = true;
  ret = rebase_disk (r);
  image_close_disk (disk);
  return ret;
}

/* Nothing is durable until the image is closed. */
static int
copy_to (struct image *im, const struct image *below, const char *name,
         const char *format, image_rebase_fn *fn, void *opaque)
{
  const char *file = image_storage (im)->name;
  struct rebase r = {
    .im = im, .below = below != NULL ? image_disk_below (below) : NULL,
    .granule = im->preferred_size, .fn = fn, .opaque = opaque,
  };
  int ret = -1;

  if (im->kind != &image_qcow2) {
    error_set (ENOTSUP, "%s: it is a %s image, and this is for qcow2 only",
               file, im->kind->format->name);
    return -1;
  }
  if (header_check_backing (file, im->chain.layer[0]->excludes_backing, name,
                            format) == -1 ||
      check_uses (im, below) == -1 || check_doors (im, below) == -1)
    return -1;
  r.old = malloc (CHUNK);
  r.now = malloc (CHUNK);
  if (r.old == NULL || r.now == NULL)
    error_set (ENOMEM, "%s: out of memory", file);
  else
    ret = copy_all (&r);
  free (r.old);
  free (r.now);
  return ret;
}

int
image_rebase (struct image *im, const struct image *below, const char *name,
              const char *format, image_rebase_fn *fn, void *opaque)
{
  const int copied = copy_to (im, below, name, format, fn, opaque);
  struct error_kept kept;
  struct storage *file;
  int r;

  error_keep (&kept);
  r = image_close_but_file (im, &file);
  if (copied == -1) {
    error_restore (&kept);
    r = -1;
  }
  if (r == 0)
    r = header_change_backing (file, name, format);
  storage_close (file);
  return r;
}
