/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "bitmap-list.h"
#include "error.h"

/* Spec: Bitmap directory: fields of an entry. */
#define ENTRY_BYTES 24
#define FIELD_FLAGS 12
#define FIELD_GRANULARITY 17
#define FIELD_NAME_SIZE 18
#define FIELD_EXTRA_SIZE 20
#define FLAG_IN_USE UINT32_C (1)
#define FLAG_AUTO UINT32_C (2)

/* Read the entry at *at, and step over it. */
static int
read_entry (struct storage *s, uint64_t *at, uint64_t end,
            struct bitmap_info *b)
{
  const struct host_off place = { *at };
  uint64_t extra, size, name_size;
  uint8_t entry[ENTRY_BYTES];

  if (end - *at < sizeof entry)
    goto malformed;
  if (storage_read (s, entry, sizeof entry, place) == -1)
    return -1;
  extra = get_be32 (entry + FIELD_EXTRA_SIZE);
  name_size = get_be16 (entry + FIELD_NAME_SIZE);
  size = (sizeof entry + extra + name_size + 7) & ~UINT64_C (7);
  if (size > end - *at || name_size >= sizeof b->name ||
      entry[FIELD_GRANULARITY] > 63)
    goto malformed;
  if (storage_read (s, b->name, name_size,
                    (struct host_off) { *at + sizeof entry + extra }) == -1)
    return -1;
  b->name[name_size] = '\0';
  b->granularity = UINT64_C (1) << entry[FIELD_GRANULARITY];
  b->in_use = get_be32 (entry + FIELD_FLAGS) & FLAG_IN_USE;
  b->automatic = get_be32 (entry + FIELD_FLAGS) & FLAG_AUTO;
  *at += size;
  return 0;

 malformed:
  error_set (EINVAL, "%s: bitmap directory entry at offset 0x%" PRIx64 " is "
             "malformed", s->name, *at);
  return -1;
}

int
bitmap_list (struct storage *s, const struct header *h, bitmap_list_fn *fn,
             void *opaque)
{
  uint64_t at = h->bitmap_directory.v, end;
  struct bitmap_info b;
  uint32_t i;

  if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS) || h->nr_bitmaps == 0)
    return 0;
  if (header_check_table (s->name, h, s->size, "bitmap directory",
                          h->bitmaps_field, h->bitmap_directory,
                          h->bitmap_directory_size, 1,
                          QCOW2_MAX_BITMAP_DIRECTORY_BYTES) == -1)
    return -1;
  end = at + h->bitmap_directory_size;
  for (i = 0; i < h->nr_bitmaps; ++i) {
    if (read_entry (s, &at, end, &b) == -1 || fn (opaque, &b) == -1)
      return -1;
  }
  return 0;
}
