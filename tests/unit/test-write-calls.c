/* SPDX-License-Identifier: BSD-3-Clause */

/* What a write costs: which calls of the storage it takes, and how often a
 * flush waits for the disk.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "random.h"
#include "rig.h"

static struct rig rig;
static struct memory_log call_log = MEMORY_LOG_INIT;
static uint8_t base[20 << 20];

struct form {
  unsigned version, bits;
  bool extended, backing;
};

#define CLUSTERS 200

/* The first 20 clusters hold data. */
static void
start (const struct form *f)
{
  const uint64_t cluster_size = UINT64_C (1) << f->bits;
  struct builder b;
  unsigned i;

  build_start (&b, f->version, f->bits, f->extended, COMPRESSION_DEFLATE,
               CLUSTERS * cluster_size);
  for (i = 0; i < 20; ++i) {
    build_l2_place (&b, i);
    build_entry (&b, i, build_data (&b, i), f->extended ? UINT32_MAX : 0);
  }
  if (f->backing)
    build_backing (&b, "raw");
  build_finish (&b);
  rig_init (&rig, "calls", &b);
  build_free (&b);
  rig.cache_size = 1 << 20;
  if (f->backing)
    rig_set_base (&rig, base, sizeof base, true);
  rig_open (&rig);
}

static void
end (void)
{
  rig_compare (&rig);
  rig.control.log = NULL;
  rig_close (&rig);
  rig_free (&rig);
}

/* Calls from here on are counted. */
static void
begin (void)
{
  rig.control.log = &call_log;
  rig.control.preads = 0;
  rig.base_control.preads = 0;
  memory_log_clear (&call_log);
}

static unsigned
count (unsigned kinds)
{
  unsigned nr = 0;
  size_t i;

  for (i = 0; i < call_log.nr; ++i)
    nr += (call_log.call[i].kind & kinds) != 0;
  return nr;
}

/* Data of the guest: writes that are not sectors of metadata. */
static uint64_t
written (void)
{
  uint64_t bytes = 0;
  size_t i;

  for (i = 0; i < call_log.nr; ++i)
    bytes += call_log.call[i].kind == MEMORY_WRITE ? call_log.call[i].count
      : 0;
  return bytes;
}

static const struct form forms[] = {
  { 2, 16, false, false },
  { 3, 16, false, false },
  { 3, 12, false, true },
  { 3, 16, true, true },
  { 2, 16, false, true },
};
#define NR_FORMS (sizeof forms / sizeof forms[0])

/* In place: one pwritev, whatever its size, and nothing else; and a flush is
 * one wait.
 */
static void
test_overwrite (void)
{
  unsigned f, i;

  for (f = 0; f < NR_FORMS; ++f) {
    start (&forms[f]);
    rig_write (&rig, 0, 1, 1); /* tables are cached then */
    rig_flush (&rig);
    begin ();
    for (i = 0; i < 10; ++i)
      rig_write (&rig, i * 4096, 4096, i);
    CHECK_EQ (count (MEMORY_CHANGES), 10);
    CHECK_EQ (count (MEMORY_WRITE), 10);
    CHECK_EQ (written (), 10 * 4096);
    CHECK_EQ (rig.control.preads, 0);
    rig_flush (&rig);
    CHECK_EQ (count (MEMORY_FLUSH), 1);
    rig_flush (&rig); /* nothing is left to be done */
    CHECK_EQ (count (MEMORY_CHANGES), 11);

    begin ();
    rig_write (&rig, 3, 5000, 7);
    CHECK_EQ (count (MEMORY_CHANGES), 1);
    CHECK_EQ (written (), 5000);
    end ();
  }
}

/* Clusters that follow each other on the host are one write. */
static void
test_overwrite_many (void)
{
  struct builder b;
  uint64_t host;
  unsigned i;

  build_start (&b, 3, 16, false, COMPRESSION_DEFLATE, 64 << 16);
  build_l2_place (&b, 0);
  host = build_clusters (&b, 20);
  for (i = 0; i < 20; ++i)
    build_entry (&b, i, host + i * 65536, 0);
  build_finish (&b);
  rig_init (&rig, "many", &b);
  build_free (&b);
  rig_open (&rig);
  rig_write (&rig, 0, 1, 1);
  begin ();
  rig_write (&rig, 100, 19 << 16, 5);
  CHECK_EQ (count (MEMORY_CHANGES), 1);
  end ();
}

