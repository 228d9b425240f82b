/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/entry.c, against a second implementation that follows the spec's text
 * bit by bit.
 */

#include <config.h>

#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "qcow2/entry.h"
#include "random.h"

/* Bits lo to hi of w, both included. */
static uint64_t
bits (uint64_t w, unsigned lo, unsigned hi)
{
  uint64_t r = 0;
  unsigned i;

  for (i = lo; i <= hi; ++i) {
    if ((w >> i) % 2 == 1)
      r += UINT64_C (1) << (i - lo);
  }
  return r;
}

static bool
is_multiple (uint64_t offset, const struct entry_format *f)
{
  return offset % (UINT64_C (1) << f->cluster_bits) == 0;
}

/* What one subcluster (or the only one) is, and where its cluster is. */
struct state {
  enum cluster_kind kind;
  uint64_t host;
  uint64_t size; /* COMPRESSED */
  const char *why;
};

static struct state
expected (const struct entry_format *f, uint64_t word, uint64_t bitmap,
          unsigned sub)
{
  struct state s = { .kind = CLUSTER_INVALID };

  if (bits (word, 62, 62) == 1) {
    const unsigned x = 62 - (f->cluster_bits - 8);

    s.host = bits (word, 0, x - 1);
    s.size = (bits (word, x, 61) + 1) * 512 - s.host % 512;
    if (s.host == 0 || (x > 56 && bits (word, 56, x - 1) != 0))
      s.why = "compressed data";
    else
      s.kind = CLUSTER_COMPRESSED;
    return s;
  }
  s.host = bits (word, 9, 55) * 512;
  if (!is_multiple (s.host, f)) {
    s.why = "not a multiple of the cluster size";
    return s;
  }
  if (!f->extended_l2) {
    const bool zero = bits (word, 0, 0) == 1;

    if (zero && f->version == 2)
      s.why = "version 2";
    else if (zero)
      s.kind = s.host == 0 ? CLUSTER_ZERO_PLAIN : CLUSTER_ZERO_ALLOC;
    else
      s.kind = s.host == 0 ? CLUSTER_UNALLOCATED : CLUSTER_STANDARD;
    return s;
  }
  for (unsigned i = 0; i < 32; ++i) {
    const bool allocated = bits (bitmap, i, i) == 1;
    const bool zero = bits (bitmap, 32 + i, 32 + i) == 1;

    if (allocated && zero) {
      s.kind = CLUSTER_INVALID;
      s.why = "both allocated and zero";
      return s;
    }
    if (allocated && s.host == 0)
      s.why = "no cluster offset";
    if (i == sub)
      s.kind = allocated ? CLUSTER_STANDARD
        : !zero ? CLUSTER_UNALLOCATED
        : s.host == 0 ? CLUSTER_ZERO_PLAIN : CLUSTER_ZERO_ALLOC;
  }
  if (s.why != NULL)
    s.kind = CLUSTER_INVALID;
  return s;
}

static enum cluster_kind
found_kind (const struct l2_entry *e, unsigned sub)
{
  return e->kind == CLUSTER_SUBCLUSTERS ? entry_subcluster (e, sub) : e->kind;
}

static uint64_t seen[2][CLUSTER_INVALID + 1]; /* by extended_l2 */

