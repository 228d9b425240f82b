/* SPDX-License-Identifier: BSD-3-Clause */

/* Each allocation that is made while clusters are compressed fails in turn, be
 * it of a request, of a flush, or of closing: whoever needed it is told, unless
 * all is there without it; it goes well when it is done again; and what is left
 * is sound.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "check.h"
#include "disk/read.h"
#include "image-check.h"
#include "no-memory.h"
#include "rig.h"

#define CLUSTER UINT64_C (4096)
#define CLUSTERS 64
#define CUT 1536 /* of the last one */
#define DISK_BYTES (CLUSTERS * CLUSTER - CUT)

/* --------------------------------------------------------------- encoders */

/* They allocate within their libraries, which counts as one allocation. */
static bool
has_memory (void)
{
  void *p = malloc (1);

  free (p);
  return p != NULL;
}

extern ZSTD_CCtx *__real_ZSTD_createCCtx (void);
extern ZSTD_CCtx *__wrap_ZSTD_createCCtx (void);
ZSTD_CCtx *
__wrap_ZSTD_createCCtx (void)
{
  return has_memory () ? __real_ZSTD_createCCtx () : NULL;
}

extern size_t __real_ZSTD_compressCCtx (ZSTD_CCtx *c, void *out,
                                        size_t out_len, const void *in,
                                        size_t in_len, int level);
extern size_t __wrap_ZSTD_compressCCtx (ZSTD_CCtx *c, void *out,
                                        size_t out_len, const void *in,
                                        size_t in_len, int level);
size_t
__wrap_ZSTD_compressCCtx (ZSTD_CCtx *c, void *out, size_t out_len,
                          const void *in, size_t in_len, int level)
{
  return has_memory ()
    ? __real_ZSTD_compressCCtx (c, out, out_len, in, in_len, level)
    : (size_t) -ZSTD_error_memory_allocation;
}

extern int __real_deflateInit2_ (z_streamp z, int level, int method, int bits,
                                 int memory, int strategy, const char *version,
                                 int size);
/* Visible, since libraries that are linked in have a use for it, too. */
extern int __wrap_deflateInit2_ (z_streamp z, int level, int method, int bits,
                                 int memory, int strategy, const char *version,
                                 int size)
  __attribute__ ((__visibility__ ("default")));
int
__wrap_deflateInit2_ (z_streamp z, int level, int method, int bits, int memory,
                      int strategy, const char *version, int size)
{
  return has_memory ()
    ? __real_deflateInit2_ (z, level, method, bits, memory, strategy, version,
                            size)
    : Z_MEM_ERROR;
}

/* ---------------------------------------------------------------- the disk */

static struct rig rig;

static const struct form {
  enum compression compression;
  unsigned level;
} forms[] = {
  { COMPRESSION_DEFLATE, 1 }, { COMPRESSION_DEFLATE, 6 },
  { COMPRESSION_ZSTD, 2 },
};

/* Clusters 0 to 3 have data, 4 to 7 are compressed; so are a snapshot's. */
static void
start (const struct form *f)
{
  uint8_t plain[CLUSTER];
  uint64_t state = 1, i;
  struct builder b;

  build_start (&b, 3, 12, false, f->compression, DISK_BYTES);
  for (i = 0; i < 4; ++i)
    build_entry (&b, i, build_data (&b, i), 0);
  for (; i < 8; ++i) {
    build_pattern (plain, sizeof plain, i);
    build_compressed (&b, i, plain, 10);
  }
  build_snapshot (&b, 0, &state);
  build_finish (&b);
  rig_init (&rig, "compress memory", &b);
  rig.options.compress_level = f->level;
  build_free (&b);
  rig_open (&rig);
}

enum what { WRITE, FUA, ZERO, TRIM, FLUSH, READ };

static const struct step {
  enum what what;
  uint64_t offset, count;
} steps[] = {
  { WRITE, 10 * CLUSTER, CLUSTER },
  { FLUSH, 0, 0 },
  { WRITE, 0, 6 * CLUSTER },
  { WRITE, 20 * CLUSTER, CLUSTER / 2 }, /* gathered */
  { WRITE, 20 * CLUSTER + CLUSTER / 2, CLUSTER / 2 },
  { WRITE, 21 * CLUSTER, CLUSTER / 2 },
  { ZERO, 21 * CLUSTER + CLUSTER / 2, CLUSTER / 2 },
  { FLUSH, 0, 0 },
  { WRITE, 20 * CLUSTER + 5, 700 }, /* a part of a compressed one */
  { READ, 10 * CLUSTER + 5, 700 },
  { WRITE, 63 * CLUSTER, CLUSTER - CUT },
  { FUA, 30 * CLUSTER, 3 * CLUSTER },
  { ZERO, 30 * CLUSTER + 9, 2 * CLUSTER },
  { TRIM, 0, 4 * CLUSTER },
  { FUA, 40 * CLUSTER, CLUSTER / 2 },
  { FUA, 40 * CLUSTER + CLUSTER / 2, CLUSTER / 2 },
  { WRITE, 63 * CLUSTER, CLUSTER / 4 }, /* gathered, up to the disk's end */
  { WRITE, 63 * CLUSTER + CLUSTER / 4, 3 * CLUSTER / 4 - CUT },
  { WRITE, 0, 3 * CLUSTER },
};
#define NR_STEPS (sizeof steps / sizeof steps[0])

