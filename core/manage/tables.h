/* SPDX-License-Identifier: BSD-3-Clause */

/* The tables of one disk of an image, live or a snapshot's, as a whole: what
 * they refer to, and their COPIED flags.  Spec: Cluster mapping.
 *
 * An L2 table that is in use n times is read once, and counts n times.
 *
 * Memory: the L1 table, and 16 bytes for each L2 table.  One thread, no locks.
 */

#ifndef CORE_MANAGE_TABLES_H
#define CORE_MANAGE_TABLES_H

#include <stddef.h>
#include <stdint.h>

#include "manage/refs.h"
#include "qcow2/entry.h"
#include "storage/storage.h"

struct tables_use {
  uint64_t table; /* host offset */
  uint64_t n;     /* entries of the L1 table that refer to it */
};

struct tables {
  struct storage *storage;
  struct entry_format format;
  struct host_off at; /* of the L1 table */
  uint64_t *l1;       /* its entries, big endian */
  uint64_t nr;
  struct tables_use *use; /* by their places in the file */
  size_t nr_uses;
};

/* Read an L1 table that was checked by header_check_table.  Returns -1 with the
 * error set: EIO if an entry of it is damaged.
 */
extern int tables_read (struct tables *t, struct storage *s,
                        const struct entry_format *f, struct host_off l1,
                        uint64_t nr);
extern void tables_free (struct tables *t); /* also after that has failed */

/* Add n, which is not 0, to the refcounts of all that they refer to: L2 tables
 * and clusters of data.  Returns -1 with the error set: EIO if an entry is
 * damaged, else as refs_change.
 */
extern int tables_add (const struct tables *t, struct refs *refs, int64_t n);

/* The same for the clusters that one L2 table refers to, words, which was read
 * from there, from its entry of this number on.
 */
extern int tables_add_entries (const struct tables *t, struct refs *refs,
                               struct host_off table, const uint64_t *words,
                               uint64_t first, int64_t n);

/* Set COPIED, in the file and in t->l1, in the entries of clusters with a
 * refcount of 1, and clear it in others.  Returns -1 with the error set.
 */
extern int tables_set_copied (struct tables *t, struct refs *refs);

/* Write those of the sectors of count bytes, at a multiple of 512, that have
 * changed from old to now.  Returns -1 with the error set.
 */
extern int tables_write_changed (struct storage *s, struct host_off at,
                                 const void *old, const void *now,
                                 uint64_t count);

#endif /* CORE_MANAGE_TABLES_H */
