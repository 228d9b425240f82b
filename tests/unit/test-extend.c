/* SPDX-License-Identifier: BSD-3-Clause */

/* Files that are made longer while other programs do so, too: nothing that those
 * have written is cut off or changed.
 */

#include <config.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "check.h"
#include "memory-storage.h"
#include "must-have.h"
#include "storage/file.h"
#include "wrap.h"

/* A file system that has no fallocate; signals that come meanwhile. */
static bool unsupported;
static unsigned interrupts;

extern int __real_fallocate (int fd, int mode, off_t offset, off_t count);
extern int __wrap_fallocate (int fd, int mode, off_t offset, off_t count);

int
__wrap_fallocate (int fd, int mode, off_t offset, off_t count)
{
  if (!unsupported && interrupts == 0)
    return __real_fallocate (fd, mode, offset, count);
  errno = interrupts > 0 ? EINTR : EOPNOTSUPP;
  if (interrupts > 0)
    interrupts--;
  return -1;
}

/* A file of a fixed size: what ftruncate says. */
static int fixed_errno;

extern int __real_ftruncate (int fd, off_t size);
extern int __wrap_ftruncate (int fd, off_t size);

int
__wrap_ftruncate (int fd, off_t size)
{
  if (fixed_errno == 0)
    return __real_ftruncate (fd, size);
  errno = fixed_errno;
  return -1;
}

static char folder[] = "extend.XXXXXX";
static char path[64];

/* What another program does to it. */
static void
append (uint64_t at, const char *text)
{
  const int fd = open (path, O_WRONLY | O_CREAT, 0600);

  CHECK (fd != -1);
  CHECK_EQ (pwrite (fd, text, strlen (text), at), (ssize_t) strlen (text));
  close (fd);
}

static uint64_t
length (void)
{
  struct stat st;

  CHECK_OK (stat (path, &st));
  return st.st_size;
}

static struct storage *
open_storage (void)
{
  struct storage *s;

  CHECK (unlink (path) == 0 || access (path, F_OK) == -1);
  append (0, "ours");
  s = must_have (storage_file_open (AT_FDCWD, path, FILE_ANYWHERE, path));
  storage_set_locking (s, STORAGE_LOCKING_OFF);
  CHECK_OK (storage_make_writable (s, STORAGE_WRITE, 0));
  return s;
}

static void
expect_at (uint64_t at, const char *text)
{
  char buf[16] = "";
  const int fd = open (path, O_RDONLY);

  CHECK (fd != -1);
  CHECK_EQ (pread (fd, buf, strlen (text), at), (ssize_t) strlen (text));
  CHECK (memcmp (buf, text, strlen (text)) == 0);
  close (fd);
}

/* It becomes as long as is wanted, and reads as zeros. */
static void
test_longer (void)
{
  struct storage *s = open_storage ();
  bool zero;

  CHECK_OK (storage_extend (s, 1000001));
  CHECK_EQ (length (), 1000001);
  CHECK_EQ (atomic_load (&s->size), 1000001);
  CHECK_OK (storage_is_zero (s, (struct host_off) { 4 }, 999997, &zero));
  CHECK (zero);
  CHECK_OK (storage_extend (s, 7)); /* it is that already */
  CHECK_EQ (length (), 1000001);
  expect_at (0, "ours");
  storage_close (s);
}

/* Others were first, although that has not been seen. */
static void
test_others_first (void)
{
  static const uint64_t where[] = { 100000, 9990, 9999 };
  unsigned i;

  for (i = 0; i < 3; ++i) {
    struct storage *s = open_storage ();

    append (where[i], "theirs");
    CHECK_EQ (atomic_load (&s->size), 4);
    CHECK_OK (storage_extend (s, 10000));
    CHECK_EQ (length (), where[i] + 6 > 10000 ? where[i] + 6 : 10000);
    expect_at (where[i], "theirs");
    CHECK (atomic_load (&s->size) >= 10000);
    storage_see_growth (s);
    CHECK_EQ (atomic_load (&s->size), length ());
    storage_close (s);
  }
}

