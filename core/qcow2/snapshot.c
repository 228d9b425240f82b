/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/snapshot.h"

/* NBD limits an export's name to 4096 bytes; leave room for a prefix. */
#define MAX_LABEL 4000

/* Reads the table from its start, checking that every byte is within the file
 * and the table's limit.  Entries have several small pieces and can be many,
 * so pieces are read together.
 */
struct cursor {
  struct storage *storage;
  uint64_t start, at;
  uint64_t ahead;     /* offset of what is in buf; 0: nothing is */
  uint8_t buf[32768];
};

static int
read_piece (struct cursor *c, void *buf, uint64_t count)
{
  const struct host_off at = { c->at };

  if (c->ahead == 0 || c->at < c->ahead ||
      c->at + count > c->ahead + sizeof c->buf) {
    c->ahead = 0;
    /* If what follows can't be read, this still may be readable. */
    if (count > sizeof c->buf ||
        storage_read (c->storage, c->buf, sizeof c->buf, at) == -1)
      return storage_read (c->storage, buf, count, at);
    c->ahead = c->at;
  }
  memcpy (buf, c->buf + (c->at - c->ahead), count);
  return 0;
}

static int
take (struct cursor *c, void *buf, uint64_t count)
{
  if (count > c->storage->size - c->at ||
      c->at + count - c->start > QCOW2_MAX_SNAPSHOT_TABLE_BYTES) {
    error_set (EINVAL, "%s: snapshot table at offset 0x%" PRIx64 ": the entry "
               "at offset 0x%" PRIx64 " is outside the file or makes the "
               "table larger than %" PRIu64 " bytes", c->storage->name,
               c->start, c->at, QCOW2_MAX_SNAPSHOT_TABLE_BYTES);
    return -1;
  }
  if (buf != NULL && read_piece (c, buf, count) == -1)
    return -1;
  c->at += count;
  return 0;
}

