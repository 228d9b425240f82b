/* SPDX-License-Identifier: BSD-3-Clause */

/* Random requests to random images of all kinds, against a model; then the
 * image is closed, checked, opened again and compared, and so on.
 *
 * test-write-random [FIRST-SEED [ROUNDS]]; TEST_SECONDS for how long.
 *
 * test-compress-random is the same with TEST_COMPRESS: clusters are compressed.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "disk/read.h"
#include "random.h"
#include "rig.h"
#include "seconds.h"

#ifndef TEST_COMPRESS
#define TEST_COMPRESS 0
#endif

static struct rig rig;
static struct model model;
static uint8_t *base;
static char what[200];
static uint64_t requests;

/* How many snapshots the refcounts allow, and how many compressed clusters
 * may then share a host cluster.
 */
static void
limit_sharing (struct builder *b, unsigned *snapshots)
{
  const unsigned max = b->order == 0 ? 1 : b->order == 1 ? 3 : 15;

  if (*snapshots > max - 1)
    *snapshots = max - 1;
  b->max_sharing = max / (*snapshots + 1);
}

static void
make_snapshots (unsigned nr, uint64_t *state)
{
  unsigned i;

  for (i = 0; i < nr; ++i) {
    /* To be changed here, tables must be the disk's own. */
    const unsigned copied = random_below (state, 2) ? 100
      : random_below (state, 100);

    model_snapshot (&model, copied, state);
    if (copied != 100)
      break; /* what is shared must stay as it is */
    model_refill (&model, state);
  }
}

static void
make_base (uint64_t size, uint64_t *state)
{
  base = malloc (size + 1);
  if (base == NULL)
    abort ();
  build_pattern (base, size, random_next (state));
}

/* An image of at most a few MiB. */
static void
make (uint64_t seed)
{
  static const unsigned all_bits[] = {
    9, 9, 9, 10, 11, 12, 12, 13, 14, 14, 15, 16, 16, 17, 18, 21,
  };
  uint64_t state = mix (seed);
  unsigned bits = all_bits[random_below (&state, 16)], snapshots = 0;
  const unsigned version = random_below (&state, 4) == 0 ? 2 : 3;
  const bool extended = version == 3 && bits >= 14 && random_below (&state, 2);
  const bool zstd = version == 3 && random_below (&state, 2);
  uint64_t clusters, size, base_size = 0;

  if (bits == 21 && random_below (&state, 4))
    bits = 16;
  clusters = bits > 18 ? 5 : bits > 14 ? 40 : bits > 9 ? 150 : 700;
  size = (1 + random_below (&state, clusters)) << bits;
  if (random_below (&state, 2))
    size -= random_below (&state, 1U << (bits - 9)) * 512;
  if (random_below (&state, 2))
    base_size = random_below (&state, 5 * size / 4) + 1;
  make_base (base_size, &state);
  model_start (&model, version, bits, extended,
               zstd ? COMPRESSION_ZSTD : COMPRESSION_DEFLATE, size,
               base_size > 0 ? base : NULL, base_size);
  if (version == 3)
    build_order (&model.image, random_below (&state, 7));
  if (random_below (&state, 3) == 0)
    snapshots = 1 + random_below (&state, 3);
  limit_sharing (&model.image, &snapshots);
  if (base_size > 0)
    build_backing (&model.image, "raw");
  if (random_below (&state, 6) > 0)
    model_fill (&model, false, &state);
  make_snapshots (snapshots, &state);
  build_finish (&model.image);
  snprintf (what, sizeof what, "seed %" PRIu64 ": v%u, clusters of 2^%u%s, "
            "refcounts of 2^%u bits, disk 0x%" PRIx64 ", base 0x%" PRIx64
            ", %u snapshots", seed, version, bits,
            extended ? ", extended" : "", model.image.order, size, base_size,
            model.image.nr_snapshots);
  rig_init_model (&rig, what, &model);
  rig.options.keep_discarded = random_below (&state, 6) == 0;
  rig.control.no_zero = random_below (&state, 8) == 0;
  if (random_below (&state, 4) == 0)
    rig.cache_size = 1 << 20;
  if (TEST_COMPRESS) {
    rig.options.compress_level = 1 + random_below (&state, 6);
    rig.mixed = random_below (&state, 2) == 0;
  }
}

