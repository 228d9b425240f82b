/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/inflight.h"
#include "storage/align-parts.h"
#include "storage/align.h"

/* Enter all blocks from from to to, which is not in the range. */
static void
enter_blocks (struct align *a, uint64_t from, uint64_t to,
              struct inflight_range *range)
{
  range->first = from / a->block;
  range->last = (to - 1) / a->block;
  inflight_enter (&a->changing, range);
}

uint8_t *
align_new_blocks (const struct align *a, size_t count)
{
  void *p;

  errno = posix_memalign (&p, a->block < sizeof p ? sizeof p : a->block, count);
  return errno == 0 ? p : NULL;
}

/* ------------------------------------------------------------ whole blocks */

int
align_read_blocks (struct align *a, uint8_t *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    const ssize_t r = a->inner->ops->pread (a->inner, buf, count, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return -1;
    if (r == 0 || !is_aligned (a, r)) { /* the end */
      memset (buf + r, 0, count - r);
      break;
    }
    buf += r;
    offset += r;
    count -= r;
  }
  return 0;
}

/* A storage reaches up to end at least from now on: as storage_writev has it,
 * but before others enter the blocks.
 */
static void
reach (struct storage *s, uint64_t end)
{
  uint64_t size = atomic_load (&s->size);

  while (size < end && !atomic_compare_exchange_weak (&s->size, &size, end))
    ;
}

/* Write all of these blocks, in a range.  *end: how far they were, also if that
 * fails.  Returns -1 with errno set.
 */
static int
write_blocks (struct align *a, uint8_t *buf, size_t count, uint64_t offset,
              bool durable, uint64_t *end)
{
  *end = offset;
  while (count > 0) {
    const struct iovec iov = { .iov_base = buf, .iov_len = count };
    const ssize_t r = a->inner->ops->pwritev (a->inner, &iov, 1, offset,
                                              durable);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return -1;
    buf += r;
    offset += r;
    count -= r;
    reach (a->inner, offset);
    *end = offset;
  }
  return 0;
}

/* Read those blocks of buf, which is for the bytes from start to end, that a
 * write from from to to does not replace as a whole: the first and the last.
 */
static int
read_edges (struct align *a, uint8_t *buf, uint64_t from, uint64_t to)
{
  const uint64_t start = block_start (a, from);
  const uint64_t last = block_start (a, to);

  if (from != start && align_read_blocks (a, buf, a->block, start) == -1)
    return -1;
  if (to == last || (last == start && from != start))
    return 0;
  return align_read_blocks (a, buf + (last - start), a->block, last);
}

/* ----------------------------------------------------------------- reading */

static ssize_t
align_pread (struct storage *s, void *buf, size_t count, uint64_t offset)
{
  struct align *a = align_of (s);
  const uint64_t start = block_start (a, offset);
  uint64_t end = block_end (a, offset + count);
  uint8_t *blocks;
  int r;

  if (is_aligned (a, (uintptr_t) buf) && start == offset &&
      is_aligned (a, count))
    return a->inner->ops->pread (a->inner, buf, count, offset);
  if (end - start > ALIGN_MAX_BYTES)
    end = start + ALIGN_MAX_BYTES;
  if (count > end - offset)
    count = end - offset;
  blocks = align_new_blocks (a, end - start);
  if (blocks == NULL)
    return -1;
  r = align_read_blocks (a, blocks, end - start, start);
  if (r == 0)
    memcpy (buf, blocks + (offset - start), count);
  free (blocks);
  return r == -1 ? -1 : (ssize_t) count;
}

/* A block that is not all hole counts as data. */
static int
align_extent (struct storage *s, uint64_t offset, uint64_t count, bool *hole,
              uint64_t *length)
{
  struct align *a = align_of (s);
  const uint64_t start = block_start (a, offset);
  uint64_t end;

  if (a->inner->ops->extent (a->inner, start,
                             block_end (a, offset + count) - start, hole,
                             length) == -1)
    return -1;
  end = *hole ? block_start (a, start + *length)
    : block_end (a, start + *length);
  if (end <= start) {
    *hole = false;
    end = start + a->block;
  }
  *length = end - offset < count ? end - offset : count;
  return 0;
}

