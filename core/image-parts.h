/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of an image have in common: image.c, which opens and closes it
 * and takes requests, and
 *
 *   image-writable.c   what is done before it is written, repair included
 *   image-exports.c    the live disk and snapshots, by their names
 *   image-points.c     points in time, by their tokens
 *   image-frozen.c     exports of these
 *   image-take.c       snapshots that are made while the image is served
 *   image-changed.c    what has changed since snapshots, likewise
 *   image-FORMAT.c     what an image of that format is, beside its layers
 */

#ifndef CORE_IMAGE_PARTS_H
#define CORE_IMAGE_PARTS_H

#include "base/advice.h"
#include "base/epoch.h"
#include "base/gate.h"
#include "disk/chain.h"
#include "image.h"
#include "qcow2/bitmaps.h"
#include "qcow2/snapshot.h"
#include "qcow2/write/leaks.h"
#include "qcow2/write/rotate.h"
#include "qcow2/write/writer.h"

struct image;
struct image_points;
struct image_takes;
struct repaired;

/* An image of one format: what image*.c ask of it.  Beside struct format_ops,
 * which is all that reading needs, since the files of a chain that are only
 * read have none of this.  The functions that open and repair are called with
 * writer_lock held, and no writer.
 */
struct image_kind {
  const struct format_ops *format;

  /* The chain is open: read what the image has beside its disk, and set
   * cluster_size and preferred_size.  Returns -1 with the error set.
   */
  int (*opened) (struct image *im);

  /* A copy of the live disk's layer, or that of a snapshot, which layer_close
   * does not close: image_close_disk frees it.  NULL: the error is set.
   */
  struct layer *(*new_disk) (const struct image *im, const struct snapshot *sn);

  /* A layer like the live disk's, or as a point has it (NULL: none), or of a snapshot
   * (likewise), whose extents tell what a bitmap has: see bitmap_disk_new, which
   * wants no other process to write the image.  NULL: there are no bitmaps.
   */
  struct layer *(*new_bitmap_disk) (const struct image *im, const char *name,
                                    const struct snapshot *sn,
                                    struct point *point);

  /* A copy of the layer of a snapshot, or of the live disk (to is NULL), as it is
   * or as a point has it (NULL: none), whose extents tell what has changed since
   * another snapshot: changed_disk_new.  NULL: there are no snapshots.
   */
  struct layer *(*new_changed_disk) (const struct image *im,
                                     const struct snapshot *from,
                                     const struct snapshot *to,
                                     struct point *point);

  /* As bitmaps_list.  NULL: there are none. */
  int (*list_bitmaps) (const struct image *im, bitmaps_list_fn *fn,
                       void *opaque);

  /* The points in time of its live disk; NULL with the error set to ENOTSUP: it
   * can't have some.
   */
  struct points *(*points) (const struct image *im);

  /* A layer of the disk as a point has it, as new_disk's; and what to do when
   * points have ended and there is a writer: see unfreeze.
   */
  struct layer *(*new_point_disk) (const struct image *im,
                                   struct point *point);
  void (*release_points) (struct image *im);

  /* As follow_keep_bits, for a layer of new_bitmap_disk; and false without a writer.
   * Within the gate.
   */
  bool (*keep_bits) (struct image *im, const struct layer *disk, unsigned *at);

  /* Make a snapshot, as take_snapshot; and what has bitmaps begin and end with it, as
   * rotation_new.  There is a writer.  Never called for an image that can't have
   * points.
   */
  int (*take_snapshot) (struct image *im, const struct point *point,
                        const char *name, const struct timespec *date,
                        const struct bitmap_header *bitmaps,
                        struct snapshots *made);
  struct rotation *(*new_rotation) (struct image *im,
                                    const struct rotation_wanted *wanted);

  /* Whether a repair in this mode has something to look at. */
  bool (*is_to_be_repaired) (const struct image *im, enum image_repair mode);

  /* As writer_check_header: of the image as it is or, if repaired is set, as it
   * will be after a repair in this mode.
   */
  int (*check) (const struct image *im, const struct writer_options *options,
                bool repaired, enum image_repair mode);

