/* SPDX-License-Identifier: BSD-3-Clause */

/* The fuzz targets.  Each is built into a program for libFuzzer (fuzz.c), and
 * all of them into one that needs nothing but a compiler (replay.c).
 */

#ifndef FUZZ_TARGET_H
#define FUZZ_TARGET_H

#include <stddef.h>
#include <stdint.h>

struct target {
  const char *name; /* that of its folder of corpus/ and regressions/, too */
  size_t max_size;  /* of an input */
  long memory;      /* bytes that one may take; 0: as memory.c says */

  /* Use the input.  Aborts, saying why, where core/ breaks its word. */
  void (*test) (const uint8_t *data, size_t size);

  /* Change something in the input of size bytes (> 0), in a place with room
   * for max, in a way that knows the format.  Returns the new size.
   */
  size_t (*mutate) (uint8_t *data, size_t size, size_t max, uint64_t seed);
};

/* The header and its extensions: pure.  An input is the size that the file
 * claims to have (8 bytes, big endian), and the start of the file.
 */
extern const struct target target_header;

/* An input of these is an image. */
extern const struct target target_map;      /* reads, extents, refcounts */
extern const struct target target_write;    /* all that changes the disk */
extern const struct target target_bitmap; /* bitmaps, as extents */
extern const struct target target_snapshot; /* the table, and what is in it */
extern const struct target target_check;    /* check and repair */

/* The same of a QED image, and its header. */
extern const struct target target_qed;

/* How an image is made that holds little and claims much: see target-cost.c. */
extern const struct target target_cost;

/* Compressed data, by itself and in an image: see target-codec.c. */
extern const struct target target_codec;

#endif /* FUZZ_TARGET_H */
