/* SPDX-License-Identifier: BSD-3-Clause */

/* An open image: its chain, its caches, its snapshots, the disks in it that
 * can be served, and the writer of the live one.  This is core/'s interface
 * for programs.
 *
 * Locks of the read path.  There are four; none is held while another is
 * taken, and none around I/O (I12):
 *   cache/tables.c    struct cache.lock          on a miss, briefly
 *   cache/clusters.c  struct cluster_cache.lock  reads of compressed clusters
 *   qcow2/codec.c     struct codec_pool.lock     likewise
 *   base/error.h      struct damage.lock         reads that meet damage
 * qcow2/write/writer.h lists the locks of the write path in their order.
 * image.writer_lock, held while an image is made writable, is taken before all
 * of them.
 */

#ifndef CORE_IMAGE_H
#define CORE_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "crypto/passphrase.h"
#include "disk/chain.h"
#include "disk/layer.h"
#include "qcow2/check/repair.h"
#include "qcow2/write/writer.h"

struct image;

/* Why an image can't be written: found out at some cost, which another client
 * does not have to cause again.  It holds as long as the file is as it was
 * then, by its inode, size and times.  Should something have changed that
 * these don't tell (within one tick of the file system's clock, or on a block
 * device) then an image stays refused that need not be; that it is sound is
 * never taken from here, so nothing is written that should not be.
 */
struct verdict {
  bool known;
  bool sticks; /* whatever becomes of the file, until it is removed: a write or
                * flush failed (I10) */
  struct storage_stamp stamp;
  int err;
  char message[1024]; /* unescaped */
};

struct image_options {
  struct chain_options chain;
  const struct passphrases *passphrases; /* NULL: none; when it is opened */
  uint64_t cache_size; /* bytes, at least CACHE_MIN_BYTES */
  uint64_t check_memory; /* budget of a check, and of the search for leaks, in
                          * bytes; 0: the default */
  uint64_t cluster_memory; /* for decoded clusters, in bytes; 0, or more than
                            * CLUSTER_CACHE_MAX_BYTES: that */
  const struct verdict *verdict; /* of when it was open before; NULL: none */
};

#define IMAGE_DEFAULT_CHECK_MEMORY (UINT64_C (64) << 20)

#define IMAGE_DEFAULT_CACHE_SIZE (UINT64_C (256) << 20)

/* Open an image read-only: neither it nor its backing files are written (I9).
 * Returns NULL with the error set.  chain.opened is owned even then.
 */
extern struct image *image_open (const struct image_options *options);

/* The name of the format that an image has whose file, a regular one beneath a
 * directory that is open, has this path.  Reads four bytes.  NULL: it is none,
 * or can't be read.
 */
extern const char *image_recognize (int dirfd, const char *path);

/* The same in two steps, for an image that is yet to be made.  First what it is
 * going to lie on, options->chain.backing and what is below that, which is then
 * open and locked, and unlocked if it is encrypted: so there is little left
 * that could refuse the image once it is made.  Nothing is below if
 * chain.backing is NULL.  Returns NULL with the error set: EINVAL if
 * chain.file, which may exist, is a part of that.
 */
extern struct image *image_open_below (const struct image_options *options);

/* The size in bytes, rounded up to 512, of the disk below; 0: there is none. */
extern uint64_t image_size_below (const struct image *below);

/* That disk, which stays the image's; NULL: there is none. */
extern const struct layer *image_disk_below (const struct image *below);

/* Then the image itself.  Its file is that of chain.made, unless this is NULL,
 * or chain.far.  That and below are owned from here on, even after an
 * error; until then image_close and
 * image_is_encrypted are all else that it may be given to.
 */
extern struct image *image_open_made (struct image *below,
                                      const struct image_options *options);

/* A backing file of an open image, as an image of its own, which can be made
 * writable: the one below so many others, at least 1 and fewer than there are
 * files.  It has the same layers and caches, so that what is written is seen
 * through the other image, too, and is to be closed before that.  Returns NULL
 * with the error set: ENOTSUP if it is of a format that is no image's.
 */
extern struct image *image_open_backing (struct image *im, unsigned above);

/* Whether the image's data is encrypted, and that of one of its backing files.
 */
extern void image_is_encrypted (const struct image *im, bool *image,
                                bool *backing);

/* The same on open storages: the image's, followed by those of its backing
 * files.  Takes ownership of all of them, even on error.  passphrases may be
 * NULL: none.
 */
extern struct image *
image_open_encrypted (struct storage *const *storages, unsigned nr,
                      uint64_t cache_size,
                      const struct passphrases *passphrases);
extern struct image *image_open_storages (struct storage *const *storages,
                                          unsigned nr, uint64_t cache_size);
extern struct image *image_open_storage (struct storage *s,
                                         uint64_t cache_size);

/* Call fn for each warning that opening the files gave rise to: something
 * their owner should know although the disk can be read.
 */
typedef void image_warning_fn (void *opaque, const char *text);
extern void image_each_warning (const struct image *im, image_warning_fn *fn,
                                void *opaque);

