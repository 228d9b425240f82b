/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/bitmap-clusters.c: what bitmaps have in the file stays as it is
 * while the disk is written, or the image is not written at all.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/advice.h"
#include "base/bytes.h"
#include "build.h"
#include "check.h"
#include "disk/read.h"
#include "image-check.h"
#include "image.h"
#include "qcow2/qcow2.h"
#include "qcow2/write/bitmap-clusters.h"

#define EXTENSION 112 /* where it is in the header */
#define IN_USE 1
#define CLUSTER UINT64_C (4096)
#define DISK_BYTES (UINT64_C (1) << 20)
#define MAX_BITMAPS 2000

#define AT(x) ((struct guest_off) { x })

/* Where things are. */
struct made {
  uint64_t directory, table, bits[2], data, l2;
};

static struct memory_disk disk;
static struct memory_control control;
static const struct writer_options careful = { 0 };

/* nr bitmaps with these flags and one table for all of them, which has bits in
 * two clusters, and a disk of which 8 clusters are mapped.
 */
static struct made
build_image (struct builder *b, unsigned nr, uint32_t flags)
{
  struct made m;
  unsigned i;

  build_start (b, 3, 12, false, COMPRESSION_DEFLATE, DISK_BYTES);
  for (i = 0; i < 8; ++i) {
    m.data = build_data (b, i + 1);
    build_entry (b, i, m.data, 0);
  }
  m.l2 = build_l2_place (b, 0);
  m.directory = build_clusters (b, (nr * 24 + CLUSTER - 1) / CLUSTER);
  m.bits[0] = build_data (b, 100);
  m.table = build_clusters (b, 1);
  m.bits[1] = build_data (b, 101);
  for (i = 0; i < nr; ++i) {
    uint8_t *p = b->data + m.directory + i * 24;

    put_be64 (p, m.table);
    put_be32 (p + 8, 4);
    put_be32 (p + 12, flags);
    p[16] = 1; /* dirty tracking */
    p[17] = 9;
  }
  put_be64 (b->data + m.table, m.bits[0]);
  put_be64 (b->data + m.table + 8, 1); /* all ones */
  put_be64 (b->data + m.table + 24, m.bits[1]);
  put_be32 (b->data + EXTENSION, QCOW2_EXT_BITMAPS);
  put_be32 (b->data + EXTENSION + 4, 24);
  put_be32 (b->data + EXTENSION + 8, nr);
  put_be64 (b->data + EXTENSION + 16, nr * 24);
  put_be64 (b->data + EXTENSION + 24, m.directory);
  put_be64 (b->data + 88, QCOW2_AUTOCLEAR_BITMAPS);
  return m;
}

static struct image *
open_image (struct builder *b, uint64_t more)
{
  uint8_t *bytes = calloc (1, b->size + more);

  if (bytes == NULL)
    abort ();
  memcpy (bytes, b->data, b->size);
  memory_disk_init (&disk, bytes, b->size + more);
  free (bytes);
  build_free (b);
  memset (&control, 0, sizeof control);
  return image_open_storage (memory_disk_open (&disk, "test", &control),
                             CACHE_MIN_BYTES);
}

/* Of 16 bits, all in one block. */
static uint8_t *
refcount_place (uint8_t *data, uint64_t host)
{
  const uint64_t table = get_be64 (data + 48);

  return data + get_be64 (data + table) + host / CLUSTER * 2;
}

