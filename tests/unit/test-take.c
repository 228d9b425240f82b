/* SPDX-License-Identifier: BSD-3-Clause */

/* Internal snapshots that are made while the image is written: on images of many
 * kinds, with requests at each moment at which nothing is held; what is refused;
 * what is undone; and beside threads that write, for ThreadSanitizer, too
 * (TEST_SECONDS says for how long).
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "image-check.h"
#include "must-have.h"
#include "qcow2/write/writer-parts.h"
#include "random.h"
#include "rig.h"
#include "seconds.h"
#include "take-wrap.h"

static struct rig rig;
static uint8_t *was, *is; /* of the disk's size */

/* --------------------------------------------------------------------- images */

struct form {
  unsigned version, bits, order;
  bool extended, backing, snapshot, many;
  unsigned compress;
};

static const struct form forms[] = {
  { .version = 3, .bits = 9 },
  { .version = 2, .bits = 9, .snapshot = true },
  { .version = 3, .bits = 9, .order = 1, .snapshot = true },
  { .version = 3, .bits = 10, .order = 2, .backing = true },
  { .version = 3, .bits = 12, .order = 3, .snapshot = true },
  { .version = 2, .bits = 12, .backing = true },
  { .version = 3, .bits = 12, .order = 5, .backing = true, .snapshot = true },
  { .version = 3, .bits = 16, .order = 6, .snapshot = true },
  { .version = 3, .bits = 14, .extended = true, .backing = true },
  { .version = 3, .bits = 16, .extended = true, .snapshot = true },
  { .version = 3, .bits = 21 },
  { .version = 3, .bits = 12, .compress = 1, .snapshot = true },
  { .version = 3, .bits = 16, .compress = 1, .backing = true },
  /* Several slices of a table are mapped. */
  { .version = 3, .bits = 14, .many = true },
  { .version = 2, .bits = 14, .many = true, .snapshot = true },
  { .version = 3, .bits = 14, .many = true, .extended = true },
};
#define FORMS (sizeof forms / sizeof forms[0])

static uint64_t
clusters_of (const struct form *f)
{
  return f->many ? 1800 : f->bits == 21 ? 3 : f->bits >= 16 ? 24 : f->bits >= 12 ? 80 : 200;
}

static const char *
name_of (const struct form *f)
{
  static char what[120];

  snprintf (what, sizeof what, "v%u, clusters of 2^%u, refcounts of 2^%u bits"
            "%s%s%s%s", f->version, f->bits, f->order == 0 ? 4 : f->order,
            f->extended ? ", extended" : "", f->backing ? ", backing" : "",
            f->snapshot ? ", snapshot" : "", f->compress ? ", compressed" : "");
  return what;
}

/* Clusters of every kind; the tables of a part of the disk are missing. */
static void
build (const struct form *f, struct builder *b)
{
  const uint64_t nr = clusters_of (f);
  uint8_t *plain;
  uint64_t i, state = 1;

  build_start (b, f->version, f->bits, f->extended, COMPRESSION_DEFLATE,
               (nr << f->bits) - 512);
  if (f->order != 0)
    build_order (b, f->order);
  b->max_sharing = 1; /* narrow refcounts */
  plain = must_have (malloc (b->cluster_size));
  for (i = 0; i + nr / 4 < nr; ++i) {
    if (i % 5 == 4)
      continue;
    build_l2_place (b, i);
    if (i % 5 == 3) {
      build_pattern (plain, b->cluster_size / 2, i);
      memset (plain + b->cluster_size / 2, 0, b->cluster_size / 2);
      build_compressed (b, i, plain, 0);
    }
    else if (i % 5 == 2 && f->version >= 3)
      build_entry (b, i, f->extended ? 0 : 1, f->extended ? UINT64_MAX << 32
                   : 0);
    else
      build_entry (b, i, build_data (b, i + 1),
                   f->extended ? 0xffff | (UINT64_C (0xff) << 48) : 0);
  }
  free (plain);
  if (f->backing)
    build_backing (b, "raw");
  if (f->snapshot)
    build_snapshot (b, 50, &state);
  build_finish (b);
}

static void
open_rig (uint64_t memory)
{
  rig_open (&rig);
  CHECK_OK (image_allow_points (rig.im, 0, memory));
  if (was == NULL) {
    was = must_have (malloc (rig.size));
    is = must_have (malloc (rig.size));
  }
}

