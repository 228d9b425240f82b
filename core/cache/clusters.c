/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "cache/clusters.h"

enum state {
  EMPTY, /* no key, no data */
  BUSY,  /* a thread decodes into it */
  READY,
};

struct cluster {
  enum state state;
  unsigned users; /* threads that copy from it or decode into it */
  uint64_t last_use;
  struct cluster_cache_key key;
  void *data; /* allocated bytes; NULL if 0 */
  size_t allocated;
};

/* All under the lock, except for the data of clusters that have users. */
struct cluster_cache {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  uint64_t clock;
  size_t bytes, most; /* that are allocated, and that are kept */
  unsigned recent; /* found last: the likeliest one to be wanted next */
  struct cluster cluster[CLUSTER_CACHE_MAX_CLUSTERS];
};

struct cluster_cache *
cluster_cache_new (size_t bytes)
{
  struct cluster_cache *d = calloc (1, sizeof *d);

  if (d == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  d->most = bytes;
  pthread_mutex_init (&d->lock, NULL);
  pthread_cond_init (&d->changed, NULL);
  return d;
}

void
cluster_cache_free (struct cluster_cache *d)
{
  unsigned i;

  if (d == NULL)
    return;
  for (i = 0; i < CLUSTER_CACHE_MAX_CLUSTERS; ++i)
    free (d->cluster[i].data);
  pthread_cond_destroy (&d->changed);
  pthread_mutex_destroy (&d->lock);
  free (d);
}

/* Matches no lookup, as its size is 0. */
static const struct cluster_cache_key no_key = { 0 };

static inline bool
has_key (const struct cluster *c, const struct cluster_cache_key *key)
{
  return c->state != EMPTY && c->key.offset == key->offset &&
    c->key.id == key->id && c->key.size == key->size;
}

/* Lock held. */
static struct cluster *
find (struct cluster_cache *d, const struct cluster_cache_key *key)
{
  unsigned i;

  if (has_key (&d->cluster[d->recent], key))
    return &d->cluster[d->recent];
  for (i = 0; i < CLUSTER_CACHE_MAX_CLUSTERS; ++i) {
    if (has_key (&d->cluster[i], key)) {
      d->recent = i;
      return &d->cluster[i];
    }
  }
  return NULL;
}

/* Lock held. */
static void
drop (struct cluster_cache *d, struct cluster *c)
{
  free (c->data);
  d->bytes -= c->allocated;
  memset (c, 0, sizeof *c);
}

/* Lock held.  NULL if every cluster has users. */
static struct cluster *
least_recently_used (struct cluster_cache *d)
{
  struct cluster *lru = NULL;
  unsigned i;

  for (i = 0; i < CLUSTER_CACHE_MAX_CLUSTERS; ++i) {
    struct cluster *c = &d->cluster[i];

    if (c->users == 0 && c->state == READY &&
        (lru == NULL || c->last_use < lru->last_use))
      lru = c;
  }
  return lru;
}

/* Lock held. */
static struct cluster *
find_empty (struct cluster_cache *d)
{
  unsigned i;

  for (i = 0; i < CLUSTER_CACHE_MAX_CLUSTERS; ++i) {
    if (d->cluster[i].state == EMPTY)
      return &d->cluster[i];
  }
  return NULL;
}

/* Make room for one more cluster of this size.  NULL if all are in use or
 * memory is short: the caller does without.  Lock held.
 */
static struct cluster *
make_room (struct cluster_cache *d, size_t size)
{
  struct cluster *c = find_empty (d), *lru;

  while (c == NULL || d->bytes + size > d->most) {
    lru = least_recently_used (d);
    if (lru == NULL)
      break; /* each thread may have one above the limit */
    if (lru->allocated == size)
      return lru; /* its memory will do */
    drop (d, lru);
    c = lru;
  }
  if (c == NULL)
    return NULL;
  c->data = malloc (size);
  if (c->data == NULL)
    return NULL;
  c->allocated = size;
  d->bytes += size;
  return c;
}

/* Find the cluster, waiting while it is being decoded, and add a user to it.
 * Lock held, but released while waiting.
 */
static struct cluster *
find_ready (struct cluster_cache *d, const struct cluster_cache_key *key)
{
  struct cluster *c;

  while ((c = find (d, key)) != NULL && c->state == BUSY)
    pthread_cond_wait (&d->changed, &d->lock);
  if (c != NULL) {
    c->users++;
    c->last_use = ++d->clock;
  }
  return c;
}

/* What threads had above the limit goes, but for one cluster.  Lock held. */
static void
shrink (struct cluster_cache *d)
{
  struct cluster *lru;

  while (d->bytes > d->most && (lru = least_recently_used (d)) != NULL &&
         lru->allocated < d->bytes)
    drop (d, lru);
}

static void
copy_and_release (struct cluster_cache *d, struct cluster *c, size_t skip,
                  void *buf, size_t count)
{
  memcpy (buf, (char *) c->data + skip, count);
  pthread_mutex_lock (&d->lock);
  c->users--;
  shrink (d);
  pthread_mutex_unlock (&d->lock);
}

/* Decode a cluster of which only a part is wanted, when no slot is free. */
static int
read_uncached (size_t cluster_size, size_t skip, void *buf, size_t count,
               decode_fn decode, void *opaque)
{
  void *data = malloc (cluster_size);
  int r = -1;

  if (data == NULL)
    error_set (ENOMEM, "out of memory");
  else
    r = decode (opaque, data, cluster_size);
  if (r == 0)
    memcpy (buf, (char *) data + skip, count);
  free (data);
  return r;
}

int
cluster_cache_read (struct cluster_cache *d, struct cluster_cache_key key,
                    size_t cluster_size, size_t skip, void *buf, size_t count,
                    decode_fn decode, void *opaque)
{
  struct cluster *c;
  int r;

  pthread_mutex_lock (&d->lock);
  c = find_ready (d, &key);
  if (c != NULL) {
    pthread_mutex_unlock (&d->lock);
    copy_and_release (d, c, skip, buf, count);
    return 0;
  }
  if (count == cluster_size) {
    pthread_mutex_unlock (&d->lock);
    return decode (opaque, buf, cluster_size);
  }
  c = make_room (d, cluster_size);
  if (c == NULL) {
    pthread_mutex_unlock (&d->lock);
    return read_uncached (cluster_size, skip, buf, count, decode, opaque);
  }
  c->state = BUSY;
  c->key = key;
  c->users = 1;
  c->last_use = ++d->clock;
  pthread_mutex_unlock (&d->lock);

  r = decode (opaque, c->data, cluster_size);

  pthread_mutex_lock (&d->lock);
  if (r == 0)
    c->state = READY;
  else
    drop (d, c); /* nobody else uses a BUSY cluster */
  pthread_cond_broadcast (&d->changed);
  pthread_mutex_unlock (&d->lock);
  if (r == 0)
    copy_and_release (d, c, skip, buf, count);
  return r;
}

void
cluster_cache_forget (struct cluster_cache *d, unsigned id, uint64_t offset,
                      uint64_t bytes)
{
  unsigned i;

  pthread_mutex_lock (&d->lock);
  for (i = 0; i < CLUSTER_CACHE_MAX_CLUSTERS; ++i) {
    struct cluster *c = &d->cluster[i];

    if (c->state == EMPTY || c->key.id != id ||
        c->key.offset >= offset + bytes ||
        offset >= c->key.offset + c->key.size)
      continue;
    if (c->users == 0)
      drop (d, c);
    else /* in a damaged image, where others have it as well */
      c->key = no_key;
  }
  pthread_mutex_unlock (&d->lock);
}
