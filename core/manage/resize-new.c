/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/advice.h"
#include "base/error.h"
#include "disk/read.h"
#include "manage/create.h"
#include "manage/door.h"
#include "manage/resize-parts.h"
#include "qcow2/entry.h"

#define PIECE_BYTES (UINT64_C (256) << 10) /* of L2 tables, are written at once */

static int
no_memory (const struct resize *z)
{
  error_set (ENOMEM, "%s: out of memory", z->e->storage->name);
  return -1;
}

static uint64_t
clusters_of (const struct resize *z, uint64_t bytes)
{
  const struct header *h = &z->e->header;

  return (bytes >> h->cluster_bits) + ((bytes & (h->cluster_size - 1)) != 0);
}

/* ------------------------------------------------------------------- planning */

/* Up to where the backing file would show beyond the old end; 0: nowhere. */
static int
find_hidden (const struct resize *z, uint64_t *end)
{
  const struct header *h = &z->e->header;
  const struct layer *disk = z->o->disk;
  uint64_t size;

  *end = 0;
  if (h->backing_name[0] == '\0' || z->o->size <= h->disk_size)
    return 0;
  if (disk == NULL || disk->backing == NULL) {
    error_set (ENOTSUP, "%s: it has a backing file, and what that has beyond "
               "the end of the disk must not appear", z->e->storage->name);
    advise (ADVICE_FOLLOW);
    return -1;
  }
  size = disk->backing->size;
  if (size > h->disk_size)
    *end = size < z->o->size ? size : z->o->size;
  return 0;
}

static bool
is_zero (const uint8_t *p, uint64_t count)
{
  return p[0] == 0 && memcmp (p, p + 1, count - 1) == 0;
}

/* Get what the guest sees of the cluster that the old end cuts; the rest of it is
 * going to be zeros.
 */
static int
read_edge (struct resize *z)
{
  const struct header *h = &z->e->header;
  const uint64_t count = h->disk_size & (h->cluster_size - 1);
  const struct guest_off at = { h->disk_size - count };
  const struct layer *l;

  for (l = z->o->disk; l != NULL; l = l->backing)
    if (door_check (l, z->o->disk->encrypted) == -1)
      return -1;
  if (h->encryption != ENCRYPTION_NONE && z->o->data == NULL) {
    door_locked (z->e->storage, "without which the cluster can't be written that "
                 "the end of its disk cuts");
    return -1;
  }
  z->new.edge = calloc (1, h->cluster_size);
  if (z->new.edge == NULL)
    return no_memory (z);
  if (layer_read (z->o->disk, z->new.edge, count, at) == -1)
    return -1;
  if (is_zero (z->new.edge, h->cluster_size)) {
    free (z->new.edge);
    z->new.edge = NULL;
  }
  return 0;
}

static int
check_preallocation (const struct resize *z)
{
  const struct header *h = &z->e->header;

  if (z->o->preallocation == PREALLOCATION_OFF)
    return 0;
  if (z->o->size <= h->disk_size)
    error_set (EINVAL, "%s: preallocation is for a disk that grows",
               z->e->storage->name);
  else if (h->encryption != ENCRYPTION_NONE)
    error_set (ENOTSUP, "%s: preallocation and encryption exclude each other: "
               "zeros that are not enciphered would not read as zeros",
               z->e->storage->name);
  else
    return 0;
  return -1;
}

/* Version 2 has no entries of zeros: the clusters that hide are holes there. */
static int
count_mapped (struct resize *z)
{
  struct resize_new *n = &z->new;

  n->mapped = n->edge != NULL;
  if (z->o->preallocation != PREALLOCATION_OFF || z->e->header.version < 3)
    n->mapped = n->end - n->first;
  if (n->mapped == 0 || z->e->header.encryption == ENCRYPTION_NONE ||
      z->e->header.version >= 3)
    return 0;
  error_set (ENOTSUP, "%s: it is encrypted, and version 2 has no clusters of "
             "zeros, to hide what the backing file has beyond the end of the "
             "disk, at %" PRIu64, z->e->storage->name, z->e->header.disk_size);
  return -1;
}

int
resize_plan_new (struct resize *z)
{
  const struct header *h = &z->e->header;
  struct resize_new *n = &z->new;
  uint64_t hidden;

  if (check_preallocation (z) == -1 || find_hidden (z, &hidden) == -1)
    return -1;
  n->first = n->end = clusters_of (z, h->disk_size);
  if (hidden > 0 || z->o->preallocation != PREALLOCATION_OFF)
    n->end = clusters_of (z, z->o->preallocation != PREALLOCATION_OFF
                          ? z->o->size : hidden);
  if (hidden > 0) {
    n->is_edge = (h->disk_size & (h->cluster_size - 1)) != 0;
    n->first -= n->is_edge;
    n->hidden_end = clusters_of (z, hidden);
  }
  if (n->is_edge && read_edge (z) == -1)
    return -1;
  return count_mapped (z);
}

