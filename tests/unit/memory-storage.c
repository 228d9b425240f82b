/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "keep-maps.h"
#include "memory-storage.h"
#include "storage/align.h"

#define HOLE_BLOCK 512
#define SECTOR 512

struct memory {
  struct storage storage;
  const uint8_t *data;      /* of a storage for reading ... */
  uint64_t size;
  struct memory_disk *disk; /* ... or of one that can be written */
  struct memory_control *control;
  struct memory_control none;
  uint32_t block; /* 0: any bytes */
};

/* ------------------------------------------------------------------ blocks */

void
memory_check_aligned (uint32_t block, const void *buf, uint64_t offset,
                      uint64_t count)
{
  if (block != 0 && ((uintptr_t) buf | offset | count) % block != 0)
    abort ();
}

void
memory_check_pieces (uint32_t block, const struct iovec *iov, int nr,
                     uint64_t offset)
{
  memory_check_aligned (block, NULL, offset, 0);
  for (; nr > 0; ++iov, --nr)
    memory_check_aligned (block, iov->iov_base, 0, iov->iov_len);
}

struct storage *
memory_with_blocks (struct storage *s, uint32_t *block)
{
  const char *value = getenv (MEMORY_BLOCK_VARIABLE);

  *block = value != NULL ? atoi (value) : 0;
  if (*block == 0)
    return s;
  s = storage_align_new (s, *block);
  if (s == NULL)
    abort ();
  return s;
}

/* --------------------------------------------------------------- the calls */

void
memory_log_clear (struct memory_log *l)
{
  pthread_mutex_lock (&l->lock);
  l->nr = 0;
  pthread_mutex_unlock (&l->lock);
}

void
memory_log_free (struct memory_log *l)
{
  free (l->call);
  l->call = NULL;
  l->nr = l->capacity = 0;
}

static void
add_to_log (struct memory_log *l, const struct memory_call *call)
{
  pthread_mutex_lock (&l->lock);
  if (l->nr == l->capacity) {
    l->capacity = 2 * l->capacity + 64;
    l->call = realloc (l->call, l->capacity * sizeof *call);
    if (l->call == NULL)
      abort ();
  }
  l->call[l->nr++] = *call;
  pthread_mutex_unlock (&l->lock);
}

void
memory_fail (struct memory_control *c, unsigned kinds, uint64_t call, int err)
{
  c->fail_kinds = kinds;
  c->fail_call = call;
  c->fail_ever_after = false;
  c->fail_errno = err;
  atomic_store (&c->counted, 0);
  atomic_store (&c->failed, 0);
}

void
memory_fail_ever_after (struct memory_control *c, unsigned kinds,
                        uint64_t call, int err)
{
  memory_fail (c, kinds, call, err);
  c->fail_ever_after = true;
}

void
memory_fail_no_more (struct memory_control *c)
{
  memory_fail (c, 0, 0, 0);
}

/* Count a call; true if it is one that fails. */
static bool
must_fail (struct memory_control *c, unsigned kind)
{
  uint64_t call = atomic_fetch_add (&c->calls, 1) + 1;

  if (c->fail_kinds != 0) {
    if (!(c->fail_kinds & kind))
      return false;
    call = atomic_fetch_add (&c->counted, 1) + 1;
  }
  if (c->fail_call == 0 || call < c->fail_call ||
      (call > c->fail_call && !c->fail_ever_after))
    return false;
  atomic_fetch_add (&c->failed, 1);
  errno = c->fail_errno != 0 ? c->fail_errno : EIO;
  return true;
}

/* A call begins: true if it fails. */
static bool
begin (struct memory_control *c, struct memory_call call)
{
  if (c->hook != NULL)
    c->hook (c->opaque, &call);
  if (c->log != NULL && (call.kind & MEMORY_CHANGES))
    add_to_log (c->log, &call);
  return must_fail (c, call.kind);
}

/* ------------------------------------------------------------------- bytes */

static inline uint64_t
memory_size (const struct memory *m)
{
  return m->disk != NULL ? atomic_load (&m->disk->size) : m->size;
}

static void
copy (void *to, const void *from, size_t count)
{
  if (from == NULL)
    memset (to, 0, count);
  else
    memcpy (to, from, count);
}

