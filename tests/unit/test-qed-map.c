/* SPDX-License-Identifier: BSD-3-Clause */

/* qed/header.c, qed/map.c: headers right and wrong, and random images, read as
 * an independent reader of the format reads them.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "image.h"
#include "memory-storage.h"
#include "qed-image.h"
#include "qed/qed.h"
#include "random.h"

static int
decode (const struct qed_image *q, struct qed_header *h)
{
  error_set (0, "none");
  return qed_header_decode ("image", q->bytes, q->size, h);
}

#define CHECK_REFUSED(at, nr, value, err, part)              \
  do {                                                          \
    const uint64_t old_ = qed_image_get (q.bytes, at, nr);   \
                                                                \
    qed_image_put (&q, at, nr, value);                       \
    CHECK (decode (&q, &h) == -1);                              \
    CHECK_ERROR (err, part);                                    \
    qed_image_put (&q, at, nr, old_);                        \
  } while (0)

static void
test_header (void)
{
  struct qed_image q;
  struct qed_header h;
  uint8_t again[QED_HEADER_BYTES];
  uint64_t i;

  qed_image_start (&q, 4096, 2, 3, 1 << 20, "base");
  CHECK_OK (decode (&q, &h));
  CHECK_EQ (h.cluster_bits, 12);
  CHECK_EQ (h.table_entries, 1024);
  CHECK_EQ (h.l1_shift, 22);
  CHECK_EQ (h.header_bytes, 3 * 4096);
  CHECK_EQ (h.disk_size, 1 << 20);
  CHECK_EQ (h.backing_size, 4);
  CHECK_OK (qed_header_set_backing ("image", &h, q.bytes + 64));
  CHECK_STR (h.backing_name, "base");
  qed_header_encode (&h, again);
  CHECK (memcmp (again, q.bytes, sizeof again) == 0);

  CHECK_REFUSED (0, 4, 0, EINVAL, "not a QED image");
  for (i = 3; i < 64; ++i)
    CHECK_REFUSED (16, 8, UINT64_C (1) << i, ENOTSUP, "feature bit");
  CHECK_REFUSED (16, 8, 8, ENOTSUP, "unknown QED feature bit 3 ");
  CHECK_REFUSED (4, 4, 0, EINVAL, "cluster size 0 at offset 4");
  CHECK_REFUSED (4, 4, 2048, EINVAL, "cluster size 2048");
  CHECK_REFUSED (4, 4, 12288, EINVAL, "cluster size 12288");
  CHECK_REFUSED (4, 4, 1 << 27, EINVAL, "cluster size 134217728");
  CHECK_REFUSED (8, 4, 0, EINVAL, "table size 0");
  CHECK_REFUSED (8, 4, 3, EINVAL, "table size 3");
  CHECK_REFUSED (8, 4, 32, EINVAL, "table size 32");
  CHECK_REFUSED (12, 4, 0, EINVAL, "header size 0");
  CHECK_REFUSED (12, 4, UINT32_MAX, EINVAL, "header size 4294967295");
  CHECK_REFUSED (48, 8, 1000, EINVAL, "disk size 1000");
  CHECK_REFUSED (48, 8, (UINT64_C (1) << 32) + 512, EINVAL, "at most");
  CHECK_REFUSED (48, 8, UINT64_C (1) << 63, EINVAL, "at most");
  CHECK_REFUSED (40, 8, 0, EINVAL, "L1 table offset 0x0");
  CHECK_REFUSED (40, 8, 4096, EINVAL, "L1 table offset 0x1000"); /* header */
  CHECK_REFUSED (40, 8, 3 * 4096 + 512, EINVAL, "L1 table offset");
  CHECK_REFUSED (40, 8, 4 * 4096, EINVAL, "L1 table offset"); /* one short */
  CHECK_REFUSED (40, 8, UINT64_MAX & -4096, EINVAL, "L1 table offset");
  CHECK_REFUSED (56, 4, 3 * 4096 - 3, EINVAL, "backing file name");
  CHECK_REFUSED (56, 4, UINT32_MAX, EINVAL, "backing file name");
  CHECK_REFUSED (60, 4, 1024, EINVAL, "backing file name of 1024 bytes");

  /* Unknown bits of the other kinds, and fields that nobody uses. */
  qed_image_put (&q, 24, 8, UINT64_MAX);
  qed_image_put (&q, 32, 8, UINT64_MAX);
  CHECK_OK (decode (&q, &h));
  qed_image_put (&q, 16, 8, 0);
  qed_image_put (&q, 60, 4, UINT32_MAX);
  CHECK_OK (decode (&q, &h));
  CHECK_EQ (h.backing_size, 0);
  qed_image_free (&q);
}

