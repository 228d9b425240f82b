/* SPDX-License-Identifier: BSD-3-Clause */

/* An open image: its chain, its caches, its snapshots, and the disks in
 * it that can be served.  This is what a program uses of core/.
 *
 * Locks.  There are four kinds, none is held while another is taken, and
 * none around I/O (I12):
 *   cache.c    struct cache.lock        on a miss, for moments
 *   decoded.c  struct decoded.lock      reads of compressed clusters
 *   codec.c    struct codec_pool.lock   likewise
 *   error.h    struct damage.lock       reads that meet damage
 */

#ifndef QCOW2_IMAGE_H
#define QCOW2_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "chain.h"
#include "layer.h"

struct image;

struct image_options {
  struct chain_options chain;
  uint64_t cache_size; /* bytes, at least CACHE_MIN_BYTES */
};

#define IMAGE_DEFAULT_CACHE_SIZE (UINT64_C (256) << 20)

/* Open an image read-only; not one byte of it or of its backing files is
 * written (I9).  Returns NULL with the error set.
 */
extern struct image *image_open (const struct image_options *options);

/* The same on a storage of the caller's, which is owned from here on, even
 * after an error; the image must not have a backing file.
 */
extern struct image *image_open_storage (struct storage *s,
                                         uint64_t cache_size);

/* All disks must be closed.  NULL is allowed. */
extern void image_close (struct image *im);

/* The exports: the live disk is "", and snapshots are "snapshot/LABEL". */
#define IMAGE_SNAPSHOT_PREFIX "snapshot/"

/* Call fn for each export; a description is only valid during the call.
 * fn returns -1 (with its own error reported) to stop.  Returns -1 if fn
 * did, or with ENOMEM set.
 */
typedef int (*export_fn) (void *opaque, const char *name,
                          const char *description);
extern int image_list (const struct image *im, export_fn fn, void *opaque);

/* Write the description of an export to buf.  Returns -1 with the error set
 * (ENOENT) if there is no such export.
 */
extern int image_describe (const struct image *im, const char *export,
                           char *buf, size_t len);

/* The disk behind an export: for layer_read and its like.  Owned by the
 * caller; the image must outlive it.  Returns NULL with the error set:
 * ENOENT if there is no such export, EINVAL if the snapshot is malformed
 * (marked as repeated if that was reported before).
 */
extern struct layer *image_open_disk (const struct image *im,
                                      const char *export);
extern void image_close_disk (struct layer *disk); /* NULL is allowed */

/* The size in bytes that a disk is best read by: cluster or subcluster. */
extern uint32_t image_preferred_size (const struct image *im);

#endif /* QCOW2_IMAGE_H */
