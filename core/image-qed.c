/* SPDX-License-Identifier: BSD-3-Clause */

/* QED images: no snapshots, no compressed clusters. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "image-parts.h"
#include "qed/qed.h"

static inline const struct qed_file *
qed_top (const struct image *im)
{
  return (const struct qed_file *) im->chain.layer[0];
}

static int
qed_opened (struct image *im)
{
  im->cluster_size = im->preferred_size = qed_top (im)->header.cluster_size;
  return 0;
}

static struct layer *
qed_new_disk (const struct image *im, const struct snapshot *sn)
{
  struct qed_disk *disk = malloc (sizeof *disk);

  (void) sn; /* there are none */
  if (disk == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  *disk = qed_top (im)->disk;
  return &disk->layer;
}

static bool
qed_is_to_be_repaired (const struct image *im, enum image_repair mode)
{
  (void) im, (void) mode;
  return false;
}

static int
qed_check (const struct image *im, const struct writer_options *options,
           bool repaired, enum image_repair mode)
{
  (void) options, (void) repaired, (void) mode;
  error_set (EROFS, "%s: QED images are only read", image_storage (im)->name);
  return -1;
}

const struct image_kind image_qed = {
  .format = &qed_format,
  .opened = qed_opened,
  .new_disk = qed_new_disk,
  .is_to_be_repaired = qed_is_to_be_repaired,
  .check = qed_check,
};
