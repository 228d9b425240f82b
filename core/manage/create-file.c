/* SPDX-License-Identifier: BSD-3-Clause */

/* The functions of manage/create.h that deal with files. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "manage/create.h"
#include "manage/names.h"
#include "storage/file.h"
#include "storage/open.h"

char *
create_path_from (const char *file, const char *name)
{
  const char *slash = strrchr (file, '/');
  char *path;

  if (name[0] == '/' || slash == NULL)
    return strdup (name);
  if (asprintf (&path, "%.*s/%s", (int) (slash - file), file, name) == -1)
    return NULL;
  return path;
}

/* Open what is to be written.  Returns NULL with the error set. */
static struct storage *
open_alone (const char *path, const struct create_options *o)
{
  struct storage *s = storage_open_path (path);

  if (s == NULL)
    return NULL;
  storage_set_locking (s, o->locking);
  if (storage_make_writable (s, CREATE_LOCKS, CREATE_LOCKS) == 0)
    return s;
  storage_close (s);
  return NULL;
}

/* ------------------------------------------------------------ the old file */

/* Where that is all that could be done.  It would be lost if anything failed. */
#define NOT_IN_PLACE \
  " (the old file is only ever replaced by another one, never written over)"

static int
replaced_meanwhile (const char *path)
{
  error_set (EEXIST, "%s: it was replaced by another file meanwhile", path);
  return -1;
}

/* The old file and the new one change names.  Nothing is lost should the names
 * belong to others' files by then: they change back.
 */
static int
exchange (struct created *c, char **temporary, const char *path)
{
  if (!names_has (c->old, c->dir, c->name))
    return replaced_meanwhile (path);
  if (renameat2 (c->dir, *temporary, c->dir, c->name, RENAME_EXCHANGE) == -1) {
    names_error (path, "naming the new image");
    if (error_errno () == EBUSY) /* something is mounted there */
      error_append (NOT_IN_PLACE);
    return -1;
  }
  if (names_has (c->old, c->dir, *temporary) &&
      names_has (c->storage, c->dir, c->name)) {
    c->old_name = *temporary;
    *temporary = NULL;
    return 0;
  }
  renameat2 (c->dir, *temporary, c->dir, c->name, RENAME_EXCHANGE);
  return replaced_meanwhile (path);
}

/* The old file has another name as well, before the new one takes its own. */
static int
link_and_replace (struct created *c, const char *temporary, const char *path)
{
  char *other = names_temporary (path);

  if (other == NULL || linkat (c->dir, c->name, c->dir, other, 0) == -1) {
    names_error (path, "keeping the old file");
    free (other);
    return -1;
  }
  if (names_has (c->old, c->dir, other) && names_sync (path, c->dir) == 0 &&
      names_replace (c->old, c->dir, temporary, path) == 0) {
    c->old_name = other;
    return 0;
  }
  if (!names_has (c->old, c->dir, other))
    replaced_meanwhile (path);
  names_drop (c->dir, other, path); /* ours alone, whatever it leads to */
  free (other);
  return -1;
}

/* The old file has another name instead.  For a moment there is nothing at the
 * path.
 */
static int
move_and_replace (struct created *c, const char *temporary, const char *path,
                  enum storage_locking locking)
{
  char *other = names_temporary (path);
  struct stat st;

  if (other == NULL || fstatat (c->dir, other, &st, AT_SYMLINK_NOFOLLOW) == 0)
    error_set (EEXIST, "%s: keeping the old file: no name for it", path);
  else if (names_move (c->dir, c->name, other) == -1)
    names_error (path, "keeping the old file");
  else if (!names_has (c->old, c->dir, other)) {
    names_move (c->dir, other, c->name);
    replaced_meanwhile (path);
  }
  else {
    c->old_name = other;
    return names_sync (path, c->dir) == -1 ? -1
      : names_give (c->dir, temporary, path, locking);
  }
  free (other);
  return -1;
}

/* Whether the old file is another user's in a sticky directory of others, where
 * we can't rename it, nor remove a link to it once there is one.
 */
