/* SPDX-License-Identifier: BSD-3-Clause */

/* An image with a backing file that is to have nothing of its own any more, once
 * its backing file has all of it: nobody serves it.
 */

#ifndef CORE_MANAGE_EMPTY_H
#define CORE_MANAGE_EMPTY_H

#include "storage/storage.h"

/* Whether empty_disk can be done, as far as can be known.  Nothing is written.
 * Returns -1 with the error set: ENOTSUP for an image that is marked as dirty or
 * corrupt, has an external data file or snapshots; EINVAL or EIO for damage.
 */
extern int empty_check (struct storage *s);

/* Map nothing any more.  The entries of the L1 table are cleared where they are,
 * so that a power cut leaves any of them, and leaks: the caller sees to it that
 * what they map is in the backing file, durably, and so reads the same either
 * way.  Snapshots, of which there must be none, would not.  Wants what edit_open
 * wants (core/manage/edit.h).  Returns -1 with the error set, which tells if
 * something may have been cleared.
 */
extern int empty_disk (struct storage *s);

#endif /* CORE_MANAGE_EMPTY_H */
