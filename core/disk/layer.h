/* SPDX-License-Identifier: BSD-3-Clause */

/* A layer: one disk of a backing chain, of whatever format, as a guest would
 * see it, and what lies below it.  Everything in it is fixed once it is
 * open, but for the tables of the live disk, so that reads need no lock (I12).
 */

#ifndef CORE_DISK_LAYER_H
#define CORE_DISK_LAYER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/epoch.h"
#include "base/error.h"
#include "disk/format.h"
#include "disk/run.h"
#include "storage/storage.h"

struct cache;
struct cluster_cache;
struct codec_pool;
struct extents;
struct passphrases;

/* What all layers of a chain share. */
struct shared {
  const struct format_ops *const *formats; /* that are known; then NULL */
  struct epoch *epoch; /* that each request is in while it uses a mapping */

  /* For the formats that have use for them. */
  struct cache *cache;
  struct cluster_cache *clusters;
  struct codec_pool *codecs;
  const struct passphrases *passphrases; /* while files are opened; or NULL */
};

/* Formats make theirs the first member of what they know beside. */
struct layer {
  const struct format_ops *format;
  struct storage *tables;      /* metadata, and compressed clusters */
  struct storage *data;        /* the rest of the guest's data (I16); the same
                                * storage as data_file, or one on it that
                                * deciphers */
  struct storage *data_file;   /* the file of that: the same storage as tables,
                                * or that of data_name */
  uint64_t size;               /* of the disk, in bytes */
  const struct layer *backing; /* NULL: none */
  struct shared *shared;
  bool encrypted;              /* its data is */
  struct damage *damage;       /* NULL: no run of it is DAMAGED */

  /* What its file calls its backing file, and the format of that; empty if it
   * doesn't say, NULL if the format has no such thing.
   */
  const char *backing_name, *backing_format;

  /* What it calls the file that its data is in; empty if it doesn't say, NULL
   * if it has none.  Until format_ops.set_data was told of that file, nothing
   * can be looked up.
   */
  const char *data_name;

  bool excludes_backing; /* a backing file can't be: its data are all there is */

  /* NULL; or called with this argument when a copy of the layer is closed. */
  void (*let_go) (void *held);
  void *held;

  /* NULL; or its extents tell what has changed (disk/extents.h): call
   * extents_add for the count (> 0) bytes at offset.  Returns what that did if
   * it is not 0; else 0, or -1 with the error set.  Then what was added does
   * not count.
   */
  int (*find_changes) (const struct layer *layer, uint64_t count,
                       struct guest_off offset, struct extents *e);
};

/* Find the run at offset of the disk whose top layer this is, in the
 * first layer that has it; *owner is that layer.  A run that no layer has
 * is ZERO_PLAIN, as is what lies past the end of a short backing layer.
 * Never UNALLOCATED.  offset + max must be within the top layer.  Errors
 * and the run's length as with format_ops.lookup.  The caller is in the epoch.
 */
extern int layer_lookup (const struct layer *top, struct guest_off offset,
                         uint64_t max, struct run *run,
                         const struct layer **owner);

/* The error about damage at this place of the layer's file is set: mark it as
 * repeated if it was reported before.  Returns -1.
 */
extern int layer_damaged (const struct layer *layer, struct host_off place);

#endif /* CORE_DISK_LAYER_H */
