/* SPDX-License-Identifier: BSD-3-Clause */

/* All persistent bitmaps of an image that is being changed (see
 * manage/edit.h): as they are, and as they shall be.  What becomes different
 * is written beside what is there; then the header's first sector leads to it,
 * with whatever else that switches.  Spec: Bitmaps.
 *
 * Memory: the directory; of those that were loaded the table, twice, and the
 * bits that have changed.  A bit that has to be the same for a whole part of a
 * bitmap (as many as a cluster has) takes no memory, and no cluster.  That is
 * what marks fall back to when all bitmaps follow a change of the disk, and
 * max_bytes are taken.
 *
 * One thread, no locks.
 */

#ifndef CORE_MANAGE_BITMAP_SET_H
#define CORE_MANAGE_BITMAP_SET_H

#include "manage/edit.h"
#include "qcow2/bitmaps.h"

struct bitmap_member {
  uint8_t *entry; /* of the directory, as it shall be, padded */
  size_t entry_bytes;
  bool is_new;    /* it is not in the image */
  bool removed;   /* nor shall be any more */

  /* As in struct bitmap_info; place is for messages. */
  enum bitmap_state state;
  bool automatic;
  unsigned granularity_bits;
  struct host_off place, table;

  /* If it was loaded: the table as it is, and as it shall be, in the host's
   * byte order; and for each part its bits, one cluster, if they are new.
   */
  uint32_t nr_old, nr_parts;
  uint64_t *old, *now;
  uint8_t **bits;
  bool changed; /* it needs a new table */
};

struct bitmap_set {
  struct edit *e;
  uint64_t disk_size; /* that they are for */
  uint8_t *directory; /* as it is: entries point into it */
  uint64_t directory_bytes;
  struct bitmap_member *member;
  size_t nr;
  bool changed; /* something is to be written */
  uint64_t bytes;     /* of all bits in memory, each to be written */
  uint64_t max_bytes; /* beyond them a mark makes all of its part dirty */
};

/* max_bytes of sets that follow (see bitmap_set_follow).  Else there is none:
 * one bitmap changes, which has QCOW2_MAX_BITMAP_BYTES at most.
 */
#define BITMAP_SET_FOLLOW_BYTES (UINT64_C (32) << 20)

/* Whether an entry of a valid table, in the host's byte order, is of a
 * cluster.
 */
static inline bool
bitmap_is_cluster (uint64_t word)
{
  return word > QCOW2_BITMAP_ALL_ONES;
}

/* Read the directory.  Returns -1 with the error set: EINVAL or EIO for
 * damage, ENOMEM.
 */
extern int bitmap_set_read (struct bitmap_set *b, struct edit *e);
extern void bitmap_set_free (struct bitmap_set *b); /* also after that failed */

/* The first of this name; NULL without an error: there is none. */
extern struct bitmap_member *bitmap_set_find (const struct bitmap_set *b,
                                              const char *name);

/* Add one without dirty bits that is enabled.  Its granularity is 2 to the
 * power of bits bytes.  Returns -1 with the error set: ENOTSUP for a limit,
 * ENOMEM.
 */
extern int bitmap_set_add (struct bitmap_set *b, const char *name,
                           unsigned bits);

/* Read the table of one that is in the image.  To be called before the
 * functions below; does nothing the second time.  Returns -1 with the error
 * set: EINVAL or EIO for damage, ENOMEM.
 */
extern int bitmap_set_load (struct bitmap_set *b, struct bitmap_member *m);

/* Its clusters are not in use any more. */
extern void bitmap_set_remove (struct bitmap_set *b, struct bitmap_member *m);

extern void bitmap_set_enable (struct bitmap_set *b, struct bitmap_member *m,
                               bool enable);
extern void bitmap_set_clear (struct bitmap_set *b, struct bitmap_member *m);

/* Set the bits of these bytes (> 0) of the disk; and others of the same parts,
 * beyond max_bytes.  Returns -1 with the error set: EIO, ENOMEM.
 */
extern int bitmap_set_mark (struct bitmap_set *b, struct bitmap_member *m,
                            uint64_t start, uint64_t length);

/* Clear the bits from first to end (exclusive), which is the end of that part.
 * Returns -1 with the error set: EIO, ENOMEM.
 */
extern int bitmap_set_clear_bits (struct bitmap_set *b,
                                  struct bitmap_member *m, uint64_t first,
                                  uint64_t end);

/* Give up what part i has in memory, if anything. */
extern void bitmap_set_forget_bits (struct bitmap_set *b,
                                    struct bitmap_member *m, uint32_t i);

/* How many parts a bitmap of a disk of this size has.  Returns -1 with the
 * error set: ENOTSUP for a limit.
 */
extern int bitmap_set_count_parts (const struct bitmap_set *b,
                                   unsigned granularity_bits, uint64_t size,
                                   uint32_t *nr);

/* ------------------------------------------- the disk itself is to change
 * (I14)
 *
 * Load the bitmaps which that concerns: the enabled ones, and if it is resized
 * the others, too.  Returns -1 with the error set: ENOTSUP if one can't
 * follow; EINVAL or EIO for damage, ENOMEM.
 */
extern int bitmap_set_follow (struct bitmap_set *b, bool resized);
extern bool bitmap_set_any_enabled (const struct bitmap_set *b);

/* After that: these bytes (> 0) of the disk change.  What gets dirty in addition
 * is as with bitmap_set_mark.  Errors: EIO, ENOMEM.
 */
extern int bitmap_set_mark_enabled (struct bitmap_set *b, uint64_t start,
                                    uint64_t length);

/* The same, opaque being the set. */
extern int bitmap_set_mark_range (void *opaque, uint64_t start,
                                  uint64_t length);

/* And it gets this size, a multiple of 512.  What is new is dirty in enabled
 * bitmaps, since it may have had other content before it was cut off once; and
 * clean in others, as in QEMU.  Returns -1 with the error set: ENOTSUP for a
 * limit; EIO, ENOMEM.
 */
extern int bitmap_set_resize (struct bitmap_set *b, uint64_t size);

/* ------------------------------------------------------------ writing them
 *
 * bitmap_set_plan finds what needs no writing, and whether the rest can be done:
 * to be called after the last change.  Then come, if b->changed:
 *   edit_take       with a space of bitmap_set_bytes, if that is not 0;
 *   bitmap_set_fill writes that space, and changes e->sector to lead there;
 *   edit_switch;
 *   bitmap_set_drop adds what they don't need any more to refs.
 * All return -1 with the error set.
 */
extern int bitmap_set_plan (struct bitmap_set *b);
extern uint64_t bitmap_set_bytes (const struct bitmap_set *b);
extern int bitmap_set_fill (struct bitmap_set *b, struct host_off at);
extern int bitmap_set_drop (const struct bitmap_set *b, struct refs *refs);

#endif /* CORE_MANAGE_BITMAP_SET_H */
