/* SPDX-License-Identifier: BSD-3-Clause */

/* For tests that have the linker wrap where a snapshot begins to be made, and where
 * the header is about to lead to it: nothing is held then.
 */

#ifndef UNIT_TAKE_WRAP_H
#define UNIT_TAKE_WRAP_H

#include "qcow2/write/writer-parts.h"

int __real_features_begin_take (struct writer *w);
int __wrap_features_begin_take (struct writer *w);
int __real_features_switch_snapshots (struct writer *w, uint32_t nr,
                                      struct host_off table,
                                      const struct bitmap_header *bitmaps);
int __wrap_features_switch_snapshots (struct writer *w, uint32_t nr,
                                      struct host_off table,
                                      const struct bitmap_header *bitmaps);

#endif /* UNIT_TAKE_WRAP_H */
