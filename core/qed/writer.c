/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qed/check.h"
#include "qed/writer.h"

/* By how much the file grows: an eighth of it, within these. */
#define GROW_MIN (UINT64_C (1) << 20)
#define GROW_MAX (UINT64_C (16) << 20)

/* ----------------------------------------------------------------- failing */

int
qed_writer_check (const struct qed_writer *w)
{
  if (!atomic_load_explicit (&w->failed, memory_order_acquire))
    return 0;
  error_set (EIO, "%s: writing failed earlier: nothing more is written",
             w->storage->name);
  return -1;
}

void
qed_writer_fail (struct qed_writer *w)
{
  atomic_store (&w->failed, true);
}

/* The error is set: it sticks, but for a lack of space (I10). */
static int
has_failed (struct qed_writer *w)
{
  if (error_errno () != ENOSPC)
    qed_writer_fail (w);
  return -1;
}

static int
flush_storage (struct qed_writer *w)
{
  if (storage_flush (w->storage) == 0)
    return 0;
  qed_writer_fail (w);
  return -1;
}

/* ----------------------------------------------------------------- opening */

/* W1. */
static int
check_sound (const struct layer *disk)
{
  const struct check_options options = { 0 };
  struct check_report r;

  if (qed_check_storage (disk->tables, &options, &r) == -1)
    return -1;
  if (check_report_is_sound (&r))
    return 0;
  error_set (EIO, "%s: its tables have %" PRIu64 " errors", disk->tables->name,
             r.corruptions);
  return -1;
}

struct qed_writer *
qed_writer_open (const struct layer *disk, bool keep_discarded)
{
  const struct qed_map *m = qed_map (disk);
  struct qed_writer *w;

  if (check_sound (disk) == -1)
    goto fail;
  w = calloc (1, sizeof *w);
  if (w == NULL) {
    error_set (ENOMEM, "%s: out of memory", disk->tables->name);
    goto fail;
  }
  if (cache_begin_writing (m->cache, m->id,
                           storage_has_holes (disk->tables)) == -1) {
    free (w);
    goto fail;
  }
  w->disk = disk;
  w->map = m;
  w->header = m->header;
  w->storage = disk->tables;
  w->keep_discarded = keep_discarded;
  w->features = m->header->features;
  w->begun = m->header->autoclear == 0;
  /* What follows the last whole cluster does not count. */
  w->next = w->end = qed_file_end (m->header, qed_map_file_size (m));
  inflight_init (&w->inflight);
  pthread_mutex_init (&w->tables, NULL);
  pthread_mutex_init (&w->grow, NULL);
  pthread_mutex_init (&w->space, NULL);
  pthread_mutex_init (&w->commit, NULL);
  pthread_cond_init (&w->committed, NULL);
  pthread_mutex_init (&w->changes, NULL);
  return w;

 fail:
  error_append (" (so that it can't be written)");
  return NULL;
}

/* ---------------------------------------------------------- the file's end */

int
qed_writer_begin (struct qed_writer *w)
{
  int r = 0;

  if (qed_writer_check (w) == -1)
    return -1;
  if (!atomic_load_explicit (&w->used, memory_order_relaxed))
    atomic_store (&w->used, true);
  if (atomic_load_explicit (&w->begun, memory_order_acquire))
    return 0;
  pthread_mutex_lock (&w->grow);
  if (!w->begun) { /* I8: bits that are not known here */
    r = qed_write_features (w->storage, w->features, 0);
    if (r == 0)
      r = flush_storage (w);
    else
      (void) has_failed (w);
    if (r == 0)
      atomic_store_explicit (&w->begun, true, memory_order_release);
  }
  pthread_mutex_unlock (&w->grow);
  return r;
}

/* Set or clear NEED_CHECK; not durable.  grow held. */
static int
mark (struct qed_writer *w, bool need_check)
{
  const uint64_t features = need_check ? w->features | QED_NEED_CHECK
    : w->features & ~QED_NEED_CHECK;

  if (qed_write_features (w->storage, features, 0) == -1)
    return has_failed (w);
  w->features = features;
  w->marked = need_check;
  return 0;
}

