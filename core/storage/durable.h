/* SPDX-License-Identifier: BSD-3-Clause */

/* One write that is durable when it returns, and what its failure means for
 * everything else that was written.
 */

#ifndef CORE_STORAGE_DURABLE_H
#define CORE_STORAGE_DURABLE_H

#include "storage/storage.h"

/* Write exactly count bytes, durably.  Returns -1 with the error set: ENOSPC,
 * EIO; a part may have been written.  *sticks then tells whether it may have
 * been the host's report of other data that it has lost: like a failed flush
 * (I10), nothing may be written after it.
 *
 * A lack of space alone does not say which of the two has met it, the write or
 * making it durable.  So these are tried one by one: a write that finds no space
 * has lost nothing; the flush after one that does covers everything.  Where the
 * first try could be told of other data, and nobody else then (see one_report),
 * they are tried one by one at once.
 */
extern int storage_write_durably (struct storage *s, const void *buf,
                                  size_t count, struct host_off offset,
                                  bool *sticks);

#endif /* CORE_STORAGE_DURABLE_H */