static void
start (const struct form *f, uint64_t memory)
{
  struct builder b;

  build (f, &b);
  rig_init (&rig, name_of (f), &b);
  build_free (&b);
  if (f->backing) {
    const uint64_t size = (clusters_of (f) << f->bits) - 1024;
    uint8_t *base = must_have (malloc (size));

    build_pattern (base, size, 99);
    rig_set_base (&rig, base, size, true);
  }
  rig.options.compress_level = f->compress;
  open_rig (memory);
}

/* rig_close holds that the image is sound, without leaks. */
static void
end (void)
{
  rig_close (&rig);
  free (was);
  free (is);
  was = is = NULL;
  free ((void *) rig.base);
  rig_free (&rig);
}

/* ------------------------------------------------------------------- requests */

/* Changes of the disk, from a seed. */
static void
change (uint64_t seed, unsigned nr)
{
  uint64_t state = mix (seed);
  unsigned i;

  for (i = 0; i < nr; ++i) {
    const uint64_t at = random_below (&state, rig.size);
    const uint64_t most = random_below (&state, 2) ? 4096 : rig.size / 3;
    uint64_t count = 1 + random_below (&state, most);

    if (count > rig.size - at)
      count = rig.size - at;
    switch (random_below (&state, 6)) {
    case 0:
      rig_trim (&rig, at, count);
      break;
    case 1:
      rig_zero (&rig, at, count, random_below (&state, 2) ? IMAGE_MAY_TRIM : 0);
      break;
    default:
      rig_write (&rig, at, count, random_next (&state));
    }
  }
}

static uint64_t changes; /* seed of those while a snapshot is made; 0: none */

static void
change_meanwhile (uint64_t seed)
{
  if (changes != 0)
    change (changes + seed, 12);
}

/* A search for leaks that begins while clusters are taken, and nothing refers to
 * them, would free them: it has time for that.
 */
static bool search;

static void
search_meanwhile (void)
{
  unsigned i;

  if (!search)
    return;
  image_free_leaks (rig.im);
  for (i = 0; i < 20000 && !image_leaks_are_done (rig.im); ++i)
    sched_yield ();
}

int
__wrap_features_begin_take (struct writer *w)
{
  const int r = __real_features_begin_take (w);

  search_meanwhile ();
  change_meanwhile (1);
  return r;
}

int
__wrap_features_switch_snapshots (struct writer *w, uint32_t nr,
                                  struct host_off table,
                                  const struct bitmap_header *bitmaps)
{
  int r;

  change_meanwhile (2);
  r = __real_features_switch_snapshots (w, nr, table, bitmaps);
  change_meanwhile (3);
  return r;
}

/* ------------------------------------------------------------------ snapshots */

static void
compare (const char *export, const uint8_t *should)
{
  struct layer *disk = image_open_disk (rig.im, export);

  if (disk == NULL) {
    check_failed (__FILE__, __LINE__, "%s: %s: %s", rig.what, export,
                  error_message ());
    return;
  }
  CHECK_EQ (disk->size, rig.size);
  CHECK_OK (layer_read (disk, is, rig.size, (struct guest_off) { 0 }));
  if (memcmp (is, should, rig.size) != 0)
    check_failed (__FILE__, __LINE__, "%s: %s is wrong", rig.what, export);
  image_close_disk (disk);
}

static int
count_export (void *opaque, const char *name, const char *description)
{
  unsigned *nr = opaque;

  (void) description;
  *nr += strncmp (name, IMAGE_SNAPSHOT_PREFIX,
                  strlen (IMAGE_SNAPSHOT_PREFIX)) == 0;
  return 0;
}

static unsigned
count_snapshots (void)
{
  unsigned nr = 0;

  CHECK_OK (image_list (rig.im, count_export, &nr));
  return nr;
}

/* A snapshot, while the disk changes: it has what the disk had before. */
static void
take (const char *name)
{
  char export[64];
  struct layer *disk;

  memcpy (was, rig.content, rig.size);
  snprintf (export, sizeof export, IMAGE_TAKE_PREFIX "%s", name);
  disk = image_open_disk (rig.im, export);
  if (disk == NULL) {
    check_failed (__FILE__, __LINE__, "%s: %s: %s", rig.what, export,
                  error_message ());
    return;
  }
  CHECK_OK (layer_read (disk, is, rig.size, (struct guest_off) { 0 }));
  CHECK (memcmp (is, was, rig.size) == 0);
  image_close_disk (disk);
}