static uint64_t
grow_to (const struct qed_writer *w, uint64_t bytes)
{
  const uint64_t size = w->header->cluster_size;
  uint64_t more = w->end / 8;

  more = more < GROW_MIN ? GROW_MIN : more > GROW_MAX ? GROW_MAX : more;
  if (more < bytes)
    more = bytes;
  return (w->next + more + size - 1) & -size;
}

/* grow held. */
static int
resize_file (struct qed_writer *w, uint64_t bytes, uint64_t *end)
{
  *end = grow_to (w, bytes);
  /* What is behind the last whole cluster would not be zeros. */
  if (qed_map_file_size (w->map) > w->end &&
      storage_resize (w->storage, w->end) == -1)
    return has_failed (w);
  if (storage_resize (w->storage, *end) == 0)
    return 0;
  *end = w->next + bytes;
  return storage_resize (w->storage, *end) == -1 ? has_failed (w) : 0;
}

/* Have at least so many bytes between next and end.  grow held. */
static int
grow_file (struct qed_writer *w, uint64_t bytes)
{
  const bool was_marked = w->marked;
  uint64_t end;

  /* Before there are any leaks. */
  if (!w->marked && (mark (w, true) == -1 || flush_storage (w) == -1))
    return -1;
  if (resize_file (w, bytes, &end) == -1) {
    /* It was set for nothing: the storage is full, or of a fixed size.  That it
     * stays set would be no harm, and does after the first time: a guest that
     * tries again does not pay for that each time.
     */
    if (!was_marked && !w->taken_back && !atomic_load (&w->failed)) {
      w->taken_back = true;
      (void) mark (w, false);
    }
    return -1;
  }
  if (flush_storage (w) == -1)
    return -1;
  w->end = end;
  return 0;
}

static int
take_back (struct qed_writer *w, struct qed_clusters *out)
{
  struct qed_clusters *c;

  if (w->nr_back == 0)
    return -1;
  c = &w->back[w->nr_back - 1];
  out->host = c->host;
  if (c->nr <= out->nr) {
    out->nr = c->nr;
    w->nr_back--;
    return 0;
  }
  c->host.v += out->nr << w->header->cluster_bits;
  c->nr -= out->nr;
  return 0;
}

int
qed_writer_take (struct qed_writer *w, bool wanted, struct qed_clusters *out,
                 bool *zero)
{
  const unsigned bits = w->header->cluster_bits;
  int r = 0;

  pthread_mutex_lock (&w->grow);
  *zero = wanted || take_back (w, out) == -1;
  if (*zero) {
    if (out->nr << bits > w->end - w->next)
      r = grow_file (w, out->nr << bits);
    if (r == 0) {
      out->host.v = w->next;
      w->next += out->nr << bits;
    }
  }
  pthread_mutex_unlock (&w->grow);
  if (r == 0)
    atomic_fetch_add (&w->taken, 1);
  return r;
}

/* Without memory for a note they are leaked. */
void
qed_writer_give_back (struct qed_writer *w,
                      const struct qed_clusters *clusters)
{
  struct qed_clusters *p;

  pthread_mutex_lock (&w->grow);
  if (w->nr_back == w->max_back) {
    p = realloc (w->back, (2 * w->max_back + 8) * sizeof *p);
    if (p != NULL) {
      w->back = p;
      w->max_back = 2 * w->max_back + 8;
    }
  }
  if (w->nr_back < w->max_back)
    w->back[w->nr_back++] = *clusters;
  pthread_mutex_unlock (&w->grow);
}

/* ----------------------------------------------------------------- entries */

/* C6: a sector of zeros gets space before the request is answered. */
static int
allocate_space (struct qed_writer *w, struct host_off slice, unsigned first,
                unsigned nr)
{
  struct cache *cache = w->map->cache;
  uint8_t lacking, bits;
  int r = 0;

  pthread_mutex_lock (&w->space);
  lacking = cache_lacking_space (cache, w->map->id, slice, first, nr);
  for (bits = lacking; r == 0 && bits != 0; bits &= bits - 1) {
    static const uint8_t zeros[CACHE_SECTOR];
    const struct host_off at = {
      slice.v + __builtin_ctz (bits) * CACHE_SECTOR
    };
    bool done;

    r = storage_allocate (w->storage, at, CACHE_SECTOR, &done);
    /* Nothing of it was changed yet: it is zeros on the disk, too. */
    if (r == 0 && !done)
      r = storage_write (w->storage, zeros, sizeof zeros, at);
  }
  if (r == 0 && lacking != 0)
    cache_note_space (cache, w->map->id, slice, lacking);
  pthread_mutex_unlock (&w->space);
  return r == -1 ? has_failed (w) : 0;
}

