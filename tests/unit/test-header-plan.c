/* SPDX-License-Identifier: BSD-3-Clause */

/* Headers that get another backing file, version or feature bits: whatever part
 * of a step is on the disk, the header says what it did before, or what it shall
 * say; and extensions that nobody knows stay.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "check.h"
#include "manage/header-plan.h"
#include "random.h"

#define FILE_SIZE (64 << 20)
#define UNKNOWN 0x12345678
#define MAX_CLUSTER 65536
#define SUBSETS 40 /* of the sectors of a step, at most */

static unsigned planned, refused, two_steps;

/* ---------------------------------------------------------------- old headers */

/* What a header is made of. */
struct sample {
  uint32_t version;
  size_t len;          /* of a cluster */
  size_t length;       /* of the header */
  bool names;          /* of features */
  size_t unknown;      /* bytes of an unknown extension; 0: there is none */
  bool unknown_first;
  bool no_end;         /* the extensions end where the name begins */
  size_t name;         /* bytes of the backing file's; 0: there is none */
  bool format;
  size_t gap;          /* before the name */
};

static uint8_t *
put_extension (uint8_t *buf, size_t *at, size_t len, uint32_t type, size_t n)
{
  const size_t bytes = 8 + (n + 7) / 8 * 8;

  if (bytes > len || *at > len - bytes)
    return NULL;
  put_be32 (buf + *at, type);
  put_be32 (buf + *at + 4, n);
  *at += bytes;
  return buf + *at - bytes + 8;
}

static bool
put_unknown (const struct sample *s, uint8_t *buf, size_t *at)
{
  uint8_t *p;

  if (s->unknown == 0)
    return true;
  p = put_extension (buf, at, s->len, UNKNOWN, s->unknown);
  if (p != NULL)
    memset (p, 0x77, s->unknown);
  return p != NULL;
}

/* Returns false if there is no room. */
static bool
make_header (const struct sample *s, uint8_t *buf)
{
  const struct header h = {
    .version = s->version, .cluster_bits = __builtin_ctzll (s->len),
    .disk_size = 1 << 20, .l1_size = 4096, .l1_offset = { s->len * 8 },
    .refcount_order = 4, .refcount_table_offset = { s->len },
    .refcount_table_clusters = 1,
  };
  size_t at = s->length;
  uint8_t *p;

  memset (buf, 0, s->len);
  if (header_encode ("test", &h, buf, s->len) == -1)
    return false;
  memset (buf + at, 0, s->len - at);
  if (s->version >= 3)
    put_be32 (buf + 100, s->length);
  if (s->unknown_first && !put_unknown (s, buf, &at))
    return false;
  if (s->format) {
    p = put_extension (buf, &at, s->len, QCOW2_EXT_BACKING_FORMAT, 3);
    if (p == NULL)
      return false;
    memcpy (p, "raw", 3);
  }
  if (s->names && put_extension (buf, &at, s->len, QCOW2_EXT_FEATURE_NAMES,
                                 384) == NULL)
    return false;
  if (!s->unknown_first && !put_unknown (s, buf, &at))
    return false;
  if (!s->no_end && put_extension (buf, &at, s->len, QCOW2_EXT_END, 0) == NULL)
    return false;
  at += s->gap;
  if (at > s->len || s->name > s->len - at)
    return false;
  memset (buf + at, 'o', s->name);
  put_be64 (buf + 8, s->name > 0 ? at : 0);
  put_be32 (buf + 16, s->name);
  return true;
}

/* ------------------------------------------------------------------ verdicts */

static bool
decode (const uint8_t *buf, size_t len, struct header *h)
{
  if (header_decode ("test", buf, len, FILE_SIZE, h) == 0)
    return true;
  check_failed (__FILE__, __LINE__, "%s", error_message ());
  return false;
}

/* The bytes of the unknown extension that are there. */
static size_t
count_unknown (const uint8_t *buf, size_t len)
{
  const uint64_t name = get_be64 (buf + 8);
  size_t at = get_be32 (buf + 4) < 3 ? 72 : get_be32 (buf + 100), n = 0, i;
  const size_t end = name != 0 ? name : len;

  while (at + 8 <= end && get_be32 (buf + at) != QCOW2_EXT_END) {
    const uint32_t count = get_be32 (buf + at + 4);

    for (i = 0; get_be32 (buf + at) == UNKNOWN && i < count; ++i)
      n += buf[at + 8 + i] == 0x77;
    at += 8 + (count + 7) / 8 * 8;
  }
  return n;
}

static void
check_same (const struct header *a, const struct header *b)
{
  CHECK_STR (a->backing_name, b->backing_name);
  CHECK_STR (a->backing_format, b->backing_format);
  CHECK_EQ (a->version, b->version);
  CHECK_EQ (a->header_length, b->header_length);
  CHECK_EQ (a->compatible, b->compatible);
  CHECK_EQ (a->disk_size, b->disk_size);
}

/* Some of the sectors of `to' but the first are there. */
static void
check_between (const struct sample *s, const uint8_t *from, const uint8_t *to,
               uint64_t seed)
{
  static uint8_t mixed[MAX_CLUSTER];
  struct header before, h;
  uint64_t i;

  memcpy (mixed, from, s->len);
  for (i = 1; i < s->len / HEADER_SECTOR; ++i)
    if (seed == 0 || mix (seed * 1000 + i) % 2 == 0)
      memcpy (mixed + i * HEADER_SECTOR, to + i * HEADER_SECTOR, HEADER_SECTOR);
  if (!decode (mixed, s->len, &h) || !decode (from, s->len, &before))
    return;
  check_same (&h, &before);
  CHECK_EQ (count_unknown (mixed, s->len), s->unknown);
}

