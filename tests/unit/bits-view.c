/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "bits-view.h"
#include "qcow2/format.h"

#define HEADER_LENGTH_AT 100
#define AUTOCLEAR_AT 88
#define BACKING_AT 8

static uint64_t
word (const struct bits_view *v, uint64_t at)
{
  uint8_t buf[8] = { 0 };

  if (at < v->size)
    memcpy (buf, v->data + at, v->size - at < 8 ? v->size - at : 8);
  return get_be64 (buf);
}

static inline uint32_t
half (const struct bits_view *v, uint64_t at)
{
  return word (v, at) >> 32;
}

/* Where the extension's data is; 0: there is none that can be believed. */
static uint64_t
find_extension (const struct bits_view *v)
{
  const uint64_t name = word (v, BACKING_AT);
  const uint64_t end = name != 0 ? name : UINT64_C (1) << v->cluster_bits;
  uint64_t at = half (v, HEADER_LENGTH_AT);

  if (half (v, 4) < 3 || !(word (v, AUTOCLEAR_AT) & QCOW2_AUTOCLEAR_BITMAPS))
    return 0;
  for (; at + 8 <= end && half (v, at) != QCOW2_EXT_END;
       at += 8 + (half (v, at + 4) + UINT64_C (7)) / 8 * 8)
    if (half (v, at) == QCOW2_EXT_BITMAPS)
      return at + 8;
  return 0;
}

static uint64_t
open_view (struct bits_view *v, const uint8_t *data, uint64_t size)
{
  *v = (struct bits_view) { .data = data, .size = size };
  v->cluster_bits = half (v, 20);
  return find_extension (v);
}

unsigned
bits_view_count (const uint8_t *data, uint64_t size)
{
  struct bits_view v;
  const uint64_t extension = open_view (&v, data, size);

  return extension == 0 ? 0 : half (&v, extension);
}

bool
bits_view_find (struct bits_view *v, const uint8_t *data, uint64_t size,
                const char *name)
{
  const uint64_t extension = open_view (v, data, size);
  const size_t length = strlen (name);
  uint64_t at;
  uint32_t nr;

  if (extension == 0)
    return false;
  at = word (v, extension + 16);
  for (nr = half (v, extension); nr > 0; --nr) {
    const uint64_t is_length = word (v, at + 16) >> 32 & 0xffff;
    const uint64_t extra = half (v, at + 20), text = at + 24 + extra;

    if (is_length == length && text + length <= size &&
        memcmp (data + text, name, length) == 0) {
      v->table = word (v, at);
      v->nr_parts = half (v, at + 8);
      v->flags = half (v, at + 12);
      v->granularity_bits = word (v, at + 16) >> 48 & 0xff;
      return true;
    }
    at += (24 + extra + is_length + 7) / 8 * 8;
  }
  return false;
}

bool
bits_view_is_enabled (const struct bits_view *v)
{
  return v->flags == QCOW2_BITMAP_AUTO;
}

bool
bits_view_is_disabled (const struct bits_view *v)
{
  return v->flags == 0;
}

bool
bits_view_has (const struct bits_view *v, uint64_t offset)
{
  const uint64_t per_part = UINT64_C (8) << v->cluster_bits;
  const uint64_t bit = offset >> v->granularity_bits, n = bit % per_part;
  uint64_t entry;

  if (bit / per_part >= v->nr_parts)
    return false;
  entry = word (v, v->table + bit / per_part * 8);
  return entry == QCOW2_BITMAP_ALL_ONES ||
    (entry != 0 && entry + n / 8 < v->size &&
     (v->data[entry + n / 8] >> n % 8 & 1));
}
