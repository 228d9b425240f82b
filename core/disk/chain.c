/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/advice.h"
#include "base/error.h"
#include "disk/backing-name.h"
#include "disk/chain.h"
#include "disk/name-gate.h"
#include "disk/uses.h"
#include "storage/open.h"

static void *
no_memory (const char *name)
{
  error_set (ENOMEM, "%s: out of memory", name);
  return NULL;
}

/* Say no to a name that must not be followed. */
static int
check_name (const struct name_gate *g, const struct layer *l,
            struct backing_name *name)
{
  if (backing_name_parse (l->tables->name, l->backing_name, name) == -1)
    return -1;
  if (g->follow != FOLLOW_NONE)
    return 0;
  error_set (EACCES, "%s: its backing file is \"%s\", which was not allowed",
             l->tables->name, l->backing_name);
  advise (ADVICE_FOLLOW);
  return -1;
}

/* Say no to a path, as it was resolved, that leads nowhere. */
static int
check_place (const struct name_gate *g, const struct layer *l,
             const char *what, const char *name, const char *path)
{
  if (g->root != NULL || (path[0] == '/' && g->follow == FOLLOW_ANY))
    return 0;
  error_set (EACCES, "%s: its %s is \"%s\", which can't be found from an NBD "
             "server", l->tables->name, what, name);
  advise (name == l->data_name ? ADVICE_DATA_FILE : ADVICE_BACKING);
  return -1;
}

/* The format of a file's backing file is not known; above is how many backing
 * files are above that one.  Formats are given from the top down, and a layer
 * counts whether it records one or not: else a chain in which somebody records
 * a format would suddenly have others taken for what they aren't.
 */
static void
no_format (const char *file, unsigned above)
{
  static const char unknown[] = "the format of its backing file is not "
    "recorded in it and is never guessed";

  if (above == 0)
    error_set (EINVAL, "%s: %s", file, unknown);
  else
    error_set (EINVAL, "%s: %s; formats are given from the top down: %u for "
               "the backing file%s above it, and then its own", file, unknown,
               above, above > 1 ? "s" : "");
  advise (ADVICE_BACKING_FORMAT);
}

/* The names of the formats that are known, as a sentence has them. */
static void
list_formats (const struct format_ops *const *formats, char *buf, size_t len)
{
  size_t used = 0;
  unsigned i;

  for (i = 0; formats[i] != NULL && used < len; ++i)
    used += snprintf (buf + used, len - used, "%s%s",
                      i == 0 ? "" : formats[i + 1] == NULL ? " and " : ", ",
                      formats[i]->name);
}

/* The format of this name, or NULL with the error set.  above: see no_format.
 */
static const struct format_ops *
find_format (const struct format_ops *const *formats, const char *file,
             const char *name, unsigned above)
{
  char known[128];
  unsigned i;

  for (i = 0; formats[i] != NULL; ++i)
    if (strcmp (name, formats[i]->name) == 0)
      return formats[i];
  if (name[0] == '\0') {
    no_format (file, above);
    return NULL;
  }
  list_formats (formats, known, sizeof known);
  error_set (ENOTSUP, "%s: the format of its backing file, \"%s\", is not "
             "supported: only %s are", file, name, known);
  return NULL;
}

/* The format that the user gives for the backing file of the last file of the
 * chain, or NULL.
 */
static const char *
format_given (const struct chain *c, const struct chain_options *options)
{
  unsigned i;

  if (c->nr == 1)
    return options->backing_format;
  for (i = 0; options->lower_formats != NULL &&
       options->lower_formats[i] != NULL; ++i)
    if (i == c->nr - 2)
      return options->lower_formats[i];
  return NULL;
}

static struct layer *
last (const struct chain *c)
{
  return c->layer[c->nr - 1];
}

/* Whether a file says that it has a backing file. */
static bool
names_another (const struct layer *l)
{
  return l->backing_name != NULL && l->backing_name[0] != '\0';
}

