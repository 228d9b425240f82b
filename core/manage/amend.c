/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/advice.h"
#include "base/error.h"
#include "manage/amend.h"
#include "manage/header-change.h"
#include "manage/refcount-width.h"
#include "qcow2/check/check.h"
#include "qcow2/check/walk.h"
#include "qcow2/snapshot.h"
#include "qcow2/write/writer.h"

#define CHECK_TEXT 256 /* bytes of what a check says */

struct amend {
  struct storage *s;
  const struct amend_options *o;
  struct header h; /* as it is */
  struct header_wish wish;
  struct snapshots snapshots;
  bool zeros, compressed; /* what entries there are */
  unsigned order;         /* log2 of the bits that refcounts shall have */
  bool widens_first;      /* before the header changes */
  bool widens_last;       /* after that */
};

static int
refuse (const struct amend *a, const char *why)
{
  error_set (ENOTSUP, "%s: %s", a->s->name, why);
  return -1;
}

/* ------------------------------------------------------------------- all tables */

/* opaque: the text of the first finding that is no leak. */
static void
note_damage (void *opaque, enum check_kind kind, const char *text)
{
  char *first = opaque;

  if (first[0] == '\0' && kind != CHECK_LEAK)
    snprintf (first, CHECK_TEXT, "%s", text);
}

/* What is damage in one version may mean something in the other; and tables that
 * are damaged don't tell what there is.
 */
static int
check_sound (const struct amend *a)
{
  char first[CHECK_TEXT] = "";
  const struct check_options options = {
    .messages = CHECK_MAX_MESSAGES, .found = note_damage, .opaque = first,
  };
  struct check_report report;

  if (check_storage (a->s, &options, &report) == -1)
    return -1;
  if (check_report_is_sound (&report))
    return 0;
  error_set (EIO, "%s: damaged: %s", a->s->name, first);
  advise (ADVICE_REPAIR);
  return -1;
}

static void
note_entry (struct amend *a, const struct l2_entry *e)
{
  a->zeros |= e->kind == CLUSTER_ZERO_PLAIN || e->kind == CLUSTER_ZERO_ALLOC;
  a->compressed |= e->kind == CLUSTER_COMPRESSED;
}

static int
look_at_l1 (struct check *c, void *opaque, struct host_off place,
            uint8_t *words, size_t bytes, struct check_paths paths)
{
  (void) c;
  (void) opaque;
  (void) place;
  (void) words;
  (void) bytes;
  (void) paths;
  return 0;
}

static int
look_at_l2 (struct check *c, void *opaque, struct host_off table,
            struct host_off place, uint8_t *words, size_t bytes,
            struct check_paths paths)
{
  const size_t step = c->h.extended_l2 ? 16 : 8;
  size_t i;

  (void) table;
  (void) place;
  (void) paths;
  for (i = 0; i < bytes; i += step) {
    const struct l2_entry e =
      entry_decode_l2 (&c->format, get_be64 (words + i),
                       step == 16 ? get_be64 (words + i + 8) : 0);

    note_entry (opaque, &e);
  }
  return 0;
}

/* Find out what entries there are, in the live disk and in all snapshots, of
 * which many may share a table.  check_sound was called before.
 */
static int
scan (struct amend *a)
{
  const struct check_visitor visitor = {
    .l1 = look_at_l1, .l2 = look_at_l2, .opaque = a,
  };
  const struct check_options options = { .memory = 0 };
  struct check_ranges l1s = { 0 };
  struct check c;
  int r;

  if (check_start (&c, a->s, &options) == -1)
    return -1;
  c.only_look = c.fixed_up = true; /* nothing is counted, or judged */
  r = check_find_l1s (&c, &l1s);
  if (r == 0)
    r = check_walk (&c, &l1s, &visitor);
  check_ranges_free (&l1s);
  check_end (&c);
  return r;
}

/* --------------------------------------------------------------- other versions */

/* Version 3 wants what QEMU has written in version 2, too, since 1.1. */
static int
check_upgrade (const struct amend *a)
{
  uint32_t i;

  for (i = 0; i < a->snapshots.nr; ++i)
    if (!a->snapshots.snapshot[i].has_disk_size) {
      error_set (ENOTSUP, "%s: the entry of snapshot %.20s does not say how "
                 "large its disk is, as it must in version 3", a->s->name,
                 a->snapshots.snapshot[i].id);
      return -1;
    }
  return 0;
}

static int
check_snapshots_v2 (const struct amend *a)
{
  uint32_t i;

  for (i = 0; i < a->snapshots.nr; ++i) {
    const struct snapshot *sn = &a->snapshots.snapshot[i];

    if (sn->disk_size / 512 * 512 != a->h.disk_size ||
        sn->vm_state_size > UINT32_MAX)
      return refuse (a, "version 2 can't have its internal snapshots: a disk of "
                     "another size, or a VM state of 4 GiB or more");
  }
  return 0;
}

/* Nothing that version 2 has no place for must be lost. */
static int
check_downgrade (const struct amend *a)
{
  if (a->h.refcount_order != 4)
    return refuse (a, "version 2 has refcounts of 16 bits only");
  if (a->h.has_data_file)
    return refuse (a, "version 2 has no external data files");
  if (a->h.extended_l2)
    return refuse (a, "version 2 has no extended L2 entries");
  if (writer_has_bitmaps (&a->h))
    return refuse (a, "version 2 has no persistent bitmaps");
  if (a->h.header_length > QCOW2_HEADER_LENGTH_NEW ||
      (a->h.compatible & ~QCOW2_COMPAT_LAZY_REFCOUNTS) != 0)
    return refuse (a, "its header has fields or compatible features that are "
                   "unknown, and would be lost");
  if (check_snapshots_v2 (a) == -1)
    return -1;
  if (a->zeros)
    return refuse (a, "it has clusters of zeros, and version 2 has no flag for "
                   "them");
  return 0;
}

