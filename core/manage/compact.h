/* SPDX-License-Identifier: BSD-3-Clause */

/* An image's file, made as small as its clusters: nobody serves it.
 *
 * A power cut at any moment leaves an image that reads the same, snapshots
 * included, and leaks.
 */

#ifndef CORE_MANAGE_COMPACT_H
#define CORE_MANAGE_COMPACT_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/storage.h"

struct compact_options {
  /* The door to the data of an image that is encrypted with LUKS: see
   * manage/door.h.  NULL: such an image is refused.
   */
  struct storage *data;

  /* Told of how many bytes were moved, of those that are to be; returns false to
   * stop.  NULL: none.
   */
  bool (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

/* Move clusters from the end of the file to free ones before them, and cut it
 * off.  Tables of several clusters, in a row, move if there are so many free
 * ones in a row; the file is not made smaller than the last that finds no place.
 * Compressed clusters that straddle move with all that straddle into the same,
 * or else are packed again, from the last on.  Empty blocks of refcounts are
 * dropped.  Done again at once it changes nothing.  Wants what edit_open wants
 * (core/manage/edit.h).  Returns -1 with the error set: ENOTSUP for an image with
 * contents that are unknown here; EACCES if its data can't be deciphered; EIO or
 * EINVAL for damage or leaks; ENOSPC; EINTR if it was stopped.  The error tells if
 * clusters may be leaked.
 */
extern int compact_image (struct storage *s, const struct compact_options *o);

#endif /* CORE_MANAGE_COMPACT_H */