/* Others have made it longer, which was seen, and have cut that off again. */
static void
test_cut_off (void)
{
  struct storage *s = open_storage ();

  append (20000, "theirs");
  storage_see_growth (s);
  CHECK_EQ (atomic_load (&s->size), 20006);
  CHECK_OK (truncate (path, 4));
  CHECK_OK (storage_extend (s, 10000));
  CHECK_EQ (length (), 10000);
  storage_close (s);
}

/* Where that can't be done nothing is. */
static void
test_unsupported (void)
{
  struct storage *s = open_storage ();

  unsupported = true;
  CHECK (storage_extend (s, 10000) == -1);
  CHECK_ERROR (EIO, "enlarge it by hand");
  CHECK_EQ (length (), 4);
  CHECK_EQ (atomic_load (&s->size), 4);
  storage_close (s);
}

/* One that can't grow has no more room; that it can't be cut, or fails, is
 * another error.
 */
static void
test_fixed (void)
{
  static const struct {
    int said;
    uint64_t size;
    int told;
  } cases[] = {
    { ENOSYS, 5, ENOSPC }, { EOPNOTSUPP, 5, ENOSPC }, { EIO, 5, EIO },
    { EPERM, 5, EIO }, { ENOSYS, 3, EIO }, { EOPNOTSUPP, 3, EIO },
  };
  struct storage *s = open_storage ();
  unsigned i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    fixed_errno = cases[i].said;
    CHECK (storage_resize (s, cases[i].size) == -1);
    CHECK_ERROR (cases[i].told, "resizing to ");
    CHECK_EQ (atomic_load (&s->size), 4);
  }
  fixed_errno = 0;
  CHECK_OK (storage_resize (s, 5));
  CHECK_EQ (length (), 5);
  storage_close (s);
}

/* What is looked through for zeros is asked for its holes once for each, and once
 * for the data between them.
 */
static void
test_zeros (void)
{
  static uint8_t bytes[1 << 20];
  struct memory_control control = { .holes = true };
  struct storage *s;
  uint64_t length;

  memset (bytes, 0, sizeof bytes);
  s = memory_storage_new ("zeros", bytes, sizeof bytes, &control);
  CHECK_OK (storage_zeros (s, (struct host_off) { 0 }, sizeof bytes, &length));
  CHECK_EQ (length, sizeof bytes);
  CHECK_EQ (atomic_load (&control.extents), 1);
  CHECK_EQ (atomic_load (&control.preads), 0);
  control.holes = false;
  CHECK_OK (storage_zeros (s, (struct host_off) { 512 }, sizeof bytes - 512,
                           &length));
  CHECK_EQ (length, sizeof bytes - 512);
  CHECK_EQ (atomic_load (&control.extents), 2);
  bytes[700000] = 1;
  CHECK_OK (storage_zeros (s, (struct host_off) { 0 }, sizeof bytes, &length));
  CHECK (length <= 700000 && length > 700000 - 16384);
  control.holes = true;
  atomic_store (&control.extents, 0);
  CHECK_OK (storage_zeros (s, (struct host_off) { 0 }, sizeof bytes, &length));
  CHECK_EQ (length, 700000 / 512 * 512);
  CHECK_EQ (atomic_load (&control.extents), 2);
  storage_close (s);
}

int
main (void)
{
  check_time_limit (60);
  must_have (mkdtemp (folder));
  snprintf (path, sizeof path, "%s/file", folder);
  test_longer ();
  test_others_first ();
  test_cut_off ();
  interrupts = 3;
  test_longer ();
  CHECK_EQ (interrupts, 0);
  test_unsupported ();
  test_fixed ();
  test_zeros ();
  unlink (path);
  rmdir (folder);
  return check_result ();
}
