/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/check/repair-refcounts.h"
#include "qcow2/check/repair-snapshots.h"

/* Spec: Snapshots: fields of an entry, and of its extra data. */
#define ENTRY_ID_SIZE 12
#define ENTRY_NAME_SIZE 14
#define ENTRY_VM_STATE_SIZE 32
#define ENTRY_EXTRA_SIZE 36
#define EXTRA_DISK_SIZE 8
#define EXTRA_V3 16

#define FIELD_SNAPSHOTS_OFFSET 64

#define BUFFER_BYTES ((size_t) 512 << 10)
#define MAX_ENTRY \
  (QCOW2_SNAPSHOT_ENTRY_SIZE + QCOW2_MAX_SNAPSHOT_EXTRA + 2 * UINT16_MAX + 8)

_Static_assert (MAX_ENTRY <= BUFFER_BYTES, "an entry fits");

/* Entries being copied. */
struct copy {
  struct check *c;
  struct check_reader reader;
  uint64_t from;      /* offset of the next entry */
  uint8_t *buf;
  size_t used;
  uint64_t bytes;     /* of the new table, before those in buf */
  struct host_off to; /* the new table; 0: only count its bytes */
};

static int
empty_buffer (struct copy *x)
{
  const struct host_off at = { x->to.v + x->bytes };

  if (x->to.v != 0 && x->used > 0 &&
      storage_write (x->c->storage, x->buf, x->used, at) == -1)
    return -1;
  x->bytes += x->used;
  x->used = 0;
  return 0;
}

/* The size of the new entry's extra data. */
static uint32_t
extra_wanted (const struct check *c, uint32_t extra)
{
  if (c->h.version >= 3 && extra < EXTRA_V3)
    return EXTRA_V3;
  return extra > QCOW2_MAX_SNAPSHOT_EXTRA ? QCOW2_MAX_SNAPSHOT_EXTRA : extra;
}

/* Add the extra data that an entry of version 3 lacks. */
static void
complete_extra (const struct check *c, uint8_t *entry, uint32_t extra)
{
  uint8_t *p = entry + QCOW2_SNAPSHOT_ENTRY_SIZE;

  if (extra < EXTRA_DISK_SIZE)
    put_be64 (p, get_be32 (entry + ENTRY_VM_STATE_SIZE));
  if (extra < EXTRA_V3)
    put_be64 (p + EXTRA_DISK_SIZE, c->h.disk_size);
}

/* The check has read the table before, so it ends within its limit. */
static int
copy_entry (struct copy *x)
{
  struct check *c = x->c;
  uint8_t *entry = x->buf + x->used;
  uint32_t extra, wanted, kept;
  size_t names;

  if (check_read_piece (c, &x->reader, entry, QCOW2_SNAPSHOT_ENTRY_SIZE,
                        (struct host_off) { x->from }) == -1)
    return -1;
  extra = get_be32 (entry + ENTRY_EXTRA_SIZE);
  wanted = extra_wanted (c, extra);
  kept = wanted < extra ? wanted : extra;
  names = get_be16 (entry + ENTRY_ID_SIZE) +
    get_be16 (entry + ENTRY_NAME_SIZE);
  x->from += QCOW2_SNAPSHOT_ENTRY_SIZE;
  x->used += QCOW2_SNAPSHOT_ENTRY_SIZE;
  if (check_read_piece (c, &x->reader, x->buf + x->used, kept,
                        (struct host_off) { x->from }) == -1 ||
      check_read_piece (c, &x->reader, x->buf + x->used + wanted, names,
                        (struct host_off) { x->from + extra }) == -1)
    return -1;
  if (wanted > extra)
    complete_extra (c, entry, extra);
  put_be32 (entry + ENTRY_EXTRA_SIZE, wanted);
  x->from += extra + names;
  x->used += wanted + names;
  return 0;
}

/* Entries are aligned to 8 bytes; the end of the last one is not. */
static int
copy_table (struct copy *x)
{
  uint32_t i;

  x->from = x->c->h.snapshots_offset.v;
  x->reader.bytes = 0;
  x->bytes = x->used = 0;
  for (i = 0; i < x->c->h.nr_snapshots; ++i) {
    x->from = (x->from + 7) & ~UINT64_C (7);
    while (x->used % 8 != 0)
      x->buf[x->used++] = 0;
    if (x->used > BUFFER_BYTES - MAX_ENTRY && empty_buffer (x) == -1)
      return -1;
    if (copy_entry (x) == -1)
      return -1;
  }
  return empty_buffer (x);
}

/* Reserve clusters after everything in use, with durable refcounts of 1. */
static int
reserve (struct repair *r, uint64_t bytes)
{
  struct check *c = &r->c;

  if (repair_survey (r) == -1)
    return -1;
  c->reserved.first = r->highest;
  c->reserved.nr = (bytes + c->h.cluster_size - 1) >> c->h.cluster_bits;
  repair_pretend_size (r, (c->reserved.first + c->reserved.nr) <<
                       c->h.cluster_bits);
  repair_recount (r);
  if (repair_survey (r) == -1 ||
      (r->rebuild ? repair_rebuild (r) : repair_raise (r)) == -1)
    return -1;
  return repair_flush (r);
}

/* The header's field does not straddle a sector. */
static int
switch_header (struct check *c, struct host_off table)
{
  const struct host_off field = { FIELD_SNAPSHOTS_OFFSET };
  uint8_t buf[8];

  put_be64 (buf, table.v);
  if (storage_flush (c->storage) == -1 ||
      storage_write (c->storage, buf, sizeof buf, field) == -1)
    return -1;
  return storage_flush (c->storage);
}

static int
move (struct repair *r, struct copy *x)
{
  if (copy_table (x) == -1 || reserve (r, x->bytes) == -1)
    return -1;
  x->to.v = r->c.reserved.first << r->c.h.cluster_bits;
  if (copy_table (x) == -1)
    return -1;
  return switch_header (&r->c, x->to);
}

int
repair_snapshots (struct repair *r)
{
  struct copy x = { .c = &r->c };
  int ret;

  x.buf = malloc (BUFFER_BYTES);
  if (x.buf == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  ret = move (r, &x);
  free (x.buf);
  return ret;
}
