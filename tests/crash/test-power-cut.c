/* SPDX-License-Identifier: BSD-3-Clause */

/* Whether the states after a power cut are those that there can be: all of
 * them, and no others.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "content.h"
#include "crash-storage.h"
#include "history.h"
#include "power-cut.h"

#define SECTORS 8

static struct crash_disk disk;
static struct storage *storage;
static uint8_t base[SECTORS * SECTOR];

/* A disk whose sector i is full of `a' + i. */
static void
start (void)
{
  unsigned i;

  for (i = 0; i < SECTORS; ++i)
    memset (base + i * SECTOR, 'a' + i, SECTOR);
  crash_disk_init (&disk, base, sizeof base);
  storage = crash_storage_open (&disk, "test");
}

static void
end (void)
{
  storage_close (storage);
  crash_disk_free (&disk);
}

static void
write_bytes (uint64_t offset, size_t count, int c, bool durable)
{
  uint8_t buf[SECTORS * SECTOR];
  struct iovec iov = { buf, count };

  memset (buf, c, count);
  CHECK_OK (storage_writev (storage, &iov, 1, (struct host_off) { offset },
                            durable));
}

static void
write_sectors (unsigned first, unsigned nr, int c)
{
  write_bytes (first * SECTOR, nr * SECTOR, c, false);
}

/* The state at the end of the log, or at k. */
static struct disk_state
state_at (uint64_t k, enum landed_kind kind, uint64_t arg)
{
  struct cut *c = cut_new (base, sizeof base, disk.op, disk.nr);
  struct disk_state s = { 0 };

  cut_advance (c, k);
  cut_state (c, (struct landed) { kind, arg }, &s);
  cut_free (c);
  return s;
}

static unsigned
pending_at (uint64_t k)
{
  struct cut *c = cut_new (base, sizeof base, disk.op, disk.nr);
  unsigned n;

  cut_advance (c, k);
  n = cut_pending (c);
  cut_free (c);
  return n;
}

/* What each sector of a state begins with, as text; its size is in *size. */
static const char *
text_of (uint64_t k, enum landed_kind kind, uint64_t arg, uint64_t *size)
{
  static char text[64];
  struct disk_state s = state_at (k, kind, arg);
  uint64_t i, nr = (s.size + SECTOR - 1) / SECTOR;

  for (i = 0; i < nr && i < sizeof text - 1; ++i)
    text[i] = s.bytes[i * SECTOR] != 0 ? s.bytes[i * SECTOR] : '0';
  text[i] = '\0';
  if (size != NULL)
    *size = s.size;
  disk_state_free (&s);
  return text;
}

static void
test_landing (void)
{
  start ();
  write_sectors (0, 2, 'X'); /* 0 */
  write_sectors (1, 2, 'Y'); /* 1 */
  CHECK_EQ (pending_at (2), 2);
  CHECK_STR (text_of (0, LANDED_ALL, 0, NULL), "abcdefgh");
  CHECK_STR (text_of (1, LANDED_ALL, 0, NULL), "XXcdefgh");
  CHECK_STR (text_of (2, LANDED_ALL, 0, NULL), "XYYdefgh");
  CHECK_STR (text_of (2, LANDED_NONE, 0, NULL), "abcdefgh");
  CHECK_STR (text_of (2, LANDED_ONLY, 0, NULL), "XXcdefgh");
  CHECK_STR (text_of (2, LANDED_ONLY, 1, NULL), "aYYdefgh");
  CHECK_STR (text_of (2, LANDED_NOT, 1, NULL), "XXcdefgh");
  CHECK_STR (text_of (2, LANDED_MASK, 2, NULL), "aYYdefgh");
  CHECK_STR (text_of (2, LANDED_PREFIX, 1, NULL), "XXcdefgh");
  end ();
}

static void
test_flush (void)
{
  start ();
  write_sectors (0, 1, 'X'); /* 0 */
  CHECK_OK (storage_flush (storage)); /* 1 */
  write_sectors (1, 1, 'Y'); /* 2 */
  CHECK_STR (text_of (1, LANDED_NONE, 0, NULL), "abcdefgh");
  CHECK_STR (text_of (2, LANDED_NONE, 0, NULL), "Xbcdefgh");
  CHECK_STR (text_of (3, LANDED_NONE, 0, NULL), "Xbcdefgh");
  CHECK_STR (text_of (3, LANDED_ALL, 0, NULL), "XYcdefgh");
  CHECK_EQ (pending_at (3), 1);
  end ();
}

