/* SPDX-License-Identifier: BSD-3-Clause */

/* Exports of what has changed since a snapshot, by their names. */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "image-parts.h"

static unsigned
hex_digit (char c)
{
  if (c >= '0' && c <= '9')
    return c - '0';
  if (c >= 'A' && c <= 'F')
    return c - 'A' + 10;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 16;
}

bool
image_decode_name (char *s)
{
  char *to = s;

  for (; *s != '\0'; ++s) {
    *to = *s;
    if (*s == '%') {
      const unsigned high = hex_digit (s[1]);
      const unsigned low = high < 16 ? hex_digit (s[2]) : 16;

      if (low >= 16 || high * 16 + low == 0)
        return false;
      *to = high * 16 + low;
      s += 2;
    }
    ++to;
  }
  *to = '\0';
  return true;
}

/* By a part of the export's name, which is decoded. */
static const struct snapshot *
find_encoded (const struct image *im, const char *export, char *name)
{
  const char *const file = image_storage (im)->name;
  const struct snapshot *sn;

  if (!image_decode_name (name)) {
    error_set (ENOENT, "%s: there is no export \"%.256s\": in names of "
               "snapshots there, \"%%\" is \"%%25\" and \"/\" is \"%%2F\"",
               file, export);
    return NULL;
  }
  sn = snapshots_find (&im->snapshots, name);
  if (sn == NULL)
    error_set (ENOENT, "%s: there is no snapshot \"%.256s\"", file, name);
  return sn;
}

/* The snapshots of an export's name.  *to is NULL for the live disk.  Returns
 * -1 with the error set.
 */
static int
find_both (const struct image *im, const char *export,
           const struct snapshot **from, const struct snapshot **to)
{
  char *names = strdup (export + strlen (IMAGE_CHANGED_PREFIX));
  char *slash;
  int r = -1;

  if (names == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  slash = strchr (names, '/');
  if (slash != NULL)
    *slash++ = '\0';
  *to = NULL;
  if (slash != NULL && strchr (slash, '/') != NULL)
    error_set (ENOENT, "%s: there is no export \"%.256s\": its name has more "
               "than two parts", image_storage (im)->name, export);
  else {
    *from = find_encoded (im, export, names);
    if (*from != NULL && slash != NULL)
      *to = find_encoded (im, export, slash);
    r = *from == NULL || (slash != NULL && *to == NULL) ? -1 : 0;
  }
  free (names);
  return r;
}

bool
image_is_changed (const struct image *im, const char *export)
{
  return im->kind->new_changed_disk != NULL &&
    strncmp (export, IMAGE_CHANGED_PREFIX,
             strlen (IMAGE_CHANGED_PREFIX)) == 0;
}

int
image_describe_changed (const struct image *im, const char *export, char *buf,
                        size_t len)
{
  const struct snapshot *from, *to;
  int r;

  image_lock_snapshots (im);
  r = find_both (im, export, &from, &to);
  if (r == 0)
    snprintf (buf, len, "changes since an internal snapshot, up to %s",
              to != NULL ? "another one" : "the live disk");
  image_unlock_snapshots (im);
  return r;
}

struct layer *
image_open_changed (const struct image *im, const char *export)
{
  const struct snapshot *from, *to;
  struct layer *disk = NULL;

  image_lock_snapshots (im);
  if (find_both (im, export, &from, &to) == 0)
    disk = im->kind->new_changed_disk (im, from, to);
  image_unlock_snapshots (im);
  return disk;
}