/* -------------------------------------------------------------------- entries */

/* The words of an entry that is new, big endian. */
static void
new_entry (const struct resize *z, uint64_t cluster, struct host_off data,
           uint64_t *words)
{
  const struct resize_new *n = &z->new;
  const unsigned step = z->e->format.extended_l2 ? 2 : 1;
  const uint64_t i = cluster - n->first;
  struct host_off host = HOST_NONE;
  uint32_t allocated = 0, zero = UINT32_MAX;
  uint64_t word[2];
  unsigned j;

  if (i < n->mapped) {
    host.v = data.v + (i << z->e->header.cluster_bits);
    /* Where nothing is to be hidden subclusters are yet to be allocated. */
    allocated = cluster < n->hidden_end || step == 1 ? UINT32_MAX : 0;
    zero = 0;
  }
  entry_encode_l2 (&z->e->format, host, i < n->mapped, allocated, zero, word);
  for (j = 0; j < step; ++j)
    words[j] = htobe64 (word[j]);
}

/* An entry that is kept.  If a snapshot has the table as well, it has a second
 * reference to the cluster.
 */
static void
keep_entry (const struct resize *z, const uint64_t *from, bool alone,
            uint64_t *words)
{
  words[0] = from[0];
  if (z->e->format.extended_l2)
    words[1] = from[1];
  if (!alone && !(words[0] & htobe64 (QCOW2_L2_COMPRESSED)))
    words[0] &= ~htobe64 (QCOW2_ENTRY_COPIED);
}

/* The i-th entry of the new tables. */
static void
make_entry (const struct resize *z, uint64_t i, struct host_off data,
            bool alone, uint64_t *words)
{
  const unsigned step = z->e->format.extended_l2 ? 2 : 1;
  const uint64_t cluster = z->first_table * resize_per_table (z) + i;

  if (z->cut != NULL && i < z->cut_first)
    keep_entry (z, z->cut + i * step, alone, words);
  else if (cluster >= z->new.first && cluster < z->new.end)
    new_entry (z, cluster, data, words);
  else
    memset (words, 0, step * sizeof *words);
}

int
resize_fill_tables (const struct resize *z, struct host_off tables,
                    struct host_off data, bool alone)
{
  const unsigned step = z->e->format.extended_l2 ? 2 : 1;
  const uint64_t total = z->nr_tables * resize_per_table (z);
  const uint64_t in_piece = PIECE_BYTES / sizeof (uint64_t) / step;
  uint64_t *words = malloc (PIECE_BYTES), i, n;
  int r = 0;

  if (words == NULL)
    return no_memory (z);
  for (i = 0; r == 0 && i < total; i += n) {
    const struct host_off at = { tables.v + i * step * sizeof *words };

    for (n = 0; n < in_piece && i + n < total; ++n)
      make_entry (z, i + n, data, alone, words + n * step);
    r = storage_write (z->e->storage, words, n * step * sizeof *words, at);
  }
  free (words);
  return r;
}

/* ----------------------------------------------------------------------- data */

/* They may be clusters that were in use once, or be beyond the file's end. */
static int
make_zeros (const struct resize *z, struct host_off at, uint64_t bytes)
{
  struct storage *s = z->e->storage;
  const uint64_t end = at.v + bytes, size = atomic_load (&s->size);
  const uint64_t old = size <= at.v ? 0 : size < end ? size - at.v : bytes;
  bool done; /* or as well as the storage can */

  if (z->o->preallocation == PREALLOCATION_FULL)
    return create_zeros (s, at, bytes);
  if ((size < end && storage_resize (s, end) == -1) ||
      (old > 0 && storage_zero (s, at, old, true) == -1))
    return -1;
  return z->o->preallocation != PREALLOCATION_FALLOC ? 0
    : storage_allocate (s, at, bytes, &done);
}

/* To the first of the new clusters. */
static int
write_edge (const struct resize *z, struct host_off at)
{
  struct storage *s = z->e->header.encryption != ENCRYPTION_NONE ? z->o->data
    : z->e->storage;

  return storage_write (s, z->new.edge, z->e->header.cluster_size, at);
}

int
resize_fill_data (const struct resize *z, struct host_off data)
{
  const struct header *h = &z->e->header;
  const uint64_t bytes = z->new.mapped << h->cluster_bits;
  const uint64_t edge = z->new.edge != NULL ? h->cluster_size : 0;

  if (edge > 0 && write_edge (z, data) == -1)
    return -1;
  return bytes == edge ? 0
    : make_zeros (z, (struct host_off) { data.v + edge }, bytes - edge);
}