static void
compare (const struct entry_format *f, uint64_t word, uint64_t bitmap)
{
  const struct l2_entry e = entry_decode_l2 (f, word, bitmap);
  unsigned sub;

  seen[f->extended_l2][e.kind]++;
  if (!f->extended_l2)
    CHECK (e.kind != CLUSTER_SUBCLUSTERS);
  for (sub = 0; sub < (e.kind == CLUSTER_SUBCLUSTERS ? 32 : 1); ++sub) {
    const struct state s = expected (f, word, bitmap, sub);

    if (found_kind (&e, sub) != s.kind) {
      check_failed (__FILE__, __LINE__, "version %u cluster_bits %u extended "
                    "%d word 0x%" PRIx64 " bitmap 0x%" PRIx64 " subcluster "
                    "%u: kind %d is not %d", f->version, f->cluster_bits,
                    f->extended_l2, word, bitmap, sub,
                    (int) found_kind (&e, sub), (int) s.kind);
      return;
    }
    if (s.kind == CLUSTER_INVALID)
      CHECK_HAS (entry_why (f, word, bitmap), s.why);
    if (s.kind == CLUSTER_STANDARD || s.kind == CLUSTER_ZERO_ALLOC ||
        s.kind == CLUSTER_COMPRESSED)
      CHECK_EQ (e.host.v, s.host);
    if (s.kind == CLUSTER_COMPRESSED)
      CHECK_EQ (e.compressed_size, s.size);
  }
  if (e.kind == CLUSTER_SUBCLUSTERS)
    CHECK_EQ (e.allocated & e.zero, 0);
  if (e.kind != CLUSTER_INVALID && !(word & QCOW2_L2_COMPRESSED))
    CHECK_EQ (host_is_none (e.host), (word & QCOW2_ENTRY_OFFSET_MASK) == 0);
  /* The uniform extended ones have all their subclusters alike. */
  if (f->extended_l2 && (e.kind == CLUSTER_STANDARD ||
                         e.kind == CLUSTER_UNALLOCATED)) {
    for (sub = 0; sub < 32; ++sub)
      CHECK_EQ (expected (f, word, bitmap, sub).kind, e.kind);
  }
}

static uint64_t
random_bitmap (uint64_t *state)
{
  uint64_t a = random_next (state), b = random_next (state);

  switch (random_below (state, 8)) {
  case 0: return 0;
  case 1: return UINT32_MAX;
  case 2: return (uint64_t) UINT32_MAX << 32;
  case 3: return a; /* nearly always invalid */
  case 4: return UINT64_C (1) << (a % 64);
  case 5: return ~(UINT64_C (1) << (a % 32)) & UINT32_MAX;
  default: /* valid */
    a &= UINT32_MAX;
    return a | (b & ~a & UINT32_MAX) << 32;
  }
}

static uint64_t
random_word (uint64_t *state, const struct entry_format *f)
{
  uint64_t w = random_next (state);

  switch (random_below (state, 8)) {
  case 0: return w;
  case 1: return 0;
  case 2: return 1;
  case 3: return UINT64_C (1) << (w % 64);
  case 4: return QCOW2_L2_COMPRESSED | w >> (w % 64);
  default: /* aligned, with any flags */
    w = w << f->cluster_bits & QCOW2_ENTRY_OFFSET_MASK;
    if (random_below (state, 3) == 0)
      w |= QCOW2_ENTRY_COPIED;
    if (random_below (state, 4) == 0)
      w |= 1;
    if (random_below (state, 8) == 0) /* reserved bits don't matter */
      w |= UINT64_C (0x3f000000000001fe) & random_next (state);
    return w;
  }
}

static void
test_random (void)
{
  uint64_t state = 2;
  unsigned i;

  for (i = 0; i < 1000000; ++i) {
    struct entry_format f = {
      .version = 2 + random_below (&state, 2),
      .cluster_bits = 9 + random_below (&state, 13),
    };
    uint64_t word;

    if (f.version == 3 && f.cluster_bits >= 14)
      f.extended_l2 = random_below (&state, 4) != 0;
    word = random_word (&state, &f);
    compare (&f, word, random_bitmap (&state));
  }
  for (i = 0; i <= CLUSTER_INVALID; ++i) {
    if (i != CLUSTER_SUBCLUSTERS)
      CHECK (seen[0][i] > 1000);
    if (i != CLUSTER_ZERO_PLAIN && i != CLUSTER_ZERO_ALLOC)
      CHECK (seen[1][i] > 1000);
  }
}

