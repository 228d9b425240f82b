/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/write/bit-parts.h"
#include "storage/durable.h"

void
bit_parts_init (struct bit_parts *p, struct writer *w)
{
  unsigned i;

  memset (p, 0, sizeof *p);
  p->w = w;
  for (i = 0; i < BIT_LOCKS; ++i)
    pthread_rwlock_init (&p->lock[i], NULL);
  pthread_mutex_init (&p->unlinked_lock, NULL);
}

void
bit_parts_destroy (struct bit_parts *p)
{
  unsigned i;

  for (i = 0; i < BIT_LOCKS; ++i)
    pthread_rwlock_destroy (&p->lock[i]);
  pthread_mutex_destroy (&p->unlinked_lock);
  free (p->unlinked);
}

static inline struct storage *
tables_of (const struct bit_parts *p)
{
  return p->w->disk->tables;
}

static inline uint32_t
cluster_size (const struct bit_parts *p)
{
  return p->w->header.cluster_size;
}

uint32_t
bit_parts_page (const struct bit_parts *p)
{
  return cluster_size (p) < BIT_PAGE ? cluster_size (p) : BIT_PAGE;
}

/* ------------------------------------------------------------------ entries */

/* One entry, while its lock is held. */
struct part {
  struct bit_parts *p;
  pthread_rwlock_t *lock;
  struct host_off entry;  /* where it is */
  uint32_t within;        /* where the page is in the cluster */
  enum bitmap_part kind;
  struct host_off host;   /* of the cluster */
};

static struct part
part_of (struct bit_parts *p, unsigned i, uint64_t page)
{
  const uint64_t at = page * bit_parts_page (p);
  const uint64_t nr = at / cluster_size (p);

  return (struct part) {
    .p = p,
    .lock = &p->lock[(nr + 7 * i) % BIT_LOCKS],
    .entry = { p->bitmap[i].table.v + 8 * nr },
    .within = at % cluster_size (p),
  };
}

/* Read it.  It was looked at when the image was opened, and only changed here
 * since.
 */
static int
find (struct part *t)
{
  struct storage *s = tables_of (t->p);
  const uint64_t size = atomic_load (&s->size);
  uint8_t buf[8];

  if (storage_read_present (s, buf, sizeof buf, t->entry) == -1)
    return -1;
  t->kind = entry_decode_bitmap (get_be64 (buf), t->p->w->header.cluster_bits,
                                 &t->host);
  if (t->kind != BITMAP_PART_INVALID &&
      (t->kind != BITMAP_PART_CLUSTER ||
       (t->host.v <= size && cluster_size (t->p) <= size - t->host.v)))
    return 0;
  error_set (EIO, "%s: bitmap table entry at offset 0x%" PRIx64 ": 0x%" PRIx64
             " is not valid, or beyond the end of the file", s->name,
             t->entry.v, get_be64 (buf));
  return -1;
}

/* --------------------------------------------------------- durable writes */

/* What is read again later counts as durable.  So where a write has failed but
 * may be repeated, what it has written of its bytes is made so.
 */
static int
write_durably (struct bit_parts *p, const void *buf, size_t count,
               struct host_off at)
{
  struct writer *w = p->w;
  struct error_kept kept;
  bool sticks;

  if (storage_write_durably (tables_of (p), buf, count, at, &sticks) == 0)
    return 0;
  if (!sticks) {
    error_keep (&kept);
    sticks = storage_flush (tables_of (p)) == -1;
    if (!sticks)
      error_restore (&kept);
  }
  if (sticks)
    writeback_fail (&w->writeback);
  return -1;
}

/* After an attempt to write the entry that has failed but does not stick: does
 * it have this value, durably?  If that can't be told, nothing may be written any
 * more: what it may refer to must not be given to anybody else.
 */
static int
settle_entry (const struct part *t, uint64_t word)
{
  uint8_t buf[8];

  if (storage_read_present (tables_of (t->p), buf, sizeof buf,
                            t->entry) == -1) {
    writeback_fail (&t->p->w->writeback);
    return -1;
  }
  return get_be64 (buf) == word ? 0 : -1;
}

/* Have it say something else.  Hosts that copy what is overwritten may lack
 * space for that.
 */
static int
write_entry (struct part *t, uint64_t word)
{
  struct writeback *c = &t->p->w->writeback;
  uint8_t buf[8];
  int r;

  put_be64 (buf, word);
  r = write_durably (t->p, buf, sizeof buf, t->entry);
  if (r == -1 && error_errno () == ENOSPC && writeback_spend_ballast (c))
    r = write_durably (t->p, buf, sizeof buf, t->entry);
  return r == -1 && error_errno () == ENOSPC ? settle_entry (t, word) : r;
}

static int
write_sectors (struct part *t, const uint8_t *bytes, unsigned first,
               unsigned nr)
{
  const struct host_off at = { t->host.v + t->within + first * BIT_SECTOR };

  return write_durably (t->p, bytes + first * BIT_SECTOR, nr * BIT_SECTOR, at);
}

