/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/error.h"
#include "storage/file-parts.h"

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

/* fdatasync, however often a signal interrupts it. */
static int
sync_data (int fd)
{
  int r;

  do
    r = fdatasync (fd);
  while (r == -1 && errno == EINTR);
  return r;
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
  r = pwritev (f->durable_fd, iov, nr, offset);
  return r != -1 && sync_data (f->durable_fd) == -1 ? -1 : r;
}

/* An ordinary write can be told, too: on NFS it fails with ENOSPC if earlier data
 * found none, and fdatasync of that descriptor does not know of it any more.  So
 * there is one with which nothing is done but this, after all was written back.
 */
static int
ask_judge (const struct file *f)
{
  const int r = sync_file_range (f->judge_fd, 0, 1,
                                 SYNC_FILE_RANGE_WAIT_BEFORE);

  return r == -1 && errno == ENOSYS ? sync_data (f->judge_fd) : r;
}

static int
sync_and_ask (const struct file *f)
{
  return sync_data (f->fd) == -1 ? -1 : ask_judge (f);
}

static int
file_flush (struct storage *s)
{
  struct file *f = (struct file *) s;
  struct report_wait w;

  reports_begin (&f->reports, &w);
  return reports_end (&f->reports, &w, sync_and_ask (f));
}

/* Whether a write can fail so although nothing that was written before is lost. */
static bool
is_of_one_write (int err)
{
  return err == ENOSPC || err == EDQUOT || err == EFBIG || err == EINTR;
}

/* What came of a durable write.  The loss of other data can fail it with the same
 * errors as a full file system or a signal; the other descriptors, which are told
 * of losses by themselves, tell which of them it was.
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
  if (f->durable_fd != f->fd) {
    close (f->durable_fd);
    close (f->judge_fd);
  }
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
/* Whether the file may be opened just once by what serves it in the end, however
 * often it is here.
 */
static bool
is_behind_fuse (int fd)
{
  struct statfs st;

  return fstatfs (fd, &st) == 0 &&
    (unsigned long) st.f_type == FUSE_SUPER_MAGIC;
}

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
  f->storage.one_report |= is_behind_fuse (f->fd);
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
    f->fd = f->reading_fd = f->durable_fd = f->judge_fd = -1;
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
    f->fd = f->reading_fd = f->durable_fd = f->judge_fd =
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
  f->fd = f->durable_fd = f->judge_fd = fd;
  f->storage.one_report = true;
  if (examine (f) == 0)
    return &f->storage;
  storage_close (&f->storage);
  return NULL;
}
