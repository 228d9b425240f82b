/* SPDX-License-Identifier: BSD-3-Clause */

/* Several runs at once, on a storage that takes whole blocks only: those that
 * share a block, or are next to each other, are one run there.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "storage/align-parts.h"
#include "storage/align.h"

/* Whole blocks that runs are in, in memory of their own: all of it, in turn. */
struct spans {
  struct storage_run runs[STORAGE_MAX_RUNS]; /* by offset */
  struct iovec iov[STORAGE_MAX_RUNS];        /* one for each */
  struct inflight_range range[STORAGE_MAX_RUNS];
  bool parts[STORAGE_MAX_RUNS]; /* some bytes of it are not in the runs */
  unsigned nr;
  size_t bytes;
  uint8_t *memory;
};

static uint64_t
run_bytes (const struct storage_run *run)
{
  uint64_t count = 0;
  int i;

  for (i = 0; i < run->nr; ++i)
    count += run->iov[i].iov_len;
  return count;
}

static uint64_t
span_end (const struct spans *t, unsigned i)
{
  return t->runs[i].offset.v + t->iov[i].iov_len;
}

static int
compare_runs (const void *x, const void *y)
{
  const struct storage_run *const *a = x, *const *b = y;

  return ((*a)->offset.v > (*b)->offset.v) - ((*a)->offset.v < (*b)->offset.v);
}

static void
sort_runs (const struct storage_run **sorted, const struct storage_run *runs,
           unsigned nr)
{
  unsigned i;

  for (i = 0; i < nr; ++i)
    sorted[i] = &runs[i];
  qsort (sorted, nr, sizeof *sorted, compare_runs);
}

/* Find the blocks of sorted runs.  Returns how many of the runs these are for,
 * since no more fit in ALIGN_MAX_BYTES.
 */
static unsigned
find_spans (const struct align *a, const struct storage_run **sorted,
            unsigned nr, struct spans *t)
{
  uint64_t covered = 0;
  unsigned i;

  t->nr = 0;
  t->bytes = 0;
  for (i = 0; i < nr; ++i) {
    const uint64_t count = run_bytes (sorted[i]);
    const uint64_t end = block_end (a, sorted[i]->offset.v + count);
    uint64_t start = block_start (a, sorted[i]->offset.v);
    const bool joins = t->nr > 0 && start <= span_end (t, t->nr - 1);

    if (joins)
      start = span_end (t, t->nr - 1);
    if (end > start && end - start > ALIGN_MAX_BYTES - t->bytes)
      break;
    if (!joins) {
      covered = 0;
      t->iov[t->nr].iov_len = 0;
      t->runs[t->nr] = (struct storage_run) {
        &t->iov[t->nr], 1, { start },
      };
      t->nr++;
    }
    if (end > start) {
      t->iov[t->nr - 1].iov_len += end - start;
      t->bytes += end - start;
    }
    covered += count;
    t->parts[t->nr - 1] = covered < t->iov[t->nr - 1].iov_len;
  }
  return i;
}

/* Returns -1 with errno set. */
static int
have_memory (const struct align *a, struct spans *t)
{
  size_t done = 0;
  unsigned i;

  t->memory = align_new_blocks (a, t->bytes);
  if (t->memory == NULL)
    return -1;
  for (i = 0; i < t->nr; ++i) {
    t->iov[i].iov_base = t->memory + done;
    done += t->iov[i].iov_len;
  }
  return 0;
}

/* Copy sorted runs from the spans, or to them. */
static void
copy_runs (struct spans *t, const struct storage_run **sorted, unsigned nr,
           bool to_spans)
{
  unsigned i, span = 0;
  int j;

  for (i = 0; i < nr; ++i) {
    uint64_t at = sorted[i]->offset.v;

    while (at >= span_end (t, span) && span + 1 < t->nr)
      span++;
    for (j = 0; j < sorted[i]->nr; ++j) {
      const struct iovec *iov = &sorted[i]->iov[j];
      uint8_t *p = (uint8_t *) t->iov[span].iov_base +
        (at - t->runs[span].offset.v);

      if (to_spans)
        memcpy (p, iov->iov_base, iov->iov_len);
      else
        memcpy (iov->iov_base, p, iov->iov_len);
      at += iov->iov_len;
    }
  }
}

/* ----------------------------------------------------------------- reading */

/* Whether these runs, of one piece each, can be read as they are. */
static bool
all_aligned (const struct align *a, const struct storage_run *runs,
             unsigned nr)
{
  for (; nr > 0; ++runs, --nr)
    if (!is_aligned (a, runs->offset.v) ||
        !is_aligned (a, runs->iov[0].iov_len) ||
        !is_aligned (a, (uintptr_t) runs->iov[0].iov_base))
      return false;
  return true;
}

