/* SPDX-License-Identifier: BSD-3-Clause */

/* Another backing file for an image, whose disk keeps its content.
 *
 * Where nothing of the image hides the backing file, and the old and the new one
 * differ, what the old one has is copied into the image, durably; then its
 * header switches.  A power cut at any moment leaves the disk as it was.
 */

#ifndef CORE_IMAGE_REBASE_H
#define CORE_IMAGE_REBASE_H

#include "image.h"

/* How far it is, in pieces of the disk and of its snapshots' disks; false: stop,
 * and change no header.
 */
typedef bool image_rebase_fn (void *opaque, uint64_t done, uint64_t total);

/* Rebase im, which is writable and has no other user, and is closed on return
 * in any case.  below: what was opened by image_open_below for the same file;
 * NULL: there will be no backing file.  name and format are what is to be
 * recorded: see header_check_backing.  Snapshots must not differ over the two
 * backing files.  Returns -1 with the error set: ENOTSUP, EINVAL, EIO for
 * damage, ENOSPC, ECANCELED if fn has stopped it; the backing file is the old
 * one then, unless the message says that the header may have changed.
 */
extern int image_rebase (struct image *im, const struct image *below,
                         const char *name, const char *format,
                         image_rebase_fn *fn, void *opaque);

#endif /* CORE_IMAGE_REBASE_H */
