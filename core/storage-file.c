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
  _Atomic int fd;  /* the one to use */
  int reading_fd;  /* that it was opened with; the same until made writable */
  dev_t dev;       /* the device itself where the file is one */
  ino_t ino;       /* 0 for a block device */
  unsigned denies; /* to others, by locks on reading_fd */

  /* To open it again. */
  char *path;
  int dirfd; /* owned, or AT_FDCWD */
  uint64_t resolve;
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

static uint64_t
file_hole (struct storage *s, uint64_t offset)
{
  struct file *f = (struct file *) s;
  const off_t data = lseek (f->fd, offset, SEEK_DATA);
  const uint64_t size = atomic_load (&s->size);

  if (data == -1)
    return errno == ENXIO && offset < size ? size - offset : 0;
  return (uint64_t) data - offset;
}

static void
file_prefetch (struct storage *s, uint64_t offset, uint64_t count)
{
  struct file *f = (struct file *) s;

  /* Advice: that it was not taken changes nothing. */
  (void) posix_fadvise (f->fd, offset, count, POSIX_FADV_WILLNEED);
}

static ssize_t
file_pwritev (struct storage *s, const struct iovec *iov, int nr,
              uint64_t offset, bool durable)
{
  struct file *f = (struct file *) s;
  ssize_t r;

  if (nr == 1 && !durable)
    return pwrite (f->fd, iov->iov_base, iov->iov_len, offset);
  if (!durable)
    return pwritev (f->fd, iov, nr, offset);
  r = pwritev2 (f->fd, iov, nr, offset, RWF_DSYNC);
  if (r != -1 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL))
    return r;
  r = pwritev (f->fd, iov, nr, offset);
  return r != -1 && fdatasync (f->fd) == -1 ? -1 : r;
}

static int
file_flush (struct storage *s)
{
  struct file *f = (struct file *) s;

  return fdatasync (f->fd);
}

static int
file_zero (struct storage *s, uint64_t offset, uint64_t count, bool punch)
{
  struct file *f = (struct file *) s;
  const int mode = punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;

  return fallocate (f->fd, mode | FALLOC_FL_KEEP_SIZE, offset, count);
}

static int
file_allocate (struct storage *s, uint64_t offset, uint64_t count)
{
  struct file *f = (struct file *) s;

  if (f->ino == 0) /* a block device has its space */
    return 0;
  return fallocate (f->fd, FALLOC_FL_KEEP_SIZE, offset, count);
}

static int
file_resize (struct storage *s, uint64_t size)
{
  struct file *f = (struct file *) s;

  if (f->ino != 0)
    return ftruncate (f->fd, size);
  if (size <= atomic_load (&s->size))
    return 0;
  errno = ENOSPC;
  return -1;
}

/* The size is that of now: another program may have changed it. */
static int
file_stamp (struct storage *s, struct storage_stamp *stamp)
{
  struct file *f = (struct file *) s;
  struct stat st;

  if (fstat (f->fd, &st) == -1)
    return -1;
  stamp->device = st.st_dev;
  stamp->inode = st.st_ino;
  if (S_ISREG (st.st_mode))
    stamp->size = st.st_size;
  stamp->modified = st.st_mtim;
  stamp->changed = st.st_ctim;
  return 0;
}

static void
file_close (struct storage *s)
{
  struct file *f = (struct file *) s;

  if (f->reading_fd != f->fd && f->reading_fd != -1)
    close (f->reading_fd);
  if (f->fd != -1)
    close (f->fd);
  if (f->dirfd != AT_FDCWD && f->dirfd != -1)
    close (f->dirfd);
  free (f->path);
  free (f);
}

static const struct storage_ops file_ops = {
  .pread = file_pread,
  .extent = file_extent,
  .hole = file_hole,
  .prefetch = file_prefetch,
  .pwritev = file_pwritev,
  .flush = file_flush,
  .zero = file_zero,
  .allocate = file_allocate,
  .resize = file_resize,
  .stamp = file_stamp,
  .close = file_close,
};