/* Its own bytes are there, others are not. */
static void
test_durable_write (void)
{
  start ();
  write_sectors (0, 2, 'X'); /* 0 */
  write_bytes (SECTOR, SECTOR, 'D', true); /* 1 */
  write_sectors (1, 1, 'Y'); /* 2 */
  CHECK_STR (text_of (2, LANDED_NONE, 0, NULL), "aDcdefgh");
  CHECK_STR (text_of (3, LANDED_NONE, 0, NULL), "aDcdefgh");
  CHECK_STR (text_of (3, LANDED_ONLY, 0, NULL), "XDcdefgh");
  CHECK_STR (text_of (3, LANDED_ALL, 0, NULL), "XYcdefgh");
  end ();
}

static void
test_sizes (void)
{
  uint64_t size;

  start ();
  CHECK_OK (storage_resize (storage, 12 * SECTOR)); /* 0 */
  write_sectors (9, 1, 'X'); /* 1 */
  CHECK_OK (storage_resize (storage, 4 * SECTOR)); /* 2 */
  CHECK_STR (text_of (2, LANDED_NONE, 0, NULL), "abcdefgh");
  CHECK_STR (text_of (2, LANDED_ONLY, 0, NULL), "abcdefgh0000");
  CHECK_STR (text_of (2, LANDED_ONLY, 1, NULL), "abcdefgh0X");
  CHECK_STR (text_of (3, LANDED_ALL, 0, NULL), "abcd");
  CHECK_STR (text_of (3, LANDED_MASK, 5, NULL), "abcd");
  CHECK_STR (text_of (3, LANDED_ONLY, 2, NULL), "abcd");
  write_bytes (9 * SECTOR, 100, 'Y', true); /* 3 */
  CHECK_STR (text_of (4, LANDED_ALL, 0, &size), "abcd00000Y");
  CHECK_EQ (size, 9 * SECTOR + 100);
  CHECK_OK (storage_flush (storage)); /* 4 */
  CHECK_STR (text_of (5, LANDED_NONE, 0, &size), "abcd00000Y");
  CHECK_EQ (size, 9 * SECTOR + 100);
  CHECK_EQ (pending_at (5), 0);
  end ();
}

static void
test_zero (void)
{
  start ();
  CHECK (storage_punch (storage, (struct host_off) { SECTOR }, 2 * SECTOR));
  CHECK_STR (text_of (1, LANDED_NONE, 0, NULL), "abcdefgh");
  CHECK_STR (text_of (1, LANDED_ALL, 0, NULL), "a00defgh");
  end ();
}

/* Over many seeds all states are seen, and none that can't be. */
static void
test_torn (void)
{
  bool seen[3][3] = { { false } };
  unsigned i, a, b;

  start ();
  write_sectors (0, 2, 'X');
  write_sectors (0, 2, 'Y');
  for (i = 0; i < 2000; ++i) {
    const char *text = text_of (2, LANDED_TORN, i, NULL);

    a = text[0] == 'a' ? 0 : text[0] == 'X' ? 1 : 2;
    b = text[1] == 'b' ? 0 : text[1] == 'X' ? 1 : 2;
    CHECK_STR (text + 2, "cdefgh");
    seen[a][b] = true;
  }
  for (a = 0; a < 3; ++a) {
    for (b = 0; b < 3; ++b)
      CHECK (seen[a][b]);
  }
  end ();
}

/* After a failed flush a later one promises nothing for what was pending. */
static void
test_failed_flush (void)
{
  start ();
  write_sectors (0, 1, 'X'); /* 0 */
  disk.calls = 0;
  disk.fault = (struct crash_fault) { .call = 1, .kinds = FAULT_FLUSH };
  CHECK (storage_flush (storage) == -1); /* 1 */
  write_sectors (1, 1, 'Y'); /* 2 */
  CHECK_OK (storage_flush (storage)); /* 3 */
  CHECK_STR (text_of (4, LANDED_NONE, 0, NULL), "aYcdefgh");
  CHECK_STR (text_of (4, LANDED_ALL, 0, NULL), "XYcdefgh");
  write_sectors (0, 1, 'Z'); /* 4 */
  CHECK_OK (storage_flush (storage)); /* 5 */
  CHECK_STR (text_of (6, LANDED_NONE, 0, NULL), "ZYcdefgh");
  CHECK_EQ (pending_at (6), 0);
  end ();
}

