/* SPDX-License-Identifier: BSD-3-Clause */

/* An encoder that makes what is not the cluster: qcow2/codec.c does not use
 * it.
 */

#include <config.h>

#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>

#ifdef HAVE_LIBISAL
#include <isa-l.h>
#endif

#include "check.h"
#include "qcow2/codec.h"

#ifdef HAVE_LIBISAL

#define CLUSTER 65536

static uint8_t plain[CLUSTER];
static uint8_t packed[CLUSTER];
static uint8_t out[CLUSTER];

static enum {
  RIGHT,
  OTHER_BYTE, /* a stream of something else */
  NO_STREAM,
  CUT_OFF,
} fault;

static unsigned nr_calls;

/* In place of the library's. */
int
isal_deflate_stateless (struct isal_zstream *s)
{
  int (*real) (struct isal_zstream *) = (int (*) (struct isal_zstream *))
    dlsym (RTLD_NEXT, "isal_deflate_stateless");
  static uint8_t other[CLUSTER];
  uint8_t *const to = s->next_out;
  int r;

  CHECK_EQ (s->avail_in, (uint64_t) CLUSTER);
  memcpy (other, s->next_in, sizeof other);
  if (fault == OTHER_BYTE)
    other[CLUSTER - 1] ^= 1;
  s->next_in = other;
  nr_calls++;
  r = real (s);
  if (fault == NO_STREAM)
    memset (to, 0xff, s->total_out);
  if (fault == CUT_OFF)
    s->total_out /= 2;
  return r;
}

static ssize_t
encode (struct codec_pool *pool, unsigned level)
{
  struct codec *c = codec_get (pool);
  ssize_t n;

  if (c == NULL)
    abort ();
  n = codec_encode (c, COMPRESSION_DEFLATE, level, plain, CLUSTER, packed,
                    CLUSTER);
  if (n > 0) {
    CHECK (codec_decode (c, COMPRESSION_DEFLATE, packed, n, out, CLUSTER)
           == NULL);
    CHECK (memcmp (out, plain, CLUSTER) == 0);
  }
  codec_put (pool, c);
  return n;
}

int
main (void)
{
  struct codec_pool *pool = codec_pool_new ();
  unsigned level, i;

  if (pool == NULL)
    abort ();
  for (i = 0; i < CLUSTER; ++i)
    plain[i] = i % 251 * (i / 4096);
  for (level = 1; level <= 3; ++level) {
    for (fault = RIGHT; fault <= CUT_OFF; ++fault) {
      const ssize_t n = encode (pool, level);

      CHECK ((n > 0) == (fault == RIGHT));
      CHECK (n >= 0);
    }
  }
  CHECK_EQ (nr_calls, 12u);
  codec_pool_free (pool);
  return check_result ();
}

#else

int
main (void)
{
  puts ("built without ISA-L");
  return 77;
}

#endif
