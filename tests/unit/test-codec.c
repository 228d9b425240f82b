/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/codec.c, against the compressors of zlib and zstd. */

#include <config.h>

#include <pthread.h>
#include <stdlib.h>

#include <zlib.h>
#include <zstd.h>

#include "base/bytes.h"
#include "build.h"
#include "check.h"
#include "qcow2/codec.h"
#include "random.h"
#include "seconds.h"

#define MAX_CLUSTER ((size_t) 1 << QCOW2_MAX_CLUSTER_BITS)

static struct codec_pool *pool;
static uint8_t plain[2 * MAX_CLUSTER];
static uint8_t packed[2 * BUILD_BOUND (MAX_CLUSTER)];
static uint8_t out[MAX_CLUSTER];

/* Both buffers are copied to where a sanitizer sees what is beyond. */
static const char *
decode (enum compression type, const void *in, size_t in_len, size_t out_len)
{
  struct codec *c = codec_get (pool);
  uint8_t *to = malloc (out_len);
  const char *why;
  void *from;

  if (c == NULL || to == NULL)
    abort ();
  from = codec_input (c, in_len);
  if (from == NULL)
    abort ();
  memcpy (from, in, in_len);
  why = codec_decode (c, type, from, in_len, to, out_len);
  memcpy (out, to, out_len);
  free (to);
  codec_put (pool, c);
  return why;
}

#define CHECK_DECODES(type, in_len, out_len)                            \
  do {                                                                  \
    const char *why_ = decode (type, packed, in_len, out_len);          \
    if (why_ != NULL)                                                   \
      check_failed (__FILE__, __LINE__, "%s", why_);                    \
    CHECK (memcmp (out, plain, out_len) == 0);                          \
  } while (0)

#define CHECK_REFUSES(type, in_len, out_len, part)                      \
  CHECK_HAS (decode (type, packed, in_len, out_len), part)

enum content {
  ZEROS, TEXT, NOISE, FAR_REPEATS, NEAR_REPEATS, NR_CONTENTS
};

static void
make_plain (enum content content, size_t len)
{
  uint64_t state = 4;
  size_t i;

  switch (content) {
  case ZEROS:
    memset (plain, 0, len);
    return;
  case TEXT:
    build_pattern (plain, len, 7);
    return;
  case NOISE:
    random_fill (&state, plain, len);
    return;
  case FAR_REPEATS: /* repeats at nearly 32 KiB */
    random_fill (&state, plain, len);
    for (i = 32000; i < len; ++i)
      plain[i] = plain[i - 32000];
    return;
  case NEAR_REPEATS: /* repeats at 4 KiB, and a little more and less */
    random_fill (&state, plain, len);
    for (i = 5000; i < len; ++i)
      plain[i] = plain[i - 4096 - i / 300 % 20 * (i / 6000 % 2)
                       + i / 300 % 20 * (i / 12000 % 2)];
    return;
  case NR_CONTENTS:
    break;
  }
  abort ();
}

static void
test_deflate (unsigned cluster_bits, enum content content)
{
  const size_t len = (size_t) 1 << cluster_bits;
  static const int windows[] = { -12, -15 };
  uint64_t state = 5;
  unsigned w;
  size_t size;

  make_plain (content, len);
  for (w = 0; w < 2; ++w) {
    size = build_deflate (plain, len, packed, windows[w], 6, true);
    CHECK_DECODES (COMPRESSION_DEFLATE, size, len);
    /* The format overstates the size. */
    random_fill (&state, packed + size, 511);
    CHECK_DECODES (COMPRESSION_DEFLATE, size + 511, len);
    memset (packed + size, 0, 511);
    CHECK_DECODES (COMPRESSION_DEFLATE, size + 1, len);

    /* Not ended, but the output is full. */
    size = build_deflate (plain, len, packed, windows[w], 6, false);
    CHECK_DECODES (COMPRESSION_DEFLATE, size, len);
    CHECK_DECODES (COMPRESSION_DEFLATE, size - 4, len);
    /* ... and what follows is no valid block: zeros, or bits all set. */
    memset (packed + size, 0, 100);
    CHECK_DECODES (COMPRESSION_DEFLATE, size + 100, len);
    memset (packed + size, 0xff, 100);
    CHECK_DECODES (COMPRESSION_DEFLATE, size + 100, len);
  }

  /* Stored blocks. */
  size = build_deflate (plain, len, packed, -15, 0, true);
  CHECK_DECODES (COMPRESSION_DEFLATE, size, len);
  CHECK_REFUSES (COMPRESSION_DEFLATE, size / 2, len, "deflate stream");

  /* Too short by a byte, and longer. */
  size = build_deflate (plain, len - 1, packed, -12, 6, true);
  CHECK_REFUSES (COMPRESSION_DEFLATE, size, len, "before the cluster is full");
  size = build_deflate (plain, len - 1, packed, -12, 6, false);
  CHECK_REFUSES (COMPRESSION_DEFLATE, size, len, "cut off");
  size = build_deflate (plain, len, packed, -12, 6, true);
  CHECK_DECODES (COMPRESSION_DEFLATE, size, len / 2);
  CHECK_REFUSES (COMPRESSION_DEFLATE, 0, len, "deflate stream");
}

