/* SPDX-License-Identifier: BSD-3-Clause */

/* manage/create-file.c: each system call and allocation that it makes fails in
 * turn, or is the last before the process ends.  What is at the path then is
 * what was there before, or all of the new image.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "create-rig.h"
#include "image.h"
#include "manage/create.h"
#include "seconds.h"

static void
test_made (void)
{
  CHECK_OK (create ("new", false));
  CHECK (is_complete ("new"));
  CHECK_EQ (folder_count (false), 1);
  CHECK_EQ (create ("new", false), -1);
  CHECK_ERROR (EEXIST, "new: it exists already");
  CHECK (is_complete ("new"));
  CHECK_EQ (folder_count (true), 1);
}

/* Only what was made is removed again. */
static void
test_undo (void)
{
  CHECK_OK (create_and_hold ("new", false));
  create_undo (&made);
  CHECK_EQ (folder_count (true), 0);
  create_undo (&made);

  CHECK_OK (create_and_hold ("new", false));
  folder_put ("other", "theirs");
  CHECK_OK (rename ("other", "new"));
  create_undo (&made);
  CHECK (folder_holds ("new", "theirs"));
  CHECK_EQ (folder_count (true), 1);
}

/* What a call fails with where there is no such thing. */
static const int missing[] = { EINVAL, ENOSYS, EPERM, EOPNOTSUPP };
#define NR_MISSING (sizeof missing / sizeof missing[0])

/* What was replaced has its name again, unless that is somebody else's now:
 * then it keeps the one that it had meanwhile.
 */
static void
test_put_back (void)
{
  unsigned way, i;

  for (way = 0; way < 3; ++way) {
    have_way (way, EINVAL);
    for (i = 0; i < 3; ++i) {
      folder_put ("new", "old");
      CHECK_OK (create_and_hold ("new", true));
      CHECK (is_complete ("new"));
      CHECK (folder_has ("old"));
      CHECK_EQ (folder_count (false), 2);
      if (i == 1)
        unlink ("new");
      if (i == 2) {
        folder_put ("other", "theirs");
        CHECK_OK (rename ("other", "new"));
      }
      create_undo (&made);
      CHECK (folder_holds ("new", i < 2 ? "old" : "theirs"));
      CHECK (folder_has ("old"));
      CHECK_EQ (folder_count (true), i < 2 ? 1 : 2);
    }

    /* Nothing but the name, and a link to it, is left of what is kept. */
    folder_put ("new", "old");
    CHECK_OK (link ("new", "link"));
    CHECK_OK (create_and_hold ("new", true));
    create_release (&made);
    CHECK (is_complete ("new"));
    CHECK (folder_holds ("link", "old"));
    CHECK_EQ (folder_count (true), 2);

    /* Somebody else's file comes at the last moment. */
    folder_put ("new", "old");
    replaced = true;
    CHECK_EQ (create_and_hold ("new", true), -1);
    replaced = false;
    CHECK_ERROR (EEXIST, "new: it was replaced by another file");
    CHECK (folder_holds ("new", "theirs"));
    if (way == 1) /* else it was the old one that theirs came over */
      CHECK (folder_has ("old"));
    folder_count (true);
  }
  have_way (0, 0);
}

static void
make_over_old (void)
{
  folder_count (true);
  folder_put ("new", "old");
  CHECK_OK (create_and_hold ("new", true));
  CHECK_STR (notes, "");
}

/* Others have changed the names meanwhile. */
static void
test_put_back_others (void)
{
  unsigned way;

  for (way = 0; way < 3; ++way) {
    have_way (way, EINVAL);
    make_over_old ();
    CHECK_OK (rename (made.old_name, "moved"));
    create_undo (&made);
    CHECK (folder_holds ("moved", "old"));
    CHECK_EQ (folder_count (false), 1);
    CHECK_HAS (notes, "new: what was there before is no longer new.");

    make_over_old ();
    CHECK_OK (unlink (made.old_name));
    create_undo (&made);
    CHECK (is_complete ("new")); /* better than nothing */
    CHECK_EQ (folder_count (false), 1);
    CHECK_HAS (notes, "new: what was there before is gone: it was new.");

    make_over_old ();
    CHECK_OK (rename (made.old_name, "new"));
    create_undo (&made);
    CHECK (folder_holds ("new", "old"));
    CHECK_EQ (folder_count (false), 1);
    CHECK_STR (notes, "");
  }
  have_way (0, 0);

  /* At the last moment. */
  make_over_old ();
  replaced = true;
  create_undo (&made);
  CHECK (!replaced);
  replaced = false;
  CHECK (folder_holds ("new", "theirs"));
  CHECK (folder_has ("old"));
  CHECK_EQ (folder_count (true), 2);
  CHECK_HAS (notes, "new: what was there before is new.");
}

