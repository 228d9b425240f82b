/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/bitmap-header.c: headers of all shapes, as QEMU and others write
 * them, get a bitmaps extension, another one, and none.  Only the first sector
 * changes, and nothing is lost of what the header says but names of features.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "qcow2/bitmap-header.h"
#include "random.h"

#define MAX_CLUSTER ((size_t) 1 << 16)
#define SECTOR BITMAP_HEADER_SECTOR

static uint8_t image[MAX_CLUSTER], was[MAX_CLUSTER];
static size_t len;
static unsigned put, refused;

/* ------------------------------------------------------------------- making
 */

static size_t at;

static uint8_t *
extension (uint32_t type, uint32_t length)
{
  uint8_t *p = image + at;

  put_be32 (p, type);
  put_be32 (p + 4, length);
  at += 8 + (length + 7) / 8 * 8;
  return p + 8;
}

static void
begin (unsigned cluster_bits, uint32_t header_length)
{
  len = (size_t) 1 << cluster_bits;
  memset (image, 0, sizeof image);
  put_be32 (image, QCOW2_MAGIC);
  put_be32 (image + 4, 3);
  put_be32 (image + 20, cluster_bits);
  put_be64 (image + 24, 20480);
  put_be32 (image + 36, 1);
  put_be64 (image + 40, 3 * len);
  put_be64 (image + 48, len);
  put_be32 (image + 56, 1);
  put_be32 (image + 96, 4);
  put_be32 (image + 100, header_length);
  at = header_length;
}

static void
names (unsigned nr)
{
  uint8_t *p = extension (QCOW2_EXT_FEATURE_NAMES, nr * 48);
  unsigned i;

  for (i = 0; i < nr; ++i) {
    p[48 * i] = i % 3;
    p[48 * i + 1] = i;
    sprintf ((char *) p + 48 * i + 2, "feature %u", i);
  }
}

static void
bitmaps (bool valid)
{
  uint8_t *p = extension (QCOW2_EXT_BITMAPS, QCOW2_EXT_BITMAPS_BYTES);

  put_be32 (p, 7);
  put_be64 (p + 8, 1000);
  put_be64 (p + 16, 2 * len);
  if (valid)
    image[95] |= QCOW2_AUTOCLEAR_BITMAPS;
}

static void
end (const char *backing)
{
  extension (QCOW2_EXT_END, 0);
  if (backing == NULL)
    return;
  memcpy (image + at, backing, strlen (backing));
  put_be64 (image + 8, at);
  put_be32 (image + 16, strlen (backing));
}

static int
decode (const uint8_t *buf, struct header *h)
{
  return header_decode ("img", buf, len, 4 * len, h);
}

/* ----------------------------------------------------------------- comparing
 */

/* All extensions but those of bitmaps and names, one after the other. */
static size_t
others (const uint8_t *buf, uint8_t *out)
{
  const uint64_t backing = get_be64 (buf + 8);
  const size_t stop = backing != 0 ? backing : len;
  size_t from = get_be32 (buf + 100), n = 0;

  while (stop - from >= 8 && get_be32 (buf + from) != QCOW2_EXT_END) {
    const uint32_t type = get_be32 (buf + from);
    const size_t bytes = 8 + (get_be32 (buf + from + 4) + 7) / 8 * 8;

    if (type != QCOW2_EXT_BITMAPS && type != QCOW2_EXT_FEATURE_NAMES) {
      memcpy (out + n, buf + from, bytes);
      n += bytes;
    }
    from += bytes;
  }
  return n;
}

static void
check_same (const struct header *a, const struct header *b)
{
  static uint8_t x[MAX_CLUSTER], y[MAX_CLUSTER];
  const size_t n = others (image, x);

  CHECK_EQ (n, others (was, y));
  CHECK (memcmp (x, y, n) == 0);
  CHECK_STR (a->backing_name, b->backing_name);
  CHECK_STR (a->backing_format, b->backing_format);
  CHECK_EQ (a->incompatible, b->incompatible);
  CHECK_EQ (a->compatible, b->compatible);
  CHECK_EQ (a->autoclear & ~QCOW2_AUTOCLEAR_BITMAPS,
            b->autoclear & ~QCOW2_AUTOCLEAR_BITMAPS);
  CHECK_EQ (a->disk_size, b->disk_size);
  CHECK_EQ (a->hint.v != 0, b->hint.v != 0);
}

/* What is beyond the sector is as before, but for a name that was moved to
 * where nothing was; and that may be there before the sector is changed.
 */
static void
check_rest (const struct bitmap_header_name *moved, const struct header *before)
{
  static uint8_t half[MAX_CLUSTER];
  struct header h;
  size_t i;

  for (i = SECTOR; i < len; ++i) {
    const bool in_name = i >= moved->at.v && i - moved->at.v < moved->bytes;

    if (image[i] != was[i] && !(in_name && was[i] == 0))
      check_failed (__FILE__, __LINE__, "byte %zu has changed", i);
  }
  memcpy (half, image, len);
  memcpy (half, was, SECTOR);
  CHECK_OK (decode (half, &h));
  CHECK_STR (h.backing_name, before->backing_name);
  CHECK_EQ (h.nr_bitmaps, before->nr_bitmaps);
}