/* Copy between a buffer and the disk, one sector after the other; from NULL:
 * zeros.  `at' is the offset of the part that is on the disk.
 */
static void
copy_sectors (struct memory_disk *d, uint64_t at, uint8_t *to,
              const uint8_t *from, uint64_t count)
{
  while (count > 0) {
    const uint64_t left = SECTOR - at % SECTOR;
    const uint64_t n = left < count ? left : count;
    pthread_mutex_t *lock = &d->lock[at / SECTOR % MEMORY_DISK_LOCKS];

    pthread_mutex_lock (lock);
    copy (to, from, n);
    pthread_mutex_unlock (lock);
    to += n;
    if (from != NULL)
      from += n;
    at += n;
    count -= n;
  }
}

/* The size is at least this from now on. */
static void
grow (struct memory_disk *d, uint64_t size)
{
  uint64_t old = atomic_load (&d->size);

  while (old < size && !atomic_compare_exchange_weak (&d->size, &old, size))
    ;
}

/* ------------------------------------------------------------------- space */

/* Have space for a block; false if there is none. */
static bool
take_block (const struct memory *m, uint64_t block)
{
  struct memory_disk *d = m->disk;
  const uint64_t room = m->control->room;

  if (atomic_exchange (&d->in_use[block], 1) != 0)
    return true;
  if (atomic_fetch_add (&d->blocks, 1) < room || room == 0)
    return true;
  atomic_store (&d->in_use[block], 0);
  atomic_fetch_sub (&d->blocks, 1);
  return false;
}

/* How many of these bytes there is space for; it is theirs now. */
static uint64_t
take_space (const struct memory *m, uint64_t offset, uint64_t count)
{
  uint64_t at = offset;

  while (at < offset + count && take_block (m, at / MEMORY_DISK_BLOCK))
    at = (at / MEMORY_DISK_BLOCK + 1) * MEMORY_DISK_BLOCK;
  if (at > offset + count)
    at = offset + count;
  return at - offset;
}

/* The whole blocks within a range have none any more. */
static void
give_space (struct memory_disk *d, uint64_t offset, uint64_t count)
{
  uint64_t i = (offset + MEMORY_DISK_BLOCK - 1) / MEMORY_DISK_BLOCK;

  for (; i < (offset + count) / MEMORY_DISK_BLOCK; ++i)
    atomic_fetch_sub (&d->blocks, atomic_exchange (&d->in_use[i], 0));
}

/* How large it may become. */
static uint64_t
limit (const struct memory *m)
{
  const struct memory_control *c = m->control;

  if (c->fixed)
    return atomic_load (&m->disk->size);
  return c->limit != 0 ? c->limit : MEMORY_DISK_MAX;
}

/* ----------------------------------------------------------------- reading */

static ssize_t
memory_pread (struct storage *s, void *buf, size_t count, uint64_t offset)
{
  struct memory *m = (struct memory *) s;
  struct memory_control *c = m->control;
  const uint64_t nr = atomic_fetch_add (&c->preads, 1) + 1;
  uint64_t size;

  memory_check_aligned (m->block, buf, offset, count);
  if (begin (c, (struct memory_call) { MEMORY_READ, offset, count, 0, 0 }))
    return -1;
  if (c->interrupt != 0 && nr % c->interrupt == 0) {
    errno = EINTR;
    return -1;
  }
  if (c->microseconds != 0)
    usleep (c->microseconds);
  size = memory_size (m);
  if (offset >= size)
    return 0;
  if (count > size - offset)
    count = size - offset;
  if (c->short_reads != 0 && count > c->short_reads)
    count = c->short_reads;
  if (m->disk != NULL)
    copy_sectors (m->disk, offset, buf, m->disk->data + offset, count);
  else
    memcpy (buf, m->data + offset, count);
  atomic_fetch_add (&c->bytes, count);
  return count;
}