/* With FUA in place: one durable write, no flush.  Where something else has
 * to be durable too there is one.
 */
static void
test_fua (void)
{
  unsigned f;

  for (f = 0; f < NR_FORMS; ++f) {
    const uint64_t fresh = (UINT64_C (40)) << forms[f].bits;

    start (&forms[f]);
    rig_write (&rig, 0, 1, 1);
    rig_flush (&rig);
    begin ();
    CHECK_OK (rig_try_write (&rig, 512, 4096, 2, IMAGE_FUA));
    CHECK (count (MEMORY_WRITE) <= 2);
    CHECK_EQ (count (MEMORY_FLUSH), 0);
    CHECK (call_log.call[0].durable);

    rig_write (&rig, fresh, 4096, 3); /* a mapping that is not yet */
    begin ();
    CHECK_OK (rig_try_write (&rig, fresh, 512, 4, IMAGE_FUA));
    CHECK (count (MEMORY_FLUSH) >= 1);
    begin ();
    CHECK_OK (rig_try_write (&rig, fresh, 512, 5, IMAGE_FUA));
    CHECK_EQ (count (MEMORY_FLUSH), 0);
    CHECK_OK (rig_try_write (&rig, 2 * fresh, 512, 6, IMAGE_FUA));
    CHECK (count (MEMORY_FLUSH) >= 1);
    begin ();
    CHECK_OK (rig_try_zero (&rig, 0, 4096, IMAGE_FUA));
    CHECK (count (MEMORY_FLUSH) >= 1);
    begin ();
    rig_flush (&rig);
    CHECK_EQ (count (MEMORY_CHANGES), 0);
    CHECK_OK (rig_try_trim (&rig, UINT64_C (4) << forms[f].bits,
                            UINT64_C (1) << forms[f].bits, IMAGE_FUA));
    /* In version 2 over a backing file it does nothing. */
    CHECK_EQ (count (MEMORY_FLUSH) >= 1,
              !(forms[f].version == 2 && forms[f].backing));
    end ();
  }
}

/* Into clusters that nobody has written: one pwritev of the data alone, and
 * now and then what it takes to reserve some more.
 */
static void
test_fresh (void)
{
  unsigned f;

  for (f = 0; f < 2; ++f) {
    uint64_t i, alone = 0;

    start (&forms[f]);
    for (i = 21; i < 40; ++i)
      rig_write (&rig, i << 16, 4096, i);
    rig_flush (&rig);
    for (i = 40; i < 140; ++i) {
      begin ();
      rig_write (&rig, (i << 16) + 4096 * (i % 16), 4096, i);
      if (count (MEMORY_CHANGES) == 1 && rig.control.preads == 0) {
        CHECK_EQ (written (), 4096);
        alone++;
      }
      CHECK_EQ (count (MEMORY_FLUSH), 0);
      if (i % 10 == 0)
        rig_flush (&rig);
    }
    CHECK (alone >= 90);
    end ();
  }
}

/* The waits of a flush after one write of 4 KiB. */
static void
check_waits (const struct form *f, unsigned most, unsigned bytes,
             unsigned exceptions)
{
  const uint64_t cluster_size = UINT64_C (1) << f->bits;
  unsigned i, more = 0;

  start (f);
  for (i = 21; i < 60; ++i)
    rig_write (&rig, i * cluster_size, 512, i);
  rig_flush (&rig);
  rig_flush (&rig);
  for (i = 60; i < 160; ++i) {
    begin ();
    rig_write (&rig, i * cluster_size, bytes, i);
    rig_flush (&rig);
    CHECK (count (MEMORY_FLUSH) >= 1);
    more += count (MEMORY_FLUSH) > most;
  }
  if (more > exceptions)
    check_failed (__FILE__, __LINE__, "v%u, clusters of 2^%u, extended %d, "
                  "backing %d: %u of 100 flushes waited more than %u times",
                  f->version, f->bits, f->extended, f->backing, more, most);
  end ();
}

static void
test_waits (void)
{
  /* Fresh, and nothing below: one, as soon as there is a reserve. */
  check_waits (&forms[0], 1, 4096, 10);
  check_waits (&forms[1], 1, 4096, 10);
  /* Over a backing file: the data before its mapping. */
  check_waits (&forms[2], 2, 4096, 0);
  check_waits (&forms[3], 2, 2048, 0);
  check_waits (&forms[3], 2, 65536, 0);
  check_waits (&forms[4], 2, 4096, 0);
}

