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
#include "manage/tables.h"
#include "qcow2/check/check.h"
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
};

static int
refuse (const struct amend *a, const char *why)
{
  error_set (ENOTSUP, "%s: %s", a->s->name, why);
  return -1;
}

/* ------------------------------------------------------------------- all tables */

static void
note_entry (struct amend *a, const struct l2_entry *e)
{
  a->zeros |= e->kind == CLUSTER_ZERO_PLAIN || e->kind == CLUSTER_ZERO_ALLOC;
  a->compressed |= e->kind == CLUSTER_COMPRESSED;
}

static int
scan_l2 (struct amend *a, const struct entry_format *f, struct host_off at,
         uint64_t *words)
{
  const unsigned step = f->extended_l2 ? 2 : 1;
  const uint64_t nr = a->h.cluster_size / sizeof words[0];
  uint64_t i;

  if (storage_read (a->s, words, a->h.cluster_size, at) == -1)
    return -1;
  for (i = 0; i < nr; i += step) {
    const struct l2_entry e =
      entry_decode_l2 (f, be64toh (words[i]),
                       step == 2 ? be64toh (words[i + 1]) : 0);

    if (e.kind == CLUSTER_INVALID) {
      error_set (EIO, "%s: damaged: entry %" PRIu64 " of the L2 table at offset "
                 "0x%" PRIx64, a->s->name, i / step, at.v);
      advise (ADVICE_REPAIR);
      return -1;
    }
    note_entry (a, &e);
  }
  return 0;
}

static int
scan_tables (struct amend *a, struct host_off l1, uint64_t nr)
{
  const struct entry_format f = {
    .version = a->h.version, .cluster_bits = a->h.cluster_bits,
    .extended_l2 = a->h.extended_l2, .data_file = a->h.has_data_file,
    .raw_data = a->h.raw_data,
  };
  uint64_t *words = malloc (a->h.cluster_size);
  struct tables t = { 0 };
  size_t i;
  int r = -1;

  if (words == NULL)
    error_set (ENOMEM, "%s: out of memory", a->s->name);
  else
    r = tables_read (&t, a->s, &f, l1, nr);
  for (i = 0; r == 0 && i < t.nr_uses; ++i)
    r = scan_l2 (a, &f, (struct host_off) { t.use[i].table }, words);
  tables_free (&t);
  free (words);
  return r;
}

/* Find out what entries there are, in the live disk and in all snapshots. */
static int
scan (struct amend *a)
{
  uint32_t i;

  if (scan_tables (a, a->h.l1_offset, a->h.l1_size) == -1)
    return -1;
  for (i = 0; i < a->snapshots.nr; ++i) {
    const struct snapshot *sn = &a->snapshots.snapshot[i];

    if (snapshot_check (sn, &a->h, a->s) == -1 ||
        scan_tables (a, sn->l1_offset, sn->l1_size) == -1)
      return -1;
  }
  return 0;
}

/* --------------------------------------------------------------- other versions */

/* opaque: the text of the first finding that is no leak. */
static void
note_damage (void *opaque, enum check_kind kind, const char *text)
{
  char *first = opaque;

  if (first[0] == '\0' && kind != CHECK_LEAK)
    snprintf (first, CHECK_TEXT, "%s", text);
}

/* What is damage in one version may mean something in the other. */
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
  return check_sound (a);
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
  if (check_snapshots_v2 (a) == -1 || check_sound (a) == -1)
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
    a->wish.backing_format = "";
    return 0;
  }
  return header_check_backing (a->s->name, a->h.raw_data && !a->o->not_raw,
                               a->wish.backing_name, a->wish.backing_format);
}

static bool
needs_scan (const struct amend *a)
{
  const struct amend_options *o = a->o;

  return (o->version == 2 && a->h.version != 2) ||
    (o->compression != NULL && *o->compression != a->h.compression);
}

int
amend_image (struct storage *s, const struct amend_options *o)
{
  struct amend a = { .s = s, .o = o };
  int r;

  if (header_change_read (s, &a.h, &a.wish) == -1 ||
      snapshots_read (&a.snapshots, &a.h, s) == -1)
    return -1;
  r = needs_scan (&a) ? scan (&a) : 0;
  if (r == 0 && (wish_version (&a) == -1 || wish_lazy (&a) == -1 ||
                 wish_compression (&a) == -1 || wish_backing (&a) == -1))
    r = -1;
  if (r == 0)
    r = header_change (s, &a.h, &a.wish);
  snapshots_free (&a.snapshots);
  return r;
}
