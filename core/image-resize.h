/* SPDX-License-Identifier: BSD-3-Clause */

/* Another size for the disk of an image over backing files: see
 * manage/resize.h.
 */

#ifndef CORE_IMAGE_RESIZE_H
#define CORE_IMAGE_RESIZE_H

#include "image.h"
#include "manage/resize.h"

/* The size of the image's disk, in bytes. */
extern uint64_t image_size (const struct image *im);

/* Resize the disk of im, which has no other user and is to be closed after that,
 * since it does not know of its new size.  options->disk and data are not looked
 * at: data can be written if the image was opened with its passphrase.  Takes a
 * writer's file locks.  Returns -1 with the error set: as resize_disk; ENOTSUP if it
 * is no qcow2 image; EAGAIN if another process uses it; EACCES, EPERM, EROFS.
 */
extern int image_resize (struct image *im,
                         const struct resize_options *options);

#endif /* CORE_IMAGE_RESIZE_H */
