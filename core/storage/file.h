/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage in a regular file or on a block device. */

#ifndef CORE_STORAGE_FILE_H
#define CORE_STORAGE_FILE_H

#include <sys/stat.h>

#include "storage/beneath.h"
#include "storage/storage.h"

/* Open a file or block device, read-only, relative to the directory dirfd
 * (AT_FDCWD if none).  name is for messages.  Neither waits for the writer of
 * a FIFO nor accepts one.  Returns NULL with the error set.
 */
extern struct storage *storage_file_open (int dirfd, const char *path,
                                          enum file_place place,
                                          const char *name);

/* A storage of a file or block device that the caller has open for reading
 * and writing.  fd is owned from here on, even after an error.  It is never
 * opened again.  Returns NULL with the error set.
 */
extern struct storage *storage_file_adopt (int fd, const char *name);

/* True if st, of stat(2), is of the file that a storage has open. */
extern bool storage_file_is (const struct storage *s, const struct stat *st);

/* Whether a file has a name, in whatever directory.  False if it isn't known.
 */
extern bool storage_file_has_name (const struct storage *s);

#endif /* CORE_STORAGE_FILE_H */
