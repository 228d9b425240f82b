/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "qcow2/l2-range.h"

static inline void
copy_words (const struct map *m, const struct cache_ref *ref, uint64_t *words)
{
  const unsigned nr = m->slice_bytes / sizeof *words;
  unsigned i;

  /* Acquire: see cache_word. */
  for (i = 0; i < nr; ++i)
    words[i] = atomic_load_explicit (&ref->words[i], memory_order_acquire);
}

/* Copy a slice if it is in the cache. */
static bool
find_slice (const struct map *m, struct host_off slice, uint64_t *words)
{
  struct cache_ref ref;

  do {
    if (!cache_find (m->cache, m->id, slice, &ref))
      return false;
    copy_words (m, &ref, words);
  } while (!cache_still_valid (&ref));
  return true;
}

/* Each slice is looked for in the cache before the disk is read: what has left
 * it is on the disk by then (C5).  If all is, there is nothing to look for.
 */
int
l2_range_read (const struct map *m, struct host_off place, uint64_t nr,
               uint64_t *words)
{
  const uint64_t per_slice = m->slice_bytes / sizeof *words;
  uint64_t i, missing = 0; /* slices right before the i-th one */

  if (cache_is_clean (m->cache, m->id))
    return storage_read (m->tables, words, nr * m->slice_bytes, place);
  for (i = 0; i <= nr; ++i) {
    const uint64_t first = i - missing;
    const struct host_off from = { place.v + first * m->slice_bytes };
    const struct host_off slice = { place.v + i * m->slice_bytes };

    if (i < nr && !find_slice (m, slice, words + i * per_slice)) {
      missing++;
      continue;
    }
    if (missing > 0 &&
        storage_read (m->tables, words + first * per_slice,
                      missing * m->slice_bytes, from) == -1)
      return -1;
    missing = 0;
  }
  return 0;
}

int
l2_range_get (const struct map *m, struct host_off place, uint64_t ahead,
              uint64_t *words)
{
  struct cache_ref ref;

  do {
    if (cache_get (m->cache, m->tables, m->id, place, m->slice_bytes, ahead,
                   &ref) == -1)
      return -1;
    copy_words (m, &ref, words);
  } while (!cache_still_valid (&ref));
  return 0;
}
