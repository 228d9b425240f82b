/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>

#include "check.h"
#include "checker.h"
#include "image-check.h"
#include "verdict.h"

bool
verdict_refcounts_suffice (const struct made *m, const uint8_t *bytes,
                           uint64_t size, uint64_t *cluster)
{
  struct image_refs refs;
  bool ok = true;
  uint64_t i;

  if (m->bitmaps) /* whose references are not counted there */
    return true;
  image_refs_count (&refs, bytes, size);
  for (i = 0; i < refs.nr && ok; ++i) {
    ok = image_refcount (bytes, size, i) >= refs.count[i];
    *cluster = i;
  }
  image_refs_free (&refs);
  return ok;
}

void
verdict_references (const struct made *m, const uint8_t *bytes, uint64_t size,
                    const char *what)
{
  uint64_t cluster;

  if (!verdict_refcounts_suffice (m, bytes, size, &cluster))
    check_failed (__FILE__, __LINE__, "%s: cluster %" PRIu64
                  " has more references than its refcount", what, cluster);
}

bool
verdict_metadata (const struct made *m, const uint8_t *bytes, uint64_t size,
                  const char *what)
{
  struct check_result r;
  bool dirty;

  check_image (bytes, size, 0, &r);
  dirty = r.dirty;
  if (dirty || m->version == 2)
    check_image (bytes, size, CHECK_ANY_REFCOUNTS, &r);
  if (!check_is_sound (&r))
    check_failed (__FILE__, __LINE__, "%s: %s%s", what,
                  r.opens ? "" : "does not open: ", r.why);
  return dirty;
}

void
try_images (int argc, char *argv[], const char *const *images, unsigned nr,
            try_function *fn)
{
  unsigned i;

  if (argc > 1)
    fn (argv[1]);
  for (i = 0; argc == 1 && i < nr; ++i)
    fn (images[i]);
}
