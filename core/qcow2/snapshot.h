/* SPDX-License-Identifier: BSD-3-Clause */

/* The table of internal snapshots.  Spec: Snapshots. */

#ifndef CORE_QCOW2_SNAPSHOT_H
#define CORE_QCOW2_SNAPSHOT_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/header.h"
#include "storage/storage.h"

struct snapshot {
  char *id;
  char *name;
  struct host_off l1_offset; /* not checked: see snapshot_check */
  uint64_t l1_size;
  uint64_t disk_size; /* in bytes */
  bool has_disk_size; /* else it is the live disk's */
  uint64_t vm_state_size;
  uint32_t date_sec; /* since the epoch */
  uint32_t date_nsec;
  uint64_t vm_clock_nsec;
  uint64_t icount; /* instructions; UINT64_MAX: not known */

  /* Its name for clients: the name or, where that is empty, not unique or not
   * valid UTF-8, the ID; NULL if that won't do either.
   */
  const char *label;
};

struct snapshots {
  struct snapshot *snapshot;
  uint32_t nr;
  uint64_t table_bytes; /* size of the table in the file */
  bool has_unknown;     /* entries have data that is unknown here */
};

/* Read the table of the image with this header.  Returns -1 with the error
 * set, and t empty: EINVAL if the table is malformed, EIO, ENOMEM.
 */
extern int snapshots_read (struct snapshots *t, const struct header *h,
                           struct storage *s);
extern void snapshots_free (struct snapshots *t);

/* Find the snapshot with this label, else the only one with this ID.
 * Returns NULL if there is none.
 */
extern const struct snapshot *snapshots_find (const struct snapshots *t,
                                              const char *label);

/* Check that the snapshot's L1 table and size are usable.  Returns -1 with the
 * error set.
 */
extern int snapshot_check (const struct snapshot *sn, const struct header *h,
                           const struct storage *s);

#endif /* CORE_QCOW2_SNAPSHOT_H */