static void
test_form (const struct form *f, uint64_t seed)
{
  const unsigned before = f->snapshot;
  uint8_t *first;

  start (f, 16 << 20);
  first = must_have (malloc (rig.size));
  change (seed, 10);
  changes = seed;
  memcpy (first, rig.content, rig.size);
  take ("x");
  CHECK_EQ (count_snapshots (), before + 1);
  compare ("snapshot/x", first);
  change (seed + 7, 10);
  compare ("snapshot/x", first);
  if (f->order != 1) { /* else clusters would have four references */
    take ("y z");
    CHECK_EQ (count_snapshots (), before + 2);
    memcpy (is, was, rig.size);
    compare ("snapshot/y z", was);
  }
  changes = 0;
  compare ("snapshot/x", first);
  rig_compare (&rig);
  rig_close (&rig);
  open_rig (16 << 20);
  rig_compare (&rig);
  compare ("snapshot/x", first);
  if (f->order != 1)
    compare ("snapshot/y z", was);
  change (seed + 9, 20);
  compare ("snapshot/x", first);
  free (first);
  end ();
}

/* It goes on when the snapshot is made, and finds what is leaked. */
static void
test_leaks (void)
{
  start (&forms[0], 1 << 20);
  search = true;
  take ("x");
  search = false;
  while (!image_leaks_are_done (rig.im))
    sched_yield ();
  change (7, 40);
  compare ("snapshot/x", was);
  end ();
}

/* -------------------------------------------------------------------- refused */

static void
refuse (const char *name, int err, const char *why)
{
  char export[5000];

  snprintf (export, sizeof export, IMAGE_TAKE_PREFIX "%s", name);
  CHECK (image_open_disk (rig.im, export) == NULL);
  CHECK_ERROR (err, why);
}

static void
wait_for_end (void)
{
  while (!image_points_have_ended (rig.im))
    sched_yield ();
}

static void
test_refused (void)
{
  const struct form f = { .version = 3, .bits = 12, .snapshot = true };
  char long_name[300];
  uint64_t writes;

  start (&f, 1 << 20);
  rig_flush (&rig);
  writes = rig.control.writes;
  memset (long_name, 'n', sizeof long_name);
  long_name[256] = '\0';
  refuse ("a", EEXIST, "exists already: read \"snapshot/a\"");
  refuse ("%61", EEXIST, "exists already");
  refuse ("1", EEXIST, "exists already"); /* its ID */
  refuse ("", EINVAL, "name");
  refuse ("x/y", EINVAL, "name");
  refuse ("x%", EINVAL, "name");
  refuse ("%01", EINVAL, "name");
  refuse (long_name, ENOTSUP, "255 bytes");
  CHECK_EQ (rig.control.writes, writes);
  CHECK_EQ (count_snapshots (), 1);
  take ("x%2Fy");
  compare ("snapshot/x/y", was);
  end ();
}

/* Its refcounts have one bit. */
static void
test_one_bit (void)
{
  const struct form f = { .version = 3, .bits = 12 };
  struct builder b;

  build_start (&b, 3, f.bits, false, COMPRESSION_DEFLATE, 1 << 20);
  build_order (&b, 0);
  build_finish (&b);
  rig_init (&rig, "one bit", &b);
  build_free (&b);
  open_rig (1 << 20);
  refuse ("x", ENOTSUP, "one bit");
  end ();
}

static void
test_read_only (void)
{
  start (&forms[0], 1 << 20);
  rig_close (&rig);
  rig.im = image_open_storage (memory_disk_open (&rig.disk, "test",
                                                 &rig.control),
                               CACHE_MIN_BYTES);
  CHECK_OK (image_allow_points (rig.im, 0, 1 << 20));
  rig.live = image_open_disk (rig.im, "");
  refuse ("x", EROFS, "not writable");
  end ();
}

