/* SPDX-License-Identifier: BSD-3-Clause */

/* A format of disk images: what core/disk asks of it.  Each format is a table
 * of these functions, in a folder that core/disk knows nothing of; which of
 * them there are is told from above (struct shared).
 *
 * All of them but open and close may be called by several threads at once.
 */

#ifndef CORE_DISK_FORMAT_H
#define CORE_DISK_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/offset.h"
#include "disk/run.h"

struct layer;
struct shared;
struct storage;

struct format_ops {
  const char *name; /* as users and images give it */

  /* The four bytes with which each image of it begins, and by which an image
   * that is to be served is recognized; never a backing file.  NULL: none.
   */
  const char *magic;

  /* A new layer of the file in this storage, which stays the caller's and has
   * this id in the cache.  The header is read and checked.  All of the layer
   * is set but what lies below it; its data may be in a new storage on that
   * one, which is the caller's, too, and closed before it.  Returns NULL with
   * the error set.
   */
  struct layer *(*open) (struct storage *storage, unsigned id,
                         struct shared *shared);

  /* Find the run at offset of this layer alone; offset + max, which is > 0,
   * must be within it.  The run is a byte long at least, and max at most; it
   * may be shorter than it could be.  Returns -1 with the error set if a table
   * can't be read: then there is no run.  The caller is in the epoch.
   */
  int (*lookup) (const struct layer *layer, struct guest_off offset,
                 uint64_t max, struct run *run);

  /* Read a COMPRESSED run, as found at offset, into buf.  Returns -1 with the
   * error set, as layer_read does.  NULL: there are none.
   */
  int (*read_compressed) (const struct layer *layer, const struct run *run,
                          void *buf, struct guest_off offset);

  /* Read a GUEST_DATA run, in the same way.  NULL: there are none. */
  int (*read_guest_data) (const struct layer *layer, const struct run *run,
                          void *buf, struct guest_off offset);

  /* Whether a DATA run is a hole of the host's file, to the end of the run,
   * which is shortened for that.  Returns -1 with the error set.  NULL: what is
   * data counts as that.
   */
  int (*find_hole) (const struct layer *layer, struct run *run, bool *hole);

  /* The data of a layer with a data_name is in this storage, which is closed
   * after the layer whatever is returned: -1 with the error set.  NULL: there
   * are no such layers.
   */
  int (*set_data) (struct layer *layer, struct storage *data);

  /* Write to text what the file's owner should know, though the disk can be
   * read.  False: there is nothing.  May be NULL.  This and close want a layer
   * as it was opened, not a copy of it.
   */
  bool (*warning) (const struct layer *layer, char *text, size_t len);

  /* Free the layer, but not its storages. */
  void (*close) (struct layer *layer);
};

#endif /* CORE_DISK_FORMAT_H */
