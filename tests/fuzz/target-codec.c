/* SPDX-License-Identifier: BSD-3-Clause */

/* Compressed data, decoded by itself and as a cluster of an image.  An input is
 *
 *   0  type: bit 0
 *   1  log2 of the cluster size, from 9 on
 *   2  offset of the data in its first sector, 16 bits
 *   4  sectors that follow the first one, by the L2 entry, 16 bits
 *   6  how much to decode where it is decoded by itself, 16 bits; 0: a cluster
 *   8  the data
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "build.h"
#include "disk/read.h"
#include "image.h"
#include "memory-storage.h"
#include "promise.h"
#include "qcow2/codec.h"
#include "random.h"
#include "target.h"

#define DATA 8
#define MAX_BITS_IN_IMAGE 16 /* of larger clusters an image takes too long */

struct input {
  enum compression type;
  unsigned bits;
  uint64_t cluster_size;
  size_t out_len;
  uint64_t skip, more;
  const uint8_t *data;
  size_t size;
};

static struct input
parse (const uint8_t *data, size_t size)
{
  struct input in = {
    .type = data[0] & 1 ? COMPRESSION_ZSTD : COMPRESSION_DEFLATE,
    .bits = QCOW2_MIN_CLUSTER_BITS + data[1] %
      (QCOW2_MAX_CLUSTER_BITS - QCOW2_MIN_CLUSTER_BITS + 1),
    .skip = get_be16 (data + 2) % QCOW2_COMPRESSED_SECTOR,
    .data = data + DATA,
    .size = size - DATA,
  };

  in.cluster_size = UINT64_C (1) << in.bits;
  in.more = get_be16 (data + 4) & ((UINT64_C (1) << (in.bits - 8)) - 1);
  in.out_len = get_be16 (data + 6);
  if (in.out_len == 0)
    in.out_len = in.cluster_size;
  return in;
}

/* In a place of its own, so that a sanitizer sees what is beyond. */
static uint8_t *
new_bytes (size_t size, int fill)
{
  uint8_t *p = malloc (size);

  if (p == NULL)
    abort ();
  memset (p, fill, size);
  return p;
}

/* --------------------------------------------------------------- by itself */

/* Always by the same decoder: the pool has only that one. */
static const char *
decode_once (enum compression type, const uint8_t *data, size_t size,
             uint8_t *out, size_t out_len)
{
  static struct codec_pool *pool;
  struct codec *codec;
  const char *why;

  if (pool == NULL)
    pool = codec_pool_new ();
  codec = codec_get (pool);
  expect (codec != NULL, "memory is short");
  why = codec_decode (codec, type, data, size, out, out_len);
  codec_put (pool, codec);
  return why;
}

/* What data went before must not matter to a decoder. */
static void
decode_known (enum compression type)
{
  static uint8_t plain[4096], packed[2][BUILD_BOUND (4096)];
  static size_t size[2];
  uint8_t out[4096];

  if (size[0] == 0) {
    build_pattern (plain, sizeof plain, 1);
    size[0] = build_deflate (plain, sizeof plain, packed[0], -12, 6, true);
    size[1] = build_zstd (plain, sizeof plain, packed[1], 3, true);
  }
  expect (decode_once (type, packed[type], size[type], out, sizeof out) ==
          NULL &&
          memcmp (out, plain, sizeof out) == 0,
          "good data can't be decoded after bad data");
}

/* The result is all of the output and nothing but the input's: whatever was in
 * the output before.
 */
static const char *
decode (enum compression type, const uint8_t *data, size_t size, uint8_t *out,
        size_t out_len)
{
  uint8_t *in = new_bytes (size > 0 ? size : 1, 0);
  uint8_t *other = new_bytes (out_len, 0xff);
  const char *why, *again;

  memcpy (in, data, size);
  why = decode_once (type, in, size, out, out_len);
  again = decode_once (type, in, size, other, out_len);
  expect (why != codec_no_memory && again != codec_no_memory,
          "memory is short");
  expect ((why == NULL) == (again == NULL), "decoding differs in each run");
  expect (why == NULL || why[0] != '\0', "no reason for an error");
  expect (why != NULL || memcmp (out, other, out_len) == 0,
          "a part of the output is not what was decoded");
  decode_known (type);
  free (in);
  free (other);
  return why;
}

