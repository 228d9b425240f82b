/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/advice.h"
#include "base/error.h"
#include "qcow2/foreign.h"

/* The first match counts: ISO images may have a boot sector, as disks do, and a
 * disk with a GPT has an MBR.
 */
static const struct {
  enum foreign kind;
  const char *name;
  size_t offset;
  const char *bytes;
  size_t length;
} formats[] = {
#define BYTES(s) s, sizeof s - 1
  { FOREIGN_IMAGE, "a VMDK image", 0, BYTES ("KDMV") },
  { FOREIGN_IMAGE, "a VMDK image", 0, BYTES ("COWD") },
  { FOREIGN_IMAGE, "the description of a VMDK image", 0,
    BYTES ("# Disk DescriptorFile") },
  { FOREIGN_IMAGE, "a VDI image", 64, BYTES ("\x7f\x10\xda\xbe") },
  { FOREIGN_IMAGE, "a VHD image", 0, BYTES ("conectix") },
  { FOREIGN_IMAGE, "a VHDX image", 0, BYTES ("vhdxfile") },
  { FOREIGN_IMAGE, "a qcow image of version 1", 0,
    BYTES ("QFI\xfb\x00\x00\x00\x01") },
  { FOREIGN_IMAGE, "a QED image", 0, BYTES ("QED\x00") },
  { FOREIGN_IMAGE, "a Parallels image", 0, BYTES ("WithoutFreeSpace") },
  { FOREIGN_IMAGE, "a Parallels image", 0, BYTES ("WithouFreSpacExt") },
  { FOREIGN_RAW, "a raw disk encrypted with LUKS", 0, BYTES ("LUKS\xba\xbe") },
  { FOREIGN_COMPRESSED, "a gzip file", 0, BYTES ("\x1f\x8b\x08") },
  { FOREIGN_COMPRESSED, "an xz file", 0, BYTES ("\xfd" "7zXZ\x00") },
  { FOREIGN_COMPRESSED, "a zstd file", 0, BYTES ("\x28\xb5\x2f\xfd") },
  { FOREIGN_COMPRESSED, "a bzip2 file", 0, BYTES ("BZh") },
  { FOREIGN_ARCHIVE, "a zip archive", 0, BYTES ("PK\x03\x04") },
  { FOREIGN_ARCHIVE, "a tar archive", 257, BYTES ("ustar") },
  { FOREIGN_RAW, "an ISO 9660 image", 32769, BYTES ("CD001") },
  { FOREIGN_RAW, "a raw disk with a GPT", 512, BYTES ("EFI PART") },
  { FOREIGN_RAW, "a raw disk with a GPT", 4096, BYTES ("EFI PART") },
  { FOREIGN_RAW, "a raw disk with an MBR", 510, BYTES ("\x55\xaa") },
  { FOREIGN_RAW, "a raw disk with LVM", 512, BYTES ("LABELONE") },
  { FOREIGN_RAW, "a raw disk with an XFS file system", 0, BYTES ("XFSB") },
  { FOREIGN_RAW, "a raw disk with an ext2, ext3 or ext4 file system", 1080,
    BYTES ("\x53\xef") },
#undef BYTES
};

/* The sector that has an image's header, which is written last. */
#define HEADER_SECTOR 512

enum foreign
foreign_recognize (const uint8_t *buf, size_t len, const char **name)
{
  size_t i;

  for (i = 0; i < sizeof formats / sizeof formats[0]; ++i) {
    if (formats[i].offset + formats[i].length <= len &&
        memcmp (buf + formats[i].offset, formats[i].bytes,
                formats[i].length) == 0) {
      *name = formats[i].name;
      return formats[i].kind;
    }
  }
  if (len >= HEADER_SECTOR && buf[0] == 0 &&
      memcmp (buf, buf + 1, HEADER_SECTOR - 1) == 0) {
    *name = "a file that begins with zeros (an empty raw disk, or an image "
      "whose creation was interrupted)";
    return FOREIGN_RAW;
  }
  *name = NULL;
  return FOREIGN_UNKNOWN;
}

static void
explain (const struct storage *s, enum foreign kind, const char *name)
{
  if (kind == FOREIGN_UNKNOWN)
    return;
  error_set (EINVAL, "%s: not a qcow2 image, but %s", s->name, name);
  switch (kind) {
  case FOREIGN_IMAGE:
    error_append (": convert it with qemu-img convert -O qcow2");
    break;
  case FOREIGN_COMPRESSED:
    error_append (": decompress it first");
    break;
  case FOREIGN_ARCHIVE:
    error_append (": unpack it first");
    break;
  case FOREIGN_RAW:
    advise (ADVICE_RAW);
    break;
  case FOREIGN_UNKNOWN:
    break;
  }
}

void
foreign_explain (struct storage *s)
{
  const uint64_t size = s->size;
  const size_t len = size < FOREIGN_BYTES ? size : FOREIGN_BYTES;
  uint8_t *buf = malloc (FOREIGN_BYTES);
  const char *name;
  enum foreign kind;

  /* Not storage_read, since the present error must stay set if this fails. */
  if (buf != NULL && s->ops->pread (s, buf, len, 0) == (ssize_t) len) {
    kind = foreign_recognize (buf, len, &name);
    explain (s, kind, name);
  }
  free (buf);
}
