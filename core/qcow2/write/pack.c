/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "qcow2/entry.h"
#include "qcow2/write/alloc-parts.h"

/* How many reserved clusters packing gets at once: a part of a batch, up to
 * this.
 */
#define PACK_CLUSTERS 16
#define PACK_PART 4

static inline uint64_t
cluster_start (const struct alloc *s, uint64_t byte)
{
  return byte >> s->cluster_bits << s->cluster_bits;
}

static inline uint64_t
next_cluster (const struct alloc *s, uint64_t byte)
{
  return cluster_start (s, byte + (UINT64_C (1) << s->cluster_bits) - 1);
}

/* Clusters for packing that have no data yet.  refcounts_lock held. */
uint64_t
pack_unused (const struct alloc *s)
{
  const uint64_t from = next_cluster (s, s->pack_at);

  return from < s->pack_end ? (s->pack_end - from) >> s->cluster_bits : 0;
}

/* Return the unused clusters for packing to the reserve.  refcounts_lock
 * held.
 */
void
pack_stop (struct alloc *s)
{
  const uint64_t from = next_cluster (s, s->pack_at);
  const struct host_off host = { from };

  if (pack_unused (s) > 0)
    alloc_give_back (s, host, pack_unused (s));
  s->pack_at = s->pack_end = 0;
}

/* Get more clusters for packing, if possible those that follow.
 * refcounts_lock held.
 */
static int
extend_packing (struct alloc *s)
{
  struct alloc_run r;
  uint64_t first;

  pthread_mutex_lock (&s->lock);
  if (s->in_runs > 0)
    r = reserve_take_run (s, clamp (atomic_load (&s->batch_size) / PACK_PART, 1,
                                  PACK_CLUSTERS));
  else
    r.nr = 0;
  pthread_mutex_unlock (&s->lock);
  if (r.nr == 0)
    return alloc_refill (s); /* then try again */
  first = alloc_offset (s, r.first).v;
  if (first != s->pack_end) {
    pack_stop (s);
    s->pack_at = first;
  }
  s->pack_end = first + (r.nr << s->cluster_bits);
  return 0;
}

/* Add a reference to the cluster in which the last data ended.  *shared is
 * false if it can't have one: packing then continues in another cluster.
 */
static int
share_cluster (struct alloc *s, bool *shared)
{
  const uint64_t cluster = s->pack_at >> s->cluster_bits;
  uint64_t refcount, nr;

  *shared = false;
  if (refcount_run (&s->refcounts, cluster, 1, &refcount, &nr) == -1)
    return -1;
  if (refcount == 0 || refcount == entry_refcount_max (s->refcounts.order))
    return 0;
  *shared = true;
  return refcount_set (&s->refcounts, cluster, 1, refcount + 1, NULL);
}

/* refcounts_lock held. */
static int
take_bytes (struct alloc *s, uint64_t bytes, struct host_off *host)
{
  bool shared = true;

  while (s->pack_end - s->pack_at < bytes) {
    if (extend_packing (s) == -1)
      return -1;
  }
  if (s->pack_at != cluster_start (s, s->pack_at) &&
      share_cluster (s, &shared) == -1)
    return -1;
  if (!shared) {
    s->pack_at = next_cluster (s, s->pack_at);
    return take_bytes (s, bytes, host);
  }
  host->v = s->pack_at;
  s->pack_at += bytes;
  return 0;
}

int
alloc_take_bytes (struct alloc *s, uint64_t bytes, struct host_off *host)
{
  int r;

  alloc_lock_refcounts (s);
  r = take_bytes (s, bytes, host);
  pthread_mutex_unlock (&s->refcounts_lock);
  return r;
}

/* Packing must not continue in clusters that have just become free.
 * refcounts_lock held.
 */
void
pack_leave (struct alloc *s, uint64_t first, uint64_t nr)
{
  const uint64_t from = alloc_offset (s, first).v;

  if (s->pack_at > from && s->pack_at < from + (nr << s->cluster_bits))
    pack_stop (s);
}

void
pack_not_leaked (struct alloc *s)
{
  /* The cluster in which packing continues may soon have more references. */
  const uint64_t from = cluster_start (s, s->pack_at);
  const uint64_t to = next_cluster (s, s->pack_end);

  writeback_not_leaked (s->writeback, (struct host_off) { from },
                        (to - from) >> s->cluster_bits);
}