static void
test_faults (void)
{
  uint8_t buf[SECTOR];

  start ();
  disk.fault = (struct crash_fault) { .call = 2, .err = ENOSPC };
  write_sectors (0, 1, 'X');
  CHECK (storage_write (storage, base, SECTOR,
                        (struct host_off) { 0 }) == -1);
  CHECK_ERROR (ENOSPC, "");
  CHECK_OK (storage_read (storage, buf, sizeof buf, (struct host_off) { 0 }));
  CHECK_EQ (buf[0], 'X');
  CHECK_EQ (disk.nr, 1);
  CHECK_EQ (disk.failures, 1);
  end ();
}

static void
test_short (void)
{
  start ();
  disk.fault = (struct crash_fault) {
    .call = 1, .is_short = true, .forever = true,
    .kinds = FAULT_READ | FAULT_WRITE,
  };
  write_sectors (0, 2, 'X');
  CHECK (disk.nr > 2);
  CHECK_STR (text_of (disk.nr, LANDED_ALL, 0, NULL), "XXcdefgh");
  end ();
}

static void
give (struct history *h, uint32_t request, uint64_t sector, int c)
{
  uint8_t buf[SECTOR];

  memset (buf, c, sizeof buf);
  history_value (h, request, sector, buf);
}

static bool
allows (const struct history *h, uint64_t sector, int c, uint64_t moment)
{
  uint8_t buf[SECTOR];

  memset (buf, c, sizeof buf);
  return history_allows (h, sector, buf, moment);
}

static void
test_history (void)
{
  struct history h;
  uint32_t r;

  start ();
  history_init (&h, base, SECTORS);
  r = history_begin (&h, 3);
  give (&h, r, 0, 'X');
  history_answer (&h, r, 5, false);
  CHECK (allows (&h, 0, 'a', 2));
  CHECK (!allows (&h, 0, 'X', 2));
  CHECK (allows (&h, 0, 'a', 6));
  CHECK (allows (&h, 0, 'X', 6));
  CHECK (!allows (&h, 0, 'Y', 6));
  CHECK (!allows (&h, 1, 'X', 6));
  /* It began before the answer. */
  history_flushed (&h, history_moment (&h, 4), 7);
  CHECK (allows (&h, 0, 'a', 8));
  history_flushed (&h, history_moment (&h, 5), 9);
  CHECK (allows (&h, 0, 'a', 8));
  CHECK (!allows (&h, 0, 'a', 9));
  CHECK (allows (&h, 0, 'X', 9));

  r = history_begin (&h, 10);
  give (&h, r, 0, 'Y');
  history_fail (&h, r, 11);
  history_flushed (&h, history_moment (&h, 12), 13); /* promises nothing */
  CHECK (allows (&h, 0, 'X', 14));
  CHECK (allows (&h, 0, 'Y', 14));
  r = history_begin (&h, 15);
  give (&h, r, 0, 'Z');
  history_answer (&h, r, 16, true);
  CHECK (!allows (&h, 0, 'Y', 16));
  CHECK (allows (&h, 0, 'Z', 16));
  history_free (&h);
  end ();
}

/* Two that run at the same time: the stable one does not supersede the
 * other.
 */
static void
test_history_parallel (void)
{
  struct history h;
  uint32_t r, s;

  start ();
  history_init (&h, base, SECTORS);
  r = history_begin (&h, 1);
  s = history_begin (&h, 2);
  give (&h, r, 0, 'R');
  give (&h, s, 0, 'S');
  history_answer (&h, s, 3, true);
  history_answer (&h, r, 4, false);
  CHECK (!allows (&h, 0, 'a', 5));
  CHECK (allows (&h, 0, 'R', 5));
  CHECK (allows (&h, 0, 'S', 5));
  history_free (&h);
  end ();
}

static void
test_names (void)
{
  static const char *const names[] = {
    "none", "all", "prefix:3", "only:0", "not:17", "mask:0x15", "torn:0xabc",
  };
  struct landed l;
  char buf[64];
  unsigned i;

  for (i = 0; i < sizeof names / sizeof names[0]; ++i) {
    CHECK (landed_parse (&l, names[i]));
    CHECK_STR (landed_format (l, buf, sizeof buf), names[i]);
  }
  CHECK (!landed_parse (&l, "some"));
}

int
main (void)
{
  check_time_limit (120);
  test_landing ();
  test_flush ();
  test_durable_write ();
  test_sizes ();
  test_zero ();
  test_torn ();
  test_failed_flush ();
  test_faults ();
  test_short ();
  test_history ();
  test_history_parallel ();
  test_names ();
  return check_result ();
}
