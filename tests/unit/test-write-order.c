/* SPDX-License-Identifier: BSD-3-Clause */

/* Requests that meet: one is held up inside a call of the storage while
 * others run, at the moments where that has hurt data elsewhere.
 */

#include <config.h>

#include <stdlib.h>

#include "check.h"
#include "disk/read.h"
#include "random.h"
#include "rig.h"
#include "turns.h"

#define CLUSTER (UINT64_C (1) << 16)
#define CLUSTERS 64

static struct rig rig;
static uint8_t base[CLUSTERS * CLUSTER];

/* The gate: the next call of these kinds that touches this range of the host
 * stops there.
 */
static struct {
  unsigned kinds;
  uint64_t from, to;
} gate;

static void
pass_gate (void *opaque, const struct memory_call *call)
{
  if (!(call->kind & gate.kinds) || call->offset >= gate.to ||
      call->offset + call->count < gate.from)
    return;
  gate.kinds = 0;
  turns_stop ("gate");
}

static void
close_gate (unsigned kinds, uint64_t from, uint64_t count)
{
  gate.kinds = kinds;
  gate.from = from;
  gate.to = from + count;
}

/* A request of another thread; the model is not changed. */
enum what { READ, WRITE, ZERO, ZERO_TRIM, TRIM, FLUSH };

struct other {
  unsigned thread;
  enum what what;
  uint64_t offset, count, seed;
  uint8_t *buf;
  int r;
};

static void
other_main (void *opaque)
{
  struct other *o = opaque;
  const struct guest_off at = { o->offset };

  switch (o->what) {
  case READ:
    o->r = layer_read (rig.live, o->buf, o->count, at);
    break;
  case WRITE:
    build_pattern (o->buf, o->count, o->seed);
    o->r = image_write (rig.im, o->buf, o->count, at, 0);
    break;
  case ZERO:
    o->r = image_zero (rig.im, o->count, at, 0);
    break;
  case ZERO_TRIM:
    o->r = image_zero (rig.im, o->count, at, IMAGE_MAY_TRIM);
    break;
  case TRIM:
    o->r = image_trim (rig.im, o->count, at, 0);
    break;
  case FLUSH:
    o->r = image_flush (rig.im);
    break;
  }
}

/* Have it go on as far as it can. */
static void
go_on (const struct other *o, enum turn expected)
{
  CHECK_EQ (turns_run (o->thread, TURNS_NO_STOP, false), expected);
}

/* A request that comes to the gate, or is blocked. */
static void
start (struct other *o, unsigned thread, enum turn expected, enum what what,
       uint64_t offset, uint64_t count, uint64_t seed)
{
  *o = (struct other) {
    .thread = thread, .what = what, .offset = offset, .count = count,
    .seed = seed, .buf = malloc (count + 1),
  };
  turns_give (thread, other_main, o);
  go_on (o, expected);
}

static void
join (struct other *o)
{
  if (turns_state (o->thread) != TURN_OVER)
    go_on (o, TURN_OVER);
  CHECK_OK (o->r);
}

/* The model knows of it now. */
static void
apply (const struct other *o)
{
  if (o->what == WRITE)
    memcpy (rig.content + o->offset, o->buf, o->count);
  else
    memset (rig.content + o->offset, 0, o->count);
}

/* The first half of the disk holds data. */
static void
open_image (bool extended, bool backing)
{
  struct builder b;
  uint64_t i;

  build_start (&b, 3, 16, extended, COMPRESSION_DEFLATE,
               CLUSTERS * CLUSTER);
  for (i = 0; i < CLUSTERS / 2; ++i)
    build_entry (&b, i, build_data (&b, i + 1), extended ? UINT32_MAX : 0);
  if (backing)
    build_backing (&b, "raw");
  build_finish (&b);
  rig_init (&rig, "order", &b);
  build_free (&b);
  rig.cache_size = 1 << 20;
  if (backing)
    rig_set_base (&rig, base, sizeof base, true);
  rig_open (&rig);
  rig.control.hook = pass_gate;
}

static void
close_image (void)
{
  rig_compare (&rig);
  rig_close (&rig);
  rig_free (&rig);
}

/* Many writes, so that every free cluster is handed out, and flushes.  None
 * follows another, since single clusters are of no use for such.
 */
static void
use_up_space (uint64_t seed)
{
  uint64_t i;

  rig_trim (&rig, CLUSTERS / 2 * CLUSTER, CLUSTERS / 2 * CLUSTER);
  for (i = 0; i < CLUSTERS / 2; ++i) {
    const uint64_t cluster = CLUSTERS / 2 + i * 7 % (CLUSTERS / 2);

    rig_write (&rig, cluster * CLUSTER, CLUSTER, seed + i);
    rig_flush (&rig);
  }
}

/* I4: a reader has found the host cluster, and is slow.  Meanwhile the guest
 * cluster is trimmed, that is flushed, and others are written: the reader
 * must not see what is theirs.
 */
