/* SPDX-License-Identifier: BSD-3-Clause */

/* The part of create.h that has to do with files. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "create.h"
#include "error.h"

static int
system_error (const char *path, const char *what)
{
  error_set (errno, "%s: %s: %s", path, what, strerror (errno));
  return -1;
}

/* Open what is to be written, so that no other process uses it.  Returns NULL
 * with the error set.
 */
static struct storage *
open_alone (const char *path, const char *name)
{
  struct storage *s = storage_file_open (AT_FDCWD, path, 0, name);
  const unsigned all = STORAGE_CONSISTENT_READ | STORAGE_WRITE |
    STORAGE_RESIZE;

  if (s != NULL && storage_file_make_writable (s, all, all) == 0)
    return s;
  storage_close (s);
  return NULL;
}

/* Returns -1 with the error set. */
static int
open_directory (const char *path)
{
  const char *slash = strrchr (path, '/');
  char *dir = slash == NULL ? strdup (".") : strndup (path, slash - path + 1);
  int fd = -1;

  if (dir != NULL)
    fd = open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1)
    system_error (path, "opening its directory");
  free (dir);
  return fd;
}

/* Have what happened in path's directory survive a power loss. */
static int
sync_directory (const char *path, int fd)
{
  /* EINVAL: a file system that has no such thing. */
  if (fsync (fd) == 0 || errno == EINVAL)
    return 0;
  return system_error (path, "syncing its directory");
}

/* Give a file its name, which nothing must have. */
static int
name_file (const char *temporary, const char *path)
{
  if (renameat2 (AT_FDCWD, temporary, AT_FDCWD, path, RENAME_NOREPLACE) == 0)
    return 0;
  if (errno == EINVAL && link (temporary, path) == 0) {
    unlink (temporary);
    return 0;
  }
  return system_error (path, "naming the new image");
}

static int
replace_file (const char *temporary, const char *path)
{
  if (rename (temporary, path) == 0)
    return 0;
  return system_error (path, "replacing it by the new image");
}

/* Have a file that replaces an old one be for the same users.  Who may not
 * give it away keeps it, but not for a group of his own.
 */
static int
make_alike (int fd, const struct stat *old)
{
  mode_t mode = old->st_mode & 0777;

  if (fchown (fd, old->st_uid, old->st_gid) == -1)
    mode &= ~S_IRWXG;
  return fchmod (fd, mode);
}

/* A name next to path, of which not more is taken than names may have. */
static char *
temporary_name (const char *path)
{
  const char *slash = strrchr (path, '/');
  const int dir = slash == NULL ? 0 : slash - path + 1;
  uint32_t random;
  char *name;

  if (getrandom (&random, sizeof random, 0) == -1 ||
      asprintf (&name, "%.*s%.200s.%08" PRIx32, dir, path, path + dir,
                random) == -1)
    return NULL;
  return name;
}

/* An empty file, as open(2) would create path, or like the old one.  Returns
 * its name, or NULL with the error set.
 */
static char *
make_temporary (const char *path, const struct stat *old)
{
  char *name = temporary_name (path);
  const mode_t mode = old == NULL ? 0666 : 0600;
  int fd = -1;

  if (name != NULL)
    fd = open (name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (fd == -1 || (old != NULL && make_alike (fd, old) == -1)) {
    system_error (path, "making a file next to it");
    if (fd != -1)
      unlink (name);
    free (name);
    name = NULL;
  }
  if (fd != -1)
    close (fd);
  return name;
}

static int
fill (const char *temporary, const char *path, const struct create_options *o)
{
  struct storage *s = open_alone (temporary, path);
  int r = -1;

  if (s != NULL)
    r = create_image (s, o);
  storage_close (s);
  return r;
}

/* Make the image, and have it at path: in place of the old file, or where
 * there must be none.
 */
static int
make_complete (const char *path, const struct stat *old,
               const struct create_options *o, struct stat *made)
{
  char *temporary = make_temporary (path, old);
  int r;

  if (temporary == NULL)
    return -1;
  r = fill (temporary, path, o);
  if (r == 0 && stat (temporary, made) == -1)
    r = system_error (path, "looking at the new image");
  if (r == 0)
    r = old != NULL ? replace_file (temporary, path)
      : name_file (temporary, path);
  if (r == -1)
    unlink (temporary);
  free (temporary);
  return r;
}

void
create_undo (const char *path, const struct stat *made)
{
  struct stat st;

  if (stat (path, &st) == 0 && st.st_dev == made->st_dev &&
      st.st_ino == made->st_ino)
    unlink (path);
}

static int
make_file (const char *path, const struct stat *old,
           const struct create_options *o, struct stat *made)
{
  const int dir = open_directory (path);
  int r;

  if (dir == -1)
    return -1;
  r = make_complete (path, old, o, made);
  if (r == 0 && sync_directory (path, dir) == -1) {
    if (old == NULL)
      create_undo (path, made);
    r = -1;
  }
  close (dir);
  return r;
}

/* What is at path exists, and may be lost. */
static int
overwrite_it (const char *path, const struct stat *st,
              const struct create_options *o, struct stat *made)
{
  struct storage *old = open_alone (path, path);
  char *real; /* a symbolic link stays one */
  int r = -1;

  if (old == NULL)
    return -1;
  if (S_ISBLK (st->st_mode)) {
    *made = *st;
    r = create_image (old, o);
  }
  else {
    real = realpath (path, NULL);
    r = real == NULL ? system_error (path, "finding it")
      : make_file (real, st, o, made);
    free (real);
  }
  storage_close (old);
  return r;
}

int
create_file (const char *path, bool overwrite, const struct create_options *o,
             struct stat *made)
{
  struct stat st;

  if (stat (path, &st) == -1) {
    if (errno != ENOENT)
      return system_error (path, "looking for it");
    if (lstat (path, &st) == 0) {
      error_set (EEXIST, "%s: a symbolic link that leads nowhere", path);
      return -1;
    }
    return make_file (path, NULL, o, made);
  }
  if (!S_ISREG (st.st_mode) && !S_ISBLK (st.st_mode))
    error_set (EINVAL, "%s: neither a regular file nor a block device", path);
  else if (!overwrite)
    error_set (EEXIST, "%s: it exists already: create=overwrite gives up what "
               "is in it", path);
  else
    return overwrite_it (path, &st, o, made);
  return -1;
}