  /* Whether all data is there, which nothing but writing needs.  Returns -1
   * with the error set if it is not.  May be NULL.
   */
  int (*check_data) (const struct image *im);

  /* Repair, in a storage that is locked for writing, and read again what may
   * have changed.  Returns -1 with the error set if that was interrupted.
   */
  int (*repair) (struct image *im, enum image_repair mode, struct repaired *r);

  /* What is mended without being asked for, at the first opening for writing.
   * Returns -1 with the error set if that was interrupted.  May be NULL.
   */
  int (*mend) (struct image *im);

  /* Start the search for leaks, or return without one.  May be NULL. */
  struct leaks *(*find_leaks) (struct image *im);

  /* The writer of an image that check has found to be writable; nothing is
   * written yet.  Returns NULL with the error set.
   */
  void *(*open_writer) (struct image *im, const struct writer_options *options);

  /* Requests to a writer, with flags of IMAGE_*: see image.h.  One of these
   * calls is all that a request pays for there being several formats.
   */
  int (*write) (void *writer, const void *buf, uint64_t count,
                struct guest_off offset, unsigned flags);
  int (*zero) (void *writer, uint64_t count, struct guest_off offset,
               unsigned flags);
  int (*trim) (void *writer, uint64_t count, struct guest_off offset,
               unsigned flags);
  int (*flush) (void *writer);

  /* How often something was given space by it. */
  uint64_t (*taken) (void *writer);

  /* As image_close; no_leaks: the search has found all that there were. */
  int (*close_writer) (void *writer, bool no_leaks);
};

extern const struct image_kind image_qcow2, image_qed;

/* What a repair has done. */
struct repaired {
  uint64_t errors, leaks;           /* that were found */
  uint64_t errors_left, leaks_left;
  bool marked;         /* the image was dirty, corrupt or cut off */
  const char *why_not; /* NULL, or why errors are left */
  enum advice advice;  /* if errors are left */
};

struct image {
  const struct image_kind *kind; /* that of the chain's first layer */
  struct shared shared;
  struct epoch epoch;
  struct chain chain;

  /* What is in the list, and the list itself, may be replaced by another one: see
   * image-take.c.
   */
  pthread_rwlock_t snapshots_lock; /* moments, and whoever lists exports */
  struct snapshots snapshots;

  struct image_takes *takes;   /* there are some if there are points */
  struct image_points *points; /* NULL: none are allowed */
  struct gate gate; /* of requests that change something, and of flushes */
  pthread_mutex_t writer_lock;
  void *_Atomic writer;     /* of the kind; NULL: not writable */
  uint64_t cluster_size;    /* bytes */
  uint32_t preferred_size;  /* bytes */
  _Atomic uint64_t full; /* see no_space_once */
  struct leaks *leaks; /* writer_lock; NULL: none are looked for */
  bool leaks_begun;    /* writer_lock; or are not to be looked for */
  bool leaks_suspended, leaks_wanted; /* writer_lock; a search waits for a take */
  bool no_leaks;       /* writer_lock; one that was stopped had freed all */
  enum detect_zeroes detect_zeroes;
  bool repaired;      /* writer_lock; or found to need no repair */
  bool counted;       /* writer_lock; excess references were lowered */
  bool repair_failed; /* writer_lock; nothing is written any more (I10) */
  uint64_t check_memory;
  struct verdict verdict; /* writer_lock */
  bool borrows; /* the chain, and what it shares: see image_open_backing */
};

/* Nobody replaces the list of snapshots meanwhile. */
static inline void
image_lock_snapshots (const struct image *im)
{
  pthread_rwlock_rdlock ((pthread_rwlock_t *) &im->snapshots_lock);
}

static inline void
image_unlock_snapshots (const struct image *im)
{
  pthread_rwlock_unlock ((pthread_rwlock_t *) &im->snapshots_lock);
}

static inline struct storage *
image_storage (const struct image *im)
{
  return im->chain.layer[0]->tables;
}

/* Take a writer's file locks, and check that nothing forbids writing: as
 * image_make_writable does.  writer_lock held.
 */
extern int image_check_may_write (const struct image *im);
extern int image_lock_for_writing (struct image *im);