static char *
take_string (struct cursor *c, size_t len)
{
  char *s = malloc (len + 1);

  if (s == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  if (take (c, s, len) == -1) {
    free (s);
    return NULL;
  }
  s[len] = '\0';
  return s;
}

static int
read_entry (struct cursor *c, const struct header *h, struct snapshot *sn,
            bool *has_unknown)
{
  uint8_t entry[QCOW2_SNAPSHOT_ENTRY_SIZE];
  uint8_t extra[QCOW2_SNAPSHOT_EXTRA_KNOWN];
  uint64_t extra_size, known;

  if (take (c, entry, sizeof entry) == -1)
    return -1;
  sn->l1_offset.v = get_be64 (entry + QCOW2_SNAPSHOT_FIELD_L1_OFFSET);
  sn->l1_size = get_be32 (entry + QCOW2_SNAPSHOT_FIELD_L1_SIZE);
  sn->date_sec = get_be32 (entry + QCOW2_SNAPSHOT_FIELD_DATE_SEC);
  sn->date_nsec = get_be32 (entry + QCOW2_SNAPSHOT_FIELD_DATE_NSEC);
  sn->vm_clock_nsec = get_be64 (entry + QCOW2_SNAPSHOT_FIELD_VM_CLOCK);
  sn->icount = UINT64_MAX;
  sn->vm_state_size = get_be32 (entry + QCOW2_SNAPSHOT_FIELD_VM_STATE_SIZE);
  sn->disk_size = h->disk_size;

  /* QEMU refuses more than QCOW2_MAX_SNAPSHOT_EXTRA.  Here the rest is skipped,
   * which is no reason to withhold the disk; after a repair QEMU reads the
   * image again.
   */
  extra_size = get_be32 (entry + QCOW2_SNAPSHOT_FIELD_EXTRA_SIZE);
  *has_unknown |= extra_size > QCOW2_SNAPSHOT_EXTRA_KNOWN;
  known = extra_size < QCOW2_SNAPSHOT_EXTRA_KNOWN ? extra_size
    : QCOW2_SNAPSHOT_EXTRA_KNOWN;
  if (take (c, extra, known) == -1 ||
      take (c, NULL, extra_size - known) == -1)
    return -1;
  if (known >= QCOW2_SNAPSHOT_EXTRA_VM_STATE_SIZE + 8)
    sn->vm_state_size = get_be64 (extra + QCOW2_SNAPSHOT_EXTRA_VM_STATE_SIZE);
  sn->has_disk_size = known >= QCOW2_SNAPSHOT_EXTRA_DISK_SIZE + 8;
  if (sn->has_disk_size)
    sn->disk_size = get_be64 (extra + QCOW2_SNAPSHOT_EXTRA_DISK_SIZE);
  if (known >= QCOW2_SNAPSHOT_EXTRA_ICOUNT + 8)
    sn->icount = get_be64 (extra + QCOW2_SNAPSHOT_EXTRA_ICOUNT);

  sn->id = take_string (c, get_be16 (entry + QCOW2_SNAPSHOT_FIELD_ID_SIZE));
  if (sn->id == NULL)
    return -1;
  sn->name = take_string (c, get_be16 (entry + QCOW2_SNAPSHOT_FIELD_NAME_SIZE));
  if (sn->name == NULL)
    return -1;

  /* Entries are aligned to 8 bytes, but the file may end with the last. */
  c->at += (8 - (c->at - c->start) % 8) % 8;
  if (c->at > c->storage->size)
    c->at = c->storage->size;
  return 0;
}

/* Whether this can be an export's name: it is printable, and neither empty nor
 * too long.
 */
static bool
is_presentable (const char *s)
{
  return strlen (s) <= MAX_LABEL && error_is_printable_name (s);
}

static int
compare_strings (const void *a, const void *b)
{
  return strcmp (*(const char *const *) a, *(const char *const *) b);
}

static bool
contains (const char *const *sorted, size_t nr, const char *s)
{
  return bsearch (&s, sorted, nr, sizeof *sorted, compare_strings) != NULL;
}

/* Keep the presentable strings that occur only once.  Sorts. */
static size_t
keep_unique (const char **s, size_t nr)
{
  size_t from = 0, to = 0;

  qsort (s, nr, sizeof *s, compare_strings);
  while (from < nr) {
    size_t next = from + 1;

    while (next < nr && strcmp (s[from], s[next]) == 0)
      next++;
    if (next == from + 1 && is_presentable (s[from]))
      s[to++] = s[from];
    from = next;
  }
  return to;
}

/* Give each snapshot its label.  There can be 65536, hence the sorting. */
static int
choose_labels (struct snapshots *t)
{
  const char **names = calloc (t->nr, sizeof *names);
  const char **ids = calloc (t->nr, sizeof *ids);
  size_t nr_names, nr_ids;
  uint32_t i;

  if (names == NULL || ids == NULL) {
    free (names);
    free (ids);
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  for (i = 0; i < t->nr; ++i) {
    names[i] = t->snapshot[i].name;
    ids[i] = t->snapshot[i].id;
  }
  nr_names = keep_unique (names, t->nr);
  nr_ids = keep_unique (ids, t->nr);
  for (i = 0; i < t->nr; ++i) {
    struct snapshot *sn = &t->snapshot[i];

    if (contains (names, nr_names, sn->name))
      sn->label = sn->name;
    else if (contains (ids, nr_ids, sn->id) &&
             !contains (names, nr_names, sn->id))
      sn->label = sn->id;
  }
  free (names);
  free (ids);
  return 0;
}

int
snapshots_read (struct snapshots *t, const struct header *h, struct storage *s)
{
  struct cursor c = {
    .storage = s,
    .start = h->snapshots_offset.v,
    .at = h->snapshots_offset.v,
  };

  memset (t, 0, sizeof *t);
  if (h->nr_snapshots == 0)
    return 0;
  t->snapshot = calloc (h->nr_snapshots, sizeof *t->snapshot);
  if (t->snapshot == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  while (t->nr < h->nr_snapshots) {
    if (read_entry (&c, h, &t->snapshot[t->nr++], &t->has_unknown) == -1)
      goto err;
  }
  if (choose_labels (t) == -1)
    goto err;
  t->table_bytes = c.at - c.start;
  return 0;

 err:
  snapshots_free (t);
  return -1;
}

void
snapshots_free (struct snapshots *t)
{
  uint32_t i;

  for (i = 0; i < t->nr; ++i) {
    free (t->snapshot[i].id);
    free (t->snapshot[i].name);
  }
  free (t->snapshot);
  memset (t, 0, sizeof *t);
}

const struct snapshot *
snapshots_find (const struct snapshots *t, const char *label)
{
  const struct snapshot *by_id = NULL;
  unsigned nr_ids = 0;
  uint32_t i;

  if (label[0] == '\0')
    return NULL;
  for (i = 0; i < t->nr; ++i) {
    const struct snapshot *sn = &t->snapshot[i];

    if (sn->label != NULL && strcmp (sn->label, label) == 0)
      return sn;
    if (strcmp (sn->id, label) == 0) {
      by_id = sn;
      nr_ids++;
    }
  }
  return nr_ids == 1 ? by_id : NULL;
}

int
snapshot_check (const struct snapshot *sn, const struct header *h,
                const struct storage *s)
{
  char what[64];

  snprintf (what, sizeof what, "L1 table of snapshot %.20s", sn->id);
  if (sn->disk_size > INT64_MAX) {
    error_set (EINVAL, "%s: snapshot %.20s: disk size %" PRIu64 " is more "
               "than 2^63 - 1", s->name, sn->id, sn->disk_size);
    return -1;
  }
  return header_check_table (s->name, h, s->size, what,
                             h->snapshots_offset.v, sn->l1_offset,
                             sn->l1_size, sizeof (uint64_t),
                             QCOW2_MAX_L1_BYTES);
}
