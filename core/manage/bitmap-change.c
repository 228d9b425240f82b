/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "manage/bitmap-change.h"
#include "manage/bitmap-ranges.h"
#include "manage/bitmap-set.h"
#include "qcow2/bitmap-directory.h"
#include "qcow2/qcow2.h"

struct changing {
  const struct bitmap_change *what;
  struct edit *e;
  struct bitmap_set set;
  struct bitmap_member *target; /* of marks */
  char printable[1024]; /* the bitmap's name */
};

/* ------------------------------------------------------------------- adding
 */

static int
add (struct changing *c)
{
  unsigned bits;

  if (bitmap_set_find (&c->set, c->what->name) != NULL) {
    error_set (EEXIST, "%s: there is a bitmap \"%s\" already",
               c->e->storage->name, c->printable);
    return -1;
  }
  return bitmap_check_new (c->e->storage->name, &c->e->header, c->what->name,
                           c->what->granularity, &bits) == -1 ? -1
    : bitmap_set_add (&c->set, c->what->name, bits);
}

/* ------------------------------------------------------------------ merging
 */

static int
mark (void *opaque, uint64_t start, uint64_t length)
{
  struct changing *c = opaque;

  return bitmap_set_mark (&c->set, c->target, start, length);
}

/* A bitmap that another image has. */
static int
merge_from (struct changing *c, const char *name)
{
  struct storage *s = c->what->source;
  struct header h;

  if (qcow2_read_header (s, &h) == -1)
    return -1;
  if (h.disk_size != c->e->header.disk_size) {
    error_set (EINVAL, "%s: its disk has %" PRIu64 " bytes, and that of %s %"
               PRIu64 ": bitmaps of disks of different sizes can't be merged",
               s->name, h.disk_size, c->e->storage->name,
               c->e->header.disk_size);
    return -1;
  }
  return bitmap_ranges (s, &h, name, mark, c);
}

/* One of this image, which has not changed: only the bitmap that it is merged
 * into has.
 */
static int
merge (struct changing *c, const char *name)
{
  if (c->what->source != NULL)
    return merge_from (c, name);
  if (strcmp (name, c->what->name) == 0)
    return 0;
  return bitmap_ranges (c->e->storage, &c->e->header, name, mark, c);
}

/* ------------------------------------------------------------------- actions
 */

/* What is not known can't be removed, either: which clusters it has is not
 * known.
 */
static int
check_kind (const struct changing *c, const struct bitmap_member *m,
            enum bitmap_action_kind action)
{
  const uint8_t *p = m->entry;
  const bool known = p[QCOW2_BITMAP_FIELD_TYPE] == QCOW2_BITMAP_DIRTY_TRACKING &&
    !(get_be32 (p + QCOW2_BITMAP_FIELD_FLAGS) & QCOW2_BITMAP_RESERVED_FLAGS) &&
    get_be32 (p + QCOW2_BITMAP_FIELD_EXTRA_SIZE) == 0;

  if (m->state == BITMAP_UNKNOWN || !known)
    error_set (ENOTSUP, "%s: the bitmap \"%s\" (directory entry at offset 0x%"
               PRIx64 ") has a type, flags, a size, a granularity, extra data "
               "or a name that are not known here", c->e->storage->name,
               c->printable, m->place.v);
  else if (m->state == BITMAP_IN_USE && action != BITMAP_REMOVE)
    error_set (EINVAL, "%s: the bitmap \"%s\" (directory entry at offset 0x%"
               PRIx64 ") is marked as in use: the last writer of the image did "
               "not complete it, so that it misses changes; it can only be removed",
               c->e->storage->name, c->printable, m->place.v);
  else
    return 0;
  return -1;
}

/* One that exists. */
static int
change_member (struct changing *c, const struct bitmap_action *a)
{
  struct bitmap_member *m = bitmap_set_find (&c->set, c->what->name);

  if (m == NULL) {
    error_set (ENOENT, "%s: there is no bitmap \"%s\"", c->e->storage->name,
               c->printable);
    return -1;
  }
  if (check_kind (c, m, a->kind) == -1 || bitmap_set_load (&c->set, m) == -1)
    return -1;
  c->target = m;
  switch (a->kind) {
  case BITMAP_REMOVE:
    bitmap_set_remove (&c->set, m);
    return 0;
  case BITMAP_CLEAR:
    bitmap_set_clear (&c->set, m);
    return 0;
  case BITMAP_ENABLE:
  case BITMAP_DISABLE:
    bitmap_set_enable (&c->set, m, a->kind == BITMAP_ENABLE);
    return 0;
  case BITMAP_MERGE:
    return merge (c, a->source);
  case BITMAP_ADD:
    break;
  }
  return -1;
}

static int
act (struct changing *c)
{
  size_t i;

  for (i = 0; i < c->what->nr; ++i) {
    const struct bitmap_action *a = &c->what->action[i];

    if ((a->kind == BITMAP_ADD ? add (c) : change_member (c, a)) == -1)
      return -1;
  }
  return bitmap_set_plan (&c->set);
}

/* ------------------------------------------------------------------ doing it
 */

/* The new bitmaps are there: free what the old ones had. */
static int
free_old (struct changing *c)
{
  struct refs refs;
  int r;

  if (edit_open_refs (c->e, &refs) == -1)
    return -1;
  r = bitmap_set_drop (&c->set, &refs);
  if (r == 0)
    r = edit_write_refs (c->e, &refs);
  if (r == 0)
    r = edit_end (c->e, &refs);
  refs_close (&refs);
  return r;
}

static int
store (struct changing *c)
{
  struct edit_space space = { .bytes = bitmap_set_bytes (&c->set) };
  const unsigned nr = space.bytes > 0;

  if (!c->set.changed)
    return 0;
  if (edit_take (c->e, &space, nr) == -1)
    return -1;
  if (bitmap_set_fill (&c->set, space.at) == -1) {
    edit_give_back (c->e, &space, nr);
    return -1;
  }
  if (edit_switch (c->e) == -1) {
    error_append (" (the bitmaps may have changed, and clusters are leaked)");
    return -1;
  }
  if (free_old (c) == 0)
    return 0;
  error_append (" (the bitmaps have changed, and clusters are leaked)");
  return -1;
}

int
bitmap_change (struct storage *s, const struct bitmap_change *what)
{
  struct edit e;
  struct changing c = { .what = what, .e = &e };
  int r = -1;

  if (edit_open (&e, s) == -1)
    return -1;
  error_printable (c.printable, sizeof c.printable, what->name);
  if (bitmap_set_read (&c.set, &e) == 0 && act (&c) == 0)
    r = store (&c);
  bitmap_set_free (&c.set);
  edit_close (&e);
  return r;
}
