/* SPDX-License-Identifier: BSD-3-Clause */

/* Power cuts while an image is made over another one, on a disk that can't be
 * renamed.  What is found is the old one as it was, all of the new one, or
 * nothing that could be taken for an image.  One that wants a passphrase is an image.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "crypto/library.h"
#include "image.h"
#include "manage/create.h"
#include "memory-storage.h"
#include "random.h"
#include "seconds.h"

#define SECTOR 512
#define MAX_DISK (UINT64_C (3) << 20)
#define MAX_CALLS 100
#define ROUNDS 40 /* torn ones, of each cut */

/* ---------------------------------------------------------------- the disk */

/* A call that changes it; a flush has no bytes. */
struct call {
  uint64_t offset, count;
  uint8_t *data; /* NULL: zeros */
};

static uint64_t disk_size;
static uint8_t before[MAX_DISK]; /* what it held at first */
static uint8_t now[MAX_DISK];
static struct call calls[MAX_CALLS];
static unsigned nr_calls;
static bool can_zero;

static struct call *
log_call (uint64_t offset, uint64_t count)
{
  struct call *c = &calls[nr_calls++];

  if (nr_calls > MAX_CALLS || offset > disk_size || count > disk_size - offset)
    abort ();
  *c = (struct call) { offset, count, NULL };
  return c;
}

static ssize_t
device_pread (struct storage *s, void *buf, size_t count, uint64_t offset)
{
  if (offset >= disk_size)
    return 0;
  if (count > disk_size - offset)
    count = disk_size - offset;
  memcpy (buf, now + offset, count);
  return count;
}

static ssize_t
device_pwritev (struct storage *s, const struct iovec *iov, int nr,
                uint64_t offset, bool durable)
{
  struct call *c = log_call (offset, iov[0].iov_len);

  c->data = malloc (c->count);
  if (c->data == NULL)
    abort ();
  memcpy (c->data, iov[0].iov_base, c->count);
  memcpy (now + offset, c->data, c->count);
  return c->count;
}

static int
device_flush (struct storage *s)
{
  (void) log_call (0, 0);
  return 0;
}

static int
device_zero (struct storage *s, uint64_t offset, uint64_t count, bool punch)
{
  if (!can_zero) {
    errno = EOPNOTSUPP;
    return -1;
  }
  (void) log_call (offset, count);
  memset (now + offset, 0, count);
  return 0;
}

static int
device_resize (struct storage *s, uint64_t size)
{
  errno = ENOSPC;
  return -1;
}

static void
device_close (struct storage *s)
{
}

static const struct storage_ops device_ops = {
  .pread = device_pread,
  .pwritev = device_pwritev,
  .flush = device_flush,
  .zero = device_zero,
  .resize = device_resize,
  .close = device_close,
};

static void
create (const struct create_options *o)
{
  static char name[] = "device";
  struct storage device = { .ops = &device_ops, .name = name, .size = disk_size };

  memcpy (now, before, disk_size);
  CHECK_OK (create_image (&device, o));
}

static void
forget_calls (void)
{
  while (nr_calls > 0)
    free (calls[--nr_calls].data);
}

/* ------------------------------------------------------------------ states */

static char what[100];
static uint8_t state[MAX_DISK];
static uint64_t states, old_ones, new_ones;

static bool
is_image (void)
{
  struct image *im =
    image_open_storage (memory_storage_new ("state", state, disk_size, NULL),
                        CACHE_MIN_BYTES);
  const bool r = im != NULL || strstr (error_message (), "backing") != NULL ||
    strstr (error_message (), "passphrase") != NULL;

  (void) image_close (im);
  return r;
}

static void
check_state (unsigned cut, const char *how, uint64_t arg)
{
  states++;
  if (memcmp (state, before, disk_size) == 0)
    old_ones++;
  else if (memcmp (state, now, disk_size) == 0)
    new_ones++;
  else if (is_image ())
    check_failed (__FILE__, __LINE__, "%s: power cut before call %u, %s %"
                  PRIu64 ": neither the old nor the new image", what, cut, how,
                  arg);
}

/* What landed of a sector's write. */
static void
land (const struct call *c, uint64_t at)
{
  const uint64_t n = c->count - at < SECTOR ? c->count - at : SECTOR;

  if (c->data != NULL)
    memcpy (state + c->offset + at, c->data + at, n);
  else
    memset (state + c->offset + at, 0, n);
}

static void
land_all (const struct call *c)
{
  uint64_t at;

  for (at = 0; at < c->count; at += SECTOR)
    land (c, at);
}

/* Most, few or half of the sectors. */
static void
land_some (const struct call *c, unsigned of_8, uint64_t *random)
{
  uint64_t at;

  for (at = 0; at < c->count; at += SECTOR) {
    if (random_below (random, 8) < of_8)
      land (c, at);
  }
}