/* Every pair of bits, in every format. */
static void
test_bits (void)
{
  struct entry_format f = { .data_file = false };
  unsigned a, b;

  for (f.version = 2; f.version <= 3; ++f.version) {
    for (f.cluster_bits = 9; f.cluster_bits <= 21; ++f.cluster_bits) {
      for (int x = 0; x <= (f.version == 3 && f.cluster_bits >= 14); ++x) {
        f.extended_l2 = x;
        compare (&f, 0, 0);
        compare (&f, UINT64_MAX, 0);
        compare (&f, ~QCOW2_L2_COMPRESSED, UINT64_MAX);
        for (a = 0; a < 64; ++a) {
          for (b = 0; b < 64; ++b) {
            const uint64_t word = UINT64_C (1) << a | UINT64_C (1) << b;

            compare (&f, word, 0);
            compare (&f, word, UINT32_MAX);
            compare (&f, UINT64_C (0x200000), word); /* as a bitmap */
            compare (&f, 0, word);
          }
        }
      }
    }
  }
}

/* Both bits of a subcluster, all four ways, at each place, with the others
 * in each state: what holds for one must not depend on its place.
 */
static void
test_subclusters (void)
{
  const struct entry_format f = {
    .version = 3, .cluster_bits = 16, .extended_l2 = true,
  };
  static const uint64_t others[] = { 0, UINT32_MAX, ~(uint64_t) UINT32_MAX };
  unsigned i, o, two;

  for (i = 0; i < 32; ++i) {
    const uint64_t mask = UINT64_C (0x100000001) << i;

    for (o = 0; o < 3; ++o) {
      for (two = 0; two < 4; ++two) {
        const uint64_t bitmap = (others[o] & ~mask) |
          (uint64_t) (two & 1) << i | (uint64_t) (two >> 1) << (32 + i);

        compare (&f, 0x70000, bitmap);
        compare (&f, QCOW2_ENTRY_COPIED | 0x70000, bitmap);
        compare (&f, 0x70001, bitmap); /* bit 0 means nothing here */
        compare (&f, 0, bitmap);
      }
    }
  }
}

static void
test_compressed (void)
{
  struct entry_format f = { .version = 3 };

  for (f.cluster_bits = 9; f.cluster_bits <= 21; ++f.cluster_bits) {
    const unsigned x = 62 - (f.cluster_bits - 8);
    struct l2_entry e;

    /* The largest size, at the least offset. */
    e = entry_decode_l2 (&f, UINT64_C (0x7fffffffffffffff) &
                         ~((UINT64_C (1) << x) - 1 - 1), 0);
    CHECK_EQ (e.kind, CLUSTER_COMPRESSED);
    CHECK_EQ (e.host.v, 1);
    CHECK_EQ (e.compressed_size, (UINT64_C (2) << f.cluster_bits) - 1);
    /* The least size: the last byte of a sector. */
    e = entry_decode_l2 (&f, QCOW2_L2_COMPRESSED | 0x1ff, 0);
    CHECK_EQ (e.host.v, 0x1ff);
    CHECK_EQ (e.compressed_size, 1);
    /* The bitmap means nothing. */
    e = entry_decode_l2 (&f, QCOW2_L2_COMPRESSED | 0x10000, UINT64_MAX);
    CHECK_EQ (e.kind, CLUSTER_COMPRESSED);
    CHECK_EQ (e.compressed_size, 512);
  }
}

