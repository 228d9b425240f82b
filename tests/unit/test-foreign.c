/* SPDX-License-Identifier: BSD-3-Clause */

/* Beginnings of files of other formats, and of all lengths. */

#include <config.h>

#include <stdlib.h>

#include "check.h"
#include "qcow2/foreign.h"

#define SECTOR 512

static uint8_t buf[FOREIGN_BYTES];

static enum foreign
recognize (size_t offset, const char *bytes, size_t n, size_t len,
           const char **name)
{
  /* Of exactly this size, so that a sanitizer sees what is read beyond. */
  uint8_t *copy = malloc (len > 0 ? len : 1);
  enum foreign kind;

  memset (buf, 0, sizeof buf);
  memcpy (buf + offset, bytes, n);
  memcpy (copy, buf, len);
  kind = foreign_recognize (copy, len, name);
  free (copy);
  return kind;
}

static void
zeros_or_unknown (enum foreign kind, bool zeros, const char **name)
{
  CHECK_EQ (kind, zeros ? FOREIGN_RAW : FOREIGN_UNKNOWN);
  CHECK_EQ (*name != NULL, zeros);
  if (zeros)
    CHECK_HAS (*name, "begins with zeros");
}

static void
is (enum foreign kind, const char *part, size_t offset, const char *bytes,
    size_t n)
{
  const char *name;

  CHECK_EQ (recognize (offset, bytes, n, sizeof buf, &name), kind);
  CHECK_HAS (name, part);
  CHECK_EQ (recognize (offset, bytes, n, offset + n, &name), kind);
  zeros_or_unknown (recognize (offset, bytes, n, offset + n - 1, &name),
                    offset >= SECTOR, &name);
}

int
main (void)
{
  const char *name;
  size_t len;

  check_time_limit (100);
  is (FOREIGN_IMAGE, "VMDK", 0, "KDMV", 4);
  is (FOREIGN_IMAGE, "VDI", 64, "\x7f\x10\xda\xbe", 4);
  is (FOREIGN_IMAGE, "VHD image", 0, "conectix", 8);
  is (FOREIGN_IMAGE, "VHDX", 0, "vhdxfile", 8);
  is (FOREIGN_IMAGE, "qcow image of version 1", 0, "QFI\xfb\0\0\0\1", 8);
  is (FOREIGN_IMAGE, "QED", 0, "QED\0", 4);
  is (FOREIGN_COMPRESSED, "gzip", 0, "\x1f\x8b\x08", 3);
  is (FOREIGN_COMPRESSED, "xz", 0, "\xfd" "7zXZ\0", 6);
  is (FOREIGN_COMPRESSED, "zstd", 0, "\x28\xb5\x2f\xfd", 4);
  is (FOREIGN_RAW, "ISO", 32769, "CD001", 5);
  is (FOREIGN_RAW, "GPT", 512, "EFI PART", 8);
  is (FOREIGN_RAW, "MBR", 510, "\x55\xaa", 2);
  is (FOREIGN_RAW, "LUKS", 0, "LUKS\xba\xbe", 6);

  /* qcow2 is not foreign, nor is what is not known. */
  CHECK_EQ (recognize (0, "QFI\xfb\0\0\0\2", 8, sizeof buf, &name),
            FOREIGN_UNKNOWN);
  CHECK_EQ (recognize (0, "QFI\xfb\0\0\0\3", 8, sizeof buf, &name),
            FOREIGN_UNKNOWN);
  /* Nor are zeros, until there is a sector of them. */
  for (len = 0; len <= sizeof buf; len += len < 2000 ? 1 : 997)
    zeros_or_unknown (recognize (0, "", 0, len, &name), len >= SECTOR, &name);
  zeros_or_unknown (recognize (SECTOR - 1, "x", 1, sizeof buf, &name), false,
                    &name);
  zeros_or_unknown (recognize (SECTOR, "x", 1, sizeof buf, &name), true, &name);
  return check_result ();
}
