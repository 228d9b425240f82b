/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/advice.h"
#include "base/error.h"
#include "storage/file.h"
#include "storage/holders.h"
#include "storage/locks.h"
#include "storage/reports.h"

struct file {
  struct storage storage;
  _Atomic int fd;  /* the one to use */
  int durable_fd;  /* the same file, opened once more: see file_pwritev */
  int reading_fd;  /* that it was opened with; the same until made writable;
                    * -1 if it was adopted */
  dev_t dev;       /* the device itself where the file is one */
  ino_t ino;       /* 0 for a block device */
  unsigned denies; /* to others, by locks on reading_fd */
  enum storage_locking locking;
  struct holder holder;   /* where there are no locks */
  atomic_bool no_writers; /* locks keep other processes from writing it */

  /* To open it again; NULL if it was adopted. */
  char *path;
  int dirfd; /* owned, or AT_FDCWD */
  enum file_place place;

  struct reports reports, durable_reports; /* to fd, and to durable_fd */
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

/* The kernel reports that it could not write back earlier data once for each
 * descriptor that was opened, by whatever is first to make something durable
 * with that.  Durable writes have one of their own, so that what they are told
 * is not kept from file_flush: see storage/durable.h.
 */
static ssize_t
write_durably (struct file *f, const struct iovec *iov, int nr,
               uint64_t offset)
{
  ssize_t r = pwritev2 (f->durable_fd, iov, nr, offset, RWF_DSYNC);

  /* EPERM: so do containers whose rules are older than the call. */
  if (r != -1 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL &&
                  errno != EPERM))
    return r;
  r = pwritev (f->fd, iov, nr, offset);
  return r != -1 && fdatasync (f->durable_fd) == -1 ? -1 : r;
}

static int
file_flush (struct storage *s)
{
  struct file *f = (struct file *) s;
  struct report_wait w;

  reports_begin (&f->reports, &w);
  return reports_end (&f->reports, &w, fdatasync (f->fd));
}

/* Whether a write can fail so although nothing that was written before is lost. */
static bool
is_of_one_write (int err)
{
  return err == ENOSPC || err == EDQUOT || err == EFBIG || err == EINTR;
}

/* What came of a durable write.  The loss of other data can fail it with the same
 * errors as a full file system or a signal; the other descriptor, which is told
 * of losses by itself, tells which of them it was.
 */
static int
durable_result (struct file *f, struct report_wait *w, int r)
{
  const int err = errno;

  if (r != -1 || !is_of_one_write (err))
    return reports_end (&f->durable_reports, w, r);
  if (file_flush (&f->storage) == -1) {
    errno = EIO;
    return reports_end (&f->durable_reports, w, -1);
  }
  errno = err;
  return reports_end_alone (&f->durable_reports, w);
}

