/* SPDX-License-Identifier: BSD-3-Clause */

/* A qcow2 image that is changed while nobody serves it: what all commands have
 * in common that change more than its data.
 *
 * A command computes everything in memory first, where it may find that the
 * image is damaged or that something does not fit; then takes the clusters that
 * it needs, fills them, and switches to them by one write of the header's first
 * sector.  Only what can't fail for want of space comes after that.
 *
 * One thread, no locks.
 */

#ifndef CORE_MANAGE_EDIT_H
#define CORE_MANAGE_EDIT_H

#include "base/epoch.h"
#include "disk/layer.h"
#include "manage/refs.h"
#include "qcow2/disk.h"
#include "qcow2/header.h"
#include "qcow2/snapshot.h"
#include "qcow2/write/writer.h"
#include "storage/storage.h"

#define EDIT_SECTOR 512

struct edit {
  struct storage *storage;
  struct header header; /* as it was when the image was opened */
  struct snapshots snapshots;
  struct entry_format format;
  uint8_t sector[EDIT_SECTOR]; /* the file's first, as it is or will be */
  bool begun;
  struct host_off hint; /* where the header's hint is once that is written; 0: no
                         * move */

  /* Its allocator takes clusters.  Nothing else of it is used, and it is not
   * after edit_take.
   */
  struct writer *writer;
  struct epoch epoch;
  struct shared shared;
  struct qcow2_disk disk;
};

/* Open the image in a storage that is writable and locked, which stays the
 * caller's.  Nothing is written.  Returns -1 with the error set, and e closed:
 * ENOTSUP if it is marked as dirty or corrupt or has an external data file,
 * EINVAL or EIO for damage, ENOMEM.
 */
extern int edit_open (struct edit *e, struct storage *s);
extern void edit_close (struct edit *e);

/* Check that no cluster has more references than its refcount tells, from
 * whatever is in the image, and that no damage hides references: so a refcount
 * that is lowered by as many as go away is 0 only if nothing has the cluster any
 * more, and 1 only if one has.  Nothing is written.  Returns -1 with the error
 * set: EIO for damage.
 */
extern int edit_check_references (struct storage *s);

/* To be called before the first change: edit_check_references; then unknown
 * autoclear bits are cleared (I8), and the hint that there is a writer is set,
 * durably.  Returns -1 with the error set.
 */
extern int edit_begin (struct edit *e);

/* Take contiguous clusters for each of nr tables of so many bytes (> 0), with
 * refcounts of 1 that are durable.  Calls edit_begin.  To be called once.
 * Returns -1 with the error set, which tells if some may be leaked.
 */
struct edit_space {
  uint64_t bytes;
  struct host_off at;
};
extern int edit_take (struct edit *e, struct edit_space *space, unsigned nr);

/* Write a table to clusters that were taken, with zeros up to the end of the
 * last.  Not durable.  Returns -1 with the error set.
 */
extern int edit_fill (struct edit *e, const struct edit_space *space,
                      const void *table);

/* After a failure, whose error is set and stays: the clusters that were taken
 * are not needed, and nothing refers to them.  If it was for want of space they
 * are given back; after others nothing more is written (I10), and the error
 * tells that they are leaked.
 */
extern void edit_give_back (struct edit *e, const struct edit_space *space,
                            unsigned nr);

/* Change fields of e->sector. */
extern void edit_set_disk (struct edit *e, uint64_t size, uint32_t l1_entries,
                           struct host_off l1);
extern void edit_set_snapshots (struct edit *e, uint32_t nr,
                                struct host_off table);

extern void edit_set_refcounts (struct edit *e, unsigned order,
                                struct host_off table, uint32_t clusters);

/* Mark it as dirty, or not any more; version 2 has no such bit. */
extern void edit_set_dirty (struct edit *e, bool dirty);

/* Write e->sector, after all that was written before is durable; it is durable,
 * too, then.  Returns -1 with the error set.
 */
extern int edit_switch (struct edit *e);

/* Check that snapshots say how large their disks are: if not (as in version 2)
 * they have the live one's size, which then can't change.  Returns -1 with the
 * error set: ENOTSUP if not.
 */
extern int edit_check_snapshot_sizes (const struct edit *e);

/* Read the refcounts as they are on the disk now: edit_take may have moved
 * their table.  Returns -1 with the error set.
 */
extern int edit_open_refs (const struct edit *e, struct refs *refs);

/* A table of so many bytes is not in use any more.  Returns -1 with the error
 * set, as refs_change.
 */
extern int edit_drop (const struct edit *e, struct refs *refs,
                      struct host_off at, uint64_t bytes);

/* Write the changed refcounts, durably.  Returns -1 with the error set. */
extern int edit_write_refs (struct edit *e, struct refs *refs);

/* All went well: the hint is cleared, and what refs has set free, durably, goes
 * back to the host: by holes, and at the end of the file by cutting it off.
 * Returns -1 with the error set.
 */
extern int edit_end (struct edit *e, struct refs *refs);

/* How many clusters these bytes take. */
static inline uint64_t
edit_clusters (const struct edit *e, uint64_t bytes)
{
  return (bytes + e->header.cluster_size - 1) >> e->header.cluster_bits;
}

#endif /* CORE_MANAGE_EDIT_H */
