/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "image-check.h"
#include "image.h"
#include "new-image.h"

#define SECTOR NEW_IMAGE_SECTOR
#define PIECE 65536

void
new_image_init (struct new_image *n, const struct create_options *o,
                const void *bytes, uint64_t size)
{
  memset (&n->control, 0, sizeof n->control);
  memory_disk_init (&n->disk, bytes, size);
  snprintf (n->what, sizeof n->what, "v%u cluster %" PRIu64 " refcounts %u%s%s "
            "compression %d preallocation %d size %" PRIu64, o->version,
            o->cluster_size, o->refcount_bits,
            o->extended_l2 ? " extended" : "",
            o->lazy_refcounts ? " lazy" : "", o->compression,
            o->preallocation, o->size);
}

void
new_image_free (struct new_image *n)
{
  memory_disk_free (&n->disk);
}

int
new_image_create (struct new_image *n, const struct create_options *o)
{
  struct storage *s = memory_disk_open (&n->disk, "test", &n->control);
  const int r = create_image (s, o);

  storage_close (s);
  return r;
}

static struct image *
open_it (struct new_image *n)
{
  return image_open_storage (memory_disk_open (&n->disk, n->what, &n->control),
                             CACHE_MIN_BYTES);
}

bool
new_image_opens (struct new_image *n)
{
  struct image *im = open_it (n);
  const bool r = im != NULL;

  (void) image_close (im);
  return r;
}

/* -------------------------------------------------------------- its header */

static void
check_header (const uint8_t *h, const struct create_options *o)
{
  const bool zstd = o->compression == COMPRESSION_ZSTD;
  const uint64_t incompatible = (zstd ? QCOW2_INCOMPAT_COMPRESSION : 0) |
    (o->extended_l2 ? QCOW2_INCOMPAT_EXTENDED_L2 : 0);

  CHECK_EQ (get_be32 (h), QCOW2_MAGIC);
  CHECK_EQ (get_be32 (h + 4), o->version);
  CHECK_EQ (UINT64_C (1) << get_be32 (h + 20), o->cluster_size);
  CHECK_EQ (get_be64 (h + 24), rounded (o->size));
  CHECK_EQ (get_be32 (h + 36), divide_up (rounded (o->size), reach (o)));
  if (o->version < 3)
    return;
  CHECK_EQ (get_be64 (h + 72), incompatible);
  CHECK_EQ (get_be64 (h + 80), o->lazy_refcounts);
  CHECK_EQ (get_be64 (h + 88), 0);
  CHECK_EQ (1U << get_be32 (h + 96), o->refcount_bits);
  CHECK_EQ (h[104], o->compression);
}

/* ---------------------------------------------------------------- its disk */

/* What the disk reads as: zeros, or a pattern that was written. */
static void
check_range (const struct layer *d, uint64_t offset, uint64_t count, int byte)
{
  static uint8_t buf[PIECE], should[PIECE];

  memset (buf, ~byte, count);
  memset (should, byte, count);
  CHECK_OK (layer_read (d, buf, count, (struct guest_off) { offset }));
  if (memcmp (buf, should, count) != 0)
    check_failed (__FILE__, __LINE__, "%s: 0x%" PRIx64 " is not all 0x%02x",
                  d->tables->name, offset, byte);
}

static void
check_zeros (const struct layer *d, uint64_t offset, uint64_t end)
{
  while (offset < end) {
    const uint64_t n = end - offset < PIECE ? end - offset : PIECE;

    check_range (d, offset, n, 0);
    offset += n;
  }
}

/* Up to 64 KiB around places where tables and clusters begin and end. */
static unsigned
choose_places (const struct create_options *o, uint64_t *place)
{
  const uint64_t size = rounded (o->size), r = reach (o);
  const uint64_t all[] = { 0, o->cluster_size, size / 2, r - SECTOR, r,
                           size - SECTOR };
  unsigned nr = 0, i;

  for (i = 0; i < sizeof all / sizeof all[0]; ++i) {
    if (all[i] < size && (nr == 0 || all[i] > place[nr - 1]))
      place[nr++] = all[i];
  }
  return nr;
}

static void
write_and_read (struct image *im, const struct layer *d,
                const struct create_options *o)
{
  const uint64_t size = rounded (o->size);
  uint8_t buf[3 * SECTOR];
  uint64_t place[8], end;
  unsigned nr = choose_places (o, place), i;

  check_zeros (d, 0, size < 2 * PIECE ? size : 2 * PIECE);
  check_zeros (d, size < 2 * PIECE ? 0 : size - 2 * PIECE, size);
  for (i = 0; i < nr; ++i) {
    end = i + 1 < nr ? place[i + 1] : size;
    if (end > place[i] + sizeof buf)
      end = place[i] + sizeof buf;
    memset (buf, i + 1, sizeof buf);
    CHECK_OK (image_write (im, buf, end - place[i],
                           (struct guest_off) { place[i] }, 0));
  }
  CHECK_OK (image_flush (im));
  for (i = 0; i < nr; ++i) {
    end = i + 1 < nr ? place[i + 1] : size;
    if (end > place[i] + sizeof buf) {
      check_zeros (d, place[i] + sizeof buf,
                   end < place[i] + PIECE ? end : place[i] + PIECE);
      end = place[i] + sizeof buf;
    }
    check_range (d, place[i], end - place[i], i + 1);
  }
}

static void
check_disk (struct new_image *n, const struct create_options *o)
{
  const struct writer_options options = { 0 };
  struct image *im = open_it (n);
  struct layer *d;

  if (im == NULL) {
    check_failed (__FILE__, __LINE__, "%s", error_message ());
    return;
  }
  CHECK_OK (image_make_writable (im, &options));
  d = image_open_disk (im, "");
  CHECK (d != NULL);
  CHECK_EQ (d->size, rounded (o->size));
  write_and_read (im, d, o);
  image_close_disk (d);
  CHECK_OK (image_close (im));
}

void
new_image_check (struct new_image *n, const struct create_options *o)
{
  const uint64_t size = atomic_load (&n->disk.size);

  check_header (n->disk.data, o);
  image_check_clean (n->what, n->disk.data, size);
  check_disk (n, o);
  image_check_clean (n->what, n->disk.data, atomic_load (&n->disk.size));
  /* What has its place in the file takes no more when it is written. */
  if (o->preallocation != PREALLOCATION_OFF && !n->control.fixed)
    CHECK_EQ (atomic_load (&n->disk.size), size);
}