/* ----------------------------------------------------------------- clusters */

/* The content of a new cluster: this page, and zeros. */
static int
fill (struct part *t, const uint8_t *bytes)
{
  uint8_t *all = calloc (1, cluster_size (t->p));
  int r;

  if (all == NULL) {
    error_set (ENOMEM, "%s: out of memory", writer_name (t->p->w));
    return -1;
  }
  memcpy (all + t->within, bytes, bit_parts_page (t->p));
  r = write_durably (t->p, all, cluster_size (t->p), t->host);
  free (all);
  return r;
}

/* The refcount, the content, and then the entry (I5). */
static int
link_cluster (struct part *t, const struct alloc_clusters *c,
              const uint8_t *bytes)
{
  t->host = c->host;
  if ((!c->durable && writeback_flush (&t->p->w->writeback) == -1) ||
      fill (t, bytes) == -1)
    return -1;
  return write_entry (t, t->host.v);
}

/* Where all was clean.  Nothing refers to the cluster when that fails for want
 * of space; what else fails sticks, or has come before the entry was written.
 */
static int
add_cluster (struct part *t, const uint8_t *bytes)
{
  struct writer *w = t->p->w;
  const unsigned token = epoch_enter (w->disk->shared->epoch);
  struct alloc_clusters c;
  int r = writer_take (w, ALLOC_NO_GUEST, 1, &c);

  if (r == 0) {
    r = overlap_add (&w->overlap, writer_name (w), c.host, 1, METADATA_BITS);
    if (r == 0) {
      r = link_cluster (t, &c, bytes);
      if (r == -1 && !writeback_has_failed (&w->writeback))
        overlap_remove (&w->overlap, c.host, 1);
    }
    if (r == -1 && !writeback_has_failed (&w->writeback))
      alloc_give_back (&w->alloc, c.host, 1);
  }
  epoch_leave (w->disk->shared->epoch, token);
  return r;
}

/* No entry refers to the cluster any more, durably.  Where bits were when the
 * image was opened nothing else is put before it is closed (qcow2/write/
 * overlap.h); without memory for the list it leaks.
 */
static void
unlink_cluster (struct bit_parts *p, struct host_off host)
{
  pthread_mutex_lock (&p->unlinked_lock);
  if (p->nr_unlinked == p->max_unlinked) {
    const size_t max = p->max_unlinked * 2 + 8;
    struct host_off *more = realloc (p->unlinked, max * sizeof *more);

    if (more != NULL) {
      p->unlinked = more;
      p->max_unlinked = max;
    }
  }
  if (p->nr_unlinked < p->max_unlinked)
    p->unlinked[p->nr_unlinked++] = host;
  else
    atomic_store (&p->w->leaked, true);
  pthread_mutex_unlock (&p->unlinked_lock);
}

/* Returns -1 with the error set: it leaks. */
static int
give_up_cluster (struct bit_parts *p, struct host_off host)
{
  const struct freed f = {
    .host = host, .nr = 1, .is_table = true, .bytes = cluster_size (p),
  };

  return writeback_free (&p->w->writeback, &f, 1);
}

void
bit_parts_give_up (struct bit_parts *p)
{
  size_t i;

  for (i = 0; i < p->nr_unlinked; ++i) {
    if (give_up_cluster (p, p->unlinked[i]) == -1)
      break; /* the rest leaks */
  }
  p->nr_unlinked = 0;
}

static int
give_up_word (struct bit_parts *p, uint64_t word)
{
  struct host_off host;

  return entry_decode_bitmap (word, p->w->header.cluster_bits, &host) !=
    BITMAP_PART_CLUSTER ? 0 : give_up_cluster (p, host);
}

void
bit_parts_give_up_bits (struct bit_parts *p, const struct followed *b)
{
  const uint64_t bytes = 8 * (uint64_t) b->nr_parts;
  uint8_t buf[BIT_PAGE];
  uint64_t at, i, n;
  int r = 0;

  for (at = 0; r == 0 && at < bytes; at += n) {
    const struct host_off from = { b->table.v + at };

    n = bytes - at < sizeof buf ? bytes - at : sizeof buf;
    r = storage_read_present (tables_of (p), buf, n, from);
    for (i = 0; r == 0 && i < n; i += 8)
      r = give_up_word (p, get_be64 (buf + i));
  }
  if (r == -1)
    atomic_store (&p->w->leaked, true);
}

/* ------------------------------------------------------------------ marking */

/* There was no space for a mark. */
static int
give_bits_up (struct part *t)
{
  if (write_entry (t, QCOW2_BITMAP_ALL_ONES) == -1)
    return -1;
  if (t->kind == BITMAP_PART_CLUSTER)
    unlink_cluster (t->p, t->host);
  t->kind = BITMAP_PART_DIRTY;
  return 0;
}

