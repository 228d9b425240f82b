/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "gate.h"
#include "must-have.h"
#include "random.h"
#include "turns.h"

#define SECTOR GATE_SECTOR
#define MAX_SECTORS (GATE_MAX_BYTES / SECTOR)

static struct {
  const struct memory_disk *disk;
  uint8_t bytes[GATE_MAX_BYTES];
  uint64_t size, most; /* most: that it ever was */
  bool is_pending[MAX_SECTORS];
  uint32_t pending[MAX_SECTORS]; /* may name one that no longer is */
  uint32_t nr_pending;

  /* Those of them that a crash is to leave, and what is durable instead. */
  uint32_t *landed;
  uint8_t *saved;
  uint32_t nr_landed;
} durable;

struct gate {
  struct storage storage;
  struct storage *inner;
};

static struct storage *
inner_of (struct storage *s)
{
  return ((struct gate *) s)->inner;
}

static void
make_pending (uint64_t offset, uint64_t count)
{
  uint64_t i;

  if (offset + count > GATE_MAX_BYTES)
    abort ();
  for (i = offset / SECTOR; i * SECTOR < offset + count; ++i) {
    if (durable.is_pending[i])
      continue;
    durable.is_pending[i] = true;
    /* One that was made durable by itself is in the list already. */
    if (durable.nr_pending == MAX_SECTORS)
      abort ();
    durable.pending[durable.nr_pending++] = i;
  }
}

static void
make_durable (uint64_t sector)
{
  if (!durable.is_pending[sector])
    return;
  durable.is_pending[sector] = false;
  memcpy (durable.bytes + sector * SECTOR,
          durable.disk->data + sector * SECTOR, SECTOR);
}

static void
set_durable_size (uint64_t size)
{
  durable.size = size;
  if (durable.most < size)
    durable.most = size;
}

static ssize_t
gate_pread (struct storage *s, void *buf, size_t count, uint64_t offset)
{
  struct storage *inner = inner_of (s);
  ssize_t r;

  turns_point ("pread");
  turns_hold ();
  r = inner->ops->pread (inner, buf, count, offset);
  turns_release ();
  turns_point ("pread done");
  return r;
}

static ssize_t
gate_pwritev (struct storage *s, const struct iovec *iov, int nr,
              uint64_t offset, bool is_durable)
{
  struct storage *inner = inner_of (s);
  uint64_t i;
  ssize_t r;

  turns_point ("pwritev");
  turns_hold ();
  r = inner->ops->pwritev (inner, iov, nr, offset, is_durable);
  if (r > 0)
    make_pending (offset, r);
  for (i = offset / SECTOR; r > 0 && is_durable && i * SECTOR < offset + r;
       ++i)
    make_durable (i);
  turns_release ();
  turns_point ("pwritev done");
  return r;
}

static int
gate_flush (struct storage *s)
{
  uint32_t i;

  turns_point ("flush");
  for (i = 0; i < durable.nr_pending; ++i)
    make_durable (durable.pending[i]);
  durable.nr_pending = 0;
  set_durable_size (atomic_load (&durable.disk->size));
  turns_point ("flush done");
  return 0;
}

static int
gate_zero (struct storage *s, uint64_t offset, uint64_t count, bool punch)
{
  struct storage *inner = inner_of (s);
  int r;

  turns_point (punch ? "punch" : "zero");
  turns_hold ();
  r = inner->ops->zero (inner, offset, count, punch);
  make_pending (offset, count);
  turns_release ();
  turns_point (punch ? "punch done" : "zero done");
  return r;
}

static int
gate_allocate (struct storage *s, uint64_t offset, uint64_t count)
{
  struct storage *inner = inner_of (s);

  turns_point ("allocate");
  return inner->ops->allocate (inner, offset, count);
}

static int
gate_resize (struct storage *s, uint64_t size)
{
  struct storage *inner = inner_of (s);
  int r;

  turns_point ("resize");
  turns_hold ();
  r = inner->ops->resize (inner, size);
  turns_release ();
  turns_point ("resize done");
  return r;
}

static void
gate_close (struct storage *s)
{
  storage_close (inner_of (s));
  free (s);
}

static const struct storage_ops gate_ops = {
  .pread = gate_pread,
  .pwritev = gate_pwritev,
  .flush = gate_flush,
  .zero = gate_zero,
  .allocate = gate_allocate,
  .resize = gate_resize,
  .close = gate_close,
};

struct storage *
gate_new (struct storage *inner)
{
  struct gate *g = calloc (1, sizeof *g);

  if (g == NULL)
    abort ();
  g->storage.ops = &gate_ops;
  g->storage.name = strdup (inner->name);
  if (g->storage.name == NULL)
    abort ();
  g->storage.size = atomic_load (&inner->size);
  g->inner = inner;
  return &g->storage;
}

/* --------------------------------------------------------- what is durable */

static void
forget_durable (void)
{
  uint32_t i;

  for (i = 0; i < durable.nr_pending; ++i)
    durable.is_pending[durable.pending[i]] = false;
  memset (durable.bytes, 0, durable.most);
  durable.most = durable.nr_pending = 0;
}

struct storage *
gate_new_disk (struct storage *inner, const struct memory_disk *disk)
{
  const uint64_t size = atomic_load (&disk->size);

  if (size > GATE_MAX_BYTES)
    abort ();
  forget_durable ();
  durable.disk = disk;
  memcpy (durable.bytes, disk->data, size);
  set_durable_size (size);
  return gate_new (inner);
}

const uint8_t *
gate_durable (uint64_t *size)
{
  *size = durable.size;
  return durable.bytes;
}

static void
land (uint32_t sector)
{
  uint8_t *p = durable.bytes + (uint64_t) sector * SECTOR;

  memcpy (durable.saved + (uint64_t) durable.nr_landed * SECTOR, p, SECTOR);
  memcpy (p, durable.disk->data + (uint64_t) sector * SECTOR, SECTOR);
  durable.landed[durable.nr_landed++] = sector;
}

const uint8_t *
gate_torn (uint64_t seed, uint64_t *size)
{
  const uint64_t now = atomic_load (&durable.disk->size);
  const uint32_t nr = durable.nr_pending;
  uint32_t i;

  durable.landed = must_have (malloc (nr * sizeof durable.landed[0] + 1));
  durable.saved = must_have (malloc ((uint64_t) nr * SECTOR + 1));
  durable.nr_landed = 0;
  for (i = 0; i < nr; ++i) {
    if (durable.is_pending[durable.pending[i]] && random_next (&seed) & 1)
      land (durable.pending[i]);
  }
  *size = now > durable.size ? now : durable.size;
  return durable.bytes;
}

void
gate_undo_torn (void)
{
  while (durable.nr_landed-- > 0)
    memcpy (durable.bytes + (uint64_t) durable.landed[durable.nr_landed] *
            SECTOR, durable.saved + (uint64_t) durable.nr_landed * SECTOR,
            SECTOR);
  free (durable.landed);
  free (durable.saved);
}
