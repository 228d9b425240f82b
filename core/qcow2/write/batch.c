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

/* Write the first of these sectors, as many as go together.  Returns how many,
 * or 0 with the error set.
 */
static size_t
write_some_sectors (struct storage *tables, struct cache_sector *s, size_t nr)
{
  struct storage_run runs[STORAGE_MAX_RUNS];
  struct iovec iov[SECTORS_AT_ONCE];
  size_t done = 0;
  unsigned n = 0;

  if (nr > SECTORS_AT_ONCE)
    nr = SECTORS_AT_ONCE;
  while (done < nr && n < STORAGE_MAX_RUNS)
    done += make_run (s + done, nr - done, iov + done, &runs[n++]);
  return storage_write_many (tables, runs, n) == -1 ? 0 : done;
}

static int
write_sectors (struct storage *tables, struct cache_sector *s, size_t nr)
{
  while (nr > 0) {
    const size_t done = write_some_sectors (tables, s, nr);

    if (done == 0)
      return -1;
    s += done;
    nr -= done;
  }
  return 0;
}

int
batch_flush (struct storage *tables, struct storage *data)
{
  /* I16: data first, since written tables may already point to it. */
  if ((data == tables || storage_flush (data) == 0) &&
      storage_flush (tables) == 0)
    return 0;
  return -1;
}

int
batch_write (const struct cache_batch *b, bool ordered, struct storage *tables,
             struct storage *data)
{
  size_t first = 0;

  while (first < b->nr && b->sector[first].order == CACHE_FIRST)
    first++;
  if (write_sectors (tables, b->sector, first) == -1)
    return -1;
  if (first < b->nr &&
      ((ordered && batch_flush (tables, data) == -1) || /* I5 */
       write_sectors (tables, b->sector + first, b->nr - first) == -1))
    return -1;
  return batch_flush (tables, data);
}
