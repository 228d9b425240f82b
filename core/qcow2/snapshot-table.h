/* SPDX-License-Identifier: BSD-3-Clause */

/* The snapshot table as bytes: with an entry more or less, and all others as
 * they are, what is unknown in them included (I8).  Spec: Snapshots.
 */

#ifndef CORE_QCOW2_SNAPSHOT_TABLE_H
#define CORE_QCOW2_SNAPSHOT_TABLE_H

#include <stdint.h>
#include <time.h>

#include "qcow2/header.h"
#include "qcow2/snapshot.h"
#include "storage/storage.h"

/* QEMU cuts off what is longer. */
#define SNAPSHOT_MAX_NAME 255 /* bytes */

#define SNAPSHOT_ID_BYTES 32

struct snapshot_table {
  uint8_t *bytes; /* owned */
  uint64_t size;
  uint32_t nr;
};

/* Read the one that snapshots_read has read.  Returns -1 with the error set. */
extern int snapshot_table_read (struct snapshot_table *t, struct storage *s,
                                const struct header *h,
                                const struct snapshots *snapshots);
extern void snapshot_table_free (struct snapshot_table *t);

/* Remove the entry of this number.  Returns -1 with the error set. */
extern int snapshot_table_remove (struct snapshot_table *t, const char *name,
                                  uint32_t number);

/* What a new entry says; there is no VM state. */
struct snapshot_new {
  struct host_off l1;
  uint32_t l1_entries;
  const char *id, *name; /* at most 65535 bytes each */
  struct timespec date;
  uint64_t disk_size;
};

/* Check that there can be one more, with a name as long as this one; and choose
 * its ID, the next number.  image is for messages.  Both return -1 with ENOTSUP
 * set.
 */
extern int snapshot_table_check_name (const char *image,
                                      const struct snapshots *snapshots,
                                      const char *name);
extern int snapshot_table_next_id (const char *image,
                                   const struct snapshots *snapshots,
                                   char id[SNAPSHOT_ID_BYTES]);

/* Append an entry, with extra data as QEMU writes it.  name is the image's.
 * Returns -1 with the error set: ENOTSUP if the table would be too large.
 */
extern int snapshot_table_append (struct snapshot_table *t, const char *name,
                                  const struct snapshot_new *sn);

/* Set the place of the last entry's L1 table. */
extern void snapshot_table_set_l1 (struct snapshot_table *t,
                                   struct host_off l1);

#endif /* CORE_QCOW2_SNAPSHOT_TABLE_H */