/* What can't be removed is told of. */
static void
test_left (void)
{
  make_over_old ();
  no_unlink = EACCES;
  create_release (&made);
  CHECK (folder_has ("old"));
  CHECK_HAS (notes, "new: new.");
  CHECK_HAS (notes, "can't be removed: Permission denied");

  make_over_old ();
  create_undo (&made);
  no_unlink = 0;
  CHECK (folder_holds ("new", "old"));
  CHECK_EQ (folder_count (true), 2);
  CHECK_HAS (notes, "can't be removed: Permission denied");
}

/* Where it could not be removed again, the old file gets no link. */
static void
test_sticky (void)
{
  unsigned i;
  int r;

  have_way (1, EPERM);
  for (i = 0; i < 4; ++i) {
    folder_put ("new", "old");
    CHECK_OK (chmod (".", i & 1 ? 01700 : 0700));
    foreign = i & 2;
    r = create ("new", true);
    CHECK_EQ (r, i == 3 ? -1 : 0);
    CHECK_EQ (strchr (calls, 'l') == NULL, i == 3);
    if (i == 3) {
      CHECK_ERROR (EPERM, "new: naming the new image");
      CHECK (folder_holds ("new", "old"));
    }
    CHECK_EQ (folder_count (true), 1);
  }
  foreign = false;
  CHECK_OK (chmod (".", 0700));
  have_way (0, 0);
}

static void
expect_in_use (void)
{
  struct created theirs = CREATED_NOTHING;

  CHECK_EQ (create_file ("new", true, &options, &theirs), -1);
  CHECK_ERROR (EAGAIN, "new: another process is using it");
}

/* At no moment from when it gets its name until it is released can others use
 * it.  If they could, it might not be possible to open it, and it would be
 * removed again, together with what they have written.
 */
static void
test_kept (void)
{
  struct image_options opening = {
    .chain = { .file = "new", .follow = FOLLOW_NONE },
    .cache_size = IMAGE_DEFAULT_CACHE_SIZE,
  };
  struct image *im, *reader;
  unsigned overwrite;

  for (overwrite = 0; overwrite < 2; ++overwrite) {
    CHECK_OK (create_and_hold ("new", overwrite));
    expect_in_use ();
    CHECK (image_open (&opening) == NULL);
    CHECK_ERROR (EAGAIN, "new: another process is writing it");
    opening.chain.made = made.storage;
    im = image_open (&opening);
    CHECK (im != NULL);
    expect_in_use ();
    opening.chain.made = NULL;
    CHECK (image_open (&opening) == NULL);
    CHECK_ERROR (EAGAIN, "new: another process is writing it");
    create_release (&made);
    expect_in_use ();
    reader = image_open (&opening);
    CHECK (reader != NULL);
    CHECK_OK (image_close (im));
    expect_in_use ();
    CHECK_OK (image_close (reader));
  }
  CHECK_OK (create ("new", true));
  CHECK_EQ (folder_count (true), 1);
}

/* It gets its name when it is complete and durable, which is then made durable
 * itself.
 */
static void
test_order (bool overwrite)
{
  if (overwrite)
    folder_put ("new", "old");
  CHECK_OK (create ("new", overwrite));
  CHECK (strlen (calls) > 5);
  /* All but the header, the header, the name, the folder. */
  CHECK_STR (calls + strlen (calls) - 5, "swsnd");
  CHECK (strchr (calls, 'n') == strrchr (calls, 'n'));
  CHECK (strchr (calls, 'd') == strrchr (calls, 'd'));
  folder_count (true);
}

/* A link keeps the old one, and is durable before that one's name is not. */
static void
test_link_order (void)
{
  have_way (1, EINVAL);
  folder_put ("new", "old");
  CHECK_OK (create ("new", true));
  CHECK (strlen (calls) > 8);
  CHECK_STR (calls + strlen (calls) - 8, "swsnldnd");
  folder_count (true);
  have_way (0, 0);
}

