/* SPDX-License-Identifier: BSD-3-Clause */

/* A persistent bitmap of an image that nobody serves: made, changed, removed.
 *
 * A power cut at any moment leaves all bitmaps as they were or as they shall
 * be, and leaks.
 */

#ifndef CORE_MANAGE_BITMAP_CHANGE_H
#define CORE_MANAGE_BITMAP_CHANGE_H

#include <stddef.h>

#include "qcow2/header.h"
#include "storage/storage.h"

enum bitmap_action_kind {
  BITMAP_ADD,     /* enabled, nothing is dirty */
  BITMAP_REMOVE,
  BITMAP_CLEAR,   /* nothing is dirty any more */
  BITMAP_ENABLE,
  BITMAP_DISABLE,
  BITMAP_MERGE,   /* what another one calls dirty becomes dirty, too */
};

struct bitmap_action {
  enum bitmap_action_kind kind;
  const char *source; /* BITMAP_MERGE: the other one's name */
};

struct bitmap_change {
  const char *name; /* of the bitmap */
  const struct bitmap_action *action; /* one after the other */
  size_t nr;
  uint64_t granularity; /* BITMAP_ADD: in bytes; 0: as QEMU chooses it */

  /* BITMAP_MERGE: the image that the others are in, which may be read; NULL:
   * this one.
   */
  struct storage *source;
};

/* Do all of it, or nothing.  Wants what edit_open wants (core/manage/edit.h).
 * Returns -1 with the error set: ENOENT if there is no such bitmap, EEXIST if
 * there is one; EINVAL for what can't be, ENOTSUP for a limit or what this
 * can't do; EINVAL or EIO for damage; ENOMEM, ENOSPC.  Nothing has changed
 * then, unless the message says so.
 */
extern int bitmap_change (struct storage *s, const struct bitmap_change *c);

#endif /* CORE_MANAGE_BITMAP_CHANGE_H */