/* All before the last flush is there.  Of the calls from `first' up to the
 * cut any subset is, and any sectors of them.
 */
static void
cut_at (unsigned cut, unsigned first, const uint8_t *durable, uint64_t seed)
{
  const unsigned pending = cut - first;
  uint64_t mask, random, i;
  unsigned j;

  for (mask = 0; pending <= 6 && mask < UINT64_C (1) << pending; ++mask) {
    memcpy (state, durable, disk_size);
    for (j = 0; j < pending; ++j) {
      if (mask >> j & 1)
        land_all (&calls[first + j]);
    }
    check_state (cut, "mask", mask);
  }
  for (i = 0; pending > 0 && i < ROUNDS / TEST_EACH (4); ++i) {
    random = seed + i;
    memcpy (state, durable, disk_size);
    for (j = first; j < cut; ++j)
      land_some (&calls[j], 1 + i % 7, &random);
    check_state (cut, "seed", seed + i);
  }
}

static void
cut_everywhere (uint64_t seed)
{
  static uint8_t durable[MAX_DISK];
  unsigned cut, first = 0, i;

  memcpy (durable, before, disk_size);
  for (cut = 0; cut <= nr_calls; ++cut) {
    cut_at (cut, first, durable, seed + cut * ROUNDS);
    if (cut == nr_calls || calls[cut].count > 0)
      continue;
    memcpy (state, durable, disk_size);
    for (i = first; i < cut; ++i)
      land_all (&calls[i]);
    memcpy (durable, state, disk_size);
    first = cut + 1;
  }
}

/* ------------------------------------------------------------------ images */

/* An old image with a backing file's name that goes beyond a sector, and
 * garbage behind it.
 */
static void
make_old (unsigned bits)
{
  struct create_options o = CREATE_DEFAULTS;
  char name[600];
  uint64_t random = bits;

  memset (name, 'o', sizeof name - 1);
  name[sizeof name - 1] = 0;
  if (bits < 10)
    name[200] = 0;
  o.backing = name;
  o.backing_format = "raw";
  o.cluster_size = UINT64_C (1) << bits;
  o.size = 300000;
  random_fill (&random, before, disk_size);
  create (&o);
  forget_calls ();
  memcpy (before, now, disk_size);
}

enum kind { PLAIN, WITH_BACKING, ENCRYPTED };

static void
test (unsigned old_bits, unsigned bits, enum preallocation preallocation,
      enum kind kind)
{
  static const char *const name[] = { "", ", backing", ", LUKS" };
  static const struct passphrase words = { "words", 5 };
  struct create_options o = CREATE_DEFAULTS;
  const uint64_t seed = bits * 1000 + preallocation * 100 + kind;

  snprintf (what, sizeof what, "clusters of 2^%u over 2^%u, preallocation %d%s",
            bits, old_bits, preallocation, name[kind]);
  /* The material of LUKS keys alone is 2 MB. */
  disk_size = kind == ENCRYPTED ? MAX_DISK : UINT64_C (640) << 10;
  make_old (old_bits);
  o.cluster_size = UINT64_C (1) << bits;
  o.size = 200000;
  o.preallocation = preallocation;
  if (kind == WITH_BACKING) {
    o.backing = "/a/name/that/is/long/enough/to/go/beyond/the/first/sector/of/"
      "512/bytes/if/the/names/of/features/and/the/format/are/before/it";
    o.backing_format = "qcow2";
  } else if (kind == ENCRYPTED) {
    o.passphrase = &words;
    o.iter_time = 1;
  }
  create (&o);
  cut_everywhere (seed);
  forget_calls ();
}

int
main (void)
{
  static const unsigned bits[] = { 9, 12, 16 };
  unsigned i, j, p;

  check_time_limit (600);
  for (i = 0; i < 3; ++i) {
    for (j = 0; j < 3; ++j) {
      if ((i + j) % TEST_EACH (3) != 0)
        continue;
      for (can_zero = false;; can_zero = true) {
        for (p = PREALLOCATION_OFF; p <= PREALLOCATION_FULL; ++p)
          test (bits[i], bits[j], p, PLAIN);
        test (bits[i], bits[j], PREALLOCATION_OFF, WITH_BACKING);
        if (crypto_library () != NULL)
          test (bits[i], bits[j], PREALLOCATION_OFF, ENCRYPTED);
        if (can_zero)
          break;
      }
    }
  }
  CHECK (old_ones > 0 && new_ones > 0 && states > old_ones + new_ones);
  printf ("%" PRIu64 " states: %" PRIu64 " the old image, %" PRIu64
          " the new one\n", states, old_ones, new_ones);
  return check_result ();
}
