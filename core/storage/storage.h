/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage: the only door through which core/ reaches bytes outside of
 * memory.  An image file is one (storage/file.h); storage/open.h makes one of a
 * name.  Tests put others in its place.
 *
 * All functions may be called by several threads at once, with any or
 * no lock held; they may block on I/O.
 */

#ifndef CORE_STORAGE_STORAGE_H
#define CORE_STORAGE_STORAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#include "base/offset.h"

struct storage;

/* What changes when a storage is changed by anybody: of a file, by any program
 * that writes it, cuts it off or puts another one in its place.  Times are
 * those of the file system, which may be coarse.
 */
struct storage_stamp {
  uint64_t device, inode, size;
  struct timespec modified, changed;
  struct timespec born; /* 0: unknown */
};

/* What a process does with a file, and what it lets others do: QEMU's
 * permissions, which QEMU makes known through byte-range locks.
 */
enum {
  STORAGE_CONSISTENT_READ = 1 << 0,
  STORAGE_WRITE = 1 << 1,
  STORAGE_WRITE_UNCHANGED = 1 << 2,
  STORAGE_RESIZE = 1 << 3,
};

/* What becomes of these locks. */
enum storage_locking {
  STORAGE_LOCKING_AUTO, /* where they can't be had a note says so; default */
  STORAGE_LOCKING_ON,   /* that is an error (ENOLCK) */
  STORAGE_LOCKING_OFF,  /* none are taken or looked for: see holders.h */
};

/* Which of the places where bytes are a storage is: these numbers tell it from
 * all others of its kind.
 */
struct storage_identity {
  const void *kind; /* compared, not looked at */
  uint64_t number[2];
  bool uncertain; /* others, of any kind, may be the same place */
};

/* Pieces of memory for contiguous bytes; and how many of these there may be at
 * once.
 */
#define STORAGE_MAX_RUNS 64
struct storage_run {
  struct iovec *iov;
  int nr;
  struct host_off offset;
};

struct storage_ops {
  /* As pread(2): may be short, 0 at the end; -1 sets errno.  It is
   * called again for what is missing.
   */
  ssize_t (*pread) (struct storage *, void *buf, size_t count,
                    uint64_t offset);

  /* Read all of nr runs (at most STORAGE_MAX_RUNS), of one piece of memory each;
   * what lies past the end is zeros.  -1 sets errno.  May be NULL where one after
   * the other is as fast.
   */
  int (*pread_many) (struct storage *, const struct storage_run *runs,
                     unsigned nr);

  /* Whether the bytes at offset are data or a hole, and in *length how
   * many of the count bytes from there on are of the same kind (at
   * least 1).  -1 sets errno.  May be NULL: all is data.
   */
  int (*extent) (struct storage *, uint64_t offset, uint64_t count,
                 bool *hole, uint64_t *length);

  /* How many bytes from offset on, which is in the storage, are known to be a
   * hole, to its end; 0: none.  That costs less than extent, which may have to
   * look for the end of data.  May be NULL: extent is asked.
   */
  uint64_t (*hole) (struct storage *, uint64_t offset);

  /* Start reading into the host's cache, without waiting.  May be NULL. */
  void (*prefetch) (struct storage *, uint64_t offset, uint64_t count);

  /* The rest may be NULL where a storage is only read.
   *
   * As pwritev(2): may be short, but not 0; -1 sets errno.  It is called
   * again for what is missing.  With durable set, what it wrote survives a
   * power loss once it returns.
   */
  ssize_t (*pwritev) (struct storage *, const struct iovec *iov, int nr,
                      uint64_t offset, bool durable);

  /* Write all of nr runs (at most STORAGE_MAX_RUNS), which don't overlap, in
   * any order.  -1 sets errno.  May be NULL where one after the other is as
   * fast.
   */
  int (*pwrite_many) (struct storage *, const struct storage_run *runs,
                      unsigned nr);

  /* The same, of at most durable_runs runs, which survive a power loss once it
   * returns 0; and with all set, so does what a flush would make durable.
   * ENOSPC only if the writes alone find no space.  May be NULL where
   * durable_runs is 0.
   */
  int (*pwrite_durably) (struct storage *, const struct storage_run *runs,
                         unsigned nr, bool all);

  /* Whatever was written, zeroed or resized before this call survives a
   * power loss once it returns 0.  -1 sets errno.
   */
  int (*flush) (struct storage *);

  /* Make a range within the storage read as zeros without writing it, and
   * with punch set give its space back to the host.  -1 sets errno:
   * EOPNOTSUPP if that can't be done here.
   */
  int (*zero) (struct storage *, uint64_t offset, uint64_t count, bool punch);

  /* Have space for a range, which reads as before.  -1 sets errno: EOPNOTSUPP
   * if that can't be done here.  May be NULL.
   */
  int (*allocate) (struct storage *, uint64_t offset, uint64_t count);

