/* SPDX-License-Identifier: BSD-3-Clause */

/* Other features for an image that nobody serves.  In the header are its version,
 * lazy refcounts, the type of compression, the backing file's name, whether an
 * external data file is raw: a power cut at any moment leaves all of them as they
 * were, or as they shall be (core/manage/header-plan.h).  The width of refcounts
 * changes before or after the others (core/manage/refcount-width.h).
 */

#ifndef CORE_MANAGE_AMEND_H
#define CORE_MANAGE_AMEND_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/header.h"
#include "storage/storage.h"

/* What is to be changed. */
struct amend_options {
  unsigned version;         /* 2 or 3; 0: as it is */
  const bool *lazy;         /* lazy refcounts; NULL: as it is */
  const enum compression *compression; /* NULL: as it is */
  const char *backing;      /* a name, or empty: none; NULL: as it is */
  const char *backing_format; /* NULL: as it is */
  unsigned refcount_bits;   /* a power of 2 up to 64; 0: as it is */
  bool not_raw;             /* an external data file is not the disk as a raw
                             * image any more */
};

/* Change it in a storage that is writable and locked; durable on return.  For
 * another version or compression all of the image is checked before: version 2
 * has no clusters of zeros, and for another compression there must be no
 * compressed clusters.  Returns -1 with the error set: ENOTSUP
 * or EINVAL if there can't be such an image, EIO for damage; ENOMEM; ENOSPC or
 * EIO of the storage, which tells if the header may have changed, or the width.
 */
extern int amend_image (struct storage *s, const struct amend_options *o);

#endif /* CORE_MANAGE_AMEND_H */
