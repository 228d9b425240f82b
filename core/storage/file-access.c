/* SPDX-License-Identifier: BSD-3-Clause */

/* Who may use a file, and its way from being read to being written. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/advice.h"
#include "base/error.h"
#include "storage/file-parts.h"
#include "storage/locks.h"

void
file_set_locking (struct storage *s, enum storage_locking locking)
{
  ((struct file *) s)->locking = locking;
}

/* Returns -1 with the error set, unless it is no reason to stop. */
static int
locks_are_missing (const struct file *f, int err)
{
  static struct damage noted = DAMAGE_INIT;
  const char *name = f->storage.name;

  if (f->locking == STORAGE_LOCKING_ON) {
    error_set (ENOLCK, "%s: locks can't be had (%s), and locking=on asks for "
               "them", name, strerror (err));
    return -1;
  }
  if (damage_is_new (&noted, f->dev)) /* say it once for each file system */
    note_message ("%s: locks can't be had (%s): nothing keeps other programs "
                  "from using it at the same time", name, strerror (err));
  return 0;
}

/* There are no locks on fd: this process at least keeps out of its own way, by
 * whatever names and in whatever images it has the file open.  Returns -1 with
 * the error set.
 */
static int
hold (struct file *f, unsigned uses, unsigned denies, bool alone)
{
  f->no_writers = false;
  if (holder_take (&f->holder, uses, denies, alone))
    return 0;
  error_set (EAGAIN, "%s: this process has it open by another name, or for "
             "another image, %s", f->storage.name,
             uses & STORAGE_WRITE ? "so that it can't be written"
             : "and writes it");
  return -1;
}

static void
other_process (const struct file *f, bool writing)
{
  const char *name = f->storage.name;

  if (writing)
    error_set (EAGAIN, "%s: another process is using it (it holds QEMU's "
               "lock), so that it can't be written", name);
  else {
    error_set (EAGAIN, "%s: another process is writing it (it holds QEMU's "
               "lock)", name);
    advise (ADVICE_SHARE);
  }
}

/* Take locks on fd; if that is not the descriptor for reading, then instead of
 * those.  alone: see storage_ops.lock.  Returns -1 with the error set.
 */
static int
take_locks (struct file *f, int fd, unsigned uses, unsigned denies, bool alone)
{
  const bool writing = fd != f->reading_fd;
  enum locks r;

  if (f->locking == STORAGE_LOCKING_OFF)
    return hold (f, uses, denies, alone);
  r = alone ? locks_place (fd, uses, denies)
    : locks_take (fd, uses, denies, writing ? f->reading_fd : -1, f->denies);
  switch (r) {
  case LOCKS_TAKEN:
    f->no_writers = denies & STORAGE_WRITE;
    return 0;
  case LOCKS_MISSING:
    return locks_are_missing (f, errno) == -1 ? -1
      : hold (f, uses, denies, alone);
  case LOCKS_CONFLICT:
    break;
  }
  other_process (f, writing && !alone);
  return -1;
}

int
file_lock (struct storage *s, unsigned uses, unsigned denies, bool alone)
{
  struct file *f = (struct file *) s;

  f->denies = denies;
  return take_locks (f, f->fd, uses, denies, alone);
}

bool
file_keeps_writers_out (const struct storage *s)
{
  return ((const struct file *) s)->no_writers;
}

/* The file that is open, whatever is under its name by now, where /proc is
 * mounted.
 */
struct self {
  char path[64];
};

static struct self
self_of (const struct file *f)
{
  struct self self;

  snprintf (self.path, sizeof self.path, "/proc/self/fd/%d", f->reading_fd);
  return self;
}

/* Open the file once more, for writing: the one that is open, even if others
 * put something else under its name at this very moment.  Some devices do
 * something as soon as they are opened, so where /proc is mounted no name is
 * used.  Returns -1 with errno set.
 */
