/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of make-corpus share. */

#ifndef FUZZ_CORPUS_H
#define FUZZ_CORPUS_H

#include <stdint.h>
#include <stdio.h>

#include "build.h"

/* The image that is being made. */
extern struct builder b;

/* A file of this target, in a folder of the current one; what is in it; and its
 * end.  An error ends the program.
 */
extern FILE *corpus_create (const char *folder, const char *target,
                            const char *name);
extern void corpus_put (FILE *f, const void *data, size_t size);
extern void corpus_end (FILE *f);

/* The image becomes such a file, and is gone; in "corpus", or elsewhere. */
extern void corpus_save (const char *target, const char *name);
extern void corpus_save_in (const char *folder, const char *target,
                            const char *name);

/* An image whose refcounts are right, once it is finished. */
extern void corpus_sound (unsigned order);

/* Parts of an image: a compressed cluster, clusters of all kinds, a header
 * extension, and a bitmap of one cluster (Spec: Bitmaps extension).
 */
extern void corpus_compressed (uint64_t cluster, uint64_t seed);
extern void corpus_some_clusters (void);
extern void corpus_extension (uint64_t at, uint32_t type, uint32_t len,
                              const char *data);
extern void corpus_bitmap (void);

/* corpus-check.c: images for the check and the repair, sound and damaged; and
 * one that took a repair long.
 */
extern void corpus_repairable (void);
extern void corpus_one_block_for_all (void);

#endif /* FUZZ_CORPUS_H */
