/* SPDX-License-Identifier: BSD-3-Clause */

/* Recognizes files that are not qcow2 images, for the message only: the result
 * never decides how a file is opened.
 */

#ifndef CORE_QCOW2_FOREIGN_H
#define CORE_QCOW2_FOREIGN_H

#include <stddef.h>
#include <stdint.h>

#include "storage/storage.h"

enum foreign {
  FOREIGN_UNKNOWN,
  FOREIGN_IMAGE,      /* a disk image that qemu-img converts */
  FOREIGN_RAW,        /* a raw disk */
  FOREIGN_COMPRESSED, /* whatever is in it */
  FOREIGN_ARCHIVE,
};

/* How many bytes from the start of a file are looked at. */
#define FOREIGN_BYTES 34816

/* Recognize a file by its first len bytes.  *name is a noun with its article,
 * or NULL if the format is unknown.
 */
extern enum foreign foreign_recognize (const uint8_t *buf, size_t len,
                                       const char **name);

/* To be called after header_want has refused the file in s.  If its format is
 * recognized, the error is replaced by one (EINVAL) that names the format and
 * says what to do.
 */
extern void foreign_explain (struct storage *s);

#endif /* CORE_QCOW2_FOREIGN_H */
