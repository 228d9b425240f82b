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

/* What an export's name has. */
struct sides {
  const struct snapshot *from;
  const struct snapshot *to; /* NULL: the live disk, ... */
  const char *token;         /* ... as it is (NULL) or as this point has it */
};

/* After the first name: "now/" and a token, which is not encoded.  NULL: it is
 * something else.
 */
static const char *
find_token (const struct image *im, const char *rest)
{
  return image_is_frozen (im, rest) ? rest + strlen (IMAGE_POINT_PREFIX) : NULL;
}

/* Of an export's name.  Returns -1 with the error set.  Wants snapshots_lock. */
static int
find_sides (const struct image *im, const char *export, struct sides *s)
{
  const char *rest = export + strlen (IMAGE_CHANGED_PREFIX);
  char *names = strdup (rest);
  char *slash;
  int r = -1;

  if (names == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  slash = strchr (names, '/');
  if (slash != NULL)
    *slash++ = '\0';
  *s = (struct sides) { 0 };
  if (slash != NULL)
    s->token = find_token (im, rest + (slash - names));
  if (s->token == NULL && slash != NULL && strchr (slash, '/') != NULL)
    error_set (ENOENT, "%s: there is no export \"%.256s\": its name has more "
               "than two parts", image_storage (im)->name, export);
  else if (s->token == NULL || image_points_check (im, s->token) == 0) {
    const bool two = slash != NULL && s->token == NULL;

    s->from = find_encoded (im, export, names);
    if (s->from != NULL && two)
      s->to = find_encoded (im, export, slash);
    r = s->from == NULL || (two && s->to == NULL) ? -1 : 0;
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
  struct sides s;
  int r;

  image_lock_snapshots (im);
  r = find_sides (im, export, &s);
  if (r == 0)
    snprintf (buf, len, "changes since an internal snapshot, up to %s",
              s.token != NULL ? "a point in time of the live disk"
              : s.to != NULL ? "another one" : "the live disk");
  image_unlock_snapshots (im);
  return r;
}

static struct layer *
make_changed_disk (const struct image *im, struct point *point,
                   const void *opaque)
{
  const struct sides *s = opaque;

  return im->kind->new_changed_disk (im, s->from, NULL, point);
}

/* No point is taken for what can't be opened. */
struct layer *
image_open_changed (const struct image *im, const char *export)
{
  struct layer *disk = NULL;
  struct sides s;

  image_lock_snapshots (im);
  if (find_sides (im, export, &s) == 0)
    disk = im->kind->new_changed_disk (im, s.from, s.to, NULL);
  if (disk != NULL && s.token != NULL) {
    image_close_disk (disk);
    disk = image_points_open (im, s.token, make_changed_disk, &s);
  }
  image_unlock_snapshots (im);
  return disk;
}
