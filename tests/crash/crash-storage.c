/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "checker.h"
#include "content.h"
#include "crash-storage.h"
#include "keep-maps.h"
#include "memory-storage.h"
#include "no-memory.h"
#include "random.h"

struct crash {
  struct storage storage;
  struct crash_disk *disk;
  uint32_t block; /* see memory-storage.h */
};

static void
check_aligned (const struct storage *s, const void *buf, uint64_t offset,
               uint64_t count)
{
  memory_check_aligned (((const struct crash *) s)->block, buf, offset, count);
}

/* A test needs memory, and its own failures are not the question. */
static void *
more_memory (void *p, size_t size)
{
  const bool was = memory_pause ();

  p = realloc (p, size);
  memory_resume (was);
  if (p == NULL) {
    fprintf (stderr, "out of memory\n");
    abort ();
  }
  return p;
}

/* More than a test's disk ever should be. */
#define DISK_MAX (UINT64_C (1) << 30)

static void
reserve (struct crash_disk *d, uint64_t size)
{
  uint64_t capacity = d->capacity;

  if (size <= capacity)
    return;
  while (capacity < size)
    capacity = capacity < 65536 ? 65536 : 2 * capacity;
  d->bytes = more_memory (d->bytes, capacity);
  memset (d->bytes + d->capacity, 0, capacity - d->capacity);
  d->capacity = capacity;
}

/* Disks come and go by thousands.  To map and clear their memory each time took
 * most of the time that tests with disks of megabytes have: the latest two that
 * were freed are used again.
 */
static struct {
  uint8_t *bytes;
  uint64_t size, capacity; /* zeros follow the size */
} spare[2];
static unsigned next_spare;
static pthread_mutex_t spare_lock = PTHREAD_MUTEX_INITIALIZER;

static void
take_spare (struct crash_disk *d, uint64_t size)
{
  unsigned i;

  pthread_mutex_lock (&spare_lock);
  for (i = 0; i < 2 && d->bytes == NULL; ++i)
    if (spare[i].bytes != NULL && spare[i].capacity >= size) {
      d->bytes = spare[i].bytes;
      d->size = spare[i].size;
      d->capacity = spare[i].capacity;
      spare[i].bytes = NULL;
    }
  pthread_mutex_unlock (&spare_lock);
}

static void
give_spare (struct crash_disk *d)
{
  pthread_mutex_lock (&spare_lock);
  free (spare[next_spare].bytes);
  spare[next_spare].bytes = d->bytes;
  spare[next_spare].size = d->size;
  spare[next_spare].capacity = d->capacity;
  next_spare = (next_spare + 1) % 2;
  pthread_mutex_unlock (&spare_lock);
}

/* What it had is replaced. */
static void
fill (struct crash_disk *d, const void *bytes, uint64_t size)
{
  if (size > 0)
    memcpy (d->bytes, bytes, size);
  if (d->size > size)
    memset (d->bytes + size, 0, d->size - size);
  d->size = size;
}

void
crash_disk_init (struct crash_disk *d, const void *bytes, uint64_t size)
{
  keep_maps ();
  memset (d, 0, sizeof *d);
  pthread_mutex_init (&d->lock, NULL);
  take_spare (d, size + size / 4 + 65536);
  reserve (d, size + size / 4 + 65536);
  fill (d, bytes, size);
  d->logging = true;
}

static void
forget_log (struct crash_disk *d)
{
  uint64_t i;

  for (i = 0; i < d->nr; ++i)
    free (d->op[i].data);
  d->nr = 0;
}

void
crash_disk_reset (struct crash_disk *d, const void *bytes, uint64_t size)
{
  forget_log (d);
  reserve (d, size + 65536);
  fill (d, bytes, size);
  d->changes = d->calls = d->failures = 0;
  d->fault = (struct crash_fault) { 0 };
  d->failed_kinds = 0;
  d->failed_metadata_write = d->failed_other = false;
  d->logging = true;
}

void
crash_disk_free (struct crash_disk *d)
{
  forget_log (d);
  free (d->op);
  give_spare (d);
  pthread_mutex_destroy (&d->lock);
  memset (d, 0, sizeof *d);
}

uint64_t
crash_disk_now (struct crash_disk *d)
{
  uint64_t now;

  pthread_mutex_lock (&d->lock);
  now = d->nr;
  pthread_mutex_unlock (&d->lock);
  return now;
}

/* Count a call.  True if it is one that does not do all that it should. */
static bool
is_fault (struct crash_disk *d, unsigned kind)
{
  const struct crash_fault *f = &d->fault;

  if (f->kinds != 0 && (f->kinds & kind) == 0)
    return false;
  d->calls++;
  if (f->call == 0 || d->calls < f->call ||
      (d->calls > f->call && !f->forever))
    return false;
  if (f->is_short && (kind & (FAULT_READ | FAULT_WRITE)) == 0)
    return false;
  d->failures++;
  if (!f->is_short)
    d->failed_kinds |= kind;
  return true;
}

