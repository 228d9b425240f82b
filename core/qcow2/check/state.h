/* SPDX-License-Identifier: BSD-3-Clause */

/* An image that is being checked: its header, the counts, and the findings. */

#ifndef CORE_QCOW2_CHECK_STATE_H
#define CORE_QCOW2_CHECK_STATE_H

#include "qcow2/check/counts.h"
#include "qcow2/check/ranges.h"
#include "qcow2/check/refcounts.h"
#include "qcow2/check/report.h"
#include "qcow2/entry.h"
#include "qcow2/header.h"
#include "storage/storage.h"

/* What host clusters are used as. */
enum check_use {
  USE_HEADER,
  USE_L1,
  USE_SNAPSHOTS,
  USE_REFCOUNT_TABLE,
  USE_REFCOUNT_BLOCK,
  USE_BITMAP_DIRECTORY,
  USE_BITMAP_TABLE,
  USE_BITS, /* of a bitmap */
  USE_CRYPTO,
  USE_L2,
  USE_DATA,
};

struct check {
  struct storage *storage;
  const struct check_options *options;
  struct header h;
  struct entry_format format;
  uint64_t file_size; /* rounded up to a sector, as QEMU does */
  uint64_t nr;        /* clusters to look at: those of the file, and up to two
                       * more that references reach into */
  struct check_refcounts refcounts;
  struct counts counts;
  struct check_findings findings;

  /* For repair: count entries as they will be once they are fixed up
   * (qcow2/check/fix-up.h), and judge nothing.
   */
  bool fixed_up;
  bool no_refcounts; /* don't count the refcount table and its blocks */
  bool only_look;    /* count nothing at all */

  /* For repair: clusters that count as used, since a table is about to be
   * written there.
   */
  struct { uint64_t first, nr; } reserved;
  /* If not NULL, called for each reference within the file, or n that are the
   * same, instead of counting it.
   */
  void (*referred) (void *opaque, enum check_use use, uint64_t offset,
                    uint64_t bytes, uint64_t n);
  void *opaque;

  /* The guest's offset of the L2 table that is visited: of its first entry's
   * cluster.  CHECK_NO_GUEST if it is part of the disk in several places.
   */
  uint64_t guest;

  uint64_t next; /* the first cluster after the window that has references */

  struct check_holes holes;
  uint64_t claimed; /* clusters that references to tables have claimed so far */
  uint8_t *words;   /* buffer of check_scan */
};

#define CHECK_NO_GUEST UINT64_MAX

/* Of an entry of that table, at this place; CHECK_NO_GUEST as well. */
static inline uint64_t
check_guest_of (const struct check *c, struct host_off table,
                struct host_off place)
{
  const unsigned entry_bits = c->h.extended_l2 ? 4 : 3;

  return c->guest == CHECK_NO_GUEST ? CHECK_NO_GUEST
    : c->guest + ((place.v - table.v) >> entry_bits << c->h.cluster_bits);
}

/* Snapshot table and bitmap directory entries can claim tables in parts of the
 * file that were never written.  Beyond what the file holds and this, it is no
 * image.
 */
#define CHECK_MAX_CLAIMED (UINT64_C (1) << 20) /* clusters */

/* Read the header and the refcount table.  options must outlive c.  Returns
 * -1 with the error set if this is no image that can be checked.
 */
extern int check_start (struct check *c, struct storage *storage,
                        const struct check_options *options);
extern void check_end (struct check *c);

/* Findings that don't depend on the window are made in the first. */
static inline bool
check_is_first (const struct check *c)
{
  return c->counts.first == 0 && !c->fixed_up;
}

/* Count n references from an entry at this place of the file (0: in the
 * header) to a range of bytes.  Returns 1 if the range is within the file, 0
 * if it is beyond its end, which is recorded as a finding, or -1 with the
 * error set.
 */
extern int check_refer (struct check *c, enum check_use use,
                        struct host_off place, uint64_t offset,
                        uint64_t bytes, uint64_t n);

/* Count the references to all tables of these ranges, which are within the
 * file: one for each range.  Returns -1 with the error set: EINVAL if they
 * claim too much.
 */
extern int check_refer_ranges (struct check *c, enum check_use use,
                               const struct check_ranges *ranges);

/* Whether a range of bytes extends beyond the end of the file, which may be
 * inside its last cluster.
 */
extern bool check_is_beyond (const struct check *c, uint64_t offset,
                             uint64_t bytes);

/* check_refer for one aligned cluster within the file, as most references are.
 * *chunk is set to its chunk; NULL: it has none.  Returns 0, or -1 with the
 * error set.
 */
extern int check_refer_cluster_slowly (struct check *c, enum check_use use,
                                       uint64_t cluster, uint64_t n,
                                       struct counts_chunk **chunk);

static inline int
check_refer_cluster (struct check *c, enum check_use use, uint64_t cluster,
                     uint64_t n, struct counts_chunk **chunk)
{
  struct counts_chunk *k;
  uint64_t surplus;

  *chunk = NULL;
  if (!counts_in_window (&c->counts, cluster) ||
      (k = counts_find (&c->counts, cluster)) == NULL || n != 1 ||
      use != USE_DATA || counts_get (&c->counts, k, cluster) != 0)
    return check_refer_cluster_slowly (c, use, cluster, n, chunk);
  *chunk = k;
  counts_set_flag (k, COUNTS_DATA, cluster);
  return counts_add (&c->counts, k, cluster, 1, &surplus);
}

/* Judge the COPIED flag of an entry of the active tables, found by n paths,
 * that refers to this cluster.  chunk is the cluster's, or NULL if it is not
 * in the window; beyond: nor is it in the file.  Returns 0, or -1 with the
 * error set.
 */
extern int check_copied_slowly (struct check *c, struct host_off place,
                                uint64_t word, uint64_t cluster,
                                const struct counts_chunk *chunk, bool beyond,
                                uint64_t n);

static inline int
check_copied (struct check *c, struct host_off place, uint64_t word,
              uint64_t cluster, const struct counts_chunk *chunk, bool beyond,
              uint64_t n)
{
  const bool copied = (word & QCOW2_ENTRY_COPIED) != 0;

  if (chunk != NULL && counts_flag (chunk, COUNTS_ONE, cluster) == copied)
    return 0;
  return check_copied_slowly (c, place, word, cluster, chunk, beyond, n);
}

/* Read a table piece by piece, except for holes, and pass the pieces to fn in
 * the order of the file.  words is a buffer of bytes (a multiple of 8) bytes,
 * which fn may change.  Stops when fn returns -1, and returns -1.
 */
typedef int check_words_fn (struct check *c, void *opaque,
                            struct host_off place, uint8_t *words,
                            size_t bytes);
extern int check_scan (struct check *c, struct host_off offset,
                       uint64_t bytes, check_words_fn *fn, void *opaque);

extern const char *check_use_name (enum check_use use);

/* Reads adjacent small pieces together, in the buffer of check_scan, which must
 * not be in use meanwhile.  Initially all zeros.
 */
struct check_reader {
  uint64_t at, bytes; /* what the buffer holds */
};

/* Returns -1 with the error set. */
extern int check_read_piece (struct check *c, struct check_reader *r,
                             void *buf, size_t bytes, struct host_off at);

#endif /* CORE_QCOW2_CHECK_STATE_H */
