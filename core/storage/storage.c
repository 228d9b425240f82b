/* SPDX-License-Identifier: BSD-3-Clause */

/* What every kind of storage has in common: whole reads, whole writes,
 * zeros past the end, errors with a name.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "storage/storage.h"

/* Why a call failed. */
static const char *
reason (int err)
{
  return err == ENOLINK ? "the connection to its server is lost, until it is "
    "opened again" : strerror (err);
}

int
storage_read (struct storage *s, void *buf, size_t count,
              struct host_off offset)
{
  uint8_t *p = buf;
  uint64_t at = offset.v;

  while (count > 0) {
    ssize_t r = s->ops->pread (s, p, count, at);

    if (r == -1) {
      if (errno == EINTR)
        continue;
      error_set (EIO, "%s: reading %zu bytes at offset 0x%" PRIx64 ": %s",
                 s->name, count, at, reason (errno));
      return -1;
    }
    if (r == 0) {
      memset (p, 0, count);
      break;
    }
    p += r;
    at += r;
    count -= r;
  }
  return 0;
}

int
storage_read_present (struct storage *s, void *buf, size_t count,
                      struct host_off offset)
{
  size_t done = 0;

  while (done < count) {
    const ssize_t r = s->ops->pread (s, (uint8_t *) buf + done, count - done,
                                     offset.v + done);

    if (r == -1 && errno == EINTR)
      continue;
    if (r <= 0) {
      error_set (EIO, "%s: reading %zu bytes at offset 0x%" PRIx64 ": %s",
                 s->name, count - done, offset.v + done,
                 r == -1 ? reason (errno) : "the file ends there");
      return -1;
    }
    done += r;
  }
  return 0;
}

int
storage_read_many (struct storage *s, const struct storage_run *runs,
                   unsigned nr)
{
  unsigned i;

  assert (nr <= STORAGE_MAX_RUNS);
  if (s->ops->pread_many != NULL && nr > 1) {
    if (s->ops->pread_many (s, runs, nr) == 0)
      return 0;
    error_set (EIO, "%s: reading %u ranges from offset 0x%" PRIx64 " on: %s",
               s->name, nr, runs[0].offset.v, reason (errno));
    return -1;
  }
  for (i = 0; i < nr; ++i)
    if (storage_read (s, runs[i].iov[0].iov_base, runs[i].iov[0].iov_len,
                      runs[i].offset) == -1)
      return -1;
  return 0;
}

/* What a client is told about a failed write. */
static int
write_errno (int err)
{
  return err == ENOSPC || err == EDQUOT || err == EFBIG ? ENOSPC : EIO;
}

/* The storage reaches at least up to end now. */
static void
note_size (struct storage *s, uint64_t end)
{
  uint64_t size = atomic_load_explicit (&s->size, memory_order_relaxed);

  while (size < end &&
         !atomic_compare_exchange_weak_explicit (&s->size, &size, end,
                                                 memory_order_relaxed,
                                                 memory_order_relaxed))
    ;
}

/* Step over the first count bytes of *nr pieces. */
static struct iovec *
advance (struct iovec *iov, int *nr, size_t count)
{
  while (*nr > 0 && count >= iov->iov_len) {
    count -= iov->iov_len;
    iov++;
    (*nr)--;
  }
  if (*nr > 0) {
    iov->iov_base = (char *) iov->iov_base + count;
    iov->iov_len -= count;
  }
  return iov;
}

int
storage_writev (struct storage *s, struct iovec *iov, int nr,
                struct host_off offset, bool durable)
{
  uint64_t at = offset.v;

  iov = advance (iov, &nr, 0); /* pieces of no length */
  while (nr > 0) {
    const ssize_t r = s->ops->pwritev (s, iov, nr, at, durable);

    if (r == -1) {
      if (errno == EINTR)
        continue;
      error_set (write_errno (errno), "%s: writing at offset 0x%" PRIx64
                 ": %s", s->name, at, reason (errno));
      if (at > offset.v) /* what was written is there */
        note_size (s, at);
      return -1;
    }
    at += r;
    iov = advance (iov, &nr, r);
  }
  note_size (s, at);
  return 0;
}

