/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening files that must not lie outside of a directory. */

#ifndef CORE_STORAGE_BENEATH_H
#define CORE_STORAGE_BENEATH_H

/* As openat(2), without creating anything, but no part of the path may lead
 * out of the directory dirfd: neither "..", nor symbolic links, nor an absolute
 * path.  Returns -1 with errno set: EXDEV if one does.
 */
extern int open_beneath (int dirfd, const char *path, int flags);

/* The same, and nothing but a regular file is opened, since other things may
 * wait, or do something, when they are: EINVAL.
 */
extern int open_regular_beneath (int dirfd, const char *path, int flags);

/* Which files are opened. */
enum file_place {
  FILE_ANYWHERE,
  FILE_BENEATH,         /* beneath a directory; others: EXDEV */
  FILE_REGULAR_BENEATH, /* regular files there; others, not opened: EINVAL */
};

/* Open such a file for reading or writing (access), and wait for nobody.
 * Returns -1 with errno set.
 */
extern int open_in_place (int dirfd, const char *path, enum file_place place,
                          int access);

#endif /* CORE_STORAGE_BENEATH_H */
