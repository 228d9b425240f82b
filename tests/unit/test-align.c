/* SPDX-License-Identifier: BSD-3-Clause */

/* storage/align.c on a storage in memory that aborts where it is given anything
 * but whole blocks: against a model, with faults, with threads, and what a torn
 * write leaves.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "memory-storage.h"
#include "random.h"
#include "seconds.h"
#include "storage/align.h"

#define MAX (300 << 10)

static struct memory_disk disk;
static struct memory_control control;
static struct memory_log log_ = MEMORY_LOG_INIT;

static struct storage *
open_blocks (uint32_t block)
{
  char value[16];

  snprintf (value, sizeof value, "%u", block);
  setenv (MEMORY_BLOCK_VARIABLE, value, 1);
  return memory_disk_open (&disk, "test", &control);
}

static struct host_off
at (uint64_t offset)
{
  return (struct host_off) { offset };
}

/* --------------------------------------------------------- against a model */

struct model {
  struct storage *s;
  uint64_t size;
  uint8_t byte[2 * MAX];
};

static void
compare (struct model *m, uint64_t offset, uint64_t count, size_t misaligned)
{
  uint8_t *buf = malloc (count + misaligned + 1);

  CHECK_OK (storage_read (m->s, buf + misaligned, count, at (offset)));
  CHECK (memcmp (buf + misaligned, m->byte + offset, count) == 0);
  free (buf);
}

static void
write_pieces (struct model *m, uint64_t *state, uint64_t offset,
              uint64_t count)
{
  struct iovec iov[5];
  uint8_t *buf = malloc (count + 64);
  uint64_t done = 0;
  int nr;

  random_fill (state, buf + 3, count);
  for (nr = 0; nr < 5; ++nr) {
    const uint64_t n = nr == 4 ? count - done
      : random_below (state, count - done + 1);

    iov[nr] = (struct iovec) { buf + 3 + done, n };
    done += n;
  }
  CHECK_OK (storage_writev (m->s, iov, nr, at (offset), count % 3 == 0));
  memcpy (m->byte + offset, buf + 3, count);
  if (m->size < offset + count)
    m->size = offset + count;
  free (buf);
}

/* Holes are zeros, and both end where they should. */
static void
check_extents (struct model *m)
{
  uint64_t offset, length;

  for (offset = 0; offset < m->size; offset += length) {
    static const uint8_t zeros[2 * MAX];
    bool hole;

    length = 0;
    CHECK_OK (storage_extent (m->s, at (offset), m->size - offset, &hole,
                              &length));
    CHECK (length > 0 && length <= m->size - offset);
    if (hole)
      CHECK (memcmp (m->byte + offset, zeros, length) == 0);
    if (length == 0)
      break;
    length = storage_hole (m->s, at (offset));
    CHECK (length <= 2 * MAX || offset + length > m->size);
    if (length > m->size - offset)
      length = m->size - offset;
    CHECK (memcmp (m->byte + offset, zeros, length) == 0);
    if (length == 0)
      length = 1 + m->size / 50;
  }
}

static void
zero (struct model *m, uint64_t offset, uint64_t count, unsigned how)
{
  if (how < 2) {
    if (offset + count > m->size)
      count = m->size - offset;
    if (count == 0)
      return;
  }
  if (how == 0 && !control.no_zero) /* punching has no other way */
    CHECK (storage_punch (m->s, at (offset), count));
  else
    CHECK_OK (storage_zero (m->s, at (offset), count, how == 1));
  memset (m->byte + offset, 0, count);
  if (m->size < offset + count)
    m->size = offset + count;
}

static void
resize (struct model *m, uint64_t size)
{
  CHECK_OK (storage_resize (m->s, size));
  if (size < m->size)
    memset (m->byte + size, 0, m->size - size);
  m->size = size;
}

static void
one_call (struct model *m, uint64_t *state)
{
  const uint64_t offset = random_below (state, m->size + 1);
  const uint64_t most = random_below (state, 4) == 0 ? MAX : 9000;
  const uint64_t count = 1 + random_below (state, most);
  bool done;

  switch (random_below (state, 10)) {
  case 0: case 1: case 2:
    if (offset + count <= sizeof m->byte)
      write_pieces (m, state, offset, count);
    break;
  case 3:
    zero (m, offset, count, random_below (state, 2));
    break;
  case 4:
    if (offset + count <= sizeof m->byte)
      zero (m, offset, count, 2);
    break;
  case 5:
    if (random_below (state, 3) == 0)
      resize (m, random_below (state, MAX));
    break;
  case 6:
    CHECK_OK (storage_allocate (m->s, at (offset), count, &done));
    storage_prefetch (m->s, at (offset), count);
    break;
  case 7:
    check_extents (m);
    break;
  default:
    if (offset + count <= sizeof m->byte)
      compare (m, offset, count, random_below (state, 9));
    break;
  }
  CHECK_EQ (atomic_load (&m->s->size), m->size);
}