static int
load_slice (struct qed_writer *w, struct host_off slice)
{
  struct cache_ref ref;

  return cache_get (w->map->cache, w->storage, w->map->id, slice,
                    CACHE_SLOT_BYTES, 1, &ref);
}

static int commit (struct qed_writer *w);

/* Change words of a slice, in whatever it takes. */
static int
change_words (struct qed_writer *w, struct host_off slice, unsigned first,
              unsigned nr, const uint64_t *words, enum cache_order order,
              bool ordered)
{
  for (;;) {
    enum cache_update u;
    int r = 0;

    pthread_mutex_lock (&w->changes);
    u = cache_update (w->map->cache, w->map->id, slice, first, nr, words,
                      order);
    if (u == CACHE_UPDATED)
      w->ordered |= ordered;
    pthread_mutex_unlock (&w->changes);
    switch (u) {
    case CACHE_UPDATED:
      return 0;
    case CACHE_ABSENT:
      r = load_slice (w, slice);
      break;
    case CACHE_CROWDED:
      r = commit (w);
      break;
    case CACHE_LACKS_SPACE:
      r = allocate_space (w, slice, first, nr);
      break;
    }
    if (r == -1)
      return -1;
  }
}

int
qed_writer_set (struct qed_writer *w, struct host_off table, uint64_t index,
                uint64_t nr, uint64_t host, bool ordered)
{
  const struct host_off slice = {
    table.v + index / QED_SLICE_ENTRIES * CACHE_SLOT_BYTES
  };
  uint64_t words[QED_SLICE_ENTRIES];
  uint64_t i;

  for (i = 0; i < nr; ++i)
    words[i] = host == QED_ZERO ? qed_swap (QED_ZERO)
      : qed_swap (host + (i << w->header->cluster_bits));
  return change_words (w, slice, index % QED_SLICE_ENTRIES, nr, words,
                       CACHE_FIRST, ordered);
}

/* tables held. */
static int
make_table (struct qed_writer *w, struct guest_off offset,
            struct host_off *table)
{
  const struct qed_header *h = w->header;
  const uint64_t index = qed_l1_index (h, offset);
  const struct host_off slice = {
    h->l1_offset.v + index / QED_SLICE_ENTRIES * CACHE_SLOT_BYTES
  };
  struct qed_clusters c = { .nr = h->table_bytes >> h->cluster_bits };
  uint64_t word;
  bool zero;

  if (qed_writer_take (w, true, &c, &zero) == -1)
    return -1;
  word = qed_swap (c.host.v);
  if (change_words (w, slice, index % QED_SLICE_ENTRIES, 1, &word,
                    CACHE_SECOND, false) == -1) {
    qed_writer_give_back (w, &c);
    return -1;
  }
  *table = c.host;
  return 0;
}

int
qed_writer_table (struct qed_writer *w, struct guest_off offset, bool make,
                  struct host_off *table)
{
  int r;

  if (qed_map_table (w->map, offset, table) == -1)
    return -1;
  if (table->v != 0 || !make)
    return 0;
  pthread_mutex_lock (&w->tables);
  r = qed_map_table (w->map, offset, table);
  if (r == 0 && table->v == 0)
    r = make_table (w, offset, table);
  pthread_mutex_unlock (&w->tables);
  return r;
}

/* ----------------------------------------------------------------- commits */

/* Consecutive sectors, from the first on, go out as one write. */
static size_t
write_sectors (struct qed_writer *w, const struct cache_sector *s, size_t nr,
               int *r)
{
  struct iovec iov[STORAGE_MAX_IOV];
  size_t i;

  for (i = 0; i < nr && i < STORAGE_MAX_IOV &&
         s[i].offset.v == s[0].offset.v + i * CACHE_SECTOR; ++i)
    iov[i] = (struct iovec) { (void *) s[i].data, CACHE_SECTOR };
  *r = storage_writev (w->storage, iov, i, s[0].offset, false);
  return i;
}