int
storage_write (struct storage *s, const void *buf, size_t count,
               struct host_off offset)
{
  struct iovec iov = { .iov_base = (void *) buf, .iov_len = count };

  return storage_writev (s, &iov, 1, offset, false);
}

static uint64_t
run_end (const struct storage_run *r)
{
  uint64_t end = r->offset.v;
  int i;

  for (i = 0; i < r->nr; ++i)
    end += r->iov[i].iov_len;
  return end;
}

/* What came of writing all of these runs, errno set if r is -1. */
static int
wrote_many (struct storage *s, const struct storage_run *runs, unsigned nr,
            int r)
{
  unsigned i;

  if (r == -1) {
    error_set (write_errno (errno), "%s: writing %u ranges from offset 0x%"
               PRIx64 " on: %s", s->name, nr, runs[0].offset.v,
               reason (errno));
    return -1;
  }
  for (i = 0; i < nr; ++i)
    note_size (s, run_end (&runs[i]));
  return 0;
}

int
storage_write_many (struct storage *s, struct storage_run *runs, unsigned nr)
{
  unsigned i;

  if (s->ops->pwrite_many != NULL && nr > 1)
    return wrote_many (s, runs, nr, s->ops->pwrite_many (s, runs, nr));
  for (i = 0; i < nr; ++i) {
    if (storage_writev (s, runs[i].iov, runs[i].nr, runs[i].offset,
                        false) == -1)
      return -1;
  }
  return 0;
}

int
storage_write_durable_runs (struct storage *s, struct storage_run *runs,
                            unsigned nr, bool all)
{
  assert (nr > 0 && nr <= s->durable_runs);
  return wrote_many (s, runs, nr, s->ops->pwrite_durably (s, runs, nr, all));
}

int
storage_flush (struct storage *s)
{
  if (s->ops->flush (s) == 0)
    return 0;
  error_set (EIO, "%s: flushing: %s", s->name, reason (errno));
  return -1;
}

static int
write_zeros (struct storage *s, struct host_off offset, uint64_t count)
{
  static const uint8_t zeros[1 << 16];

  while (count > 0) {
    struct iovec iov[STORAGE_MAX_IOV];
    uint64_t sum = 0;
    int nr;

    for (nr = 0; nr < STORAGE_MAX_IOV && sum < count; ++nr) {
      iov[nr].iov_base = (void *) zeros;
      iov[nr].iov_len = count - sum < sizeof zeros ? count - sum : sizeof zeros;
      sum += iov[nr].iov_len;
    }
    if (storage_writev (s, iov, nr, offset, false) == -1)
      return -1;
    offset.v += sum;
    count -= sum;
  }
  return 0;
}

/* Below this, writing zeros costs less than having the file system change
 * its map of the file.
 */
#define ZERO_BY_WRITING 32768

int
storage_zero (struct storage *s, struct host_off offset, uint64_t count,
              bool punch)
{
  /* Never past the end: a range of zeros there beside other writes has
   * damaged images on XFS.
   */
  if (count >= ZERO_BY_WRITING && s->ops->zero != NULL &&
      offset.v + count <= atomic_load (&s->size) &&
      s->ops->zero (s, offset.v, count, punch) == 0)
    return 0;
  return write_zeros (s, offset, count);
}

bool
storage_punch (struct storage *s, struct host_off offset, uint64_t count)
{
  const uint64_t size = atomic_load (&s->size);

  if (offset.v >= size) /* reads as zeros there */
    return true;
  if (count > size - offset.v)
    count = size - offset.v;
  return s->ops->zero != NULL &&
    s->ops->zero (s, offset.v, count, true) == 0;
}

bool
storage_has_holes (const struct storage *s)
{
  return s->ops->allocate != NULL;
}

int
storage_allocate (struct storage *s, struct host_off offset, uint64_t count,
                  bool *done)
{
  *done = s->ops->allocate == NULL ||
    s->ops->allocate (s, offset.v, count) == 0;
  if (*done || write_errno (errno) != ENOSPC)
    return 0;
  error_set (ENOSPC, "%s: allocating %" PRIu64 " bytes at offset 0x%" PRIx64
             ": %s", s->name, count, offset.v, strerror (errno));
  return -1;
}

