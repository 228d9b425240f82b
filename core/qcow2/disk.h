/* SPDX-License-Identifier: BSD-3-Clause */

/* The layer that a qcow2 file makes, and what qcow2 knows of it beside. */

#ifndef CORE_QCOW2_DISK_H
#define CORE_QCOW2_DISK_H

#include "base/error.h"
#include "disk/layer.h"
#include "qcow2/header.h"
#include "qcow2/map.h"

struct points;
struct sectors;

/* One disk of a file: the live one, or that of a snapshot. */
struct qcow2_disk {
  struct layer layer; /* first: each layer of this format is in one of these */
  struct map map;
  enum compression compression;
};

/* A file that is open.  Its layer is that of the live disk. */
struct qcow2_file {
  union {
    struct layer layer; /* the first member of disk, by a shorter name */
    struct qcow2_disk disk;
  };
  struct header header;
  struct damage damage;
  struct points *points; /* of the live disk */

  /* Those of an external data file, until that is known; or NULL. */
  struct sectors *sectors;
};

/* The disk, its mapping, and the open file that the layer of a chain is; the
 * layer must be qcow2's.
 */
static inline const struct qcow2_disk *
qcow2_disk (const struct layer *layer)
{
  return (const struct qcow2_disk *) layer;
}

static inline const struct map *
qcow2_map (const struct layer *layer)
{
  return &qcow2_disk (layer)->map;
}

static inline struct qcow2_file *
qcow2_file (struct layer *live)
{
  return (struct qcow2_file *) live;
}

#endif /* CORE_QCOW2_DISK_H */
