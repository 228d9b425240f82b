/* SPDX-License-Identifier: BSD-3-Clause */

/* From what a file says of its backing file and data file to these files. */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/advice.h"
#include "base/error.h"
#include "disk/backing-name.h"
#include "disk/chain-parts.h"

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

const struct format_ops *
chain_find_format (const struct format_ops *const *formats, const char *file,
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

const char *
chain_format_given (const struct chain *c,
                    const struct chain_options *options)
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

/* Whether a file says that it has a backing file. */
static bool
names_another (const struct layer *l)
{
  return l->backing_name != NULL && l->backing_name[0] != '\0';
}

const char *
chain_format_recorded (const struct layer *l)
{
  return l->backing_format != NULL ? l->backing_format : "";
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
  if (s != NULL && chain_set_data (c, l, s) == 0)
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
  const struct layer *l = chain_last (c);
  const char *format_name = chain_format_given (c, options);
  const struct format_ops *format;
  struct backing_name name;
  struct storage *s;
  char *next;

  if (check_name (g, l, &name) == -1)
    return -1;
  /* In this order for QEMU, too. */
  if (format_name == NULL)
    format_name = chain_format_recorded (l)[0] != '\0' || name.format == NULL
      ? chain_format_recorded (l) : name.format;
  format = chain_find_format (shared->formats, l->tables->name, format_name,
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
  if (s == NULL || chain_add_layer (c, s, format, shared) == -1) {
    error_append (" (this is the backing file of %s)", l->tables->name);
    return -1;
  }
  return follow_data_name (c, chain_last (c), g, next);
}

static const char *
base_name (const char *path)
{
  const char *slash = strrchr (path, '/');

  return slash == NULL ? path : slash + 1;
}

int
chain_follow_names (struct chain *c, const struct chain_options *options,
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
  while (r == 0 && names_another (chain_last (c)))
    r = follow_name (c, &g, options, &path, shared);
  free (path);
  name_gate_close (&g);
  return r;
}

int
chain_follow_data (const struct chain *c, struct layer *l,
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