/* I5: the first clusters of a reserve have no durable refcounts yet: those are
 * written, and waited for, before the mapping is.
 */
static void
test_first_waits (void)
{
  unsigned f, writes = 0, flushes = 0;
  size_t i;

  for (f = 0; f < 2; ++f) {
    start (&forms[f]);
    begin ();
    rig_write (&rig, UINT64_C (50) << 16, 65536, 1);
    CHECK_EQ (count (MEMORY_FLUSH), 0);
    rig_flush (&rig);
    CHECK_EQ (count (MEMORY_FLUSH), 2);
    for (i = writes = flushes = 0; i < call_log.nr; ++i) {
      const struct memory_call *c = &call_log.call[i];

      writes += c->kind == MEMORY_WRITE;
      flushes += c->kind == MEMORY_FLUSH;
      if (c->kind == MEMORY_FLUSH && flushes == 1) /* data, refcounts */
        CHECK_EQ (writes, 2);
    }
    CHECK_EQ (writes, 3);
    end ();
  }
}

/* Metadata goes out in sectors, not in tables: what a flushed write of 4 KiB
 * to a fresh image costs.
 */
static void
test_bytes (void)
{
  uint64_t bytes = 0;
  unsigned i;

  start (&forms[1]);
  for (i = 21; i < 60; ++i)
    rig_write (&rig, (uint64_t) i << 16, 512, i);
  rig_flush (&rig);
  for (i = 60; i < 160; ++i) {
    begin ();
    rig_write (&rig, (uint64_t) i << 16, 4096, i);
    rig_flush (&rig);
    bytes += written ();
  }
  CHECK (bytes < 100 * (4096 + 2 * 512));
  end ();
}

/* What is filled around the data, over a backing file: the rest of the cluster
 * (subcluster), in the same write, and not what is overwritten.
 */
static void
test_fill (void)
{
  start (&forms[4]);
  rig_write (&rig, UINT64_C (100) << 16, 1, 1); /* its table is there */
  begin ();
  rig_write (&rig, (UINT64_C (30) << 16) + 4096, 4096, 9);
  CHECK_EQ (count (MEMORY_WRITE), 1);
  CHECK_EQ (written (), 65536);
  CHECK_EQ (rig.base_control.preads, 1); /* at once, with what is between */
  begin ();
  rig_write (&rig, UINT64_C (31) << 16, 65536, 9); /* all of it */
  CHECK_EQ (count (MEMORY_WRITE), 1);
  CHECK_EQ (written (), 65536);
  CHECK_EQ (rig.base_control.preads, 0);
  begin ();
  rig_write (&rig, (UINT64_C (32) << 16) + 1, 4 << 16, 9);
  CHECK_EQ (rig.base_control.preads, 2);
  CHECK_EQ (written (), 5 << 16);
  end ();

  start (&forms[3]); /* extended: subclusters of 2 KiB */
  rig_write (&rig, UINT64_C (100) << 16, 1, 1);
  begin ();
  rig_write (&rig, (UINT64_C (30) << 16) + 4096, 4096, 9);
  CHECK_EQ (count (MEMORY_WRITE), 1);
  CHECK_EQ (written (), 4096);
  CHECK_EQ (rig.base_control.preads, 0);
  begin ();
  rig_write (&rig, (UINT64_C (30) << 16) + 10240, 100, 9);
  CHECK_EQ (count (MEMORY_WRITE), 1);
  CHECK_EQ (written (), 2048);
  end ();
}

/* The host clusters of a sequential write follow each other. */
static void
test_contiguous (void)
{
  uint64_t i, breaks = 0;

  start (&forms[1]);
  for (i = 20; i < CLUSTERS; ++i)
    rig_write (&rig, i << 16, 65536, i);
  for (i = 21; i < CLUSTERS; ++i)
    breaks += rig_host (&rig, i << 16) != rig_host (&rig, (i - 1) << 16) +
      65536;
  CHECK (breaks < 8);
  end ();
}

int
main (void)
{
  check_time_limit (100);
  build_pattern (base, sizeof base, 9);
  test_overwrite ();
  test_overwrite_many ();
  test_fua ();
  test_fresh ();
  test_waits ();
  test_first_waits ();
  test_bytes ();
  test_fill ();
  test_contiguous ();
  memory_log_free (&call_log);
  return check_result ();
}
