/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "memory-storage.h"

#define HOLE_BLOCK 512

struct memory {
  struct storage storage;
  const uint8_t *data;
  uint64_t size;
  struct memory_control *control;
  struct memory_control none;
};

/* Count a call; true if it is one that fails. */
static bool
must_fail (struct memory_control *c)
{
  const uint64_t call = atomic_fetch_add (&c->calls, 1) + 1;

  if (c->fail_call == 0 || call < c->fail_call ||
      (call > c->fail_call && !c->fail_ever_after))
    return false;
  errno = c->fail_errno != 0 ? c->fail_errno : EIO;
  return true;
}

static ssize_t
memory_pread (struct storage *s, void *buf, size_t count, uint64_t offset)
{
  struct memory *m = (struct memory *) s;
  struct memory_control *c = m->control;
  const uint64_t nr = atomic_fetch_add (&c->preads, 1) + 1;

  if (must_fail (c))
    return -1;
  if (c->interrupt != 0 && nr % c->interrupt == 0) {
    errno = EINTR;
    return -1;
  }
  if (c->microseconds != 0)
    usleep (c->microseconds);
  if (offset >= m->size)
    return 0;
  if (count > m->size - offset)
    count = m->size - offset;
  if (c->short_reads != 0 && count > c->short_reads)
    count = c->short_reads;
  memcpy (buf, m->data + offset, count);
  atomic_fetch_add (&c->bytes, count);
  return count;
}

/* Whether the block that offset is in is a hole, and where it ends. */
static bool
is_hole (const struct memory *m, uint64_t offset, uint64_t *end)
{
  const uint64_t start = offset / HOLE_BLOCK * HOLE_BLOCK;
  uint64_t i;

  *end = start + HOLE_BLOCK;
  if (!m->control->holes)
    return false;
  for (i = start; i < *end && i < m->size; ++i) {
    if (m->data[i] != 0)
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

  atomic_fetch_add (&m->control->extents, 1);
  if (must_fail (m->control))
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

  atomic_fetch_add (&m->control->prefetches, 1);
}

static void
memory_close (struct storage *s)
{
  struct memory *m = (struct memory *) s;

  atomic_fetch_add (&m->control->closes, 1);
  free (m);
}

static const struct storage_ops memory_ops = {
  .pread = memory_pread,
  .extent = memory_extent,
  .prefetch = memory_prefetch,
  .close = memory_close,
};

struct storage *
memory_storage_new (const char *name, const void *data, uint64_t size,
                    struct memory_control *control)
{
  struct memory *m = calloc (1, sizeof *m);

  if (m == NULL)
    abort ();
  m->storage.ops = &memory_ops;
  m->storage.name = strdup (name);
  if (m->storage.name == NULL)
    abort ();
  m->control = control != NULL ? control : &m->none;
  m->storage.size = m->control->size != 0 ? m->control->size : size;
  m->data = data;
  m->size = size;
  return &m->storage;
}