static ssize_t
file_pwritev (struct storage *s, const struct iovec *iov, int nr,
              uint64_t offset, bool durable)
{
  struct file *f = (struct file *) s;
  struct report_wait w;
  ssize_t r;

  if (nr == 1 && !durable)
    return pwrite (f->fd, iov->iov_base, iov->iov_len, offset);
  if (!durable)
    return pwritev (f->fd, iov, nr, offset);
  reports_begin (&f->durable_reports, &w);
  r = write_durably (f, iov, nr, offset);
  return durable_result (f, &w, r == -1 ? -1 : 0) == -1 ? -1 : r;
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

/* Some file systems (of FUSE) have files of a fixed size: one that can't grow has
 * no more room than a device.
 */
static int
resize_file (const struct file *f, uint64_t size)
{
  if (ftruncate (f->fd, size) == 0)
    return 0;
  if ((errno == ENOSYS || errno == EOPNOTSUPP) &&
      size > atomic_load (&f->storage.size))
    errno = ENOSPC;
  return -1;
}

static int
file_resize (struct storage *s, uint64_t size)
{
  struct file *f = (struct file *) s;

  if (f->ino != 0)
    return resize_file (f, size);
  /* A device is not cut, either: what is there would pass for zeros. */
  if (size == atomic_load (&s->size))
    return 0;
  errno = ENOSPC;
  return -1;
}

/* The last byte is had by allocating it, which neither changes nor cuts off what
 * others have put there: ftruncate would, and so would writing that byte.
 */
static int
file_extend (struct storage *s, uint64_t size)
{
  struct file *f = (struct file *) s;

  return f->ino == 0 ? file_resize (s, size)
    : fallocate (f->fd, 0, size - 1, 1);
}

/* When the file was made; 0 if the file system does not tell. */
static struct timespec
when_born (int fd)
{
  struct statx st;

  if (statx (fd, "", AT_EMPTY_PATH, STATX_BTIME, &st) == -1 ||
      !(st.stx_mask & STATX_BTIME))
    return (struct timespec) { .tv_sec = 0 };
  return (struct timespec) { st.stx_btime.tv_sec, st.stx_btime.tv_nsec };
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
  stamp->born = when_born (f->fd);
  return 0;
}

static void
file_close (struct storage *s)
{
  struct file *f = (struct file *) s;

  holder_leave (&f->holder);
  if (f->reading_fd != f->fd && f->reading_fd != -1)
    close (f->reading_fd);
  if (f->durable_fd != f->fd)
    close (f->durable_fd);
  if (f->fd != -1)
    close (f->fd);
  if (f->dirfd != AT_FDCWD && f->dirfd != -1)
    close (f->dirfd);
  reports_destroy (&f->reports);
  reports_destroy (&f->durable_reports);
  free (f->path);
  free (f);
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
  else if (S_ISBLK (st.st_mode)) {
    f->dev = st.st_rdev;
    f->storage.fixed_size = true;
  }
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
  f->holder.file[0] = f->dev;
  f->holder.file[1] = f->ino;
  return 0;
}

/* Remember how to open it again.  Returns -1 with errno set. */
static int
remember (struct file *f, int dirfd, const char *path, enum file_place place)
{
  f->path = strdup (path);
  f->place = place;
  f->dirfd = dirfd;
  if (f->path == NULL)
    return -1;
  if (dirfd != AT_FDCWD)
    f->dirfd = fcntl (dirfd, F_DUPFD_CLOEXEC, 0);
  return f->dirfd == -1 ? -1 : 0;
}

static const char file_kind[] = "file";

static void
file_identify (const struct storage *s, struct storage_identity *id)
{
  const struct file *f = (const struct file *) s;

  *id = (struct storage_identity) { file_kind, { f->dev, f->ino } };
}

bool
storage_file_is (const struct storage *s, const struct stat *st)
{
  struct storage_identity id = { .kind = NULL };

  if (s->ops->identify != NULL)
    s->ops->identify (s, &id);
  if (id.kind != file_kind)
    return false;
  if (S_ISREG (st->st_mode))
    return st->st_dev == id.number[0] && st->st_ino == id.number[1];
  return S_ISBLK (st->st_mode) && id.number[1] == 0 &&
    st->st_rdev == id.number[0];
}

bool
storage_file_has_name (const struct storage *s)
{
  struct storage_identity id = { .kind = NULL };
  struct stat st;

  if (s->ops->identify != NULL)
    s->ops->identify (s, &id);
  return id.kind == file_kind &&
    fstat (((const struct file *) s)->fd, &st) == 0 && st.st_nlink > 0;
}

static void
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

static int
file_lock (struct storage *s, unsigned uses, unsigned denies, bool alone)
{
  struct file *f = (struct file *) s;

  f->denies = denies;
  return take_locks (f, f->fd, uses, denies, alone);
}

static bool
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

static int
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
  error_set (errno, "%s: writing it: %s", s->name, strerror (errno));
  return -1;
}

static int
file_make_writable (struct storage *s, unsigned uses, unsigned denies)
{
  struct file *f = (struct file *) s;
  int fd, durable_fd;

  if (f->fd != f->reading_fd)
    return 0;
  fd = is_read_only_device (f) ? -1 : open_for_writing (f);
  if (fd == -1)
    return -1;
  durable_fd = open_for_writing (f);
  if (durable_fd == -1) {
    close (fd);
    return -1;
  }
  if (take_locks (f, fd, uses, denies, false) == -1) {
    if (f->locking != STORAGE_LOCKING_OFF)
      locks_deny (f->reading_fd, f->denies);
    close (durable_fd);
    close (fd);
    return -1;
  }
  f->durable_fd = durable_fd;
  f->fd = fd;
  return 0;
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
  .extend = file_extend,
  .stamp = file_stamp,
  .set_locking = file_set_locking,
  .lock = file_lock,
  .keeps_writers_out = file_keeps_writers_out,
  .make_writable = file_make_writable,
  .check_writable = file_check_writable,
  .identify = file_identify,
  .close = file_close,
};

/* One that has nothing open yet.  Returns NULL with the error set. */
static struct file *
new_file (const char *name)
{
  struct file *f = calloc (1, sizeof *f);

  if (f != NULL) {
    f->storage.ops = &file_ops;
    f->fd = f->reading_fd = f->durable_fd = -1;
    f->dirfd = AT_FDCWD;
    f->storage.name = strdup (name);
    if (f->storage.name != NULL) {
      reports_init (&f->reports);
      reports_init (&f->durable_reports);
      return f;
    }
    free (f);
  }
  error_set (ENOMEM, "%s: out of memory", name);
  return NULL;
}

struct storage *
storage_file_open (int dirfd, const char *path, enum file_place place,
                   const char *name)
{
  struct file *f = new_file (name);

  if (f == NULL)
    return NULL;
  if (remember (f, dirfd, path, place) == 0)
    f->fd = f->reading_fd = f->durable_fd =
      open_in_place (dirfd, path, place, O_RDONLY);
  if (f->fd == -1)
    error_set (errno, "%s: %s", name, strerror (errno));
  else if (examine (f) == 0)
    return &f->storage;
  storage_close (&f->storage);
  return NULL;
}

struct storage *
storage_file_adopt (int fd, const char *name)
{
  struct file *f = new_file (name);

  if (f == NULL) {
    close (fd);
    return NULL;
  }
  f->fd = f->durable_fd = fd;
  f->storage.one_report = true;
  if (examine (f) == 0)
    return &f->storage;
  storage_close (&f->storage);
  return NULL;
}