static void
test_zstd (unsigned cluster_bits, enum content content)
{
  const size_t len = (size_t) 1 << cluster_bits;
  const size_t third = len / 3;
  uint64_t state = 6;
  size_t size, first;
  int checksum;

  make_plain (content, len);
  for (checksum = 0; checksum < 2; ++checksum) {
    size = build_zstd (plain, len, packed, 1 + 8 * checksum, checksum);
    CHECK_DECODES (COMPRESSION_ZSTD, size, len);
    random_fill (&state, packed + size, 511);
    CHECK_DECODES (COMPRESSION_ZSTD, size + 511, len);
    memset (packed + size, 0, 511);
    CHECK_DECODES (COMPRESSION_ZSTD, size + 511, len);
    CHECK (decode (COMPRESSION_ZSTD, packed, size - 1, len) != NULL);
  }
  /* A wrong checksum (the last one was written with one). */
  packed[size - 1] ^= 1;
  CHECK_REFUSES (COMPRESSION_ZSTD, size, len, "checksum");

  /* Three frames, skippable and empty ones before, between and behind. */
  put_be32 (packed, 0x502a4d18);
  put_be32 (packed + 4, 0x05000000);
  memset (packed + 8, 0xee, 5);
  size = 13;
  size += build_zstd (plain, third, packed + size, 3, true);
  size += build_zstd (plain, 0, packed + size, 3, false);
  size += build_zstd (plain + third, third, packed + size, 3, false);
  put_be32 (packed + size, 0x5f2a4d18);
  put_be32 (packed + size + 4, 0);
  size += 8;
  first = size;
  size += build_zstd (plain + 2 * third, len - 2 * third, packed + size, 3,
                      false);
  CHECK_DECODES (COMPRESSION_ZSTD, size, len);
  CHECK_DECODES (COMPRESSION_ZSTD, size + 100, len);
  CHECK_REFUSES (COMPRESSION_ZSTD, first, len, "before the cluster is full");
  CHECK (decode (COMPRESSION_ZSTD, packed, size - 1, len) != NULL);

  /* Too short, too long, nothing at all. */
  size = build_zstd (plain, len - 1, packed, 3, false);
  CHECK_REFUSES (COMPRESSION_ZSTD, size, len, "before the cluster is full");
  size = build_zstd (plain, len, packed, 3, false);
  CHECK (decode (COMPRESSION_ZSTD, packed, size, len - 1) != NULL);
  CHECK_REFUSES (COMPRESSION_ZSTD, 0, len, "before the cluster is full");
}

/* Decode with a window of 4 KiB and not a byte more, as QEMU would if it had
 * less memory for the output.
 */
static void
check_window (size_t size, size_t len)
{
  z_stream z = { .next_in = packed, .avail_in = size };
  size_t done = 0;
  int r = Z_OK;

  CHECK_EQ (inflateInit2 (&z, -12), Z_OK);
  while (done < len && r == Z_OK) {
    z.next_out = out + done;
    z.avail_out = len - done < 100 ? len - done : 100;
    r = inflate (&z, Z_SYNC_FLUSH);
    done = z.next_out - out;
  }
  if (done < len || memcmp (out, plain, len) != 0)
    check_failed (__FILE__, __LINE__, "%zu of %zu bytes, %d: %s", done, len, r,
                  z.msg != NULL ? z.msg : "other bytes");
  inflateEnd (&z);
}

