/* SPDX-License-Identifier: BSD-3-Clause */

/* storage/crypt.c on a storage in memory: against a model, with short reads and
 * writes and failures, with views, and with threads that write parts of the
 * same sectors.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "memory-storage.h"
#include "random.h"
#include "storage/crypt.h"

#define MAX (600 << 10)

static const struct sector_format formats[] = {
  { .mode = CRYPTO_XTS, .key_bytes = 64, .iv = IV_PLAIN64 },
  { .mode = CRYPTO_CBC, .key_bytes = 32, .iv = IV_ESSIV,
    .iv_hash = CRYPTO_SHA256 },
  { .mode = CRYPTO_CBC, .key_bytes = 16, .iv = IV_PLAIN },
};

#define NR_FORMATS (sizeof formats / sizeof formats[0])

static struct memory_disk disk;
static struct memory_control control;

static struct sectors *
new_sectors (const struct sector_format *f)
{
  uint8_t key[CRYPTO_MAX_KEY];
  unsigned i;

  for (i = 0; i < sizeof key; ++i)
    key[i] = i * 7 + 1;
  return sectors_new (f, key);
}

static struct host_off
at (uint64_t offset)
{
  return (struct host_off) { offset };
}

/* ------------------------------------------------------------------- model */

struct model {
  struct storage *s;
  uint8_t byte[MAX];
};

static void
write_some (struct model *m, uint64_t *state, uint64_t offset, uint64_t count)
{
  struct iovec iov[4];
  uint8_t *buf = malloc (count), *copy = malloc (count);
  uint64_t done = 0;
  int nr;

  random_fill (state, buf, count);
  memcpy (copy, buf, count);
  for (nr = 0; nr < 4; ++nr) {
    const uint64_t n = nr == 3 ? count - done
      : random_below (state, 3) == 0 ? 0 : random_below (state,
                                                         count - done + 1);

    iov[nr] = (struct iovec) { buf + done, n };
    done += n;
  }
  CHECK_OK (storage_writev (m->s, iov, 4, at (offset), count % 2 == 0));
  CHECK (memcmp (buf, copy, count) == 0); /* it is not the storage's */
  memcpy (m->byte + offset, buf, count);
  free (buf);
  free (copy);
}

static void
compare (struct model *m, uint64_t offset, uint64_t count)
{
  uint8_t *buf = malloc (count + 1);

  CHECK_OK (storage_read (m->s, buf, count, at (offset)));
  CHECK (memcmp (buf, m->byte + offset, count) == 0);
  free (buf);
}

/* What is stored is what the sectors make of the model, each by its number. */
static void
check_stored (const struct model *m, const struct sector_format *f,
              uint64_t distance)
{
  struct sectors *s = new_sectors (f);
  uint8_t *stored = malloc (MAX);

  CHECK_OK (sectors_encipher (s, m->byte, stored, MAX, distance / 512));
  CHECK (memcmp (disk.data, stored, MAX) == 0);
  free (stored);
  sectors_free (s);
}

static void
pick (uint64_t *state, uint64_t *offset, uint64_t *count)
{
  const bool large = random_below (state, 8) == 0;

  *count = 1 + random_below (state, large ? MAX / 2 : 3000);
  *offset = random_below (state, MAX - *count + 1);
  if (random_below (state, 3) == 0) {
    *offset &= -(uint64_t) 512;
    *count = (*count + 511) & -(uint64_t) 512;
    if (*offset + *count > MAX)
      *offset = MAX - *count;
  }
}

static void
test_model (const struct sector_format *f, uint64_t distance, uint64_t seed)
{
  static struct model m;
  struct storage *inner, *crypt;
  struct crypt_view view;
  uint64_t state = seed, offset, count;
  unsigned i;

  memory_disk_init (&disk, NULL, 0);
  control = (struct memory_control) { .fail_call = 0 };
  inner = memory_disk_open (&disk, "test", &control);
  inner->one_report = seed % 2 == 0;
  crypt = storage_crypt_new (inner, new_sectors (f));
  storage_crypt_view (&view, crypt, distance);
  m.s = distance == 0 ? crypt : &view.storage;
  CHECK (!storage_holes_read_zero (m.s));
  CHECK_EQ (m.s->one_report, inner->one_report);
  memset (m.byte, 0, MAX);
  CHECK_OK (storage_zero (m.s, at (0), MAX, true)); /* zeros that are written */
  CHECK_EQ (control.zeros, 0);
  CHECK_EQ (atomic_load (&inner->size), MAX);
  check_stored (&m, f, distance);
  for (i = 0; i < 150 && !check_any_failed (); ++i) {
    control.short_reads = i % 5 == 0 ? 700 : 0;
    control.short_writes = i % 7 == 0 ? 900 : 0;
    control.interrupt = i % 11 == 0 ? 3 : 0;
    pick (&state, &offset, &count);
    write_some (&m, &state, offset, count);
    pick (&state, &offset, &count);
    compare (&m, offset, count);
  }
  control.short_reads = control.short_writes = 0;
  compare (&m, 0, MAX);
  CHECK_OK (storage_flush (m.s));
  check_stored (&m, f, distance);
  storage_close (crypt);
  storage_close (inner);
  memory_disk_free (&disk);
}

/* ---------------------------------------------------------------- failures */

