/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/write/batch.h"
#include "qcow2/write/writeback.h"

/* T5: limits of what may wait: bytes, a part of the file between these, and
 * entries.
 */
#define FREED_PART 8
#define MIN_FREED_BYTES (UINT64_C (64) << 20)
#define MAX_FREED_BYTES (UINT64_C (1) << 30)
#define MAX_FREED 65536

/* This many entries in one batch are worth a writeback. */
#define MANY_FREED 16384

static int
no_memory (const struct writeback *c)
{
  error_set (ENOMEM, "%s: out of memory", c->tables->name);
  return -1;
}

int
writeback_init (struct writeback *c, struct storage *tables,
                struct storage *data, struct cache *cache, unsigned id,
                uint32_t slice_bytes, unsigned cluster_bits,
                struct epoch *epoch)
{
  memset (c, 0, sizeof *c);
  c->tables = tables;
  /* What stands on the storage of tables is flushed with it. */
  c->data = storage_same (data, tables) ? tables : data;
  c->cache = cache;
  c->id = id;
  c->slice_bytes = slice_bytes;
  c->cluster_bits = cluster_bits;
  c->epoch = epoch;
  c->last_freed = &c->first_freed;
  pthread_mutex_init (&c->header_lock, NULL);
  pthread_mutex_init (&c->space_lock, NULL);
  pthread_mutex_init (&c->changes, NULL);
  pthread_mutex_init (&c->lock, NULL);
  pthread_mutex_init (&c->freed_lock, NULL);
  pthread_cond_init (&c->done, NULL);
  c->freed = calloc (1, sizeof *c->freed);
  if (c->freed == NULL)
    no_memory (c);
  else if (cache_begin_writing (cache, id, storage_has_holes (tables)) == 0) {
    c->begun = true;
    return 0;
  }
  writeback_destroy (c);
  return -1;
}

void
writeback_free_list (struct writeback *c, struct freed_list *l)
{
  if (l == NULL)
    return;
  atomic_fetch_sub (&c->nr_freed, l->nr);
  atomic_fetch_sub (&c->bytes_freed, l->bytes);
  free (l->freed);
  free (l);
}

void
writeback_destroy (struct writeback *c)
{
  struct freed_list *l;

  if (c->begun)
    cache_end_writing (c->cache, c->id);
  while ((l = c->first_freed) != NULL) {
    c->first_freed = l->next;
    writeback_free_list (c, l);
  }
  writeback_free_list (c, c->freed);
  free (c->batch.sector);
  pthread_cond_destroy (&c->done);
  pthread_mutex_destroy (&c->freed_lock);
  pthread_mutex_destroy (&c->lock);
  pthread_mutex_destroy (&c->changes);
  pthread_mutex_destroy (&c->header_lock);
  pthread_mutex_destroy (&c->space_lock);
}

/* ---------------------------------------------------------------- changes */

/* Make room for more entries, so that adding them can't fail.  changes is
 * held.
 */
static int
reserve_freed (struct writeback *c, unsigned more)
{
  struct freed_list *l = c->freed;
  size_t capacity;
  struct freed *p;

  if (l->nr + more <= l->capacity)
    return 0;
  capacity = (l->nr + more) * 2;
  p = realloc (l->freed, capacity * sizeof *p);
  if (p == NULL)
    return no_memory (c);
  l->freed = p;
  l->capacity = capacity;
  return 0;
}

/* changes is held, and there is room. */
static void
add_freed (struct writeback *c, const struct freed *f)
{
  struct freed_list *l = c->freed;
  struct freed *last = l->nr > 0 ? &l->freed[l->nr - 1] : NULL;

  l->bytes += f->bytes;
  atomic_fetch_add (&c->bytes_freed, f->bytes);
  atomic_fetch_add (&c->bytes_next, f->bytes);
  if (c->suspects != NULL)
    suspects_clear (c->suspects, f->host.v >> c->cluster_bits, f->nr);
  if (last != NULL && last->is_table == f->is_table &&
      last->host.v + (last->nr << c->cluster_bits) == f->host.v) {
    last->nr += f->nr;
    last->bytes += f->bytes;
    return;
  }
  l->freed[l->nr++] = *f;
  atomic_fetch_add (&c->nr_freed, 1);
  atomic_fetch_add (&c->nr_next, 1);
}

/* Write sectors of zeros out, so that they have space.  They can't change
 * meanwhile (C6): space_lock is held.
 */
static int
write_zero_sectors (struct writeback *c, struct host_off slice, uint8_t sectors)
{
  static const uint8_t zeros[CACHE_SECTOR];
  unsigned i;

  for (i = 0; sectors >> i != 0; ++i) {
    const struct host_off at = { slice.v + i * CACHE_SECTOR };

    if ((sectors >> i & 1) &&
        storage_write (c->tables, zeros, sizeof zeros, at) == -1)
      return -1;
  }
  return 0;
}

