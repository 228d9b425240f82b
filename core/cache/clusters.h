/* SPDX-License-Identifier: BSD-3-Clause */

/* A small cache of decoded clusters, so that many small reads of one
 * compressed cluster decode it once.  It knows nothing of qcow2.
 *
 * The least recently used cluster makes room.  Memory is bounded (I11) by the
 * bytes that are given, or one cluster if that is more, plus one cluster for
 * each thread that decodes or copies.
 */

#ifndef CORE_CACHE_CLUSTERS_H
#define CORE_CACHE_CLUSTERS_H

#include <stddef.h>
#include <stdint.h>

#define CLUSTER_CACHE_MAX_BYTES ((size_t) 16 << 20)
#define CLUSTER_CACHE_MAX_CLUSTERS 256

struct cluster_cache;

/* Keeps so many bytes, and never less than the cluster that was decoded last.
 * NULL: the error is set.
 */
extern struct cluster_cache *cluster_cache_new (size_t bytes);
/* NULL is allowed; otherwise no user may be left. */
extern void cluster_cache_free (struct cluster_cache *d);

/* The compressed data: the storage's id, and its size and offset there. */
struct cluster_cache_key {
  unsigned id;
  uint32_t size;
  uint64_t offset;
};

/* Decode into out, of out_len bytes; returns -1 with the error set. */
typedef int (*decode_fn) (void *opaque, void *out, size_t out_len);

/* Copy count bytes, from skip on, of the cluster with this key, of
 * cluster_size bytes, into buf.  If it is not cached, decode is called with no
 * lock held: straight into buf if the whole cluster is wanted, else into the
 * cache, while other threads that want the cluster wait.  Returns -1 with the
 * error set (decode's, or ENOMEM).
 */
extern int cluster_cache_read (struct cluster_cache *d,
                               struct cluster_cache_key key,
                               size_t cluster_size, size_t skip, void *buf,
                               size_t count, decode_fn decode, void *opaque);

/* Forget what was decoded from these bytes of a storage, as they are about to
 * change.  Reads already running still get the old contents.
 */
extern void cluster_cache_forget (struct cluster_cache *d, unsigned id,
                                  uint64_t offset, uint64_t bytes);

#endif /* CORE_CACHE_CLUSTERS_H */
