/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening files that must not lie outside of a directory. */

#ifndef CORE_STORAGE_BENEATH_H
#define CORE_STORAGE_BENEATH_H

/* As openat(2), without creating anything, but no part of the path may lead
 * out of the directory dirfd: neither "..", nor symbolic links, nor an absolute
 * path.  Returns -1 with errno set: EXDEV if one does.
 */
extern int open_beneath (int dirfd, const char *path, int flags);

#endif /* CORE_STORAGE_BENEATH_H */
