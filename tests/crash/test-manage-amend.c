/* SPDX-License-Identifier: BSD-3-Clause */

/* Power cuts and failing storage while an image gets another version or other
 * features: in each state it is sound, reads the same, and has all of the old
 * features or all of the new ones.  What would be lost is refused.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "check.h"
#include "checker.h"
#include "crash-storage.h"
#include "disk/read.h"
#include "image.h"
#include "maker.h"
#include "manage/amend.h"
#include "memory-storage.h"
#include "must-have.h"
#include "power-cut.h"
#include "qcow2/qcow2.h"
#include "random.h"
#include "seen.h"

static char what[256]; /* is looked at */
static const struct made *made;
static struct header before, after;
static uint64_t states, old_ones, new_ones;
static struct seen seen; /* of this command */

/* ------------------------------------------------------------------- judging */

static bool
is_like (const struct header *a, const struct header *b)
{
  return a->version == b->version && a->compatible == b->compatible &&
    a->incompatible == b->incompatible && a->compression == b->compression &&
    strcmp (a->backing_name, b->backing_name) == 0 &&
    strcmp (a->backing_format, b->backing_format) == 0;
}

static void
read_header (const uint8_t *bytes, uint64_t size, struct header *h)
{
  struct storage *s = memory_storage_new ("state", bytes, size, NULL);

  CHECK_OK (qcow2_read_header (s, h));
  storage_close (s);
}

static void
check_content (const uint8_t *bytes, uint64_t size)
{
  struct storage *storages[2] = {
    memory_storage_new ("state", bytes, size, NULL),
  };
  struct image *im;
  struct layer *disk;
  uint8_t *buf = must_have (malloc (made->disk_size));

  if (made->backing != NULL)
    storages[1] = memory_storage_new ("backing", made->backing,
                                      made->backing_size, NULL);
  im = must_have (image_open_storages (storages, made->backing != NULL ? 2 : 1,
                                       CACHE_MIN_BYTES));
  disk = must_have (image_open_disk (im, ""));
  CHECK_OK (layer_read (disk, buf, made->disk_size, (struct guest_off) { 0 }));
  if (memcmp (buf, made->content, made->disk_size) != 0)
    check_failed (__FILE__, __LINE__, "%s: it reads otherwise", what);
  image_close_disk (disk);
  (void) image_close (im);
  free (buf);
}

static void
judge (const uint8_t *bytes, uint64_t size)
{
  struct check_result r;
  struct header h;

  if (seen_before (&seen, bytes, size))
    return;
  read_header (bytes, size, &h);
  old_ones += is_like (&h, &before);
  new_ones += is_like (&h, &after);
  if (!is_like (&h, &before) && !is_like (&h, &after))
    check_failed (__FILE__, __LINE__, "%s: neither as before nor as after",
                  what);
  check_image (bytes, size, 0, &r);
  if (!check_is_sound (&r))
    check_failed (__FILE__, __LINE__, "%s: %s", what, r.why);
  check_content (bytes, size);
  states++;
}

/* --------------------------------------------------------------------- amending */

static const bool on = true;
static const enum compression zstd = COMPRESSION_ZSTD;

static const struct command {
  const char *name;
  struct amend_options options;
} commands[] = {
  { "v2", { .version = 2 } },
  { "v3", { .version = 3 } },
  { "lazy", { .version = 3, .lazy = &on } },
  { "zstd", { .compression = &zstd } },
  { "all", { .version = 3, .lazy = &on, .compression = &zstd } },
};

static int
amend (struct crash_disk *disk, const struct command *c)
{
  struct storage *s = crash_storage_open (disk, "test");
  const int r = amend_image (s, &c->options);

  storage_close (s);
  return r;
}

static void
cut_everywhere (const struct crash_disk *disk)
{
  static struct disk_state state;
  struct cut *c = cut_new (made->bytes, made->size, disk->op, disk->nr);
  uint64_t k, i;

  for (k = 0; k <= disk->nr && !check_any_failed (); ++k) {
    cut_advance (c, k);
    for (i = 0; i < 4; ++i) {
      const struct landed l = {
        i == 0 ? LANDED_NONE : i == 1 ? LANDED_ALL : LANDED_TORN,
        mix (k * 4 + i),
      };

      if (i > 0 && cut_pending (c) == 0)
        break;
      cut_state (c, l, &state);
      judge (state.bytes, state.size);
    }
  }
  cut_free (c);
}

static void
fail_everywhere (const struct command *c)
{
  struct crash_disk disk;
  uint64_t call = 1, failures;
  int r;

  do {
    crash_disk_init (&disk, made->bytes, made->size);
    disk.fault = (struct crash_fault) {
      .call = call++, .kinds = FAULT_WRITE | FAULT_FLUSH, .err = EIO,
    };
    r = amend (&disk, c);
    failures = disk.failures;
    CHECK_EQ (r, failures > 0 ? -1 : 0);
    judge (disk.bytes, disk.size);
    crash_disk_free (&disk);
  } while (failures > 0 && !check_any_failed ());
}