int
storage_resize (struct storage *s, uint64_t size)
{
  if (s->ops->resize (s, size) == -1) {
    error_set (write_errno (errno), "%s: resizing to %" PRIu64 " bytes: %s",
               s->name, size, strerror (errno));
    return -1;
  }
  atomic_store (&s->size, size);
  return 0;
}

static int
extend_failed (const struct storage *s, uint64_t size, int err)
{
  error_set (write_errno (err), "%s: making it %" PRIu64 " bytes long: %s",
             s->name, size, strerror (err));
  if (err == EOPNOTSUPP || err == ENOSYS || err == EPERM)
    error_append (" (no other way is safe while other programs may append to "
                  "it: enlarge it by hand, as truncate(1) does, while nobody "
                  "uses it)");
  return -1;
}

int
storage_extend (struct storage *s, uint64_t size)
{
  struct storage_stamp now;
  int r;

  /* What was known of its size may be past: others may have cut it off. */
  if (storage_stamp (s, &now) && now.size >= size) {
    note_size (s, now.size);
    return 0;
  }
  do
    r = s->ops->extend != NULL ? s->ops->extend (s, size)
      : s->ops->resize (s, size);
  while (r == -1 && errno == EINTR);
  if (r == -1)
    return extend_failed (s, size, errno);
  note_size (s, size);
  return 0;
}

void
storage_see_growth (struct storage *s)
{
  struct storage_stamp now;

  if (storage_stamp (s, &now))
    note_size (s, now.size);
}

void
storage_see_size (struct storage *s)
{
  struct storage_stamp now;

  if (storage_stamp (s, &now))
    atomic_store (&s->size, now.size);
}

int
storage_extent (struct storage *s, struct host_off offset, uint64_t count,
                bool *hole, uint64_t *length)
{
  const uint64_t size = atomic_load_explicit (&s->size, memory_order_relaxed);

  if (offset.v >= size) {
    *hole = true;
    *length = count;
    return 0;
  }
  if (count > size - offset.v)
    count = size - offset.v;
  if (s->ops->extent == NULL) {
    *hole = false;
    *length = count;
    return 0;
  }
  while (s->ops->extent (s, offset.v, count, hole, length) == -1) {
    if (errno == EINTR)
      continue;
    error_set (EIO, "%s: looking for holes at offset 0x%" PRIx64 ": %s",
               s->name, offset.v, strerror (errno));
    return -1;
  }
  return 0;
}

/* As far as extent is asked, which may look at all that it is asked for. */
#define HOLE_PIECE (UINT64_C (1) << 16)

uint64_t
storage_hole (struct storage *s, struct host_off offset)
{
  const uint64_t size = atomic_load_explicit (&s->size, memory_order_relaxed);
  uint64_t length;
  bool hole;

  if (offset.v >= size)
    return UINT64_MAX - offset.v;
  if (s->ops->hole != NULL)
    return s->ops->hole (s, offset.v);
  if (s->ops->extent == NULL)
    return 0;
  length = size - offset.v < HOLE_PIECE ? size - offset.v : HOLE_PIECE;
  return s->ops->extent (s, offset.v, length, &hole, &length) == 0 && hole
    ? length : 0;
}

int
storage_zeros (struct storage *s, struct host_off offset, uint64_t count,
               uint64_t *length)
{
  static const char zeros[1 << 14];
  char buf[sizeof zeros];
  uint64_t n, data = 0; /* so many bytes are known to be no hole */

  for (*length = 0; *length < count; *length += n, data -= n) {
    const struct host_off at = { offset.v + *length };
    bool hole = false;

    /* Not for each piece: some file systems look through all of the data for
     * the next hole.
     */
    if (data == 0 &&
        storage_extent (s, at, count - *length, &hole, &data) == -1)
      return -1;
    n = data;
    if (hole)
      continue;
    n = n < sizeof buf ? n : sizeof buf;
    if (storage_read (s, buf, n, at) == -1)
      return -1;
    if (memcmp (buf, zeros, n) != 0)
      break;
  }
  return 0;
}