static bool
is_sticky (const struct created *c)
{
  const uid_t us = geteuid ();
  struct stat st;

  return fstat (c->dir, &st) == 0 && (st.st_mode & S_ISVTX) != 0 &&
    st.st_uid != us &&
    fstatat (c->dir, c->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
    st.st_uid != us;
}

/* Have the new file the old one's name, and that one another, by which it is
 * there until nbdkit has started: in the first of three ways that works.  When
 * this is cut off, both are there.  exFAT has only the last of them.
 */
static int
replace_old (struct created *c, char **temporary, const char *path,
             enum storage_locking locking)
{
  int r = exchange (c, temporary, path);

  if (r == -1 && error_errno () == EPERM && is_sticky (c))
    return -1;
  if (r == -1 && names_missing (error_errno ()))
    r = link_and_replace (c, *temporary, path);
  if (r == -1 && (names_missing (error_errno ()) || error_errno () == EMLINK))
    r = move_and_replace (c, *temporary, path, locking);
  return r;
}

/* Give the old file its name again, and remove the new one.  What belongs to
 * others is left alone.  Returns -1 if the old file keeps its other name.
 */
static int
change_back (const struct created *c)
{
  struct stat st;

  if (!names_has (c->storage, c->dir, c->name))
    return fstatat (c->dir, c->name, &st, AT_SYMLINK_NOFOLLOW) == 0 ? -1
      : names_move (c->dir, c->old_name, c->name);
  if (renameat2 (c->dir, c->old_name, c->dir, c->name, RENAME_EXCHANGE) == -1)
    return !names_missing (errno) ? -1
      : renameat (c->dir, c->old_name, c->dir, c->name);
  if (!names_has (c->old, c->dir, c->name) ||
      !names_has (c->storage, c->dir, c->old_name)) {
    renameat2 (c->dir, c->old_name, c->dir, c->name, RENAME_EXCHANGE);
    return -1;
  }
  /* The host must not stop with that undone and the name removed. */
  if (names_durable (c->dir))
    names_remove (c->storage, c->dir, c->old_name, c->storage->name);
  else
    note_message ("%s: the new image is %s now, in the same directory: "
                  "syncing that: %s", c->storage->name, c->old_name,
                  strerror (errno));
  return 0;
}

/* Others have taken the old file's name from it.  The new image is removed only
 * if it isn't all that is left.
 */
static void
note_gone (const struct created *c)
{
  const char *path = c->storage->name;

  if (names_has (c->old, c->dir, c->name))
    return; /* they have put it back */
  if (storage_file_has_name (c->old)) {
    note_message ("%s: what was there before is no longer %s, in the same "
                  "directory: another process has renamed it", path,
                  c->old_name);
    names_remove (c->storage, c->dir, c->name, path);
  }
  else
    note_message ("%s: what was there before is gone: it was %s, in the same "
                  "directory, and another process has removed it", path,
                  c->old_name);
}

/* What was there before is to be there again, so far as others have not
 * changed that.
 */
static void
put_back (struct created *c)
{
  struct stat st;
  const bool gone =
    fstatat (c->dir, c->old_name, &st, AT_SYMLINK_NOFOLLOW) == 0
    ? !storage_file_is (c->old, &st) : errno == ENOENT;

  if (gone)
    note_gone (c);
  else if (change_back (c) == -1)
    note_message ("%s: what was there before is %s now, in the same "
                  "directory", c->storage->name, c->old_name);
  (void) fsync (c->dir);
  free (c->old_name);
  c->old_name = NULL;
}

/* The image is complete: name it, replacing the old file, or where there must
 * be none.
 */
static int
give_name (struct created *c, char **temporary, const char *path,
           enum storage_locking locking)
{
  const int r = c->old != NULL ? replace_old (c, temporary, path, locking)
    : names_give (c->dir, *temporary, path, locking);

  /* Others may have swapped the file while it had its temporary name. */
  if (r == 0 && !names_has (c->storage, c->dir, c->name)) {
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
    *name = names_temporary (path);
    fd = *name == NULL ? -1 : openat (dir, *name, O_RDWR | O_CREAT | O_EXCL |
                                      O_NOFOLLOW | O_CLOEXEC, mode);
  } while (fd == -1 && *name != NULL && errno == EEXIST &&
           ++tries < MAX_TRIES);
  if (fd != -1 && (old == NULL || make_alike (fd, old) == 0))
    return fd;
  names_error (path, "making a file next to it");
  if (old != NULL)
    error_append (NOT_IN_PLACE);
  if (fd != -1) {
    names_drop (dir, *name, path);
    close (fd);
  }
  return -1;
}

static int
fill_and_name (struct created *c, char **temporary, const char *path,
               const struct create_options *o)
{
  storage_set_locking (c->storage, o->locking);
  if (storage_lock (c->storage, CREATE_LOCKS, CREATE_LOCKS) == -1 ||
      create_image (c->storage, o) == -1)
    return -1;
  return give_name (c, temporary, path, o->locking);
}

/* old: of c->old, the file to be replaced, or NULL. */
static int
make_complete (struct created *c, const struct stat *old, const char *path,
               const struct create_options *o)
{
  char *temporary = NULL;
  int fd, r;

  fd = make_temporary (c->dir, path, old, &temporary);
  if (fd != -1)
    c->storage = names_adopt (fd, c->dir, temporary, path);
  r = c->storage == NULL ? -1 : fill_and_name (c, &temporary, path, o);
  if (r == -1 && c->storage != NULL && temporary != NULL)
    names_remove (c->storage, c->dir, temporary, path);
  free (temporary);
  return r;
}

static int
make_file (struct created *c, const struct stat *old, const char *path,
           const struct create_options *o)
{
  c->dir = names_directory (path);
  if (c->dir == -1)
    return -1;
  c->name = strdup (names_base (path));
  if (c->name == NULL)
    return names_error (path, "making a file next to it");
  if (make_complete (c, old, path, o) == -1)
    return -1;
  return names_sync (path, c->dir);
}

/* Something exists at path, and may be overwritten. */
static int
overwrite_it (struct created *c, const char *path, const struct stat *st,
              const struct create_options *o)
{
  struct storage *old = open_alone (path, o);
  char *real; /* keep a symbolic link: replace what it leads to */
  int r;

  if (old == NULL)
    return -1;
  if (!storage_file_is (old, st)) {
    storage_close (old);
    return replaced_meanwhile (path);
  }
  if (S_ISBLK (st->st_mode)) {
    c->storage = old;
    return create_image (old, o);
  }
  c->old = old;
  real = realpath (path, NULL);
  r = real == NULL ? names_error (path, "finding it")
    : make_file (c, st, real, o);
  free (real);
  return r;
}

static int
create_or_overwrite (struct created *c, const char *path, bool overwrite,
                     const struct create_options *o)
{
  struct stat st;

  if (stat (path, &st) == -1) {
    if (errno != ENOENT)
      return names_error (path, "looking for it");
    /* Or others have just made it: then its name is taken. */
    if (lstat (path, &st) == 0 && S_ISLNK (st.st_mode)) {
      error_set (EEXIST, "%s: a symbolic link that leads nowhere", path);
      return -1;
    }
    return make_file (c, NULL, path, o);
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
  create_undo (made);
  return -1;
}

/* ------------------------------------------------------ named when complete */

static int
make_hidden (struct created *c, const char *path,
             const struct create_options *o)
{
  struct stat st;
  int fd;

  if (lstat (path, &st) == 0) {
    error_set (EEXIST, "%s: it exists already", path);
    return -1;
  }
  c->dir = names_directory (path);
  fd = c->dir == -1 ? -1 : make_temporary (c->dir, path, NULL, &c->name);
  if (fd == -1)
    return -1;
  c->storage = names_adopt (fd, c->dir, c->name, path);
  if (c->storage == NULL)
    return -1;
  storage_set_locking (c->storage, o->locking);
  return storage_lock (c->storage, CREATE_LOCKS, CREATE_LOCKS) == -1 ? -1
    : create_image (c->storage, o);
}

int
create_hidden (const char *path, const struct create_options *o,
               struct created *made)
{
  *made = (struct created) CREATED_NOTHING;
  if (make_hidden (made, path, o) == 0)
    return 0;
  create_undo (made);
  return -1;
}

int
create_hand_over (struct created *made)
{
  const char *path = made->storage->name;
  const int fd = openat (made->dir, made->name,
                         O_RDWR | O_NOFOLLOW | O_CLOEXEC);
  struct storage *s;

  if (fd == -1)
    return names_error (path, "opening the new image again");
  s = storage_file_adopt (fd, path);
  if (s == NULL) /* which has closed it */
    return -1;
  if (!storage_same (s, made->storage)) {
    storage_close (s);
    return replaced_meanwhile (path);
  }
  storage_close (made->storage);
  made->storage = s;
  return 0;
}

int
create_publish (struct created *made, const char *path,
                enum storage_locking locking)
{
  char *temporary = made->name;
  char *name = strdup (names_base (path));

  if (name == NULL)
    return names_error (path, "naming it");
  if (storage_flush (made->storage) == -1) {
    free (name);
    return -1;
  }
  made->name = name;
  if (give_name (made, &temporary, path, locking) == -1) {
    made->name = temporary; /* for create_undo */
    free (name);
    return -1;
  }
  free (temporary);
  return names_sync (path, made->dir);
}

/* ------------------------------------------------------------ the data file */

static int
fill_data (struct storage *s, const struct create_options *o)
{
  const uint64_t size = (o->size + 511) & ~UINT64_C (511);
  const struct host_off start = { 0 };
  bool done; /* or as well as the storage can */

  storage_set_locking (s, o->locking);
  if (storage_lock (s, CREATE_LOCKS, CREATE_LOCKS) == -1 ||
      storage_resize (s, size) == -1)
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

  c->dir = names_directory (path);
  if (c->dir == -1)
    return -1;
  fd = openat (c->dir, names_base (path), O_RDWR | O_CREAT | O_EXCL |
               O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd == -1) {
    names_error (path, "making the external data file, which must be new");
    return -1;
  }
  c->storage = names_adopt (fd, c->dir, names_base (path), path);
  c->name = strdup (names_base (path));
  if (c->storage == NULL)
    return -1;
  if (c->name != NULL && fill_data (c->storage, o) == 0 &&
      names_sync (path, c->dir) == 0)
    return 0;
  names_remove (c->storage, c->dir, names_base (path), path);
  return c->name == NULL ? names_error (path, "making it") : -1;
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
create_let_go (struct created *made)
{
  storage_close (made->old);
  free (made->old_name);
  storage_close (made->storage);
  free (made->name);
  if (made->dir != -1)
    close (made->dir);
  *made = (struct created) CREATED_NOTHING;
}

void
create_release (struct created *made)
{
  if (made->old_name != NULL)
    names_remove (made->old, made->dir, made->old_name, made->storage->name);
  create_let_go (made);
}

void
create_undo (struct created *made)
{
  if (made->old_name != NULL)
    put_back (made);
  else if (made->name != NULL && made->storage != NULL)
    names_remove (made->storage, made->dir, made->name, made->storage->name);
  create_release (made);
}
