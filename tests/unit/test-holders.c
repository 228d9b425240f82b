/* SPDX-License-Identifier: BSD-3-Clause */

/* storage/file.c: which files can be made writable, by the names that they have
 * by now; and two storages of one file in one process, where there are no locks.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"
#include "check.h"
#include "storage/open.h"
#include "storage/storage.h"
#include "wrap.h"

#define READ STORAGE_CONSISTENT_READ
#define WRITES (STORAGE_WRITE | STORAGE_RESIZE)
#define ALL (READ | WRITES)

/* ------------------------------------------------------------------ faults */

static bool no_locks;

extern int __real_fcntl (int fd, int cmd, void *arg);
extern int __wrap_fcntl (int fd, int cmd, void *arg);
int
__wrap_fcntl (int fd, int cmd, void *arg)
{
  if (no_locks && (cmd == F_OFD_SETLK || cmd == F_OFD_GETLK)) {
    errno = ENOLCK;
    return -1;
  }
  return __real_fcntl (fd, cmd, arg);
}

/* ------------------------------------------------------------------- files */

static char folder[] = "test-holders.XXXXXX";
static int root;

static void
make (const char *name)
{
  const int fd = openat (root, name, O_CREAT | O_WRONLY, 0600);

  if (fd == -1)
    abort ();
  close (fd);
}

/* Opened for a client, who has asked for it by this name. */
static struct storage *
in_folder (const char *name)
{
  struct storage *s = storage_open_regular (root, name, name);

  if (s == NULL)
    abort ();
  return s;
}

/* The same file, by a name that is the only one it may have. */
static struct storage *
in_image (const char *name)
{
  struct storage *s = storage_open_beneath (root, name, name);

  if (s == NULL)
    abort ();
  return s;
}

static int
write_it (struct storage *s)
{
  return storage_make_writable (s, ALL, WRITES);
}

/* ------------------------------------------------------------------- names */

typedef struct storage *open_fn (const char *name);

/* Whether a file can be made writable after its name has changed. */
static int
renamed (open_fn *open, bool replaced)
{
  struct storage *s;
  int r;

  make ("a");
  s = open ("a");
  CHECK_OK (renameat (root, "a", root, "b"));
  if (replaced)
    make ("a");
  r = storage_check_writable (s);
  CHECK (r == 0);
  r = write_it (s);
  CHECK (r == 0 || replaced || error_errno () == ENOENT);
  storage_close (s);
  CHECK_OK (unlinkat (root, "b", 0));
  if (replaced)
    CHECK_OK (unlinkat (root, "a", 0));
  return r;
}

static void
test_names (void)
{
  struct storage *s;

  CHECK_EQ (renamed (in_folder, false), 0);
  CHECK_EQ (renamed (in_folder, true), 0);
  CHECK_EQ (renamed (in_image, false), -1);
  CHECK_EQ (renamed (in_image, true), -1);
  /* Without any name nobody would find what is written. */
  make ("a");
  s = in_folder ("a");
  CHECK_OK (unlinkat (root, "a", 0));
  CHECK_EQ (write_it (s), -1);
  CHECK_EQ (error_errno (), ENOENT);
  storage_close (s);
}

/* ------------------------------------------------------------- without locks */

/* Two of one file, and one of another, with locks or without. */
static void
test_pair (enum storage_locking locking)
{
  struct storage *a, *b, *other;

  make ("a");
  make ("other");
  CHECK_OK (linkat (root, "a", root, "b", 0));
  a = in_folder ("a");
  b = in_folder ("b");
  other = in_folder ("other");
  storage_set_locking (a, locking);
  storage_set_locking (b, locking);
  storage_set_locking (other, locking);

  /* Readers, one of whom would write. */
  CHECK_OK (storage_lock (a, READ, WRITES));
  CHECK_OK (storage_lock (b, READ, WRITES));
  CHECK_EQ (write_it (a), -1);
  CHECK_EQ (error_errno (), EAGAIN);
  CHECK_OK (storage_lock (other, READ, WRITES));
  CHECK_OK (write_it (other));

  /* The other one leaves, and comes again. */
  storage_close (b);
  CHECK_OK (write_it (a));
  b = in_folder ("b");
  storage_set_locking (b, locking);
  CHECK_EQ (storage_lock (b, READ, WRITES), -1);
  CHECK_EQ (error_errno (), EAGAIN);
  CHECK_OK (storage_lock (b, READ, 0)); /* who denies nothing: force-share */
  storage_close (b);

  /* What belongs together. */
  b = in_folder ("b");
  storage_set_locking (b, locking);
  CHECK_OK (storage_lock_alone (b, READ, WRITES));
  storage_close (a);
  CHECK_OK (write_it (b));
  storage_close (b);
  storage_close (other);
  CHECK_OK (unlinkat (root, "a", 0));
  CHECK_OK (unlinkat (root, "b", 0));
  CHECK_OK (unlinkat (root, "other", 0));
}

int
main (void)
{
  check_time_limit (60);
  if (mkdtemp (folder) == NULL) {
    perror (folder);
    return 1;
  }
  root = open (folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  test_names ();
  test_pair (STORAGE_LOCKING_ON);
  test_pair (STORAGE_LOCKING_OFF);
  no_locks = true;
  test_pair (STORAGE_LOCKING_OFF);
  test_pair (STORAGE_LOCKING_AUTO);
  close (root);
  if (rmdir (folder) == -1)
    perror (folder);
  return check_result ();
}
