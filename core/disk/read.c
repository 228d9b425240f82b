/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "disk/read.h"

static int
read_run (const struct layer *layer, const struct run *run, void *buf,
          struct guest_off offset)
{
  switch (run->kind) {
  case RUN_ZERO_PLAIN:
  case RUN_ZERO_ALLOC:
    memset (buf, 0, run->length);
    return 0;
  case RUN_DATA:
    return storage_read (layer->data, buf, run->length, run->host);
  case RUN_GUEST_DATA:
    return layer->format->read_guest_data (layer, run, buf, offset);
  case RUN_COMPRESSED:
    return layer->format->read_compressed (layer, run, buf, offset);
  case RUN_DAMAGED:
    return layer_damaged (layer, run->host);
  case RUN_UNALLOCATED:
    break;
  }
  abort ();
}

/* So many compressed clusters, and bytes of them, are read together. */
#define MAX_TOGETHER 32
#define MAX_TOGETHER_BYTES (UINT64_C (2) << 20)

/* Compressed clusters of one layer, one after the other on the disk. */
struct together {
  struct run run[MAX_TOGETHER];
  unsigned nr;
  uint64_t bytes;
};

/* Find those of the next count bytes, of which the first is there already. */
static void
find_together (const struct layer *layer, const struct layer *owner,
               uint64_t count, struct guest_off offset, struct together *t)
{
  const struct layer *other;

  while (t->nr < MAX_TOGETHER && t->run[t->nr - 1].length < count) {
    struct run *next = &t->run[t->nr];

    offset.v += t->run[t->nr - 1].length;
    count -= t->run[t->nr - 1].length;
    if (layer_lookup (layer, offset, count, next, &other) == -1 ||
        other != owner || next->kind != RUN_COMPRESSED ||
        t->bytes + next->compressed_size > MAX_TOGETHER_BYTES)
      break;
    t->bytes += next->compressed_size;
    t->nr++;
  }
}

/* Read the bytes of all of them.  Returns their memory; or NULL, when each has to
 * be read by itself, which finds out why.
 */
static uint8_t *
read_together (const struct layer *owner, struct together *t)
{
  struct storage_run runs[MAX_TOGETHER];
  struct iovec iov[MAX_TOGETHER];
  uint8_t *bytes = malloc (t->bytes), *at = bytes;
  unsigned i;

  if (bytes == NULL)
    return NULL;
  for (i = 0; i < t->nr; at += t->run[i++].compressed_size) {
    iov[i] = (struct iovec) { at, t->run[i].compressed_size };
    runs[i] = (struct storage_run) { &iov[i], 1, t->run[i].host };
    t->run[i].bytes = at;
  }
  if (storage_read_many (owner->tables, runs, t->nr) == 0)
    return bytes;
  free (bytes);
  for (i = 0; i < t->nr; ++i)
    t->run[i].bytes = NULL;
  return NULL;
}

/* Read the compressed cluster that a run is in, and as many as follow it within
 * count bytes.  run->length is then that of all.  The caller is in the epoch.
 */
static int
read_compressed_runs (const struct layer *layer, const struct layer *owner,
                      struct run *run, char *buf, uint64_t count,
                      struct guest_off offset)
{
  struct together t = { .run[0] = *run, .nr = 1, .bytes = run->compressed_size };
  uint8_t *bytes = NULL;
  unsigned i;
  int r = 0;

  find_together (layer, owner, count, offset, &t);
  if (t.nr > 1)
    bytes = read_together (owner, &t);
  for (i = 0, run->length = 0; r == 0 && i < t.nr; ++i) {
    const struct guest_off at = { offset.v + run->length };

    r = read_run (owner, &t.run[i], buf + run->length, at);
    run->length += t.run[i].length;
  }
  free (bytes);
  return r;
}

int
layer_read (const struct layer *layer, void *buf, size_t count,
            struct guest_off offset)
{
  struct epoch *epoch = layer->shared->epoch;
  char *p = buf;

  while (count > 0) {
    const unsigned token = epoch_enter (epoch);
    const struct layer *owner;
    struct run run;
    int r;

    r = layer_lookup (layer, offset, count, &run, &owner);
    if (r == 0 && run.kind == RUN_COMPRESSED &&
        storage_reads_together (owner->tables))
      r = read_compressed_runs (layer, owner, &run, p, count, offset);
    else if (r == 0)
      r = read_run (owner, &run, p, offset);
    epoch_leave (epoch, token);
    if (r == -1) /* there may be no run */
      return -1;
    p += run.length;
    offset.v += run.length;
    count -= run.length;
  }
  return 0;
}

void
layer_prefetch (const struct layer *layer, uint64_t count,
                struct guest_off offset)
{
  struct epoch *epoch = layer->shared->epoch;
  const unsigned token = epoch_enter (epoch);

  while (count > 0) {
    const struct layer *owner;
    struct run run;

    if (layer_lookup (layer, offset, count, &run, &owner) == -1)
      break;
    if (run.kind == RUN_DATA || run.kind == RUN_GUEST_DATA)
      storage_prefetch (owner->data, run.host, run.length);
    else if (run.kind == RUN_COMPRESSED)
      storage_prefetch (owner->tables, run.host, run.compressed_size);
    offset.v += run.length;
    count -= run.length;
  }
  epoch_leave (epoch, token);
}