  /* Grow, with zeros, or cut off: a cut that fails may have zeroed some of
   * what it was to cut off.  -1 sets errno: ENOSPC if the storage is of a fixed
   * size, and that is another one.
   */
  int (*resize) (struct storage *, uint64_t size);

  /* Have at least this size, with zeros, and never less than before, although
   * others may be making it longer at this moment.  -1 sets errno: EOPNOTSUPP,
   * ENOSYS or EPERM if that can't be done here.  May be NULL where nobody else
   * has the storage: resize is as good there.
   */
  int (*extend) (struct storage *, uint64_t size);

  /* Fill in what there is; the size that is known is in it.  -1 sets errno.
   * May be NULL where nobody else has the storage.
   */
  int (*stamp) (struct storage *, struct storage_stamp *);

  /* See the functions of these names below.  May be NULL where no other process
   * can reach the storage, and it can be written as it is.
   */
  void (*set_locking) (struct storage *, enum storage_locking);
  int (*lock) (struct storage *, unsigned uses, unsigned denies,
               bool alone); /* nobody else can hold any: don't look for them */
  bool (*keeps_writers_out) (const struct storage *);
  int (*make_writable) (struct storage *, unsigned uses, unsigned denies);
  int (*check_writable) (const struct storage *);

  /* May be NULL where no two of them can be of the same bytes. */
  void (*identify) (const struct storage *, struct storage_identity *);

  /* The storage that this one changes requests to.  May be NULL: there is none.
   */
  struct storage *(*inner) (struct storage *);

  /* In bytes, a power of 2.  May be NULL: 1. */
  uint32_t (*block_size) (const struct storage *);

  void (*close) (struct storage *);
};

struct storage {
  const struct storage_ops *ops;
  char *name;            /* for messages; owned */
  _Atomic uint64_t size; /* in bytes; grows with what is written */
  bool holes_not_zero;   /* see storage_holes_read_zero */
  bool fixed_size;       /* a device: nothing can be written past its end */
  bool one_report;       /* of data that the host has lost: a durable write may
                          * get it, and then flush does not */
  unsigned durable_runs; /* see storage_write_durable_runs; 0: not here */
};

/* What becomes of locks; before the first of them. */
extern void storage_set_locking (struct storage *s,
                                 enum storage_locking locking);

/* Make it known to other processes, until the storage is closed, that this
 * one uses these permissions of the file and denies those to others.  Returns
 * -1 with the error set: EAGAIN if another process is in the way.
 */
extern int storage_lock (struct storage *s, unsigned uses, unsigned denies);

/* The same, while another storage of this process has locks on the same bytes
 * that let no other process use them.
 */
extern int storage_lock_alone (struct storage *s, unsigned uses,
                               unsigned denies);

/* Whether no other process that heeds locks can write it: a lock that denies
 * STORAGE_WRITE was asked for, and is really held.
 */
extern bool storage_keeps_writers_out (const struct storage *s);

/* Open a storage that was opened for reading once more, for writing: the same
 * file, which must still be under the same path, with locks as by storage_lock
 * instead of those it has.  Nothing is written, and reads may go on meanwhile.
 * Does nothing if it was done before, or need not be.  Returns -1 with the
 * error set, and nothing has changed: EACCES, EPERM or EROFS if this file can
 * only be read, EAGAIN if another process is in the way.
 */
extern int storage_make_writable (struct storage *s, unsigned uses,
                                  unsigned denies);

/* Whether storage_make_writable could open it: returns -1 with the error set
 * if not, EROFS if it is a block device that can't be written.
 */
extern int storage_check_writable (const struct storage *s);

/* True if both are of the same bytes, such as the same file of the host. */
extern bool storage_same (const struct storage *a, const struct storage *b);

/* Whether both may be of the same bytes though storage_same can't tell, since
 * one of them is on a server, whose names nobody knows: they begin with the same
 * bytes, so many, which are not all zeros.  Returns -1 with the error set.
 */
extern int storage_may_be_same (struct storage *a, struct storage *b,
                                uint64_t bytes, bool *may);

/* What requests are best aligned to: what it can read and write at least, in
 * offset and length.  Smaller ones are still done, with more work.
 */
extern uint32_t storage_block_size (const struct storage *s);

/* Read exactly count bytes.  What lies past the end of the storage reads
 * as zeros: a host file may end inside its last cluster.  Returns -1 with
 * the error set (EIO and the host's reason).
 */
extern int storage_read (struct storage *s, void *buf, size_t count,
                         struct host_off offset);

/* The same where nothing may lie past the end of the storage: that is EIO, too.
 */
extern int storage_read_present (struct storage *s, void *buf, size_t count,
                                 struct host_off offset);

/* Whether each read waits for an answer from afar, so that it is worth reading
 * together, by storage_read_many, what will be wanted.
 */