/* The process's umask says who may use it. */
static void
test_modes (void)
{
  static const mode_t masks[] = { 0, 02, 022, 027, 077, 0177 };
  const mode_t old = umask (022);
  unsigned i;

  for (i = 0; i < sizeof masks / sizeof masks[0]; ++i) {
    umask (masks[i]);
    CHECK_OK (create ("new", false));
    CHECK_EQ (folder_mode ("new"), 0666 & ~masks[i]);
    folder_count (true);
  }
  folder_put ("old", "old");
  chmod ("old", 0640);
  CHECK_OK (create ("old", true));
  CHECK_EQ (folder_mode ("old"), 0640);
  CHECK (is_complete ("old"));
  CHECK_EQ (folder_count (true), 1);
  umask (old);
}

/* Who can't give it to the old one's group does not give it to his own. */
static void
test_foreign (void)
{
  static const mode_t modes[] = { 0666, 0640, 0604, 0070 };
  unsigned i;

  for (i = 0; i < sizeof modes / sizeof modes[0]; ++i) {
    folder_put ("old", "old");
    chmod ("old", modes[i] | S_IRUSR | S_IWUSR);
    no_chown = true;
    CHECK_OK (create ("old", true));
    no_chown = false;
    CHECK_EQ (folder_mode ("old"), (modes[i] | S_IRUSR | S_IWUSR) & ~S_IRWXG);
    CHECK (is_complete ("old"));
    CHECK_EQ (folder_count (true), 1);
  }
}

static void
test_links (void)
{
  CHECK_EQ (symlink ("target", "link"), 0);
  CHECK_EQ (create ("link", false), -1);
  CHECK_ERROR (EEXIST, "leads nowhere");
  CHECK_EQ (create ("link", true), -1);
  CHECK_ERROR (EEXIST, "leads nowhere");
  folder_put ("target", "old");
  CHECK_EQ (create ("link", false), -1);
  CHECK (folder_holds ("target", "old"));
  CHECK_OK (create ("link", true));
  CHECK (is_complete ("target"));
  CHECK_EQ (folder_count (true), 2);
}

static void
test_ways (void)
{
  const mode_t old = umask (022);
  unsigned way, i;

  for (way = 0; way < 3; ++way) {
    for (i = 0; i < NR_MISSING; ++i) {
      have_way (way, missing[i]);
      CHECK_OK (create ("new", false));
      CHECK (strchr (calls, 'l') != NULL || way == 0);
      CHECK (is_complete ("new"));
      CHECK_EQ (folder_mode ("new"), 0644);
      CHECK_EQ (folder_count (true), 1);
    }
  }
  have_way (0, 0);
  umask (old);
}

/* Somebody was faster. */
static void
test_race (void)
{
  unsigned way, overwrite;

  for (way = 0; way < 3; ++way) {
    have_way (way, EINVAL);
    appears = "new";
    CHECK_EQ (create ("new", false), -1);
    CHECK_ERROR (EEXIST, "new: naming the new image");
    CHECK (folder_holds ("new", "theirs"));
    appears = NULL;
    CHECK_EQ (folder_count (true), 1);
  }
  have_way (0, 0);
  for (overwrite = 0; overwrite < 2; ++overwrite) {
    made_late = "new";
    CHECK_EQ (create ("new", overwrite), -1);
    CHECK_ERROR (EEXIST, "new: naming the new image");
    CHECK (folder_holds ("new", "theirs"));
    CHECK_EQ (folder_count (true), 1);
  }
}

/* ------------------------------------------------------------ random names */

static void
test_random (void)
{
  static const int errs[] = { ENOSYS, EPERM };
  unsigned i;

  for (i = 0; i < sizeof errs / sizeof errs[0]; ++i) {
    no_random = errs[i];
    CHECK_OK (create ("new", false));
    no_random = 0;
    CHECK (is_complete ("new"));
    CHECK_EQ (folder_count (true), 1);
  }
  folder_put ("new.00000000", "theirs");
  same_numbers = 5;
  CHECK_OK (create ("new", false));
  CHECK (is_complete ("new"));
  CHECK (folder_holds ("new.00000000", "theirs"));
  unlink ("new");
  same_numbers = 1000;
  CHECK_EQ (create ("new", false), -1);
  same_numbers = 0;
  CHECK_ERROR (EEXIST, "new: making a file next to it");
  CHECK (folder_holds ("new.00000000", "theirs"));
  CHECK_EQ (folder_count (true), 1);
}

/* ------------------------------------------------------------------ faults */

