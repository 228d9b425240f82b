/* SPDX-License-Identifier: BSD-3-Clause */

/* The byte-range locks by which QEMU's programs keep out of each other's way.
 * Of each of a file's permissions (STORAGE_WRITE and the like) a process says
 * whether it uses it, and whether it denies it to others.  The locks belong to
 * the open file: they go when its last descriptor is closed.
 */

#ifndef CORE_STORAGE_LOCKS_H
#define CORE_STORAGE_LOCKS_H

enum locks {
  LOCKS_TAKEN,
  LOCKS_CONFLICT, /* another process uses or denies what it must not */
  LOCKS_MISSING,  /* they can't be had here, errno says why */
};

/* Make it known that this process uses and denies these permissions, and look
 * for others that are in the way.  What is denied by another descriptor of this
 * process is given up in between, so that at no moment others find no lock:
 * instead is that descriptor, or -1.  Whatever the result, some locks may have
 * been placed.
 */
extern enum locks locks_take (int fd, unsigned uses, unsigned denies,
                              int instead, unsigned instead_denies);

/* Only make it known: nobody can be in the way, since another descriptor of
 * this process has locks that let others have none.
 */
extern enum locks locks_place (int fd, unsigned uses, unsigned denies);

/* Deny these again, after another descriptor has failed to take its place. */
extern void locks_deny (int fd, unsigned denies);

#endif /* CORE_STORAGE_LOCKS_H */