/* What core/ does is armed, not what the test needs for itself. */
static int
request (const struct step *s, uint8_t *buf)
{
  const struct guest_off at = { s->offset };
  int r = -1;

  memory_armed = true;
  switch (s->what) {
  case WRITE:
    r = image_write (rig.im, buf, s->count, at, 0);
    break;
  case FUA:
    r = image_write (rig.im, buf, s->count, at, IMAGE_FUA);
    break;
  case ZERO:
    r = image_zero (rig.im, s->count, at, 0);
    break;
  case TRIM:
    r = image_trim (rig.im, s->count, at, 0);
    break;
  case FLUSH:
    r = image_flush (rig.im);
    break;
  case READ:
    r = layer_read (rig.live, buf, s->count, at);
    break;
  }
  memory_armed = false;
  return r;
}

static int
do_step (const struct step *s, uint64_t seed)
{
  uint8_t *buf = calloc (1, s->count + 1);
  int r;

  if (s->what == WRITE || s->what == FUA)
    build_pattern (buf, s->count, seed);
  r = request (s, buf);
  if (r == 0 && s->what == READ)
    CHECK (memcmp (buf, rig.content + s->offset, s->count) == 0);
  else if (r == 0)
    memcpy (rig.content + s->offset, buf, s->count);
  free (buf);
  return r;
}

/* Returns true if it has failed. */
static bool
is_no_memory (const char *what, int r)
{
  if (r == -1 && error_errno () != ENOMEM)
    check_failed (__FILE__, __LINE__, "%s: allocation %u: errno %d: %s", what,
                  memory_fail_at, error_errno (), error_message ());
  return r == -1;
}

static bool
was_compressed (uint64_t cluster)
{
  return rig_kind (&rig, cluster * CLUSTER) == RUN_COMPRESSED;
}

/* All that could be compressed was, if memory was there. */
static void
check_kinds (void)
{
  static const uint8_t clusters[] = { 0, 2, 5, 10, 21, 40, 63 };
  unsigned i;

  for (i = 0; i < sizeof clusters; ++i)
    CHECK (was_compressed (clusters[i]));
}

/* Returns true if all allocations went well. */
static bool
run (const struct form *f)
{
  unsigned failed = 0, i;

  start (f);
  memory_calls = 0;
  for (i = 0; i < NR_STEPS; ++i) {
    if (!is_no_memory ("a request", do_step (&steps[i], i + 100)))
      continue;
    failed++;
    CHECK_OK (do_step (&steps[i], i + 100)); /* it was short for a moment */
  }
  rig_compare (&rig);
  if (memory_calls < memory_fail_at)
    check_kinds ();
  memory_armed = true;
  i = rig_close_only (&rig) == -1;
  memory_armed = false;
  if (i) {
    failed++;
    CHECK_EQ (error_errno (), ENOMEM);
  }
  CHECK (failed <= 1);
  if (image_check (rig.what, rig.disk.data,
                   atomic_load (&rig.disk.size)).leaks > 0)
    CHECK (memory_calls >= memory_fail_at);
  /* What was answered is there, flushed or not: nothing else has failed. */
  if (!i) {
    rig_open (&rig);
    rig_compare (&rig);
    (void) rig_close_only (&rig);
  }
  rig_free (&rig);
  return memory_calls < memory_fail_at;
}

int
main (void)
{
  unsigned i;

  check_time_limit (100);
  for (i = 0; i < sizeof forms / sizeof forms[0]; ++i) {
    for (memory_fail_at = 1; !run (&forms[i]) && !check_any_failed ();
         ++memory_fail_at)
      ;
    if (check_any_failed ())
      fprintf (stderr, "compression %d, level %u, allocation %u\n",
               forms[i].compression, forms[i].level, memory_fail_at);
    printf ("%u allocations\n", memory_fail_at - 1);
    CHECK (memory_fail_at > 30);
  }
  return check_result ();
}
