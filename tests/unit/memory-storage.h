/* SPDX-License-Identifier: BSD-3-Clause */

/* A storage in memory that counts what is asked of it, remembers the order
 * if it is told to, and fails when it is told to.
 */

#ifndef UNIT_MEMORY_STORAGE_H
#define UNIT_MEMORY_STORAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/storage.h"

/* Kinds of calls. */
enum {
  MEMORY_READ = 1 << 0,
  MEMORY_EXTENT = 1 << 1,
  MEMORY_WRITE = 1 << 2,
  MEMORY_FLUSH = 1 << 3,
  MEMORY_ZERO = 1 << 4,
  MEMORY_RESIZE = 1 << 5,
  MEMORY_ALLOCATE = 1 << 6,
};
#define MEMORY_CHANGES (MEMORY_WRITE | MEMORY_FLUSH | MEMORY_ZERO | \
                        MEMORY_RESIZE | MEMORY_ALLOCATE)

struct memory_call {
  unsigned kind;
  uint64_t offset; /* RESIZE: the new size */
  uint64_t count;
  bool durable; /* WRITE */
  bool punch;   /* ZERO */
};

/* Calls that change the storage, in the order in which they began. */
struct memory_log {
  pthread_mutex_t lock;
  struct memory_call *call;
  size_t nr, capacity;
};

#define MEMORY_LOG_INIT { .lock = PTHREAD_MUTEX_INITIALIZER }
extern void memory_log_clear (struct memory_log *l);
extern void memory_log_free (struct memory_log *l);

/* Owned by the test, so that it outlives the storage.  All zeros: nothing
 * special happens.
 */
struct memory_control {
  _Atomic uint64_t calls; /* of all kinds but prefetches; failed ones too */
  _Atomic uint64_t preads;
  _Atomic uint64_t bytes;
  _Atomic uint64_t together; /* calls of pread_many; their preads are counted */
  _Atomic uint64_t extents;
  _Atomic uint64_t prefetches;
  _Atomic uint64_t closes;
  _Atomic uint64_t writes;
  _Atomic uint64_t written; /* bytes */
  _Atomic uint64_t flushes;
  _Atomic uint64_t zeros;
  _Atomic uint64_t punches; /* those among zeros */
  _Atomic uint64_t resizes;

  uint64_t fail_call;   /* the number of the call that fails, from 1 on */
  bool fail_ever_after; /* and all calls after that one */
  int fail_errno;       /* EIO if 0 */
  unsigned fail_kinds;  /* only these are counted and fail; 0: all */
  _Atomic uint64_t counted; /* of fail_kinds */
  _Atomic uint64_t failed;

  size_t short_reads;     /* the most that one pread gives; 0: any */
  size_t short_writes;    /* the most that one pwritev takes; 0: any */
  unsigned interrupt;     /* each pread of this number fails with EINTR */
  uint64_t size;          /* what the storage claims to be; 0: the truth */
  bool reads_together;    /* there is a pread_many, of what is only read */
  bool fail_together;     /* which fails */
  _Atomic unsigned born;  /* when the file was made; 0: unknown */
  bool holes;             /* blocks of 512 zeros are holes */
  unsigned microseconds;  /* that each pread takes */
  unsigned flush_microseconds;

  uint64_t limit;   /* ENOSPC beyond this size; 0: none */
  uint64_t room;    /* ENOSPC once so many blocks are in use; 0: any */
  bool fixed;       /* it is as large as it is: a block device */
  bool no_zero;     /* zeros have to be written */
  unsigned durable_runs; /* see storage.h; when it is opened */

  struct memory_log *log; /* NULL: not wanted */

  /* Called at the start of each call.  It may wait. */
  void (*hook) (void *opaque, const struct memory_call *call);
  void *opaque;
};

/* From now on have the call-th (from 1) call of these kinds fail. */
extern void memory_fail (struct memory_control *c, unsigned kinds,
                         uint64_t call, int err);
extern void memory_fail_ever_after (struct memory_control *c, unsigned kinds,
                                    uint64_t call, int err);
extern void memory_fail_no_more (struct memory_control *c);

/* With QCOW2_TEST_BLOCK in the environment, 512 or 4096, each of the storages
 * below only takes whole blocks of that size, in memory that is aligned to it,
 * and aborts if it is given anything else; it comes with storage/align.h on it.
 */
#define MEMORY_BLOCK_VARIABLE "QCOW2_TEST_BLOCK"

/* Abort unless a call of a storage with such blocks, or with none (block 0), is
 * of whole ones; buf may be NULL.
 */
extern void memory_check_aligned (uint32_t block, const void *buf,
                                  uint64_t offset, uint64_t count);
extern void memory_check_pieces (uint32_t block, const struct iovec *iov,
                                 int nr, uint64_t offset);

/* A storage as it is given out: s itself where the variable is not set. */
extern struct storage *memory_with_blocks (struct storage *s,
                                           uint32_t *block);

/* A storage on these bytes, which must outlive it.  It is for reading: it
 * has no functions that write.  control may be NULL.  Aborts if memory is
 * short.
 */
extern struct storage *memory_storage_new (const char *name,
                                           const void *data, uint64_t size,
                                           struct memory_control *control);

/* Bytes that can be written, and outlive the storages that are opened on
 * them.  Memory is set apart for the largest size, so that they stay where
 * they are; past the size are zeros.
 */
#define MEMORY_DISK_MAX (UINT64_C (1) << 30)
#define MEMORY_DISK_LOCKS 256
#define MEMORY_DISK_BLOCK 4096

struct memory_disk {
  uint8_t *data;
  _Atomic uint64_t size;
  _Atomic uint8_t *in_use; /* 1 for a block that has space, as in a file */
  _Atomic uint64_t blocks; /* in use */
  /* Each sector of 512 bytes has one, so that calls take effect whole for
   * each sector.
   */
  pthread_mutex_t lock[MEMORY_DISK_LOCKS];
};

/* The bytes (NULL: zeros) are copied, and have space. */
extern void memory_disk_init (struct memory_disk *d, const void *bytes,
                              uint64_t size);
extern void memory_disk_free (struct memory_disk *d);

extern struct storage *memory_disk_open (struct memory_disk *d,
                                         const char *name,
                                         struct memory_control *control);

#endif /* UNIT_MEMORY_STORAGE_H */