/* Whatever fails, sectors outside of the write are as they were. */
static void
test_failures (void)
{
  struct storage *inner, *s;
  uint8_t buf[2048], was[2048];
  uint64_t call;

  memory_disk_init (&disk, NULL, 0);
  control = (struct memory_control) { .fail_call = 0 };
  inner = memory_disk_open (&disk, "test", &control);
  s = storage_crypt_new (inner, new_sectors (&formats[0]));
  memset (was, 0x77, sizeof was);
  CHECK_OK (storage_write (s, was, sizeof was, at (0)));
  for (call = 1; call <= 3; ++call) {
    memset (buf, call, sizeof buf);
    memory_fail (&control, MEMORY_READ | MEMORY_WRITE, call, ENOSPC);
    CHECK_EQ (storage_write (s, buf, 1000, at (700)), -1);
    CHECK_EQ (error_errno (), ENOSPC);
    memory_fail_no_more (&control);
    CHECK_OK (storage_read (s, buf, sizeof buf, at (0)));
    CHECK (memcmp (buf, was, sizeof buf) == 0);
  }
  memory_fail (&control, MEMORY_READ, 1, EIO);
  CHECK_EQ (storage_read (s, buf, 512, at (0)), -1);
  CHECK_ERROR (EIO, "test: reading 512 bytes");
  memory_fail_no_more (&control);
  storage_close (s);

  /* Without a key. */
  s = storage_crypt_new (inner, NULL);
  CHECK_EQ (storage_read (s, buf, 1, at (0)), -1);
  CHECK_ERROR (EIO, "Permission denied");
  CHECK_EQ (storage_write (s, buf, 1, at (0)), -1);
  storage_close (s);
  storage_close (inner);
  memory_disk_free (&disk);
}

/* ----------------------------------------------------------------- threads */

#define THREADS 4
#define SHARED (8 * 512)
#define ROUNDS 3000

/* Each thread has every fourth piece of these sectors to itself. */
#define PIECE 100

struct party {
  pthread_t thread;
  struct storage *s;
  unsigned number;
};

static void *
write_pieces_of_own (void *opaque)
{
  struct party *p = opaque;
  uint8_t mine[SHARED] = { 0 }, buf[PIECE];
  uint64_t state = p->number + 1, offset;
  unsigned i;

  for (i = 0; i < ROUNDS && !check_any_failed (); ++i) {
    offset = (random_below (&state, SHARED / PIECE / THREADS) * THREADS +
              p->number) * PIECE;
    if (random_below (&state, 2) == 0) {
      memset (mine + offset, i, PIECE);
      CHECK_OK (storage_write (p->s, mine + offset, PIECE, at (offset)));
    }
    CHECK_OK (storage_read (p->s, buf, PIECE, at (offset)));
    CHECK (memcmp (buf, mine + offset, PIECE) == 0); /* E2, E3 */
  }
  return NULL;
}

static void
test_threads (const struct sector_format *f)
{
  struct party party[THREADS];
  struct storage *inner, *s;
  unsigned i;

  memory_disk_init (&disk, NULL, 0);
  control = (struct memory_control) { .short_writes = 48, .short_reads = 80 };
  inner = memory_disk_open (&disk, "test", &control);
  s = storage_crypt_new (inner, new_sectors (f));
  CHECK_OK (storage_zero (s, at (0), SHARED, false));
  for (i = 0; i < THREADS; ++i) {
    party[i] = (struct party) { .s = s, .number = i };
    pthread_create (&party[i].thread, NULL, write_pieces_of_own, &party[i]);
  }
  for (i = 0; i < THREADS; ++i)
    pthread_join (party[i].thread, NULL);
  storage_close (s);
  storage_close (inner);
  memory_disk_free (&disk);
}

/* ------------------------------------------------- a read beside a write */

static struct storage *shared_storage;
static pthread_t reader;
static bool reader_runs;
static uint8_t seen[100];

static void *
read_rest (void *opaque)
{
  CHECK_OK (storage_read (shared_storage, seen, sizeof seen, at (40)));
  return opaque;
}

/* Once some of a sector is written; the reader has time enough to be wrong. */
static void
start_reader (void *opaque, const struct memory_call *call)
{
  if (call->kind != MEMORY_WRITE || call->offset == 0 || reader_runs)
    return;
  reader_runs = true;
  pthread_create (&reader, NULL, read_rest, opaque);
  usleep (50000);
}

/* E3: in CBC the first block that is still the old one is garbage then. */
static void
test_read_beside_write (void)
{
  uint8_t buf[512];
  struct storage *inner;

  memory_disk_init (&disk, NULL, 0);
  control = (struct memory_control) { .short_writes = 48 };
  inner = memory_disk_open (&disk, "test", &control);
  shared_storage = storage_crypt_new (inner, new_sectors (&formats[1]));
  memset (buf, 0x5a, sizeof buf);
  CHECK_OK (storage_write (shared_storage, buf, sizeof buf, at (0)));
  control.hook = start_reader;
  CHECK_OK (storage_write (shared_storage, "0123456789", 10, at (0)));
  CHECK (reader_runs);
  pthread_join (reader, NULL);
  CHECK (memcmp (seen, buf, sizeof seen) == 0);
  storage_close (shared_storage);
  storage_close (inner);
  memory_disk_free (&disk);
}

int
main (void)
{
  size_t i;

  if (crypto_library () == NULL)
    return 77;
  check_time_limit (120);
  for (i = 0; i < NR_FORMATS; ++i) {
    test_model (&formats[i], 0, i + 1);
    test_threads (&formats[i]);
  }
  test_model (&formats[2], UINT64_C (1) << 40, 7);
  test_model (&formats[2], -(UINT64_C (3) << 20), 8); /* modulo 2^64 */
  test_failures ();
  test_read_beside_write ();
  return check_result ();
}