/* From now on messages name files without their directories: clients may see
 * them.  Before anything else uses the image.
 */
extern void image_hide_places (struct image *im);

/* All disks must be closed and all requests have ended.  Makes everything
 * durable and leaves the image clean: no leaks, not dirty.  Returns -1 with
 * the error set if that failed; the image is freed regardless.  NULL is
 * allowed.
 */
extern int image_close (struct image *im);

/* The same, but the image's file, with its locks, is left open, and is the
 * caller's: so that nobody else can change it until more is done there.
 */
extern int image_close_but_file (struct image *im, struct storage **file);

/* Make the image writable: take a writer's file locks, and check that nothing
 * forbids writing.  Nothing is written yet.  Reads may be running.  Does
 * nothing if the image is writable already.  Returns -1 with the error set,
 * and the image as before: EACCES, EPERM, EROFS if the file can only be read;
 * EAGAIN if another process uses it; ENOTSUP if the image must not be written
 * as it is; EIO, EINVAL for damage.
 */
extern int image_make_writable (struct image *im,
                                const struct writer_options *options);

/* What is known, for when the image is opened again by this process.  The stamp
 * is set even if nothing is.
 */
extern void image_verdict (struct image *im, struct verdict *v);

/* Search a writable image for leaks of a killed writer, and free them, in the
 * background and until the image is closed.  Does nothing if that was begun
 * before, if the image says that it has no leaks, if it has contents unknown
 * to this program, or if the search can't be started.
 */
extern void image_free_leaks (struct image *im);

/* Whether the search has completed, or was never begun. */
extern bool image_leaks_are_done (struct image *im);

/* How image_write stores zeros. */
enum detect_zeroes {
  DETECT_ZEROES_OFF,   /* like other data */
  DETECT_ZEROES_ON,    /* as by image_zero */
  DETECT_ZEROES_UNMAP, /* as by image_zero with IMAGE_MAY_TRIM */
};

/* Choose how; to be called before the first write. */
extern void image_detect_zeroes (struct image *im, enum detect_zeroes detect);

/* The compression type that the image's header names.  False: its format has no
 * compressed clusters, or none that are written here.
 */
extern bool image_compression (const struct image *im,
                               enum compression *compression);

/* When an image is checked and repaired before it is written. */
enum image_repair {
  /* If it is marked as dirty: repair everything, except that only
   * IMAGE_REPAIR_ALL completes an L1 table which the end of the file cuts off.
   * The default.
   */
  IMAGE_REPAIR_DIRTY,
  IMAGE_REPAIR_NONE,
  IMAGE_REPAIR_LEAKS, /* the default, and always free leaks */
  IMAGE_REPAIR_ALL,   /* always repair everything, even if the image is marked
                       * as corrupt */
};

/* Repair an image as mode says, before it is made writable.  Does nothing if
 * it is writable, or was repaired before.  Takes a writer's file locks, and
 * keeps them.  Reads may be running.  Writes what was done to summary, of len
 * bytes: empty if nothing was.  Returns -1 with the error set: as
 * image_make_writable, or EIO if errors are left.  A repair that an error
 * interrupted sticks (I10): this and image_make_writable fail from then on.
 * Errors that are left are remembered: until the file changes, it is not
 * checked again.
 */
extern int image_repair (struct image *im, enum image_repair mode,
                         char *summary, size_t len);

/* Check, before there is a client, whether the header or the bitmap directory
 * forbids writing and would still do so after image_repair with this mode.
 * Locks nothing and reads no tables.  Returns -1 with the error set as by
 * image_make_writable; but 0 if the image will be served read-only anyway,
 * since the file can't be written.
 */
extern int image_look_ahead (struct image *im, enum image_repair mode,
                             const struct writer_options *options);

/* Write to the live disk of a writable image.  The range must be within the
 * disk.  With IMAGE_FUA the change is durable on return.  Return -1 with the
 * error set: ENOSPC, EIO, ENOMEM; part of the change may have been made.
 * ENOSPC is marked as repeated until a request that needs space succeeds.
 */
#define IMAGE_FUA 1U
#define IMAGE_MAY_TRIM 2U /* image_zero: host clusters need not be kept */
#define IMAGE_FAST 4U     /* image_zero: ENOTSUP rather than writing zeros */
#define IMAGE_HIDE 8U     /* image_zero: hide what may lie below later, if the
                           * image is qcow2, version 3; whole clusters only */
extern int image_write (struct image *im, const void *buf, uint64_t count,
                        struct guest_off offset, unsigned flags);
extern int image_zero (struct image *im, uint64_t count,
                       struct guest_off offset, unsigned flags);
extern int image_trim (struct image *im, uint64_t count,
                       struct guest_off offset, unsigned flags);

/* Make every request that has been answered durable.  After an error other
 * than ENOSPC nothing more can be written (I10).  Does nothing if the image
 * was not made writable.
 */
extern int image_flush (struct image *im);

