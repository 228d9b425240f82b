/* SPDX-License-Identifier: BSD-3-Clause */

/* Small images to be written to, sound in every respect, together with what
 * is on their disks.
 */

#ifndef CRASH_MAKER_H
#define CRASH_MAKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/passphrase.h"
#include "qcow2/header.h"

/* What the live disk's tables say of a cluster, and a snapshot's. */
enum cluster_state {
  MADE_UNALLOCATED,
  MADE_DATA,
  MADE_ZERO_PLAIN,        /* v3 */
  MADE_ZERO_ALLOC,        /* v3 */
  MADE_COMPRESSED,        /* alone in its host cluster, or packed: see below */
  MADE_PACKED,            /* shares host clusters with others */
  MADE_SUB_MIXED,         /* extended L2: subclusters of every kind */
  MADE_SUB_EMPTY,         /* extended L2: a host cluster, nothing in it */
  MADE_SUB_ZERO,          /* extended L2: zeros and unallocated, none below */
  MADE_SHARED_DATA,       /* as the snapshot has it */
  MADE_SHARED_ZERO,       /* v3 */
  MADE_SHARED_COMPRESSED,
  MADE_SHARED_SUB,        /* extended L2: mixed */
  MADE_SNAPSHOT_ONLY,     /* unallocated here, data in the snapshot */
  MADE_DIVERGED,          /* other data here than there */
  MADE_STATES
};

#define MADE_MAX_SNAPSHOTS 2

/* Bitmaps have a bit for each sector.  The parts of the first are clean, of the
 * second all dirty, of the third in clusters.  Each has MADE_BITMAP_BYTES in the
 * directory.
 */
#define MADE_BITMAPS 3
#define MADE_BITMAP_BYTES 32

struct made {
  char name[96];
  uint8_t *bytes;
  uint64_t size;

  unsigned version;
  unsigned cluster_bits;
  uint64_t cluster_size;
  uint64_t subcluster_size; /* = cluster_size without extended L2 */
  bool extended;
  unsigned refcount_order;
  enum compression compression;
  bool lazy;
  bool bitmaps;        /* MADE_BITMAPS of them, which are enabled */
  bool give_up;        /* and to be given up */
  bool idle;           /* and to be written as they are exactly by flushes */
  uint64_t bitmaps_at; /* where their directory is, in the file */
  bool keep;    /* to be written without punching holes */
  bool zip;     /* to be written with clusters compressed */
  bool no_zero; /* on a storage that can't zero, punch or allocate */
  bool tight;   /* to be written while little may wait to be had again */
  bool aes;     /* its data is enciphered, with made_passphrases */
  bool luks;    /* the same, and by where it is in the file */
  bool locked_below; /* the backing file's is, with another passphrase */
  bool known;   /* the header has no extension that nobody knows */

  uint64_t disk_size;
  uint64_t nr_clusters; /* of the disk; the last one may be cut */
  uint8_t *content;     /* of the live disk, as it reads */
  uint8_t *state;       /* enum cluster_state of each cluster */

  unsigned nr_snapshots;
  char snapshot_name[MADE_MAX_SNAPSHOTS][16];
  uint8_t *snapshot_content[MADE_MAX_SNAPSHOTS]; /* of disk_size bytes */

  /* The backing file, if there is one. */
  uint8_t *backing;
  uint64_t backing_size;

  uint64_t leaks; /* that the image has from the start */
};

/* The parts of a name, joined by `-':
 *
 *   v2 v3            the version
 *   c512 c1k ... c2m the size of clusters
 *   r1 ... r64       the width of refcounts (v3)
 *   ext              extended L2 entries
 *   zstd             and not deflate
 *   lazy             lazy refcounts
 *   comp             compressed clusters
 *   snap             a snapshot, with tables of its own
 *   snapall          a snapshot that shares every table
 *   snap2            a second one, that shares its tables with the first
 *   back             over a raw file; shortback: a short one; longback: one
 *                    that is longer by several L2 tables of small clusters;
 *                    qback: over a qcow2 image; aesback, luksback: over one
 *                    that is encrypted, with another passphrase
 *   holes            free clusters within the file, full of garbage
 *   full             few free refcounts in the last refcount block
 *   table            few free places in the refcount table
 *   brim             none: the next cluster wants a larger one
 *   tail             the disk ends within a cluster, and the file, too
 *   many             a disk of many L2 tables
 *   bitmap           persistent bitmaps that follow what is written
 *   giveup           those, but they are given up
 *   autoclear        an unknown autoclear bit
 *   keep             written without punching holes
 *   zip              written with clusters compressed; not with aes
 *   nozero           on a storage that can neither zero, punch nor allocate
 *   tight            written while little may wait to be had again
 *   aes              encrypted, by where the guest sees it
 *   luks             encrypted, by where it is in the file (crash/test-manage)
 *   late             its LUKS header is behind all data
 *   below            its passphrase is that of backing files
 *   known            without a header extension that nobody knows
 *   s1, s2, ...      another arrangement of the clusters
 *
 * Returns false if the name is none, or asks for what can't be.
 */
extern bool made_image (struct made *m, const char *name);
extern void made_free (struct made *m);

/* The image is on a device of so many more bytes, or a little more, which are
 * what was left there by others.
 */
extern void made_on_device (struct made *m, uint64_t more, uint64_t seed);

/* How many of the bitmaps of this image are in use, as bytes are now. */
extern unsigned made_bitmaps_in_use (const struct made *m,
                                     const uint8_t *bytes);

/* I14: whether those that are kept are valid, and have each sector which is
 * another in content than when the image was made.  False: why says why not.
 */
extern bool made_bitmaps_are_kept (const struct made *m, const uint8_t *bytes,
                                   const uint8_t *content, char *why,
                                   size_t len);

/* Of any such image and what is below it; and of the latter alone. */
extern const struct passphrases made_passphrases, made_passphrases_below;

/* What opens this image, with its backing file; NULL: nothing is encrypted. */
extern const struct passphrases *made_unlock (const struct made *m);

/* A list of names, the end of which is NULL. */
extern const char *const made_names[];

#endif /* CRASH_MAKER_H */