static int
memory_pread_many (struct storage *s, const struct storage_run *runs,
                   unsigned nr)
{
  struct memory_control *c = ((struct memory *) s)->control;
  unsigned i;

  atomic_fetch_add (&c->together, 1);
  if (c->fail_together) {
    errno = EIO;
    return -1;
  }
  for (i = 0; i < nr; ++i) {
    const struct iovec *iov = runs[i].iov;
    const ssize_t r = memory_pread (s, iov->iov_base, iov->iov_len,
                                    runs[i].offset.v);

    if (r == -1)
      return -1;
    memset ((uint8_t *) iov->iov_base + r, 0, iov->iov_len - r);
  }
  return 0;
}

/* Whether the block that offset is in is a hole, and where it ends. */
static bool
is_hole (const struct memory *m, uint64_t offset, uint64_t *end)
{
  const uint64_t start = offset / HOLE_BLOCK * HOLE_BLOCK;
  const uint64_t size = memory_size (m);
  uint8_t block[HOLE_BLOCK] = { 0 };
  uint64_t i;

  *end = start + HOLE_BLOCK;
  if (!m->control->holes)
    return false;
  if (m->disk != NULL)
    copy_sectors (m->disk, start, block, m->disk->data + start, HOLE_BLOCK);
  else if (start < size)
    memcpy (block, m->data + start,
            size - start < HOLE_BLOCK ? size - start : HOLE_BLOCK);
  for (i = 0; i < HOLE_BLOCK; ++i) {
    if (block[i] != 0)
      return false;
  }
  return true;
}

static int
memory_extent (struct storage *s, uint64_t offset, uint64_t count,
               bool *hole, uint64_t *length)
{
  struct memory *m = (struct memory *) s;
  uint64_t end, next;

  memory_check_aligned (m->block, NULL, offset, count);
  atomic_fetch_add (&m->control->extents, 1);
  if (begin (m->control, (struct memory_call) { MEMORY_EXTENT, offset, count,
                                                0, 0 }))
    return -1;
  *hole = is_hole (m, offset, &end);
  while (end < offset + count && is_hole (m, end, &next) == *hole)
    end = next;
  *length = end - offset < count ? end - offset : count;
  return 0;
}

static void
memory_prefetch (struct storage *s, uint64_t offset, uint64_t count)
{
  struct memory *m = (struct memory *) s;

  memory_check_aligned (m->block, NULL, offset, count);
  atomic_fetch_add (&m->control->prefetches, 1);
}

/* ----------------------------------------------------------------- writing */

static uint64_t
iov_bytes (const struct iovec *iov, int nr)
{
  uint64_t count = 0;

  while (nr > 0)
    count += iov[--nr].iov_len;
  return count;
}

/* How much of a write is done; 0 with errno set if none of it can be. */
static uint64_t
writable (const struct memory *m, uint64_t offset, uint64_t count)
{
  const struct memory_control *c = m->control;
  const uint64_t max = limit (m);

  if (offset >= max) {
    errno = offset >= MEMORY_DISK_MAX ? EFBIG : ENOSPC;
    return 0;
  }
  if (count > max - offset)
    count = max - offset;
  if (c->short_writes != 0 && count > c->short_writes)
    count = c->short_writes;
  count = take_space (m, offset, count);
  if (count == 0)
    errno = ENOSPC;
  return count;
}

static ssize_t
memory_pwritev (struct storage *s, const struct iovec *iov, int nr,
                uint64_t offset, bool durable)
{
  struct memory *m = (struct memory *) s;
  struct memory_control *c = m->control;
  uint64_t count = iov_bytes (iov, nr), done = 0;

  memory_check_pieces (m->block, iov, nr, offset);
  atomic_fetch_add (&c->writes, 1);
  if (begin (c, (struct memory_call) { MEMORY_WRITE, offset, count, durable,
                                       0 }))
    return -1;
  count = writable (m, offset, count);
  if (count == 0)
    return -1;
  for (; done < count; ++iov) {
    const uint64_t n = iov->iov_len < count - done ? iov->iov_len
      : count - done;

    copy_sectors (m->disk, offset + done, m->disk->data + offset + done,
                  iov->iov_base, n);
    done += n;
  }
  grow (m->disk, offset + done);
  atomic_fetch_add (&c->written, done);
  return done;
}

