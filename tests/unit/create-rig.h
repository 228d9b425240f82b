/* SPDX-License-Identifier: BSD-3-Clause */

/* An image that is made in a folder of the test's own, by calls that create-calls.h
 * wraps.  As that it is for one file of a program.
 */

#ifndef UNIT_CREATE_RIG_H
#define UNIT_CREATE_RIG_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "create-calls.h"
#include "folder.h"
#include "image-check.h"
#include "manage/create.h"

static char own_folder[] = "test-create.XXXXXX";

static struct create_options options = CREATE_DEFAULTS;

/* All of it is there: durable before it got its name, so that its bytes can't
 * be others.
 */
static bool
is_complete (const char *path)
{
  static uint8_t should[sizeof folder_bytes];
  static size_t size;
  size_t n;

  if (size == 0) { /* the first one */
    size = folder_load (path);
    memcpy (should, folder_bytes, size);
    CHECK (size > 0);
    image_check_clean (path, folder_bytes, size);
  }
  n = folder_load (path);
  return n == size && memcmp (folder_bytes, should, n) == 0;
}

static struct created made = CREATED_NOTHING;

/* What the user is told. */
static char notes[1000];

static void
take_note (const char *text)
{
  strncat (notes, text, sizeof notes - 1 - strlen (notes));
}

static int
create_and_hold (const char *path, bool overwrite)
{
  int r;

  create_release (&made);
  error_set (0, "none");
  memset (calls, 0, sizeof calls);
  notes[0] = '\0';
  nr_calls = 0;
  r = create_file (path, overwrite, &options, &made);
  fail_at = 0;
  return r;
}

/* And nbdkit has started. */
static int
create (const char *path, bool overwrite)
{
  const int r = create_and_hold (path, overwrite);

  create_release (&made);
  return r;
}

/* There are three ways to give it its name; 0 is the first. */
static void
have_way (unsigned way, int err)
{
  no_renameat2 = way > 0 ? err : 0;
  no_link = way > 1 ? err : 0;
}

/* The working directory is the folder, until the end. */
static void
create_begin (void)
{
  if (mkdtemp (own_folder) == NULL || chdir (own_folder) == -1) {
    perror (own_folder);
    exit (1);
  }
  debug_hooks.note = take_note;
  options.size = 300000;
  options.cluster_size = 4096;
  options.preallocation = PREALLOCATION_FALLOC;
}

static void
create_end (void)
{
  if (chdir ("..") == -1 || rmdir (own_folder) == -1)
    perror (own_folder);
}

#endif /* UNIT_CREATE_RIG_H */
