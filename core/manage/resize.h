/* SPDX-License-Identifier: BSD-3-Clause */

/* Another size for the disk of an image that nobody serves.
 *
 * A power cut at any moment leaves the size as it was or as it shall be, and
 * leaks.
 */

#ifndef CORE_MANAGE_RESIZE_H
#define CORE_MANAGE_RESIZE_H

#include <stdint.h>

#include "storage/storage.h"

/* The backing file is not open, so that its size is not known. */
#define RESIZE_NO_BACKING_SIZE UINT64_MAX

/* Give the disk this size in bytes, a positive multiple of 512.  What is mapped
 * beyond the old or the new end, whichever comes first, is dropped, whole
 * clusters of it; the rest of a cluster that an end cuts stays as it is, as in
 * QEMU.  A backing file must not have data beyond the old end, which would
 * appear: backing_size is its size, if there is one.  Wants what edit_open wants
 * (core/manage/edit.h).  Returns -1 with the error set: ENOTSUP for a limit or
 * what this can't do, EINVAL or EIO for damage, ENOSPC; nothing has changed
 * then, unless the message says so.
 */
extern int resize_disk (struct storage *s, uint64_t size,
                        uint64_t backing_size);

#endif /* CORE_MANAGE_RESIZE_H */
