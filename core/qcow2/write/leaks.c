/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/error.h"
#include "qcow2/check/fix-up.h"
#include "qcow2/check/walk.h"
#include "qcow2/write/frozen.h"
#include "qcow2/write/leaks.h"

/* How many bytes of leaks (or a cluster more), and how many pieces, may wait
 * to be reclaimed.
 */
#define STEP_BYTES (UINT64_C (16) << 20)
#define STEP_RUNS 1024

/* Budget of the walk over the tables, at most; an eighth is for a list of them. */
#define WALK_MEMORY (UINT64_C (64) << 20)

struct leaks {
  struct writer *w;
  uint64_t memory;           /* budget of the walk, in bytes */
  struct suspects *suspects; /* of this pass */
  uint64_t from, to;         /* the clusters that it is about */
  uint64_t freed;            /* clusters */
  uint64_t waiting;          /* bytes given up, in waiting_runs pieces */
  unsigned waiting_runs;
  bool complete;             /* of its thread, until that has ended */
  _Atomic bool ended, stop;
  pthread_t thread;
};

static inline struct storage *
storage (const struct leaks *l)
{
  return l->w->disk->tables;
}

/* Returns -1 with the error set if the thread is to end. */
static int
check_stop (const struct leaks *l)
{
  if (!atomic_load (&l->stop))
    return 0;
  error_set (EINTR, "%s: the image is closed", storage (l)->name);
  return -1;
}

static int
wait_a_little (const struct leaks *l)
{
  const struct timespec pause = { .tv_nsec = 1000000 };

  nanosleep (&pause, NULL);
  return check_stop (l);
}

/* ----------------------------------------------------------------- waiting */

/* Flush, and wait until all that was given up in batches up to this one, which
 * is the next one at most, is reclaimed.
 */
static int
wait_for_batch (struct leaks *l, uint64_t batch)
{
  if (writer_flush (l->w) == -1)
    return -1;
  while (!alloc_has_reclaimed (&l->w->alloc, batch)) {
    if (wait_a_little (l) == -1)
      return -1;
  }
  return 0;
}

/* Wait until all current requests have ended, and make their changes durable.
 */
static int
wait_for_requests (struct leaks *l)
{
  struct epoch *e = l->w->disk->shared->epoch;
  const uint64_t then = epoch_now (e);

  for (;;) {
    epoch_advance (e, then);
    if (epoch_is_past (e, then))
      return writer_flush (l->w);
    if (wait_a_little (l) == -1)
      return -1;
  }
}

/* --------------------------------------------------------------- refcounts */

static inline uint64_t
block_end (const struct leaks *l, uint64_t cluster)
{
  return ((cluster >> l->w->alloc.refcounts.block_bits) + 1)
    << l->w->alloc.refcounts.block_bits;
}

/* Whether a block is entirely a hole.  For a small one asking costs more than
 * reading it.
 */
static int
is_hole (struct leaks *l, struct host_off block, bool *hole)
{
  const uint64_t bytes = l->w->header.cluster_size;
  uint64_t length;

  *hole = false;
  if (bytes < CACHE_SLOT_BYTES)
    return 0;
  if (storage_extent (storage (l), block, bytes, hole, &length) == -1)
    return -1;
  *hole = *hole && length >= bytes;
  return 0;
}

/* Suspect the clusters of as many blocks as there is room for, from l->from
 * on; l->to is where the next pass begins.  Returns 0 if none are left.
 */
static int
choose_blocks (struct leaks *l)
{
  struct host_off block;
  bool hole;
  int r;

  for (l->to = l->from;;) {
    uint64_t cluster = l->to;

    r = alloc_next_block (&l->w->alloc, &cluster, &block);
    if (r != 1)
      break;
    if (check_stop (l) == -1 || is_hole (l, block, &hole) == -1)
      return -1;
    if (!hole) {
      r = suspects_add (l->suspects, cluster,
                        block_end (l, cluster) - cluster);
      if (r == -1)
        return -1;
      if (r == 0)
        break;
    }
    l->to = block_end (l, cluster);
  }
  suspects_clear (l->suspects, 0, l->from);
  suspects_clear (l->suspects, l->to, UINT64_MAX);
  return r == -1 ? -1 : l->suspects->nr > 0;
}

/* Clusters with a refcount of 1 stay suspects. */
static int
look_at_block (struct leaks *l, uint64_t first, struct host_off block,
               uint64_t *words)
{
  const unsigned order = l->w->header.refcount_order;
  const uint64_t nr = block_end (l, first) - first;
  uint64_t i;
  bool hole;

  if (is_hole (l, block, &hole) == -1)
    return -1;
  if (hole) {
    suspects_clear (l->suspects, first, nr);
    return 0;
  }
  if (storage_read (storage (l), words, l->w->header.cluster_size,
                    block) == -1)
    return -1;
  for (i = 0; i < nr; ++i) {
    if (entry_get_refcount (order, be64toh (words[(i << order) / 64]), i) != 1)
      suspects_clear (l->suspects, first + i, 1);
  }
  return 0;
}

