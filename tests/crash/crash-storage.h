/* SPDX-License-Identifier: BSD-3-Clause */

/* A disk in memory that logs whatever changes it, so that power-cut.h can
 * tell in which states a power loss at any moment may leave it, and whose
 * calls fail when they are told to.
 */

#ifndef CRASH_STORAGE_H
#define CRASH_STORAGE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/storage.h"

enum crash_kind {
  CRASH_WRITE,
  CRASH_ZERO,
  CRASH_RESIZE,
  CRASH_FLUSH,
};

/* One call of the log.  Its place in the log is when it began. */
struct crash_op {
  enum crash_kind kind;
  bool durable;    /* WRITE */
  bool failed;     /* FLUSH; what another call did before it failed is here */
  uint64_t offset; /* RESIZE: the new size */
  uint64_t count;  /* WRITE, ZERO */
  uint64_t size;   /* of the storage after it */
  uint8_t *data;   /* WRITE */
  uint64_t end;    /* how many calls were in the log when it returned */
  uint64_t moment; /* when it began, by crash_disk.clock */
};

/* Which kinds of calls there are for faults. */
enum {
  FAULT_READ = 1 << 0,
  FAULT_WRITE = 1 << 1,
  FAULT_ZERO = 1 << 2,
  FAULT_RESIZE = 1 << 3,
  FAULT_FLUSH = 1 << 4,
  FAULT_ALLOCATE = 1 << 5,
  FAULT_ANY = (1 << 6) - 1,
};

struct crash_fault {
  uint64_t call;  /* the number of the call that fails, from 1 on; 0: none */
  unsigned kinds; /* which calls are counted and fail; 0: any */
  bool forever;   /* all after that one fail as well */
  bool partly;    /* a failing write does its first half before */
  bool is_short;  /* it does not fail but does less than it should */
  int err;        /* EIO if 0 */
};

/* Owned by the test, and outlives the storage that is opened on it. */
struct crash_disk {
  pthread_mutex_t lock;
  uint8_t *bytes; /* as a process sees them */
  uint64_t size;
  uint64_t capacity; /* zeros follow the size */

  bool logging; /* initially set */
  _Atomic uint64_t *clock; /* counts the calls of several disks; NULL: none */
  _Atomic bool dawdle; /* calls take their time, so that others run meanwhile */
  bool no_zero; /* it can't zero, punch or allocate */
  struct crash_op *op;
  uint64_t nr, nr_allocated;
  uint64_t changes; /* calls that change the disk, logged or not */

  struct crash_fault fault;
  uint64_t calls; /* that the fault counts */
  uint64_t failures;
  unsigned failed_kinds;       /* FAULT_* */
  bool failed_metadata_write;  /* of an image's tables in use: */
  uint64_t failed_offset;      /* the last such */
  bool failed_other;           /* a flush, or a write that was not just data */
  bool closed;
};

/* The bytes are copied. */
extern void crash_disk_init (struct crash_disk *d, const void *bytes,
                             uint64_t size);

/* The same for one that was in use. */
extern void crash_disk_reset (struct crash_disk *d, const void *bytes,
                              uint64_t size);
extern void crash_disk_free (struct crash_disk *d);

/* How many calls are in the log. */
extern uint64_t crash_disk_now (struct crash_disk *d);

extern struct storage *crash_storage_open (struct crash_disk *d,
                                           const char *name);

/* With this in the environment, a number, such a storage writes so many runs
 * durably at once, beside each other and a flush: see storage.h, durable_runs.
 */
#define CRASH_RUNS_VARIABLE "QCOW2_TEST_DURABLE_RUNS"

/* The same for reading: a call that changes it is a bug and aborts. */
extern struct storage *crash_storage_open_readonly (struct crash_disk *d,
                                                    const char *name);

#endif /* CRASH_STORAGE_H */
