/* SPDX-License-Identifier: BSD-3-Clause */

/* Another header for an image that nobody serves: fields, the backing file's
 * name and its format.  Nothing else of the image is read or written.
 *
 * A power cut at any moment leaves a header that says what it did before, or
 * what it shall say (core/manage/header-plan.h).
 */

#ifndef CORE_MANAGE_HEADER_CHANGE_H
#define CORE_MANAGE_HEADER_CHANGE_H

#include <stdbool.h>

#include "manage/header-plan.h"
#include "storage/storage.h"

/* Read the header of the image in a storage that is writable and locked, and
 * wish for what it says, but for unknown autoclear bits (I8); the names are
 * h's.  Returns -1 with the error set: ENOTSUP if it is marked as dirty or
 * corrupt, EINVAL or EIO for damage.
 */
extern int header_change_read (struct storage *s, struct header *h,
                               struct header_wish *wish);

/* Have it say what is wished; durable on return.  Returns -1 with the error
 * set: as header_plan_make, and nothing has changed; ENOSPC or EIO, which tells
 * if the header may have changed.
 */
extern int header_change (struct storage *s, const struct header *h,
                          const struct header_wish *wish);

/* Whether an image, file, may record this name of a backing file and the format
 * of that; an empty name: none, and then the format does not matter.  raw_data:
 * its external data file is raw.  Returns -1 with the error set to EINVAL.
 */
extern int header_check_backing (const char *file, bool raw_data,
                                 const char *name, const char *format);

/* Have it record them.  No file is opened: it is for the caller to know that
 * the disk has the same content over that backing file.  Wants and returns what
 * the functions above do.
 */
extern int header_change_backing (struct storage *s, const char *name,
                                  const char *format);

#endif /* CORE_MANAGE_HEADER_CHANGE_H */
