/* SPDX-License-Identifier: BSD-3-Clause */

/* The header extension of persistent bitmaps, put into or taken out of an
 * image's header by a change of its first sector alone, so that one write does
 * it.  Pure: no storage, no locks.  Spec: Header extensions, Bitmaps
 * extension.
 *
 * What is beyond that sector stays, and stays where it is; what is in it moves
 * if it must.  Room comes from the feature name table, which nobody needs to
 * read an image: QEMU puts it before the extension, across the sector's end;
 * here it comes after, shorter by as much.
 */

#ifndef CORE_QCOW2_BITMAP_HEADER_H
#define CORE_QCOW2_BITMAP_HEADER_H

#include <stddef.h>
#include <stdint.h>

#include "qcow2/header.h"

#define BITMAP_HEADER_SECTOR 512

/* What the extension says; nr 0: there is none, and no autoclear bit. */
struct bitmap_header {
  uint32_t nr;
  struct host_off directory;
  uint64_t directory_bytes;
};

/* The backing file's name may have to make room.  Then it has to be written,
 * and be durable, before the sector is.
 */
struct bitmap_header_name {
  struct host_off at; /* 0: it stays, or is in the sector */
  size_t bytes;
};

/* Change the first sector of a version 3 header, which h was decoded from.
 * buf: the header's cluster, len bytes.  *hint is where the byte of
 * QCOW2_EXT_WRITER is then (0: nowhere).  Returns -1 with the error set to
 * ENOTSUP if there is no room, or QEMU would have none, and buf undefined;
 * name is for the message.
 */
extern int bitmap_header_put (const char *name, const struct header *h,
                              uint8_t *buf, size_t len,
                              const struct bitmap_header *b,
                              struct bitmap_header_name *moved,
                              struct host_off *hint);

#endif /* CORE_QCOW2_BITMAP_HEADER_H */
