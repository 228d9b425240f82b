/* SPDX-License-Identifier: BSD-3-Clause */

/* Images that were made: which there are, and what becomes of their bitmaps. */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "content.h"
#include "maker.h"
#include "must-have.h"
#include "random.h"

void
made_free (struct made *m)
{
  unsigned i;

  free (m->bytes);
  free (m->content);
  free (m->state);
  free (m->backing);
  for (i = 0; i < m->nr_snapshots; ++i)
    free (m->snapshot_content[i]);
  memset (m, 0, sizeof *m);
}

#define DEVICE_UNIT 4096

static uint64_t
round_up (uint64_t n, uint64_t unit)
{
  return (n + unit - 1) / unit * unit;
}

void
made_on_device (struct made *m, uint64_t more, uint64_t seed)
{
  const uint64_t end = round_up (m->size, m->cluster_size);
  const uint64_t size = round_up (end + more, DEVICE_UNIT);

  m->bytes = must_have (realloc (m->bytes, size));
  memset (m->bytes + m->size, 0, end - m->size); /* as the file read there */
  random_fill (&seed, m->bytes + end, size - end);
  m->size = size;
}

unsigned
made_bitmaps_in_use (const struct made *m, const uint8_t *bytes)
{
  unsigned i, nr = 0;

  for (i = 0; i < MADE_BITMAPS; ++i)
    nr += get_be32 (bytes + m->bitmaps_at + i * MADE_BITMAP_BYTES +
                    QCOW2_BITMAP_FIELD_FLAGS) & QCOW2_BITMAP_IN_USE;
  return nr;
}

/* Whether a bitmap says that a sector is dirty. */
static bool
is_dirty (const struct made *m, const uint8_t *bytes, const uint8_t *entry,
          uint64_t sector)
{
  const uint64_t per_part = m->cluster_size * 8;
  const uint64_t table = get_be64 (entry + QCOW2_BITMAP_FIELD_TABLE);
  const uint64_t part = get_be64 (bytes + table + sector / per_part * 8);
  const uint64_t bit = sector % per_part;

  return part == 1 ||
    (part != 0 && (bytes[part + bit / 8] >> bit % 8 & 1));
}

bool
made_bitmaps_are_kept (const struct made *m, const uint8_t *bytes,
                       const uint8_t *content, char *why, size_t len)
{
  const uint8_t *directory = bytes + m->bitmaps_at;
  unsigned i;
  uint64_t s;

  if (!m->bitmaps || m->give_up)
    return true;
  if (!(get_be64 (bytes + 88) & QCOW2_AUTOCLEAR_BITMAPS) ||
      made_bitmaps_in_use (m, bytes) > 0) {
    snprintf (why, len, "a bitmap is not valid any more");
    return false;
  }
  for (s = 0; s < m->disk_size / SECTOR; ++s) {
    if (memcmp (content + s * SECTOR, m->content + s * SECTOR, SECTOR) == 0)
      continue;
    for (i = 0; i < MADE_BITMAPS; ++i) {
      if (is_dirty (m, bytes, directory + i * MADE_BITMAP_BYTES, s))
        continue;
      snprintf (why, len, "sector %" PRIu64 " has changed, and is clean in "
                "bitmap %u", s, i);
      return false;
    }
  }
  return true;
}

/* Each dimension with each other at least once, the small ones first. */
const char *const made_names[] = {
  "v3-c512",
  "v2-c512",
  "v3-c512-r1-holes",
  "v3-c512-r64-full",
  "v3-c512-snap-comp",
  "v2-c512-snap-comp-holes",
  "v3-c512-r8-snap-comp-back",
  "v2-c512-snapall-back",
  "v3-c512-comp-zstd-shortback-tail",
  "v3-c512-snapall-snap2-holes",
  "v3-c512-qback-snap",
  "v3-c512-lazy-snap",
  "v3-c1k-r4-comp-holes-tail-autoclear",
  "v3-c4k-snap-comp-holes-back",
  "v2-c4k-comp-tail",
  "v3-c4k-r32-snap2-bitmap",
  "v3-c512-bitmap-holes-comp-snap-back",
  "v3-c1k-bitmap-many-known",
  "v3-c4k-bitmap-zip-lazy-autoclear",
  "v3-c16k-bitmap-ext-holes-tail",
  "v3-c512-giveup-snap-holes",
  "v3-c16k-ext",
  "v3-c16k-ext-comp-back",
  "v3-c16k-ext-snap-comp-holes-tail",
  "v3-c16k-ext-snapall-shortback-r2",
  "v3-c64k-snap-comp",
  "v3-c64k-back-holes",
  "v3-c512-many-snap",
  "v3-c512-r64-table",
  "v3-c512-r64-full-lazy-snap-comp",
  "v3-c512-holes-keep-comp-snap",
  "v3-c4k-holes-keep",
  "v2-c512-holes-nozero",
  "v3-c16k-ext-holes-nozero-back",
  "v3-c512-tight",
  "v3-c512-tight-snap-comp-holes",
  "v2-c1k-tight-back-keep",
  "v3-c16k-ext-tight-comp",
  "v3-c512-zip",
  "v3-c512-zip-tight",
  "v3-c4k-zip",
  "v3-c4k-zip-snap-comp-holes-back",
  "v2-c512-zip-comp-snap-tail",
  "v3-c1k-zip-zstd-r2-full-keep",
  "v3-c512-zip-r1-holes",
  "v3-c16k-zip-ext-comp-snap-shortback",
  "v2-c1k-comp-snap-shortback",
  "v2-c512-full-snap",
  "v3-c512-full-comp-back",
  "v3-c2k-r2-snapall-holes-tail",
  "v2-c512-many-snapall",
  "v3-c512-many-lazy-holes",
  "v3-c16k-ext-lazy-snap-comp-holes",
  "v3-c64k-ext-snap-comp-back",
  "v3-c512-known-holes",
  "v2-c512-known-snap-comp",
  "v3-c4k-known-zip-snap-holes-back",
  "v3-c16k-known-ext-snapall-holes",
#ifdef HAVE_GNUTLS
  "v3-c512-aes-holes-snap-comp-back",
  "v2-c1k-aes-known-holes-tail",
  "v3-c16k-aes-ext-snap-holes-back",
  "v3-c512-aes-comp-tight",
#endif
  NULL
};
