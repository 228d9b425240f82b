/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/edit.h"
#include "manage/empty.h"
#include "manage/tables.h"

/* What is mapped loses its user. */
static int
count_mapped (const struct tables *live, struct edit *e, struct refs *refs)
{
  return edit_open_refs (e, refs) == -1 ? -1 : tables_add (live, refs, -1);
}

static int
check_snapshots (const struct edit *e)
{
  if (e->snapshots.nr == 0)
    return 0;
  error_set (ENOTSUP, "%s: it has internal snapshots, which would have another "
             "content", e->storage->name);
  return -1;
}

/* All that can be known before something is written. */
static int
try_to_empty (struct edit *e, struct tables *live)
{
  struct refs refs = { 0 };
  int r;

  if (check_snapshots (e) == -1 ||
      tables_read (live, e->storage, &e->format, e->header.l1_offset,
                   e->header.l1_size) == -1)
    return -1;
  r = count_mapped (live, e, &refs);
  refs_close (&refs);
  return r;
}

int
empty_check (struct storage *s)
{
  struct tables live = { 0 };
  struct edit e;
  int r;

  if (edit_open (&e, s) == -1)
    return -1;
  r = try_to_empty (&e, &live);
  tables_free (&live);
  edit_close (&e);
  return r == -1 ? -1 : edit_check_references (s);
}

static int
clear_l1 (struct edit *e, const struct tables *live)
{
  const size_t bytes = live->nr * sizeof live->l1[0];
  void *zeros = calloc (1, bytes);
  int r;

  if (zeros == NULL) {
    error_set (ENOMEM, "%s: out of memory", e->storage->name);
    return -1;
  }
  r = storage_write (e->storage, zeros, bytes, live->at);
  free (zeros);
  return r == -1 ? -1 : storage_flush (e->storage);
}

static int
free_mapped (struct edit *e, const struct tables *live)
{
  struct refs refs = { 0 };
  int r = count_mapped (live, e, &refs);

  if (r == 0)
    r = edit_write_refs (e, &refs);
  if (r == 0)
    r = edit_end (e, &refs);
  refs_close (&refs);
  return r;
}

static int
empty (struct edit *e, const struct tables *live)
{
  if (live->nr_uses == 0)
    return 0;
  if (edit_begin (e) == -1)
    return -1;
  if (clear_l1 (e, live) == -1) {
    error_append (" (some of what it maps may be gone from it, and clusters "
                  "leaked)");
    return -1;
  }
  if (free_mapped (e, live) == 0)
    return 0;
  error_append (" (it maps nothing any more, and clusters are leaked)");
  return -1;
}

int
empty_disk (struct storage *s)
{
  struct tables live = { 0 };
  struct edit e;
  int r;

  if (edit_open (&e, s) == -1)
    return -1;
  r = try_to_empty (&e, &live);
  if (r == 0)
    r = empty (&e, &live);
  tables_free (&live);
  edit_close (&e);
  return r;
}
