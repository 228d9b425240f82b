/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "folder.h"

uint8_t folder_bytes[FOLDER_LARGEST];

size_t
folder_load (const char *path)
{
  FILE *f = fopen (path, "r");
  size_t n = 0;

  if (f != NULL) {
    n = fread (folder_bytes, 1, sizeof folder_bytes, f);
    fclose (f);
  }
  return n;
}

void
folder_put (const char *path, const char *text)
{
  FILE *f = fopen (path, "w");

  if (f == NULL || fputs (text, f) == EOF || fclose (f) != 0)
    abort ();
}

bool
folder_holds (const char *path, const char *text)
{
  return folder_load (path) == strlen (text) &&
    memcmp (folder_bytes, text, strlen (text)) == 0;
}

unsigned
folder_count (bool remove)
{
  DIR *d = opendir (".");
  struct dirent *e;
  unsigned n = 0;

  if (d == NULL)
    abort ();
  while ((e = readdir (d)) != NULL) {
    if (e->d_name[0] == '.')
      continue;
    n++;
    if (remove)
      unlink (e->d_name);
  }
  closedir (d);
  return n;
}

bool
folder_has (const char *text)
{
  DIR *d = opendir (".");
  struct dirent *e;
  bool found = false;

  if (d == NULL)
    abort ();
  while (!found && (e = readdir (d)) != NULL)
    found = e->d_name[0] != '.' && folder_holds (e->d_name, text);
  closedir (d);
  return found;
}

unsigned
folder_mode (const char *path)
{
  struct stat st;

  return stat (path, &st) == -1 ? 0 : st.st_mode & 07777;
}
