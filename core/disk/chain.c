/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "disk/chain-parts.h"
#include "storage/open.h"

/* The image's path or URI; empty if it has neither. */
static const char *
image_path (const struct chain_options *options)
{
  return options->command == NULL ? options->file : "";
}

/* Open the backing file that the user names. */
static int
follow_user (struct chain *c, const struct chain_options *options,
             const char *format_name, struct shared *shared)
{
  const struct format_ops *format =
    chain_find_format (shared->formats, options->file, format_name, 0);
  struct storage *s;

  if (format == NULL)
    return -1;
  s = storage_open (options->backing, &options->nbd);
  return s == NULL ? -1 : chain_add_layer (c, s, format, shared);
}

/* The data file of the image itself. */
static int
open_data (const struct chain *c, const struct chain_options *options)
{
  struct layer *l = c->layer[0];
  struct storage *s;

  if (options->data_file == NULL)
    return chain_follow_data (c, l, options, image_path (options));
  if (l->data_name == NULL) {
    error_set (EINVAL, "%s: it has no external data file that %s could be",
               options->file, options->data_file);
    return -1;
  }
  s = storage_open (options->data_file, &options->nbd);
  if (s == NULL)
    return -1;
  if (options->made_data != NULL && !storage_same (s, options->made_data)) {
    error_set (EEXIST, "%s: it was replaced by another file since it was made",
               options->data_file);
    storage_close (s);
    return -1;
  }
  return chain_set_data (c, l, s);
}

/* A format for what isn't there: the user thinks of another chain. */
static int
check_formats (const struct chain *c, const struct chain_options *options)
{
  const char *format = chain_format_given (c, options);
  const char *file = chain_last (c)->tables->name;

  if (format == NULL)
    return 0;
  if (c->nr == 1)
    error_set (EINVAL, "%s: it has no backing file for backing-format=%s to "
               "describe", file, format);
  else
    error_set (EINVAL, "%s: it has no backing file for the backing-format=%s "
               "that follows %u other%s to describe", file, format, c->nr - 1,
               c->nr > 2 ? "s" : "");
  return -1;
}

/* From the backing file that the user names on. */
static int
follow_backing (struct chain *c, const struct chain_options *options,
                const char *format_name, struct shared *shared)
{
  if (follow_user (c, options, format_name, shared) == -1 ||
      chain_follow_data (c, chain_last (c), options, options->backing) == -1)
    return -1;
  return chain_follow_names (c, options, options->backing, shared);
}

static int
follow_all (struct chain *c, const struct chain_options *options,
            struct shared *shared)
{
  int r;

  if (open_data (c, options) == -1)
    return -1;
  if (options->backing == NULL)
    r = chain_follow_names (c, options, image_path (options), shared);
  else
    r = follow_backing (c, options, options->backing_format != NULL
                        ? options->backing_format
                        : chain_format_recorded (c->layer[0]), shared);
  return r == -1 ? -1 : check_formats (c, options);
}

/* Returns NULL with the error set. */
static struct storage *
open_image (const struct chain_options *o)
{
  struct storage *s = o->opened != NULL ? o->opened
    : o->far != NULL ? o->far
    : o->command == NULL ? storage_open (o->file, &o->nbd)
    : storage_nbd_start (o->command, &o->nbd, o->file);

  if (s == NULL || o->made == NULL || storage_same (s, o->made))
    return s;
  error_set (EEXIST, "%s: it was replaced by another file since it was made",
             o->file);
  storage_close (s);
  return NULL;
}

static void
begin (struct chain *c, const struct chain_options *options)
{
  memset (c, 0, sizeof *c);
  c->made = options->made;
  c->made_data = options->made_data;
  c->force_share = options->force_share;
  c->locking = options->locking;
}