static int
write_batch (struct qed_writer *w, bool ordered)
{
  const struct cache_batch *b = &w->batch;
  size_t i = 0;
  int r = 0;

  if (ordered && b->nr > 0 && flush_storage (w) == -1)
    return -1;
  while (r == 0 && i < b->nr)
    i += write_sectors (w, &b->sector[i], b->nr - i, &r);
  return r == -1 ? has_failed (w) : flush_storage (w);
}

static int
commit_once (struct qed_writer *w)
{
  bool ordered;
  int r;

  if (qed_writer_check (w) == -1)
    return -1;
  pthread_mutex_lock (&w->changes);
  r = cache_take_batch (w->map->cache, w->map->id, &w->batch);
  ordered = w->ordered;
  if (r == 0)
    w->ordered = false;
  pthread_mutex_unlock (&w->changes);
  if (r == -1)
    return -1;
  r = write_batch (w, ordered);
  if (r == -1 && ordered) { /* what is left for the next one still is */
    pthread_mutex_lock (&w->changes);
    w->ordered = true;
    pthread_mutex_unlock (&w->changes);
  }
  cache_end_batch (w->map->cache, w->map->id, &w->batch, r == 0);
  return r;
}

/* All changes that were made before this call are durable after it, and all
 * data.  Those who wait while one runs share the next.
 */
static int
commit (struct qed_writer *w)
{
  uint64_t wanted;
  int r = 0;

  pthread_mutex_lock (&w->commit);
  wanted = w->started + 1;
  while (r == 0 && w->finished < wanted) {
    if (w->running)
      pthread_cond_wait (&w->committed, &w->commit);
    else {
      const uint64_t number = ++w->started;

      w->running = true;
      pthread_mutex_unlock (&w->commit);
      r = commit_once (w);
      pthread_mutex_lock (&w->commit);
      w->running = false;
      if (r == 0) /* else each thread that waits finds out for itself */
        w->finished = number;
      pthread_cond_broadcast (&w->committed);
    }
  }
  pthread_mutex_unlock (&w->commit);
  return r;
}

/* Another thread's flush, of the file's length, may have been told of the
 * failure that this one is about.
 */
int
qed_writer_flush (struct qed_writer *w)
{
  return commit (w) == -1 ? -1 : qed_writer_check (w);
}

/* ----------------------------------------------------------------- closing */

/* W5.  File systems that copy what is changed may lack space even for this: all
 * that was written is durable, and NEED_CHECK tells of the rest (I13).
 */
static int
settle_file (struct qed_writer *w)
{
  if (!w->marked)
    return 0;
  if (w->end > w->next && storage_resize (w->storage, w->next) == -1)
    return error_errno () == ENOSPC ? 0 : -1;
  if (flush_storage (w) == -1)
    return -1;
  if (mark (w, false) == -1)
    return error_errno () == ENOSPC ? 0 : -1;
  return flush_storage (w);
}

/* What was given back last may be the last that was handed out. */
static void
trim_end (struct qed_writer *w)
{
  const unsigned bits = w->header->cluster_bits;
  size_t i;

  for (i = 0; i < w->nr_back; ++i) {
    const struct qed_clusters *c = &w->back[i];

    if (c->host.v + (c->nr << bits) != w->next)
      continue;
    w->next = c->host.v;
    w->back[i] = w->back[--w->nr_back];
    i = SIZE_MAX; /* from the start again */
  }
}

int
qed_writer_close (struct qed_writer *w)
{
  int r;

  r = atomic_load (&w->used) ? qed_writer_flush (w) : 0;
  if (r == 0) {
    trim_end (w);
    r = settle_file (w);
  }
  cache_end_writing (w->map->cache, w->map->id);
  inflight_destroy (&w->inflight);
  pthread_mutex_destroy (&w->tables);
  pthread_mutex_destroy (&w->grow);
  pthread_mutex_destroy (&w->space);
  pthread_mutex_destroy (&w->commit);
  pthread_cond_destroy (&w->committed);
  pthread_mutex_destroy (&w->changes);
  free (w->batch.sector);
  free (w->back);
  free (w);
  return r;
}