static uint64_t
align_hole (struct storage *s, uint64_t offset)
{
  struct align *a = align_of (s);
  const uint64_t start = block_start (a, offset);
  const uint64_t length = a->inner->ops->hole (a->inner, start);

  return start + length > offset ? start + length - offset : 0;
}

static void
align_prefetch (struct storage *s, uint64_t offset, uint64_t count)
{
  struct align *a = align_of (s);
  const uint64_t start = block_start (a, offset);

  a->inner->ops->prefetch (a->inner, start,
                           block_end (a, offset + count) - start);
}

/* ----------------------------------------------------------------- writing */

static uint64_t
bytes_of (const struct iovec *iov, int nr)
{
  uint64_t count = 0;

  while (nr > 0)
    count += iov[--nr].iov_len;
  return count;
}

/* Whether these pieces can be handed on as they are. */
static bool
pieces_are_aligned (const struct align *a, const struct iovec *iov, int nr)
{
  for (; nr > 0; ++iov, --nr)
    if (!is_aligned (a, (uintptr_t) iov->iov_base) ||
        !is_aligned (a, iov->iov_len))
      return false;
  return true;
}

static void
copy_pieces (uint8_t *to, const struct iovec *iov, size_t count)
{
  for (; count > 0; ++iov) {
    const size_t n = iov->iov_len < count ? iov->iov_len : count;

    memcpy (to, iov->iov_base, n);
    to += n;
    count -= n;
  }
}

/* Write the first count bytes of the pieces by way of other memory. */
static int
write_copied (struct align *a, const struct iovec *iov, size_t count,
              uint64_t offset, bool durable)
{
  const uint64_t start = block_start (a, offset);
  const uint64_t end = block_end (a, offset + count);
  uint8_t *blocks = align_new_blocks (a, end - start);
  struct inflight_range range;
  uint64_t written = start;
  int r;

  if (blocks == NULL)
    return -1;
  enter_blocks (a, start, end, &range);
  r = read_edges (a, blocks, offset, offset + count);
  if (r == 0) {
    copy_pieces (blocks + (offset - start), iov, count);
    r = write_blocks (a, blocks, end - start, start, durable, &written);
  }
  if (written > start) /* A1, though the rest of it may have failed */
    reach (&a->storage, written < offset + count ? written : offset + count);
  inflight_leave (&a->changing, &range);
  free (blocks);
  return r;
}

static ssize_t
write_straight (struct align *a, const struct iovec *iov, int nr,
                uint64_t offset, uint64_t count, bool durable)
{
  struct inflight_range range;
  ssize_t r;

  enter_blocks (a, offset, offset + count, &range);
  r = a->inner->ops->pwritev (a->inner, iov, nr, offset, durable);
  if (r > 0) {
    reach (a->inner, offset + r);
    reach (&a->storage, offset + r);
  }
  inflight_leave (&a->changing, &range);
  return r;
}

static ssize_t
align_pwritev (struct storage *s, const struct iovec *iov, int nr,
               uint64_t offset, bool durable)
{
  struct align *a = align_of (s);
  uint64_t count = bytes_of (iov, nr);
  const uint64_t most = block_start (a, offset) + ALIGN_MAX_BYTES - offset;

  if (is_aligned (a, offset) && pieces_are_aligned (a, iov, nr))
    return write_straight (a, iov, nr, offset, count, durable);
  if (count > most)
    count = most;
  return write_copied (a, iov, count, offset, durable) == -1
    ? -1 : (ssize_t) count;
}

/* ----------------------------------------------------------------- zeroing */

static bool
all_zeros (const uint8_t *p, size_t count)
{
  return p[0] == 0 && memcmp (p, p + 1, count - 1) == 0;
}