/* Who opens it while it is open, or lingers, shares it. */
static void
test_shared (void)
{
  struct layer *a, *b;

  start (&forms[0], 1 << 20);
  a = image_open_disk (rig.im, "take/x");
  rig_write (&rig, 0, 512, 5);
  b = image_open_disk (rig.im, "take/%78");
  CHECK (a != NULL && b != NULL);
  image_close_disk (a);
  CHECK_EQ (count_snapshots (), 1);
  image_close_disk (b);
  refuse ("x", EEXIST, "exists already");
  rig_close (&rig);
  rig_open (&rig);
  CHECK_OK (image_allow_points (rig.im, 1000, 1 << 20));
  image_close_disk (image_open_disk (rig.im, "take/y"));
  a = image_open_disk (rig.im, "take/y");
  CHECK (a != NULL);
  image_close_disk (a);
  end ();
}

/* --------------------------------------------------------------------- undone */

/* All is as it was, and goes on. */
static void
check_undone (unsigned nr, const char *name)
{
  wait_for_end ();
  CHECK_EQ (count_snapshots (), nr);
  rig_compare (&rig);
  rig_flush (&rig);
  rig_flush (&rig);
  if (get_be32 (rig.disk.data + 4) >= 3)
    CHECK_EQ (get_be64 (rig.disk.data + 72) & QCOW2_INCOMPAT_DIRTY, 0);
  changes = 0;
  if (name != NULL) {
    take (name);
    CHECK_EQ (count_snapshots (), nr + 1);
  }
  end ();
}

/* A cluster in the midst of the disk has the highest refcount. */
static void
test_refcount (void)
{
  struct form f = { .version = 3, .bits = 9, .order = 1 };
  unsigned i;

  for (i = 0; i < 2; ++i, f.bits = 12) {
    start (&f, 16 << 20);
    take ("x");
    take ("y");
    CHECK_EQ (count_snapshots (), 2);
    rig_write (&rig, 0, rig.size / 2, 6); /* some are new, and COPIED */
    rig_flush (&rig);
    refuse ("z", ENOTSUP, "the most that 2 bits can hold");
    wait_for_end ();
    CHECK_EQ (count_snapshots (), 2);
    CHECK_EQ (get_be64 (rig.disk.data + 72) & QCOW2_INCOMPAT_DIRTY, 0);
    rig_compare (&rig);
    end ();
  }
}

/* No memory for what is changed meanwhile: in tables that were there before, or in
 * new ones.
 */
static void
test_memory (bool before)
{
  start (&forms[0], 100);
  if (before)
    rig_write (&rig, 0, rig.size, 8);
  changes = 3;
  memcpy (was, rig.content, rig.size);
  refuse ("x", EIO, "no snapshot was made");
  check_undone (0, NULL);
}

/* No space for more clusters. */
static void
test_no_space (void)
{
  struct layer *disk;
  unsigned nr = 0;
  char name[16];

  start (&forms[0], 16 << 20);
  rig.control.limit = atomic_load (&rig.disk.size) + 65536;
  do { /* all that is written wants clusters then */
    snprintf (name, sizeof name, IMAGE_TAKE_PREFIX "%u", nr);
    disk = image_open_disk (rig.im, name);
    nr += disk != NULL;
    image_close_disk (disk);
    (void) rig_try_write (&rig, 0, 30000, nr, 0);
    CHECK_OK (layer_read (rig.live, rig.content, rig.size,
                          (struct guest_off) { 0 }));
  } while (disk != NULL && nr < 100);
  CHECK (nr > 0 && nr < 100);
  rig_compare (&rig);
  rig.control.limit = 0;
  check_undone (nr, "y");
}

/* No space to write the header again, when it is to be switched and when the image
 * is not to be dirty any more: the disk goes on, and the end makes up for it.
 */
static unsigned headers;

static void
fail_headers (void *opaque, const struct memory_call *call)
{
  (void) opaque;
  if (call->kind == MEMORY_WRITE && call->offset < 512 && headers++ > 0)
    memory_fail (&rig.control, MEMORY_WRITE, 1, ENOSPC);
}