static inline bool
storage_reads_together (const struct storage *s)
{
  return s->ops->pread_many != NULL;
}

/* Read runs, of one piece of memory each, as storage_read does each of them. */
extern int storage_read_many (struct storage *s,
                              const struct storage_run *runs, unsigned nr);

/* Write exactly count bytes.  Returns -1 with the error set: ENOSPC if there
 * is no room, else EIO; a part may have been written.
 */
extern int storage_write (struct storage *s, const void *buf, size_t count,
                          struct host_off offset);

/* The same from nr (at most STORAGE_MAX_IOV) pieces of memory; iov is
 * changed.  durable: see storage_ops.pwritev.
 */
#define STORAGE_MAX_IOV 64
extern int storage_writev (struct storage *s, struct iovec *iov, int nr,
                           struct host_off offset, bool durable);

/* Write runs that don't overlap, in any order; their pieces are changed.  Where
 * each write waits for an answer from afar, all wait together.  Errors as with
 * storage_write.
 */
extern int storage_write_many (struct storage *s, struct storage_run *runs,
                               unsigned nr);

/* The same, of at most s->durable_runs runs, and they survive a power loss once
 * it returns 0; and with all set, so does what storage_flush would make durable.
 * That takes one wait for an answer from afar, not two.  After an error that is
 * not ENOSPC nobody knows what is on the disk (I10).
 */
extern int storage_write_durable_runs (struct storage *s,
                                       struct storage_run *runs, unsigned nr,
                                       bool all);

/* See storage_ops.flush.  After an error nobody knows what is on the disk
 * (I10).  Returns -1 with the error set to EIO.
 */
extern int storage_flush (struct storage *s);

/* Make count bytes read as zeros, by storage_ops.zero or by writing zeros.
 * Errors as with storage_write.
 */
extern int storage_zero (struct storage *s, struct host_off offset,
                         uint64_t count, bool punch);

/* Give the space of a range back to the host, and have it read as zeros.
 * Returns false if that can't be done (without an error set): it may then
 * hold anything.
 */
extern bool storage_punch (struct storage *s, struct host_off offset,
                           uint64_t count);

/* Whether what was never written may be holes, which want space then. */
extern bool storage_has_holes (const struct storage *s);

/* Whether what was never written, or was punched, reads as zeros: not where
 * what is stored is something else than what is read.
 */
static inline bool
storage_holes_read_zero (const struct storage *s)
{
  return !s->holes_not_zero;
}

/* See to it that writing this range won't fail for want of space.  *done is
 * false where the storage can't, but for writing what is there once more.
 * Errors as with storage_write.
 */
extern int storage_allocate (struct storage *s, struct host_off offset,
                             uint64_t count, bool *done);

/* See storage_ops.resize.  Errors as with storage_write. */
extern int storage_resize (struct storage *s, uint64_t size);

/* Make it longer, if it is not of this size now: see storage_ops.extend.  Errors
 * as with storage_write.
 */
extern int storage_extend (struct storage *s, uint64_t size);

/* Others may have made it longer since it was opened: then that is its size from
 * now on.
 */
extern void storage_see_growth (struct storage *s);

/* The same, and they may have cut it off.  Nothing of this process may be
 * writing it.
 */
extern void storage_see_size (struct storage *s);

/* See storage_ops.extent; past the end is a hole.  count > 0. */
extern int storage_extent (struct storage *s, struct host_off offset,
                           uint64_t count, bool *hole, uint64_t *length);

/* How many bytes from offset on are known to read as zeros, since they are in a
 * hole or past the end; 0: that is not known.  There may be more behind them.
 */
extern uint64_t storage_hole (struct storage *s, struct host_off offset);

/* Tell in *length how many of the count bytes from offset on are zeros now: if
 * not all are, up to 16 KiB fewer than there are.  Errors as with storage_read.
 */
extern int storage_zeros (struct storage *s, struct host_off offset,
                          uint64_t count, uint64_t *length);

/* Tell in *zero whether all of them are. */
extern int storage_is_zero (struct storage *s, struct host_off offset,
                            uint64_t count, bool *zero);

extern void storage_prefetch (struct storage *s, struct host_off offset,
                              uint64_t count);

/* Fill in *stamp.  Returns false, without an error set, if that can't be done.
 */
extern bool storage_stamp (struct storage *s, struct storage_stamp *stamp);

extern bool storage_stamps_equal (const struct storage_stamp *a,
                                  const struct storage_stamp *b);

/* Whether it is known that these are of two files, whatever has happened to
 * them: a file that is removed leaves its inode to one that is made later.
 */
extern bool storage_stamps_of_two (const struct storage_stamp *a,
                                   const struct storage_stamp *b);

/* NULL is allowed. */
extern void storage_close (struct storage *s);

#endif /* CORE_STORAGE_STORAGE_H */
