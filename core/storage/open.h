/* SPDX-License-Identifier: BSD-3-Clause */

/* From a name to a storage. */

#ifndef CORE_STORAGE_OPEN_H
#define CORE_STORAGE_OPEN_H

#include "storage/nbd.h"
#include "storage/storage.h"

/* Open what a user calls by this name, read-only: a path, or the URI of an NBD
 * server.  Returns NULL with the error set.
 */
extern struct storage *storage_open (const char *name,
                                     const struct nbd_options *nbd);

/* The same for a path, whatever it looks like: a name from an image never
 * leads to a server.
 */
extern struct storage *storage_open_path (const char *path);

/* The same for a path within a directory that is open.  Where it leads out of
 * that, the error is EXDEV.  name is for messages.
 */
extern struct storage *storage_open_beneath (int dirfd, const char *path,
                                             const char *name);

/* The same, and nothing but a regular file is opened: EINVAL.  It can be made
 * writable as long as it has a name, be it another one: whoever asks for that
 * has just found it by one.
 */
extern struct storage *storage_open_regular (int dirfd, const char *path,
                                             const char *name);

/* The same for any path, relative to a directory that is open, or absolute. */
extern struct storage *storage_open_at (int dirfd, const char *path,
                                        const char *name);

#endif /* CORE_STORAGE_OPEN_H */
