/* SPDX-License-Identifier: BSD-3-Clause */

/* The functions of manage/create.h that deal with files. */

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
#include "manage/create.h"
#include "storage/file.h"
#include "storage/open.h"

static int
system_error (const char *path, const char *what)
{
  error_set (errno, "%s: %s: %s", path, what, strerror (errno));
  return -1;
}

/* No other process may use what is to be written. */
#define ALL (STORAGE_CONSISTENT_READ | STORAGE_WRITE | STORAGE_RESIZE)

/* Open what is to be written.  Returns NULL with the error set. */
static struct storage *
open_alone (const char *path, const struct create_options *o)
{
  struct storage *s = storage_open_path (path);

  if (s == NULL)
    return NULL;
  storage_set_locking (s, o->locking);
  if (storage_make_writable (s, ALL, ALL) == 0)
    return s;
  storage_close (s);
  return NULL;
}

static const char *
base_name (const char *path)
{
  const char *slash = strrchr (path, '/');

  return slash == NULL ? path : slash + 1;
}

/* The directory is opened once, so that renaming it, or one above it, can't
 * make us create, rename or remove anything in another one.  Returns -1 with
 * the error set.
 */
static int
open_directory (const char *path)
{
  const size_t len = base_name (path) - path;
  char *dir = len == 0 ? strdup (".") : strndup (path, len);
  int fd = -1;

  if (dir != NULL)
    fd = open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1)
    system_error (path, "opening its directory");
  free (dir);
  return fd;
}

/* Make changes in path's directory durable. */
static int
sync_directory (const char *path, int fd)
{
  /* EINVAL: the file system can't sync directories. */
  if (fsync (fd) == 0 || errno == EINVAL)
    return 0;
  return system_error (path, "syncing its directory");
}

/* ------------------------------------------------------------------- names */

/* Whether this name belongs to this file.  Other users who can write the
 * directory may put another file, or a link, there at any moment.
 */