static int
look_at_refcounts (struct leaks *l)
{
  uint64_t *words = malloc (l->w->header.cluster_size);
  uint64_t at = l->from;
  int r = words == NULL ? -1 : 1;

  if (words == NULL)
    error_set (ENOMEM, "out of memory");
  while (r == 1 && at < l->to) {
    uint64_t cluster = at;
    struct host_off block;

    r = check_stop (l) == -1 ? -1
      : alloc_next_block (&l->w->alloc, &cluster, &block);
    if (r == -1)
      break;
    if (r == 0 || cluster >= l->to)
      cluster = l->to;
    suspects_clear (l->suspects, at, cluster - at);
    at = cluster;
    if (at < l->to) {
      r = look_at_block (l, at, block, words) == -1 ? -1 : 1;
      at = block_end (l, at);
    }
  }
  free (words);
  return r == -1 ? -1 : 0;
}

/* ------------------------------------------------------------------ tables */

static int
damaged (const struct leaks *l, struct host_off place)
{
  error_set (EIO, "%s: damaged, or not known here: what is at offset 0x%"
             PRIx64, storage (l)->name, place.v);
  return -1;
}

static void
refer (void *opaque, enum check_use use, uint64_t offset, uint64_t bytes,
       uint64_t n)
{
  struct leaks *l = opaque;

  (void) use;
  (void) n;
  suspects_clear_bytes (l->suspects, (struct host_off) { offset }, bytes);
}

/* The file's current size, which may have grown, rounded up to a sector. */
static inline uint64_t
file_size (const struct leaks *l)
{
  return (atomic_load (&storage (l)->size) + 511) & ~UINT64_C (511);
}

static int
look_at_l1 (struct check *c, void *opaque, struct host_off place,
            uint8_t *words, size_t bytes, struct check_paths paths)
{
  struct leaks *l = opaque;
  const uint64_t size = file_size (l);
  size_t i;

  (void) paths;
  for (i = 0; i < bytes; i += 8) {
    const uint64_t word = get_be64 (words + i);

    if (word == 0)
      continue;
    if (check_fix_l1 (&c->format, size, word) != word)
      return damaged (l, (struct host_off) { place.v + i });
    suspects_clear_bytes (l->suspects, (struct host_off) {
        word & QCOW2_ENTRY_OFFSET_MASK }, c->h.cluster_size);
  }
  return check_stop (l);
}

static int
look_at_l2 (struct check *c, void *opaque, struct host_off table,
            struct host_off place, uint8_t *words, size_t bytes,
            struct check_paths paths)
{
  struct leaks *l = opaque;
  const uint64_t size = file_size (l);
  const size_t step = c->h.extended_l2 ? 16 : 8;
  size_t i;

  (void) paths;
  for (i = 0; i < bytes; i += step) {
    const struct host_off at = { place.v + i };
    uint64_t entry[2] = {
      get_be64 (words + i), step == 16 ? get_be64 (words + i + 8) : 0
    };

    if ((entry[0] | entry[1]) != 0 &&
        (check_fix_l2 (&c->format, size, check_guest_of (c, table, at),
                       entry) ||
         !suspects_clear_entry (l->suspects, &c->format, entry[0], entry[1])))
      return damaged (l, at);
  }
  return check_stop (l);
}

static int
walk (struct leaks *l, struct check *c)
{
  const struct check_visitor visitor = {
    .l1 = look_at_l1, .l2 = look_at_l2, .opaque = l,
  };
  const struct check_report *report = &c->findings.report;
  struct check_ranges l1s = { 0 };
  int r;

  r = check_find_l1s (c, &l1s);
  if (r == 0)
    r = check_walk (c, &l1s, &visitor);
  check_ranges_free (&l1s);
  if (r == -1 || check_bitmaps (c) == -1 || check_luks_header (c) == -1)
    return -1;
  if (c->h.has_unknown || report->blind || report->bitmaps_damaged ||
      atomic_load (&l->suspects->unsure))
    return damaged (l, (struct host_off) { 0 });
  return 0;
}

static int
look_at_tables (struct leaks *l)
{
  const struct check_options options = { .memory = l->memory };
  struct check c;
  int r;

  if (check_start (&c, storage (l), &options) == -1)
    return -1;
  c.fixed_up = true; /* nothing is to be judged */
  c.referred = refer;
  c.opaque = l;
  r = walk (l, &c);
  check_end (&c);
  return r;
}

/* ----------------------------------------------------------------- freeing */

static int
is_leaked (struct leaks *l, uint64_t cluster, bool *leaked)
{
  const struct host_off host = { cluster << l->w->header.cluster_bits };
  uint64_t refcount;

  *leaked = false;
  if (overlap_find (&l->w->overlap, host,
                    l->w->header.cluster_size) != METADATA_NONE)
    return 0;
  if (alloc_refcount (&l->w->alloc, host, &refcount) == -1)
    return -1;
  *leaked = refcount == 1;
  return 0;
}