static int
open_fd (int dirfd, const char *path, uint64_t resolve, int access)
{
  /* O_NONBLOCK: opening a FIFO must not wait for its other end. */
  const int flags = access | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
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

/* Remember how to open it again.  Returns -1 with errno set. */
static int
remember (struct file *f, int dirfd, const char *path, uint64_t resolve)
{
  f->path = strdup (path);
  f->resolve = resolve;
  f->dirfd = dirfd;
  if (f->path == NULL)
    return -1;
  if (dirfd != AT_FDCWD)
    f->dirfd = fcntl (dirfd, F_DUPFD_CLOEXEC, 0);
  return f->dirfd == -1 ? -1 : 0;
}

struct storage *
storage_file_open (int dirfd, const char *path, uint64_t resolve,
                   const char *name)
{
  struct file *f = calloc (1, sizeof *f);

  if (f == NULL)
    goto no_memory;
  f->storage.ops = &file_ops;
  f->fd = f->reading_fd = -1;
  f->dirfd = AT_FDCWD;
  f->storage.name = strdup (name);
  if (f->storage.name == NULL) {
    free (f);
    goto no_memory;
  }
  if (remember (f, dirfd, path, resolve) == 0)
    f->fd = f->reading_fd = open_fd (dirfd, path, resolve, O_RDONLY);
  if (f->fd == -1) {
    error_set (errno, "%s: %s", name, strerror (errno));
    storage_close (&f->storage);
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

/* True if fd is the file that f has open. */
static bool
is_same (const struct file *f, int fd)
{
  struct stat st;

  if (fstat (fd, &st) == -1)
    return false;
  if (S_ISREG (st.st_mode))
    return st.st_dev == f->dev && st.st_ino == f->ino;
  return S_ISBLK (st.st_mode) && f->ino == 0 && st.st_rdev == f->dev;
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

/* Say what this process uses and denies. */
static int
place_locks (int fd, unsigned uses, unsigned denies)
{
  if (for_each_lock (fd, F_OFD_SETLK, F_RDLCK, LOCK_USED, uses) == -1)
    return -1;
  return for_each_lock (fd, F_OFD_SETLK, F_RDLCK, LOCK_DENIED, denies);
}

/* See whether another process denies or uses that. */
static int
look_for_conflicts (int fd, unsigned uses, unsigned denies)
{
  if (for_each_lock (fd, F_OFD_GETLK, F_WRLCK, LOCK_DENIED, uses) == -1)
    return -1;
  return for_each_lock (fd, F_OFD_GETLK, F_WRLCK, LOCK_USED, denies);
}

/* Either of these failed: set the error, unless it is no reason to stop. */
static int
lock_failed (const struct storage *s, bool writing)
{
  if (errno == EINVAL || errno == ENOTSUP || errno == ENOLCK) {
    debug_message ("%s: this file system has no locks: %s", s->name,
                   strerror (errno));
    return 0;
  }
  if (errno != EAGAIN && errno != EACCES)
    error_set (errno, "%s: locking: %s", s->name, strerror (errno));
  else if (writing)
    error_set (EAGAIN, "%s: another process is using it (it holds QEMU's "
               "lock), so that it can't be written", s->name);
  else
    error_set (EAGAIN, "%s: another process is writing it (it holds QEMU's "
               "lock); force-share=true reads it all the same", s->name);
  return -1;
}

int
storage_file_lock (struct storage *s, unsigned uses, unsigned denies)
{
  struct file *f = (struct file *) s;

  if (s->ops != &file_ops) /* nobody else can reach it */
    return 0;
  f->denies = denies;
  if (place_locks (f->fd, uses, denies) == -1 ||
      look_for_conflicts (f->fd, uses, denies) == -1)
    return lock_failed (s, false);
  return 0;
}

int
storage_file_check_writable (const struct storage *s)
{
  const struct file *f = (const struct file *) s;

  if (s->ops != &file_ops ||
      faccessat (f->dirfd, f->path, W_OK, AT_EACCESS) == 0)
    return 0;
  error_set (errno, "%s: writing it: %s", s->name, strerror (errno));
  return -1;
}

int
storage_file_make_writable (struct storage *s, unsigned uses, unsigned denies)
{
  struct file *f = (struct file *) s;
  int fd, r;

  if (s->ops != &file_ops || f->fd != f->reading_fd)
    return 0;
  fd = open_fd (f->dirfd, f->path, f->resolve, O_RDWR);
  if (fd == -1) {
    error_set (errno, "%s: opening it for writing: %s", s->name,
               strerror (errno));
    return -1;
  }
  if (!is_same (f, fd)) {
    error_set (EIO, "%s: it was replaced by another file since it was opened",
               s->name);
    close (fd);
    return -1;
  }
  /* What we deny to others while we read, we would deny to ourselves: but
   * at no moment may others find no lock.
   */
  r = place_locks (fd, uses, denies);
  (void) for_each_lock (f->reading_fd, F_OFD_SETLK, F_UNLCK, LOCK_DENIED,
                        f->denies);
  if (r == 0)
    r = look_for_conflicts (fd, uses, denies);
  if (r == -1 && lock_failed (s, true) == -1) {
    (void) place_locks (f->reading_fd, 0, f->denies);
    close (fd);
    return -1;
  }
  f->fd = fd;
  return 0;
}

bool
storage_file_same (const struct storage *a, const struct storage *b)
{
  const struct file *fa = (const struct file *) a;
  const struct file *fb = (const struct file *) b;

  return a->ops == &file_ops && b->ops == &file_ops &&
    fa->dev == fb->dev && fa->ino == fb->ino;
}