static void
test_limits (void)
{
  struct qed_header h;

  CHECK (qed_header_set_sizes (&h, 4096, 1));
  CHECK_EQ (qed_header_max_size (&h), UINT64_C (1) << 30);
  CHECK (qed_header_set_sizes (&h, 65536, 4));
  CHECK_EQ (qed_header_max_size (&h), UINT64_C (1) << 46);
  CHECK (qed_header_set_sizes (&h, UINT64_C (1) << 26, 16));
  CHECK_EQ (qed_header_max_size (&h), INT64_MAX);
}

/* ----------------------------------------------------------- random images */

static struct qed_image
random_image (uint64_t *state, bool damaged, const char *backing)
{
  const uint64_t cluster_size = UINT64_C (4096) << (random_below (state, 4) == 0);
  const uint32_t table_size = 1 << random_below (state, 2);
  const uint64_t per_table = table_size * cluster_size / 8;
  const uint64_t clusters = 1 + random_below (state, 3 * per_table / 2);
  const uint64_t cut = random_below (state, cluster_size / 512) * 512;
  struct qed_image q;
  unsigned i, n = random_below (state, 40);

  qed_image_start (&q, cluster_size, table_size, 1 + random_below (state, 3),
                   clusters * cluster_size - cut, backing);
  for (i = 0; i < n; ++i) {
    uint64_t at = random_below (state, clusters);
    unsigned nr = 1 + random_below (state, 5);

    for (; nr > 0 && at < clusters; --nr, ++at) {
      switch (random_below (state, damaged ? 6 : 4)) {
      case 0:
        qed_image_zero (&q, at);
        break;
      case 4:
        qed_image_put (&q, qed_image_place (&q, at), 8, random_next (state)
                       >> random_below (state, 64));
        break;
      case 5:
        qed_image_put (&q, qed_image_place (&q, at), 8,
                       random_below (state, q.size / cluster_size + 3) *
                       cluster_size);
        break;
      default:
        qed_image_data (&q, at, at);
      }
    }
  }
  if (damaged && random_below (state, 4) == 0)
    qed_image_put (&q, q.l1_offset + random_below (state, 4) * 8, 8,
                   random_below (state, q.size / cluster_size + 3) *
                   cluster_size);
  if (damaged && random_below (state, 4) == 0)
    qed_image_cut (&q, random_below (state, q.size - q.l1_offset -
                                     q.table_bytes + 1));
  return q;
}

struct extents {
  const struct qed_image *q;
  const uint8_t *backing;
  uint64_t backing_size, at;
};

static int
compare_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct extents *e = opaque;
  const uint64_t size = e->q->cluster_size;

  CHECK_EQ (offset, e->at);
  CHECK (length > 0);
  for (; e->at < offset + length; e->at = (e->at / size + 1) * size) {
    uint64_t host;
    const enum qed_what what =
      qed_image_what (e->q->bytes, e->q->size, e->at / size, &host);

    if (what == QED_IS_ZERO || (what == QED_IS_UNALLOCATED &&
                                e->at >= e->backing_size))
      CHECK (flags == (EXTENT_HOLE | EXTENT_ZERO));
    else if (what == QED_IS_DAMAGED)
      CHECK_EQ (flags, 0);
  }
  e->at = offset + length;
  return 0;
}

