/* SPDX-License-Identifier: BSD-3-Clause */

/* A file has one use only in a backing chain: one that is another one's data
 * would change with that.
 */

#ifndef CORE_DISK_USES_H
#define CORE_DISK_USES_H

#include "disk/layer.h"

/* Check that a storage which is to be a file of this format, or an external
 * data file (NULL), has no other use in these layers, some of which may be NULL.
 * What is on a server may have several names: it is an image's data file only
 * if it does not begin as that image does.  Returns -1 with the error set:
 * EINVAL, EIO.
 */
extern int uses_check (struct layer *const *layers, unsigned nr,
                       struct storage *s, const struct format_ops *format);

#endif /* CORE_DISK_USES_H */
