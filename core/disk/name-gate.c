/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/advice.h"
#include "base/error.h"
#include "disk/name-gate.h"
#include "storage/open.h"

static void
no_memory (const char *name)
{
  error_set (ENOMEM, "%s: out of memory", name);
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

void
name_gate_close (struct name_gate *g)
{
  free (g->root);
  free (g->root_real);
  if (g->fd != -1)
    close (g->fd);
  *g = (struct name_gate) { .fd = -1 };
}

/* For those below it, as g->root_real and g->fd.  Returns -1 with the error
 * set.
 */
static int
enter_root (struct name_gate *g, const struct directory *dir)
{
  if (dir == NULL && g->follow != FOLLOW_BENEATH)
    return 0;
  g->root_real = dir == NULL ? realpath (g->root, NULL) : strdup (dir->real);
  if (g->root_real != NULL)
    g->fd = dir == NULL ? open (g->root, O_PATH | O_DIRECTORY | O_CLOEXEC)
      : fcntl (dir->fd, F_DUPFD_CLOEXEC, 0);
  if (g->fd != -1)
    return 0;
  error_set (errno, "%s: opening the directory: %s", g->root,
             strerror (errno));
  return -1;
}

int
name_gate_open (struct name_gate *g, enum follow follow, const char *path,
                const struct directory *dir)
{
  *g = (struct name_gate) { .follow = follow, .fd = -1 };
  if (path[0] == '\0' || storage_nbd_is_uri (path))
    return 0;
  g->root = directory_of (path);
  if (g->root == NULL) {
    no_memory (path);
    return -1;
  }
  if (enter_root (g, dir) == 0)
    return 0;
  name_gate_close (g);
  return -1;
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

struct storage *
name_gate_open_path (const struct name_gate *g, const char *path)
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
  else if (g->fd != -1)
    s = storage_open_at (g->fd, path, full);
  else
    s = storage_open_path (full);
  free (full);
  return s;
}