static void
decode_by_itself (const struct input *in)
{
  uint8_t *out = new_bytes (in->out_len, 0);

  (void) decode (in->type, in->data, in->size, out, in->out_len);
  free (out);
}

/* -------------------------------------------------------------- in an image */

/* Header, refcount table, L1, L2 of a cluster each, and the data: the file ends
 * behind it.
 */
static struct builder
make_image (const struct input *in)
{
  const unsigned x = 62 - (in->bits - 8);
  struct builder b;
  uint64_t at;

  build_start (&b, 3, in->bits, false, in->type, in->cluster_size);
  build_l2_place (&b, 0);
  at = build_bytes (&b, in->skip + in->size) + in->skip;
  memcpy (b.data + at, in->data, in->size);
  build_entry (&b, 0, QCOW2_L2_COMPRESSED | in->more << x | at, 0);
  return b;
}

/* What must come out of it.  What is missing at the file's end is zeros. */
static const char *
expected (const struct input *in, uint8_t *out)
{
  const size_t count = (in->more + 1) * QCOW2_COMPRESSED_SECTOR - in->skip;
  uint8_t *data = new_bytes (count, 0);
  const char *why;

  memcpy (data, in->data, in->size < count ? in->size : count);
  why = decode (in->type, data, count, out, in->cluster_size);
  free (data);
  return why;
}

static void
compare (const struct layer *disk, const uint8_t *content, uint64_t offset,
         uint64_t count)
{
  uint8_t *buf = new_bytes (count, 0xee);
  const int r = layer_read (disk, buf, count, (struct guest_off) { offset });

  expect ((r == 0) == (content != NULL),
          "a cluster is decoded, or not, and its data is not, or is");
  if (r == -1) {
    expect_error ();
    expect (error_errno () == EIO, "damage is not EIO");
  }
  else
    expect (memcmp (buf, content + offset, count) == 0,
            "a cluster is decoded to something else");
  free (buf);
}

static void
decode_in_image (const struct input *in, uint64_t state)
{
  struct builder b = make_image (in);
  uint8_t *out = new_bytes (in->cluster_size, 0);
  const uint8_t *content = expected (in, out) == NULL ? out : NULL;
  struct layer *disk;
  struct image *im;
  uint64_t at;
  unsigned i;

  im = image_open_storage (build_storage (&b, NULL), CACHE_MIN_BYTES);
  expect (im != NULL, "the image can't be opened");
  disk = image_open_disk (im, "");
  expect (disk != NULL, "the live disk can't be opened");
  compare (disk, content, 0, in->cluster_size);
  for (i = 0; i < 3; ++i) { /* by way of the cache of decoded clusters */
    at = random_below (&state, in->cluster_size);
    compare (disk, content, at,
             1 + random_below (&state, in->cluster_size - at));
  }
  image_close_disk (disk);
  expect (image_close (im) == 0, "an image that was read can't be closed");
  build_free (&b);
  free (out);
}

static void
test_codec (const uint8_t *data, size_t size)
{
  struct input in;

  if (size < DATA)
    return;
  error_set (0, "%s", "");
  in = parse (data, size);
  decode_by_itself (&in);
  if (in.bits <= MAX_BITS_IN_IMAGE)
    decode_in_image (&in, size);
}

/* ----------------------------------------------------------------- mutation */

struct mutation {
  uint8_t *data;
  size_t size, max;
  uint64_t state;
};

static uint64_t
below (struct mutation *m, uint64_t limit)
{
  return random_below (&m->state, limit);
}