/* Names of exports: "" is the live disk, "snapshot/LABEL" a snapshot.
 * "bitmap/NAME" is the live disk with extents that tell what has changed: see
 * layer_extents.  Those can't be opened (ENOTSUP), and are not listed, while
 * another process may write the image: with chain_options.force_share, or if
 * no lock is held that denies it.
 */
#define IMAGE_SNAPSHOT_PREFIX "snapshot/"
#define IMAGE_BITMAP_PREFIX "bitmap/"

/* "changed/FROM/TO" is the disk of the snapshot TO, and "changed/FROM" the live
 * one, with extents that tell what has changed since the snapshot FROM.  In
 * their names (or IDs) "%" and "/" are "%25" and "%2F"; any byte may be written
 * like that.  They are not listed: there are too many.
 */
#define IMAGE_CHANGED_PREFIX "changed/"

/* Call fn for each export but those bitmaps of which the directory already says
 * that they can't be opened; the strings are only valid during the call.  fn
 * reports its own error and returns -1 to stop.  Returns -1 if fn did, or with
 * ENOMEM set.
 */
typedef int (*export_fn) (void *opaque, const char *name,
                          const char *description);
extern int image_list (const struct image *im, export_fn fn, void *opaque);

/* Write the description of an export to buf.  Returns -1 with the error set
 * (ENOENT, or EINVAL for a point in time without a token) if there is no such
 * export.
 */
extern int image_describe (const struct image *im, const char *export,
                           char *buf, size_t len);

/* Open the disk of an export, for layer_read and the like.  The caller owns
 * it, and closes it before the image.  Returns NULL with the error set: ENOENT
 * if there is no such export, EINVAL if the snapshot is malformed or the bitmap
 * can't be used (marked as repeated if that was reported before).
 */
extern struct layer *image_open_disk (const struct image *im,
                                      const char *export);
extern void image_close_disk (struct layer *disk); /* NULL is allowed */

/* Exports "now/TOKEN" are the live disk as it was when the first of them with
 * that token, which clients choose, was opened: every request that was answered
 * before is in it, and none that began after.  They are never listed.  The point
 * in time lasts until linger seconds after the last of them was closed; after
 * that the token can't be used again (ESTALE), so that nobody gets a newer state
 * unnoticed.
 *
 * What changes meanwhile is kept in memory (4 KiB for each slice of a table, up
 * to memory bytes of all together) and what it refers to in the file, which
 * does not come back before.  If there is not enough memory readers get EIO;
 * requests that change the disk never fail for that.
 */
#define IMAGE_POINT_PREFIX "now/"

/* Likewise "now/TOKEN/bitmap/NAME" and "changed/FROM/now/TOKEN": with extents as
 * those of "bitmap/NAME" and "changed/FROM".  The former have at least what the
 * bitmap had at the point.
 */

/* Exports "take/NAME" are snapshots that stay: the first one makes an internal
 * snapshot of this name, of the live disk as it was when it was opened, as for
 * "now/TOKEN", and reads it.  It is open once the snapshot is durable.  Whoever
 * opens it meanwhile waits for that, and shares it; as does whoever opens it until
 * linger seconds after the last of them was closed.  After that, or if there was
 * such a snapshot before: EEXIST.  In NAME "%", "/", "?", "&" and "=" are "%25",
 * "%2F", "%3F", "%26" and "%3D".
 *
 * "take/NAME?bitmap=NEW", in any order with "disable=OLD" and "granularity=BYTES":
 * the bitmap NEW begins at that very point, and OLD ends (qcow2/write/rotate.h).  Names
 * are encoded likewise.  Who shares it asks for the same.  Also refused: EEXIST, ENOENT
 * by their names.
 *
 * There are such exports where points in time are allowed, and the image is writable
 * (EROFS); they are never listed, but the snapshot is.  Nothing has changed if one
 * can't be made (ENOTSUP, ENOSPC, ENOMEM, EBUSY, EINVAL; EIO if the point could not
 * be kept, or the image is damaged), other than by failures that stick.
 */
#define IMAGE_TAKE_PREFIX "take/"

/* Exports "snapshot/NAME/bitmap/BITMAP" are snapshots with extents as those of
 * "bitmap/BITMAP": for a bitmap that ended there.  They are not listed.
 */

/* Whether an export has that prefix. */
extern bool image_is_take (const char *export);

/* Allow all of them, before the first client.  Returns -1 with the error set:
 * ENOTSUP if the image can't have any, as with force_share, an external data file
 * or another format; ENOMEM.
 */
extern int image_allow_points (struct image *im, unsigned linger,
                               uint64_t memory);

/* Whether all points have ended that nobody can open any more, and what only they
 * had is given up.
 */
extern bool image_points_have_ended (struct image *im);

#define IMAGE_DEFAULT_POINT_LINGER 30
#define IMAGE_DEFAULT_POINT_MEMORY (UINT64_C (64) << 20)

/* The preferred block size in bytes: that of a cluster or subcluster. */
extern uint32_t image_preferred_size (const struct image *im);

#endif /* CORE_IMAGE_H */
