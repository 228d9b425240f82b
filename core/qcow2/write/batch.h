/* SPDX-License-Identifier: BSD-3-Clause */

/* The changed sectors of tables, from memory to the storage: the order of
 * writes and flushes that a writeback (writeback.h) consists of.
 */

#ifndef CORE_QCOW2_WRITE_BATCH_H
#define CORE_QCOW2_WRITE_BATCH_H

#include <stdbool.h>

#include "cache/tables.h"
#include "storage/storage.h"

/* Write a batch to the storage of tables, and make it durable, with everything
 * that was written before this call to that storage or to that of data, which
 * may be the same.  ordered: refcounts, and all that was written before, are
 * durable before any mapping is written (I5).  Returns -1 with the error set:
 * ENOSPC means that nothing is lost, and that all of it can be written later;
 * after any other error nobody knows what is on the disk (I10).
 */
extern int batch_write (const struct cache_batch *b, bool ordered,
                        struct storage *tables, struct storage *data);

/* Make everything that was written to both durable, data first (I16).  Returns
 * -1 with the error set to EIO.
 */
extern int batch_flush (struct storage *tables, struct storage *data);

#endif /* CORE_QCOW2_WRITE_BATCH_H */