/* It is read, but not written. */
static void
check_refused (struct builder *b, uint64_t more, int errnum, const char *why)
{
  struct image *im = open_image (b, more);
  uint8_t before[CLUSTER], buf[CLUSTER];
  struct layer *live;

  CHECK_EQ (image_make_writable (im, &careful), (uint64_t) -1);
  CHECK_ERROR (errnum, why);
  CHECK_HAS (error_message (), "can't be written");
  CHECK_EQ (control.writes, 0);
  build_pattern (before, sizeof before, 1);
  live = image_open_disk (im, "");
  CHECK_OK (layer_read (live, buf, sizeof buf, AT (0)));
  image_close_disk (live);
  CHECK (memcmp (before, buf, sizeof buf) == 0);
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

static void
change_all (struct image *im)
{
  uint8_t *buf = malloc (DISK_BYTES);

  if (buf == NULL)
    abort ();
  build_pattern (buf, DISK_BYTES, 7);
  CHECK_OK (image_write (im, buf, DISK_BYTES, AT (0), 0));
  CHECK_OK (image_flush (im));
  CHECK_OK (image_trim (im, DISK_BYTES / 2, AT (DISK_BYTES / 4), 0));
  CHECK_OK (image_flush (im));
  CHECK_OK (image_write (im, buf, DISK_BYTES / 2, AT (DISK_BYTES / 4), 0));
  free (buf);
}

/* Whatever is written, all of them are there afterwards. */
static void
test_kept (unsigned nr, uint32_t flags)
{
  struct builder b;
  struct image *im;
  struct made m;
  uint8_t *before;
  uint64_t bytes;

  m = build_image (&b, nr, flags);
  build_finish (&b);
  bytes = m.bits[1] + CLUSTER - m.directory;
  before = malloc (bytes);
  if (before == NULL)
    abort ();
  memcpy (before, b.data + m.directory, bytes);
  im = open_image (&b, 0);
  CHECK_OK (image_make_writable (im, &careful));
  /* A table with many uses is read once. */
  CHECK (control.bytes < 64 * CLUSTER + nr * UINT64_C (100));
  change_all (im);
  CHECK_OK (image_close (im));
  CHECK (memcmp (before, disk.data + m.directory, bytes) == 0);
  if (nr == 1) /* the judge knows no tables with several uses */
    image_check_clean ("kept", disk.data, disk.size);
  free (before);
  memory_disk_free (&disk);
}

/* What looks free would be handed out. */
static void
test_refcount_zero (void)
{
  static const uint32_t flags[] = { 0, IN_USE };
  struct builder b;
  struct made m;
  unsigned i, f;

  for (f = 0; f < 2; ++f) {
    for (i = 0; i < 4; ++i) {
      const char *why = i == 0 ? "the bitmap directory"
        : i == 1 ? "the table of a bitmap" : "the bits of a bitmap";

      m = build_image (&b, 1, flags[f]);
      build_finish (&b);
      put_be16 (refcount_place (b.data, i == 0 ? m.directory : i == 1 ? m.table
                                : m.bits[i - 2]), 0);
      check_refused (&b, 0, EIO, why);
      CHECK_HAS (error_message (), "refcount");
    }
  }
}

/* An entry of the disk leads to the bits. */
static void
check_data_over_bits (bool write)
{
  uint8_t before[CLUSTER];
  struct builder b;
  struct image *im;
  struct made m;

  m = build_image (&b, 1, 0);
  build_finish (&b);
  put_be64 (b.data + m.l2, QCOW2_ENTRY_COPIED | m.bits[1]);
  build_pattern (before, sizeof before, 101);
  im = open_image (&b, 0);
  CHECK_OK (image_make_writable (im, &careful));
  CHECK_EQ (write ? image_write (im, "x", 1, AT (0), 0)
            : image_trim (im, CLUSTER, AT (0), 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "the bits of a bitmap");
  CHECK_HAS (error_message (), "marked as corrupt");
  (void) image_close (im);
  CHECK (memcmp (before, disk.data + m.bits[1], CLUSTER) == 0);
  memory_disk_free (&disk);
}

/* So many entries of the disk that are not COPIED lead to what a bitmap has:
 * they are replaced, by writes that go elsewhere or by trims, and the bitmap
 * stays.
 */
static void
check_shared_with_data (uint64_t host, unsigned entries, unsigned refcount,
                        bool write)
{
  uint8_t before[CLUSTER];
  struct builder b;
  struct image *im;
  struct made m;
  unsigned i;

  m = build_image (&b, 1, 0);
  build_finish (&b);
  for (i = 0; i < entries; ++i) {
    uint8_t *entry = b.data + m.l2 + 8 * i;

    put_be16 (refcount_place (b.data, get_be64 (entry) & 0xfffffe00), 0);
    put_be64 (entry, host);
  }
  put_be16 (refcount_place (b.data, host), refcount);
  memcpy (before, b.data + host, CLUSTER);
  im = open_image (&b, 0);
  CHECK_OK (image_make_writable (im, &careful));
  for (i = 0; i < entries; ++i)
    CHECK_OK (write ? image_write (im, "x", 1, AT (i * CLUSTER), 0)
              : image_trim (im, CLUSTER, AT (i * CLUSTER), 0));
  CHECK_OK (image_flush (im));
  CHECK_OK (image_close (im));
  CHECK (memcmp (before, disk.data + host, CLUSTER) == 0);
  CHECK_EQ (get_be16 (refcount_place (disk.data, host)), 1);
  CHECK_EQ (get_be64 (disk.data + 72), 0); /* it is not marked */
  image_check_clean ("shared", disk.data, disk.size);
  memory_disk_free (&disk);
}

/* It would be free, and still a bitmap's. */
static void
check_last_reference (uint64_t host, bool write)
{
  uint8_t before[CLUSTER];
  struct builder b;
  struct image *im;
  struct made m;

  m = build_image (&b, 1, 0);
  build_finish (&b);
  put_be64 (b.data + m.l2, host);
  memcpy (before, b.data + host, CLUSTER);
  im = open_image (&b, 0);
  CHECK_OK (image_make_writable (im, &careful));
  CHECK_EQ (write ? image_write (im, "x", 1, AT (0), 0)
            : image_trim (im, CLUSTER, AT (0), 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "refcount");
  CHECK_HAS (error_message (), "bitmap");
  CHECK_OK (image_write (im, "x", 1, AT (CLUSTER), 0)); /* the rest goes on */
  CHECK_OK (image_flush (im));
  CHECK_OK (image_close (im));
  CHECK (memcmp (before, disk.data + host, CLUSTER) == 0);
  CHECK_EQ (get_be16 (refcount_place (disk.data, host)), 1);
  CHECK_EQ (get_be64 (disk.data + 72), 0);
  memory_disk_free (&disk);
}

static void
test_shared_with_data (void)
{
  struct builder b;
  const struct made m = build_image (&b, 1, 0);
  const uint64_t host[] = { m.directory, m.table, m.bits[0], m.bits[1] };
  unsigned i;

  build_free (&b);
  for (i = 0; i < 8; ++i) {
    check_shared_with_data (host[i / 2], 1, 2, i % 2);
    check_shared_with_data (host[i / 2], 5, 6, i % 2);
    /* Trimmed one after the other, before either is given up. */
    check_shared_with_data (host[i / 2], 2, 2, false);
    check_last_reference (host[i / 2], i % 2);
  }
}

/* Other metadata is where a bitmap is. */
static void
test_overlaps (void)
{
  unsigned i;

  for (i = 0; i < 6; ++i) {
    struct builder b;
    struct made m = build_image (&b, 1, 0);
    uint64_t other;

    build_finish (&b);
    other = i == 0 ? b.l1_offset : i == 1 ? m.l2 & -CLUSTER
      : i == 2 ? get_be64 (b.data + 48)
      : i == 3 ? get_be64 (b.data + get_be64 (b.data + 48))
      : i == 4 ? m.directory : m.table;
    put_be64 (b.data + m.table + 16, other);
    check_refused (&b, 0, i == 0 || i > 3 ? EINVAL : EIO, "overlaps");
    CHECK_HAS (error_message (), "damaged");
  }
}

/* Make the image writable, which a repair has made sound. */
static void
check_repaired (struct image *im, bool kept)
{
  char said[1000];
  int writable;

  CHECK_OK (image_repair (im, IMAGE_REPAIR_ALL, said, sizeof said));
  CHECK_EQ (get_be64 (disk.data + 88), kept ? QCOW2_AUTOCLEAR_BITMAPS : 0);
  image_check_clean ("repaired", disk.data, disk.size);
  writable = image_make_writable (im, &careful);
  CHECK_OK (writable);
  if (writable == 0)
    change_all (im);
  CHECK_OK (image_close (im));
  image_check_clean ("written", disk.data, disk.size);
  memory_disk_free (&disk);
}

/* Let the bitmap and something else have a cluster, one of ten ways.  Returns
 * which.
 */
static uint64_t
share_cluster (struct builder *b, const struct made *m, unsigned way)
{
  const uint64_t refcounts = get_be64 (b->data + 48);
  const uint64_t other[] = {
    b->l1_offset, m->l2 & -CLUSTER, refcounts, get_be64 (b->data + refcounts),
    m->directory, m->table, m->data, m->bits[0],
  };

  switch (way) {
  case 8: /* an entry that is not COPIED */
    put_be64 (b->data + m->l2, m->bits[0]);
    return m->bits[0];
  case 9: /* a second bitmap with the same table */
    memcpy (b->data + m->directory + 24, b->data + m->directory, 24);
    put_be32 (b->data + EXTENSION + 8, 2);
    put_be64 (b->data + EXTENSION + 16, 48);
    return m->table;
  default:
    put_be64 (b->data + m->table + 16, other[way]);
    return other[way];
  }
}

/* Bitmaps in clusters that have another use are given up by a repair: it is not
 * known what is in there.  The refcount is right, or was never raised.
 */
static void
test_given_up (void)
{
  unsigned i;

  for (i = 0; i < 20; ++i) {
    struct builder b;
    const struct made m = build_image (&b, 1, i % 2 ? IN_USE : 0);
    uint64_t shared;

    build_finish (&b);
    shared = share_cluster (&b, &m, i / 2);
    if (i % 2)
      put_be16 (refcount_place (b.data, shared), 2);
    check_repaired (open_image (&b, 0), false);
  }
}

/* They are kept if refcounts are all that is wrong. */
static void
test_not_given_up (void)
{
  struct builder b;
  struct made m = build_image (&b, 1, 0);

  build_finish (&b);
  put_be16 (refcount_place (b.data, m.bits[0]), 0);
  put_be16 (refcount_place (b.data, m.table), 2);
  check_repaired (open_image (&b, 0), true);
}

/* Or if the double use is none of theirs, which stays. */
static void
test_not_theirs (void)
{
  char said[1000];
  struct builder b;
  struct image *im;
  struct made m = build_image (&b, 1, 0);

  build_finish (&b);
  put_be64 (b.data + m.l2, m.l2 & -CLUSTER);
  im = open_image (&b, 0);
  CHECK_EQ (image_repair (im, IMAGE_REPAIR_ALL, said, sizeof said),
            (uint64_t) -1);
  CHECK_ERROR (EIO, "used as something else as well");
  CHECK_EQ (get_be64 (disk.data + 88), QCOW2_AUTOCLEAR_BITMAPS);
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

/* What the file's end cuts off would seem to be clean once the file grows. */
static void
test_cut_off (void)
{
  char said[1000];
  struct builder b;
  struct image *im;
  struct made m;

  m = build_image (&b, 1, 0);
  build_finish (&b);
  put_be64 (b.data + m.table + 16, b.size);
  check_refused (&b, CLUSTER - 1, EIO, "end beyond the end of the file");

  m = build_image (&b, 1, 0);
  build_finish (&b);
  put_be64 (b.data + m.table + 16, b.size);
  im = open_image (&b, CLUSTER - 1);
  CHECK_OK (image_repair (im, IMAGE_REPAIR_ALL, said, sizeof said));
  CHECK_EQ (get_be64 (disk.data + 88), 0); /* they are given up */
  CHECK_OK (image_make_writable (im, &careful));
  change_all (im);
  CHECK_OK (image_close (im));
  image_check_clean ("repaired", disk.data, disk.size);
  memory_disk_free (&disk);

  m = build_image (&b, 1, 0);
  build_finish (&b);
  put_be64 (b.data + m.table + 16, b.size);
  check_refused (&b, 0, EIO, "damaged: bits of a bitmap");

  m = build_image (&b, 1, 0);
  build_finish (&b);
  put_be64 (b.data + m.directory, b.size);
  check_refused (&b, 31, EINVAL, "outside the file");

  m = build_image (&b, 1, 0);
  build_finish (&b);
  put_be64 (b.data + m.directory, b.size);
  check_repaired (open_image (&b, 31), false);

  (void) build_image (&b, 1, 0);
  build_finish (&b);
  put_be64 (b.data + EXTENSION + 24, b.size);
  check_repaired (open_image (&b, 23), false);

  m = build_image (&b, 1, 0);
  build_finish (&b);
  put_be16 (refcount_place (b.data, b.size), 1);
  put_be64 (b.data + m.directory, b.size);
  im = open_image (&b, 32); /* as other writers leave it */
  CHECK_OK (image_make_writable (im, &careful));
  change_all (im);
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

static void
check_malformed (uint64_t table_entry, uint32_t parts, unsigned type,
                 int errnum, const char *why)
{
  struct builder b;
  struct made m = build_image (&b, 1, 0);

  build_finish (&b);
  put_be64 (b.data + m.table + 8, table_entry);
  put_be32 (b.data + m.directory + 8, parts);
  b.data[m.directory + 16] = type;
  check_refused (&b, 0, errnum, why);
}

static void
test_malformed (void)
{
  check_malformed (2, 4, 1, EIO, "damaged: bitmap table entry");
  check_malformed (UINT64_C (1) << 40, 4, 1, EIO, "damaged: bits of a bitmap");
  check_malformed (0, 4, 2, EIO, "damaged: bitmap directory entry");
  check_malformed (0, 0, 1, EIO, "damaged: bitmap directory entry");
  check_malformed (0, UINT32_MAX, 1, EINVAL, "limit");
}

/* A failing read is no damage, and nothing is left behind. */
static void
test_reads_fail (void)
{
  unsigned call, failed = 0;

  for (call = 1; call < 100; ++call) {
    struct builder b;
    struct image *im;
    bool done;
    int r;

    (void) build_image (&b, 1, 0);
    build_finish (&b);
    im = open_image (&b, 0);
    memory_fail (&control, MEMORY_READ, call, EIO);
    r = image_make_writable (im, &careful);
    done = control.failed == 0;
    CHECK (r == 0 || !done); /* some are tried again, with less to read */
    failed += r == -1;
    CHECK_EQ (control.writes, 0);
    memory_fail_no_more (&control);
    CHECK_OK (image_close (im));
    memory_disk_free (&disk);
    if (done)
      break;
  }
  CHECK (failed >= 5);
}

/* A table of 64 entries for every other cluster, backwards, repeated. */
static int
add_scattered (size_t max, unsigned repeat, struct overlap *o)
{
  struct builder b;
  struct storage *s;
  struct header h = { 0 };
  struct made m;
  uint64_t bits;
  unsigned i;
  bool shared;
  int r;

  m = build_image (&b, 1, 0);
  bits = build_clusters (&b, 128);
  build_finish (&b);
  for (i = 0; i < 64 * repeat; ++i)
    put_be64 (b.data + m.table + 8 * i,
              bits + (63 - i % 64) * 2 * CLUSTER);
  put_be32 (b.data + m.directory + 8, 64 * repeat);
  s = build_storage (&b, NULL);
  CHECK_OK (qcow2_read_header (s, &h));
  overlap_init (o, 12);
  r = bitmap_clusters_add (s, &h, o, max, &shared);
  CHECK_EQ (shared, repeat > 1);
  if (r == 0) {
    CHECK_OK (overlap_sort (o, "test"));
    for (i = 0; i < 128; ++i)
      CHECK_EQ (overlap_find (o, (struct host_off) { bits + i * CLUSTER },
                              CLUSTER),
                i % 2 == 0 ? METADATA_BITS : METADATA_NONE);
    CHECK_EQ (o->nr_ranges, 65);
  }
  overlap_destroy (o);
  storage_close (s);
  build_free (&b);
  return r;
}

/* Memory is bounded, and taken for what is there, not for each mention. */
static void
test_scattered (void)
{
  struct overlap o;

  CHECK_OK (add_scattered (64, 1, &o));
  CHECK_OK (add_scattered (64, 8, &o));
  CHECK_EQ (add_scattered (63, 1, &o), (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, "more than 63 places");
  CHECK_HAS (error_message (), "only be read");
  CHECK_EQ (add_scattered (31, 1, &o), (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, "more than 31 places");
}

static const char *const words[ADVICE_NR] = {
  [ADVICE_REPAIR] = "repair it",
  [ADVICE_READ_ONLY] = "only be read",
};

int
main (void)
{
  advice_choose (words);
  check_time_limit (100);
  test_kept (1, 0);
  test_kept (1, IN_USE);
  test_kept (3, IN_USE | 2);
  test_kept (MAX_BITMAPS, 0);
  test_refcount_zero ();
  check_data_over_bits (true);
  check_data_over_bits (false);
  test_shared_with_data ();
  test_overlaps ();
  test_given_up ();
  test_not_given_up ();
  test_not_theirs ();
  test_cut_off ();
  test_malformed ();
  test_reads_fail ();
  test_scattered ();
  return check_result ();
}
