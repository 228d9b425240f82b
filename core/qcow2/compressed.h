/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading compressed clusters, through the cluster cache. */

#ifndef CORE_QCOW2_COMPRESSED_H
#define CORE_QCOW2_COMPRESSED_H

#include "disk/layer.h"

/* See format_ops.read_compressed. */
extern int compressed_read (const struct layer *layer, const struct run *run,
                            void *buf, struct guest_off offset);

#endif /* CORE_QCOW2_COMPRESSED_H */
