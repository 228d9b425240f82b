/* SPDX-License-Identifier: BSD-3-Clause */

/* Storage in a regular file or on a block device. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "error.h"
#include "storage.h"

struct file {
  struct storage storage;
  int fd;
  dev_t dev; /* the device itself where the file is one */
  ino_t ino; /* 0 for a block device */
};

static ssize_t
file_pread (struct storage *s, void *buf, size_t count, uint64_t offset)
{
  struct file *f = (struct file *) s;

  return pread (f->fd, buf, count, offset);
}

static int
file_extent (struct storage *s, uint64_t offset, uint64_t count,
             bool *hole, uint64_t *length)
{
  struct file *f = (struct file *) s;
  off_t data, end;

  /* lseek moves the file position, which nothing here uses (pread does
   * not), so it needs no lock.
   */
  data = lseek (f->fd, offset, SEEK_DATA);
  if (data == -1 && errno == ENXIO) { /* a hole up to the end */
    *hole = true;
    *length = count;
    return 0;
  }
  if (data == -1) { /* a file system that can't tell */
    *hole = false;
    *length = count;
    return 0;
  }
  if ((uint64_t) data > offset) {
    *hole = true;
    end = data;
  }
  else {
    *hole = false;
    end = lseek (f->fd, offset, SEEK_HOLE);
    if (end == -1 || (uint64_t) end <= offset)
      end = offset + count;
  }
  *length = end - offset < count ? end - offset : count;
  return 0;
}

static void
file_prefetch (struct storage *s, uint64_t offset, uint64_t count)
{
  struct file *f = (struct file *) s;

  /* Advice: that it was not taken changes nothing. */
  (void) posix_fadvise (f->fd, offset, count, POSIX_FADV_WILLNEED);
}

static void
file_close (struct storage *s)
{
  struct file *f = (struct file *) s;

  close (f->fd);
  free (f);
}

static const struct storage_ops file_ops = {
  .pread = file_pread,
  .extent = file_extent,
  .prefetch = file_prefetch,
  .close = file_close,
};

static int
open_fd (int dirfd, const char *path, uint64_t resolve)
{
  /* O_NONBLOCK: opening a FIFO must not wait for its other end. */
  const int flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  struct open_how how = { .flags = flags, .resolve = resolve };

  if (resolve == 0)
    return openat (dirfd, path, flags);
  return syscall (SYS_openat2, dirfd, path, &how, sizeof how);
}

/* Fill in what fstat and lseek know.  Returns -1 with the error set. */
static int
examine (struct file *f)
{
  struct stat st;
  off_t size;

  if (fstat (f->fd, &st) == -1) {
    error_set (errno, "%s: %s", f->storage.name, strerror (errno));
    return -1;
  }
  if (S_ISREG (st.st_mode)) {
    f->dev = st.st_dev;
    f->ino = st.st_ino;
  }
  else if (S_ISBLK (st.st_mode))
    f->dev = st.st_rdev;
  else {
    error_set (EINVAL, "%s: neither a regular file nor a block device",
               f->storage.name);
    return -1;
  }
  size = lseek (f->fd, 0, SEEK_END);
  if (size == -1) {
    error_set (errno, "%s: finding its size: %s", f->storage.name,
               strerror (errno));
    return -1;
  }
  f->storage.size = size;
  return 0;
}

struct storage *
storage_file_open (int dirfd, const char *path, uint64_t resolve,
                   const char *name)
{
  struct file *f = calloc (1, sizeof *f);

  if (f == NULL)
    goto no_memory;
  f->storage.ops = &file_ops;
  f->storage.name = strdup (name);
  if (f->storage.name == NULL) {
    free (f);
    goto no_memory;
  }
  f->fd = open_fd (dirfd, path, resolve);
  if (f->fd == -1) {
    error_set (errno, "%s: %s", name, strerror (errno));
    free (f->storage.name);
    free (f);
    return NULL;
  }
  if (examine (f) == -1) {
    storage_close (&f->storage);
    return NULL;
  }
  return &f->storage;

 no_memory:
  error_set (ENOMEM, "%s: out of memory", name);
  return NULL;
}

/* QEMU's protocol (its block/file-posix.c): a shared lock on byte 100 + p
 * says that permission p is used, one on byte 200 + p that it is denied to
 * others.  Everyone locks first and then looks for conflicts, so that of two
 * who start at once at least one notices.
 */
#define LOCK_USED 100
#define LOCK_DENIED 200
#define LOCK_PERMISSIONS 4

/* Do cmd for each of these permissions.  Returns 0; or -1 with errno set,
 * EAGAIN for a conflict.
 */
static int
for_each_lock (int fd, int cmd, short type, off_t base, unsigned permissions)
{
  unsigned p;

  for (p = 0; p < LOCK_PERMISSIONS; ++p) {
    struct flock lock = {
      .l_type = type,
      .l_whence = SEEK_SET,
      .l_start = base + p,
      .l_len = 1,
    };

    if (!(permissions & (1U << p)))
      continue;
    if (fcntl (fd, cmd, &lock) == -1)
      return -1;
    if (cmd == F_OFD_GETLK && lock.l_type != F_UNLCK) {
      errno = EAGAIN;
      return -1;
    }
  }
  return 0;
}

int
storage_file_lock (struct storage *s, unsigned uses, unsigned denies)
{
  const struct file *f = (const struct file *) s;

  if (s->ops != &file_ops) /* nobody else can reach it */
    return 0;
  if (for_each_lock (f->fd, F_OFD_SETLK, F_RDLCK, LOCK_USED, uses) == 0 &&
      for_each_lock (f->fd, F_OFD_SETLK, F_RDLCK, LOCK_DENIED, denies) == 0 &&
      for_each_lock (f->fd, F_OFD_GETLK, F_WRLCK, LOCK_DENIED, uses) == 0 &&
      for_each_lock (f->fd, F_OFD_GETLK, F_WRLCK, LOCK_USED, denies) == 0)
    return 0;
  if (errno == EINVAL || errno == ENOTSUP || errno == ENOLCK) {
    debug_message ("%s: this file system has no locks: %s", s->name,
                   strerror (errno));
    return 0;
  }
  if (errno == EAGAIN || errno == EACCES)
    error_set (EAGAIN, "%s: another process is writing it (it holds QEMU's "
               "lock); force-share=true reads it all the same", s->name);
  else
    error_set (errno, "%s: locking: %s", s->name, strerror (errno));
  return -1;
}

bool
storage_file_same (const struct storage *a, const struct storage *b)
{
  const struct file *fa = (const struct file *) a;
  const struct file *fb = (const struct file *) b;

  return a->ops == &file_ops && b->ops == &file_ops &&
    fa->dev == fb->dev && fa->ino == fb->ino;
}
