/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage: the only door through which core/ reaches bytes outside of
 * memory.  An image file is one; tests put others in its place.
 *
 * All functions may be called by several threads at once, with any or
 * no lock held; they may block on I/O.
 */

#ifndef QCOW2_STORAGE_H
#define QCOW2_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "format.h"

struct storage;

struct storage_ops {
  /* As pread(2): may be short, 0 at the end; -1 sets errno.  It is
   * called again for what is missing.
   */
  ssize_t (*pread) (struct storage *, void *buf, size_t count,
                    uint64_t offset);

  /* Whether the bytes at offset are data or a hole, and in *length how
   * many of the count bytes from there on are of the same kind (at
   * least 1).  -1 sets errno.  May be NULL: all is data.
   */
  int (*extent) (struct storage *, uint64_t offset, uint64_t count,
                 bool *hole, uint64_t *length);

  /* Start reading into the host's cache, without waiting.  May be NULL. */
  void (*prefetch) (struct storage *, uint64_t offset, uint64_t count);

  void (*close) (struct storage *);
};

struct storage {
  const struct storage_ops *ops;
  char *name;    /* for messages; owned */
  uint64_t size; /* in bytes, at the time of opening */
};

/* Open a file or block device, read-only, relative to the directory dirfd
 * (AT_FDCWD if none).  resolve is the RESOLVE_* mask of openat2(2), 0 for
 * an ordinary open.  name is for messages.  Neither waits for the writer
 * of a FIFO nor accepts one.  Returns NULL with the error set.
 */
extern struct storage *storage_file_open (int dirfd, const char *path,
                                          uint64_t resolve, const char *name);

/* What a process does with a file, and what it lets others do: QEMU's
 * permissions, which QEMU makes known through byte-range locks.
 */
enum {
  STORAGE_CONSISTENT_READ = 1 << 0,
  STORAGE_WRITE = 1 << 1,
  STORAGE_WRITE_UNCHANGED = 1 << 2,
  STORAGE_RESIZE = 1 << 3,
};

/* Make it known to other processes, until the storage is closed, that this
 * one uses these permissions of the file and denies those to others.  Does
 * nothing where the file system has no such locks.  Returns -1 with the
 * error set: EAGAIN if another process is in the way.
 */
extern int storage_file_lock (struct storage *s, unsigned uses,
                              unsigned denies);

/* True if both are the same file on the host. */
extern bool storage_file_same (const struct storage *a,
                               const struct storage *b);

/* Read exactly count bytes.  What lies past the end of the storage reads
 * as zeros: a host file may end inside its last cluster.  Returns -1 with
 * the error set (EIO and the host's reason).
 */
extern int storage_read (struct storage *s, void *buf, size_t count,
                         struct host_off offset);

/* See storage_ops.extent; past the end is a hole.  count > 0. */
extern int storage_extent (struct storage *s, struct host_off offset,
                           uint64_t count, bool *hole, uint64_t *length);

extern void storage_prefetch (struct storage *s, struct host_off offset,
                              uint64_t count);

/* NULL is allowed. */
extern void storage_close (struct storage *s);

#endif /* QCOW2_STORAGE_H */
