/* SPDX-License-Identifier: BSD-3-Clause */

/* Internal snapshots: made, applied and deleted in an image that nobody
 * serves.  Spec: Snapshots.
 *
 * A power cut at any moment leaves the image as it was before or as it is
 * after, and leaks.  While COPIED flags and refcounts disagree a version 3 image
 * is marked as dirty; in a version 2 image that is harmless, too, since then
 * only clusters with one user have the flag: but qemu-img check calls it an
 * error.
 *
 * All want what edit_open wants, and return -1 with the error set.  ENOENT:
 * there is no such snapshot; ENOTSUP: a limit, or what this can't do; EIO, EINVAL
 * for damage; ENOSPC.  Nothing has changed then, unless the message says so.
 */

#ifndef CORE_MANAGE_SNAPSHOTS_H
#define CORE_MANAGE_SNAPSHOTS_H

#include <time.h>

#include "storage/storage.h"

/* Make a snapshot of the live disk.  Its ID is the next number. */
extern int snapshot_create (struct storage *s, const char *name,
                            const struct timespec *date);

/* Have the live disk be as it was in the first snapshot with this ID, or if
 * there is none with this name: its size as well.
 */
extern int snapshot_apply (struct storage *s, const char *id_or_name);

/* Delete the first snapshot with this name. */
extern int snapshot_delete (struct storage *s, const char *name);

#endif /* CORE_MANAGE_SNAPSHOTS_H */
