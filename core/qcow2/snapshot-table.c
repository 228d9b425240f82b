/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/snapshot-table.h"

static int
no_memory (const char *name)
{
  error_set (ENOMEM, "%s: out of memory", name);
  return -1;
}

static inline uint64_t
aligned (uint64_t n)
{
  return (n + 7) & ~UINT64_C (7);
}

int
snapshot_table_read (struct snapshot_table *t, struct storage *s,
                     const struct header *h,
                     const struct snapshots *snapshots)
{
  *t = (struct snapshot_table) {
    .bytes = calloc (1, aligned (snapshots->table_bytes) + 1),
    .size = snapshots->table_bytes,
    .nr = snapshots->nr,
  };
  if (t->bytes == NULL)
    return no_memory (s->name);
  if (t->size == 0 ||
      storage_read (s, t->bytes, t->size, h->snapshots_offset) == 0)
    return 0;
  snapshot_table_free (t);
  return -1;
}

void
snapshot_table_free (struct snapshot_table *t)
{
  free (t->bytes);
  t->bytes = NULL;
}

/* Find an entry, and where the one after it is.  Returns -1 with the error set:
 * the table is not what snapshots_read has read.
 */
static int
find_entry (const struct snapshot_table *t, const char *name, uint32_t number,
            uint64_t *start, uint64_t *next)
{
  uint32_t i;

  *next = 0;
  for (i = 0; i <= number; ++i) {
    const uint8_t *p = t->bytes + *next;

    *start = *next;
    if (t->size < QCOW2_SNAPSHOT_ENTRY_SIZE ||
        *start > t->size - QCOW2_SNAPSHOT_ENTRY_SIZE) {
      error_set (EINVAL, "%s: the snapshot table has changed", name);
      return -1;
    }
    *next += aligned (QCOW2_SNAPSHOT_ENTRY_SIZE +
                      (uint64_t) get_be32 (p + QCOW2_SNAPSHOT_FIELD_EXTRA_SIZE) +
                      get_be16 (p + QCOW2_SNAPSHOT_FIELD_ID_SIZE) +
                      get_be16 (p + QCOW2_SNAPSHOT_FIELD_NAME_SIZE));
  }
  if (*next > t->size)
    *next = t->size;
  return 0;
}

int
snapshot_table_remove (struct snapshot_table *t, const char *name,
                       uint32_t number)
{
  uint64_t start, next;

  if (find_entry (t, name, number, &start, &next) == -1)
    return -1;
  memmove (t->bytes + start, t->bytes + next, t->size - next);
  t->size -= next - start;
  t->nr--;
  return 0;
}

/* ---------------------------------------------------------------- a new entry */

int
snapshot_table_check_name (const char *image, const struct snapshots *snapshots,
                           const char *name)
{
  if (strlen (name) > SNAPSHOT_MAX_NAME)
    error_set (ENOTSUP, "%s: the name of a snapshot must have at most %d "
               "bytes", image, SNAPSHOT_MAX_NAME);
  else if (snapshots->nr >= QCOW2_MAX_SNAPSHOTS)
    error_set (ENOTSUP, "%s: it has %d snapshots, and can't have more", image,
               QCOW2_MAX_SNAPSHOTS);
  else
    return 0;
  return -1;
}

int
snapshot_table_next_id (const char *image, const struct snapshots *snapshots,
                        char id[SNAPSHOT_ID_BYTES])
{
  uint64_t max = 0;
  uint32_t i;

  for (i = 0; i < snapshots->nr; ++i) {
    const uint64_t n = strtoull (snapshots->snapshot[i].id, NULL, 10);

    if (n > max)
      max = n;
  }
  if (max == UINT64_MAX) {
    error_set (ENOTSUP, "%s: there is no ID greater than that of all "
               "snapshots, %" PRIu64, image, max);
    return -1;
  }
  snprintf (id, SNAPSHOT_ID_BYTES, "%" PRIu64, max + 1);
  return 0;
}

static uint64_t
entry_bytes (const struct snapshot_new *sn)
{
  return QCOW2_SNAPSHOT_ENTRY_SIZE + QCOW2_SNAPSHOT_EXTRA_KNOWN +
    strlen (sn->id) + strlen (sn->name);
}

static void
encode (uint8_t *p, const struct snapshot_new *sn)
{
  uint8_t *extra = p + QCOW2_SNAPSHOT_ENTRY_SIZE;
  uint8_t *id = extra + QCOW2_SNAPSHOT_EXTRA_KNOWN;

  memset (p, 0, QCOW2_SNAPSHOT_ENTRY_SIZE + QCOW2_SNAPSHOT_EXTRA_KNOWN);
  put_be64 (p + QCOW2_SNAPSHOT_FIELD_L1_OFFSET, sn->l1.v);
  put_be32 (p + QCOW2_SNAPSHOT_FIELD_L1_SIZE, sn->l1_entries);
  put_be16 (p + QCOW2_SNAPSHOT_FIELD_ID_SIZE, strlen (sn->id));
  put_be16 (p + QCOW2_SNAPSHOT_FIELD_NAME_SIZE, strlen (sn->name));
  put_be32 (p + QCOW2_SNAPSHOT_FIELD_DATE_SEC, sn->date.tv_sec);
  put_be32 (p + QCOW2_SNAPSHOT_FIELD_DATE_NSEC, sn->date.tv_nsec);
  put_be32 (p + QCOW2_SNAPSHOT_FIELD_EXTRA_SIZE, QCOW2_SNAPSHOT_EXTRA_KNOWN);
  put_be64 (extra + QCOW2_SNAPSHOT_EXTRA_DISK_SIZE, sn->disk_size);
  put_be64 (extra + QCOW2_SNAPSHOT_EXTRA_ICOUNT, UINT64_MAX); /* not known */
  memcpy (id, sn->id, strlen (sn->id));
  memcpy (id + strlen (sn->id), sn->name, strlen (sn->name));
}

int
snapshot_table_append (struct snapshot_table *t, const char *name,
                       const struct snapshot_new *sn)
{
  const uint64_t start = aligned (t->size);
  const uint64_t size = start + entry_bytes (sn);
  uint8_t *bytes;

  if (size > QCOW2_MAX_SNAPSHOT_TABLE_BYTES) {
    error_set (ENOTSUP, "%s: the snapshot table would have %" PRIu64 " bytes, "
               "more than %" PRIu64, name, size,
               QCOW2_MAX_SNAPSHOT_TABLE_BYTES);
    return -1;
  }
  bytes = realloc (t->bytes, size);
  if (bytes == NULL)
    return no_memory (name);
  memset (bytes + t->size, 0, start - t->size);
  encode (bytes + start, sn);
  t->bytes = bytes;
  t->size = size;
  t->nr++;
  return 0;
}

void
snapshot_table_set_l1 (struct snapshot_table *t, struct host_off l1)
{
  uint64_t start, next;

  if (find_entry (t, "", t->nr - 1, &start, &next) == 0)
    put_be64 (t->bytes + start + QCOW2_SNAPSHOT_FIELD_L1_OFFSET, l1.v);
}