static void
compare (struct image *im, const struct qed_image *q, const uint8_t *backing,
         uint64_t backing_size, uint64_t *state)
{
  struct layer *disk = image_open_disk (im, "");
  uint8_t *want = malloc (q->disk_size), *got = malloc (q->disk_size);
  struct extents e = { q, backing, backing_size, 0 };
  uint64_t at;
  unsigned i;

  CHECK (disk != NULL && want != NULL && got != NULL);
  CHECK_EQ (disk->size, q->disk_size);
  if (qed_image_read (q->bytes, q->size, backing, backing_size, want)) {
    CHECK_OK (layer_read (disk, got, q->disk_size, (struct guest_off) { 0 }));
    CHECK (memcmp (got, want, q->disk_size) == 0);
  }
  for (at = 0; at < q->disk_size; at += q->cluster_size) {
    uint64_t host;
    const enum qed_what what =
      qed_image_what (q->bytes, q->size, at / q->cluster_size, &host);
    const int r = layer_read (disk, got, 512, (struct guest_off) { at });

    if (what == QED_IS_DAMAGED) {
      CHECK (r == -1);
      CHECK_ERROR (EIO, "damaged: QED L");
    }
    else {
      CHECK_OK (r);
      CHECK (memcmp (got, want + at, 512) == 0);
    }
  }
  for (i = 0; i < 20; ++i) {
    const uint64_t from = random_below (state, q->disk_size);
    const uint64_t n = 1 + random_below (state, q->disk_size - from);
    struct run run;

    CHECK_OK (qed_map_lookup (qed_map (disk), (struct guest_off) { from }, n,
                              &run));
    CHECK (run.length > 0 && run.length <= n);
  }
  CHECK_OK (layer_extents (disk, q->disk_size, (struct guest_off) { 0 }, false,
                           compare_extent, &e));
  CHECK_EQ (e.at, q->disk_size);
  image_close_disk (disk);
  free (want);
  free (got);
}

static void
test_random (uint64_t seed)
{
  uint64_t state = seed, backing_size;
  const bool damaged = random_below (&state, 2);
  const bool over = random_below (&state, 2);
  struct qed_image q = random_image (&state, damaged, over ? "base" : NULL);
  struct memory_control control = { .holes = random_below (&state, 2) };
  struct storage *s[2];
  uint8_t *backing = NULL;
  struct image *im;
  uint64_t i;

  backing_size = over ? random_below (&state, 2 * q.disk_size) : 0;
  if (over) {
    backing = malloc (backing_size + 1);
    for (i = 0; i < backing_size; ++i)
      backing[i] = mix (i / 512 + seed) | 1;
  }
  s[0] = memory_storage_new ("image", q.bytes, q.size, &control);
  if (over)
    s[1] = memory_storage_new ("base", backing, backing_size, NULL);
  im = image_open_storages (s, over ? 2 : 1, CACHE_MIN_BYTES);
  CHECK (im != NULL);
  if (im != NULL) {
    compare (im, &q, backing, backing_size, &state);
    CHECK_OK (image_close (im));
  }
  free (backing);
  qed_image_free (&q);
}

/* A table of a disk that is as large as can be, in a file of next to nothing.
 */
static void
test_large (void)
{
  struct memory_control control = { .holes = true };
  struct qed_image q;
  struct storage *s;
  struct image *im;
  struct layer *disk;
  struct run run;

  qed_image_start (&q, 1 << 20, 16, 1, UINT64_C (1) << 60, NULL);
  s = memory_storage_new ("image", q.bytes, q.size, &control);
  im = image_open_storage (s, CACHE_MIN_BYTES);
  CHECK (im != NULL);
  disk = image_open_disk (im, "");
  CHECK_OK (qed_map_lookup (qed_map (disk), (struct guest_off) { 0 },
                            UINT64_C (1) << 60, &run));
  CHECK_EQ (run.kind, RUN_UNALLOCATED);
  CHECK_EQ (run.length, UINT64_C (1) << 60);
  CHECK (control.calls < 200);
  image_close_disk (disk);
  CHECK_OK (image_close (im));
  qed_image_free (&q);
}

int
main (void)
{
  uint64_t seed;

  check_time_limit (60);
  test_header ();
  test_limits ();
  for (seed = 1; seed <= 120 && !check_any_failed (); ++seed) {
    test_random (seed);
    if (check_any_failed ())
      fprintf (stderr, "seed %" PRIu64 "\n", seed);
  }
  test_large ();
  return check_result ();
}
