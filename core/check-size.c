/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "check-size.h"
#include "check-tables.h"
#include "error.h"

struct size {
  uint64_t bytes, most;
};

/* Stops the scan once it is too much. */
static int
add_l1 (struct check *c, void *opaque, struct host_off place, uint8_t *words,
        size_t bytes)
{
  struct size *size = opaque;
  size_t i;

  (void) place;
  size->bytes += bytes;
  for (i = 0; i < bytes && size->bytes <= size->most; i += 8) {
    if (get_be64 (words + i) != 0)
      size->bytes += c->h.cluster_size;
  }
  return size->bytes <= size->most ? 0 : -1;
}

static int
add_tables (struct check *c, struct size *size)
{
  struct check_l1s l1s;
  uint64_t i;
  int r = 0;

  size->bytes = c->refcounts.entries * 8;
  for (i = 0; i < c->refcounts.entries && size->bytes <= size->most; ++i) {
    if (c->refcounts.table[i] != 0)
      size->bytes += c->h.cluster_size;
  }
  if (size->bytes > size->most)
    return 0;
  if (check_find_l1s (c, &l1s) == -1)
    return -1;
  for (i = 0; r == 0 && i < l1s.nr; ++i)
    r = check_scan (c, (struct host_off) { l1s.l1[i].offset },
                    8 * l1s.l1[i].entries, add_l1, size);
  check_free_l1s (&l1s);
  return size->bytes > size->most ? 0 : r;
}

int
check_tables_fit (struct storage *s, uint64_t bytes, bool *fit)
{
  const struct check_options options = { 0 };
  struct size size = { .most = bytes };
  struct check c;
  int r = -1;

  if (check_start (&c, s, &options) == 0) {
    c.only_look = c.mended = true; /* nothing is counted, or judged */
    r = add_tables (&c, &size);
  }
  check_end (&c);
  *fit = size.bytes <= bytes;
  return r;
}
