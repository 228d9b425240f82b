/* SPDX-License-Identifier: BSD-3-Clause */

/* What has changed since a snapshot up to a point in time: as it was at the point,
 * whatever changes while it is asked for; and errors once that can't be kept.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "must-have.h"
#include "random.h"
#include "rig.h"

static struct rig rig;
static uint64_t seed = 1;

/* ------------------------------------------------------------------- the image */

#define CLUSTERS 4096

/* With a snapshot, which the content of the disk is. */
static void
start (unsigned bits, bool extended, uint64_t memory)
{
  struct builder b;
  uint64_t i;

  build_start (&b, 3, bits, extended, COMPRESSION_DEFLATE,
               (uint64_t) CLUSTERS << bits);
  for (i = 0; i < 200; i += 2)
    build_entry (&b, i, build_data (&b, 1), extended ? UINT32_MAX : 0);
  build_snapshot (&b, 0, &seed);
  build_finish (&b);
  rig_init (&rig, "frozen", &b);
  build_free (&b);
  rig_open (&rig);
  CHECK_OK (image_allow_points (rig.im, 0, memory));
}

static void
end (void)
{
  rig_close (&rig);
  rig_free (&rig);
}

/* ------------------------------------------------------------------ the extents */

/* Extents as one byte of flags for each sector. */
struct painting {
  uint8_t *flags;
  uint64_t next;
};

static int
paint (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct painting *p = opaque;

  CHECK_EQ (offset, p->next);
  memset (p->flags + offset / 512, flags, length / 512);
  p->next += length;
  return 0;
}

/* Returns what layer_extents does. */
static int
paint_all (const struct layer *l, uint8_t *flags)
{
  struct painting p = { flags, 0 };

  return layer_extents (l, l->size, (struct guest_off) { 0 }, false, paint,
                        &p);
}

/* The caller frees it. */
static uint8_t *
flags_of (const struct layer *l)
{
  uint8_t *flags = must_have (calloc (l->size / 512, 1));

  CHECK_OK (paint_all (l, flags));
  return flags;
}

static void
write_at_random (unsigned times)
{
  while (times-- > 0) {
    const uint64_t at = random_below (&seed, rig.size / 512 - 128) * 512;
    const uint64_t count = 512 * (1 + random_below (&seed, 128));

    if (random_below (&seed, 4) > 0)
      rig_write (&rig, at, count, seed);
    else
      rig_zero (&rig, at, count, IMAGE_MAY_TRIM);
  }
}

/* ------------------------------------------------------------------------ tests */

/* What is said of each point is what was said of the live disk at that moment. */
static void
check_kept (unsigned bits, bool extended)
{
  enum { NR = 4 };
  struct layer *live, *point[NR];
  uint8_t *was[NR], *is;
  char name[64];
  unsigned i, k;

  start (bits, extended, 64 << 20);
  live = image_open_disk (rig.im, "changed/a");
  for (i = 0; i < NR; ++i) {
    write_at_random (10);
    snprintf (name, sizeof name, "changed/a/now/%u", i);
    point[i] = image_open_disk (rig.im, name);
    CHECK (point[i] != NULL);
    was[i] = flags_of (live);
    for (k = 0; k <= i; ++k) {
      write_at_random (5);
      is = flags_of (point[k]);
      CHECK (memcmp (is, was[k], rig.size / 512) == 0);
      free (is);
    }
    rig_flush (&rig);
  }
  for (i = 0; i < NR; ++i) {
    image_close_disk (point[i]);
    free (was[i]);
  }
  image_close_disk (live);
  end ();
}

static void
test_kept (void)
{
  check_kept (9, false);
  check_kept (12, false);
  check_kept (14, false); /* tables have several slices */
  check_kept (14, true);
}

/* A cluster changes while tables are looked up: at the so-maniest of them. */
static unsigned change_at;

int __real_cache_get (struct cache *c, struct storage *s, unsigned id,
                      struct host_off offset, uint32_t slice_bytes,
                      uint64_t ahead, struct cache_ref *ref);
int __wrap_cache_get (struct cache *c, struct storage *s, unsigned id,
                      struct host_off offset, uint32_t slice_bytes,
                      uint64_t ahead, struct cache_ref *ref);

int
__wrap_cache_get (struct cache *c, struct storage *s, unsigned id,
                  struct host_off offset, uint32_t slice_bytes, uint64_t ahead,
                  struct cache_ref *ref)
{
  if (change_at > 0 && --change_at == 0)
    rig_write (&rig, 0, 512, 99);
  return __real_cache_get (c, s, id, offset, slice_bytes, ahead, ref);
}

static void
test_meanwhile (void)
{
  unsigned at, left = 0;

  for (at = 1; left == 0; ++at) {
    struct layer *l;
    uint8_t *flags;

    start (12, false, 1 << 20);
    rig_write (&rig, 4096 * 8, 512, 7); /* so that the table is another one */
    l = image_open_disk (rig.im, "changed/a/now/one");
    change_at = at;
    flags = flags_of (l);
    left = change_at;
    change_at = 0;
    CHECK (flags[0] == EXTENT_HOLE && flags[8 * 8] == 0);
    free (flags);
    image_close_disk (l);
    end ();
  }
  CHECK (at > 3);
}

static int
ignore (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  (void) opaque;
  (void) offset;
  (void) length;
  (void) flags;
  return 0;
}

/* What can't be kept is an error, also where the live disk has again what the
 * snapshot has.
 */
static void
test_memory (void)
{
  struct layer *l;
  uint64_t i;

  start (9, false, 2000); /* two shadows of 512 bytes */
  rig_write (&rig, 512, 512, 3);
  l = image_open_disk (rig.im, "changed/a/now/one");
  CHECK_OK (layer_extents (l, l->size, (struct guest_off) { 0 }, false, ignore,
                           NULL));
  for (i = 64 * 512; i + 512 <= rig.size; i += 64 * 512)
    rig_write (&rig, i, 512, i);
  rig_zero (&rig, 512, 512, IMAGE_MAY_TRIM);
  CHECK (layer_extents (l, l->size, (struct guest_off) { 0 }, false, ignore,
                        NULL) == -1);
  CHECK_ERROR (EIO, "could not be kept");
  CHECK (layer_extents (l, 512, (struct guest_off) { 512 }, false, ignore,
                        NULL) == -1);
  CHECK_ERROR (EIO, "could not be kept");
  image_close_disk (l);
  end ();
}

/* What can't be opened takes no point. */
static void
test_refused (void)
{
  uint8_t sector[512];
  struct layer *l;

  start (12, false, 1 << 20);
  CHECK (image_open_disk (rig.im, "changed/none/now/one") == NULL);
  CHECK_ERROR (ENOENT, "no snapshot");
  CHECK (image_open_disk (rig.im, "changed/a/now/") == NULL);
  CHECK_ERROR (EINVAL, "token");
  CHECK (image_open_disk (rig.im, "now/one/bitmap/none") == NULL);
  CHECK_ERROR (ENOENT, "no bitmap");
  rig_write (&rig, 0, 512, 5);
  l = image_open_disk (rig.im, "now/one");
  CHECK_OK (layer_read (l, sector, sizeof sector, (struct guest_off) { 0 }));
  CHECK (memcmp (sector, rig.content, sizeof sector) == 0);
  image_close_disk (l);
  end ();
}

int
main (void)
{
  check_time_limit (200);
  test_kept ();
  test_meanwhile ();
  test_memory ();
  test_refused ();
  return check_result ();
}
