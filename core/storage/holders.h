/* SPDX-License-Identifier: BSD-3-Clause */

/* What the storages of this process do with one file, in place of QEMU's locks
 * where there are none: so that at least this process does not give two writers
 * one file.
 *
 * All functions may be called by several threads at once.
 */

#ifndef CORE_STORAGE_HOLDERS_H
#define CORE_STORAGE_HOLDERS_H

#include <stdbool.h>
#include <stdint.h>

/* One storage, in the list of all while listed is set. */
struct holder {
  uint64_t file[2]; /* what tells it from others; to be set by the owner */
  unsigned uses, denies; /* permissions: STORAGE_WRITE and the like */
  bool listed;
  struct holder *next;
};

/* Use and deny these permissions from now on, instead of what h did until now.
 * Returns false, and nothing has changed, if another holder of the file denies
 * what h would use or uses what it would deny; with alone set nobody is looked
 * for.
 */
extern bool holder_take (struct holder *h, unsigned uses, unsigned denies,
                         bool alone);

/* Hold nothing any more.  May be called for one that never did. */
extern void holder_leave (struct holder *h);

#endif /* CORE_STORAGE_HOLDERS_H */
