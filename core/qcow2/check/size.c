/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "base/error.h"
#include "qcow2/check/size.h"
#include "qcow2/check/tables.h"

struct size {
  struct check *c;
  uint64_t bytes, most;
};

/* Stops the scan once the limit is exceeded. */
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

/* L1 tables that overlap are looked at once. */
static int
add_interval (void *opaque, uint64_t start, uint64_t end,
              struct check_paths paths)
{
  struct size *size = opaque;

  (void) paths;
  return check_scan (size->c, (struct host_off) { start }, end - start, add_l1,
                     size);
}

static int
add_tables (struct check *c, struct size *size)
{
  struct check_ranges l1s = { 0 };
  uint64_t i;
  int r;

  size->bytes = c->refcounts.entries * 8;
  for (i = 0; i < c->refcounts.entries && size->bytes <= size->most; ++i) {
    if (c->refcounts.table[i] != 0)
      size->bytes += c->h.cluster_size;
  }
  if (size->bytes > size->most)
    return 0;
  r = check_find_l1s (c, &l1s);
  if (r == 0)
    r = check_each_interval (&l1s, 8, add_interval, size);
  check_ranges_free (&l1s);
  return size->bytes > size->most ? 0 : r;
}

int
check_tables_fit (struct storage *s, uint64_t bytes, bool *fit)
{
  const struct check_options options = { 0 };
  struct check c;
  struct size size = { .c = &c, .most = bytes };
  int r;

  if (check_start (&c, s, &options) == -1)
    return -1;
  c.only_look = c.fixed_up = true; /* nothing is counted, or judged */
  r = add_tables (&c, &size);
  check_end (&c);
  *fit = size.bytes <= bytes;
  return r;
}
