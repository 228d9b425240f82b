/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>

#include "content.h"

static const char *
class_name (unsigned class)
{
  switch (class) {
  case CONTENT_INITIAL:
    return "what the disk held at first";
  case CONTENT_SNAPSHOT:
    return "data of a snapshot";
  case CONTENT_BACKING:
    return "data of the backing file";
  case CONTENT_GARBAGE:
    return "garbage of a free host cluster";
  case CONTENT_WRITTEN:
    return "data of a request";
  }
  return NULL;
}

const char *
content_name (const void *sector, char *buf, size_t size)
{
  uint64_t w[SECTOR_WORDS];
  uint8_t whole[SECTOR];
  const char *class;

  memcpy (w, sector, sizeof w);
  if (content_is_zero (sector, SECTOR)) {
    snprintf (buf, size, "zeros");
    return buf;
  }
  class = class_name (w[1] >> 56);
  if (w[0] != CONTENT_MAGIC || class == NULL) {
    snprintf (buf, size, "no content of a disk (%016" PRIx64 " %016" PRIx64
              " ...)", w[0], w[1]);
    return buf;
  }
  content_fill (whole, w[1]);
  snprintf (buf, size, "%s: number %" PRIu64 ", sector %" PRIu64 "%s", class,
            w[1] >> 32 & 0xffffff, w[1] & 0xffffffff,
            memcmp (whole, sector, SECTOR) == 0 ? "" : ", in part");
  return buf;
}
