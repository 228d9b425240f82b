/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "check.h"
#include "disk/extents.h"
#include "point-bits.h"

static inline unsigned
shift_of (unsigned bitmap)
{
  return follow_kinds[bitmap].granularity_bits;
}

void
bits_touch (struct bits *b, uint64_t offset, uint64_t count)
{
  unsigned i;

  for (i = FINE; i <= COARSE; ++i) {
    const uint64_t first = offset >> shift_of (i);

    memset (b->of[i] + first, 1,
            ((offset + count - 1) >> shift_of (i)) + 1 - first);
  }
}

void
bits_at_first (struct bits *b)
{
  memset (b, 0, sizeof *b);
  follow_read_bits (FINE, b->of[FINE]);
  follow_read_bits (COARSE, b->of[COARSE]);
}

struct painting {
  uint8_t *bits;
  unsigned shift;
  uint64_t next;
};

static int
paint (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct painting *p = opaque;
  const uint64_t first = offset >> p->shift;

  CHECK_EQ (offset, p->next);
  memset (p->bits + first, flags != EXTENT_HOLE,
          ((offset + length - 1) >> p->shift) + 1 - first); /* or a part of one */
  p->next = offset + length;
  return 0;
}

int
bits_read (const struct layer *l, unsigned bitmap, uint8_t *bits)
{
  struct painting p = { .bits = bits, .shift = shift_of (bitmap) };

  while (p.next < DISK_BYTES) {
    const struct guest_off at = { p.next };

    if (layer_extents (l, DISK_BYTES - p.next, at, 0, paint, &p) == -1)
      return -1;
  }
  return 0;
}

void
bits_check (const struct layer *l, unsigned bitmap, const struct bits *want,
            bool exactly, const char *name)
{
  static uint8_t is[SECTORS];
  uint64_t i;

  if (bits_read (l, bitmap, is) == -1) {
    check_failed (__FILE__, __LINE__, "%s: %s", name, error_message ());
    return;
  }
  for (i = 0; i < DISK_BYTES >> shift_of (bitmap); ++i) {
    if (is[i] == want->of[bitmap][i] || (is[i] && !exactly))
      continue;
    check_failed (__FILE__, __LINE__, "%s: bit %u is %d", name, (unsigned) i,
                  is[i]);
    return;
  }
}

void
bits_check_point (const char *token, const struct bits *want, bool exactly)
{
  unsigned i;

  for (i = FINE; i <= COARSE; ++i) {
    struct layer *l;
    char name[80];

    snprintf (name, sizeof name, IMAGE_POINT_PREFIX "%s/" IMAGE_BITMAP_PREFIX
              "%c", token, 'a' + i);
    l = image_open_disk (rig.im, name);
    if (l == NULL)
      check_failed (__FILE__, __LINE__, "%s: %s", name, error_message ());
    else
      bits_check (l, i, want, exactly, name);
    image_close_disk (l);
  }
}
