/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>

#include "base/bytes.h"
#include "check.h"
#include "errors-rig.h"

static uint8_t base[DISK_BYTES]; /* of the backing file */
static bool base_made;

static void
compressed (struct builder *b, uint64_t cluster)
{
  uint8_t plain[CLUSTER];

  build_pattern (plain, sizeof plain, cluster);
  build_compressed (b, cluster, plain, 10);
}

void
errors_build (struct builder *b, enum sharing snapshot, bool backing)
{
  uint64_t state = 1, i;

  build_start (b, 3, 12, false, COMPRESSION_DEFLATE, DISK_BYTES);
  build_l2_place (b, 0);
  for (i = 0; i < 20; ++i)
    build_entry (b, i, build_data (b, i + 1), 0);
  for (; i < 24; ++i)
    compressed (b, i);
  for (; i < 28; ++i)
    build_entry (b, i, (i % 2 ? build_data (b, 9) : 0) | QCOW2_L2_ZERO, 0);
  if (backing)
    build_backing (b, "raw");
  if (snapshot != NO_SNAPSHOT)
    build_snapshot (b, snapshot == COPIED_TABLES ? 100 : 0, &state);
}

void
errors_start_built (struct builder *b, bool backing)
{
  build_finish (b);
  rig_init (&rig, "errors", b);
  build_free (b);
  if (backing) {
    if (!base_made)
      build_pattern (base, sizeof base, 77);
    base_made = true;
    rig_set_base (&rig, base, sizeof base, true);
  }
  rig_open (&rig);
}

void
errors_start (enum sharing snapshot, bool backing)
{
  struct builder b;

  errors_build (&b, snapshot, backing);
  errors_start_built (&b, backing);
}

void
errors_end (void)
{
  rig_close (&rig);
  rig_free (&rig);
}

uint64_t
errors_on_disk (uint64_t at)
{
  return get_be64 (rig.disk.data + at);
}

void
errors_check_refused (const char *why)
{
  const struct writer_options options = { 0 };
  struct image *im = image_open_storage (memory_disk_open
                                         (&rig.disk, "test", &rig.control),
                                         CACHE_MIN_BYTES);

  CHECK (im != NULL);
  CHECK_EQ (image_make_writable (im, &options), (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, why);
  CHECK_OK (image_flush (im)); /* not writable: nothing is to be done */
  CHECK_OK (image_close (im));
}
