/* SPDX-License-Identifier: BSD-3-Clause */

/* manage/bitmap-set.c: bitmaps that follow a change of the disk have little room
 * for bits.  What was marked is dirty all the same; of each part either that
 * alone, or all.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "manage/bitmap-change.h"
#include "manage/bitmap-ranges.h"
#include "manage/bitmap-set.h"
#include "manage/create.h"
#include "memory-storage.h"
#include "qcow2/qcow2.h"
#include "random.h"

#define CLUSTER 512
#define GRANULE 512
#define DISK (UINT64_C (32) << 20)
#define NR_BITS (DISK / GRANULE)
#define PER_PART (CLUSTER * 8)

static struct memory_disk disk;
static struct memory_control control;
static uint8_t marked[NR_BITS], dirty[NR_BITS];

static struct storage *
open_disk (void)
{
  struct storage *s = memory_disk_open (&disk, "test", &control);

  CHECK (s != NULL);
  return s;
}

static void
add_bitmap (const char *name, bool enabled)
{
  static const struct bitmap_action actions[] = {
    { BITMAP_ADD, NULL }, { BITMAP_DISABLE, NULL },
  };
  const struct bitmap_change c = {
    .name = name, .action = actions, .nr = enabled ? 1 : 2,
    .granularity = GRANULE,
  };
  struct storage *s = open_disk ();

  CHECK_OK (bitmap_change (s, &c));
  storage_close (s);
}

static void
make (void)
{
  struct create_options o = CREATE_DEFAULTS;
  struct storage *s;

  memory_disk_init (&disk, NULL, 0);
  s = open_disk ();
  o.cluster_size = CLUSTER;
  o.size = DISK;
  CHECK_OK (create_image (s, &o));
  storage_close (s);
  add_bitmap ("a", true);
  add_bitmap ("disabled", false);
  add_bitmap ("c", true);
}

static void
set (uint8_t *bits, uint64_t start, uint64_t length)
{
  const uint64_t first = start / GRANULE;

  memset (bits + first, 1, (start + length - 1) / GRANULE + 1 - first);
}

static void
mark_some (struct bitmap_set *b, uint64_t seed)
{
  unsigned i;

  memset (marked, 0, sizeof marked);
  for (i = 0; i < 40; ++i) {
    const uint64_t start = random_below (&seed, DISK - 10000);
    const uint64_t length = 1 + random_below (&seed, 10000);

    CHECK_OK (bitmap_set_mark_enabled (b, start, length));
    set (marked, start, length);
  }
}

static void
write_set (struct bitmap_set *b, struct edit *e)
{
  struct edit_space space;
  struct refs refs;

  CHECK_OK (bitmap_set_plan (b));
  space.bytes = bitmap_set_bytes (b);
  CHECK_OK (edit_take (e, &space, 1));
  CHECK_OK (bitmap_set_fill (b, space.at));
  CHECK_OK (edit_switch (e));
  CHECK_OK (edit_open_refs (e, &refs));
  CHECK_OK (bitmap_set_drop (b, &refs));
  CHECK_OK (edit_write_refs (e, &refs));
  CHECK_OK (edit_end (e, &refs));
  refs_close (&refs);
}

/* With room for so many parts' bits, of all bitmaps. */
static void
mark_and_write (uint64_t room, uint64_t seed)
{
  struct storage *s = open_disk ();
  struct edit e;
  struct bitmap_set b;

  CHECK_OK (edit_open (&e, s));
  CHECK_OK (bitmap_set_read (&b, &e));
  CHECK_OK (bitmap_set_follow (&b, false));
  CHECK_EQ (b.max_bytes, BITMAP_SET_FOLLOW_BYTES);
  b.max_bytes = room * CLUSTER + CLUSTER - 1;
  mark_some (&b, seed);
  CHECK_EQ (b.bytes, room * CLUSTER);
  write_set (&b, &e);
  bitmap_set_free (&b);
  edit_close (&e);
  storage_close (s);
}

static int
note_dirty (void *opaque, uint64_t start, uint64_t length)
{
  (void) opaque;
  set (dirty, start, length);
  return 0;
}

static void
read_bitmap (const char *name)
{
  struct storage *s = open_disk ();
  struct header h;

  memset (dirty, 0, sizeof dirty);
  CHECK_OK (qcow2_read_header (s, &h));
  CHECK_OK (bitmap_ranges (s, &h, name, note_dirty, NULL));
  storage_close (s);
}

/* Returns how many parts have exact bits. */
static unsigned
check_bitmap (const char *name)
{
  unsigned i, exact = 0, full = 0;

  read_bitmap (name);
  for (i = 0; i < NR_BITS; i += PER_PART) {
    if (memcmp (dirty + i, marked + i, PER_PART) == 0)
      exact += memchr (marked + i, 1, PER_PART) != NULL;
    else {
      CHECK (memchr (dirty + i, 0, PER_PART) == NULL);
      CHECK (memchr (marked + i, 1, PER_PART) != NULL);
      full++;
    }
  }
  CHECK (full > 0);
  return exact;
}

int
main (void)
{
  uint64_t seed;

  check_time_limit (60);
  for (seed = 0; seed < 10; ++seed) {
    const uint64_t room = 2 * seed;

    make ();
    mark_and_write (room, seed);
    CHECK_EQ (check_bitmap ("a") + check_bitmap ("c"), room);
    read_bitmap ("disabled");
    CHECK (memchr (dirty, 1, sizeof dirty) == NULL);
    memory_disk_free (&disk);
  }
  return check_result ();
}
