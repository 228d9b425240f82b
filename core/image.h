/* SPDX-License-Identifier: BSD-3-Clause */

/* An open image: its chain, its caches, its snapshots, the disks in it that
 * can be served, and the writer of the live one.  This is what a program uses
 * of core/.
 *
 * Locks of who reads.  There are four kinds, none is held while another is
 * taken, and none around I/O (I12):
 *   cache/tables.c    struct cache.lock        on a miss, for moments
 *   cache/clusters.c  struct cluster_cache.lock      reads of compressed clusters
 *   qcow2/codec.c    struct codec_pool.lock   likewise
 *   base/error.h    struct damage.lock       reads that meet damage
 * qcow2/write/writer.h has those of who writes, and their order.  image.writer_lock, held
 * while an image is made writable, stands above them all.
 */

#ifndef CORE_IMAGE_H
#define CORE_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "disk/chain.h"
#include "disk/layer.h"
#include "qcow2/check/repair.h"
#include "qcow2/write/writer.h"

struct image;

struct image_options {
  struct chain_options chain;
  uint64_t cache_size; /* bytes, at least CACHE_MIN_BYTES */
  uint64_t check_memory; /* for a check, in bytes; 0: the default */
};

#define IMAGE_DEFAULT_CHECK_MEMORY (UINT64_C (64) << 20)

#define IMAGE_DEFAULT_CACHE_SIZE (UINT64_C (256) << 20)

/* Open an image read-only; not one byte of it or of its backing files is
 * written (I9).  Returns NULL with the error set.
 */
extern struct image *image_open (const struct image_options *options);

/* The same on storages of the caller's: the image's and those of its backing
 * files, all of which are owned from here on, even after an error.
 */
extern struct image *image_open_storages (struct storage *const *storages,
                                          unsigned nr, uint64_t cache_size);
extern struct image *image_open_storage (struct storage *s,
                                         uint64_t cache_size);

/* Call fn for each thing about the files as they were opened that their owner
 * should know, though the disk can be read.
 */
typedef void image_warning_fn (void *opaque, const char *text);
extern void image_each_warning (const struct image *im, image_warning_fn *fn,
                                void *opaque);

/* The size, in bytes, of the disk that options->backing holds, of the format
 * options->backing_format: rounded up to 512.  Returns -1 with the error set:
 * EINVAL if options->file is among what is to be below it.
 */
extern int image_backing_size (const struct chain_options *options,
                               uint64_t *size);

/* All disks must be closed, and no request be running.  What was written is
 * made durable, and the image left as it should be: no leaks, not dirty.
 * Returns -1 with the error set if that failed; the image is gone all the
 * same.  NULL is allowed.
 */
extern int image_close (struct image *im);

/* Make the image writable: the locks of a writer are taken, and what forbids
 * writing is looked for.  Nothing is written yet.  Readers may be at work.
 * Does nothing if it was done before.  Returns -1 with the error set, and the
 * image is as before: EACCES, EPERM, EROFS if the file can only be read;
 * EAGAIN if another process uses it; ENOTSUP if the image must not be written
 * as it is; EIO, EINVAL for damage.
 */
extern int image_make_writable (struct image *im,
                                const struct writer_options *options);

/* Have leaks that a killed writer has left in a writable image be looked for
 * and freed in the background, until the image is closed.  Does nothing if that was
 * done before, if the image says that there are none, if something in it isn't
 * known here, or if it can't be started.
 */
extern void image_free_leaks (struct image *im);

/* Whether that has ended by itself, or was not begun. */
extern bool image_leaks_are_done (struct image *im);

/* What becomes of zeros that are written. */
enum detect_zeroes {
  DETECT_ZEROES_OFF,   /* they are written */
  DETECT_ZEROES_ON,    /* as by image_zero */
  DETECT_ZEROES_UNMAP, /* as by image_zero with IMAGE_MAY_TRIM */
};

/* Have image_write look for clusters of zeros.  Before anything is written. */
extern void image_detect_zeroes (struct image *im, enum detect_zeroes detect);

/* How clusters of this image are compressed. */
extern enum compression image_compression (const struct image *im);

/* When an image is checked and repaired before it is written. */
enum image_repair {
  /* All that is wrong, if it is marked as dirty; default.  An L1 table that
   * the end of the file cuts off is for IMAGE_REPAIR_ALL alone.
   */
  IMAGE_REPAIR_DIRTY,
  IMAGE_REPAIR_NONE,
  IMAGE_REPAIR_LEAKS, /* leaks too, each time */
  IMAGE_REPAIR_ALL,   /* all that is wrong, each time, and if it is marked as
                       * corrupt */
};

/* Repair an image as mode says, before it is made writable; if it was made
 * so, or repaired, then nothing is done.  The locks of a writer are taken, and
 * stay.  Readers may be at work.  What was done is written to summary, of len
 * bytes: empty if nothing was.  Returns -1 with the error set: as
 * image_make_writable, or EIO if errors are left.  A repair that was cut off
 * by an error sticks (I10): neither this nor image_make_writable goes on.  That
 * errors are left is known from then on, until the file is changed: nothing is
 * looked at again meanwhile.
 */
extern int image_repair (struct image *im, enum image_repair mode,
                         char *summary, size_t len);

/* Whether the header and the directory of bitmaps forbid writing, as far as
 * image_repair (by mode) will leave them so: known before there is a client.
 * Nothing is locked, and no table is read.  Returns -1 with the error set as
 * by image_make_writable; 0 too if the image will be served read-only, since
 * the file can't be written.
 */
extern int image_look_ahead (struct image *im, enum image_repair mode,
                             const struct writer_options *options);

/* Write to the live disk of a writable image.  The ranges must be within the
 * disk.  With IMAGE_FUA what was changed is durable on return.  Return -1 with
 * the error set: ENOSPC, EIO, ENOMEM; something may have been changed.  ENOSPC
 * is marked as repeated until a request has gone well that needed space.
 */
#define IMAGE_FUA 1U
#define IMAGE_MAY_TRIM 2U /* image_zero: host clusters need not be kept */
#define IMAGE_FAST 4U     /* image_zero: ENOTSUP rather than writing zeros */
extern int image_write (struct image *im, const void *buf, uint64_t count,
                        struct guest_off offset, unsigned flags);
extern int image_zero (struct image *im, uint64_t count,
                       struct guest_off offset, unsigned flags);
extern int image_trim (struct image *im, uint64_t count,
                       struct guest_off offset, unsigned flags);

/* Make durable what was answered before.  After an error nothing more can be
 * written (I10), unless it is ENOSPC.  Does nothing if the image was not made
 * writable.
 */
extern int image_flush (struct image *im);

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

#endif /* CORE_IMAGE_H */