int
storage_is_zero (struct storage *s, struct host_off offset, uint64_t count,
                 bool *zero)
{
  uint64_t length;

  if (storage_zeros (s, offset, count, &length) == -1)
    return -1;
  *zero = length == count;
  return 0;
}

void
storage_prefetch (struct storage *s, struct host_off offset, uint64_t count)
{
  if (s->ops->prefetch != NULL)
    s->ops->prefetch (s, offset.v, count);
}

bool
storage_stamp (struct storage *s, struct storage_stamp *stamp)
{
  *stamp = (struct storage_stamp) { .size = atomic_load (&s->size) };
  return s->ops->stamp == NULL || s->ops->stamp (s, stamp) == 0;
}

static bool
same_time (const struct timespec *a, const struct timespec *b)
{
  return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

bool
storage_stamps_equal (const struct storage_stamp *a,
                      const struct storage_stamp *b)
{
  return a->device == b->device && a->inode == b->inode &&
    a->size == b->size && same_time (&a->modified, &b->modified) &&
    same_time (&a->changed, &b->changed);
}

static bool
is_known (const struct timespec *t)
{
  return t->tv_sec != 0 || t->tv_nsec != 0;
}

bool
storage_stamps_of_two (const struct storage_stamp *a,
                       const struct storage_stamp *b)
{
  return is_known (&a->born) && is_known (&b->born) &&
    !same_time (&a->born, &b->born);
}

void
storage_set_locking (struct storage *s, enum storage_locking locking)
{
  if (s->ops->set_locking != NULL)
    s->ops->set_locking (s, locking);
}

int
storage_lock (struct storage *s, unsigned uses, unsigned denies)
{
  return s->ops->lock == NULL ? 0 : s->ops->lock (s, uses, denies, false);
}

int
storage_lock_alone (struct storage *s, unsigned uses, unsigned denies)
{
  return s->ops->lock == NULL ? 0 : s->ops->lock (s, uses, denies, true);
}

bool
storage_keeps_writers_out (const struct storage *s)
{
  return s->ops->keeps_writers_out == NULL || s->ops->keeps_writers_out (s);
}

int
storage_make_writable (struct storage *s, unsigned uses, unsigned denies)
{
  return s->ops->make_writable == NULL ? 0
    : s->ops->make_writable (s, uses, denies);
}

int
storage_check_writable (const struct storage *s)
{
  return s->ops->check_writable == NULL ? 0 : s->ops->check_writable (s);
}

/* A storage of a kind that has no identities is itself, and no other one. */
static struct storage_identity
identify (const struct storage *s)
{
  struct storage_identity id = { .kind = s };

  if (s->ops->identify != NULL)
    s->ops->identify (s, &id);
  return id;
}

bool
storage_same (const struct storage *a, const struct storage *b)
{
  const struct storage_identity ia = identify (a), ib = identify (b);

  return ia.kind == ib.kind && ia.number[0] == ib.number[0] &&
    ia.number[1] == ib.number[1];
}

int
storage_may_be_same (struct storage *a, struct storage *b, uint64_t bytes,
                     bool *may)
{
  static const uint8_t zeros[4096];
  uint8_t of_a[sizeof zeros], of_b[sizeof zeros];
  struct host_off at = { 0 };
  bool equal = true, all_zeros = true;

  *may = false;
  if (!identify (a).uncertain && !identify (b).uncertain)
    return 0;
  for (; equal && at.v < bytes; at.v += sizeof zeros) {
    if (storage_read (a, of_a, sizeof of_a, at) == -1 ||
        storage_read (b, of_b, sizeof of_b, at) == -1)
      return -1;
    equal = memcmp (of_a, of_b, sizeof of_a) == 0;
    all_zeros &= memcmp (of_a, zeros, sizeof zeros) == 0;
  }
  *may = equal && !all_zeros;
  return 0;
}

uint32_t
storage_block_size (const struct storage *s)
{
  return s->ops->block_size == NULL ? 1 : s->ops->block_size (s);
}

void
storage_close (struct storage *s)
{
  char *name;

  if (s == NULL)
    return;
  /* Threads that it has to wait for may use it in messages. */
  name = s->name;
  s->ops->close (s);
  free (name);
}