static size_t
encode (enum compression type, unsigned level, size_t len, size_t room)
{
  struct codec *c = codec_get (pool);
  uint8_t *to = malloc (room + 1); /* where a sanitizer sees its end */
  ssize_t n;

  if (c == NULL || to == NULL)
    abort ();
  n = codec_encode (c, type, level, plain, len, to, room);
  CHECK (n >= 0 && n <= (ssize_t) room);
  memcpy (packed, to, n);
  free (to);
  codec_put (pool, c);
  return n;
}

/* Whatever has room is decoded again; of what has not, nothing is made. */
static void
test_encode (enum compression type, unsigned level, unsigned cluster_bits,
             enum content content)
{
  const size_t len = (size_t) 1 << cluster_bits;
  size_t size;

  make_plain (content, len);
  size = encode (type, level, len, len - 1);
  if (size == 0) {
    CHECK (content != ZEROS && content != TEXT);
    CHECK_EQ (encode (type, level, len, 0), 0);
    return;
  }
  CHECK (content != NOISE);
  if (content == ZEROS)
    CHECK (size < len / 8);
  if (type == COMPRESSION_DEFLATE)
    check_window (size, len);
  CHECK_DECODES (type, size, len);
  CHECK_EQ (encode (type, level, len, size / 2), 0);
  /* The same again, from a coder that has been used. */
  CHECK_EQ (encode (type, level, len, len - 1), size);
}

/* What the manual says. */
static void
test_default_levels (void)
{
  const bool has_isal = codec_isal_version () != NULL;

  CHECK_EQ (codec_default_level (COMPRESSION_DEFLATE), has_isal ? 2u : 1u);
  CHECK_EQ (codec_default_level (COMPRESSION_ZSTD), 2u);
}

static void
test_encode_all (void)
{
  static const unsigned bits[] = { 9, 12, 16 };
  static const enum compression types[] = {
    COMPRESSION_DEFLATE, COMPRESSION_ZSTD,
  };
  unsigned level, b, content, t;

  for (t = 0; t < 2; ++t) {
    for (level = 1; level <= codec_max_level (types[t]);
         level += TEST_EACH (3)) {
      for (b = 0; b < 3; ++b) {
        if (level > 9 && bits[b] > 12) /* these take long */
          continue;
        for (content = 0; content < NR_CONTENTS; ++content)
          test_encode (types[t], level, bits[b], content);
      }
    }
    for (content = 0; content < NR_CONTENTS; ++content)
      test_encode (types[t], 1, QCOW2_MAX_CLUSTER_BITS, content);
  }
}

/* A frame without its content's size and with a window as large as zstd
 * makes them, from its streaming interface.
 */
static void
test_zstd_large_window (void)
{
  const size_t len = 65536;
  ZSTD_CCtx *z = ZSTD_createCCtx ();
  ZSTD_inBuffer in = { plain, len, 0 };
  ZSTD_outBuffer to = { packed, sizeof packed, 0 };

  make_plain (TEXT, len);
  ZSTD_CCtx_setParameter (z, ZSTD_c_windowLog, 27);
  CHECK_EQ (ZSTD_compressStream2 (z, &to, &in, ZSTD_e_flush), 0);
  CHECK_EQ (ZSTD_compressStream2 (z, &to, &in, ZSTD_e_end), 0);
  ZSTD_freeCCtx (z);
  CHECK_DECODES (COMPRESSION_ZSTD, to.pos, len);
}

/* Cut at each byte: either that is an error, or the output was complete. */
static void
test_cut (void)
{
  const size_t len = 4096;
  size_t size, i;

  make_plain (TEXT, len);
  size = build_deflate (plain, len, packed, -12, 9, true);
  for (i = 0; i < size; ++i) {
    if (decode (COMPRESSION_DEFLATE, packed, i, len) == NULL) {
      CHECK (i + 4 >= size);
      CHECK (memcmp (out, plain, len) == 0);
    }
  }
  size = build_zstd (plain, len, packed, 3, true);
  for (i = 0; i < size; ++i)
    CHECK (decode (COMPRESSION_ZSTD, packed, i, len) != NULL);
}

