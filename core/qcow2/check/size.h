/* SPDX-License-Identifier: BSD-3-Clause */

/* How much a check would read. */

#ifndef CORE_QCOW2_CHECK_SIZE_H
#define CORE_QCOW2_CHECK_SIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/storage.h"

/* Whether the tables of the image, of which a check reads each, take at most so
 * many bytes: refcount blocks, L1 tables, and an L2 table for each L1 entry
 * that has one, so that those which snapshots share count several times.  L2
 * tables are not read, nor more of the others than that.  Returns -1 with the error
 * set, as check_storage.
 */
extern int check_tables_fit (struct storage *s, uint64_t bytes, bool *fit);

#endif /* CORE_QCOW2_CHECK_SIZE_H */