/* Allocate space for these sectors of a slice, and if possible for the whole
 * slice, since the others will need it as well.
 */
static int
allocate_sectors (struct writeback *c, struct host_off slice, uint8_t sectors)
{
  const unsigned first = __builtin_ctz (sectors);
  const unsigned end = 32 - __builtin_clz (sectors);
  const struct host_off at = { slice.v + first * CACHE_SECTOR };
  bool done;

  if (storage_allocate (c->tables, slice, c->slice_bytes, &done) == 0) {
    if (done)
      sectors = UINT8_MAX;
    else if (write_zero_sectors (c, slice, sectors) == -1)
      return -1;
  }
  else if (storage_allocate (c->tables, at, (end - first) * CACHE_SECTOR,
                             &done) == -1)
    return -1;
  cache_note_space (c->cache, c->id, slice, sectors);
  return 0;
}

int
writeback_allocate_table (struct writeback *c, struct host_off table)
{
  bool done;
  int r;

  pthread_mutex_lock (&c->space_lock);
  r = storage_allocate (c->tables, table, UINT64_C (1) << c->cluster_bits,
                        &done);
  if (r == 0 && done)
    c->allocated[c->next_allocated++ % WRITEBACK_ALLOCATED] = table;
  pthread_mutex_unlock (&c->space_lock);
  return r;
}

/* Whether a slice is in one of the last tables.  A cluster that is no longer a
 * table is never looked up; should it become one again, it gets space again.
 */
static bool
is_in_last_tables (const struct writeback *c, struct host_off slice)
{
  const uint64_t table = slice.v >> c->cluster_bits << c->cluster_bits;
  unsigned i;

  for (i = 0; i < WRITEBACK_ALLOCATED; ++i) {
    if (table != 0 && c->allocated[i].v == table)
      return true;
  }
  return false;
}

/* T6 */
static int
find_space (struct writeback *c, const struct change *ch)
{
  uint8_t lacking;
  int r = 0;

  pthread_mutex_lock (&c->space_lock);
  /* Another thread may have done it by now. */
  lacking = cache_lacking_space (c->cache, c->id, ch->slice, ch->first,
                                 ch->nr);
  if (lacking != 0 && is_in_last_tables (c, ch->slice))
    cache_note_space (c->cache, c->id, ch->slice, UINT8_MAX);
  else if (lacking != 0)
    r = allocate_sectors (c, ch->slice, lacking);
  pthread_mutex_unlock (&c->space_lock);
  return r;
}

/* One attempt. */
static int
try_change (struct writeback *c, const struct change *ch, uint64_t *batch,
            enum cache_update *result)
{
  unsigned i;
  int r;

  pthread_mutex_lock (&c->changes);
  r = reserve_freed (c, ch->nr_freed);
  if (r == 0) {
    *result = cache_update (c->cache, c->id, ch->slice, ch->first, ch->nr,
                            ch->words, ch->order);
    if (*result == CACHE_UPDATED) {
      c->ordered |= ch->ordered;
      for (i = 0; i < ch->nr_freed; ++i)
        add_freed (c, &ch->freed[i]);
      if (batch != NULL)
        *batch = c->taken + 1;
    }
  }
  pthread_mutex_unlock (&c->changes);
  return r;
}

int
writeback_change (struct writeback *c, const struct change *ch, uint64_t *batch)
{
  enum cache_update result = CACHE_ABSENT;
  struct cache_ref ref;

  for (;;) {
    if (try_change (c, ch, batch, &result) == -1)
      return -1;
    switch (result) {
    case CACHE_UPDATED:
      return 0;
    case CACHE_ABSENT:
      if (cache_get (c->cache, c->tables, c->id, ch->slice, c->slice_bytes,
                     1, &ref) == -1)
        return -1;
      break;
    case CACHE_CROWDED:
      if (writeback_flush (c) == -1)
        return -1;
      break;
    case CACHE_LACKS_SPACE:
      if (find_space (c, ch) == -1)
        return -1;
      break;
    }
  }
}

int
writeback_free (struct writeback *c, const struct freed *freed, unsigned nr)
{
  unsigned i;
  int r;

  pthread_mutex_lock (&c->changes);
  r = reserve_freed (c, nr);
  for (i = 0; r == 0 && i < nr; ++i)
    add_freed (c, &freed[i]);
  pthread_mutex_unlock (&c->changes);
  if (r == -1)
    writeback_lost (c);
  return r;
}