/* Find the contiguous leaks from this suspect on. */
static int
find_run (struct leaks *l, uint64_t cluster, struct freed *run)
{
  const unsigned bits = l->w->header.cluster_bits;
  const uint64_t most = STEP_BYTES >> bits > 0 ? STEP_BYTES >> bits : 1;
  uint64_t next = cluster;
  bool leaked = true;

  *run = (struct freed) { .host.v = cluster << bits };
  while (run->nr < most && suspects_next (l->suspects, &next) &&
         next == cluster + run->nr) {
    if (is_leaked (l, next, &leaked) == -1)
      return -1;
    if (!leaked)
      break;
    run->nr++;
    next++;
  }
  run->bytes = run->nr << bits;
  return 0;
}

/* Wait until what was given up is reclaimed. */
static int
finish_step (struct leaks *l)
{
  /* What was given up before is in this batch at the latest. */
  const uint64_t batch = writeback_set_suspects (&l->w->writeback, l->suspects);

  l->waiting = l->waiting_runs = 0;
  return wait_for_batch (l, batch);
}

static int
give_up (struct leaks *l, const struct freed *run)
{
  if (writer_begin (l->w, (struct guest_off) { 0 }, 0) == -1 ||
      writeback_free (&l->w->writeback, run, 1) == -1)
    return -1;
  l->freed += run->nr;
  l->waiting += run->bytes;
  l->waiting_runs++;
  return l->waiting < STEP_BYTES && l->waiting_runs < STEP_RUNS ? 0
    : finish_step (l);
}

static int
free_the_rest (struct leaks *l)
{
  uint64_t cluster = 0;

  while (suspects_next (l->suspects, &cluster)) {
    struct freed run;

    if (check_stop (l) == -1 || find_run (l, cluster, &run) == -1 ||
        (run.nr > 0 && give_up (l, &run) == -1))
      return -1;
    cluster += run.nr + 1;
  }
  if (l->waiting_runs > 0 && finish_step (l) == -1)
    return -1;
  return writer_flush (l->w); /* the refcounts that were lowered last */
}

/* ---------------------------------------------------------------- the scan */

/* As qcow2/write/leaks.h has it. */
static int
run_steps (struct leaks *l)
{
  const uint64_t batch = writeback_set_suspects (&l->w->writeback, l->suspects);
  int r;

  frozen_not_leaked (l->w, l->suspects);
  if (wait_for_batch (l, batch) == -1 || writer_flush (l->w) == -1 ||
      look_at_refcounts (l) == -1)
    return -1;
  alloc_not_leaked (&l->w->alloc);
  r = wait_for_requests (l);
  if (r == 0)
    r = look_at_tables (l);
  return r == -1 ? -1 : free_the_rest (l);
}

/* Returns 1 if there are more to do. */
static int
run_pass (struct leaks *l)
{
  int r;

  l->suspects = suspects_new (l->w->header.cluster_bits);
  if (l->suspects == NULL)
    return -1;
  r = choose_blocks (l);
  if (r == 1 && run_steps (l) == -1)
    r = -1;
  (void) writeback_set_suspects (&l->w->writeback, NULL);
  suspects_free (l->suspects);
  l->from = l->to;
  return r;
}

static void *
leaks_main (void *opaque)
{
  struct leaks *l = opaque;
  int r;

  do
    r = run_pass (l);
  while (r == 1);
  if (r == -1)
    debug_message ("%s: %" PRIu64 " leaked clusters were freed; then the "
                   "search ended: %s", storage (l)->name, l->freed,
                   error_message ());
  else
    debug_message ("%s: %" PRIu64 " leaked clusters were freed",
                   storage (l)->name, l->freed);
  l->complete = r == 0;
  atomic_store (&l->ended, true);
  return NULL;
}

struct leaks *
leaks_start (struct writer *w, const struct snapshots *snapshots,
             uint64_t memory)
{
  struct leaks *l;

  if (w->header.has_unknown || snapshots->has_unknown) {
    debug_message ("%s: no leaks are looked for: there is something in the "
                   "image that is not known here, and may own clusters",
                   w->disk->tables->name);
    return NULL;
  }
  l = calloc (1, sizeof *l);
  if (l == NULL)
    return NULL;
  l->w = w;
  l->memory = memory < WALK_MEMORY ? memory : WALK_MEMORY;
  if (pthread_create (&l->thread, NULL, leaks_main, l) == 0)
    return l;
  free (l);
  return NULL;
}

bool
leaks_have_ended (const struct leaks *l)
{
  return atomic_load (&l->ended);
}

bool
leaks_stop (struct leaks *l)
{
  bool complete;

  if (l == NULL)
    return false;
  atomic_store (&l->stop, true);
  pthread_join (l->thread, NULL);
  complete = l->complete;
  free (l);
  return complete;
}