/* Returns false if there are not so many calls. */
static bool
fail_once (bool overwrite, unsigned n, int err, unsigned *refused)
{
  int r;

  if (overwrite)
    folder_put ("file", "old");
  fail_at = n;
  fail_errno = err;
  r = create ("file", overwrite);
  if (r == 0) {
    CHECK (is_complete ("file"));
    CHECK_EQ (folder_count (true), 1);
  }
  else {
    ++*refused;
    CHECK (error_errno () != 0);
    CHECK_HAS (error_message (), "file: ");
    if (overwrite)
      CHECK (folder_holds ("file", "old"));
    if (folder_count (true) != overwrite)
      check_failed (__FILE__, __LINE__, "call %u: errno %d: a file is left",
                    n, err);
  }
  return nr_calls >= n;
}

static void
test_failures (void)
{
  static const int errs[] = { EIO, ENOSPC, EINVAL, EPERM, ENOMEM };
  unsigned i, n, way, refused = 0;

  for (i = 0; i < sizeof errs / sizeof errs[0]; ++i) {
    for (way = 0; way < 6; ++way) {
      have_way (way / 2, EPERM);
      /* Others for each of them, with a sanitizer. */
      n = 1 + (i + way) % TEST_EACH (3);
      while (fail_once (way % 2 == 1, n, errs[i], &refused))
        n += TEST_EACH (3);
      CHECK (n > 20);
    }
    have_way (0, 0);
  }
  CHECK (refused > 100 / TEST_EACH (3));
}

/* What becomes of a new image after it was made. */
enum fate { HELD, KEPT, UNDONE };

static int
meet (bool overwrite, enum fate fate)
{
  int r = create_file ("file", overwrite, &options, &made);

  if (fate == KEPT)
    create_release (&made);
  if (fate == UNDONE)
    create_undo (&made);
  return r == 0 ? 0 : 1;
}

/* The process ends before its n-th call.  Returns false if it comes to its
 * own end before that.
 */
static bool
die_once (bool overwrite, enum fate fate, unsigned n)
{
  int status;
  bool died;
  pid_t pid;

  if (overwrite)
    folder_put ("file", "old");
  pid = fork ();
  if (pid == 0) {
    nr_calls = 0;
    fail_at = n;
    die = true;
    _exit (meet (overwrite, fate));
  }
  if (pid == -1 || waitpid (pid, &status, 0) != pid || !WIFEXITED (status))
    abort ();
  died = WEXITSTATUS (status) == 99;
  CHECK (died || WEXITSTATUS (status) == 0);
  /* What is there is whole, and the old file is given up last. */
  if (access ("file", F_OK) == 0 &&
      !(overwrite && folder_holds ("file", "old")) &&
      !(no_link != 0 && folder_holds ("file", "")))
    CHECK (is_complete ("file"));
  if (overwrite && fate != KEPT)
    CHECK (folder_has ("old"));
  if (overwrite && fate == KEPT && !folder_has ("old"))
    CHECK (is_complete ("file"));
  if (!died) {
    CHECK_EQ (folder_count (false), fate == HELD ? 1 + overwrite
              : fate == KEPT ? 1 : overwrite);
    if (fate == UNDONE && overwrite)
      CHECK (folder_holds ("file", "old"));
  }
  /* It can be made anew. */
  CHECK_OK (create ("file", access ("file", F_OK) == 0));
  CHECK (folder_count (true) <= 3);
  return died;
}

static void
test_deaths (void)
{
  unsigned way, fate, first, n, overwrite;

  for (way = 0; way < 3; ++way) {
    have_way (way, EPERM);
    for (overwrite = 0; overwrite < 2; ++overwrite) {
      first = 1; /* what is the same for all three is done once */
      for (fate = HELD; fate <= UNDONE; ++fate) {
        n = first;
        while (die_once (overwrite, fate, n))
          n += TEST_EACH (3);
        first = fate == HELD ? n : first;
        CHECK (n > 20);
      }
    }
  }
  have_way (0, 0);
}

int
main (void)
{
  check_time_limit (300);
  create_begin ();
  test_made ();
  test_undo ();
  test_put_back ();
  test_put_back_others ();
  test_left ();
  test_sticky ();
  test_kept ();
  test_order (false);
  test_order (true);
  test_link_order ();
  test_modes ();
  test_foreign ();
  test_links ();
  test_ways ();
  test_race ();
  test_random ();
  test_failures ();
  test_deaths ();
  create_end ();
  return check_result ();
}
