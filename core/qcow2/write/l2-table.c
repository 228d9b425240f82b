/* SPDX-License-Identifier: BSD-3-Clause */

/* L2 tables that may be changed in place: made, or copied from a snapshot's. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/l2-range.h"
#include "qcow2/write/writer.h"

/* --------------------------------------------------------------- L2 tables */

/* Have the L1 entry point to this table.  ordered: see struct change. */
static int
set_l1 (struct writer *w, const struct map_l1 *l1, struct host_off table,
        bool ordered, const struct freed *old)
{
  const uint32_t slice_bytes = qcow2_map (w->disk)->slice_bytes;
  const uint64_t word = table.v | QCOW2_ENTRY_COPIED;
  const struct change ch = {
    .slice.v = l1->place.v / slice_bytes * slice_bytes,
    .first = l1->place.v % slice_bytes / sizeof word,
    .nr = 1,
    .words = &word,
    .order = CACHE_SECOND,
    .ordered = ordered,
    .freed = old,
    .nr_freed = old != NULL,
  };

  /* If a damaged image said that a snapshot's table is free, then it may be
   * that, and in the cache.
   */
  cache_forget (qcow2_map (w->disk)->cache, qcow2_map (w->disk)->id, table,
                qcow2_map (w->disk)->cluster_size, slice_bytes);
  return writeback_change (&w->writeback, &ch, NULL);
}

/* A cluster that shall be zeros (P2): a damaged image may have the disk write
 * to it as well, and what was written is not to be taken for entries.
 */
static int
check_zero (struct writer *w, struct host_off table)
{
  const uint32_t bytes = qcow2_map (w->disk)->cluster_size;
  bool zero;

  if (storage_is_zero (w->disk->tables, table, bytes, &zero) == -1)
    return -1;
  return zero ? 0 : writer_found_corrupt (w, "data would be taken for",
                                          METADATA_L2, table, bytes);
}

/* An L2 table that maps nothing.  In clusters that are durably zero it needs
 * no order: without its entries it is still a table that maps nothing.
 */
static int
new_table (struct writer *w, const struct map_l1 *l1,
           const struct alloc_clusters *to)
{
  const int r = to->zero ? check_zero (w, to->host)
    : storage_zero (w->disk->tables, to->host,
                    qcow2_map (w->disk)->cluster_size, false);

  if (r == -1)
    return -1;
  return set_l1 (w, l1, to->host, !to->zero || !to->durable, NULL);
}

/* Clear COPIED where the entries of a table are: two tables have them now. */
static void
clear_copied (const struct map *m, uint64_t *words)
{
  const uint64_t nr = m->cluster_size / sizeof *words;
  uint64_t i;

  for (i = 0; i < nr; i += UINT64_C (1) << m->l2_word_bits) {
    if (!(words[i] & htobe64 (QCOW2_L2_COMPRESSED)))
      words[i] &= ~htobe64 (QCOW2_ENTRY_COPIED);
  }
}

/* A copy of a table that a snapshot has as well. */
static int
copy_l2_table (struct writer *w, const struct map_l1 *l1,
               const struct alloc_clusters *to)
{
  const struct map *m = qcow2_map (w->disk);
  struct freed old = { .host = l1->table, .nr = 1, .is_table = true };
  uint64_t *words = malloc (m->cluster_size);
  uint64_t refcount;
  int r = -1;

  if (words == NULL) {
    error_set (ENOMEM, "%s: out of memory", writer_name (w));
    return -1;
  }
  if (alloc_refcount (&w->alloc, l1->table, &refcount) == 0 &&
      l2_range_read (m, l1->table, m->cluster_size / m->slice_bytes,
                     words) == 0) {
    if (refcount != 1)
      clear_copied (m, words);
    else
      old.bytes = m->cluster_size;
    r = storage_write (m->tables, words, m->cluster_size, to->host);
    /* The search for leaks may read the old table too late. */
    writeback_table_not_leaked (&w->writeback, &m->format, words,
                                m->cluster_size / sizeof *words);
  }
  free (words);
  return r == -1 ? -1 : set_l1 (w, l1, to->host, true, &old);
}

/* tables is held. */
static int
make_l2_table (struct writer *w, const struct map_l1 *l1,
               struct host_off *table)
{
  struct alloc_clusters to;
  int r;

  if (writer_take (w, ALLOC_NO_GUEST, 1, &to) == -1)
    return -1;
  r = writeback_allocate_table (&w->writeback, to.host);
  if (r == 0)
    r = overlap_add (&w->overlap, writer_name (w), to.host, 1,
                     METADATA_L2); /* P1 */
  if (r == 0) {
    r = l1->table.v == 0 ? new_table (w, l1, &to) : copy_l2_table (w, l1, &to);
    if (r == -1)
      overlap_remove (&w->overlap, to.host, 1);
  }
  if (r == -1)
    alloc_give_back (&w->alloc, to.host, 1);
  *table = to.host;
  return r;
}

int
writer_table (struct writer *w, struct guest_off offset,
              struct host_off *table)
{
  struct map_l1 l1;
  int r;

  if (map_l1_entry (qcow2_map (w->disk), offset, &l1) == -1)
    return -1;
  *table = l1.table;
  if (l1.copied && l1.table.v != 0)
    return 0;
  pthread_mutex_lock (&w->tables);
  r = map_l1_entry (qcow2_map (w->disk), offset, &l1);
  if (r == 0) {
    *table = l1.table;
    if (!l1.copied || l1.table.v == 0)
      r = make_l2_table (w, &l1, table);
  }
  pthread_mutex_unlock (&w->tables);
  return r;
}
