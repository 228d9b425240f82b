/* SPDX-License-Identifier: BSD-3-Clause */

/* manage/create-file.c: before each system call that it makes in turn somebody else
 * exchanges its files, or the folder, by links to others: nothing happens to these.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "create-rig.h"

/* Who may write the directory puts a link to another's file in place of the
 * one that has no name yet,
 */
static void
exchange_temporary (void)
{
  DIR *d = opendir (".");
  struct dirent *e;

  if (d == NULL)
    abort ();
  CHECK_OK (symlink ("victim", "link"));
  while ((e = readdir (d)) != NULL) {
    if (strlen (e->d_name) == 12 && strncmp (e->d_name, "new.", 4) == 0)
      CHECK_OK (rename ("link", e->d_name));
  }
  closedir (d);
  unlink ("link");
}

/* or of the one that has its name. */
static void
exchange_named (void)
{
  if (access ("new", F_OK) == -1)
    return;
  CHECK_OK (symlink ("victim", "link"));
  CHECK_OK (rename ("link", "new"));
}

static bool
is_link (const char *path)
{
  struct stat st;

  return lstat (path, &st) == 0 && S_ISLNK (st.st_mode);
}

/* Before each call in turn.  Nothing happens to the other file, and nobody
 * takes it for the new image.
 */
static void
test_attacked (void (*attack) (void), bool overwrite, unsigned way)
{
  unsigned n = 0, hits = 0;
  int r;

  have_way (way, EPERM);
  do {
    folder_put ("victim", "victim");
    if (overwrite)
      folder_put ("new", "old");
    fail_at = ++n;
    strike = attack;
    r = create ("new", overwrite);
    strike = NULL;
    CHECK (folder_holds ("victim", "victim"));
    if (r == 0 && !is_link ("new"))
      CHECK (is_complete ("new"));
    else
      hits++;
    /* Exchanged after it was made: at the call that syncs the folder. */
    if (r == 0 && is_link ("new"))
      CHECK (nr_calls == n && attack == exchange_named);
    if (r == -1)
      CHECK_HAS (error_message (), "replaced by another file");
    folder_count (true);
  } while (nr_calls >= n);
  CHECK (n > 20);
  CHECK (hits > 0);
  have_way (0, 0);
}

/* Once the name is taken, by an empty file, somebody else's takes it. */
static bool struck;

static void
exchange_empty (void)
{
  struct stat st;

  if (stat ("new", &st) == 0 && st.st_size == 0 &&
      calls[strlen (calls) - 1] == 'l') { /* not renamed yet */
    exchange_named ();
    struck = true;
  }
}

static void
test_attacked_empty (void)
{
  unsigned n = 0, hits = 0;

  have_way (2, EPERM);
  do {
    folder_put ("victim", "victim");
    fail_at = ++n;
    strike = exchange_empty;
    struck = false;
    if (create ("new", false) == 0)
      CHECK (!struck && is_complete ("new"));
    else {
      CHECK (struck && is_link ("new"));
      CHECK_ERROR (EEXIST, "new: it was replaced by another file");
      hits++;
    }
    strike = NULL;
    CHECK (folder_holds ("victim", "victim"));
    CHECK_EQ (folder_count (true), 2);
  } while (nr_calls >= n);
  CHECK (hits > 0);
  have_way (0, 0);
}

static void
test_attacks (void)
{
  unsigned way;

  for (way = 0; way < 3; ++way)
    test_attacked (exchange_temporary, false, way);
  test_attacked (exchange_temporary, true, 0);
  test_attacked (exchange_named, true, 0);
  test_attacked_empty ();
}

/* The directory itself is exchanged: nothing happens in the other. */
static void
exchange_folder (void)
{
  CHECK_OK (rename ("../folder", "../was"));
  CHECK_OK (symlink ("victims", "../folder"));
}

static void
test_folder (void)
{
  unsigned n = 0;
  int r;

  CHECK_OK (mkdir ("folder", 0777));
  CHECK_OK (mkdir ("victims", 0777));
  CHECK_OK (chdir ("victims"));
  do {
    fail_at = ++n;
    strike = exchange_folder;
    r = create_and_hold ("../folder/new", false);
    strike = NULL;
    CHECK_OK (r);
    if (access ("../was", F_OK) == 0) {
      if (folder_count (false) == 0)
        CHECK_EQ (access ("../was/new", F_OK), 0);
      else
        CHECK (n <= 2); /* before it was opened */
      create_undo (&made);
      CHECK_EQ (folder_count (true), 0);
      CHECK_OK (unlink ("../folder"));
      CHECK_OK (rename ("../was", "../folder"));
    }
    create_undo (&made);
  } while (nr_calls >= n);
  CHECK (n > 20);
  CHECK_OK (chdir (".."));
  CHECK_OK (rmdir ("folder"));
  CHECK_OK (rmdir ("victims"));
}

int
main (void)
{
  check_time_limit (300);
  create_begin ();
  test_attacks ();
  test_folder ();
  create_end ();
  return check_result ();
}