static void
test_header_no_space (void)
{
  start (&forms[0], 16 << 20);
  rig_flush (&rig);
  headers = 0;
  rig.control.hook = fail_headers;
  refuse ("x", ENOSPC, "x");
  rig.control.hook = NULL;
  CHECK_EQ (headers, 3); /* dirty, switched, and not dirty */
  memory_fail_no_more (&rig.control);
  wait_for_end ();
  CHECK_EQ (count_snapshots (), 0);
  rig_write (&rig, 0, rig.size / 2, 7);
  rig_flush (&rig);
  rig_compare (&rig);
  rig_close (&rig);
  CHECK_EQ (get_be64 (rig.disk.data + 72) & QCOW2_INCOMPAT_DIRTY, 0);
  free (was);
  free (is);
  was = is = NULL;
  free ((void *) rig.base);
  rig_free (&rig);
}

/* An entry that is damaged: the disk goes on, and nothing else is changed. */
static void
test_damaged (bool beyond)
{
  struct builder b;
  uint64_t place;

  build (&forms[4], &b);
  place = build_l2_place (&b, 50);
  put_be64 (b.data + place, beyond ? UINT64_C (1) << 40 : 0x200);
  rig_init (&rig, "damaged", &b);
  build_free (&b);
  rig.content = must_have (calloc (rig.size, 1));
  rig.nr_snapshots = 0; /* which can't be read, either */
  open_rig (1 << 20);
  refuse ("x", EIO, "damaged: L2 entry");
  wait_for_end ();
  CHECK_EQ (count_snapshots (), 1);
  CHECK_EQ (get_be64 (rig.disk.data + 72) & QCOW2_INCOMPAT_DIRTY, 0);
  CHECK_OK (rig_close_only (&rig));
  free (was);
  free (is);
  was = is = NULL;
  rig_free (&rig);
}

/* Each call fails in turn: the snapshot is made, or all is undone, or nothing is
 * written any more (I10).
 */
static bool
fail_one (const struct form *f, unsigned kinds, int err, uint64_t call)
{
  bool failed, sticks;
  struct layer *disk;

  start (f, 16 << 20);
  change (4, 6);
  rig_flush (&rig);
  memcpy (was, rig.content, rig.size);
  memory_fail (&rig.control, kinds, call, err);
  disk = image_open_disk (rig.im, "take/x");
  wait_for_end ();
  failed = rig.control.failed > 0;
  memory_fail_no_more (&rig.control);
  rig_compare (&rig);
  sticks = image_flush (rig.im) == -1;
  if (disk != NULL) {
    CHECK_OK (layer_read (disk, is, rig.size, (struct guest_off) { 0 }));
    CHECK (memcmp (is, was, rig.size) == 0);
    image_close_disk (disk);
  }
  else if (err == ENOSPC)
    CHECK (!sticks);
  CHECK_EQ (count_snapshots (), f->snapshot + (disk != NULL));
  if (!sticks) {
    change (5, 6);
    end ();
    return failed;
  }
  (void) rig_close_only (&rig);
  free (was);
  free (is);
  was = is = NULL;
  free ((void *) rig.base);
  rig_free (&rig);
  return failed;
}

static void
test_failing (const struct form *f)
{
  static const struct {
    unsigned kinds;
    int err;
  } faults[] = {
    { MEMORY_WRITE | MEMORY_ZERO | MEMORY_RESIZE | MEMORY_ALLOCATE, ENOSPC },
    { MEMORY_READ, EIO }, { MEMORY_CHANGES, EIO },
  };
  uint64_t call;
  unsigned i;

  for (i = 0; i < sizeof faults / sizeof faults[0]; ++i) {
    for (call = 1; !check_any_failed () &&
           fail_one (f, faults[i].kinds, faults[i].err, call); ++call)
      continue;
    CHECK (call > (faults[i].kinds == MEMORY_READ ? 1 : 3));
  }
}

/* -------------------------------------------------------------------- threads */

#define WRITERS 3

static double until;

/* Blocks of 2 KiB whose 8 byte words all are the number of one write. */
#define BLOCK 2048

static _Atomic uint64_t begun[WRITERS], answered[WRITERS];

/* Each has blocks in turns of its own; writes one after the other. */
static void *
writer_main (void *opaque)
{
  const unsigned me = (uintptr_t) opaque;
  const uint64_t nr = rig.size / BLOCK / WRITERS;
  uint8_t buf[BLOCK];
  uint64_t i;
  unsigned k;

  for (i = 1; seconds () < until && !check_any_failed (); ++i) {
    for (k = 0; k < BLOCK; k += 8)
      put_be64 (buf + k, i);
    atomic_store (&begun[me], i);
    CHECK_OK (image_write (rig.im, buf, BLOCK, (struct guest_off) {
          (i % nr * WRITERS + me) * BLOCK }, 0));
    atomic_store (&answered[me], i);
  }
  return NULL;
}

