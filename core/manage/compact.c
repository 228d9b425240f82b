/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/advice.h"
#include "base/error.h"
#include "manage/compact-parts.h"
#include "manage/door.h"
#include "manage/tables.h"
#include "qcow2/check/check.h"

#define COPY_BYTES (UINT64_C (1) << 20)
#define BUFFER_ALIGNMENT 4096

static const char may_leak[] = " (clusters may be leaked)";

/* ------------------------------------------------------------------- refusing */

static int
check_supported (const struct edit *e, const struct compact_options *o)
{
  const char *why = NULL;

  /* Legacy AES enciphers by the place on the disk, LUKS by that in the file. */
  if (e->header.encryption == ENCRYPTION_LUKS && o->data == NULL) {
    door_locked (e->storage, "without which data can't move, as LUKS enciphers "
                 "it by its place");
    return -1;
  }
  if (e->header.has_unknown || e->snapshots.has_unknown)
    why = "it has contents that are unknown here";
  else if (e->header.nr_bitmaps > 0 && !writer_has_bitmaps (&e->header))
    why = "it has bitmaps that are not valid any more";
  if (why == NULL)
    return 0;
  error_set (ENOTSUP, "%s: %s, which this does not support", e->storage->name,
             why);
  return -1;
}

/* What has no reference is not moved: nothing would tell where it has gone. */
static int
check_no_leaks (struct storage *s)
{
  const struct check_options options = { .messages = 0 };
  struct check_report report;

  if (edit_check_references (s) == -1 ||
      check_storage (s, &options, &report) == -1)
    return -1;
  if (report.leaks == 0 && check_report_is_sound (&report))
    return 0;
  error_set (EIO, "%s: %" PRIu64 " errors, and %" PRIu64 " leaked clusters, "
             "which can't move", s->name, report.corruptions, report.leaks);
  advise (ADVICE_REPAIR);
  return -1;
}

/* -------------------------------------------------------------------- copying */

/* What is a hole stays one, as far as the host can; but enciphered it is data like
 * any other.
 */
static int
copy_run (struct storage *s, struct host_off from, struct host_off to,
          uint64_t bytes, void *buf)
{
  if (storage_hole (s, from) >= bytes)
    return storage_zero (s, to, bytes, true);
  return storage_read (s, buf, bytes, from) == -1 ? -1
    : storage_write (s, buf, bytes, to);
}

/* How many of the moves from this one on go from neighbours to neighbours, through
 * the same door.
 */
static size_t
count_together (const struct compact *c, size_t first, size_t max)
{
  const struct compact_move *m = &c->move[first];
  size_t n;

  for (n = 1; n < max && first + n < c->nr_moves; ++n)
    if (m[n].from != m->from + n || m[n].to != m->to + n ||
        compact_door (c, first + n) != compact_door (c, first))
      break;
  return n;
}

/* total and *done: clusters. */
static int
copy_clusters (struct compact *c, uint64_t *done, uint64_t total)
{
  const struct compact_options *o = c->options;
  const unsigned bits = c->e.header.cluster_bits;
  const size_t max = COPY_BYTES >> bits > 0 ? COPY_BYTES >> bits : 1;
  void *buf = aligned_alloc (BUFFER_ALIGNMENT, max << bits);
  size_t i, n;
  int r = 0;

  if (buf == NULL) {
    error_set (ENOMEM, "%s: out of memory", c->e.storage->name);
    return -1;
  }
  for (i = 0; r == 0 && i < c->nr_moves; i += n, *done += n) {
    const struct compact_move *m = &c->move[i];

    n = count_together (c, i, max);
    r = copy_run (compact_door (c, i), (struct host_off) { m->from << bits },
                  (struct host_off) { m->to << bits }, n << bits, buf);
    if (r == 0 && o->progress != NULL &&
        !o->progress (o->opaque, (*done + n) << bits, total << bits)) {
      error_set (EINTR, "interrupted");
      r = -1;
    }
  }
  free (buf);
  return r;
}

/* Of free clusters, for want of space. */
static void
give_back_copies (struct compact *c)
{
  const unsigned bits = c->e.header.cluster_bits;
  struct error_kept kept;
  size_t i;

  error_keep (&kept);
  for (i = 0; kept.errnum == ENOSPC && i < c->nr_moves; ++i)
    (void) storage_punch (c->e.storage,
                          (struct host_off) { c->move[i].to << bits },
                          c->e.header.cluster_size);
  error_restore (&kept);
}

/* --------------------------------------------------------------------- ending */

static uint64_t
file_end (const struct compact *c, uint64_t last)
{
  return (last + 1) << c->e.header.cluster_bits;
}

/* Whether the file reaches beyond its last cluster. */
static int
is_too_long (struct compact *c, bool *too_long)
{
  uint64_t last;

  if (refs_last_used (&c->refs, UINT64_MAX, &last) == -1)
    return -1;
  *too_long = !c->e.storage->fixed_size &&
    atomic_load (&c->e.storage->size) > file_end (c, last);
  return 0;
}

/* Cut off what is free at the end, durably, and give the rest of what has become
 * free to the host.
 */
static int
cut_off (struct compact *c)
{
  struct refs *refs = &c->refs;
  uint64_t last;
  bool too_long;
  size_t i, nr = 0;

  if (is_too_long (c, &too_long) == -1 ||
      refs_last_used (refs, UINT64_MAX, &last) == -1 ||
      (too_long &&
       storage_resize (c->e.storage, file_end (c, last)) == -1))
    return -1;
  for (i = 0; i < refs->nr_freed; ++i)
    if (refs->freed[i].first <= last)
      refs->freed[nr++] = refs->freed[i];
  refs->nr_freed = nr;
  return edit_end (&c->e, refs);
}