static void
test_slow_reader (void)
{
  uint8_t old[4096];
  struct other o;
  uint64_t host;

  open_image (false, false);
  memcpy (old, rig.content + 5 * CLUSTER, sizeof old);
  host = rig_host (&rig, 5 * CLUSTER);
  close_gate (MEMORY_READ, host, CLUSTER);
  start (&o, 0, TURN_READY, READ, 5 * CLUSTER, sizeof old, 0);
  rig_trim (&rig, 5 * CLUSTER, CLUSTER);
  rig_flush (&rig);
  use_up_space (100);
  use_up_space (200);
  CHECK (rig.disk.data[host] == old[0]);
  join (&o);
  CHECK (memcmp (o.buf, old, sizeof old) == 0);
  free (o.buf);
  /* Now it may be used. */
  rig_flush (&rig);
  use_up_space (300);
  close_image ();
  CHECK_EQ (rig.control.failed, 0);
}

/* I4: the same with a writer in place, which would write over somebody else's
 * data.
 */
static void
check_slow_writer (enum what what)
{
  struct other o;
  uint64_t host;

  open_image (false, false);
  host = rig_host (&rig, 5 * CLUSTER);
  close_gate (MEMORY_WRITE, host, CLUSTER);
  start (&o, 0, TURN_READY, WRITE, 5 * CLUSTER + 512, 4096, 77);
  if (what == TRIM)
    rig_trim (&rig, 5 * CLUSTER, CLUSTER);
  else
    rig_zero (&rig, 5 * CLUSTER, CLUSTER, IMAGE_MAY_TRIM);
  rig_flush (&rig);
  use_up_space (100);
  /* Nor may this one get it and be written to in part. */
  rig_write (&rig, 5 * CLUSTER, 512, 4);
  rig_flush (&rig);
  join (&o);
  free (o.buf);
  rig_compare (&rig);
  rig_flush (&rig);
  use_up_space (200); /* now it may be used */
  close_image ();
}

/* Two writes to parts of one unallocated cluster: it is allocated once, and
 * neither is lost, whichever is held up.
 */
static void
check_two_writes (bool extended, bool backing, uint64_t first, uint64_t second)
{
  const uint64_t at = 40 * CLUSTER;
  struct other a, b;
  uint64_t host;

  open_image (extended, backing);
  rig_write (&rig, 41 * CLUSTER, 1, 1); /* the table is there */
  close_gate (MEMORY_WRITE, atomic_load (&rig.disk.size) / 2, UINT64_MAX / 2);
  start (&a, 0, TURN_READY, WRITE, at + first, 3000, 5);
  start (&b, 1, TURN_BLOCKED, WRITE, at + second, 3000, 6);
  /* Others are not held up. */
  rig_write (&rig, 44 * CLUSTER, CLUSTER, 1);
  rig_write (&rig, 3 * CLUSTER, CLUSTER, 1);
  rig_compare_range (&rig, 0, 40 * CLUSTER);
  rig_compare_range (&rig, 41 * CLUSTER, CLUSTER);
  join (&a);
  join (&b);
  apply (&a);
  apply (&b);
  host = rig_host (&rig, at + first);
  CHECK_EQ (rig_host (&rig, at + second) - second, host - first);
  free (a.buf);
  free (b.buf);
  close_image ();
}

static void
test_two_writes (void)
{
  int i;

  for (i = 0; i < 4; ++i) {
    check_two_writes (i & 1, i & 2, 4096, 20000);
    check_two_writes (i & 1, i & 2, 61000, 1);
    check_two_writes (i & 1, i & 2, 8192, 12288);
  }
}

/* Two writes that need the same L2 table, which there is not yet, or which a
 * snapshot has as well: it is made once.
 */
static void
check_one_table (bool shared)
{
  struct other a, b;
  struct builder image;
  uint64_t state = 1;

  build_start (&image, 3, 9, false, COMPRESSION_DEFLATE, 1 << 17);
  if (shared) {
    build_entry (&image, 64 + 7, build_data (&image, 1), 0);
    build_snapshot (&image, 0, &state);
  }
  build_finish (&image);
  rig_init (&rig, "one table", &image);
  build_free (&image);
  rig_open (&rig);
  rig.control.hook = pass_gate;
  close_gate (MEMORY_ALLOCATE, 0, UINT64_MAX);
  start (&a, 0, TURN_READY, WRITE, 64 * 512 + 100, 300, 5);
  start (&b, 1, TURN_BLOCKED, WRITE, 80 * 512 + 100, 300, 6);
  join (&a);
  join (&b);
  apply (&a);
  apply (&b);
  free (a.buf);
  free (b.buf);
  close_image ();
}

/* Part of a cluster is zeroed beside a write that allocates it (QEMU 7.2
 * corrupts the image there): both are there in the end.
 */