static bool
has_name (const struct storage *s, int dir, const char *name)
{
  struct stat st;

  return fstatat (dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
    storage_file_is (s, &st);
}

/* Turn a file that was just made into a storage.  Returns NULL with the error
 * set, and the file is removed.
 */
static struct storage *
adopt (int fd, int dir, const char *name, const char *path)
{
  struct storage *s = storage_file_adopt (fd, path);

  if (s == NULL)
    unlinkat (dir, name, 0);
  return s;
}

static void
remove_name (const struct storage *s, int dir, const char *name)
{
  if (has_name (s, dir, name))
    unlinkat (dir, name, 0);
}

/* Rename the image, unless the name belongs to a file other than ours. */
static int
rename_over (const struct storage *ours, int dir, const char *temporary,
             const char *path)
{
  const char *name = base_name (path);

  if (!has_name (ours, dir, name)) {
    error_set (EEXIST, "%s: it was replaced by another file meanwhile", path);
    return -1;
  }
  if (renameat (dir, temporary, dir, name) == 0)
    return 0;
  return system_error (path, "naming the new image");
}

/* Take the name with an empty file first. */
static int
name_in_two_steps (int dir, const char *temporary, const char *path,
                   enum storage_locking locking)
{
  const int fd = openat (dir, base_name (path), O_RDWR | O_CREAT | O_EXCL |
                         O_NOFOLLOW | O_CLOEXEC, 0600);
  struct storage *empty = NULL;
  int r = -1;

  if (fd == -1)
    return system_error (path, "naming the new image");
  empty = adopt (fd, dir, base_name (path), path);
  if (empty == NULL)
    return -1;
  /* So that no other process overwrites it with an image. */
  storage_set_locking (empty, locking);
  if (storage_lock (empty, ALL, ALL) == 0)
    r = rename_over (empty, dir, temporary, path);
  if (r == -1)
    remove_name (empty, dir, base_name (path));
  storage_close (empty);
  return r;
}

/* Whether a call failed because the file system lacks it, or because it is
 * forbidden altogether, as in containers.
 */
static bool
is_missing (int err)
{
  return err == EINVAL || err == ENOSYS || err == EOPNOTSUPP || err == EPERM;
}

/* Give a file its name, which must not exist yet, in the first of three ways
 * that works.  exFAT, for one, has only the third, with which a power cut may
 * leave an empty file.
 */
static int
name_file (int dir, const char *temporary, const char *path,
           enum storage_locking locking)
{
  const char *name = base_name (path);

  if (renameat2 (dir, temporary, dir, name, RENAME_NOREPLACE) == 0)
    return 0;
  if (is_missing (errno)) {
    if (linkat (dir, temporary, dir, name, 0) == 0) {
      unlinkat (dir, temporary, 0);
      return 0;
    }
    if (is_missing (errno) || errno == EMLINK)
      return name_in_two_steps (dir, temporary, path, locking);
  }
  return system_error (path, "naming the new image");
}

/* The image is complete: name it, replacing the old file, or where there must
 * be none.
 */
static int
give_name (const struct created *c, const char *temporary,
           const struct storage *old, const char *path,
           enum storage_locking locking)
{
  const int r = old != NULL ? rename_over (old, c->dir, temporary, path)
    : name_file (c->dir, temporary, path, locking);

  /* Others may have swapped the file while it had its temporary name. */
  if (r == 0 && !has_name (c->storage, c->dir, c->name)) {
    error_set (EEXIST, "%s: it was replaced by another file while it was made",
               path);
    return -1;
  }
  return r;
}

/* ------------------------------------------------------------------ making */

/* Give a file the owner, group and mode of the one that it replaces.  If it
 * can't be given away it stays ours, and our group gets no access.
 */
static int
make_alike (int fd, const struct stat *old)
{
  mode_t mode = old->st_mode & 0777;

  if (fchown (fd, old->st_uid, old->st_gid) == -1)
    mode &= ~S_IRWXG;
  return fchmod (fd, mode);
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

/* A name for a file next to path; base_name (path) is truncated so that the
 * name can't get too long.
 */
static char *
temporary_name (const char *path)
{
  char *name;

  if (asprintf (&name, "%.200s.%08" PRIx32, base_name (path),
                random_number ()) == -1)
    return NULL;
  return name;
}

/* How many names to try if they are taken. */
#define MAX_TRIES 100

/* Make an empty file, with the mode that open(2) would give path, or like the
 * old one.  Only this descriptor is written to, never whatever has the name
 * later.  Returns -1 with the error set; otherwise the caller frees *name.
 */
static int
make_temporary (int dir, const char *path, const struct stat *old, char **name)
{
  const mode_t mode = old == NULL ? 0666 : 0600;
  unsigned tries = 0;
  int fd;

  do {
    free (*name);
    *name = temporary_name (path);
    fd = *name == NULL ? -1 : openat (dir, *name, O_RDWR | O_CREAT | O_EXCL |
                                      O_NOFOLLOW | O_CLOEXEC, mode);
  } while (fd == -1 && *name != NULL && errno == EEXIST &&
           ++tries < MAX_TRIES);
  if (fd != -1 && (old == NULL || make_alike (fd, old) == 0))
    return fd;
  system_error (path, "making a file next to it");
  if (fd != -1) {
    unlinkat (dir, *name, 0);
    close (fd);
  }
  return -1;
}

static int
fill_and_name (struct created *c, const char *temporary,
               const struct storage *old, const char *path,
               const struct create_options *o)
{
  storage_set_locking (c->storage, o->locking);
  if (storage_lock (c->storage, ALL, ALL) == -1 ||
      create_image (c->storage, o) == -1)
    return -1;
  return give_name (c, temporary, old, path, o->locking);
}

/* old and old_stat: the file to be replaced, or NULL. */
static int
make_complete (struct created *c, const struct storage *old,
               const struct stat *old_stat, const char *path,
               const struct create_options *o)
{
  char *temporary = NULL;
  int fd, r;

  fd = make_temporary (c->dir, path, old_stat, &temporary);
  if (fd != -1)
    c->storage = adopt (fd, c->dir, temporary, path);
  r = c->storage == NULL ? -1 : fill_and_name (c, temporary, old, path, o);
  if (r == -1 && c->storage != NULL)
    remove_name (c->storage, c->dir, temporary);
  free (temporary);
  return r;
}

static int
make_file (struct created *c, const struct storage *old,
           const struct stat *old_stat, const char *path,
           const struct create_options *o)
{
  c->dir = open_directory (path);
  if (c->dir == -1)
    return -1;
  c->name = strdup (base_name (path));
  if (c->name == NULL)
    return system_error (path, "making a file next to it");
  if (make_complete (c, old, old_stat, path, o) == -1)
    return -1;
  if (sync_directory (path, c->dir) == 0)
    return 0;
  if (old == NULL)
    remove_name (c->storage, c->dir, c->name);
  return -1;
}

/* Something exists at path, and may be overwritten. */
static int
overwrite_it (struct created *c, const char *path, const struct stat *st,
              const struct create_options *o)
{
  struct storage *old = open_alone (path, o);
  char *real; /* keep a symbolic link: replace what it leads to */
  int r = -1;

  if (old == NULL)
    return -1;
  if (!storage_file_is (old, st))
    error_set (EEXIST, "%s: it was replaced by another file meanwhile", path);
  else if (S_ISBLK (st->st_mode)) {
    c->storage = old;
    return create_image (old, o);
  }
  else {
    real = realpath (path, NULL);
    r = real == NULL ? system_error (path, "finding it")
      : make_file (c, old, st, real, o);
    free (real);
  }
  storage_close (old);
  return r;
}

static int
create_or_overwrite (struct created *c, const char *path, bool overwrite,
                     const struct create_options *o)
{
  struct stat st;

  if (stat (path, &st) == -1) {
    if (errno != ENOENT)
      return system_error (path, "looking for it");
    if (lstat (path, &st) == 0) {
      error_set (EEXIST, "%s: a symbolic link that leads nowhere", path);
      return -1;
    }
    return make_file (c, NULL, NULL, path, o);
  }
  if (!S_ISREG (st.st_mode) && !S_ISBLK (st.st_mode))
    error_set (EINVAL, "%s: neither a regular file nor a block device", path);
  else if (!overwrite)
    error_set (EEXIST, "%s: it exists already: create=overwrite gives up what "
               "is in it", path);
  else
    return overwrite_it (c, path, &st, o);
  return -1;
}

int
create_file (const char *path, bool overwrite, const struct create_options *o,
             struct created *made)
{
  *made = (struct created) CREATED_NOTHING;
  if (create_or_overwrite (made, path, overwrite, o) == 0)
    return 0;
  create_release (made);
  return -1;
}

/* ------------------------------------------------------------ the data file */

static int
fill_data (struct storage *s, const struct create_options *o)
{
  const uint64_t size = (o->size + 511) & ~UINT64_C (511);
  const struct host_off start = { 0 };
  bool done; /* or as well as the storage can */

  storage_set_locking (s, o->locking);
  if (storage_lock (s, ALL, ALL) == -1 || storage_resize (s, size) == -1)
    return -1;
  if (size > 0 && o->preallocation == PREALLOCATION_FALLOC &&
      storage_allocate (s, start, size, &done) == -1)
    return -1;
  if (size > 0 && o->preallocation == PREALLOCATION_FULL &&
      create_zeros (s, start, size) == -1)
    return -1;
  return storage_flush (s);
}

static int
make_data_file (struct created *c, const char *path,
                const struct create_options *o)
{
  int fd;

  c->dir = open_directory (path);
  if (c->dir == -1)
    return -1;
  fd = openat (c->dir, base_name (path), O_RDWR | O_CREAT | O_EXCL |
               O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd == -1) {
    system_error (path, "making the external data file, which must be new");
    return -1;
  }
  c->storage = adopt (fd, c->dir, base_name (path), path);
  c->name = strdup (base_name (path));
  if (c->storage == NULL)
    return -1;
  if (c->name != NULL && fill_data (c->storage, o) == 0 &&
      sync_directory (path, c->dir) == 0)
    return 0;
  remove_name (c->storage, c->dir, base_name (path));
  return c->name == NULL ? system_error (path, "making it") : -1;
}

int
create_data_file (const char *path, const struct create_options *o,
                  struct created *made)
{
  *made = (struct created) CREATED_NOTHING;
  if (o->size > INT64_MAX - 511)
    error_set (EINVAL, "%s: disk size %" PRIu64 ": the limit is 2^63 - 512",
               path, o->size);
  else if (make_data_file (made, path, o) == 0)
    return 0;
  create_release (made);
  return -1;
}

void
create_release (struct created *made)
{
  storage_close (made->storage);
  free (made->name);
  if (made->dir != -1)
    close (made->dir);
  *made = (struct created) CREATED_NOTHING;
}

void
create_undo (struct created *made)
{
  if (made->name != NULL)
    remove_name (made->storage, made->dir, made->name);
  create_release (made);
}
