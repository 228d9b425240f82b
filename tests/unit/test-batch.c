/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/batch.c: which writes and flushes a batch consists of, in which
 * order.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "memory-storage.h"
#include "qcow2/write/batch.h"

#define DISK_BYTES (UINT64_C (1) << 20)

static struct memory_disk disk[2];
static struct memory_control control[2];
static struct storage *tables, *data;
static struct cache_sector sector[32];
static struct cache_batch batch = { .sector = sector };

/* The calls since the last time, as a text: W for a write, with the first
 * sector's number, how many there are if there are several, and ! if it is
 * durable; F for a flush, D for one of the other storage.
 */
static char calls[512];

static void
note_call (void *opaque, const struct memory_call *c)
{
  const size_t used = strlen (calls);

  if (c->kind == MEMORY_FLUSH)
    strcat (calls, opaque == &control[0] ? "F " : "D ");
  else if (c->kind == MEMORY_WRITE) {
    snprintf (calls + used, sizeof calls - used, "W%u",
              (unsigned) (c->offset / CACHE_SECTOR));
    if (c->count > CACHE_SECTOR)
      snprintf (calls + strlen (calls), sizeof calls - strlen (calls), "x%u",
                (unsigned) (c->count / CACHE_SECTOR));
    strcat (calls, c->durable ? "! " : " ");
  }
}

static void
start (unsigned durable_runs, bool two)
{
  unsigned i;

  for (i = 0; i < 2; ++i) {
    control[i] = (struct memory_control) {
      .durable_runs = durable_runs, .hook = note_call, .opaque = &control[i],
    };
    memory_disk_init (&disk[i], NULL, DISK_BYTES);
  }
  tables = memory_disk_open (&disk[0], "tables", &control[0]);
  data = two ? memory_disk_open (&disk[1], "data", &control[1]) : tables;
  batch.nr = 0;
}

static void
end (void)
{
  if (data != tables)
    storage_close (data);
  storage_close (tables);
  memory_disk_free (&disk[0]);
  memory_disk_free (&disk[1]);
}

static void
add (unsigned nr, enum cache_order order)
{
  struct cache_sector *s = &sector[batch.nr++];

  s->offset.v = nr * CACHE_SECTOR;
  s->order = order;
  memset (s->data, nr, sizeof s->data);
}

/* Every other one of so many sectors, which makes as many runs. */
static void
add_runs (unsigned first, unsigned nr, enum cache_order order)
{
  unsigned i;

  for (i = 0; i < nr; ++i)
    add (first + 2 * i, order);
}

static void
check_written (void)
{
  size_t i;

  for (i = 0; i < batch.nr; ++i)
    CHECK (memcmp (disk[0].data + sector[i].offset.v, sector[i].data,
                   CACHE_SECTOR) == 0);
}

static void
check_calls (bool ordered, const char *wanted)
{
  calls[0] = '\0';
  CHECK_OK (batch_write (&batch, ordered, tables, data));
  CHECK_STR (calls, wanted);
  check_written ();
}

/* What becomes of one refcount and one mapping, of two sectors. */
static void
test_kinds (unsigned durable_runs, bool two, const char *unordered,
            const char *ordered)
{
  start (durable_runs, two);
  add (40, CACHE_FIRST);
  add (20, CACHE_SECOND);
  add (21, CACHE_SECOND);
  check_calls (false, unordered);
  check_calls (true, ordered);
  end ();
}

/* Without one of the two, and where there are too many runs. */
static void
test_parts (void)
{
  start (2, false);
  check_calls (true, "F "); /* of data alone */
  add (20, CACHE_SECOND);
  check_calls (true, "F W20! ");
  add_runs (22, 2, CACHE_SECOND);
  check_calls (true, "F W20 W22 W24 F ");
  batch.nr = 0;
  add (40, CACHE_FIRST);
  check_calls (true, "W40 F ");
  add_runs (20, 3, CACHE_SECOND);
  check_calls (true, "W40! F W20 W22 W24 F ");
  batch.nr = 0;
  add_runs (40, 3, CACHE_FIRST);
  add (20, CACHE_SECOND);
  check_calls (true, "W40 W42 W44 F W20! ");
  end ();
}

/* No mapping is written after what has to be durable before it has failed. */
static void
test_failures (void)
{
  static const int errors[] = { EIO, ENOSPC };
  unsigned i;

  for (i = 0; i < 2; ++i) {
    start (4, false);
    add (40, CACHE_FIRST);
    add (20, CACHE_SECOND);
    memory_fail (&control[0], MEMORY_WRITE, 1, errors[i]);
    calls[0] = '\0';
    CHECK_EQ (batch_write (&batch, true, tables, data), -1);
    CHECK_EQ (error_errno (), errors[i]);
    CHECK (strstr (calls, "W20") == NULL);
    memory_fail (&control[0], MEMORY_WRITE, 2, errors[i]);
    CHECK_EQ (batch_write (&batch, true, tables, data), -1);
    CHECK_EQ (error_errno (), errors[i]);
    memory_fail_no_more (&control[0]);
    check_calls (true, "W40! F W20! ");
    end ();
  }
  start (4, true);
  add (40, CACHE_FIRST);
  add (20, CACHE_SECOND);
  memory_fail (&control[1], MEMORY_FLUSH, 1, EIO);
  calls[0] = '\0';
  CHECK_EQ (batch_write (&batch, true, tables, data), -1);
  CHECK_ERROR (EIO, "data: flushing");
  CHECK_STR (calls, "D ");
  end ();
}

int
main (void)
{
  check_time_limit (20);
  (void) unsetenv (MEMORY_BLOCK_VARIABLE);
  test_kinds (0, false, "W40 W20x2 F ", "W40 F W20x2 F ");
  test_kinds (1, false, "W40 W20x2 F ", "W40! F W20x2! ");
  test_kinds (0, true, "W40 W20x2 D F ", "W40 D F W20x2 D F ");
  test_kinds (1, true, "W40 W20x2 D F ", "D W40! F W20x2! ");
  test_parts ();
  test_failures ();
  return check_result ();
}
