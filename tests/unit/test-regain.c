/* SPDX-License-Identifier: BSD-3-Clause */

/* What the guest gives up comes back, though nobody flushes (I13): the file
 * stays within a bound, at each moment, in length and in the space it takes.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "rig.h"
#include "seconds.h"

#define MIB (UINT64_C (1) << 20)

/* What may wait to be had again: the least bound, and a step. */
#define WAITING ((64 + 16) * MIB)
/* The reserve, and tables. */
#define SLACK (12 * MIB)

enum way { TRIM, ZERO, ZERO_PARTS, REWRITE };

struct form {
  const char *what;
  unsigned version, bits;
  bool extended, backing, keep_discarded;
  unsigned compress_level;
  enum way way;
  uint64_t disk, piece; /* bytes */
};

static const struct form forms[] = {
  { .what = "trim", .version = 3, .bits = 16, .way = TRIM,
    .disk = 64 * MIB, .piece = MIB },
  { .what = "zero", .version = 3, .bits = 16, .way = ZERO,
    .disk = 64 * MIB, .piece = MIB },
  { .what = "zero, unaligned", .version = 3, .bits = 16, .way = ZERO_PARTS,
    .disk = 64 * MIB, .piece = MIB },
  { .what = "v2", .version = 2, .bits = 16, .way = TRIM,
    .disk = 64 * MIB, .piece = MIB },
  { .what = "extended L2", .version = 3, .bits = 16, .extended = true,
    .way = TRIM, .disk = 64 * MIB, .piece = MIB },
  { .what = "discard=keep", .version = 3, .bits = 16, .keep_discarded = true,
    .way = TRIM, .disk = 64 * MIB, .piece = MIB },
  { .what = "backing", .version = 3, .bits = 16, .backing = true,
    .way = TRIM, .disk = 64 * MIB, .piece = MIB },
  { .what = "compress", .version = 3, .bits = 16, .compress_level = 1,
    .way = REWRITE, .disk = 64 * MIB, .piece = MIB },
  { .what = "2M clusters", .version = 3, .bits = 21, .way = TRIM,
    .disk = 128 * MIB, .piece = 64 * MIB },
  { .what = "512 byte clusters", .version = 3, .bits = 9, .way = TRIM,
    .disk = 4 * MIB, .piece = MIB },
};

static struct rig rig;
static uint8_t base[MIB];

static void
start (const struct form *f)
{
  struct builder b;

  build_start (&b, f->version, f->bits, f->extended, COMPRESSION_DEFLATE,
               f->disk);
  if (f->backing)
    build_backing (&b, "raw");
  build_finish (&b);
  rig_init (&rig, f->what, &b);
  build_free (&b);
  rig.cache_size = 4 << 20;
  rig.options.keep_discarded = f->keep_discarded;
  rig.options.compress_level = f->compress_level;
  rig.mixed = f->compress_level != 0;
  if (f->backing)
    rig_set_base (&rig, base, sizeof base, true);
  rig_open (&rig);
}

static void
give_up (const struct form *f, uint64_t offset)
{
  switch (f->way) {
  case TRIM:
    rig_trim (&rig, offset, f->piece);
    break;
  case ZERO:
    rig_zero (&rig, offset, f->piece, IMAGE_MAY_TRIM);
    break;
  case ZERO_PARTS:
    rig_zero (&rig, offset + 512, f->piece - 1024, IMAGE_MAY_TRIM);
    break;
  case REWRITE:
    break;
  }
}

static void
check_bound (const struct form *f, uint64_t bound)
{
  const uint64_t length = rig.disk.size;
  const uint64_t taken = rig.disk.blocks * MEMORY_DISK_BLOCK;

  if (length <= bound && taken <= bound)
    return;
  fprintf (stderr, "%s: length %" PRIu64 ", taken %" PRIu64 ", bound %" PRIu64
           "\n", f->what, length, taken, bound);
  exit (EXIT_FAILURE);
}

static void
test_form (const struct form *f)
{
  const uint64_t bound = f->disk + WAITING + SLACK;
  const uint64_t rounds = bound * 5 / 4 / f->piece;
  uint64_t i;

  start (f);
  for (i = 0; i < rounds; ++i) {
    const uint64_t offset = i * f->piece % f->disk;

    give_up (f, offset);
    check_bound (f, bound);
    rig_write (&rig, offset, f->piece, i);
    check_bound (f, bound);
  }
  rig_compare (&rig);
  rig_close (&rig);
  check_bound (f, bound);
  rig_free (&rig);
}

/* Refcounts that can't be read keep nobody waiting. */
static void
test_stuck (void)
{
  struct builder b;
  uint64_t i;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1024 << 9);
  for (i = 0; i < 1024; ++i)
    build_entry (&b, i, build_data (&b, i), 0);
  build_finish (&b);
  rig_init (&rig, "stuck", &b);
  build_free (&b);
  rig.cache_size = 1 << 20;
  rig.options.max_freed = 1 << 9;
  rig_open (&rig); /* which reads all L2 tables */
  memory_fail_ever_after (&rig.control, MEMORY_READ, 1, EIO);
  for (i = 900; i < 910; ++i)
    rig_trim (&rig, i << 9, 1 << 9);
  CHECK (rig.control.failed > 0);
  memory_fail_no_more (&rig.control);
  rig_trim (&rig, 910 << 9, 1 << 9);
  rig_compare (&rig);
  rig_close (&rig);
  rig_free (&rig);
}

/* Who looks whether a lock is free finds that it is not, as while a snapshot is made;
 * who waits for it has it.
 */
static bool busy;

extern int __real_pthread_mutex_trylock (pthread_mutex_t *m);
extern int __wrap_pthread_mutex_trylock (pthread_mutex_t *m);

int
__wrap_pthread_mutex_trylock (pthread_mutex_t *m)
{
  return busy ? EBUSY : __real_pthread_mutex_trylock (m);
}

/* The file can't grow: each write takes what was trimmed before it.  Or it is not to
 * grow since little may wait.
 */
static void
test_busy (bool full)
{
  struct builder b;
  uint64_t i;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1024 << 9);
  for (i = 0; i < 1024; ++i)
    build_entry (&b, i, build_data (&b, i), 0);
  build_finish (&b);
  rig_init (&rig, "busy", &b);
  build_free (&b);
  rig.cache_size = 1 << 20;
  if (!full)
    rig.options.max_freed = 1 << 9;
  rig_open (&rig);
  if (full)
    rig.control.limit = atomic_load (&rig.disk.size);
  busy = true;
  for (i = 0; i < 1024; i += 128) {
    rig_trim (&rig, i << 9, 128 << 9);
    rig_write (&rig, i << 9, 128 << 9, i + 1);
  }
  busy = false;
  rig_compare (&rig);
  rig_close (&rig);
  rig_free (&rig);
}

int
main (void)
{
  unsigned i;

  check_time_limit (300);
  for (i = 0; i < sizeof forms / sizeof forms[0]; i += TEST_EACH (5))
    test_form (&forms[i]);
  test_stuck ();
  test_busy (true);
  test_busy (false);
  return check_result ();
}
