/* SPDX-License-Identifier: BSD-3-Clause */

/* References in excess, as a writer leaves them that was killed: they are
 * lowered, what is leaked altogether stays, and so does everything if anything
 * else is wrong.  And what a check would read is known before.
 */

#include <config.h>

#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "checker.h"
#include "crash-storage.h"
#include "maker.h"
#include "qcow2/check/check.h"
#include "qcow2/check/repair.h"
#include "qcow2/check/size.h"
#include "qcow2/entry.h"

static struct made m;
static struct crash_disk disk;
static struct storage *s;

/* The word of this cluster's refcount, which has a block. */
static uint8_t *
find_word (uint64_t cluster, uint64_t *i)
{
  const uint64_t per_block = (m.cluster_size * 8) >> m.refcount_order;
  const uint64_t table = get_be64 (disk.bytes + 48);
  const uint64_t block = get_be64 (disk.bytes + table +
                                   cluster / per_block * 8);

  *i = cluster % per_block;
  return disk.bytes + block + (*i << m.refcount_order) / 64 * 8;
}

static uint64_t
refcount (uint64_t cluster)
{
  uint64_t i;
  const uint8_t *p = find_word (cluster, &i);

  return entry_get_refcount (m.refcount_order, get_be64 (p), i);
}

static void
set_refcount (uint64_t cluster, uint64_t value)
{
  uint64_t i;
  uint8_t *p = find_word (cluster, &i);

  put_be64 (p, entry_put_refcount (m.refcount_order, get_be64 (p), i, value));
}

static void
start (const char *name)
{
  if (!made_image (&m, name))
    abort ();
  crash_disk_init (&disk, m.bytes, m.size);
  s = crash_storage_open (&disk, "test");
}

static void
end (void)
{
  storage_close (s);
  crash_disk_free (&disk);
  made_free (&m);
}

/* Some clusters that are in use, and free ones. */
static void
spoil (uint64_t *used, uint64_t *leaked)
{
  const uint64_t nr = m.size / m.cluster_size;
  uint64_t i;

  *used = *leaked = 0;
  for (i = nr; i-- > 0;) {
    if (refcount (i) == 0)
      *leaked = i;
    else if (i > 10 && *used == 0)
      *used = i;
  }
  CHECK (*used > 0 && *leaked > 0);
  set_refcount (*leaked, 1);
}

static void
repair (struct repair_report *r)
{
  const struct check_options options = { 0 };

  CHECK_OK (repair_storage (s, REPAIR_EXCESS, &options, r));
}

static void
test_lowered (const char *name)
{
  struct repair_report r;
  struct check_result c;
  uint64_t used, leaked, was;

  start (name);
  spoil (&used, &leaked);
  was = refcount (used);
  set_refcount (used, was + 1);
  repair (&r);
  CHECK (r.why_not == NULL);
  CHECK_EQ (refcount (used), was);
  CHECK_EQ (refcount (leaked), 1);
  check_image (disk.bytes, disk.size, 0, &c);
  if (!check_is_sound (&c))
    check_failed (__FILE__, __LINE__, "%s: %s", name, c.why);
  CHECK_EQ (c.leaks, 1);
  end ();
}

/* A refcount is too low. */
static void
test_errors (void)
{
  struct repair_report r;
  uint64_t used, leaked;

  start ("v3-c512-snap-comp-holes");
  spoil (&used, &leaked);
  set_refcount (used, 0);
  set_refcount (0, 2);
  repair (&r);
  CHECK (r.why_not != NULL);
  CHECK_EQ (refcount (used), 0);
  CHECK_EQ (refcount (0), 2);
  CHECK_EQ (refcount (leaked), 1);
  end ();
}

static bool
fits (uint64_t bytes)
{
  bool fit;

  CHECK_OK (check_tables_fit (s, bytes, &fit));
  return fit;
}

static void
test_size (void)
{
  start ("v3-c512-many-snap");
  CHECK (fits (UINT64_C (1) << 20));
  CHECK (!fits (40 * 512)); /* it has more L2 tables than that */
  CHECK (!fits (100));
  end ();
  start ("v3-c512-known-holes");
  CHECK (fits (20 * 512));
  end ();
}

int
main (void)
{
  check_time_limit (60);
  test_lowered ("v3-c512-snap-comp-holes");
  test_lowered ("v2-c512-snap-comp-holes");
  test_lowered ("v3-c16k-ext-snap-comp-holes-tail");
  test_errors ();
  test_size ();
  return check_result ();
}
