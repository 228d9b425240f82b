/* SPDX-License-Identifier: BSD-3-Clause */

/* From a name to a storage.  All names are of files as yet. */

#ifndef CORE_STORAGE_OPEN_H
#define CORE_STORAGE_OPEN_H

#include "storage/storage.h"

/* Open what a user calls by this name, read-only.  Returns NULL with the error
 * set.
 */
extern struct storage *storage_open (const char *name);

/* The same for a path within a directory that is open.  Where it leads out of
 * that, the error is EXDEV.  name is for messages.
 */
extern struct storage *storage_open_beneath (int dirfd, const char *path,
                                             const char *name);

#endif /* CORE_STORAGE_OPEN_H */
