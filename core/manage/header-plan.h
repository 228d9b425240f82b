/* SPDX-License-Identifier: BSD-3-Clause */

/* From one header, with its extensions and the backing file's name, to another
 * one: as first clusters of the image that are written one after the other.
 *
 *   H1  From one to the next, only bytes that the earlier one does not use
 *       change outside of the first sector.  So all but the first sector can be
 *       written without a change of meaning, and then that one sector switches.
 *   H2  Each of them opens, and has the old contents or the new ones; names of
 *       features may be missing in between.
 *
 * Pure: no I/O.  Spec: Header, Header extensions.
 */

#ifndef CORE_MANAGE_HEADER_PLAN_H
#define CORE_MANAGE_HEADER_PLAN_H

#include <stdint.h>

#include "qcow2/header.h"

#define HEADER_SECTOR 512

/* What a header is to say; the rest stays as it is (I8). */
struct header_wish {
  uint32_t version;
  uint64_t incompatible, compatible, autoclear;
  enum compression compression;
  const char *backing_name, *backing_format; /* empty: none */
};

#define HEADER_PLAN_STEPS 2

struct header_plan {
  unsigned nr;                         /* of steps, at least 1 */
  uint8_t *cluster[HEADER_PLAN_STEPS]; /* owned */
};

/* Plan the way from a first cluster, old, of the image of this name and size in
 * bytes, whose header it is (header_decode), to one that says what is wished.
 * The names of features are left out if there is no room for them.  Returns -1
 * with the error set: ENOTSUP if the names don't fit in the cluster, or if no
 * order of writing is safe; ENOMEM.
 */
extern int header_plan_make (struct header_plan *p, const char *name,
                             const uint8_t *old, const struct header *h,
                             uint64_t file_size,
                             const struct header_wish *wish);
extern void header_plan_free (struct header_plan *p); /* after errors, too */

#endif /* CORE_MANAGE_HEADER_PLAN_H */
