/* SPDX-License-Identifier: BSD-3-Clause */

/* What a file is that is no qcow2 image, for the message: nothing is ever
 * opened by what is found here.
 */

#ifndef CORE_QCOW2_FOREIGN_H
#define CORE_QCOW2_FOREIGN_H

#include <stddef.h>
#include <stdint.h>

#include "storage/storage.h"

enum foreign {
  FOREIGN_UNKNOWN,
  FOREIGN_IMAGE,      /* a disk image that qemu-img converts */
  FOREIGN_RAW,        /* a disk as it is */
  FOREIGN_COMPRESSED, /* of anything */
  FOREIGN_ARCHIVE,
};

/* How much of the beginning of a file is looked at. */
#define FOREIGN_BYTES 34816

/* What buf is, the first len bytes of a file.  *name is a noun with its
 * article, or NULL if it is not known.
 */
extern enum foreign foreign_recognize (const uint8_t *buf, size_t len,
                                       const char **name);

/* header_want has refused the file in s: if it is of another format that is
 * known here, then the error says so instead (EINVAL), and what to do.
 */
extern void foreign_explain (struct storage *s);

#endif /* CORE_QCOW2_FOREIGN_H */