/* What it says that the format of that is; empty if it doesn't. */
static const char *
format_recorded (const struct layer *l)
{
  return l->backing_format != NULL ? l->backing_format : "";
}

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

/* Open the last file of the chain, in a storage that is owned from here on. */
static int
add_layer (struct chain *c, struct storage *s, const struct format_ops *format,
           struct shared *shared)
{
  struct layer *above = c->nr > 0 ? last (c) : NULL;
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

/* The same of the first one, whose place was kept free. */
static int
add_first (struct chain *c, struct storage *s, const struct format_ops *format,
           struct shared *shared)
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

/* A layer's data is in this storage, which is owned from here on. */
static int
set_data (const struct chain *c, struct layer *l, struct storage *s)
{
  if (uses_check (c->layer, c->nr, s, NULL) == -1 ||
      lock (c, s, STORAGE_RESIZE) == -1) {
    storage_close (s);
    return -1;
  }
  return l->format->set_data (l, s);
}

/* The path, seen from the gate's directory, of a name in the file at path. */
static char *
resolve (const char *path, const char *name)
{
  const char *slash = strrchr (path, '/');
  char *r;

  if (name[0] == '/' || slash == NULL)
    return strdup (name);
  if (asprintf (&r, "%.*s/%s", (int) (slash - path), path, name) == -1)
    return NULL;
  return r;
}

/* The path within a name for a data file.  Returns NULL with the error set if
 * it must not be followed.  Unlike that of a backing file, QEMU never records
 * one as json:.
 */
static const char *
data_path (const struct name_gate *g, const struct layer *l)
{
  const char *file = l->tables->name, *name = l->data_name;
  const char *path = strncmp (name, "file:", 5) == 0 ? name + 5 : name;

  if (path[0] == '\0') {
    error_set (EINVAL, "%s: its external data file is not named in it", file);
    advise (ADVICE_DATA_FILE);
  }
  else if (path == name && name[strcspn (name, ":/")] == ':')
    error_set (EACCES, "%s: its external data file is \"%s\": only plain paths "
               "are ever followed, be they in file:, not protocols or json:",
               file, name);
  else if (g->follow == FOLLOW_NONE) {
    error_set (EACCES, "%s: its external data file is \"%s\", which was not "
               "allowed", file, name);
    advise (ADVICE_FOLLOW_DATA);
  }
  else
    return path;
  return NULL;
}

/* Open the data file that a layer's file, at this path, names, if it has one.
 */
static int
follow_data_name (const struct chain *c, struct layer *l,
                  const struct name_gate *g, const char *path)
{
  struct storage *s = NULL;
  const char *name;
  char *full;

  if (l->data_name == NULL)
    return 0;
  name = data_path (g, l);
  if (name == NULL)
    return -1;
  full = resolve (path, name);
  if (full == NULL)
    no_memory (l->tables->name);
  else if (check_place (g, l, "external data file", name, full) == 0)
    s = name_gate_open_path (g, full);
  free (full);
  if (s != NULL && set_data (c, l, s) == 0)
    return 0;
  error_append (" (this is the external data file of %s)", l->tables->name);
  return -1;
}

/* Open the backing file that the last file of the chain names.  *path is
 * that file's path and becomes the new one's.
 */
static int
follow_name (struct chain *c, const struct name_gate *g,
             const struct chain_options *options, char **path,
             struct shared *shared)
{
  const struct layer *l = last (c);
  const char *format_name = format_given (c, options);
  const struct format_ops *format;
  struct backing_name name;
  struct storage *s;
  char *next;

