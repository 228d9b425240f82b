/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>

#include "base/error.h"
#include "image-parts.h"
#include "image-resize.h"
#include "storage/crypt.h"

uint64_t
image_size (const struct image *im)
{
  return im->chain.layer[0]->size;
}

int
image_resize (struct image *im, const struct resize_options *options)
{
  struct resize_options o = *options;
  struct layer *disk;
  int r;

  if (im->kind != &image_qcow2) {
    error_set (ENOTSUP, "%s: it is a %s image, and this is for qcow2 only",
               image_storage (im)->name, im->kind->format->name);
    return -1;
  }
  if (image_lock_for_writing (im) == -1)
    return -1;
  disk = image_open_disk (im, "");
  if (disk == NULL)
    return -1;
  o.disk = disk;
  if (disk->encrypted && !storage_crypt_is_locked (disk->data))
    o.data = disk->data;
  r = resize_disk (image_storage (im), &o);
  image_close_disk (disk);
  return r;
}