/* Zero a part of one block, which is entered.  Where it is zeros, nothing is
 * written: that could take space.
 */
static int
zero_part (struct align *a, uint64_t from, uint64_t to)
{
  const uint64_t start = block_start (a, from);
  uint8_t *block, *p;
  uint64_t end;
  int r;

  if (from >= to)
    return 0;
  block = align_new_blocks (a, a->block);
  if (block == NULL)
    return -1;
  p = block + (from - start);
  r = align_read_blocks (a, block, a->block, start);
  if (r == 0 && !all_zeros (p, to - from)) {
    memset (p, 0, to - from);
    r = write_blocks (a, block, a->block, start, false, &end);
  }
  free (block);
  return r;
}

/* The blocks are entered. */
static int
zero_blocks (struct align *a, uint64_t from, uint64_t to, bool punch)
{
  uint64_t whole_from = block_end (a, from), whole_to = block_start (a, to);

  if (whole_from > whole_to) /* part of one block */
    return zero_part (a, from, to);
  /* First, since it may be that it can't be done. */
  if (whole_from < whole_to &&
      a->inner->ops->zero (a->inner, whole_from, whole_to - whole_from,
                           punch) == -1)
    return -1;
  if (zero_part (a, from, whole_from) == -1)
    return -1;
  return zero_part (a, whole_to, to);
}

static int
align_zero (struct storage *s, uint64_t offset, uint64_t count, bool punch)
{
  struct align *a = align_of (s);
  uint64_t end = offset + count;
  struct inflight_range range;
  int r;

  enter_blocks (a, offset, end, &range);
  /* By A1 the rest of the last block is zeros. */
  if (end >= atomic_load (&s->size) &&
      block_end (a, end) <= atomic_load (&a->inner->size))
    end = block_end (a, end);
  r = zero_blocks (a, offset, end, punch);
  inflight_leave (&a->changing, &range);
  return r;
}

static int
align_allocate (struct storage *s, uint64_t offset, uint64_t count)
{
  struct align *a = align_of (s);
  const uint64_t start = block_start (a, offset);

  return a->inner->ops->allocate (a->inner, start,
                                  block_end (a, offset + count) - start);
}

/* ---------------------------------------------------------------- the rest */

/* What is cut off of the last block is zeroed first (A1); with a power loss in
 * between it is that, and is still there.
 */
static int
align_resize (struct storage *s, uint64_t size)
{
  struct align *a = align_of (s);
  const uint64_t end = block_end (a, size);
  struct inflight_range range;
  int r = 0;

  enter_blocks (a, block_start (a, size), UINT64_MAX, &range);
  if (size < atomic_load (&s->size))
    r = zero_part (a, size, end);
  if (r == 0)
    r = a->inner->ops->resize (a->inner, end);
  if (r == 0) {
    atomic_store (&a->inner->size, end);
    atomic_store (&s->size, size);
  }
  inflight_leave (&a->changing, &range);
  return r;
}

static int
align_flush (struct storage *s)
{
  struct align *a = align_of (s);

  return a->inner->ops->flush (a->inner);
}

static int
align_stamp (struct storage *s, struct storage_stamp *stamp)
{
  struct align *a = align_of (s);

  return a->inner->ops->stamp (a->inner, stamp);
}

static void
align_set_locking (struct storage *s, enum storage_locking locking)
{
  storage_set_locking (align_of (s)->inner, locking);
}

static int
align_lock (struct storage *s, unsigned uses, unsigned denies, bool alone)
{
  struct storage *inner = align_of (s)->inner;

  return inner->ops->lock == NULL ? 0
    : inner->ops->lock (inner, uses, denies, alone);
}

static bool
align_keeps_writers_out (const struct storage *s)
{
  return storage_keeps_writers_out (((const struct align *) s)->inner);
}

