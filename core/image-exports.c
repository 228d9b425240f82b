/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/hash.h"
#include "image-parts.h"

void
image_describe_snapshot (const struct snapshot *sn, char *buf, size_t len)
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

static void
describe_bitmap (const struct bitmap_info *b, char *buf, size_t len)
{
  static const char *const state[] = {
    [BITMAP_ENABLED] = "enabled",
    [BITMAP_DISABLED] = "disabled",
    [BITMAP_IN_USE] = "in use: not to be trusted",
    [BITMAP_UNKNOWN] = "of an unknown kind",
  };

  snprintf (buf, len, "bitmap of changes, granularity %" PRIu64 ", %s",
            UINT64_C (1) << b->granularity_bits, state[b->state]);
}

/* ------------------------------------------------------------------ listing */

struct listing {
  export_fn fn;
  void *opaque;
  int r; /* what fn returned last */
};

static int
list_one (struct listing *l, const char *prefix, const char *rest,
          const char *description)
{
  char *name;

  if (asprintf (&name, "%s%s", prefix, rest) == -1) {
    error_set (ENOMEM, "out of memory");
    l->r = -1;
  }
  else {
    l->r = l->fn (l->opaque, name, description);
    free (name);
  }
  return l->r;
}

static int
list_snapshots (const struct image *im, struct listing *l)
{
  char description[256];
  uint32_t i;

  for (i = 0; i < im->snapshots.nr; ++i) {
    const struct snapshot *sn = &im->snapshots.snapshot[i];

    if (sn->label == NULL)
      continue;
    image_describe_snapshot (sn, description, sizeof description);
    if (list_one (l, IMAGE_SNAPSHOT_PREFIX, sn->label, description) == -1)
      return -1;
  }
  return 0;
}

/* Hashes of the bitmaps' names, which can be 64 MiB long: to find those that
 * occur once.
 */
struct names {
  struct hash_key key;
  uint64_t *hash;
  size_t nr, room;
  struct listing *listing;
};