/* As long as a disk might take: mostly no time, sometimes long enough for a
 * lot to be done meanwhile.
 */
static void
dawdle (const struct crash_disk *d)
{
  static _Thread_local uint64_t state;
  const unsigned n = d->dawdle ? random_below (&state, 64) : 64;

  if (n == 0)
    usleep (random_below (&state, 3000));
  else if (n < 8)
    usleep (random_below (&state, 100));
  else if (n < 32)
    sched_yield ();
}

static int
fail (const struct crash_disk *d)
{
  errno = d->fault.err != 0 ? d->fault.err : EIO;
  return -1;
}

/* Add a call to the log; the lock is held.  Returns its place. */
static uint64_t
begin_op (struct crash_disk *d, struct crash_op op)
{
  d->changes++;
  if (!d->logging)
    return 0;
  if (d->nr == d->nr_allocated) {
    d->nr_allocated = 2 * d->nr_allocated + 64;
    d->op = more_memory (d->op, d->nr_allocated * sizeof *d->op);
  }
  op.size = d->size;
  op.end = UINT64_MAX;
  op.moment = d->clock != NULL ? atomic_fetch_add (d->clock, 1) : d->nr;
  d->op[d->nr] = op;
  return d->nr++;
}

/* The call returns.  Between its beginning and here others may run. */
static void
end_op (struct crash_disk *d, uint64_t i)
{
  dawdle (d);
  pthread_mutex_lock (&d->lock);
  if (d->logging)
    d->op[i].end = d->nr;
  pthread_mutex_unlock (&d->lock);
}

static ssize_t
crash_pread (struct storage *s, void *buf, size_t count, uint64_t offset)
{
  struct crash_disk *d = ((struct crash *) s)->disk;
  ssize_t r = 0;

  check_aligned (s, buf, offset, count);
  dawdle (d);
  pthread_mutex_lock (&d->lock);
  if (is_fault (d, FAULT_READ)) {
    if (!d->fault.is_short) {
      r = fail (d);
      goto out;
    }
    count = count / 2 > 0 ? count / 2 : 1;
  }
  if (offset < d->size) {
    r = count < d->size - offset ? count : d->size - offset;
    memcpy (buf, d->bytes + offset, r);
  }
 out:
  pthread_mutex_unlock (&d->lock);
  return r;
}

/* A hole is 4 KiB of zeros, as it is on most file systems at best. */
#define HOLE_BLOCK 4096

static bool
is_hole (const struct crash_disk *d, uint64_t offset, uint64_t *end)
{
  const uint64_t start = offset / HOLE_BLOCK * HOLE_BLOCK;
  uint64_t limit = start + HOLE_BLOCK;

  *end = limit;
  if (limit > d->size)
    limit = d->size;
  return start >= limit || content_is_zero (d->bytes + start, limit - start);
}

static int
crash_extent (struct storage *s, uint64_t offset, uint64_t count,
              bool *hole, uint64_t *length)
{
  struct crash_disk *d = ((struct crash *) s)->disk;
  uint64_t end, next;
  int r = 0;

  check_aligned (s, NULL, offset, count);
  pthread_mutex_lock (&d->lock);
  if (is_fault (d, FAULT_READ) && !d->fault.is_short)
    r = fail (d);
  else {
    *hole = is_hole (d, offset, &end);
    while (end < offset + count && end < d->size &&
           is_hole (d, end, &next) == *hole)
      end = next;
    *length = end - offset < count ? end - offset : count;
  }
  pthread_mutex_unlock (&d->lock);
  return r;
}

static size_t
gather (const struct iovec *iov, int nr, uint8_t **data)
{
  size_t count = 0;
  int i;

  for (i = 0; i < nr; ++i)
    count += iov[i].iov_len;
  *data = more_memory (NULL, count > 0 ? count : 1);
  count = 0;
  for (i = 0; i < nr; ++i) {
    memcpy (*data + count, iov[i].iov_base, iov[i].iov_len);
    count += iov[i].iov_len;
  }
  return count;
}

/* True if among these bytes is a sector of a disk, which no table has. */
static bool
is_data (const uint8_t *data, size_t count)
{
  const uint64_t magic = CONTENT_MAGIC;

  return memmem (data, count, &magic, sizeof magic) != NULL;
}

#define DATA_ROLES (ROLE_DATA | ROLE_COMPRESSED)

/* True if these bytes are fields of the header; or if they are, as whole
 * sectors, not those of a disk, and meant for a table that the image uses:
 * what is to become one is none as long as nothing points to it.
 */