/* Garbage, and good streams with a few wrong bytes: no crash, no reading
 * or writing out of bounds, and a decoder that works again after it.
 */
static void
test_garbage (void)
{
  static const uint32_t magics[] = { /* of zstd, old and skippable frames */
    0x28b52ffd, 0x27b52ffd, 0x26b52ffd, 0x25b52ffd, 0x24b52ffd, 0x23b52ffd,
    0x22b52ffd, 0x1eb52ffd, 0x502a4d18, 0x37a430ec,
  };
  const size_t len = 4096;
  uint64_t state = 7;
  uint8_t good[2][BUILD_BOUND (4096)];
  size_t size[2], n;
  unsigned i, type, refused = 0;

  make_plain (TEXT, len);
  size[0] = build_deflate (plain, len, good[0], -12, 6, true);
  size[1] = build_zstd (plain, len, good[1], 3, true);
  for (i = 0; i < 20000; ++i) {
    type = i % 2;
    if (i % 4 < 2) {
      n = 1 + random_below (&state, 600);
      random_fill (&state, packed, n);
      if (type == 1 && n >= 4)
        put_be32 (packed, magics[random_below (&state, 10)]);
      refused += decode (type, packed, n, len) != NULL;
    }
    else {
      memcpy (packed, good[type], size[type]);
      for (n = 1 + random_below (&state, 3); n > 0; --n)
        packed[random_below (&state, size[type])] = random_next (&state);
      refused += decode (type, packed, size[type], len) != NULL;
    }
    if (i % 1000 < 2) {
      memcpy (packed, good[type], size[type]);
      CHECK_DECODES (type, size[type], len);
    }
  }
  CHECK (refused > 10000);
}

struct job {
  uint8_t packed[2][BUILD_BOUND (4096)];
  size_t size[2];
};

static void *
pool_thread (void *opaque)
{
  const struct job *job = opaque;
  uint8_t mine[4096];
  unsigned i;

  for (i = 0; i < 300; ++i) {
    struct codec *c = codec_get (pool);
    const unsigned type = i % 2;
    void *in = codec_input (c, job->size[type]);

    memcpy (in, job->packed[type], job->size[type]);
    memset (mine, 0, sizeof mine);
    CHECK (codec_decode (c, type, in, job->size[type], mine, sizeof mine)
           == NULL);
    CHECK (memcmp (mine, plain, sizeof mine) == 0);
    codec_put (pool, c);
  }
  return NULL;
}

static void
test_pool (void)
{
  struct codec *a, *b;
  pthread_t thread[8];
  struct job job;
  unsigned i;

  codec_pool_free (NULL);
  a = codec_get (pool);
  b = codec_get (pool);
  CHECK (a != NULL && b != NULL && a != b);
  CHECK (codec_input (a, 10) != codec_input (b, 10));
  codec_put (pool, a);
  CHECK (codec_get (pool) == a); /* not a new one each time */
  codec_put (pool, a);
  codec_put (pool, b);

  make_plain (TEXT, 4096);
  job.size[0] = build_deflate (plain, 4096, job.packed[0], -12, 6, true);
  job.size[1] = build_zstd (plain, 4096, job.packed[1], 3, false);
  for (i = 0; i < 8; ++i)
    pthread_create (&thread[i], NULL, pool_thread, &job);
  for (i = 0; i < 8; ++i)
    pthread_join (thread[i], NULL);
}

int
main (void)
{
  unsigned bits, content;

  check_time_limit (300);
  pool = codec_pool_new ();
  CHECK (pool != NULL);
  for (bits = QCOW2_MIN_CLUSTER_BITS; bits <= QCOW2_MAX_CLUSTER_BITS;
       bits += TEST_EACH (4)) {
    for (content = 0; content < NR_CONTENTS; ++content) {
      test_deflate (bits, content);
      test_zstd (bits, content);
    }
  }
  test_default_levels ();
  test_encode_all ();
  test_zstd_large_window ();
  test_cut ();
  test_garbage ();
  test_pool ();
  codec_pool_free (pool);
  CHECK (codec_zlib_version () != NULL);
  CHECK (codec_zstd_version () != NULL);
  return check_result ();
}
