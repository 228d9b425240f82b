/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "manage/names.h"
#include "storage/file.h"

int
names_error (const char *path, const char *what)
{
  error_set (errno, "%s: %s: %s", path, what, strerror (errno));
  return -1;
}

const char *
names_base (const char *path)
{
  const char *slash = strrchr (path, '/');

  return slash == NULL ? path : slash + 1;
}

int
names_directory (const char *path)
{
  const size_t len = names_base (path) - path;
  char *dir = len == 0 ? strdup (".") : strndup (path, len);
  int fd = -1;

  if (dir != NULL)
    fd = open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1)
    names_error (path, "opening its directory");
  free (dir);
  return fd;
}

bool
names_durable (int dir)
{
  /* EINVAL: the file system can't sync directories. */
  return fsync (dir) == 0 || errno == EINVAL;
}

int
names_sync (const char *path, int dir)
{
  return names_durable (dir) ? 0
    : names_error (path, "syncing its directory");
}

bool
names_has (const struct storage *s, int dir, const char *name)
{
  struct stat st;

  return fstatat (dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
    storage_file_is (s, &st);
}

static void
note_left (const char *name, const char *path)
{
  if (errno != ENOENT)
    note_message ("%s: %s, in the same directory, can't be removed: %s",
                  path, name, strerror (errno));
}

void
names_drop (int dir, const char *name, const char *path)
{
  if (unlinkat (dir, name, 0) == -1)
    note_left (name, path);
}

void
names_remove (const struct storage *s, int dir, const char *name,
              const char *path)
{
  struct stat st;

  if (fstatat (dir, name, &st, AT_SYMLINK_NOFOLLOW) == -1)
    note_left (name, path);
  else if (storage_file_is (s, &st))
    names_drop (dir, name, path);
}

struct storage *
names_adopt (int fd, int dir, const char *name, const char *path)
{
  struct storage *s = storage_file_adopt (fd, path);

  if (s == NULL)
    names_drop (dir, name, path);
  return s;
}

int
names_replace (const struct storage *ours, int dir, const char *temporary,
               const char *path)
{
  const char *name = names_base (path);

  if (!names_has (ours, dir, name)) {
    error_set (EEXIST, "%s: it was replaced by another file meanwhile", path);
    return -1;
  }
  if (renameat (dir, temporary, dir, name) == 0)
    return 0;
  return names_error (path, "naming the new image");
}

/* Take the name with an empty file first. */
static int
name_in_two_steps (int dir, const char *temporary, const char *path,
                   enum storage_locking locking)
{
  const int fd = openat (dir, names_base (path), O_RDWR | O_CREAT | O_EXCL |
                         O_NOFOLLOW | O_CLOEXEC, 0600);
  struct storage *empty = NULL;
  int r = -1;

  if (fd == -1)
    return names_error (path, "naming the new image");
  empty = names_adopt (fd, dir, names_base (path), path);
  if (empty == NULL)
    return -1;
  /* So that no other process overwrites it with an image. */
  storage_set_locking (empty, locking);
  if (storage_lock (empty, CREATE_LOCKS, CREATE_LOCKS) == 0)
    r = names_replace (empty, dir, temporary, path);
  if (r == -1)
    names_remove (empty, dir, names_base (path), path);
  storage_close (empty);
  return r;
}

bool
names_missing (int err)
{
  return err == EINVAL || err == ENOSYS || err == EOPNOTSUPP || err == EPERM;
}

/* exFAT, for one, has only the third way, with which a power cut may leave an
 * empty file.
 */
int
names_give (int dir, const char *temporary, const char *path,
            enum storage_locking locking)
{
  const char *name = names_base (path);

  if (renameat2 (dir, temporary, dir, name, RENAME_NOREPLACE) == 0)
    return 0;
  if (names_missing (errno)) {
    if (linkat (dir, temporary, dir, name, 0) == 0) {
      names_drop (dir, temporary, path);
      return 0;
    }
    if (names_missing (errno) || errno == EMLINK)
      return name_in_two_steps (dir, temporary, path, locking);
  }
  return names_error (path, "naming the new image");
}

static uint32_t
random_number (void)
{
  struct timespec now = { 0 };
  uint32_t r;

  if (getrandom (&r, sizeof r, 0) == sizeof r)
    return r;
  /* Some containers forbid the call.  A name need not be a secret. */
  clock_gettime (CLOCK_REALTIME, &now);
  return now.tv_nsec ^ (uint32_t) getpid () << 16;
}

char *
names_temporary (const char *path)
{
  char *name;

  if (asprintf (&name, "%.200s.%08" PRIx32, names_base (path),
                random_number ()) == -1)
    return NULL;
  return name;
}

int
names_move (int dir, const char *from, const char *to)
{
  if (renameat2 (dir, from, dir, to, RENAME_NOREPLACE) == 0)
    return 0;
  return names_missing (errno) ? renameat (dir, from, dir, to) : -1;
}
