/* SPDX-License-Identifier: BSD-3-Clause */

/* QED, as a format of disks. */

#ifndef CORE_QED_QED_H
#define CORE_QED_QED_H

#include "base/error.h"
#include "disk/layer.h"
#include "qed/header.h"
#include "qed/map.h"

extern const struct format_ops qed_format;

/* Read and check the header of the image in a storage.  Returns -1 with the
 * error set.
 */
extern int qed_read_header (struct storage *s, struct qed_header *h);

/* The layer of a disk. */
struct qed_disk {
  struct layer layer; /* first: each layer of this format is in one of these */
  struct qed_map map;
};

/* A file that is open. */
struct qed_file {
  union {
    struct layer layer; /* the first member of disk, by a shorter name */
    struct qed_disk disk;
  };
  struct qed_header header;
  struct damage damage;
};

static inline const struct qed_map *
qed_map (const struct layer *layer)
{
  return &((const struct qed_disk *) layer)->map;
}

#endif /* CORE_QED_QED_H */