static void
unmake (void)
{
  rig_free (&rig);
  model_free (&model);
  free (base);
}

/* A range: small, or large; aligned to something, or not. */
static void
some_range (uint64_t *state, uint64_t *offset, uint64_t *count)
{
  const uint64_t units[] = { 1, 512, 4096, rig.granule,
                             model.image.cluster_size };
  const uint64_t unit = units[random_below (state, 5)];
  uint64_t max = rig.size >> random_below (state, 8);

  *offset = random_below (state, rig.size) / unit * unit;
  if (max == 0)
    max = 1;
  *count = 1 + random_below (state, max) / unit * unit;
  if (unit > 1 && *count > 1)
    *count -= 1;
  if (*count == 0 || random_below (state, 8) == 0)
    *count = 1 + random_below (state, 512);
  if (*count > rig.size - *offset)
    *count = rig.size - *offset;
}

static void
one_request (uint64_t *state)
{
  const unsigned fua = random_below (state, 8) ? 0 : IMAGE_FUA;
  uint64_t offset, count;

  requests++;
  some_range (state, &offset, &count);
  switch (random_below (state, 12)) {
  case 0: case 1: case 2: case 3:
    CHECK_OK (rig_try_write (&rig, offset, count, random_next (state), fua));
    break;
  case 4:
    CHECK_OK (rig_try_zero (&rig, offset, count, fua));
    break;
  case 5:
    CHECK_OK (rig_try_zero (&rig, offset, count, fua | IMAGE_MAY_TRIM));
    break;
  case 6:
    if (rig_try_zero (&rig, offset, count, fua | IMAGE_MAY_TRIM | IMAGE_FAST)
        == -1)
      CHECK_EQ (error_errno (), ENOTSUP);
    break;
  case 7: case 8:
    CHECK_OK (rig_try_trim (&rig, offset, count, fua));
    break;
  case 9:
    rig_flush (&rig);
    break;
  default:
    rig_compare_range (&rig, offset, count);
    break;
  }
}

static void
run (uint64_t seed)
{
  uint64_t state = mix (seed + (UINT64_C (1) << 32));
  unsigned opens, i, nr;

  make (seed);
  for (opens = 0; opens < 3; ++opens) {
    rig_open (&rig);
    if (TEST_COMPRESS)
      image_detect_zeroes (rig.im, random_below (&state, 3));
    rig_compare (&rig);
    nr = rig.size > (4 << 20) ? 15 : 40;
    for (i = 0; i < nr && rig.size > 0; ++i)
      one_request (&state);
    rig_compare (&rig);
    rig_close (&rig);
    if (check_any_failed ())
      break;
  }
  if (check_any_failed ())
    fprintf (stderr, "%s, opened %u times\n", what, opens + 1);
  unmake ();
}

int
main (int argc, char *argv[])
{
  const uint64_t first = argc > 1 ? strtoull (argv[1], NULL, 0) : 1;
  const uint64_t rounds = argc > 2 ? strtoull (argv[2], NULL, 0) : UINT64_MAX;
  const double until = seconds () + test_seconds (8);
  uint64_t seed;

  check_time_limit (300 + test_seconds (8));
  for (seed = first; seed - first < rounds && !check_any_failed (); ++seed) {
    if (seconds () > until && rounds == UINT64_MAX)
      break;
    run (seed);
  }
  printf ("%" PRIu64 " images, %" PRIu64 " requests\n", seed - first,
          requests);
  return check_result ();
}