/* Returns whether it could be done. */
static bool
try_command (const struct command *c)
{
  struct crash_disk disk;
  bool done;

  snprintf (what, sizeof what, "%s, %s", made->name, c->name);
  crash_disk_init (&disk, made->bytes, made->size);
  read_header (made->bytes, made->size, &before);
  done = amend (&disk, c) == 0;
  if (done) {
    read_header (disk.bytes, disk.size, &after);
    if (c->options.version != 0)
      CHECK_EQ (after.version, c->options.version);
    if (c->options.lazy != NULL)
      CHECK_EQ (after.compatible, QCOW2_COMPAT_LAZY_REFCOUNTS);
    if (c->options.compression != NULL)
      CHECK_EQ (after.compression, *c->options.compression);
    judge (disk.bytes, disk.size);
    cut_everywhere (&disk);
    fail_everywhere (c);
    seen_forget (&seen);
  }
  else {
    CHECK_EQ (disk.changes, 0);
    if (error_errno () != ENOTSUP)
      check_failed (__FILE__, __LINE__, "%s: %s", what, error_message ());
  }
  crash_disk_free (&disk);
  return done;
}

/* Images, and what can be done to them. */
static const struct {
  const char *image, *done;
} images[] = {
  { "v2-c512-back", "v2 v3 lazy all" },
  { "v2-c512-snapall-back", "v2 v3 lazy all" },
  { "v2-c1k-comp-snap-shortback", "v2 v3 lazy" },
  { "v2-c4k-holes", "v2 v3 lazy all" },
  { "v3-c512-back", "v3 lazy zstd all" },
  { "v3-c512-snap-comp", "v3 lazy" },
  { "v3-c1k-r4-comp", "v3 lazy" },
  { "v3-c16k-ext-back", "v3 lazy zstd all" },
  { "v3-c512-comp-zstd-back", "v3 lazy zstd all" },
  { "v3-c4k-r32-bitmap", "v3 lazy zstd all" },
};

static void
try_image (const char *image, const char *expected)
{
  char done[64] = "";
  struct made m;
  unsigned i;

  if (!made_image (&m, image))
    abort ();
  made = &m;
  for (i = 0; i < sizeof commands / sizeof commands[0]; ++i)
    if (try_command (&commands[i])) {
      strcat (done, done[0] != '\0' ? " " : "");
      strcat (done, commands[i].name);
    }
  printf ("%s: %s\n", image, done);
  CHECK_STR (done, expected);
  made_free (&m);
}

/* A flag that version 2 does not have is damage, and would be zeros. */
static void
try_flag (void)
{
  struct crash_disk disk;
  struct made m;
  uint64_t l1, l2;
  unsigned i;

  if (!made_image (&m, "v2-c512-back"))
    abort ();
  made = &m;
  l1 = get_be64 (m.bytes + HEADER_L1_TABLE_OFFSET);
  l2 = get_be64 (m.bytes + l1) & QCOW2_ENTRY_OFFSET_MASK;
  for (i = 0; get_be64 (m.bytes + l2 + 8 * i) == 0; ++i)
    continue;
  m.bytes[l2 + 8 * i + 7] |= QCOW2_L2_ZERO;
  crash_disk_init (&disk, m.bytes, m.size);
  CHECK_EQ (amend (&disk, &commands[1]), -1);
  CHECK_ERROR (EIO, "damaged");
  CHECK_EQ (disk.changes, 0);
  crash_disk_free (&disk);
  made_free (&m);
}

/* Tables of a damaged image don't tell what it has. */
static void
try_damage (void)
{
  struct crash_disk disk;
  struct made m;
  uint64_t table, block;

  if (!made_image (&m, "v3-c512-back"))
    abort ();
  made = &m;
  table = get_be64 (m.bytes + HEADER_REFCOUNT_TABLE_OFFSET);
  block = get_be64 (m.bytes + table);
  memset (m.bytes + block, 0, 8); /* refcounts of the header and more */
  crash_disk_init (&disk, m.bytes, m.size);
  CHECK_EQ (amend (&disk, &commands[3]), -1);
  CHECK_ERROR (EIO, "damaged");
  CHECK_EQ (disk.changes, 0);
  crash_disk_free (&disk);
  made_free (&m);
}

int
main (void)
{
  unsigned i;

  check_time_limit (300);
  for (i = 0; i < sizeof images / sizeof images[0]; ++i)
    try_image (images[i].image, images[i].done);
  try_flag ();
  try_damage ();
  printf ("%" PRIu64 " states, %" PRIu64 " as before, %" PRIu64 " as after\n",
          states, old_ones, new_ones);
  CHECK (old_ones > 0 && new_ones > 0);
  return check_result ();
}