/* ----------------------------------------------------------------- failing */

/* What has failed first is what counts.  lock held. */
static void
fail_once (struct writeback *c, bool corrupt)
{
  if (atomic_load (&c->failed))
    return;
  snprintf (c->message, sizeof c->message, "%s", error_text ());
  atomic_store (&c->corrupt, corrupt);
  atomic_store (&c->failed, true);
}

void
writeback_fail (struct writeback *c)
{
  pthread_mutex_lock (&c->lock);
  fail_once (c, false);
  pthread_mutex_unlock (&c->lock);
}

void
writeback_fail_corrupt (struct writeback *c)
{
  pthread_mutex_lock (&c->lock);
  fail_once (c, true);
  pthread_mutex_unlock (&c->lock);
}

int
writeback_check (struct writeback *c)
{
  if (!atomic_load_explicit (&c->failed, memory_order_acquire))
    return 0;
  pthread_mutex_lock (&c->lock);
  error_set (EIO, "%s: nothing is written any more until it is opened again, "
             "since this failed: %s", c->tables->name, c->message);
  pthread_mutex_unlock (&c->lock);
  error_set_repeated ();
  return -1;
}

/* ----------------------------------------------------------------- batches */

static int
flush_storage (struct writeback *c)
{
  if (batch_flush (c->tables, c->data) == 0)
    return 0;
  writeback_fail (c);
  return -1;
}

static int
write_batch (struct writeback *c, bool ordered)
{
  if (batch_write (&c->batch, ordered, c->tables, c->data) == 0)
    return 0;
  if (error_errno () != ENOSPC) /* T3 */
    writeback_fail (c);
  return -1;
}

void
writeback_set_ballast (struct writeback *c, struct host_off host,
                       uint64_t bytes)
{
  pthread_mutex_lock (&c->space_lock);
  c->ballast = host;
  c->ballast_bytes = bytes;
  pthread_mutex_unlock (&c->space_lock);
}

bool
writeback_has_ballast (struct writeback *c)
{
  bool r;

  pthread_mutex_lock (&c->space_lock);
  r = c->ballast_bytes > 0;
  pthread_mutex_unlock (&c->space_lock);
  return r;
}

/* A flush follows, as some file systems need one to notice. */
bool
writeback_spend_ballast (struct writeback *c)
{
  bool r;

  pthread_mutex_lock (&c->space_lock);
  r = c->ballast_bytes > 0 &&
    storage_punch (c->tables, c->ballast, c->ballast_bytes);
  c->ballast_bytes = 0;
  pthread_mutex_unlock (&c->space_lock);
  return r && flush_storage (c) == 0;
}

/* The parts of a batch besides its sectors. */
struct taken {
  bool ordered;
  uint64_t nr;
  struct freed_list *freed;
};

/* T1: all at one moment. */
static int
take (struct writeback *c, struct taken *t)
{
  struct freed_list *next = calloc (1, sizeof *next);

  if (next == NULL)
    return no_memory (c);
  pthread_mutex_lock (&c->changes);
  if (cache_take_batch (c->cache, c->id, &c->batch) == -1) {
    pthread_mutex_unlock (&c->changes);
    free (next);
    return -1;
  }
  t->ordered = c->ordered;
  t->nr = ++c->taken;
  t->freed = c->freed;
  t->freed->epoch = epoch_now (c->epoch);
  t->freed->batch = t->nr;
  c->ordered = false;
  c->freed = next;
  atomic_store (&c->nr_next, 0);
  atomic_store (&c->bytes_next, 0);
  pthread_mutex_unlock (&c->changes);
  return 0;
}

/* T3: all of it goes into the next batch.  Without memory for the list, those
 * clusters are lost.
 */
static void
give_back (struct writeback *c, struct taken *t)
{
  struct freed_list *l = t->freed;
  size_t i;

  pthread_mutex_lock (&c->changes);
  cache_end_batch (c->cache, c->id, &c->batch, false);
  c->ordered = true; /* some of it may have been written already */
  if (reserve_freed (c, l->nr) == 0) {
    for (i = 0; i < l->nr; ++i)
      add_freed (c, &l->freed[i]);
  }
  else
    writeback_lost (c);
  pthread_mutex_unlock (&c->changes);
  writeback_free_list (c, l);
}

/* T2 */
static void
pass_on_freed (struct writeback *c, struct freed_list *l)
{
  if (l->nr == 0) {
    writeback_free_list (c, l);
    return;
  }
  pthread_mutex_lock (&c->freed_lock);
  *c->last_freed = l;
  c->last_freed = &l->next;
  pthread_mutex_unlock (&c->freed_lock);
}