/* Whether this can be a token of a point in time.  Returns -1 with EINVAL set. */
extern int image_points_check (const struct image *im, const char *token);

/* What make returns for the point in time with this token, which is taken if there
 * is none yet: a layer that image_close_disk closes.  Returns NULL with the error
 * set: EINVAL for what can't be a token; ESTALE if it has ended; EBUSY if there are
 * too many; EIO if it has failed; ENOMEM; or what make has set.
 */
typedef struct layer *image_point_fn (const struct image *im,
                                      struct point *point, const void *opaque);
extern struct layer *image_points_open (const struct image *im,
                                        const char *token,
                                        image_point_fn *make,
                                        const void *opaque);

/* Have points keep what is exact of the bits of such a layer, whose extents a bitmap
 * tells (image_kind.keep_bits), while requests run.
 */
extern void image_points_keep_bits (const struct image *im,
                                    const struct layer *disk);

/* A point that has no token, until it is ended.  fn, unless it is NULL, is called with
 * it at that moment, while no request is running: for microseconds.  Returns NULL with the
 * error set, and fn was not called: EBUSY, ENOMEM.
 */
typedef void image_quiet_fn (void *opaque, const struct point *point);
extern struct point *image_points_take (struct image *im, image_quiet_fn *fn,
                                        void *opaque);
extern void image_points_end (struct image *im, struct point *point);

/* Snapshots that are made while the image is served; their exports linger for so
 * many seconds.  Returns NULL with ENOMEM set.
 */
extern struct image_takes *image_takes_new (struct image *im, unsigned linger);
extern void image_takes_free (struct image_takes *ts); /* or NULL */

/* The snapshot that an export IMAGE_TAKE_PREFIX is of, by its name without the
 * prefix: made if it was not.  As image_points_open.
 */
extern struct layer *image_take_open (const struct image *im,
                                      const char *encoded);

/* Write its description.  Returns -1 with the error set if there can't be such an
 * export.
 */
extern int image_describe_take (const struct image *im, const char *encoded,
                                char *buf, size_t len);
extern void image_describe_snapshot (const struct snapshot *sn, char *buf,
                                     size_t len);

/* No search for leaks runs, nor begins, until it may again. */
extern void image_suspend_leaks (struct image *im);
extern void image_resume_leaks (struct image *im);

/* Decode what is percent-encoded in a part of an export's name, in place.  False:
 * it can't be decoded.
 */
extern bool image_decode_name (char *s);

/* All points fail, since the disk is changed by other means than requests. */
extern void image_points_fail (struct image *im);

/* No request is running, nor will one, and no disk of a point be closed any more:
 * nbdkit leaves some open when it ends.  End them all, and give up what they had,
 * as long as there is a writer.
 */
extern void image_points_close (struct image *im);

/* Wait until all requests have ended that may have read what an image was
 * before a repair, and forget it.
 */
extern void image_forget_tables (struct image *im, unsigned id);

/* Exports whose names begin with IMAGE_POINT_PREFIX, if there are points: as
 * image_describe and image_open_disk.
 */
extern bool image_is_frozen (const struct image *im, const char *export);
extern int image_describe_frozen (const struct image *im, const char *export,
                                  char *buf, size_t len);
extern struct layer *image_open_frozen (const struct image *im,
                                        const char *export);

/* The same for the bitmap of this name, in an image that may have bitmaps: with the
 * live disk, or with a snapshot (NULL: none).
 */
extern int image_describe_bitmap (const struct image *im, const char *bitmap,
                                  char *buf, size_t len);
extern struct layer *image_open_bitmap (const struct image *im,
                                        const char *bitmap,
                                        const struct snapshot *sn);

/* Exports whose names begin with IMAGE_CHANGED_PREFIX, if there are such: as
 * image_describe and image_open_disk.
 */
extern bool image_is_changed (const struct image *im, const char *export);
extern int image_describe_changed (const struct image *im, const char *export,
                                   char *buf, size_t len);
extern struct layer *image_open_changed (const struct image *im,
                                         const char *export);

#endif /* CORE_IMAGE_PARTS_H */