/* Put this number of bitmaps into the image.  Returns whether that was
 * possible.
 */
static bool
change (uint32_t nr)
{
  const struct bitmap_header b = { nr, { nr != 0 ? 5 * len : 0 }, 32 * nr };
  struct bitmap_header_name moved;
  struct header before, after;
  struct host_off hint;

  memcpy (was, image, len);
  CHECK_OK (decode (was, &before));
  if (bitmap_header_put ("img", &before, image, len, &b, &moved,
                         &hint) == -1) {
    CHECK_EQ (error_errno (), ENOTSUP);
    memcpy (image, was, len);
    refused++;
    return false;
  }
  CHECK_OK (decode (image, &after));
  check_same (&after, &before);
  check_rest (&moved, &before);
  CHECK_EQ (after.hint.v, hint.v);
  CHECK_EQ (after.nr_bitmaps, nr);
  CHECK_EQ (after.bitmap_directory.v, b.directory.v);
  CHECK_EQ (after.bitmap_directory_size, b.directory_bytes);
  CHECK_EQ (after.autoclear & QCOW2_AUTOCLEAR_BITMAPS, nr > 0);
  CHECK (after.bitmaps_field < SECTOR);
  put++;
  return true;
}

/* --------------------------------------------------------------- QEMU's own
 */

/* Its order, with the name of a backing file of so many bytes; names are left
 * out where clusters are small.
 */
static void
make_qemu (unsigned cluster_bits, bool has_bitmaps, bool writer, size_t backing)
{
  char name[1024];

  memset (name, 'n', sizeof name);
  name[backing] = '\0';
  begin (cluster_bits, 112);
  if (backing > 0)
    memcpy (extension (QCOW2_EXT_BACKING_FORMAT, 5), "qcow2", 5);
  if (cluster_bits > 12)
    names (8);
  if (has_bitmaps)
    bitmaps (true);
  if (writer)
    *extension (QCOW2_EXT_WRITER, 1) = 1;
  end (backing > 0 ? name : NULL);
}

static void
test_qemu (void)
{
  static const unsigned bits[] = { 9, 10, 12, 13, 16 };
  static const size_t backing[] = { 0, 3, 16, 100, 200, 300, 900 };
  unsigned i, j, k;

  for (i = 0; i < sizeof bits / sizeof bits[0]; ++i)
    for (j = 0; j < sizeof backing / sizeof backing[0]; ++j)
      for (k = 0; k < 4; ++k) {
        const size_t fixed = bits[i] > 12 ? 392 : 0;
        const size_t needs = 112 + fixed + 32 + 8 + backing[j] +
          (backing[j] > 0 ? 16 : 0) + (k & 2 ? 16 : 0);

        if (needs > (size_t) 1 << bits[i])
          continue;
        make_qemu (bits[i], k & 1, k & 2, backing[j]);
        /* A name that begins in the sector, and wants another place. */
        if (bits[i] == 10 && backing[j] >= 300)
          continue;
        if (!change (3))
          check_failed (__FILE__, __LINE__, "clusters of 2^%u, %zu bytes, %u: "
                        "%s", bits[i], backing[j], k, error_message ());
        CHECK (change (1));
        CHECK (change (0));
        CHECK (change (2));
      }
}

/* The next header would have no room. */
static void
test_qemu_no_room (void)
{
  make_qemu (9, false, false, 345); /* one byte too many */
  CHECK (!change (1));
  make_qemu (9, false, false, 344);
  CHECK (change (1));
}

/* -------------------------------------------------------------------- others
 */

static void
make_other (uint64_t *state)
{
  const unsigned cluster_bits = 9 + random_below (state, 8);
  unsigned nr = random_below (state, 6);
  char name[128];
  bool has_bitmaps = false;

  begin (cluster_bits, 104 + 8 * random_below (state, 3));
  for (; nr > 0; --nr) {
    const unsigned kind = random_below (state, 5);
    const uint32_t length = random_below (state, 4) > 0
      ? random_below (state, 40) : random_below (state, 360);
    const unsigned features = random_below (state, 12);

    if (at + 8 + 48 * 12 + 200 > len)
      break;
    if (kind == 0)
      names (features);
    else if (kind == 1 && !has_bitmaps) {
      bitmaps (random_below (state, 2));
      has_bitmaps = true;
    }
    else if (kind == 2)
      random_fill (state, extension (0x12340000 + nr, length), length);
    else if (kind == 3 && nr == 1)
      *extension (QCOW2_EXT_WRITER, 1) = random_below (state, 2);
  }
  nr = random_below (state, 100);
  memset (name, 'x', nr);
  name[nr] = '\0';
  end (at + 8 + nr <= len && random_below (state, 2) ? name : NULL);
}

static void
test_others (void)
{
  uint64_t state = 1;
  unsigned i;

  for (i = 0; i < 20000 && !check_any_failed (); ++i) {
    make_other (&state);
    if (!change (1 + random_below (&state, 9)))
      continue;
    CHECK (change (1));
    if (change (0))
      CHECK (change (5));
  }
}

int
main (void)
{
  test_qemu ();
  test_qemu_no_room ();
  test_others ();
  printf ("%u changes, %u refused\n", put, refused);
  CHECK (put > 20000 && refused > 0);
  return check_result ();
}
