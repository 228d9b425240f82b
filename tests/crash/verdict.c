/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <string.h>

#include "check.h"
#include "checker.h"
#include "content.h"
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

bool
verdict_is_enciphered (const uint8_t *bytes, uint64_t size,
                       const uint8_t *content, uint64_t count, uint64_t *at,
                       uint64_t *sector)
{
  uint64_t word[2];

  for (*at = 0; *at + SECTOR <= size; *at += SECTOR) {
    memcpy (word, bytes + *at, sizeof word);
    if (word[0] != CONTENT_MAGIC) /* which begins each sector but zeros */
      continue;
    for (*sector = 0; *sector < count / SECTOR; ++*sector)
      if (memcmp (bytes + *at, content + *sector * SECTOR, SECTOR) == 0)
        return false;
  }
  return true;
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