/* Have count bytes at this place, as far as there is room. */
static void
put_bytes (struct mutation *m, size_t at, const uint8_t *bytes, size_t count)
{
  if (at > m->max)
    return;
  if (count > m->max - at)
    count = m->max - at;
  memcpy (m->data + at, bytes, count);
  m->size = at + count;
}

static void
change_plan (struct mutation *m)
{
  const struct input in = parse (m->data, m->size);

  switch (below (m, 6)) {
  case 0: m->data[0] ^= 1; break;
  case 1: m->data[1] = below (m, 8); break;
  case 2: put_be16 (m->data + 2, below (m, 2) * below (m, 512)); break;
  case 3: /* as many sectors as there are */
    put_be16 (m->data + 4, (in.skip + in.size + 511) / 512 - 1);
    break;
  case 4: put_be16 (m->data + 4, below (m, 1 << below (m, 10))); break;
  default:
    put_be16 (m->data + 6, below (m, 2) * (in.cluster_size - below (m, 9)));
    break;
  }
}

/* Data that can be decoded, to a cluster or somewhat more or less, behind a
 * part of the old one.
 */
static void
put_stream (struct mutation *m)
{
  static uint8_t plain[1 << 16], packed[BUILD_BOUND (1 << 16)];
  const struct input in = parse (m->data, m->size);
  size_t len = below (m, 2) ? in.cluster_size : 1 + below (m, 5000);
  const size_t at = DATA + (below (m, 2) ? 0 : in.size);
  size_t size;

  if (len > sizeof plain)
    len = sizeof plain;
  if (below (m, 2))
    build_pattern (plain, len, below (m, 1000));
  else
    random_fill (&m->state, plain, len);
  if (in.type == COMPRESSION_ZSTD)
    size = build_zstd (plain, len, packed, 1 + below (m, 10), below (m, 2));
  else
    size = build_deflate (plain, len, packed, -9 - (int) below (m, 7),
                          below (m, 10), below (m, 2));
  put_bytes (m, at, packed, size);
}

/* A zstd frame that holds nothing: it is skipped. */
static void
put_skippable (struct mutation *m)
{
  uint8_t frame[24] = { 0x50 + below (m, 16), 0x2a, 0x4d, 0x18 };

  frame[4] = below (m, 8) ? below (m, 16) : below (m, 256);
  put_bytes (m, below (m, 2) ? DATA : m->size, frame, 8 + frame[4] % 16);
}

static void
change_data (struct mutation *m)
{
  const uint64_t size = m->size - DATA;
  uint64_t at = DATA + below (m, below (m, 2) && size > 32 ? 32 : size);
  uint64_t n = 1 + below (m, 4);

  if (below (m, 2))
    m->data[at] ^= 1 << below (m, 8);
  else
    for (; n > 0 && at < m->size; --n)
      m->data[at++] = random_next (&m->state);
}

static void
cut_or_add (struct mutation *m)
{
  uint8_t garbage[64];

  if (below (m, 2)) {
    m->size -= below (m, m->size - DATA);
    return;
  }
  random_fill (&m->state, garbage, sizeof garbage);
  put_bytes (m, m->size, garbage, 1 + below (m, sizeof garbage));
}

static size_t
mutate_codec (uint8_t *data, size_t size, size_t max, uint64_t seed)
{
  struct mutation m = { .data = data, .size = size, .max = max, seed };
  unsigned n;

  if (max < 64)
    return size;
  if (size < 16) {
    memset (data + size, 0, 16 - size);
    m.size = 16;
  }
  for (n = 1 + below (&m, 3); n > 0; --n) {
    switch (below (&m, 8)) {
    case 0: case 1: change_plan (&m); break;
    case 2: put_stream (&m); break;
    case 3: put_skippable (&m); break;
    case 4: cut_or_add (&m); break;
    default: change_data (&m); break;
    }
    if (m.size <= DATA)
      break;
  }
  return m.size;
}

const struct target target_codec = {
  .name = "codec",
  .max_size = 64 << 10,
  .test = test_codec,
  .mutate = mutate_codec,
};