/* What is encoded is decoded again, to the end of its last sector. */
static void
test_encode_compressed (void)
{
  struct entry_format f = { .version = 3 };
  uint64_t state = 17, words[2];
  unsigned i;

  for (i = 0; i < 200000; ++i) {
    const uint64_t last = (UINT64_C (1) << 56) - 1;
    struct host_off host;
    struct l2_entry e;
    uint32_t bytes;

    f.cluster_bits = 9 + random_below (&state, 13);
    f.extended_l2 = f.cluster_bits >= 14 && random_below (&state, 2);
    bytes = 1 + random_below (&state, (UINT64_C (1) << f.cluster_bits) - 1);
    host.v = 1 + ((random_next (&state) & last) / 2 >>
                  (f.cluster_bits > 14 ? f.cluster_bits - 14 : 0));
    CHECK (entry_compressed_fits (&f, host));
    words[1] = UINT64_MAX;
    entry_encode_compressed (&f, host, bytes, words);
    CHECK_EQ (words[1], 0);
    CHECK_EQ (words[0] >> 63, 0);
    e = entry_decode_l2 (&f, words[0], words[1]);
    CHECK_EQ (e.kind, CLUSTER_COMPRESSED);
    CHECK_EQ (e.host.v, host.v);
    CHECK_EQ ((e.host.v + e.compressed_size) % 512, 0);
    CHECK (e.compressed_size >= bytes && e.compressed_size < bytes + 512);
    CHECK (!e.copied);
  }
}

/* Large clusters leave fewer bits for the offset; it has 56 at most. */
static void
test_compressed_fits (void)
{
  struct entry_format f = { .version = 3 };

  for (f.cluster_bits = 9; f.cluster_bits <= 21; ++f.cluster_bits) {
    const unsigned offset_bits = f.cluster_bits <= 14 ? 56
      : 70 - f.cluster_bits;
    const struct host_off beyond = { UINT64_C (1) << offset_bits };
    const struct host_off last = { beyond.v - 1 };

    CHECK (entry_compressed_fits (&f, last));
    CHECK (!entry_compressed_fits (&f, beyond));
  }
}

static void
test_l1 (void)
{
  struct entry_format f = { .version = 3 };
  uint64_t state = 3;
  unsigned i;

  for (i = 0; i < 200000; ++i) {
    struct host_off table;
    uint64_t word, offset;

    f.cluster_bits = 9 + random_below (&state, 13);
    word = random_word (&state, &f);
    offset = bits (word, 9, 55) * 512;
    CHECK_EQ (entry_decode_l1 (&f, word, &table), is_multiple (offset, &f));
    CHECK_EQ (table.v, offset);
  }
}

/* What is encoded is decoded to the same. */
static void
test_encode (void)
{
  struct entry_format f = { .version = 3 };
  uint64_t state = 9, words[2];
  unsigned i;

  for (i = 0; i < 200000; ++i) {
    const bool copied = random_below (&state, 2);
    struct host_off host = HOST_NONE;
    bool has_host;
    uint32_t allocated = 0, zero = 0;
    struct l2_entry e;

    f.cluster_bits = 9 + random_below (&state, 13);
    f.extended_l2 = f.cluster_bits >= 14 && random_below (&state, 2);
    if (random_below (&state, 4))
      host.v = (random_next (&state) & QCOW2_ENTRY_OFFSET_MASK) >>
        f.cluster_bits << f.cluster_bits;
    if (host.v == 0) /* which is a place in files of data alone */
      host = HOST_NONE;
    has_host = !host_is_none (host);
    if (f.extended_l2) {
      allocated = has_host ? random_next (&state) : 0;
      zero = random_next (&state) & ~allocated;
    }
    else {
      zero = random_below (&state, 2);
      allocated = has_host && !zero;
    }
    words[0] = words[1] = UINT64_MAX;
    entry_encode_l2 (&f, host, copied, allocated, zero, words);
    CHECK_EQ (words[0] & ~(QCOW2_ENTRY_OFFSET_MASK | QCOW2_ENTRY_COPIED |
                           (f.extended_l2 ? 0 : QCOW2_L2_ZERO)), 0);
    e = entry_decode_l2 (&f, words[0], words[1]);
    CHECK_EQ (e.host.v, host.v);
    CHECK_EQ (e.copied, copied && has_host);
    if (f.extended_l2) {
      CHECK_EQ (e.allocated, allocated);
      CHECK_EQ (e.zero, zero);
      CHECK (e.kind != CLUSTER_INVALID && e.kind != CLUSTER_COMPRESSED);
      continue;
    }
    CHECK_EQ (words[1], 0);
    CHECK_EQ (e.kind, zero ? has_host ? CLUSTER_ZERO_ALLOC
              : CLUSTER_ZERO_PLAIN
              : has_host ? CLUSTER_STANDARD : CLUSTER_UNALLOCATED);
  }
}