static int
memory_flush (struct storage *s)
{
  struct memory *m = (struct memory *) s;
  struct memory_control *c = m->control;

  atomic_fetch_add (&c->flushes, 1);
  if (begin (c, (struct memory_call) { .kind = MEMORY_FLUSH }))
    return -1;
  if (c->flush_microseconds != 0)
    usleep (c->flush_microseconds);
  return 0;
}

/* A flush among the writes is as good as one before or after them. */
static int
memory_pwrite_durably (struct storage *s, const struct storage_run *runs,
                       unsigned nr, bool all)
{
  unsigned i;

  for (i = 0; i < nr; ++i) {
    const ssize_t count = iov_bytes (runs[i].iov, runs[i].nr);

    if (memory_pwritev (s, runs[i].iov, runs[i].nr, runs[i].offset.v,
                        true) != count)
      return -1;
  }
  return all ? memory_flush (s) : 0;
}

static int
memory_zero (struct storage *s, uint64_t offset, uint64_t count, bool punch)
{
  struct memory *m = (struct memory *) s;
  struct memory_control *c = m->control;

  memory_check_aligned (m->block, NULL, offset, count);
  atomic_fetch_add (&c->zeros, 1);
  if (punch)
    atomic_fetch_add (&c->punches, 1);
  if (begin (c, (struct memory_call) { MEMORY_ZERO, offset, count, 0, punch }))
    return -1;
  if (c->no_zero) {
    errno = EOPNOTSUPP;
    return -1;
  }
  if (offset + count > memory_size (m)) /* never past the end */
    abort ();
  copy_sectors (m->disk, offset, m->disk->data + offset, NULL, count);
  if (punch)
    give_space (m->disk, offset, count);
  else if (take_space (m, offset, count) < count) {
    errno = ENOSPC;
    return -1;
  }
  return 0;
}

static int
memory_allocate (struct storage *s, uint64_t offset, uint64_t count)
{
  struct memory *m = (struct memory *) s;

  memory_check_aligned (m->block, NULL, offset, count);
  if (begin (m->control, (struct memory_call) { MEMORY_ALLOCATE, offset,
                                                count, 0, 0 }))
    return -1;
  if (take_space (m, offset, count) < count) {
    errno = ENOSPC;
    return -1;
  }
  return 0;
}

static int
memory_resize (struct storage *s, uint64_t size)
{
  struct memory *m = (struct memory *) s;
  struct memory_disk *d = m->disk;
  struct memory_control *c = m->control;
  uint64_t old;

  memory_check_aligned (m->block, NULL, size, 0);
  atomic_fetch_add (&c->resizes, 1);
  if (begin (c, (struct memory_call) { MEMORY_RESIZE, size, 0, 0, 0 }))
    return -1;
  old = atomic_load (&d->size);
  if (size > limit (m)) {
    errno = ENOSPC;
    return -1;
  }
  if (c->fixed)
    return 0;
  if (size < old) {
    copy_sectors (d, size, d->data + size, NULL, old - size);
    give_space (d, size, old - size + MEMORY_DISK_BLOCK);
  }
  atomic_store (&d->size, size);
  return 0;
}

/* The size that the bytes have now, whoever has made them longer. */
static int
memory_stamp (struct storage *s, struct storage_stamp *stamp)
{
  stamp->size = memory_size ((struct memory *) s);
  stamp->born.tv_sec = atomic_load (&((struct memory *) s)->control->born);
  return 0;
}

static void
memory_close (struct storage *s)
{
  struct memory *m = (struct memory *) s;

  atomic_fetch_add (&m->control->closes, 1);
  free (m);
}

static const struct storage_ops readonly_ops = {
  .pread = memory_pread,
  .extent = memory_extent,
  .prefetch = memory_prefetch,
  .close = memory_close,
};

static const struct storage_ops together_ops = {
  .pread = memory_pread,
  .pread_many = memory_pread_many,
  .extent = memory_extent,
  .prefetch = memory_prefetch,
  .close = memory_close,
};

static const struct storage_ops memory_ops = {
  .pread = memory_pread,
  .extent = memory_extent,
  .prefetch = memory_prefetch,
  .pwritev = memory_pwritev,
  .pwrite_durably = memory_pwrite_durably,
  .flush = memory_flush,
  .zero = memory_zero,
  .allocate = memory_allocate,
  .resize = memory_resize,
  .stamp = memory_stamp,
  .close = memory_close,
};

