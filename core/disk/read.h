/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading a disk through its chain of layers. */

#ifndef CORE_DISK_READ_H
#define CORE_DISK_READ_H

#include <stddef.h>

#include "disk/layer.h"

/* Read count bytes at offset, which must be within the layer.  Takes no
 * lock where all is mapped and cached.  Returns -1 with the error set: EIO
 * for damage (which is marked as repeated if it was reported before), or
 * for a host's read that failed; ENOMEM.
 */
extern int layer_read (const struct layer *layer, void *buf, size_t count,
                       struct guest_off offset);

/* Have the host read ahead what lies below this range.  Errors are not
 * reported: the read itself will meet them.
 */
extern void layer_prefetch (const struct layer *layer, uint64_t count,
                            struct guest_off offset);

#endif /* CORE_DISK_READ_H */
