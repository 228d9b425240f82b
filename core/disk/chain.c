/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/advice.h"
#include "base/error.h"
#include "disk/backing-name.h"
#include "disk/chain.h"
#include "storage/open.h"

/* Where names are looked up: a directory, and for FOLLOW_BENEATH what
 * is needed to stay below it.  What an NBD server has is in no directory.
 */
struct name_gate {
  enum follow follow;
  char *root;      /* the directory, as the user named it, or NULL */
  char *root_real; /* its real path, FOLLOW_BENEATH only */
  int fd;          /* of root, FOLLOW_BENEATH only, else -1 */
};

static void *
no_memory (const char *name)
{
  error_set (ENOMEM, "%s: out of memory", name);
  return NULL;
}

/* A copy of dir's part of path, with `.' for none. */
static char *
directory_of (const char *path)
{
  const char *slash = strrchr (path, '/');

  if (slash == NULL)
    return strdup (".");
  if (slash == path)
    return strdup ("/");
  return strndup (path, slash - path);
}

static void
name_gate_close (struct name_gate *g)
{
  free (g->root);
  free (g->root_real);
  if (g->fd != -1)
    close (g->fd);
  *g = (struct name_gate) { .fd = -1 };
}

/* Open the gate at the directory of this path. */
static int
name_gate_open (struct name_gate *g, enum follow follow, const char *path)
{
  *g = (struct name_gate) { .follow = follow, .fd = -1 };
  if (storage_nbd_is_uri (path))
    return 0;
  g->root = directory_of (path);
  if (g->root == NULL) {
    no_memory (path);
    return -1;
  }
  if (follow != FOLLOW_BENEATH)
    return 0;
  g->root_real = realpath (g->root, NULL);
  if (g->root_real != NULL)
    g->fd = open (g->root, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (g->fd == -1) {
    error_set (errno, "%s: opening the directory: %s", g->root,
               strerror (errno));
    name_gate_close (g);
    return -1;
  }
  return 0;
}

/* The part of an absolute path that is below the gate's directory, or NULL. */
static const char *
below_root (const struct name_gate *g, const char *path)
{
  const size_t len = strlen (g->root_real);

  while (path[1] == '/') /* as in file:///path */
    path++;
  if (strcmp (g->root_real, "/") == 0)
    return path + 1;
  if (strncmp (path, g->root_real, len) == 0 && path[len] == '/')
    return path + len + 1;
  return NULL;
}

static struct storage *
open_beneath (const struct name_gate *g, const char *path, const char *name)
{
  const char *below = path[0] == '/' ? below_root (g, path) : path;
  struct storage *s = NULL;

  if (below != NULL) {
    while (*below == '/')
      below++;
    s = storage_open_beneath (g->fd, below, name);
  }
  if (s == NULL && (below == NULL || error_errno () == EXDEV)) {
    error_set (EACCES, "%s: not beneath the directory %s", name, g->root);
    advise (ADVICE_BENEATH);
  }
  return s;
}

/* Open a path that is relative to the gate's directory, or absolute. */
static struct storage *
open_through (const struct name_gate *g, const char *path)
{
  struct storage *s = NULL;
  char *full;

  if (path[0] == '/')
    full = strdup (path);
  else if (asprintf (&full, "%s/%s", g->root, path) == -1)
    full = NULL;
  if (full == NULL)
    no_memory (path);
  else if (g->follow == FOLLOW_BENEATH)
    s = open_beneath (g, path, full);
  else
    s = storage_open_path (full);
  free (full);
  return s;
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
             const char *path)
{
  if (g->root != NULL || (path[0] == '/' && g->follow == FOLLOW_ANY))
    return 0;
  error_set (EACCES, "%s: its backing file is \"%s\", which can't be found "
             "from an NBD server", l->tables->name, l->backing_name);
  advise (ADVICE_BACKING);
  return -1;
}

/* The format of a file's backing file is not known; there are so many files
 * above it, each of them qcow2.  Formats are given from the top down, since a
 * layer counts whether it records one or not: else a chain in which somebody
 * records a format would suddenly have others taken for what they aren't.
 */
static void
no_format (const char *file, unsigned above)
{
  static const char unknown[] = "the format of its backing file is not "
    "recorded in it and is never guessed";

  if (above == 0)
    error_set (EINVAL, "%s: %s", file, unknown);
  else
    error_set (EINVAL, "%s: %s; formats are given from the top down: qcow2 %u "
               "time%s, for what is above it, and then its own", file, unknown,
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

static int
check_loop (const struct chain *c, const struct storage *s)
{
  unsigned i;

  for (i = 0; i < c->nr; ++i) {
    if (storage_same (c->layer[i]->tables, s)) {
      error_set (EINVAL, "%s: the backing chain is a loop: it comes back to "
                 "%s", s->name, c->layer[i]->tables->name);
      return -1;
    }
  }
  return 0;
}

/* The permissions that QEMU takes on an image it reads, too. */
static int
lock (const struct chain *c, struct storage *s)
{
  const unsigned denies = STORAGE_WRITE | STORAGE_RESIZE;

  storage_set_locking (s, c->locking);
  return storage_lock (s, STORAGE_CONSISTENT_READ,
                       c->force_share ? 0 : denies);
}

static int
check_depth (const struct chain *c, const struct storage *s)
{
  if (c->nr < CHAIN_MAX_DEPTH)
    return 0;
  error_set (EINVAL, "%s: the backing chain is deeper than %d files", s->name,
             CHAIN_MAX_DEPTH);
  return -1;
}

/* Open the last file of the chain, in a storage that is owned from here on. */
static int
add_layer (struct chain *c, struct storage *s, const struct format_ops *format,
           struct shared *shared)
{
  struct layer *l = NULL;

  if (check_loop (c, s) == 0 && lock (c, s) == 0 && check_depth (c, s) == 0)
    l = format->open (s, c->nr, shared);
  if (l == NULL) {
    storage_close (s);
    return -1;
  }
  if (c->nr > 0)
    last (c)->backing = l;
  c->layer[c->nr++] = l;
  return 0;
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
  if (check_place (g, l, next) == -1)
    return -1;
  s = open_through (g, next);
  if (s == NULL || add_layer (c, s, format, shared) == -1) {
    error_append (" (this is the backing file of %s)", l->tables->name);
    return -1;
  }
  return 0;
}

/* Open the backing file that the user names. */
static int
follow_user (struct chain *c, const char *backing, const char *format_name,
             const struct nbd_options *nbd, struct shared *shared)
{
  const struct format_ops *format =
    find_format (shared->formats, c->layer[0]->tables->name, format_name, 0);
  struct storage *s;

  if (format == NULL)
    return -1;
  s = storage_open (backing, nbd);
  return s == NULL ? -1 : add_layer (c, s, format, shared);
}

static const char *
base_name (const char *path)
{
  const char *slash = strrchr (path, '/');

  return slash == NULL ? path : slash + 1;
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

  if (name_gate_open (&g, options->follow, file) == -1)
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

static int
follow_all (struct chain *c, const struct chain_options *options,
            struct shared *shared)
{
  const char *file = options->file;

  if (options->backing != NULL) {
    file = options->backing;
    if (follow_user (c, file, options->backing_format != NULL
                     ? options->backing_format : format_recorded (c->layer[0]),
                     &options->nbd, shared) == -1)
      return -1;
  }
  if (follow_names (c, options, file, shared) == -1)
    return -1;
  return check_formats (c, options);
}

/* Returns NULL with the error set. */
static struct storage *
open_image (const struct chain_options *o)
{
  struct storage *s = storage_open (o->file, &o->nbd);

  if (s == NULL || o->made == NULL || storage_same (s, o->made))
    return s;
  error_set (EEXIST, "%s: it was replaced by another file since it was made",
             o->file);
  storage_close (s);
  return NULL;
}

int
chain_open (struct chain *c, const struct format_ops *format,
            const struct chain_options *options, struct shared *shared)
{
  struct storage *s;

  memset (c, 0, sizeof *c);
  c->force_share = options->force_share;
  c->locking = options->locking;
  s = open_image (options);
  if (s == NULL)
    return -1;
  if (add_layer (c, s, format, shared) == -1 ||
      follow_all (c, options, shared) == -1) {
    chain_close (c);
    return -1;
  }
  return 0;
}

/* Add layers of these storages.  Returns how many of them are owned now: where
 * the chain has fewer layers than there are storages, the error is set.
 */
static unsigned
add_storages (struct chain *c, const struct format_ops *format,
              struct storage *const *storages, unsigned nr,
              struct shared *shared)
{
  unsigned i;

  for (i = 0; i < nr; ++i) {
    if (i > 0)
      format = find_format (shared->formats, storages[i - 1]->name,
                            format_recorded (last (c)), i - 1);
    if (format == NULL)
      return i;
    if (add_layer (c, storages[i], format, shared) == -1)
      return i + 1;
  }
  return nr;
}

int
chain_open_storages (struct chain *c, const struct format_ops *format,
                     struct storage *const *storages, unsigned nr,
                     struct shared *shared)
{
  const struct chain_options nothing = { .follow = FOLLOW_NONE };
  unsigned taken, i;

  memset (c, 0, sizeof *c);
  taken = add_storages (c, format, storages, nr, shared);
  if (c->nr == nr &&
      follow_names (c, &nothing, storages[nr - 1]->name, shared) == 0)
    return 0;
  for (i = taken; i < nr; ++i)
    storage_close (storages[i]);
  chain_close (c);
  return -1;
}

void
chain_close (struct chain *c)
{
  unsigned i;

  for (i = 0; i < c->nr; ++i) {
    struct storage *s = c->layer[i]->tables;

    c->layer[i]->format->close (c->layer[i]);
    storage_close (s);
  }
  memset (c, 0, sizeof *c);
}