/* ---------------------------------------------------------------------- wishes */

static int
wish_version (struct amend *a)
{
  struct header_wish *w = &a->wish;

  if (a->o->version == 0 || a->o->version == a->h.version)
    return 0;
  w->version = a->o->version;
  if (w->version == 3)
    return check_upgrade (a);
  if (check_downgrade (a) == -1)
    return -1;
  w->incompatible = w->compatible = w->autoclear = 0;
  if (w->compression == COMPRESSION_DEFLATE)
    return 0;
  if (a->compressed)
    return refuse (a, "version 2 has no compression but deflate, and it has "
                   "clusters that are compressed otherwise");
  w->compression = COMPRESSION_DEFLATE;
  return 0;
}

static int
wish_lazy (struct amend *a)
{
  const bool *lazy = a->o->lazy;

  if (lazy == NULL)
    return 0;
  if (*lazy && a->wish.version < 3)
    return refuse (a, "version 2 has no lazy refcounts");
  a->wish.compatible &= ~QCOW2_COMPAT_LAZY_REFCOUNTS;
  if (*lazy)
    a->wish.compatible |= QCOW2_COMPAT_LAZY_REFCOUNTS;
  return 0;
}

static int
wish_compression (struct amend *a)
{
  const enum compression *c = a->o->compression;

  if (c == NULL || *c == a->wish.compression)
    return 0;
  if (a->wish.version < 3)
    return refuse (a, "version 2 has no compression but deflate");
  if (a->compressed)
    return refuse (a, "it has compressed clusters, so that their type can't be "
                   "changed");
  a->wish.compression = *c;
  a->wish.incompatible &= ~QCOW2_INCOMPAT_COMPRESSION;
  if (*c != COMPRESSION_DEFLATE)
    a->wish.incompatible |= QCOW2_INCOMPAT_COMPRESSION;
  return 0;
}

static int
wish_backing (struct amend *a)
{
  if (a->o->not_raw) {
    if (!a->h.has_data_file)
      return refuse (a, "it has no external data file");
    a->wish.autoclear &= ~QCOW2_AUTOCLEAR_RAW_DATA_FILE;
  }
  if (a->o->backing == NULL && a->o->backing_format == NULL)
    return 0;
  if (a->o->backing != NULL)
    a->wish.backing_name = a->o->backing;
  if (a->o->backing_format != NULL)
    a->wish.backing_format = a->o->backing_format;
  if (a->wish.backing_name[0] == '\0') {
    if (a->o->backing_format != NULL && a->o->backing_format[0] != '\0')
      return refuse (a, "it has no backing file, whose format could be recorded");
    a->wish.backing_format = "";
    return 0;
  }
  return header_check_backing (a->s->name, a->h.raw_data && !a->o->not_raw,
                               a->wish.backing_name, a->wish.backing_format);
}

/* From then on the header counts as having that width, and the caller changes it
 * before the header if it can.
 */
static int
wish_width (struct amend *a)
{
  const unsigned bits = a->o->refcount_bits;
  const unsigned version = a->o->version != 0 ? a->o->version : a->h.version;

  a->order = a->h.refcount_order;
  if (bits == 0 || bits == 1U << a->order)
    return 0;
  if (version < 3 && bits != 16)
    return refuse (a, "version 2 has refcounts of 16 bits only");
  a->order = __builtin_ctz (bits);
  a->widens_first = a->h.version >= 3;
  a->widens_last = !a->widens_first;
  if (refcount_width_check (a->s, a->order) == -1)
    return -1;
  if (a->widens_first)
    a->h.refcount_order = a->order;
  return 0;
}

/* Whether it depends on the tables what can be done. */
static bool
needs_check (const struct amend *a)
{
  const struct amend_options *o = a->o;

  return (o->version != 0 && o->version != a->h.version) ||
    (o->compression != NULL && *o->compression != a->h.compression);
}

/* Whether anything but the width is to be changed. */
static bool
changes_header (const struct amend_options *o)
{
  return o->version != 0 || o->lazy != NULL || o->compression != NULL ||
    o->backing != NULL || o->backing_format != NULL || o->not_raw;
}

static int
change (struct amend *a)
{
  const bool others = changes_header (a->o);

  if (a->widens_first && refcount_width_set (a->s, a->order) == -1)
    return -1;
  if (others && header_change (a->s, &a->h, &a->wish) == -1) {
    if (a->widens_first)
      error_append (" (the refcounts have their new width)");
    return -1;
  }
  if (!a->widens_last || refcount_width_set (a->s, a->order) == 0)
    return 0;
  error_append (" (all else is as it shall be)");
  return -1;
}

int
amend_image (struct storage *s, const struct amend_options *o)
{
  struct amend a = { .s = s, .o = o };
  int r = 0;

  if (header_change_read (s, &a.h, &a.wish) == -1 ||
      snapshots_read (&a.snapshots, &a.h, s) == -1)
    return -1;
  if (needs_check (&a) && (check_sound (&a) == -1 || scan (&a) == -1))
    r = -1;
  if (r == 0 && (wish_width (&a) == -1 || wish_version (&a) == -1 ||
                 wish_lazy (&a) == -1 || wish_compression (&a) == -1 ||
                 wish_backing (&a) == -1))
    r = -1;
  if (r == 0)
    r = change (&a);
  snapshots_free (&a.snapshots);
  return r;
}