/* T4: only one at a time. */
static int
run (struct writeback *c)
{
  struct taken t = { 0 };
  bool unflushed;
  int r;

  if (writeback_check (c) == -1 || take (c, &t) == -1)
    return -1;
  unflushed = atomic_exchange (&c->unflushed, false);
  if (c->batch.nr > 0 || unflushed) {
    r = write_batch (c, t.ordered);
    if (r == -1 && error_errno () == ENOSPC && writeback_spend_ballast (c))
      r = write_batch (c, t.ordered);
    if (r == -1) {
      atomic_store (&c->unflushed, true);
      give_back (c, &t);
      return -1;
    }
  }
  cache_end_batch (c->cache, c->id, &c->batch, true);
  atomic_store (&c->durable, t.nr);
  pass_on_freed (c, t.freed);
  return 0;
}

int
writeback_flush (struct writeback *c)
{
  uint64_t mine;
  int r;

  pthread_mutex_lock (&c->lock);
  mine = c->started + 1; /* the first to take all present changes */
  while (c->ended < mine) {
    if (c->running) {
      pthread_cond_wait (&c->done, &c->lock);
      continue;
    }
    c->running = true;
    c->started++;
    pthread_mutex_unlock (&c->lock);
    r = run (c);
    pthread_mutex_lock (&c->lock);
    c->running = false;
    c->ended = c->started;
    c->result = r == 0 ? 0 : error_errno ();
    if (r == -1 && !atomic_load (&c->failed))
      snprintf (c->message, sizeof c->message, "%s", error_text ());
    pthread_cond_broadcast (&c->done);
    pthread_mutex_unlock (&c->lock);
    return r;
  }
  r = c->result == 0 ? 0 : -1;
  if (r == -1) {
    error_set (c->result, "%s", c->message);
    error_set_repeated ();
  }
  pthread_mutex_unlock (&c->lock);
  return r;
}

bool
writeback_is_clean (struct writeback *c)
{
  return cache_is_clean (c->cache, c->id);
}

static uint64_t
max_freed_bytes (const struct writeback *c)
{
  const uint64_t part = atomic_load (&c->tables->size) / FREED_PART;

  if (c->max_freed != 0)
    return c->max_freed;
  return part < MIN_FREED_BYTES ? MIN_FREED_BYTES
    : part > MAX_FREED_BYTES ? MAX_FREED_BYTES : part;
}

bool
writeback_is_wanted (struct writeback *c)
{
  return atomic_load (&c->nr_next) >= MANY_FREED ||
    atomic_load (&c->bytes_next) >= max_freed_bytes (c) / 2 ||
    cache_wants_writing (c->cache, c->id);
}

bool
writeback_is_behind (struct writeback *c)
{
  return atomic_load (&c->nr_freed) >= MAX_FREED ||
    atomic_load (&c->bytes_freed) >= max_freed_bytes (c);
}

struct freed_list *
writeback_next_freed (struct writeback *c)
{
  struct freed_list *l;

  pthread_mutex_lock (&c->freed_lock);
  l = c->first_freed;
  if (l != NULL) {
    epoch_advance (c->epoch, l->epoch);
    if (epoch_is_past (c->epoch, l->epoch)) {
      c->first_freed = l->next;
      if (c->first_freed == NULL)
        c->last_freed = &c->first_freed;
    }
    else
      l = NULL;
  }
  pthread_mutex_unlock (&c->freed_lock);
  return l;
}

bool
writeback_has_freed (struct writeback *c, uint64_t batch)
{
  bool has;

  pthread_mutex_lock (&c->freed_lock);
  has = c->first_freed != NULL && c->first_freed->batch <= batch;
  pthread_mutex_unlock (&c->freed_lock);
  return has;
}

/* ------------------------------------------------------------------- leaks */

uint64_t
writeback_set_suspects (struct writeback *c, struct suspects *s)
{
  uint64_t batch;

  pthread_mutex_lock (&c->changes);
  c->suspects = s;
  batch = c->taken + 1;
  pthread_mutex_unlock (&c->changes);
  return batch;
}

void
writeback_not_leaked (struct writeback *c, struct host_off host, uint64_t nr)
{
  pthread_mutex_lock (&c->changes);
  if (c->suspects != NULL)
    suspects_clear (c->suspects, host.v >> c->cluster_bits, nr);
  pthread_mutex_unlock (&c->changes);
}

void
writeback_table_not_leaked (struct writeback *c, const struct entry_format *f,
                            const uint64_t *words, uint64_t nr_words)
{
  pthread_mutex_lock (&c->changes);
  if (c->suspects != NULL)
    suspects_clear_table (c->suspects, f, words, nr_words);
  pthread_mutex_unlock (&c->changes);
}