/* Refcounts, byte by byte.  Spec: Host cluster management. */
static uint64_t
refcount_of_bytes (const uint8_t *block, unsigned order, unsigned i)
{
  const unsigned width = 1U << order;
  uint64_t value = 0;
  unsigned n;

  if (width < 8)
    return block[i * width / 8] >> i * width % 8 & ((1U << width) - 1);
  for (n = 0; n < width / 8; ++n)
    value = value << 8 | block[i * width / 8 + n];
  return value;
}

static uint64_t
word_of (const uint8_t *block, unsigned order, unsigned i)
{
  return get_be64 (block + ((uint64_t) i << order) / 64 * 8);
}

#define BLOCK 512

static void
test_refcounts (void)
{
  uint8_t block[BLOCK];
  uint64_t state = 77;
  unsigned order, round, i;

  for (order = 0; order <= QCOW2_MAX_REFCOUNT_ORDER; ++order) {
    const unsigned nr = BLOCK * 8 >> order;
    uint64_t model[BLOCK * 8];

    CHECK_EQ (entry_refcount_max (order), order == 6 ? UINT64_MAX :
              (UINT64_C (1) << (1U << order)) - 1);
    random_fill (&state, block, sizeof block);
    for (i = 0; i < nr; ++i) {
      model[i] = refcount_of_bytes (block, order, i);
      CHECK_EQ (entry_get_refcount (order, word_of (block, order, i), i),
                model[i]);
    }
    for (round = 0; round < 2 * nr; ++round) {
      i = random_below (&state, nr);
      model[i] = random_next (&state) & entry_refcount_max (order);
      put_be64 (block + ((uint64_t) i << order) / 64 * 8,
                entry_put_refcount (order, word_of (block, order, i), i,
                                    model[i]));
    }
    for (i = 0; i < nr; ++i)
      CHECK_EQ (refcount_of_bytes (block, order, i), model[i]);
  }
}

static void
test_bitmap_entries (void)
{
  static const uint64_t invalid[] = {
    2, 0x100, 0x10001, 0x10002, 0x10100, 0x10200, 0x18000,
    UINT64_C (1) << 56, UINT64_C (1) << 63, (UINT64_C (1) << 63) | 0x10000,
    (UINT64_C (1) << 63) | 1, UINT64_MAX,
  };
  const uint64_t last = UINT64_C (0x00ffffffffff0000);
  struct host_off host = HOST_NONE;
  size_t i;

  CHECK_EQ (entry_decode_bitmap (0, 16, &host), BITMAP_PART_CLEAN);
  CHECK_EQ (entry_decode_bitmap (1, 16, &host), BITMAP_PART_DIRTY);
  for (i = 0; i < sizeof invalid / sizeof invalid[0]; ++i)
    CHECK_EQ (entry_decode_bitmap (invalid[i], 16, &host),
              BITMAP_PART_INVALID);
  CHECK (host_is_none (host));
  CHECK_EQ (entry_decode_bitmap (last, 16, &host), BITMAP_PART_CLUSTER);
  CHECK_EQ (host.v, last);
  CHECK_EQ (entry_decode_bitmap (0x200, 9, &host), BITMAP_PART_CLUSTER);
  CHECK_EQ (host.v, 0x200);
}

int
main (void)
{
  check_time_limit (200);
  test_bits ();
  test_encode ();
  test_refcounts ();
  test_subclusters ();
  test_compressed ();
  test_encode_compressed ();
  test_compressed_fits ();
  test_l1 ();
  test_bitmap_entries ();
  test_random ();
  return check_result ();
}
