/* SPDX-License-Identifier: BSD-3-Clause */

/* Another size for the disk of an image that nobody serves.
 *
 * A power cut at any moment leaves the size as it was or as it shall be, and
 * leaks.
 */

#ifndef CORE_MANAGE_RESIZE_H
#define CORE_MANAGE_RESIZE_H

#include <stdint.h>

#include "disk/layer.h"
#include "manage/create.h"
#include "storage/storage.h"

struct resize_options {
  uint64_t size; /* of the disk, in bytes: a positive multiple of 512 */

  /* Of the clusters that are new as a whole; without encryption. */
  enum preallocation preallocation;

  /* The image's live disk over its backing files, as it is now, which is needed
   * to grow over a backing file; nothing is read from it once the image changes.
   * NULL: the backing file is not open.
   */
  const struct layer *disk;

  /* The door to the data of an encrypted image (manage/door.h).  NULL: what the
   * guest sees can't be written.
   */
  struct storage *data;
};

/* Resize the disk.  What is mapped beyond the old or the new end, whichever comes
 * first, is dropped, whole clusters of it; the rest of a cluster that an end cuts
 * stays as it is, as in QEMU.  But where a backing file is longer than the old
 * disk, all that is new is zeros, the rest of that cluster as well.  Wants what
 * edit_open wants (core/manage/edit.h).  Returns -1 with the error set: ENOTSUP
 * for a limit or what this can't do, EACCES if an encrypted cluster is to be
 * written, EINVAL or EIO for damage, ENOSPC; nothing has changed then, unless the
 * message says so.
 */
extern int resize_disk (struct storage *s, const struct resize_options *o);

#endif /* CORE_MANAGE_RESIZE_H */