static void
test_random (uint32_t block, uint64_t seed)
{
  static struct model m;
  uint64_t state = mix (seed * 7919 + block);
  unsigned i;

  memset (&control, 0, sizeof control);
  control.holes = true;
  control.no_zero = seed % 4 == 0;
  control.short_reads = control.short_writes = seed % 3 == 0 ? 2 * block : 0;
  control.interrupt = seed % 2 == 0 ? 5 : 0;
  memset (m.byte, 0, sizeof m.byte);
  m.size = random_below (&state, MAX);
  random_fill (&state, m.byte, m.size);
  memory_disk_init (&disk, m.byte, m.size);
  m.s = open_blocks (block);
  CHECK_EQ (storage_block_size (m.s), block);
  for (i = 0; i < 150 && !check_any_failed (); ++i) {
    one_call (&m, &state);
    compare (&m, 0, m.size, 0);
    CHECK (disk.size < m.size + block);
  }
  if (check_any_failed ())
    fprintf (stderr, "block %u, seed %" PRIu64 "\n", block, seed);
  storage_close (m.s);
  memory_disk_free (&disk);
}

/* ------------------------------------------------------------------ faults */

/* What is asked of the inner storage, and that errors come back. */
static void
test_calls (void)
{
  uint8_t buf[8192] = { 0 }, *whole;
  struct storage *s;
  unsigned i;

  memset (&control, 0, sizeof control);
  control.log = &log_;
  memory_disk_init (&disk, NULL, 1 << 16);
  s = open_blocks (4096);
  whole = aligned_alloc (4096, 8192);
  memset (whole, 1, 8192);

  /* Whole blocks are neither read nor copied. */
  CHECK_OK (storage_write (s, whole, 8192, at (4096)));
  CHECK_EQ (control.preads, 0);
  CHECK_EQ (log_.nr, 1);

  /* Part of one block is one read; of two, two; and each is one write. */
  memset (buf, 2, sizeof buf);
  CHECK_OK (storage_write (s, buf, 100, at (5000)));
  CHECK_EQ (control.preads, 1);
  CHECK_OK (storage_write (s, buf, 5000, at (5000)));
  CHECK_EQ (control.preads, 3);
  CHECK_EQ (log_.nr, 3);

  /* What is durable is that in one write. */
  {
    struct iovec iov = { buf, 10 };

    CHECK_OK (storage_writev (s, &iov, 1, at (20000), true));
  }
  CHECK_EQ (log_.nr, 4);
  for (i = 0; i < 4; ++i)
    CHECK_EQ (log_.call[i].durable, i == 3);

  /* Zeros are not written to what is zeros; the whole blocks among them are
   * zeroed at once.
   */
  CHECK (storage_punch (s, at (32000), 20000));
  CHECK_EQ (control.writes, 4);
  CHECK_EQ (control.punches, 1);
  CHECK_EQ (log_.call[4].offset, 32768);
  CHECK_EQ (log_.call[4].count, 16384);

  for (i = 0; i < 2; ++i) {
    memory_fail (&control, i == 0 ? MEMORY_READ : MEMORY_WRITE, 1, 0);
    CHECK_EQ (storage_write (s, buf, 100, at (5000)), (uint64_t) -1);
    CHECK_ERROR (EIO, "test: writing at offset 0x1388");
  }
  memory_fail (&control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_EQ (storage_write (s, whole, 4096, at (4096)), (uint64_t) -1);
  CHECK_ERROR (ENOSPC, "test: writing at offset 0x1000");
  memory_fail_no_more (&control);
  free (whole);
  storage_close (s);
  memory_disk_free (&disk);
  memory_log_free (&log_);
}

/* The end is within a block: what is behind it never shows. */
static void
test_end (void)
{
  uint8_t buf[4096], zeros[4096] = { 0 };
  struct storage *s;

  memset (&control, 0, sizeof control);
  memset (buf, 7, sizeof buf);
  memory_disk_init (&disk, NULL, 0);
  s = open_blocks (4096);
  CHECK_OK (storage_write (s, buf, 1000, at (0)));
  CHECK_EQ (s->size, 1000);
  CHECK_EQ (disk.size, 4096);
  CHECK_OK (storage_resize (s, 10));
  CHECK_EQ (s->size, 10);
  CHECK_OK (storage_resize (s, 4000));
  CHECK_OK (storage_read (s, buf, 4096, at (0)));
  CHECK (buf[9] == 7 && memcmp (buf + 10, zeros, 4086) == 0);
  storage_close (s);
  memory_disk_free (&disk);
}

/* A write past the end fails in the midst of it: what was written is within the
 * size, and so not taken for zeros by what makes it larger (A1).
 */
static void
test_end_fails (void)
{
  uint8_t buf[10001], zeros[8192] = { 0 };
  struct storage *s;

  memset (&control, 0, sizeof control);
  control.short_writes = 4096;
  memset (buf, 7, sizeof buf);
  memory_disk_init (&disk, NULL, 0);
  s = open_blocks (4096);
  memory_fail (&control, MEMORY_WRITE, 2, ENOSPC);
  CHECK_EQ (storage_write (s, buf + 1, 10000, at (0)), (uint64_t) -1);
  CHECK_EQ (disk.size, 4096);
  CHECK_EQ (s->size, 4096);
  memory_fail_no_more (&control);
  CHECK_OK (storage_resize (s, 12288));
  CHECK_OK (storage_read (s, buf, 8192, at (4096)));
  CHECK (memcmp (buf, zeros, 8192) == 0);
  storage_close (s);
  memory_disk_free (&disk);
}

/* ------------------------------------------------------------ a torn write */

/* While it is written, each sector is old or new: so bytes next to the range
 * are as they were in every mixture.
 */
static uint8_t before[4096];

static void
look_at_write (void *opaque, const struct memory_call *call)
{
  if (call->kind == MEMORY_WRITE)
    memcpy (before, disk.data, sizeof before);
}

static void
test_torn (void)
{
  uint64_t state = 77, offset, count;
  uint8_t buf[4096], torn[4096], old[4096];
  struct storage *s;
  unsigned i, j, sector;

  memset (&control, 0, sizeof control);
  control.hook = look_at_write;
  memory_disk_init (&disk, NULL, 4096);
  s = open_blocks (4096);
  for (i = 0; i < 300; ++i) {
    random_fill (&state, buf, sizeof buf);
    offset = random_below (&state, 4096);
    count = 1 + random_below (&state, 4096 - offset);
    memcpy (old, disk.data, sizeof old);
    CHECK_OK (storage_write (s, buf, count, at (offset)));
    for (sector = 0; sector < 8; ++sector)
      memcpy (torn + sector * 512,
              (random_below (&state, 2) ? disk.data : before) + sector * 512,
              512);
    for (j = 0; j < 4096; ++j)
      if (j < offset || j >= offset + count)
        CHECK_EQ (torn[j], old[j]);
  }
  storage_close (s);
  memory_disk_free (&disk);
}

/* ------------------------------------------------------ several runs at once */

#define RUNS 20

/* What runs are made of: nr of them, which don't overlap, in any order. */
struct many {
  struct storage_run run[RUNS];
  struct iovec iov[2 * RUNS]; /* two for each */
  uint8_t byte[MAX];
};

static unsigned
make_runs (struct many *m, uint64_t *state, unsigned pieces)
{
  const unsigned nr = 2 + random_below (state, RUNS - 1);
  uint64_t offset = random_below (state, 5000), done = 0;
  unsigned i;

  for (i = 0; i < nr; ++i) {
    struct iovec *iov = m->iov + 2 * i;
    const unsigned j = random_below (state, i + 1);

    iov[0] = (struct iovec) { m->byte + done, 1 + random_below (state, 700) };
    done += iov[0].iov_len;
    iov[1] = (struct iovec) { m->byte + done, random_below (state, 5000) };
    done += pieces == 2 ? iov[1].iov_len : 0;
    m->run[i] = m->run[j];
    m->run[j] = (struct storage_run) { iov, pieces, { offset } };
    offset += iov[0].iov_len + (pieces == 2 ? iov[1].iov_len : 0);
    if (random_below (state, 3) > 0)
      offset += random_below (state, 6000);
  }
  return nr;
}

static void
model_runs (const struct many *m, unsigned nr, uint8_t *model)
{
  unsigned i;
  int j;

  for (i = 0; i < nr; ++i) {
    uint64_t offset = m->run[i].offset.v;

    for (j = 0; j < m->run[i].nr; ++j) {
      memcpy (model + offset, m->run[i].iov[j].iov_base,
              m->run[i].iov[j].iov_len);
      offset += m->run[i].iov[j].iov_len;
    }
  }
}

/* They are all durable: that is in each write below, or in a flush after. */
static void
check_durable (bool all)
{
  unsigned i, flushes = 0, ordinary = 0;

  for (i = 0; i < log_.nr; ++i) {
    flushes += log_.call[i].kind == MEMORY_FLUSH;
    ordinary += log_.call[i].kind == MEMORY_WRITE && !log_.call[i].durable;
  }
  CHECK_EQ (flushes, all);
  CHECK (ordinary == 0 || (all && log_.call[log_.nr - 1].kind ==
                           MEMORY_FLUSH));
}

static void
test_durable_runs (uint32_t block)
{
  static uint8_t model[MAX], now[MAX];
  static struct many m;
  uint64_t state = mix (block);
  struct storage *s;
  unsigned i, nr;

  memset (&control, 0, sizeof control);
  control.fixed = true;
  control.durable_runs = RUNS;
  control.log = &log_;
  random_fill (&state, model, sizeof model);
  memory_disk_init (&disk, model, sizeof model);
  s = open_blocks (block);
  CHECK_EQ (s->durable_runs, RUNS);
  for (i = 0; i < 300 && !check_any_failed (); ++i) {
    random_fill (&state, m.byte, sizeof m.byte);
    nr = make_runs (&m, &state, 2);
    model_runs (&m, nr, model);
    memory_log_free (&log_);
    CHECK_OK (storage_write_durable_runs (s, m.run, nr, i % 2 == 0));
    check_durable (i % 2 == 0);
    CHECK_OK (storage_read (s, now, sizeof now, at (0)));
    CHECK (memcmp (now, model, sizeof now) == 0);
  }
  control.log = NULL;
  nr = make_runs (&m, &state, 2);
  memory_fail (&control, MEMORY_READ | MEMORY_WRITE, 1, EIO);
  CHECK_EQ (storage_write_durable_runs (s, m.run, nr, false), -1);
  CHECK_ERROR (EIO, "ranges from offset");
  memory_fail_no_more (&control);
  storage_close (s);
  memory_disk_free (&disk);
  memory_log_free (&log_);

  /* Where the size changes there is none of this. */
  control.fixed = false;
  memory_disk_init (&disk, model, sizeof model);
  s = open_blocks (block);
  CHECK_EQ (s->durable_runs, 0);
  storage_close (s);
  memory_disk_free (&disk);
}

/* More than is written at once: one after the other, and then a flush. */
static void
test_many_durable_runs (void)
{
  static uint8_t old[3 << 17], now[3 << 17], byte[3] = { 1, 2, 3 };
  struct storage_run run[3];
  struct iovec iov[3];
  struct storage *s;
  unsigned i;

  memset (&control, 0, sizeof control);
  control.fixed = true;
  control.durable_runs = 3;
  control.log = &log_;
  memory_disk_init (&disk, old, sizeof old);
  s = open_blocks (1 << 17);
  for (i = 0; i < 3; ++i) {
    iov[i] = (struct iovec) { byte + i, 1 };
    run[i] = (struct storage_run) { &iov[i], 1, { (i << 17) + 5 } };
  }
  CHECK_OK (storage_write_durable_runs (s, run, 3, false));
  CHECK_EQ (log_.call[log_.nr - 1].kind, MEMORY_FLUSH);
  for (i = 0; i < log_.nr; ++i)
    CHECK (!log_.call[i].durable); /* what one is told the flush is not */
  CHECK_OK (storage_read (s, now, sizeof now, at (0)));
  for (i = 0; i < 3; ++i)
    CHECK_EQ (now[(i << 17) + 5], byte[i]);
  control.log = NULL;
  memory_fail (&control, MEMORY_FLUSH, 1, EIO);
  CHECK_EQ (storage_write_durable_runs (s, run, 3, false), -1);
  CHECK_ERROR (EIO, "ranges from offset");
  memory_fail_no_more (&control);
  storage_close (s);
  memory_disk_free (&disk);
  memory_log_free (&log_);
}

static void
test_reads_together (uint32_t block)
{
  static uint8_t data[MAX];
  static struct many m;
  uint64_t state = mix (block + 1);
  struct storage *s;
  unsigned i, j, nr;

  memset (&control, 0, sizeof control);
  control.reads_together = true;
  random_fill (&state, data, sizeof data);
  s = memory_storage_new ("test", data, sizeof data - 5000 % block, &control);
  CHECK (storage_reads_together (s));
  for (i = 1; i <= 200 && !check_any_failed (); ++i) {
    nr = make_runs (&m, &state, 1);
    CHECK_OK (storage_read_many (s, m.run, nr));
    CHECK_EQ (control.together, i);
    for (j = 0; j < nr; ++j)
      CHECK (memcmp (m.run[j].iov->iov_base, data + m.run[j].offset.v,
                     m.run[j].iov->iov_len) == 0);
  }
  control.fail_together = true;
  nr = make_runs (&m, &state, 1);
  CHECK_EQ (storage_read_many (s, m.run, nr), -1);
  CHECK_ERROR (EIO, "reading ");
  storage_close (s);
}

/* ----------------------------------------------------------------- threads */

#define THREADS 6
#define ROUNDS (700 / TEST_EACH (5))

static struct storage *shared_storage;

/* 100 bytes: as two runs at once, where the storage has that. */
static void
write_in_halves (uint8_t *buf, struct host_off offset)
{
  struct iovec iov[] = { { buf, 50 }, { buf + 50, 50 } };
  struct storage_run run[] = {
    { &iov[1], 1, at (offset.v + 50) }, { &iov[0], 1, offset },
  };

  if (shared_storage->durable_runs > 0)
    CHECK_OK (storage_write_durable_runs (shared_storage, run, 2, false));
  else
    CHECK_OK (storage_write (shared_storage, buf, 100, offset));
}

/* Each thread has every sixth piece of 100 bytes for its own. */
static void *
writer_main (void *opaque)
{
  const unsigned me = (uintptr_t) opaque;
  uint64_t state = mix (me + 1000), i;
  uint8_t value[120] = { 0 }, buf[100];

  for (i = 0; i < ROUNDS; ++i) {
    const unsigned n = random_below (&state, 120);
    const struct host_off offset = at ((n * THREADS + me) * 100);

    CHECK_OK (storage_read (shared_storage, buf, 100, offset));
    CHECK_EQ (buf[0], value[n]);
    CHECK_EQ (buf[99], value[n]);
    value[n] = random_below (&state, 8) == 0 ? 0 : 1 + i % 250;
    memset (buf, value[n], 100);
    if (value[n] == 0)
      CHECK (storage_punch (shared_storage, offset, 100));
    else
      write_in_halves (buf, offset);
  }
  return NULL;
}

/* There is time for others between reading a block and writing it. */
static void
wait_before_write (void *opaque, const struct memory_call *call)
{
  if (call->kind == MEMORY_WRITE)
    usleep (20);
}

static void
test_threads (uint32_t block, bool together)
{
  pthread_t thread[THREADS];
  uintptr_t i;

  memset (&control, 0, sizeof control);
  control.hook = wait_before_write;
  control.fixed = together;
  control.durable_runs = together ? 2 : 0;
  memory_disk_init (&disk, NULL, together ? 18 << 12
                    : 120 * THREADS * 100 - 40);
  shared_storage = open_blocks (block);
  for (i = 0; i < THREADS; ++i)
    pthread_create (&thread[i], NULL, writer_main, (void *) i);
  for (i = 0; i < THREADS; ++i)
    pthread_join (thread[i], NULL);
  storage_close (shared_storage);
  memory_disk_free (&disk);
}

int
main (void)
{
  uint64_t seed;

  check_time_limit (200);
  for (seed = 1; seed <= 20 && !check_any_failed ();
       seed += TEST_EACH (19)) {
    test_random (512, seed);
    test_random (4096, seed);
  }
  test_calls ();
  test_end ();
  test_end_fails ();
  test_torn ();
  test_durable_runs (512);
  test_durable_runs (4096);
  test_many_durable_runs ();
  test_reads_together (512);
  test_reads_together (4096);
  test_threads (512, false);
  test_threads (4096, false);
  test_threads (512, true);
  test_threads (4096, true);
  return check_result ();
}
