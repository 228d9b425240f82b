/* SPDX-License-Identifier: BSD-3-Clause */

/* What tests of changes to an image that was made hold of its metadata.  what is
 * for messages: what is looked at.
 */

#ifndef CRASH_VERDICT_H
#define CRASH_VERDICT_H

#include <stdbool.h>
#include <stdint.h>

#include "maker.h"

/* Whether no refcount is less than the references; else *cluster is one that is. */
extern bool verdict_refcounts_suffice (const struct made *m,
                                       const uint8_t *bytes, uint64_t size,
                                       uint64_t *cluster);

/* The same, as a check. */
extern void verdict_references (const struct made *m, const uint8_t *bytes,
                                uint64_t size, const char *what);

/* It opens, and is sound but for leaks; and for refcounts where it is marked as
 * dirty, or has no mark for that, as in version 2.  Returns whether it is marked.
 */
extern bool verdict_metadata (const struct made *m, const uint8_t *bytes,
                              uint64_t size, const char *what);

/* Whether no sector of count bytes of content, zeros apart, is in the file as it
 * is; else *at says where in the file, and *sector which one of the disk.
 */
extern bool verdict_is_enciphered (const uint8_t *bytes, uint64_t size,
                                   const uint8_t *content, uint64_t count,
                                   uint64_t *at, uint64_t *sector);

/* Call fn for each of these images, or only for the one that the command line
 * names.
 */
typedef void try_function (const char *image);
extern void try_images (int argc, char *argv[], const char *const *images,
                        unsigned nr, try_function *fn);

#endif /* CRASH_VERDICT_H */
