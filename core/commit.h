/* SPDX-License-Identifier: BSD-3-Clause */

/* What an image and files below it have of their own, copied into one further
 * below, the base; while nobody else has any of them open.
 *
 * At any moment the image reads as before: what changes in the base is what it
 * does not show, since it has that itself, until all of it is in the base,
 * durably.  Files between the two don't: what they read becomes garbage.
 */

#ifndef CORE_COMMIT_H
#define CORE_COMMIT_H

#include <stdbool.h>
#include <stdint.h>

#include "image.h"

struct commit_options {
  bool keep; /* the image stays as it is, and is not emptied */

  /* Told of how many bytes of the disk have been looked at; returns false to
   * stop.  Called by several threads, one at a time.  NULL: none.
   */
  bool (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

/* Which of the image's files this is, by its path: how many are above it, at
 * least 1.  Returns -1 with the error set: EINVAL if it is none of those below
 * the image.
 */
extern int commit_find_base (const struct image *im, const char *path,
                             unsigned *above);

/* Whether the image has a file below it: else EINVAL is set, and -1 returned. */
extern int commit_check_base (const struct image *im);

/* If the base is smaller than the image make it as large.  The image must
 * be closed then, and not used before it has been opened again.
 * Returns -1 with the error set, as commit_image.
 */
extern int commit_grow_base (struct image *im, unsigned above,
                             const struct commit_options *o, bool *grown);

/* Copy what those above the base have into it, make that durable, and empty the
 * image.  Zeros are none that take space where the base can have such.  The image
 * was opened read-only, and is only closed after that.  Returns -1 with the
 * error set: ENOTSUP for what this is not for, EINVAL or EIO for damage, EAGAIN
 * if another process has one of the two open, ENOSPC, EINTR if it was stopped.
 * The error tells if something was changed.
 */
extern int commit_image (struct image *im, unsigned above,
                         const struct commit_options *o);

#endif /* CORE_COMMIT_H */