static void
check_plan (const struct sample *s, const uint8_t *old,
            const struct header_plan *p, const struct header_wish *w)
{
  const uint8_t *from = old;
  struct header h;
  unsigned i;
  uint64_t k;

  for (i = 0; i < p->nr; ++i) {
    for (k = 0; k < SUBSETS && k < s->len / HEADER_SECTOR; ++k)
      check_between (s, from, p->cluster[i], k);
    from = p->cluster[i];
    CHECK_EQ (count_unknown (from, s->len), s->unknown);
    if (!decode (from, s->len, &h))
      return;
    CHECK_STR (h.backing_name, w->backing_name);
    CHECK_STR (h.backing_format, w->backing_format);
    CHECK_EQ (h.version, w->version);
    CHECK_EQ (h.compatible, h.version >= 3 ? w->compatible : 0);
    CHECK_EQ (h.disk_size, 1 << 20);
    CHECK_EQ (h.l1_size, 4096);
    CHECK_EQ (h.refcount_order, 4);
    CHECK_EQ (h.compression, w->compression);
    /* So that one sector has both. */
    if (h.backing_format[0] != '\0')
      CHECK_EQ (get_be32 (from + h.header_length), QCOW2_EXT_BACKING_FORMAT);
  }
}

/* --------------------------------------------------------------------- rounds */

static size_t
one_of (uint64_t x, const size_t *choice, size_t nr)
{
  return choice[x % nr];
}

#define ONE_OF(seed, ...) \
  one_of (mix (seed), (const size_t[]) { __VA_ARGS__ }, \
          sizeof (const size_t[]) { __VA_ARGS__ } / sizeof (size_t))

static void
try_sample (const struct sample *s, uint64_t seed)
{
  static uint8_t old[MAX_CLUSTER];
  static char name[QCOW2_MAX_BACKING_NAME + 1];
  const size_t n = ONE_OF (seed + 1, 0, 0, 1, 8, 20, 100, 300, 1023);
  struct header_plan plan;
  struct header h;
  struct header_wish w = {
    .version = ONE_OF (seed + 2, 2, 3, 3), .backing_name = name,
    .backing_format = n == 0 ? "" : mix (seed + 3) % 2 ? "qcow2"
      : "raw-by-another",
  };

  if (!make_header (s, old))
    return;
  memset (name, 'n', n);
  name[n] = '\0';
  if (w.version >= 3)
    w.compatible = mix (seed + 4) % 2;
  if (w.version >= 3 && mix (seed + 5) % 4 == 0) {
    w.compression = COMPRESSION_ZSTD;
    w.incompatible = QCOW2_INCOMPAT_COMPRESSION;
  }
  if (!decode (old, s->len, &h))
    return;
  if (header_plan_make (&plan, "test", old, &h, FILE_SIZE, &w) == 0) {
    planned++;
    two_steps += plan.nr == 2;
    check_plan (s, old, &plan, &w);
  }
  else {
    refused++;
    CHECK_EQ (error_errno (), ENOTSUP);
  }
  header_plan_free (&plan);
}

static void
try_round (uint64_t i)
{
  const uint64_t seed = i * 100;
  struct sample s = {
    .version = ONE_OF (seed + 10, 2, 3, 3),
    .len = ONE_OF (seed + 11, 512, 1024, 4096, 65536),
    .names = mix (seed + 12) % 2,
    .unknown = ONE_OF (seed + 13, 0, 0, 3, 64, 500),
    .unknown_first = mix (seed + 14) % 2,
    .name = ONE_OF (seed + 15, 0, 1, 9, 40, 333, 1000),
    .format = mix (seed + 16) % 2,
    .gap = ONE_OF (seed + 17, 0, 0, 8, 100, 500),
  };

  s.length = s.version < 3 ? 72 : ONE_OF (seed + 18, 104, 112, 112, 160);
  s.no_end = s.name > 0 && s.gap == 0 && mix (seed + 19) % 4 == 0;
  try_sample (&s, seed);
}

/* Images as QEMU makes them can all be changed, and back. */
static void
try_usual (void)
{
  struct sample s = { .len = 65536, .names = true, .gap = 0 };
  const unsigned before = refused;
  uint64_t i;

  for (i = 0; i < 400; ++i) {
    s.version = 2 + i % 2;
    s.length = s.version == 2 ? 72 : 112;
    s.names = s.version == 3;
    s.name = i / 2 % 2 ? 10 + i % 50 : 0;
    s.format = s.name > 0;
    try_sample (&s, 1000000 + i * 100);
  }
  CHECK_EQ (refused, before);
}

int
main (void)
{
  uint64_t i;

  check_time_limit (100);
  try_usual ();
  for (i = 0; i < 6000 && !check_any_failed (); ++i)
    try_round (i);
  printf ("%u changes, %u of them in two steps; %u refused\n", planned,
          two_steps, refused);
  CHECK (two_steps > 100 && refused > 100);
  return check_result ();
}
