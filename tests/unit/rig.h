/* SPDX-License-Identifier: BSD-3-Clause */

/* An image in memory that is open for writing, and what its disk should
 * hold.  Requests are done to both.
 */

#ifndef UNIT_RIG_H
#define UNIT_RIG_H

#include "build.h"
#include "image.h"
#include "model.h"

struct rig {
  const char *what; /* for messages */
  struct memory_disk disk;
  struct memory_control control;
  bool raw_base; /* else qcow2 */
  const uint8_t *base; /* the backing file's bytes; NULL: there is none */
  uint64_t base_size;
  struct memory_control base_control;

  uint64_t cache_size;
  struct writer_options options;
  bool mixed; /* some of what is written is zeros, some does not compress */
  struct image *im;
  struct layer *live;

  uint64_t size;    /* of the disk */
  uint64_t granule; /* that can be marked as zeros */
  uint8_t *content;
  uint8_t *scratch; /* of that size, too: what was read */
  unsigned nr_snapshots;
  uint8_t *snapshot[BUILD_MAX_SNAPSHOTS];
};

/* Take an image that was built, and finished.  Its builder may be freed. */
extern void rig_init (struct rig *r, const char *what,
                      const struct builder *image);
extern void rig_set_base (struct rig *r, const uint8_t *bytes, uint64_t size,
                          bool raw);

/* Open the disk for writing.  Unless content is set, what it holds at first
 * is what it reads as.
 */
extern void rig_open (struct rig *r);

/* An image and all that it should hold. */
extern void rig_init_model (struct rig *r, const char *what,
                            const struct model *m);

/* Close the image, which must then be sound, and without leaks. */
extern void rig_close (struct rig *r);
/* Close it where that may fail, or may leave leaks. */
extern int rig_close_only (struct rig *r);
extern void rig_free (struct rig *r);

/* Requests.  The data follows from the seed.  Return what core/ did; if that
 * is an error, what is expected has not changed.
 */
extern int rig_try_write (struct rig *r, uint64_t offset, uint64_t count,
                          uint64_t seed, unsigned flags);
extern int rig_try_zero (struct rig *r, uint64_t offset, uint64_t count,
                         unsigned flags);
extern int rig_try_trim (struct rig *r, uint64_t offset, uint64_t count,
                         unsigned flags);

/* The same where no error is expected. */
extern void rig_write (struct rig *r, uint64_t offset, uint64_t count,
                       uint64_t seed);
extern void rig_zero (struct rig *r, uint64_t offset, uint64_t count,
                      unsigned flags);
extern void rig_trim (struct rig *r, uint64_t offset, uint64_t count);
extern void rig_flush (struct rig *r);

/* Read the disk, and all snapshots, and compare. */
extern void rig_compare (struct rig *r);
extern void rig_compare_range (struct rig *r, uint64_t offset,
                               uint64_t count);

/* The kind of what is at this offset, and its host offset. */
extern enum run_kind rig_kind (struct rig *r, uint64_t offset);
extern uint64_t rig_host (struct rig *r, uint64_t offset);

/* What the image's refcount of this host cluster is, on disk. */
extern uint64_t rig_refcount (struct rig *r, uint64_t host);

#endif /* UNIT_RIG_H */
