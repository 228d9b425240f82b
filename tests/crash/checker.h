/* SPDX-License-Identifier: BSD-3-Clause */

/* A check of an image's metadata, on its bytes in memory.  It judges as
 * `qemu-img check' does, counts what that counts, and is stricter where that
 * is blind.  It shares nothing with core/ but qcow2/format.h and
 * qcow2/entry.h, so that it can convict the rest.
 */

#ifndef CRASH_CHECKER_H
#define CRASH_CHECKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Refcounts and COPIED flags may be wrong: what the dirty bit announces.
 * They are not looked at, but for clusters that belong to two owners.
 */
#define CHECK_ANY_REFCOUNTS 1U

struct check_result {
  bool opens;           /* the header can be used */
  bool dirty;           /* the dirty bit is set */
  uint64_t corruptions; /* as qemu-img counts them */
  uint64_t leaks;       /* likewise */
  uint64_t errors;      /* likewise: the check itself fails, which is worse */
  uint64_t beyond;      /* refcounts of clusters beyond the end of the file:
                         * leaks once it grows */
  uint64_t shared_zeros; /* of the live disk: zero clusters that keep a host
                          * cluster which they can't write, as it is shared */
  uint64_t strict;      /* what only this checker takes offence at */
  char why[256];        /* what was found first, but for leaks */
};

extern void check_image (const void *bytes, uint64_t size, unsigned flags,
                         struct check_result *result);

/* True if nothing is wrong but leaks. */
static inline bool
check_is_sound (const struct check_result *r)
{
  return r->opens && r->corruptions == 0 && r->errors == 0 && r->strict == 0;
}

/* What a host cluster is used as. */
enum {
  ROLE_HEADER = 1 << 0,
  ROLE_L1 = 1 << 1,
  ROLE_L2 = 1 << 2,
  ROLE_DATA = 1 << 3,
  ROLE_COMPRESSED = 1 << 4,
  ROLE_REFCOUNT_TABLE = 1 << 5,
  ROLE_REFCOUNT_BLOCK = 1 << 6,
  ROLE_SNAPSHOT_TABLE = 1 << 7,
  ROLE_BITMAP = 1 << 8,
  ROLE_LUKS = 1 << 9, /* its header and key slots */
};

/* The roles of each cluster of the image; *nr is how many there are, 0 if it
 * is none.  The caller frees the array.
 */
extern uint16_t *check_roles (const void *bytes, uint64_t size, uint64_t *nr);

#endif /* CRASH_CHECKER_H */
