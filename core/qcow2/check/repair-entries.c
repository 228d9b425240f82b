/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/check/fix-up.h"
#include "qcow2/check/repair-entries.h"
#include "qcow2/check/walk.h"

struct pass {
  struct repair *repair;
  bool set; /* set COPIED flags, else clear them */
  uint8_t *old;
};

static int
write_changed (struct pass *p, struct host_off place, const uint8_t *words,
               size_t bytes)
{
  if (memcmp (p->old, words, bytes) == 0)
    return 0;
  p->repair->changed = true;
  return check_write_changed (p->repair->c.storage, place, p->old, words,
                              bytes);
}

/* Walk over all tables; the visitor's opaque is a pass. */
static int
walk (struct repair *r, struct check_visitor v, bool set)
{
  struct pass p = { .repair = r, .set = set };
  struct check_ranges l1s;
  int ret = -1;

  p.old = malloc (UINT64_C (1) << QCOW2_MAX_CLUSTER_BITS);
  if (p.old == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  v.opaque = &p;
  r->c.only_look = true;
  if (check_find_l1s (&r->c, &l1s) == 0) {
    ret = check_walk (&r->c, &l1s, &v);
    check_ranges_free (&l1s);
  }
  r->c.only_look = false;
  free (p.old);
  return ret;
}

/* --------------------------------------------------------------- fixing up */

/* With an external data file each entry says by itself where it belongs, and
 * the data may be there whatever it says: then nothing is guessed, and only
 * COPIED is put right.
 */
static bool
may_fix (const struct pass *p, uint64_t word, uint64_t fixed)
{
  return !p->repair->c.format.data_file ||
    ((word ^ fixed) & ~QCOW2_ENTRY_COPIED) == 0;
}

/* Entries that can't be written are followed as if they were fixed up. */
static int
fix_l1 (struct check *c, void *opaque, struct host_off place,
        uint8_t *words, size_t bytes, struct check_paths paths)
{
  struct pass *p = opaque;
  size_t i;

  (void) paths;
  for (i = 0; i < bytes; i += 8) {
    const struct host_off at = { place.v + i };
    const uint64_t word = get_be64 (words + i);
    const uint64_t fixed = check_fix_l1 (&c->format, c->file_size, word);

    put_be64 (p->old + i, word);
    put_be64 (words + i, fixed);
    if (fixed != word && (!may_fix (p, word, fixed) ||
                          !repair_may_write (p->repair, at))) {
      put_be64 (p->old + i, fixed);
      p->repair->not_fixed++;
    }
  }
  return write_changed (p, place, words, bytes);
}

static int
fix_l2 (struct check *c, void *opaque, struct host_off table,
        struct host_off place, uint8_t *words, size_t bytes,
        struct check_paths paths)
{
  const size_t entry_size = c->h.extended_l2 ? 16 : 8;
  struct pass *p = opaque;
  uint64_t nr = 0;
  size_t i;

  (void) paths;
  memcpy (p->old, words, bytes);
  for (i = 0; i < bytes; i += entry_size) {
    uint64_t entry[2] = { get_be64 (words + i), 0 };

    if (c->h.extended_l2)
      entry[1] = get_be64 (words + i + 8);
    if (!check_fix_l2 (&c->format, c->file_size,
                        check_guest_of (c, table, (struct host_off) {
                            place.v + i }), entry))
      continue;
    if (!may_fix (p, get_be64 (words + i), entry[0]) ||
        (c->h.extended_l2 &&
         !may_fix (p, get_be64 (words + i + 8), entry[1]))) {
      p->repair->not_fixed++;
      put_be64 (p->old + i, entry[0]);
      if (c->h.extended_l2)
        put_be64 (p->old + i + 8, entry[1]);
    }
    else
      nr++;
    put_be64 (words + i, entry[0]);
    if (c->h.extended_l2)
      put_be64 (words + i + 8, entry[1]);
  }
  if (repair_may_write (p->repair, place))
    return write_changed (p, place, words, bytes);
  p->repair->not_fixed += nr;
  return 0;
}

int
repair_fix_entries (struct repair *r)
{
  const struct check_visitor v = { .l1 = fix_l1, .l2 = fix_l2 };

  r->not_fixed = 0;
  return walk (r, v, false);
}

/* ------------------------------------------------------------------ COPIED */

/* The entry's word with the right COPIED flag, if this window and this pass
 * decide it.
 */
static uint64_t
flagged (const struct pass *p, uint64_t word)
{
  struct check *c = &p->repair->c;
  const uint64_t offset = word & QCOW2_ENTRY_OFFSET_MASK;
  const uint64_t cluster = offset >> c->h.cluster_bits;
  const uint64_t max = entry_refcount_max (c->h.refcount_order);
  const struct counts_chunk *k;
  bool alone;

  if (offset == 0 || offset >= c->file_size ||
      !counts_in_window (&c->counts, cluster))
    return word;
  k = counts_find (&c->counts, cluster);
  /* With 1-bit refcounts keep COPIED: copying would lower to 0 a cluster still
   * in use.
   */
  alone = k != NULL && (max == 1 || counts_get (&c->counts, k, cluster) == 1);
  if (p->set)
    return alone ? word | QCOW2_ENTRY_COPIED : word;
  return alone ? word : word & ~QCOW2_ENTRY_COPIED;
}

/* The L1 table may overlap others. */
static int
flag_l1 (struct check *c, void *opaque, struct host_off place,
         uint8_t *words, size_t bytes, struct check_paths paths)
{
  struct pass *p = opaque;
  size_t i;

  memcpy (p->old, words, bytes);
  for (i = 0; i < bytes; i += 8) {
    const struct host_off at = { place.v + i };
    const uint64_t word = check_fix_l1 (&c->format, c->file_size,
                                         get_be64 (words + i));

    if (word != 0 && paths.active > 0 && repair_may_write (p->repair, at))
      put_be64 (words + i, flagged (p, word));
  }
  if (write_changed (p, place, words, bytes) == -1)
    return -1;
  for (i = 0; i < bytes; i += 8)
    put_be64 (words + i, check_fix_l1 (&c->format, c->file_size,
                                        get_be64 (words + i)));
  return 0;
}

static int
flag_l2 (struct check *c, void *opaque, struct host_off table,
         struct host_off place, uint8_t *words, size_t bytes,
         struct check_paths paths)
{
  const size_t entry_size = c->h.extended_l2 ? 16 : 8;
  struct pass *p = opaque;
  size_t i;

  (void) table;
  /* References to an external data file are right since repair_fix_entries. */
  if (paths.active == 0 || c->format.data_file ||
      !repair_may_write (p->repair, place))
    return 0;
  memcpy (p->old, words, bytes);
  for (i = 0; i < bytes; i += entry_size) {
    const uint64_t word = get_be64 (words + i);

    if (!(word & QCOW2_L2_COMPRESSED))
      put_be64 (words + i, flagged (p, word));
  }
  return write_changed (p, place, words, bytes);
}

static const struct check_visitor flag_visitor = {
  .l1 = flag_l1,
  .l2 = flag_l2,
};

static int
clear_window (struct repair *r, uint64_t next, void *opaque)
{
  (void) next;
  (void) opaque;
  return walk (r, flag_visitor, false);
}

static int
set_window (struct repair *r, uint64_t next, void *opaque)
{
  (void) next;
  (void) opaque;
  return walk (r, flag_visitor, true);
}

int
repair_clear_copied (struct repair *r)
{
  return repair_each_window (r, clear_window, NULL);
}

int
repair_set_copied (struct repair *r)
{
  return repair_each_window (r, set_window, NULL);
}