static struct memory *
new_memory (const struct storage_ops *ops, const char *name, uint64_t size,
            struct memory_control *control)
{
  struct memory *m = calloc (1, sizeof *m);

  if (m == NULL)
    abort ();
  m->storage.ops = ops;
  m->storage.name = strdup (name);
  if (m->storage.name == NULL)
    abort ();
  m->control = control != NULL ? control : &m->none;
  m->storage.size = m->control->size != 0 ? m->control->size : size;
  m->storage.fixed_size = m->control->fixed;
  m->storage.durable_runs = m->control->durable_runs;
  m->size = size;
  return m;
}

struct storage *
memory_storage_new (const char *name, const void *data, uint64_t size,
                    struct memory_control *control)
{
  const bool together = control != NULL && control->reads_together;
  struct memory *m = new_memory (together ? &together_ops : &readonly_ops, name,
                                 size, control);

  keep_maps ();
  m->data = data;
  return memory_with_blocks (&m->storage, &m->block);
}

static void *
reserve (uint64_t bytes)
{
  void *p = mmap (NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  if (p == MAP_FAILED)
    abort ();
  return p;
}

#define BLOCKS (MEMORY_DISK_MAX / MEMORY_DISK_BLOCK + 1)

/* Memory of a disk that is gone: mapping so much anew costs sanitizers a lot
 * of time.
 */
static struct {
  pthread_mutex_t lock;
  uint8_t *data;
  _Atomic uint8_t *in_use;
} spare = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void
take_memory (struct memory_disk *d)
{
  pthread_mutex_lock (&spare.lock);
  d->data = spare.data;
  d->in_use = spare.in_use;
  spare.data = NULL;
  pthread_mutex_unlock (&spare.lock);
  if (d->data == NULL) {
    d->data = reserve (MEMORY_DISK_MAX);
    d->in_use = reserve (BLOCKS);
  }
}

/* Only blocks in use hold anything. */
static void
clear_memory (struct memory_disk *d)
{
  uint64_t i;

  for (i = 0; i < BLOCKS && atomic_load (&d->blocks) > 0; ++i) {
    if (!d->in_use[i])
      continue;
    memset (d->data + i * MEMORY_DISK_BLOCK, 0, MEMORY_DISK_BLOCK);
    d->in_use[i] = 0;
    atomic_fetch_sub (&d->blocks, 1);
  }
}

static void
give_memory (struct memory_disk *d)
{
  clear_memory (d);
  pthread_mutex_lock (&spare.lock);
  if (spare.data == NULL) {
    spare.data = d->data;
    spare.in_use = d->in_use;
    d->data = NULL;
  }
  pthread_mutex_unlock (&spare.lock);
  if (d->data != NULL) {
    munmap (d->data, MEMORY_DISK_MAX);
    munmap ((void *) d->in_use, BLOCKS);
  }
}

void
memory_disk_init (struct memory_disk *d, const void *bytes, uint64_t size)
{
  const uint64_t blocks = (size + MEMORY_DISK_BLOCK - 1) / MEMORY_DISK_BLOCK;
  uint64_t i;

  if (size > MEMORY_DISK_MAX)
    abort ();
  keep_maps ();
  take_memory (d);
  if (bytes != NULL)
    memcpy (d->data, bytes, size);
  atomic_init (&d->size, size);
  for (i = 0; i < blocks; ++i)
    atomic_store (&d->in_use[i], 1);
  atomic_init (&d->blocks, blocks);
  for (i = 0; i < MEMORY_DISK_LOCKS; ++i)
    pthread_mutex_init (&d->lock[i], NULL);
}

void
memory_disk_free (struct memory_disk *d)
{
  unsigned i;

  give_memory (d);
  for (i = 0; i < MEMORY_DISK_LOCKS; ++i)
    pthread_mutex_destroy (&d->lock[i]);
}

struct storage *
memory_disk_open (struct memory_disk *d, const char *name,
                  struct memory_control *control)
{
  struct memory *m = new_memory (&memory_ops, name, atomic_load (&d->size),
                                 control);

  m->disk = d;
  return memory_with_blocks (&m->storage, &m->block);
}
