/* SPDX-License-Identifier: BSD-3-Clause */

/* From a storage to a layer of a chain: its locks, its uses and its format. */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "disk/chain-parts.h"
#include "disk/uses.h"

/* The permissions that QEMU takes on a file it reads, too.  Of those on an
 * image it denies more than of those on a data file, which it lets others
 * write.
 */
static int
lock (const struct chain *c, struct storage *s, unsigned denies)
{
  const bool made =
    (c->made != NULL && storage_same (s, c->made)) ||
    (c->made_data != NULL && storage_same (s, c->made_data));

  if (c->force_share)
    denies = 0;
  storage_set_locking (s, c->locking);
  return made ? storage_lock_alone (s, STORAGE_CONSISTENT_READ, denies)
    : storage_lock (s, STORAGE_CONSISTENT_READ, denies);
}

static int
check_depth (const struct storage *s, unsigned id)
{
  if (id < CHAIN_MAX_DEPTH)
    return 0;
  error_set (EINVAL, "%s: the backing chain is deeper than %d files", s->name,
             CHAIN_MAX_DEPTH);
  return -1;
}

const struct format_ops *
format_recognize (const struct format_ops *const *formats,
                  const struct format_ops *otherwise, struct storage *s)
{
  char start[4];
  unsigned i;

  if (storage_read (s, start, sizeof start, (struct host_off) { 0 }) == -1)
    return NULL;
  for (i = 0; formats[i] != NULL; ++i)
    if (formats[i]->magic != NULL &&
        memcmp (start, formats[i]->magic, sizeof start) == 0)
      return formats[i];
  return otherwise;
}

static int
check_excluded (const struct layer *above)
{
  if (above == NULL || !above->excludes_backing)
    return 0;
  error_set (EINVAL, "%s: its external data file is raw, which excludes a "
             "backing file", above->tables->name);
  return -1;
}

/* A layer of the file that has this place in the chain.  The format of the
 * first may be another one, by its magic.
 */
static struct layer *
new_layer (const struct chain *c, unsigned id, struct storage *s,
           const struct format_ops *format, struct shared *shared)
{
  if (uses_check (c->layer, c->nr, s, format) == -1 ||
      lock (c, s, STORAGE_WRITE | STORAGE_RESIZE) == -1 ||
      check_depth (s, id) == -1)
    return NULL;
  if (id == 0)
    format = format_recognize (shared->formats, format, s);
  return format == NULL ? NULL : format->open (s, id, shared);
}

int
chain_add_layer (struct chain *c, struct storage *s,
                 const struct format_ops *format, struct shared *shared)
{
  struct layer *above = c->nr > 0 ? chain_last (c) : NULL;
  struct layer *l = NULL;

  if (check_excluded (above) == 0)
    l = new_layer (c, c->nr, s, format, shared);
  if (l == NULL) {
    storage_close (s);
    return -1;
  }
  if (above != NULL)
    above->backing = l;
  c->layer[c->nr++] = l;
  return 0;
}

int
chain_add_first (struct chain *c, struct storage *s,
                 const struct format_ops *format, struct shared *shared)
{
  struct layer *l = new_layer (c, 0, s, format, shared);

  if (l == NULL) {
    storage_close (s);
    return -1;
  }
  c->layer[0] = l;
  if (c->nr == 1)
    return 0;
  l->backing = c->layer[1];
  return check_excluded (l);
}

int
chain_set_data (const struct chain *c, struct layer *l, struct storage *s)
{
  if (uses_check (c->layer, c->nr, s, NULL) == -1 ||
      lock (c, s, STORAGE_RESIZE) == -1) {
    storage_close (s);
    return -1;
  }
  return l->format->set_data (l, s);
}