/* The entry may be changed. */
static int
mark_alone (struct part *t, const uint8_t *bytes, unsigned first, unsigned nr)
{
  int r = 0;

  if (find (t) == -1)
    return -1;
  switch (t->kind) {
  case BITMAP_PART_DIRTY:
    return 0;
  case BITMAP_PART_CLEAN:
    r = add_cluster (t, bytes);
    break;
  case BITMAP_PART_CLUSTER:
    r = write_sectors (t, bytes, first, nr);
    break;
  case BITMAP_PART_INVALID:
    abort ();
  }
  return r == -1 && error_errno () == ENOSPC ? give_bits_up (t) : r;
}

int
bit_parts_mark (struct bit_parts *p, unsigned i, uint64_t page,
                const uint8_t *bytes, unsigned first, unsigned nr, bool *all)
{
  struct part t = part_of (p, i, page);
  bool change;
  int r;

  pthread_rwlock_rdlock (t.lock);
  r = find (&t);
  if (r == 0 && t.kind == BITMAP_PART_CLUSTER)
    r = write_sectors (&t, bytes, first, nr);
  change = r == 0 ? t.kind == BITMAP_PART_CLEAN : error_errno () == ENOSPC;
  pthread_rwlock_unlock (t.lock);
  if (change) {
    pthread_rwlock_wrlock (t.lock);
    r = mark_alone (&t, bytes, first, nr);
    pthread_rwlock_unlock (t.lock);
  }
  *all = r == 0 && t.kind == BITMAP_PART_DIRTY;
  return r;
}

int
bit_parts_load (struct bit_parts *p, unsigned i, uint64_t page, uint8_t *bytes)
{
  struct part t = part_of (p, i, page);
  int r;

  pthread_rwlock_rdlock (t.lock);
  r = find (&t);
  memset (bytes, 0, bit_parts_page (p));
  if (r == 0 && t.kind == BITMAP_PART_DIRTY)
    memset (bytes, 0xff, bit_parts_page (p));
  else if (r == 0 && t.kind == BITMAP_PART_CLUSTER) {
    const struct host_off at = { t.host.v + t.within };

    r = storage_read_present (tables_of (p), bytes, bit_parts_page (p), at);
  }
  pthread_rwlock_unlock (t.lock);
  return r;
}

unsigned
bit_parts_store (struct bit_parts *p, unsigned i, uint64_t page,
                 const uint8_t *bytes, unsigned sectors)
{
  struct part t = part_of (p, i, page);
  unsigned k, failed = 0;

  if (writeback_check (&p->w->writeback) == -1) /* I10 */
    return sectors;
  pthread_rwlock_rdlock (t.lock);
  if (find (&t) == -1)
    failed = sectors;
  else if (t.kind == BITMAP_PART_CLUSTER) {
    for (k = 0; sectors >> k != 0; ++k) {
      const struct host_off at = { t.host.v + t.within + k * BIT_SECTOR };

      if ((sectors >> k & 1) &&
          storage_write (tables_of (p), bytes + k * BIT_SECTOR, BIT_SECTOR,
                         at) == -1) {
        debug_message ("%s", error_message ());
        failed |= 1U << k;
      }
    }
    writeback_note_data (&p->w->writeback);
  }
  pthread_rwlock_unlock (t.lock);
  return failed;
}

/* ---------------------------------------------------------------- preparing */

/* Sectors that may be holes, as they are: whatever is not zeros has its space.
 */
static int
write_zero_sectors (struct bit_parts *p, const uint8_t *bytes, size_t count,
                    struct host_off from)
{
  static const uint8_t zeros[BIT_SECTOR];
  size_t at, n;

  for (at = 0; at < count; at += n) {
    const struct host_off place = { from.v + at };

    n = count - at < BIT_SECTOR ? count - at : BIT_SECTOR;
    if (memcmp (bytes + at, zeros, n) == 0 &&
        storage_write (tables_of (p), zeros, n, place) == -1) {
      if (error_errno () != ENOSPC)
        writeback_fail (&p->w->writeback);
      return -1;
    }
  }
  return 0;
}

/* Have space for a table. */
static int
allocate_table (struct bit_parts *p, const struct followed *b)
{
  const uint64_t bytes = 8 * (uint64_t) b->nr_parts;
  uint8_t buf[BIT_PAGE];
  uint64_t at, n;
  bool done;

  if (storage_allocate (tables_of (p), b->table, bytes, &done) == -1)
    return -1;
  for (at = 0; !done && at < bytes; at += n) {
    const struct host_off from = { b->table.v + at };

    n = bytes - at < sizeof buf ? bytes - at : sizeof buf;
    if (storage_read_present (tables_of (p), buf, n, from) == -1 ||
        write_zero_sectors (p, buf, n, from) == -1)
      return -1;
  }
  return 0;
}

int
bit_parts_prepare (struct bit_parts *p)
{
  unsigned i;

  for (i = 0; i < p->nr; ++i) {
    if (bit_parts_follows (p, i) && allocate_table (p, &p->bitmap[i]) == -1)
      return -1;
  }
  if (storage_flush (tables_of (p)) == 0)
    return 0;
  writeback_fail (&p->w->writeback);
  return -1;
}