/* The spans are those of these runs. */
static int
read_copied (struct align *a, struct spans *t,
             const struct storage_run **sorted, unsigned nr)
{
  int r;

  if (have_memory (a, t) == -1)
    return -1;
  r = a->inner->ops->pread_many (a->inner, t->runs, t->nr);
  if (r == 0)
    copy_runs (t, sorted, nr, false);
  free (t->memory);
  return r;
}

int
align_pread_many (struct storage *s, const struct storage_run *runs,
                  unsigned nr)
{
  struct align *a = align_of (s);
  const struct storage_run *sorted[STORAGE_MAX_RUNS];
  unsigned done = 0, n;
  struct spans t;

  if (all_aligned (a, runs, nr))
    return a->inner->ops->pread_many (a->inner, runs, nr);
  sort_runs (sorted, runs, nr);
  for (; done < nr; done += n) {
    const struct storage_run **next = sorted + done;

    n = find_spans (a, next, nr - done, &t);
    if (n > 0) {
      if (read_copied (a, &t, next, n) == -1)
        return -1;
      continue;
    }
    n = 1; /* too large */
    if (storage_read (s, next[0]->iov[0].iov_base, next[0]->iov[0].iov_len,
                      next[0]->offset) == -1) {
      errno = error_errno ();
      return -1;
    }
  }
  return 0;
}

/* ----------------------------------------------------------------- writing */

/* Read those spans that the runs don't cover: A3. */
static int
read_parts (struct align *a, struct spans *t)
{
  struct storage_run runs[STORAGE_MAX_RUNS];
  unsigned i, nr = 0;

  for (i = 0; i < t->nr; ++i)
    if (t->parts[i])
      runs[nr++] = t->runs[i];
  if (nr == 0)
    return 0;
  if (a->inner->ops->pread_many != NULL)
    return a->inner->ops->pread_many (a->inner, runs, nr);
  for (i = 0; i < nr; ++i)
    if (align_read_blocks (a, runs[i].iov->iov_base, runs[i].iov->iov_len,
                           runs[i].offset.v) == -1)
      return -1;
  return 0;
}

/* How runs are to be written. */
enum how { ORDINARY, DURABLY, WITH_ALL };

static int
write_inner (struct align *a, const struct spans *t, enum how how)
{
  struct storage *inner = a->inner;

  return how == ORDINARY ? inner->ops->pwrite_many (inner, t->runs, t->nr)
    : inner->ops->pwrite_durably (inner, t->runs, t->nr, how == WITH_ALL);
}

/* The spans are those of these runs. */
static int
write_copied (struct align *a, struct spans *t,
              const struct storage_run **sorted, unsigned nr, enum how how)
{
  unsigned i;
  int r;

  if (have_memory (a, t) == -1)
    return -1;
  for (i = 0; i < t->nr; ++i) {
    t->range[i].first = t->runs[i].offset.v / a->block;
    t->range[i].last = (span_end (t, i) - 1) / a->block;
  }
  inflight_enter_all (&a->changing, t->range, t->nr); /* A2 */
  r = read_parts (a, t);
  if (r == 0) {
    copy_runs (t, sorted, nr, true);
    r = write_inner (a, t, how);
  } else if (errno == ENOSPC)
    errno = EIO; /* the writes alone have no space */
  for (i = 0; i < t->nr; ++i)
    inflight_leave (&a->changing, &t->range[i]);
  free (t->memory);
  return r;
}

/* One after the other: a flush makes all of them durable. */
static int
write_each (struct storage *s, const struct storage_run *runs, unsigned nr,
            enum how how)
{
  for (; nr > 0; ++runs, --nr)
    if (storage_writev (s, runs->iov, runs->nr, runs->offset,
                        false) == -1) {
      errno = error_errno ();
      return -1;
    }
  if (how == ORDINARY || storage_flush (s) == 0)
    return 0;
  errno = EIO;
  return -1;
}

static int
write_runs (struct storage *s, const struct storage_run *runs, unsigned nr,
            enum how how)
{
  const struct storage_run *sorted[STORAGE_MAX_RUNS];
  struct align *a = align_of (s);
  struct spans t;

  sort_runs (sorted, runs, nr);
  return find_spans (a, sorted, nr, &t) < nr ? write_each (s, runs, nr, how)
    : write_copied (a, &t, sorted, nr, how);
}

int
align_pwrite_many (struct storage *s, const struct storage_run *runs,
                   unsigned nr)
{
  return write_runs (s, runs, nr, ORDINARY);
}

int
align_pwrite_durably (struct storage *s, const struct storage_run *runs,
                      unsigned nr, bool all)
{
  return write_runs (s, runs, nr, all ? WITH_ALL : DURABLY);
}