static bool
is_metadata (const struct crash_disk *d, const uint8_t *data, size_t count,
             uint64_t offset)
{
  uint64_t nr, cluster;
  uint16_t *roles;
  bool used, was;

  if (offset + count < SECTOR) /* fields of the header */
    return true;
  if (count % SECTOR != 0 || offset % SECTOR != 0 ||
      content_is_zero (data, count) || is_data (data, count))
    return false;
  was = memory_pause ();
  roles = check_roles (d->bytes, d->size, &nr);
  memory_resume (was);
  cluster = nr > 0 ? offset >> get_be32 (d->bytes + 20) : 0;
  used = cluster < nr && (roles[cluster] & ~DATA_ROLES) != 0;
  free (roles);
  return used;
}

/* How much of a write that fails is done: a disk does whole sectors. */
static size_t
failed_part (const struct crash_disk *d, size_t count, uint64_t offset)
{
  const uint64_t end = (offset + count / 2) / SECTOR * SECTOR;

  return d->fault.partly && end > offset ? end - offset : 0;
}

/* Do a write of count bytes; the lock is held. */
static uint64_t
apply_write (struct crash_disk *d, uint8_t *data, size_t count,
             uint64_t offset, bool durable)
{
  if (offset + count > DISK_MAX) {
    fprintf (stderr, "a write at 0x%llx of 0x%zx bytes is past any bound\n",
             (unsigned long long) offset, count);
    abort ();
  }
  reserve (d, offset + count);
  memcpy (d->bytes + offset, data, count);
  if (d->size < offset + count)
    d->size = offset + count;
  return begin_op (d, (struct crash_op) {
      .kind = CRASH_WRITE, .offset = offset, .count = count, .data = data,
      .durable = durable,
    });
}

static void
note_failed_write (struct crash_disk *d, const uint8_t *data, size_t count,
                   uint64_t offset, bool durable)
{
  d->failed_other |= durable || !is_data (data, count);
  if (durable && d->fault.err == EIO)
    d->failed_kinds |= FAULT_FLUSH; /* it is one, too */
  if (is_metadata (d, data, count, offset)) {
    d->failed_metadata_write = true;
    d->failed_offset = offset;
  }
}

/* A call that has begun. */
struct begun {
  uint64_t op;
  size_t count; /* bytes of a write that were done; 0: it is not in the log */
  bool fails;
};

/* whole: it is not done in part without failing. */
static struct begun
begin_write (struct crash_disk *d, const struct iovec *iov, int nr,
             uint64_t offset, bool durable, bool whole)
{
  bool fails = false;
  uint8_t *data;
  size_t count = gather (iov, nr, &data);
  uint64_t i = 0;

  dawdle (d);
  pthread_mutex_lock (&d->lock);
  if (is_fault (d, FAULT_WRITE)) {
    fails = !d->fault.is_short;
    if (fails)
      note_failed_write (d, data, count, offset, durable);
    count = fails ? failed_part (d, count, offset)
      : whole || count == 1 ? count : count / 2;
  }
  if (count > 0)
    i = apply_write (d, data, count, offset, durable && !fails);
  if (count == 0 || !d->logging)
    free (data);
  pthread_mutex_unlock (&d->lock);
  return (struct begun) { i, count, fails };
}

static ssize_t
crash_pwritev (struct storage *s, const struct iovec *iov, int nr,
               uint64_t offset, bool durable)
{
  struct crash_disk *d = ((struct crash *) s)->disk;
  struct begun b;

  memory_check_pieces (((struct crash *) s)->block, iov, nr, offset);
  b = begin_write (d, iov, nr, offset, durable, false);
  if (b.count > 0)
    end_op (d, b.op);
  return b.fails ? fail (d) : (ssize_t) b.count;
}

static struct begun
begin_flush (struct crash_disk *d)
{
  struct begun b = { .count = 1 };

  dawdle (d);
  pthread_mutex_lock (&d->lock);
  b.fails = is_fault (d, FAULT_FLUSH);
  d->failed_other |= b.fails;
  b.op = begin_op (d, (struct crash_op) {
      .kind = CRASH_FLUSH, .failed = b.fails,
    });
  pthread_mutex_unlock (&d->lock);
  return b;
}

static int
crash_flush (struct storage *s)
{
  struct crash_disk *d = ((struct crash *) s)->disk;
  const struct begun b = begin_flush (d);

  end_op (d, b.op);
  return b.fails ? fail (d) : 0;
}

#define MAX_DURABLE_RUNS 15

