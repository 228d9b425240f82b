/* SPDX-License-Identifier: BSD-3-Clause */

/* How new files get, change and lose their names.
 *
 * All of it happens in a directory that was opened once, so that renaming it,
 * or one above it, can't make us create, rename or remove anything in another
 * one.  Other users who can write that directory may put another file, or a
 * link, in the place of any name at any moment: after each change it must be
 * looked at what has the name now.
 *
 * A path is only used in errors, and for its last component.  Functions that
 * return an int return -1 with the error set.
 */

#ifndef CORE_MANAGE_NAMES_H
#define CORE_MANAGE_NAMES_H

#include <stdbool.h>

#include "storage/storage.h"

/* No other process may use what is to be written. */
#define CREATE_LOCKS \
  (STORAGE_CONSISTENT_READ | STORAGE_WRITE | STORAGE_RESIZE)

/* Set the error to what errno says of doing this.  Returns -1. */
extern int names_error (const char *path, const char *what);

/* The last component of a path. */
extern const char *names_base (const char *path);

/* Open the directory that path is in. */
extern int names_directory (const char *path);

/* Make changes in path's directory durable, if its file system can. */
extern int names_sync (const char *path, int dir);

/* The same, with errno set instead of the error. */
extern bool names_durable (int dir);

/* Whether this name belongs to this file. */
extern bool names_has (const struct storage *s, int dir, const char *name);

/* Turn a file that was just made into a storage, which owns fd.  Returns NULL
 * with the error set, and the file is removed.
 */
extern struct storage *names_adopt (int fd, int dir, const char *name,
                                    const char *path);

/* Remove a name, if it belongs to this file.  If it can't be removed, a note
 * says so.
 */
extern void names_remove (const struct storage *s, int dir, const char *name,
                          const char *path);

/* The same, whatever the name leads to. */
extern void names_drop (int dir, const char *name, const char *path);

/* A name for a file next to path, which is probably free.  The caller frees it;
 * NULL: out of memory.  It is at most 209 bytes long.
 */
extern char *names_temporary (const char *path);

/* Whether a call failed because the file system lacks it, or because it is
 * forbidden altogether, as in containers.
 */
extern bool names_missing (int err);

/* Give a file the name at path, which must not exist yet, in the first of three
 * ways that works: renameat2(2), a link, an empty file that is replaced.
 */
extern int names_give (int dir, const char *temporary, const char *path,
                       enum storage_locking locking);

/* Rename a file to path, unless that name belongs to a file other than ours.
 */
extern int names_replace (const struct storage *ours, int dir,
                          const char *temporary, const char *path);

/* Rename to what was just seen to be no file's name.  Sets errno, no error. */
extern int names_move (int dir, const char *from, const char *to);

#endif /* CORE_MANAGE_NAMES_H */