  if (check_name (g, l, &name) == -1)
    return -1;
  /* In this order for QEMU, too. */
  if (format_name == NULL)
    format_name = format_recorded (l)[0] != '\0' || name.format == NULL
      ? format_recorded (l) : name.format;
  format = find_format (shared->formats, l->tables->name, format_name,
                        c->nr - 1);
  if (format == NULL)
    return -1;
  next = resolve (*path, name.path);
  if (next == NULL) {
    no_memory (l->tables->name);
    return -1;
  }
  free (*path);
  *path = next;
  if (check_place (g, l, "backing file", l->backing_name, next) == -1)
    return -1;
  s = name_gate_open_path (g, next);
  if (s == NULL || add_layer (c, s, format, shared) == -1) {
    error_append (" (this is the backing file of %s)", l->tables->name);
    return -1;
  }
  return follow_data_name (c, last (c), g, next);
}

/* Open the backing file that the user names. */
static int
follow_user (struct chain *c, const struct chain_options *options,
             const char *format_name, struct shared *shared)
{
  const struct format_ops *format =
    find_format (shared->formats, options->file, format_name, 0);
  struct storage *s;

  if (format == NULL)
    return -1;
  s = storage_open (options->backing, &options->nbd);
  return s == NULL ? -1 : add_layer (c, s, format, shared);
}

static const char *
base_name (const char *path)
{
  const char *slash = strrchr (path, '/');

  return slash == NULL ? path : slash + 1;
}

/* The image's path or URI; empty if it has neither. */
static const char *
image_path (const struct chain_options *options)
{
  return options->command == NULL ? options->file : "";
}

/* Go on from the last file of the chain, which is at this path, for as
 * long as files name others.
 */
static int
follow_names (struct chain *c, const struct chain_options *options,
              const char *file, struct shared *shared)
{
  struct name_gate g;
  char *path;
  int r = 0;

  if (name_gate_open (&g, options->follow, file, options->directory) == -1)
    return -1;
  path = strdup (base_name (file));
  if (path == NULL) {
    no_memory (file);
    r = -1;
  }
  while (r == 0 && names_another (last (c)))
    r = follow_name (c, &g, options, &path, shared);
  free (path);
  name_gate_close (&g);
  return r;
}

/* The same for the data file of a file that is at this path and was not named
 * by another one.
 */
static int
follow_data (const struct chain *c, struct layer *l,
             const struct chain_options *options, const char *file)
{
  struct name_gate g;
  int r;

  if (l->data_name == NULL)
    return 0;
  if (name_gate_open (&g, options->follow, file, options->directory) == -1)
    return -1;
  r = follow_data_name (c, l, &g, base_name (file));
  name_gate_close (&g);
  return r;
}

/* The data file of the image itself. */
static int
open_data (const struct chain *c, const struct chain_options *options)
{
  struct layer *l = c->layer[0];
  struct storage *s;

  if (options->data_file == NULL)
    return follow_data (c, l, options, image_path (options));
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
  return set_data (c, l, s);
}

/* A format for what isn't there: the user thinks of another chain. */
static int
check_formats (const struct chain *c, const struct chain_options *options)
{
  const char *format = format_given (c, options);
  const char *file = last (c)->tables->name;

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
      follow_data (c, last (c), options, options->backing) == -1)
    return -1;
  return follow_names (c, options, options->backing, shared);
}

static int
follow_all (struct chain *c, const struct chain_options *options,
            struct shared *shared)
{
  int r;

  if (open_data (c, options) == -1)
    return -1;
  if (options->backing == NULL)
    r = follow_names (c, options, image_path (options), shared);
  else
    r = follow_backing (c, options, options->backing_format != NULL
                        ? options->backing_format
                        : format_recorded (c->layer[0]), shared);
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
  if (add_layer (c, s, format, shared) == -1 ||
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
  if (s != NULL && add_first (c, s, format, shared) == 0 &&
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
  if (add_layer (c, storages[0], format, shared) == -1)
    return -1;
  if (last (c)->data_name == NULL)
    return 0;
  if (nr == 1) {
    error_set (EINVAL, "%s: its external data file is missing",
               storages[0]->name);
    return -1;
  }
  *taken = 2;
  return set_data (c, last (c), storages[1]);
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
      format = find_format (shared->formats, last (c)->tables->name,
                            format_recorded (last (c)), c->nr - 1);
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
      follow_names (c, &nothing, last (c)->tables->name, shared) == 0)
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
