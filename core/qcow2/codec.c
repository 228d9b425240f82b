/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>
#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#ifdef HAVE_LIBISAL
#include <isa-l.h>
#endif

#include "base/error.h"
#include "qcow2/codec.h"

struct codec {
  struct codec *next; /* in the pool */
  void *input;
  size_t input_size;
  ZSTD_DCtx *zstd;
  z_stream zlib;
  bool zlib_ready;
#ifdef HAVE_LIBDEFLATE
  struct libdeflate_decompressor *libdeflate;
#endif

  /* For encoding. */
  ZSTD_CCtx *zstd_encoder;
  z_stream zlib_encoder;
  unsigned zlib_level; /* of zlib_encoder; 0: it isn't set up */
#ifdef HAVE_LIBISAL
  struct isal_encoder *isal;
#endif
};

#ifdef HAVE_LIBISAL
struct isal_encoder {
  struct isal_zstream stream;
  uint8_t level_buf[ISAL_DEF_LVL3_DEFAULT]; /* the largest of all levels */
  void *decoded;
  size_t decoded_size;
};
#endif

struct codec_pool {
  pthread_mutex_t lock;
  struct codec *first;
};

struct codec_pool *
codec_pool_new (void)
{
  struct codec_pool *p = calloc (1, sizeof *p);

  if (p == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  pthread_mutex_init (&p->lock, NULL);
  return p;
}

static void
codec_free (struct codec *c)
{
  free (c->input);
  ZSTD_freeDCtx (c->zstd);
  if (c->zlib_ready)
    inflateEnd (&c->zlib);
#ifdef HAVE_LIBDEFLATE
  if (c->libdeflate != NULL)
    libdeflate_free_decompressor (c->libdeflate);
#endif
  ZSTD_freeCCtx (c->zstd_encoder);
  if (c->zlib_level != 0)
    deflateEnd (&c->zlib_encoder);
#ifdef HAVE_LIBISAL
  if (c->isal != NULL)
    free (c->isal->decoded);
  free (c->isal);
#endif
  free (c);
}

void
codec_pool_free (struct codec_pool *p)
{
  if (p == NULL)
    return;
  while (p->first != NULL) {
    struct codec *c = p->first;

    p->first = c->next;
    codec_free (c);
  }
  pthread_mutex_destroy (&p->lock);
  free (p);
}

struct codec *
codec_get (struct codec_pool *p)
{
  struct codec *c;

  pthread_mutex_lock (&p->lock);
  c = p->first;
  if (c != NULL)
    p->first = c->next;
  pthread_mutex_unlock (&p->lock);

  if (c == NULL) {
    c = calloc (1, sizeof *c);
    if (c == NULL)
      error_set (ENOMEM, "out of memory");
  }
  return c;
}

void
codec_put (struct codec_pool *p, struct codec *c)
{
  pthread_mutex_lock (&p->lock);
  c->next = p->first;
  p->first = c;
  pthread_mutex_unlock (&p->lock);
}

void *
codec_input (struct codec *c, size_t size)
{
  if (size > c->input_size) {
    void *input = realloc (c->input, size);

    if (input == NULL) {
      error_set (ENOMEM, "out of memory");
      return NULL;
    }
    c->input = input;
    c->input_size = size;
  }
  return c->input;
}

const char codec_no_memory[] = "out of memory";

/* zlib, for what libdeflate refuses: decoding stops when the cluster is full,
 * so a stream without an end is legal, whatever follows it.  QEMU's window is
 * 4 KiB; the full 32 KiB accept everything that it accepts.
 */
static const char *
decode_zlib (struct codec *c, const void *in, size_t in_len,
             void *out, size_t out_len)
{
  int r;

  if (!c->zlib_ready) {
    if (inflateInit2 (&c->zlib, -15) != Z_OK)
      return codec_no_memory;
    c->zlib_ready = true;
  }
  else
    inflateReset (&c->zlib);

  c->zlib.next_in = (void *) in;
  c->zlib.avail_in = in_len;
  c->zlib.next_out = out;
  c->zlib.avail_out = out_len;
  r = inflate (&c->zlib, Z_FINISH);
  if (c->zlib.avail_out == 0)
    return NULL;
  if (r == Z_MEM_ERROR)
    return codec_no_memory;
  if (r == Z_STREAM_END)
    return "the deflate stream ends before the cluster is full";
  if (r == Z_BUF_ERROR)
    return "the deflate stream is cut off";
  return "the data is not a deflate stream";
}

static const char *
decode_deflate (struct codec *c, const void *in, size_t in_len,
                void *out, size_t out_len)
{
#ifdef HAVE_LIBDEFLATE
  if (c->libdeflate == NULL)
    c->libdeflate = libdeflate_alloc_decompressor ();
  if (c->libdeflate != NULL &&
      libdeflate_deflate_decompress (c->libdeflate, in, in_len, out, out_len,
                                     NULL) == LIBDEFLATE_SUCCESS)
    return NULL;
#endif
  return decode_zlib (c, in, in_len, out, out_len);
}

/* libzstd may still decode formats from before 1.0: no image needs these old
 * decoders, and a hostile one must not reach them.
 */
static bool
is_modern_frame (const uint8_t *in, size_t in_len)
{
  uint32_t magic;

  if (in_len < sizeof magic)
    return false;
  memcpy (&magic, in, sizeof magic);
  magic = le32toh (magic);
  return magic == ZSTD_MAGICNUMBER ||
    (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
}

/* One shot, frame by frame: unlike zstd's streaming interface this never
 * allocates a window of the size that the (untrusted) frame names.
 */
static const char *
decode_zstd (struct codec *c, const void *in, size_t in_len,
             void *out, size_t out_len)
{
  const uint8_t *ip = in;
  uint8_t *op = out;

  if (c->zstd == NULL) {
    c->zstd = ZSTD_createDCtx ();
    if (c->zstd == NULL)
      return codec_no_memory;
  }
  while (out_len > 0) {
    size_t frame, r;

    if (in_len == 0)
      return "the zstd frames end before the cluster is full";
    if (!is_modern_frame (ip, in_len))
      return "there is no zstd frame";
    frame = ZSTD_findFrameCompressedSize (ip, in_len);
    if (ZSTD_isError (frame))
      return ZSTD_getErrorName (frame);
    r = ZSTD_decompressDCtx (c->zstd, op, out_len, ip, frame);
    if (ZSTD_isError (r))
      return ZSTD_getErrorName (r);
    ip += frame;
    in_len -= frame;
    op += r;
    out_len -= r;
  }
  return NULL;
}

const char *
codec_decode (struct codec *c, enum compression type,
              const void *in, size_t in_len, void *out, size_t out_len)
{
  switch (type) {
  case COMPRESSION_DEFLATE:
    return decode_deflate (c, in, in_len, out, out_len);
  case COMPRESSION_ZSTD:
    return decode_zstd (c, in, in_len, out, out_len);
  }
  abort ();
}

/* ----------------------------------------------------------------- encoding */

/* QEMU inflates with a window of 2^12 bytes. */
#define WINDOW_BITS 12

#define ZLIB_MAX_LEVEL 9
/* QEMU's is 3, which makes clusters 1 or 2 % smaller and takes a third longer.
 */
#define ZSTD_DEFAULT_LEVEL 2

/* With ISA-L levels up to this are its own, which are many times as fast as
 * zlib's and hardly worse.  3 takes a third longer than 2, and saves 1 %.
 */
#define ISAL_MAX_LEVEL 3
#ifdef HAVE_LIBISAL
#define ZLIB_DEFAULT_LEVEL 2
#else
#define ZLIB_DEFAULT_LEVEL 1
#endif

static ssize_t
no_memory (void)
{
  error_set (ENOMEM, "out of memory");
  return -1;
}

#ifdef HAVE_LIBISAL
/* Allocate ISA-L's memory, and a buffer for decoding size bytes. */
static int
set_up_isal (struct codec *c, size_t size)
{
  void *p;

  if (c->isal == NULL)
    c->isal = calloc (1, sizeof *c->isal);
  if (c->isal == NULL)
    return -1;
  if (size <= c->isal->decoded_size)
    return 0;
  p = realloc (c->isal->decoded, size);
  if (p == NULL)
    return -1;
  c->isal->decoded = p;
  c->isal->decoded_size = size;
  return 0;
}

/* ISA-L is written in assembler, separately for each kind of CPU, and few
 * others use it with small windows: so verify its output by decoding it with
 * another library.
 */
static bool
isal_was_right (struct codec *c, const void *in, size_t in_len,
                const void *out, size_t out_len)
{
  return decode_deflate (c, out, out_len, c->isal->decoded, in_len) == NULL &&
    memcmp (c->isal->decoded, in, in_len) == 0;
}

static ssize_t
encode_isal (struct codec *c, unsigned level, const void *in, size_t in_len,
             void *out, size_t out_len)
{
  struct isal_zstream *s;

  if (set_up_isal (c, in_len) == -1)
    return no_memory ();
  s = &c->isal->stream;
  isal_deflate_stateless_init (s);
  s->end_of_stream = 1;
  s->flush = NO_FLUSH;
  s->hist_bits = WINDOW_BITS;
  s->level = level;
  s->level_buf = c->isal->level_buf;
  s->level_buf_size = sizeof c->isal->level_buf;
  s->next_in = (uint8_t *) in;
  s->avail_in = in_len;
  s->next_out = out;
  s->avail_out = out_len;
  /* Its other errors are those of wrong parameters. */
  return isal_deflate_stateless (s) == COMP_OK &&
    isal_was_right (c, in, in_len, out, s->total_out)
    ? (ssize_t) s->total_out : 0;
}
#endif

static int
set_up_zlib (struct codec *c, unsigned level)
{
  if (c->zlib_level == level)
    return deflateReset (&c->zlib_encoder);
  if (c->zlib_level != 0)
    deflateEnd (&c->zlib_encoder);
  c->zlib_level = 0;
  if (deflateInit2 (&c->zlib_encoder, level, Z_DEFLATED, -WINDOW_BITS,
                    MAX_MEM_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK)
    return Z_MEM_ERROR;
  c->zlib_level = level;
  return Z_OK;
}

static ssize_t
encode_deflate (struct codec *c, unsigned level, const void *in, size_t in_len,
                void *out, size_t out_len)
{
#ifdef HAVE_LIBISAL
  if (level <= ISAL_MAX_LEVEL)
    return encode_isal (c, level, in, in_len, out, out_len);
#endif
  if (set_up_zlib (c, level) != Z_OK)
    return no_memory ();
  c->zlib_encoder.next_in = (void *) in;
  c->zlib_encoder.avail_in = in_len;
  c->zlib_encoder.next_out = out;
  c->zlib_encoder.avail_out = out_len;
  if (deflate (&c->zlib_encoder, Z_FINISH) != Z_STREAM_END)
    return 0;
  return out_len - c->zlib_encoder.avail_out;
}

static ssize_t
encode_zstd (struct codec *c, unsigned level, const void *in, size_t in_len,
             void *out, size_t out_len)
{
  size_t r;

  if (c->zstd_encoder == NULL) {
    c->zstd_encoder = ZSTD_createCCtx ();
    if (c->zstd_encoder == NULL)
      return no_memory ();
  }
  r = ZSTD_compressCCtx (c->zstd_encoder, out, out_len, in, in_len, level);
  if (!ZSTD_isError (r))
    return r;
  if (ZSTD_getErrorCode (r) == ZSTD_error_memory_allocation)
    return no_memory ();
  return 0;
}

ssize_t
codec_encode (struct codec *c, enum compression type, unsigned level,
              const void *in, size_t in_len, void *out, size_t out_len)
{
  switch (type) {
  case COMPRESSION_DEFLATE:
    return encode_deflate (c, level, in, in_len, out, out_len);
  case COMPRESSION_ZSTD:
    return encode_zstd (c, level, in, in_len, out, out_len);
  }
  abort ();
}

unsigned
codec_max_level (enum compression type)
{
  return type == COMPRESSION_ZSTD ? (unsigned) ZSTD_maxCLevel ()
    : ZLIB_MAX_LEVEL;
}

unsigned
codec_default_level (enum compression type)
{
  return type == COMPRESSION_ZSTD ? ZSTD_DEFAULT_LEVEL : ZLIB_DEFAULT_LEVEL;
}

/* ----------------------------------------------------------------- versions */

#define STRING_(x) #x
#define STRING(x) STRING_ (x)

const char *
codec_zlib_version (void)
{
  return zlibVersion ();
}

const char *
codec_zstd_version (void)
{
  return ZSTD_versionString ();
}

const char *
codec_libdeflate_version (void)
{
#ifdef HAVE_LIBDEFLATE
  return LIBDEFLATE_VERSION_STRING;
#else
  return NULL;
#endif
}

const char *
codec_isal_version (void)
{
#ifdef HAVE_LIBISAL
  return STRING (ISAL_MAJOR_VERSION) "." STRING (ISAL_MINOR_VERSION) "."
    STRING (ISAL_PATCH_VERSION);
#else
  return NULL;
#endif
}