int
chain_open (struct chain *c, const struct format_ops *format,
            const struct chain_options *options, struct shared *shared)
{
  struct storage *s;

  begin (c, options);
  s = open_image (options);
  if (s == NULL)
    return -1;
  if (chain_add_layer (c, s, format, shared) == -1 ||
      follow_all (c, options, shared) == -1) {
    chain_close (c);
    return -1;
  }
  c->made = c->made_data = NULL;
  return 0;
}

int
chain_open_below (struct chain *c, const struct chain_options *options,
                  struct shared *shared)
{
  begin (c, options);
  c->nr = 1; /* the image's place */
  if (options->backing == NULL ||
      (follow_backing (c, options, options->backing_format, shared) == 0 &&
       check_formats (c, options) == 0))
    return 0;
  chain_close (c);
  return -1;
}

int
chain_open_first (struct chain *c, const struct format_ops *format,
                  const struct chain_options *options, struct shared *shared)
{
  struct storage *s = open_image (options);

  c->made = options->made;
  c->made_data = options->made_data;
  if (s != NULL && chain_add_first (c, s, format, shared) == 0 &&
      open_data (c, options) == 0) {
    c->made = c->made_data = NULL;
    return 0;
  }
  chain_close (c);
  return -1;
}

/* Add a layer of the first of these storages, and its data of the second one if
 * it has such.  *taken: how many of them are owned now.
 */
static int
add_storage (struct chain *c, const struct format_ops *format,
             struct storage *const *storages, unsigned nr, unsigned *taken,
             struct shared *shared)
{
  *taken = 1;
  if (chain_add_layer (c, storages[0], format, shared) == -1)
    return -1;
  if (chain_last (c)->data_name == NULL)
    return 0;
  if (nr == 1) {
    error_set (EINVAL, "%s: its external data file is missing",
               storages[0]->name);
    return -1;
  }
  *taken = 2;
  return chain_set_data (c, chain_last (c), storages[1]);
}

/* Add layers of all of these storages.  *taken is the same. */
static int
add_storages (struct chain *c, const struct format_ops *format,
              struct storage *const *storages, unsigned nr, unsigned *taken,
              struct shared *shared)
{
  unsigned n;

  for (*taken = 0; *taken < nr; *taken += n) {
    int r;

    if (c->nr > 0)
      format = chain_find_format (shared->formats, chain_last (c)->tables->name,
                                  chain_format_recorded (chain_last (c)),
                                  c->nr - 1);
    if (format == NULL)
      return -1;
    r = add_storage (c, format, storages + *taken, nr - *taken, &n, shared);
    if (r == -1) {
      *taken += n;
      return -1;
    }
  }
  return 0;
}

int
chain_open_storages (struct chain *c, const struct format_ops *format,
                     struct storage *const *storages, unsigned nr,
                     struct shared *shared)
{
  const struct chain_options nothing = { .follow = FOLLOW_NONE };
  unsigned taken, i;

  memset (c, 0, sizeof *c);
  if (add_storages (c, format, storages, nr, &taken, shared) == 0 &&
      chain_follow_names (c, &nothing, chain_last (c)->tables->name,
                          shared) == 0)
    return 0;
  for (i = taken; i < nr; ++i)
    storage_close (storages[i]);
  chain_close (c);
  return -1;
}

/* All but the storage of its tables. */
static void
close_layer (struct layer *l)
{
  struct storage *tables = l->tables, *data = l->data;
  struct storage *data_file = l->data_file;

  l->format->close (l);
  if (data != data_file)
    storage_close (data);
  if (data_file != tables)
    storage_close (data_file);
}

struct storage *
chain_close_but_first (struct chain *c)
{
  struct storage *first = NULL;
  unsigned i;

  for (i = 0; i < c->nr; ++i) {
    struct storage *tables;

    if (c->layer[i] == NULL) /* chain_open_below */
      continue;
    tables = c->layer[i]->tables;
    close_layer (c->layer[i]);
    if (i == 0)
      first = tables;
    else
      storage_close (tables);
  }
  memset (c, 0, sizeof *c);
  return first;
}

void
chain_close (struct chain *c)
{
  storage_close (chain_close_but_first (c));
}
