/* SPDX-License-Identifier: BSD-3-Clause */

/* What a range of a disk is, in one layer of it: what a lookup in a file of
 * any format tells.
 */

#ifndef CORE_DISK_RUN_H
#define CORE_DISK_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/offset.h"

enum run_kind {
  RUN_UNALLOCATED, /* ask the backing file */
  RUN_ZERO_PLAIN,
  RUN_ZERO_ALLOC,
  RUN_DATA,
  RUN_GUEST_DATA, /* the same, enciphered by where the guest sees it: only the
                   * format can read it */
  RUN_COMPRESSED, /* only the format can decode it */
  RUN_DAMAGED,    /* the reason is set as the error */
};

struct run {
  enum run_kind kind;
  uint64_t length; /* in bytes of the guest's disk */
  /* DATA and GUEST_DATA: of the first byte; COMPRESSED: of the compressed data;
   * DAMAGED: of the entry that is.
   */
  struct host_off host;
  uint32_t compressed_size; /* COMPRESSED: bytes at most */
  const void *bytes;        /* COMPRESSED: those, once they were read; or NULL */
  bool in_place;            /* DATA: nothing else refers to it */
};

#endif /* CORE_DISK_RUN_H */