/* All of it is under way at once.  A flush never fails for want of space. */
static int
crash_pwrite_durably (struct storage *s, const struct storage_run *runs,
                      unsigned nr, bool all)
{
  struct crash_disk *d = ((struct crash *) s)->disk;
  struct begun b[MAX_DURABLE_RUNS + 1];
  bool fails = false;
  unsigned i, n;

  for (i = 0; i < nr; ++i)
    do
      b[i] = begin_write (d, runs[i].iov, runs[i].nr, runs[i].offset.v, true,
                          true);
    while (b[i].fails && d->fault.err == EINTR && !d->fault.forever);
  n = nr;
  if (all)
    b[n++] = begin_flush (d);
  for (i = 0; i < n; ++i) {
    if (b[i].count > 0)
      end_op (d, b[i].op);
    fails |= b[i].fails;
  }
  if (fails)
    (void) fail (d);
  if (all && b[n - 1].fails)
    errno = EIO;
  return fails ? -1 : 0;
}

static int
crash_zero (struct storage *s, uint64_t offset, uint64_t count, bool punch)
{
  struct crash_disk *d = ((struct crash *) s)->disk;
  uint64_t i;

  check_aligned (s, NULL, offset, count);
  if (d->no_zero) {
    errno = EOPNOTSUPP;
    return -1;
  }
  dawdle (d);
  pthread_mutex_lock (&d->lock);
  if (is_fault (d, FAULT_ZERO)) {
    pthread_mutex_unlock (&d->lock);
    return fail (d);
  }
  if (offset < d->size) {
    if (count > d->size - offset)
      count = d->size - offset;
    memset (d->bytes + offset, 0, count);
  }
  else
    count = 0;
  i = begin_op (d, (struct crash_op) {
      .kind = CRASH_ZERO, .offset = offset, .count = count,
    });
  pthread_mutex_unlock (&d->lock);
  end_op (d, i);
  return 0;
}

/* Space for what is written is always there. */
static int
crash_allocate (struct storage *s, uint64_t offset, uint64_t count)
{
  struct crash_disk *d = ((struct crash *) s)->disk;
  bool fails;

  check_aligned (s, NULL, offset, count);
  pthread_mutex_lock (&d->lock);
  fails = is_fault (d, FAULT_ALLOCATE);
  pthread_mutex_unlock (&d->lock);
  if (fails)
    return fail (d);
  if (d->no_zero) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return 0;
}

static int
crash_resize (struct storage *s, uint64_t size)
{
  struct crash_disk *d = ((struct crash *) s)->disk;
  uint64_t i;

  check_aligned (s, NULL, size, 0);
  pthread_mutex_lock (&d->lock);
  if (is_fault (d, FAULT_RESIZE) || size > DISK_MAX) {
    pthread_mutex_unlock (&d->lock);
    return fail (d);
  }
  reserve (d, size);
  if (size < d->size)
    memset (d->bytes + size, 0, d->size - size);
  d->size = size;
  i = begin_op (d, (struct crash_op) { .kind = CRASH_RESIZE, .offset = size });
  pthread_mutex_unlock (&d->lock);
  end_op (d, i);
  return 0;
}

static void
crash_close (struct storage *s)
{
  struct crash_disk *d = ((struct crash *) s)->disk;

  d->closed = true;
  free (s);
}

static const struct storage_ops crash_ops = {
  .pread = crash_pread,
  .extent = crash_extent,
  .pwritev = crash_pwritev,
  .pwrite_durably = crash_pwrite_durably,
  .flush = crash_flush,
  .zero = crash_zero,
  .allocate = crash_allocate,
  .resize = crash_resize,
  .close = crash_close,
};

/* Without the functions that write: a call of them is a bug (I9). */
static const struct storage_ops readonly_ops = {
  .pread = crash_pread,
  .extent = crash_extent,
  .close = crash_close,
};

static struct storage *
open_with (struct crash_disk *d, const char *name,
           const struct storage_ops *ops)
{
  struct crash *c = more_memory (NULL, sizeof *c);

  memset (c, 0, sizeof *c);
  c->storage.ops = ops;
  c->storage.name = strcpy (more_memory (NULL, strlen (name) + 1), name);
  c->storage.size = d->size;
  if (ops->pwrite_durably != NULL && getenv (CRASH_RUNS_VARIABLE) != NULL)
    c->storage.durable_runs = atoi (getenv (CRASH_RUNS_VARIABLE));
  if (c->storage.durable_runs > MAX_DURABLE_RUNS)
    abort ();
  c->disk = d;
  d->closed = false;
  return memory_with_blocks (&c->storage, &c->block);
}

struct storage *
crash_storage_open (struct crash_disk *d, const char *name)
{
  return open_with (d, name, &crash_ops);
}

struct storage *
crash_storage_open_readonly (struct crash_disk *d, const char *name)
{
  return open_with (d, name, &readonly_ops);
}