static int
lower_moved (struct compact *c)
{
  size_t i;

  for (i = 0; i < c->nr_moves; ++i) {
    uint64_t refcount;

    if (refs_get (&c->refs, c->move[i].from, &refcount) == -1 ||
        refs_change (&c->refs, c->move[i].from, 1, -(int64_t) refcount) == -1)
      return -1;
  }
  return edit_write_refs (&c->e, &c->refs);
}

/* The copies are written: give them their refcounts; when all that is durable their
 * references; and then free what they are copies of.
 */
static int
switch_to_copies (struct compact *c)
{
  struct edit *e = &c->e;

  if (refs_write (&c->refs) == -1 ||
      refs_move_blocks (&c->refs, compact_to, c) == -1 ||
      storage_flush (e->storage) == -1 ||
      compact_tables (c, COMPACT_SWITCH) == -1 || edit_switch (e) == -1 ||
      compact_lower_pieces (c) == -1 || lower_moved (c) == -1 ||
      cut_off (c) == -1) {
    error_append ("%s", may_leak);
    return -1;
  }
  return 0;
}

static int
move_all (struct compact *c, uint64_t *done)
{
  const uint64_t rest = c->rest > c->nr_moves ? c->rest : c->nr_moves;

  if (edit_begin (&c->e) == -1)
    return -1;
  if (copy_clusters (c, done, *done + rest) == -1 ||
      compact_copy_pieces (c) == -1 ||
      compact_tables (c, COMPACT_COPY) == -1) {
    give_back_copies (c);
    return -1;
  }
  return switch_to_copies (c);
}

/* --------------------------------------------------------------- empty blocks */

/* Take the empty blocks out of the table in memory, and note in c->move those
 * whose clusters have refcounts elsewhere.
 */
static int
unlink_empty (struct compact *c, uint64_t *nr)
{
  struct refs *refs = &c->refs;
  uint64_t index = 0;
  bool own;

  for (*nr = 0;; ++*nr) {
    struct compact_move *p = compact_more (c, c->move, c->nr_moves,
                                           &c->max_moves, sizeof *p);

    if (p == NULL)
      return -1;
    c->move = p;
    if (refs_find_empty (refs, &index, &own) == -1)
      return -1;
    if (index == refs->entries)
      return 0;
    if (!own)
      p[c->nr_moves++].from = (be64toh (refs->table[index]) &
                               QCOW2_REFCOUNT_BLOCK_MASK) >>
        c->e.header.cluster_bits;
    refs->table[index] = 0;
  }
}

/* Those in c->refs are not in the table any more: make that so on the disk, and
 * free their clusters after that.
 */
static int
drop_empty (struct compact *c, const uint64_t *old)
{
  struct refs *refs = &c->refs;

  if (edit_begin (&c->e) == -1)
    return -1;
  if (tables_write_changed (c->e.storage, refs->at, old, refs->table,
                            refs->entries * sizeof old[0]) == -1 ||
      storage_flush (c->e.storage) == -1 || lower_moved (c) == -1 ||
      cut_off (c) == -1) {
    error_append ("%s", may_leak);
    return -1;
  }
  return 0;
}

/* Nothing moves any more: drop empty blocks, or else cut the file off.  *again:
 * clusters may have become free before others.
 */
static int
finish (struct compact *c, bool *again)
{
  const size_t bytes = c->refs.entries * sizeof c->refs.table[0];
  uint64_t *old = malloc (bytes + 1), nr;
  bool too_long;
  int r = -1;

  *again = false;
  if (old == NULL) {
    error_set (ENOMEM, "%s: out of memory", c->e.storage->name);
    return -1;
  }
  memcpy (old, c->refs.table, bytes);
  if (unlink_empty (c, &nr) == -1 || is_too_long (c, &too_long) == -1)
    r = -1;
  else if (nr > 0) {
    *again = true;
    r = drop_empty (c, old);
  }
  else if (too_long)
    r = edit_begin (&c->e) == -1 ? -1 : cut_off (c);
  else
    r = 0;
  free (old);
  return r;
}

/* --------------------------------------------------------------------- rounds */

static int
round_in (struct compact *c, uint64_t *done, bool *again)
{
  if (check_supported (&c->e, c->options) == -1 ||
      edit_open_refs (&c->e, &c->refs) == -1 ||
      compact_find_tables (c) == -1 || compact_plan (c) == -1 ||
      compact_find_enciphered (c) == -1 ||
      (c->nr_moves == 0 && compact_plan_pieces (c) == -1))
    return -1;
  if (c->nr_moves == 0 && c->nr_pieces == 0)
    return finish (c, again);
  *again = true;
  return move_all (c, done);
}

static int
one_round (struct storage *s, const struct compact_options *o, uint64_t *done,
           bool *again)
{
  struct compact c = { .options = o };
  int r;

  if (edit_open (&c.e, s) == -1)
    return -1;
  r = round_in (&c, done, again);
  refs_close (&c.refs);
  free (c.l2);
  free (c.row);
  free (c.move);
  free (c.kind);
  free (c.piece);
  edit_close (&c.e);
  return r;
}

int
compact_image (struct storage *s, const struct compact_options *o)
{
  struct edit e;
  uint64_t done = 0;
  bool again = true;
  int r;

  if (edit_open (&e, s) == -1)
    return -1;
  r = check_supported (&e, o);
  edit_close (&e);
  if (r == 0)
    r = check_no_leaks (s);
  while (r == 0 && again)
    r = one_round (s, o, &done, &again);
  return r;
}