static int
align_make_writable (struct storage *s, unsigned uses, unsigned denies)
{
  return storage_make_writable (align_of (s)->inner, uses, denies);
}

static int
align_check_writable (const struct storage *s)
{
  return storage_check_writable (((const struct align *) s)->inner);
}

static void
align_identify (const struct storage *s, struct storage_identity *id)
{
  const struct align *a = (const struct align *) s;

  a->inner->ops->identify (a->inner, id);
}

static struct storage *
align_inner (struct storage *s)
{
  return align_of (s)->inner;
}

static uint32_t
align_block_size (const struct storage *s)
{
  return ((const struct align *) s)->block;
}

static void
align_close (struct storage *s)
{
  struct align *a = align_of (s);

  storage_close (a->inner);
  inflight_destroy (&a->changing);
  free (a);
}

static const struct storage_ops align_ops = {
  .pread = align_pread,
  .pread_many = align_pread_many,
  .extent = align_extent,
  .hole = align_hole,
  .prefetch = align_prefetch,
  .pwritev = align_pwritev,
  .pwrite_many = align_pwrite_many,
  .pwrite_durably = align_pwrite_durably,
  .flush = align_flush,
  .zero = align_zero,
  .allocate = align_allocate,
  .resize = align_resize,
  .stamp = align_stamp,
  .set_locking = align_set_locking,
  .lock = align_lock,
  .keeps_writers_out = align_keeps_writers_out,
  .make_writable = align_make_writable,
  .check_writable = align_check_writable,
  .identify = align_identify,
  .inner = align_inner,
  .block_size = align_block_size,
  .close = align_close,
};

/* What the inner one can't do this one can't either; locks and the like do
 * nothing where the inner one does nothing.
 */
static void
choose_ops (struct align *a)
{
  const struct storage_ops *inner = a->inner->ops;

  a->ops = align_ops;
  if (inner->pread_many == NULL)
    a->ops.pread_many = NULL;
  /* Of what fails nobody knows how far it was written: not past the end, for
   * A1, where that can't be.
   */
  if (inner->pwrite_many == NULL || !a->inner->fixed_size)
    a->ops.pwrite_many = NULL;
  if (a->storage.durable_runs == 0)
    a->ops.pwrite_durably = NULL;
  if (inner->pwritev == NULL)
    a->ops.pwritev = NULL;
  if (inner->flush == NULL)
    a->ops.flush = NULL;
  if (inner->resize == NULL)
    a->ops.resize = NULL;
  if (inner->extent == NULL)
    a->ops.extent = NULL;
  if (inner->hole == NULL)
    a->ops.hole = NULL;
  if (inner->prefetch == NULL)
    a->ops.prefetch = NULL;
  if (inner->zero == NULL)
    a->ops.zero = NULL;
  if (inner->allocate == NULL)
    a->ops.allocate = NULL;
  if (inner->stamp == NULL)
    a->ops.stamp = NULL;
  if (inner->identify == NULL)
    a->ops.identify = NULL;
  a->storage.ops = &a->ops;
}

struct storage *
storage_align_new (struct storage *inner, uint32_t block)
{
  struct align *a = calloc (1, sizeof *a);

  assert ((block & (block - 1)) == 0 && block <= ALIGN_MAX_BYTES / 2);
  if (a != NULL)
    a->storage.name = strdup (inner->name);
  if (a == NULL || a->storage.name == NULL) {
    error_set (ENOMEM, "%s: out of memory", inner->name);
    free (a);
    storage_close (inner);
    return NULL;
  }
  a->inner = inner;
  a->block = block;
  a->storage.size = atomic_load (&inner->size);
  a->storage.holes_not_zero = inner->holes_not_zero;
  a->storage.fixed_size = inner->fixed_size;
  a->storage.one_report = inner->one_report;
  if (inner->fixed_size)
    a->storage.durable_runs = inner->durable_runs;
  choose_ops (a);
  inflight_init (&a->changing);
  return &a->storage;
}
