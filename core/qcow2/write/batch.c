/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stddef.h>

#include "qcow2/write/batch.h"

/* So many sectors are written together at most. */
#define SECTORS_AT_ONCE 256

/* Make a run of the contiguous sectors that start at s, nr at most.  Returns
 * how many.
 */
static size_t
make_run (struct cache_sector *s, size_t nr, struct iovec *iov,
          struct storage_run *run)
{
  size_t i;

  for (i = 0; i < nr && i < STORAGE_MAX_IOV; ++i) {
    if (s[i].offset.v != s[0].offset.v + i * CACHE_SECTOR)
      break;
    iov[i].iov_base = s[i].data;
    iov[i].iov_len = CACHE_SECTOR;
  }
  *run = (struct storage_run) {
    .iov = iov, .nr = i, .offset = s[0].offset,
  };
  return i;
}

/* What is written together. */
struct together {
  struct storage_run runs[STORAGE_MAX_RUNS];
  unsigned nr;
  struct iovec iov[SECTORS_AT_ONCE];
};

/* Make runs of the first of these sectors, as many as go together.  Returns how
 * many.
 */
static size_t
make_runs (struct cache_sector *s, size_t nr, struct together *t)
{
  size_t done = 0;

  t->nr = 0;
  if (nr > SECTORS_AT_ONCE)
    nr = SECTORS_AT_ONCE;
  while (done < nr && t->nr < STORAGE_MAX_RUNS)
    done += make_run (s + done, nr - done, t->iov + done, &t->runs[t->nr++]);
  return done;
}

static int
write_sectors (struct storage *tables, struct cache_sector *s, size_t nr)
{
  while (nr > 0) {
    struct together t;
    const size_t done = make_runs (s, nr, &t);

    if (storage_write_many (tables, t.runs, t.nr) == -1)
      return -1;
    s += done;
    nr -= done;
  }
  return 0;
}

/* I16: data first, since written tables may already point to it. */
static int
flush_data (struct storage *tables, struct storage *data)
{
  return data == tables ? 0 : storage_flush (data);
}

int
batch_flush (struct storage *tables, struct storage *data)
{
  return flush_data (tables, data) == -1 ? -1 : storage_flush (tables);
}

/* Write sectors so that they are durable; with all set, so is everything that
 * was written before.  Where the storage can, the caller waits once.
 */
static int
write_durably (struct cache_sector *s, size_t nr, bool all,
               struct storage *tables, struct storage *data)
{
  struct together t;

  if (nr > 0 && tables->durable_runs > 0 && make_runs (s, nr, &t) == nr &&
      t.nr <= tables->durable_runs)
    return all && flush_data (tables, data) == -1 ? -1
      : storage_write_durable_runs (tables, t.runs, t.nr, all);
  return write_sectors (tables, s, nr) == -1 ? -1 : batch_flush (tables, data);
}

int
batch_write (const struct cache_batch *b, bool ordered, struct storage *tables,
             struct storage *data)
{
  size_t first = 0;

  while (first < b->nr && b->sector[first].order == CACHE_FIRST)
    first++;
  if (ordered && first < b->nr) { /* I5 */
    if (write_durably (b->sector, first, true, tables, data) == -1)
      return -1;
    return write_durably (b->sector + first, b->nr - first, false, tables,
                          data);
  }
  if (write_sectors (tables, b->sector, b->nr) == -1)
    return -1;
  return batch_flush (tables, data);
}
