/* SPDX-License-Identifier: BSD-3-Clause */

/* How much a check would read. */

#ifndef CORE_QCOW2_CHECK_SIZE_H
#define CORE_QCOW2_CHECK_SIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/storage.h"

/* Whether the tables that a check of the image would read take at most this
 * many bytes: refcount blocks, L1 tables, and an L2 table for each L1 entry
 * that has one, so that L2 tables shared by snapshots count several times.
 * Reads no L2 tables, and no more than this many bytes of the others.  Returns
 * -1 with the error set, as check_storage.
 */
extern int check_tables_fit (struct storage *s, uint64_t bytes, bool *fit);

#endif /* CORE_QCOW2_CHECK_SIZE_H */
