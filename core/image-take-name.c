/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "image-take-parts.h"

#define MAX_DIGITS 12

/* The parts are between these, so that they are encoded within. */
static const char separators[] = "/?&=";

/* A part, in place.  False: it can't be decoded, or is empty. */
static bool
decode (char *part)
{
  return part[0] != '\0' && strpbrk (part, separators) == NULL &&
    image_decode_name (part);
}

/* Digits only: no signs and units, and no number that is cut off. */
static bool
decode_number (const char *text, uint64_t *n)
{
  const size_t digits = strspn (text, "0123456789");

  *n = strtoull (text, NULL, 10);
  return digits > 0 && digits <= MAX_DIGITS && text[digits] == '\0' && *n > 0;
}

/* KEY=VALUE, in place; each once. */
static bool
decode_parameter (char *text, struct rotation_wanted *w)
{
  char *value = strchr (text, '=');

  if (value == NULL)
    return false;
  *value++ = '\0';
  if (strcmp (text, "granularity") == 0)
    return w->granularity == 0 && decode_number (value, &w->granularity);
  if (!decode (value))
    return false;
  if (strcmp (text, "bitmap") == 0 && w->begins == NULL) {
    w->begins = value;
    return error_is_printable_name (value);
  }
  if (strcmp (text, "disable") == 0 && w->ends == NULL) {
    w->ends = value;
    return true;
  }
  return false;
}

/* What follows the question mark: some parameters. */
static bool
decode_parameters (char *text, struct rotation_wanted *w)
{
  while (text != NULL) {
    char *next = strchr (text, '&');

    if (next != NULL)
      *next++ = '\0';
    if (!decode_parameter (text, w))
      return false;
    text = next;
  }
  return w->begins != NULL;
}

/* A name with what is between those of a snapshot and a bitmap would take over an
 * export of theirs.
 */
static bool
decode_all (struct take_asked *a)
{
  char *parameters = strchr (a->text, '?');

  if (parameters != NULL)
    *parameters++ = '\0';
  a->name = a->text;
  return decode (a->text) && error_is_printable_name (a->name) &&
    strstr (a->name, "/" IMAGE_BITMAP_PREFIX) == NULL &&
    (parameters == NULL || decode_parameters (parameters, &a->bitmaps));
}

int
image_take_decode (const struct image *im, const char *encoded,
                   struct take_asked *a)
{
  *a = (struct take_asked) { .text = strdup (encoded) };
  if (a->text == NULL)
    error_set (ENOMEM, "out of memory");
  else if (decode_all (a))
    return 0;
  else
    error_set (EINVAL, "%s: the export \"" IMAGE_TAKE_PREFIX "%.256s\" is none: "
               "the name of a new snapshot must follow, which can be printed and "
               "has no \"/" IMAGE_BITMAP_PREFIX "\", and perhaps \"?bitmap=NEW\", \"&disable=OLD\" and "
               "\"&granularity=BYTES\"; within names \"%%\" is \"%%25\", \"/\" is "
               "\"%%2F\", \"?\" is \"%%3F\", \"&\" is \"%%26\" and \"=\" is "
               "\"%%3D\"", image_storage (im)->name, encoded);
  image_take_forget (a);
  return -1;
}

void
image_take_forget (struct take_asked *a)
{
  free (a->text);
  a->text = NULL;
}

static bool
is_same (const char *a, const char *b)
{
  return a == NULL || b == NULL ? a == b : strcmp (a, b) == 0;
}

bool
image_take_same (const struct take_asked *a, const struct take_asked *b)
{
  return is_same (a->name, b->name) &&
    is_same (a->bitmaps.begins, b->bitmaps.begins) &&
    is_same (a->bitmaps.ends, b->bitmaps.ends) &&
    a->bitmaps.granularity == b->bitmaps.granularity;
}