static void
check_zero_beside_write (bool extended, bool backing, enum what what)
{
  const uint64_t at = 40 * CLUSTER;
  struct other a, b;

  open_image (extended, backing);
  rig_write (&rig, 41 * CLUSTER, 1, 1);
  close_gate (MEMORY_WRITE, atomic_load (&rig.disk.size) / 2, UINT64_MAX / 2);
  start (&a, 0, TURN_READY, WRITE, at + 4096, 3000, 5);
  /* Nothing is to be done to what reads as zeros, nor to part of a granule. */
  start (&b, 1, backing && (what != TRIM || extended) ? TURN_BLOCKED
         : TURN_OVER, what, at + 32768, 16384, 0);
  join (&a);
  join (&b);
  apply (&a);
  if (what != TRIM || extended)
    apply (&b);
  rig_compare_range (&rig, at, CLUSTER);
  free (a.buf);
  free (b.buf);
  close_image ();
}

/* All of the cluster is zeroed or trimmed: either comes first. */
static void
check_zero_over_write (bool extended, bool backing, enum what what)
{
  const uint64_t at = 40 * CLUSTER;
  struct other a, b;
  uint8_t buf[3000];

  open_image (extended, backing);
  rig_write (&rig, 41 * CLUSTER, 1, 1);
  close_gate (MEMORY_WRITE, atomic_load (&rig.disk.size) / 2, UINT64_MAX / 2);
  start (&a, 0, TURN_READY, WRITE, at + 4096, 3000, 5);
  start (&b, 1, backing ? TURN_BLOCKED : TURN_OVER, what, at, CLUSTER, 0);
  join (&a);
  join (&b);
  apply (&b);
  CHECK_OK (layer_read (rig.live, buf, sizeof buf, (struct guest_off) {
        at + 4096 }));
  if (buf[0] != 0 || buf[2999] != 0)
    apply (&a);
  free (a.buf);
  free (b.buf);
  close_image ();
}

static void
test_zero_and_write (void)
{
  static const enum what whats[] = { ZERO, ZERO_TRIM, TRIM };
  int i, w;

  for (w = 0; w < 3; ++w) {
    for (i = 0; i < 4; ++i) {
      check_zero_beside_write (i & 1, i & 2, whats[w]);
      check_zero_over_write (i & 1, i & 2, whats[w]);
    }
  }
}

/* A flush does not wait for requests that run beside it, nor holds up any; and
 * what it answers for is there.
 */
static void
test_flush_beside (void)
{
  struct other a, f;

  open_image (false, false);
  close_gate (MEMORY_WRITE, rig_host (&rig, 5 * CLUSTER), CLUSTER);
  start (&a, 0, TURN_READY, WRITE, 5 * CLUSTER, 4096, 5);
  rig_write (&rig, 50 * CLUSTER, 4096, 9);
  rig_flush (&rig);
  join (&a);
  apply (&a);
  free (a.buf);

  rig_write (&rig, 51 * CLUSTER, 4096, 9);
  close_gate (MEMORY_FLUSH, 0, UINT64_MAX);
  start (&f, 0, TURN_READY, FLUSH, 0, 0, 0);
  rig_write (&rig, 52 * CLUSTER, 4096, 9);
  rig_write (&rig, 3 * CLUSTER, 4096, 9);
  rig_trim (&rig, 6 * CLUSTER, CLUSTER);
  rig_compare (&rig);
  join (&f);
  free (f.buf);
  close_image ();
}

/* Two flushes at once: the second one asks for what was written after the
 * first began, so that it must flush once more.
 */
static void
test_flush_flush (void)
{
  struct other f, g;
  uint64_t flushes;

  open_image (false, false);
  rig_write (&rig, 3 * CLUSTER, 4096, 1);
  close_gate (MEMORY_FLUSH, 0, UINT64_MAX);
  start (&f, 0, TURN_READY, FLUSH, 0, 0, 0);
  flushes = rig.control.flushes;
  rig_write (&rig, 4 * CLUSTER, 4096, 2);
  start (&g, 1, TURN_BLOCKED, FLUSH, 0, 0, 0);
  join (&f);
  join (&g);
  CHECK_EQ (rig.control.flushes, flushes + 1);
  free (f.buf);
  free (g.buf);
  close_image ();
}

/* A cluster is read while it is being filled, and while it is mapped: what
 * the guest sees is the old or the new, whole.
 */
static void
test_read_beside_fill (void)
{
  const uint64_t at = 40 * CLUSTER;
  struct other a;

  open_image (false, true);
  rig_write (&rig, 41 * CLUSTER, 1, 1);
  close_gate (MEMORY_WRITE, atomic_load (&rig.disk.size) / 2, UINT64_MAX / 2);
  start (&a, 0, TURN_READY, WRITE, at + 4096, 3000, 5);
  rig_compare_range (&rig, at, CLUSTER); /* still the backing file's */
  join (&a);
  apply (&a);
  rig_compare_range (&rig, at, CLUSTER);
  free (a.buf);
  close_image ();
}

int
main (void)
{
  check_time_limit (100);
  build_pattern (base, sizeof base, 4321);
  test_slow_reader ();
  check_slow_writer (TRIM);
  check_slow_writer (ZERO_TRIM);
  test_two_writes ();
  check_one_table (false);
  check_one_table (true);
  test_zero_and_write ();
  test_flush_beside ();
  test_flush_flush ();
  test_read_beside_fill ();
  turns_end ();
  return check_result ();
}