static int
compare_hashes (const void *a, const void *b)
{
  const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

static int
add_name (void *opaque, const struct bitmap_info *b)
{
  struct names *n = opaque;

  if (n->nr == n->room) {
    const size_t room = n->room == 0 ? 16 : 2 * n->room;
    uint64_t *hash = realloc (n->hash, room * sizeof *hash);

    if (hash == NULL) {
      error_set (ENOMEM, "out of memory");
      n->listing->r = -1;
      return -1;
    }
    n->hash = hash;
    n->room = room;
  }
  n->hash[n->nr++] = hash_string (&n->key, b->name);
  return 0;
}

/* Of names that are sorted. */
static bool
occurs_once (const struct names *n, const char *name)
{
  const uint64_t hash = hash_string (&n->key, name);
  const uint64_t *p = bsearch (&hash, n->hash, n->nr, sizeof hash,
                               compare_hashes);

  return p != NULL && (p == n->hash || p[-1] != hash) &&
    (p + 1 == n->hash + n->nr || p[1] != hash);
}

static int
list_bitmap (void *opaque, const struct bitmap_info *b)
{
  struct names *n = opaque;
  char description[256];

  /* Whoever lists exports may open each, and give up at the first that can't
   * be.
   */
  if (b->state == BITMAP_IN_USE || b->state == BITMAP_UNKNOWN ||
      !b->table_fits || !error_is_printable_name (b->name) ||
      !occurs_once (n, b->name))
    return 0;
  describe_bitmap (b, description, sizeof description);
  return list_one (n->listing, IMAGE_BITMAP_PREFIX, b->name, description);
}

/* Why another program may write the image now, in spite of locks; NULL: none
 * can.  The tables that are cached here, and with them what is said to be
 * changed or zeros, may be out of date then, even if it has ended since.
 */
static const char *
why_not_alone (const struct image *im)
{
  if (im->chain.force_share)
    return "force-share";
  if (storage_keeps_writers_out (image_storage (im)))
    return NULL;
  return im->chain.locking == STORAGE_LOCKING_OFF
    ? "locking=off" : "no lock can be had on it";
}

/* Should their directory be damaged, they are not listed: opening one gets the
 * error.
 */
static int
list_bitmaps (const struct image *im, struct listing *l)
{
  struct names n = { .key = hash_key (), .listing = l };
  int r;

  if (im->kind->list_bitmaps == NULL || why_not_alone (im) != NULL)
    return 0;
  r = im->kind->list_bitmaps (im, add_name, &n);
  if (r == 0 && n.nr > 0) {
    qsort (n.hash, n.nr, sizeof n.hash[0], compare_hashes);
    r = im->kind->list_bitmaps (im, list_bitmap, &n);
  }
  free (n.hash);
  if (r == -1 && l->r == 0)
    debug_message ("%s", error_message ());
  return l->r;
}

int
image_list (const struct image *im, export_fn fn, void *opaque)
{
  struct listing l = { .fn = fn, .opaque = opaque };
  char description[256];
  int r;

  if (image_describe (im, "", description, sizeof description) == -1 ||
      fn (opaque, "", description) == -1)
    return -1;
  image_lock_snapshots (im);
  r = list_snapshots (im, &l);
  image_unlock_snapshots (im);
  return r == -1 ? -1 : list_bitmaps (im, &l);
}

/* ------------------------------------------------------------------ opening */

/* The name of the bitmap that an export is of; NULL: it is of none. */
static const char *
bitmap_of (const char *export)
{
  const size_t prefix = strlen (IMAGE_BITMAP_PREFIX);

  return strncmp (export, IMAGE_BITMAP_PREFIX, prefix) == 0
    ? export + prefix : NULL;
}

/* The name of the snapshot that an export makes; NULL: it makes none. */
static const char *
take_of (const struct image *im, const char *export)
{
  return im->takes != NULL && image_is_take (export)
    ? export + strlen (IMAGE_TAKE_PREFIX) : NULL;
}

struct wanted_bitmap {
  const char *name;
  char *buf;
  size_t len;
  bool found;
};

static int
describe_wanted (void *opaque, const struct bitmap_info *b)
{
  struct wanted_bitmap *w = opaque;

  w->found = strcmp (b->name, w->name) == 0;
  if (w->found)
    describe_bitmap (b, w->buf, w->len);
  return w->found ? -1 : 0;
}

/* Returns 1 if there is none of this name, and sets no error then. */
static int
find_description (const struct image *im, const char *bitmap, char *buf,
                  size_t len)
{
  struct wanted_bitmap w = { .name = bitmap, .buf = buf, .len = len };
  const int r = im->kind->list_bitmaps (im, describe_wanted, &w);

  return w.found ? 0 : r == -1 ? -1 : 1;
}

int
image_describe_bitmap (const struct image *im, const char *bitmap, char *buf,
                       size_t len)
{
  const int r = find_description (im, bitmap, buf, len);

  if (r == 1)
    error_set (ENOENT, "%s: there is no bitmap \"%.256s\"",
               image_storage (im)->name, bitmap);
  return r == 0 ? 0 : -1;
}

/* What is behind an export IMAGE_SNAPSHOT_PREFIX. */
struct of_snapshot {
  const struct snapshot *sn;
  const char *bitmap; /* whose extents it has; NULL: its own */
};

/* The first snapshot whose label or ID is followed by the name of a bitmap, if any.
 * Returns -1 with ENOMEM set.
 */
static int
find_before_bitmap (const struct image *im, const char *rest,
                    struct of_snapshot *f)
{
  static const char between[] = "/" IMAGE_BITMAP_PREFIX;
  char *labels = strdup (rest), *at = labels;

  if (labels == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  while (f->sn == NULL && (at = strstr (at, between)) != NULL) {
    *at = '\0';
    f->sn = snapshots_find (&im->snapshots, labels);
    f->bitmap = rest + (at - labels) + strlen (between);
    *at++ = '/';
  }
  free (labels);
  return 0;
}

/* An export other than "", or sn is NULL and the error is set.  A label that is all
 * of the rest comes first.  Wants snapshots_lock.
 */
static struct of_snapshot
find_snapshot (const struct image *im, const char *export)
{
  const size_t prefix = strlen (IMAGE_SNAPSHOT_PREFIX);
  struct of_snapshot f = { NULL, NULL };

  if (strncmp (export, IMAGE_SNAPSHOT_PREFIX, prefix) == 0) {
    f.sn = snapshots_find (&im->snapshots, export + prefix);
    if (f.sn == NULL && im->kind->new_bitmap_disk != NULL &&
        find_before_bitmap (im, export + prefix, &f) == -1)
      return f;
  }
  if (f.sn != NULL)
    return f;
  error_set (ENOENT, "%s: there is no export \"%.256s\"",
             image_storage (im)->name, export);
  if (snapshots_find (&im->snapshots, export) != NULL)
    error_append (": that snapshot is \"" IMAGE_SNAPSHOT_PREFIX "%.256s\"",
                  export);
  return f;
}

static int
describe_snapshot (const struct image *im, const char *export, char *buf,
                   size_t len)
{
  struct of_snapshot f;
  int r = -1;

  image_lock_snapshots (im);
  f = find_snapshot (im, export);
  if (f.sn != NULL && f.bitmap != NULL)
    r = image_describe_bitmap (im, f.bitmap, buf, len);
  else if (f.sn != NULL)
    r = 0;
  if (r == 0) {
    image_describe_snapshot (f.sn, buf, len);
    if (f.bitmap != NULL)
      snprintf (buf + strlen (buf), len - strlen (buf),
                ", with what a bitmap has");
  }
  image_unlock_snapshots (im);
  return r;
}

static struct layer *
open_snapshot (const struct image *im, const char *export)
{
  struct layer *disk = NULL;
  struct of_snapshot f;

  image_lock_snapshots (im);
  f = find_snapshot (im, export);
  if (f.sn != NULL)
    disk = f.bitmap != NULL ? image_open_bitmap (im, f.bitmap, f.sn)
      : im->kind->new_disk (im, f.sn);
  image_unlock_snapshots (im);
  return disk;
}

int
image_describe (const struct image *im, const char *export,
                char *buf, size_t len)
{
  const char *bitmap = bitmap_of (export), *take = take_of (im, export);

  if (export[0] == '\0') {
    snprintf (buf, len, "live disk, size %" PRIu64, im->chain.layer[0]->size);
    return 0;
  }
  if (image_is_frozen (im, export))
    return image_describe_frozen (im, export, buf, len);
  if (take != NULL)
    return image_describe_take (im, take, buf, len);
  if (bitmap != NULL && im->kind->list_bitmaps != NULL) {
    const int r = find_description (im, bitmap, buf, len);

    if (r != 1)
      return r;
  }
  if (image_is_changed (im, export))
    return image_describe_changed (im, export, buf, len);
  return describe_snapshot (im, export, buf, len);
}

struct layer *
image_open_bitmap (const struct image *im, const char *bitmap,
                   const struct snapshot *sn)
{
  static atomic_flag said = ATOMIC_FLAG_INIT;
  const char *why = why_not_alone (im);

  if (why == NULL)
    return im->kind->new_bitmap_disk (im, bitmap, sn, NULL);
  error_set (ENOTSUP, "%s: the bitmap \"%.256s\" can't be read while another "
             "process may write the image (%s)", image_storage (im)->name,
             bitmap, why);
  if (atomic_flag_test_and_set (&said))
    error_set_repeated ();
  return NULL;
}

struct layer *
image_open_disk (const struct image *im, const char *export)
{
  const char *take = take_of (im, export);
  const char *bitmap = bitmap_of (export);

  if (image_is_frozen (im, export))
    return image_open_frozen (im, export);
  if (take != NULL)
    return image_take_open (im, take);
  if (bitmap != NULL && im->kind->new_bitmap_disk != NULL)
    return image_open_bitmap (im, bitmap, NULL);
  if (image_is_changed (im, export))
    return image_open_changed (im, export);
  if (export[0] == '\0')
    return im->kind->new_disk (im, NULL);
  return open_snapshot (im, export);
}

void
image_close_disk (struct layer *disk)
{
  if (disk != NULL && disk->let_go != NULL)
    disk->let_go (disk->held);
  free (disk); /* the first member of what the kind made */
}
