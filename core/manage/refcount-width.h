/* SPDX-License-Identifier: BSD-3-Clause */

/* Another width for the refcounts of an image that nobody serves.  Spec: Host
 * cluster management.
 *
 * A new table and new blocks are written behind the last cluster in use, where
 * the old ones count nothing, and the header switches to them by one sector.
 * They count themselves, and not the old ones, which so are free: a power cut
 * leaves the old width or the new one, and no leaks.
 */

#ifndef CORE_MANAGE_REFCOUNT_WIDTH_H
#define CORE_MANAGE_REFCOUNT_WIDTH_H

#include "storage/storage.h"

/* Whether a file has refcounts that fit in 2^order bits, and a table for such.
 * Nothing is written.  Wants what edit_open wants (core/manage/edit.h), and
 * version 3.  Returns -1 with the error set: ENOTSUP if not; EINVAL or EIO for
 * damage, ENOMEM.
 */
extern int refcount_width_check (struct storage *s, unsigned order);

/* Change them.  Errors as above, and ENOSPC; nothing has changed then, unless the
 * message says so.
 */
extern int refcount_width_set (struct storage *s, unsigned order);

#endif /* CORE_MANAGE_REFCOUNT_WIDTH_H */