static int
reopen (const struct file *f)
{
  const int fd = open_in_place (AT_FDCWD, self_of (f).path, FILE_ANYWHERE,
                                O_RDWR);

  return fd != -1 ? fd : open_in_place (f->dirfd, f->path, f->place, O_RDWR);
}

static void
was_replaced (const struct file *f)
{
  error_set (EIO, "%s: it was replaced by another file since it was opened",
             f->storage.name);
}

static void
cannot_open_for_writing (const struct file *f, int err)
{
  error_set (err, "%s: opening it for writing: %s", f->storage.name,
             strerror (err));
}

/* That the file still is where it is looked for: else nobody would find what is
 * written.  In a folder whoever asks for it has just found it, and not
 * necessarily by the name that it was opened by.  Returns -1 with the error set.
 */
static int
check_is_found (const struct file *f)
{
  struct stat st;

  if (f->place == FILE_REGULAR_BENEATH) {
    if (storage_file_has_name (&f->storage))
      return 0;
    cannot_open_for_writing (f, ENOENT);
  }
  else if (fstatat (f->dirfd, f->path, &st, 0) == -1)
    cannot_open_for_writing (f, errno);
  else if (storage_file_is (&f->storage, &st))
    return 0;
  else
    was_replaced (f);
  return -1;
}

/* The same file for writing.  Returns -1 with the error set. */
static int
open_for_writing (const struct file *f)
{
  struct stat st;
  int fd;

  if (check_is_found (f) == -1)
    return -1;
  fd = reopen (f);
  if (fd == -1)
    cannot_open_for_writing (f, errno);
  else if (fstat (fd, &st) == 0 && storage_file_is (&f->storage, &st))
    return fd;
  else {
    close (fd);
    was_replaced (f);
  }
  return -1;
}

/* True, with the error set, if that is what it is.  The kernel opens such a
 * device for writing all the same, and only fails to write.
 */
static bool
is_read_only_device (const struct file *f)
{
  int read_only = 0;

  if (f->ino != 0 || ioctl (f->fd, BLKROGET, &read_only) == -1 ||
      read_only == 0)
    return false;
  error_set (EROFS, "%s: the block device is read-only", f->storage.name);
  return true;
}

int
file_check_writable (const struct storage *s)
{
  const struct file *f = (const struct file *) s;
  int fd;

  if (is_read_only_device (f))
    return -1;
  if (faccessat (AT_FDCWD, self_of (f).path, W_OK, AT_EACCESS) == 0)
    return 0;
  if (errno == ENOENT && /* /proc is not mounted */
      faccessat (f->dirfd, f->path, W_OK, AT_EACCESS) == 0)
    return 0;
  if (errno == EPERM || errno == ENOSYS) {
    /* It may be the call that is not permitted, in a container. */
    fd = reopen (f);
    if (fd != -1) {
      close (fd);
      return 0;
    }
  }
  error_set (errno, "%s: opening it for writing: %s", s->name, strerror (errno));
  return -1;
}

/* Descriptors for writing: all of them, or none. */
static int
open_all (const struct file *f, int *fd, unsigned nr)
{
  unsigned i;

  for (i = 0; i < nr; ++i) {
    fd[i] = open_for_writing (f);
    if (fd[i] == -1)
      break;
  }
  if (i == nr)
    return 0;
  while (i-- > 0)
    close (fd[i]);
  return -1;
}

int
file_make_writable (struct storage *s, unsigned uses, unsigned denies)
{
  struct file *f = (struct file *) s;
  int fd[3];

  if (f->fd != f->reading_fd)
    return 0;
  if (is_read_only_device (f) || open_all (f, fd, 3) == -1)
    return -1;
  if (take_locks (f, fd[0], uses, denies, false) == -1) {
    if (f->locking != STORAGE_LOCKING_OFF)
      locks_deny (f->reading_fd, f->denies);
    close (fd[2]);
    close (fd[1]);
    close (fd[0]);
    return -1;
  }
  f->judge_fd = fd[2];
  f->durable_fd = fd[1];
  f->fd = fd[0];
  return 0;
}