/* Blocks are written in turns: so what a snapshot has of a writer is all up to
 * one number, and that number is between what was answered and what had begun.
 */
static void
check_point (const uint8_t *content, const uint64_t *at_least,
             const uint64_t *at_most)
{
  const uint64_t nr = rig.size / BLOCK / WRITERS;
  unsigned me, k;

  for (me = 0; me < WRITERS; ++me) {
    uint64_t last = 0, i;

    for (i = 0; i < nr; ++i) {
      const uint64_t n = get_be64 (content + (i * WRITERS + me) * BLOCK);

      if (n > last)
        last = n;
    }
    CHECK (last >= at_least[me] && last <= at_most[me]);
    for (i = 0; i < nr; ++i) {
      const uint8_t *p = content + (i * WRITERS + me) * BLOCK;
      const uint64_t n = get_be64 (p), should = last - (last - i) % nr;

      for (k = 0; k < BLOCK; k += 8)
        CHECK_EQ (get_be64 (p + k), n);
      if (last >= nr)
        CHECK_EQ (n, should);
    }
  }
}

#define TAKEN 12

static void
test_threads (const struct form *f, double length)
{
  uint64_t at_least[WRITERS], at_most[WRITERS];
  pthread_t thread[WRITERS];
  uint8_t *content[TAKEN];
  char name[40];
  unsigned nr = 0, i, k;

  start (f, 16 << 20);
  rig_zero (&rig, 0, rig.size, 0);
  image_free_leaks (rig.im);
  for (k = 0; k < WRITERS; ++k)
    begun[k] = answered[k] = 0;
  until = seconds () + length;
  for (k = 0; k < WRITERS; ++k)
    pthread_create (&thread[k], NULL, writer_main, (void *) (uintptr_t) k);
  while (seconds () < until && nr < TAKEN && !check_any_failed ()) {
    struct layer *disk;

    for (k = 0; k < WRITERS; ++k)
      at_least[k] = answered[k];
    snprintf (name, sizeof name, IMAGE_TAKE_PREFIX "t%u", nr);
    disk = image_open_disk (rig.im, name);
    CHECK (disk != NULL);
    if (disk == NULL)
      break;
    for (k = 0; k < WRITERS; ++k)
      at_most[k] = begun[k];
    content[nr] = must_have (malloc (rig.size));
    CHECK_OK (layer_read (disk, content[nr], rig.size,
                          (struct guest_off) { 0 }));
    check_point (content[nr++], at_least, at_most);
    image_close_disk (disk);
  }
  for (k = 0; k < WRITERS; ++k)
    pthread_join (thread[k], NULL);
  for (i = 0; i < nr; ++i) {
    snprintf (name, sizeof name, IMAGE_SNAPSHOT_PREFIX "t%u", i);
    compare (name, content[i]);
    free (content[i]);
  }
  printf ("%s: %u snapshots\n", rig.what, nr);
  CHECK (nr > 0);
  end ();
}

int
main (void)
{
  static const struct form threaded[] = {
    { .version = 3, .bits = 9 },
    { .version = 2, .bits = 12, .backing = true },
    { .version = 3, .bits = 14, .extended = true },
    { .version = 3, .bits = 12, .compress = 1 },
    { .version = 3, .bits = 13, .many = true },
  };
  const double length = test_seconds (2) / 4;
  unsigned i;

  check_time_limit (600);
  for (i = 0; i < FORMS && !check_any_failed (); ++i)
    test_form (&forms[i], i + 1);
  test_leaks ();
  test_refused ();
  test_one_bit ();
  test_read_only ();
  test_shared ();
  test_refcount ();
  test_memory (false);
  test_memory (true);
  test_no_space ();
  test_header_no_space ();
  test_damaged (false);
  test_damaged (true);
  test_failing (&forms[0]);
  test_failing (&forms[5]);
  test_failing (&forms[8]);
  for (i = 0; i < 4 && !check_any_failed (); ++i)
    test_threads (&threaded[i], length);
  return check_result ();
}
