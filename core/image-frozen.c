/* SPDX-License-Identifier: BSD-3-Clause */

/* Exports of the live disk as a point in time has it, by their names. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "image-parts.h"

/* The parts of an export's name: a token, and a bitmap's name or NULL. */
struct parts {
  char *token; /* both are in this piece of memory */
  const char *bitmap;
};

/* What is between the token and the name of a bitmap. */
#define BEFORE_BITMAP ("/" IMAGE_BITMAP_PREFIX)

/* Returns -1 with the error set: EINVAL, ENOMEM. */
static int
split (const struct image *im, const char *export, struct parts *p)
{
  const size_t between = strlen (BEFORE_BITMAP);
  char *slash;

  p->token = strdup (export + strlen (IMAGE_POINT_PREFIX));
  p->bitmap = NULL;
  if (p->token == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  slash = strchr (p->token, '/');
  if (slash != NULL && strncmp (slash, BEFORE_BITMAP, between) == 0) {
    *slash = '\0';
    p->bitmap = slash + between;
  }
  if (image_points_check (im, p->token) == 0)
    return 0;
  free (p->token);
  return -1;
}

bool
image_is_frozen (const struct image *im, const char *export)
{
  return im->points != NULL &&
    strncmp (export, IMAGE_POINT_PREFIX, strlen (IMAGE_POINT_PREFIX)) == 0;
}

int
image_describe_frozen (const struct image *im, const char *export, char *buf,
                       size_t len)
{
  const uint64_t size = im->chain.layer[0]->size;
  struct parts p;
  int r = 0;

  if (split (im, export, &p) == -1)
    return -1;
  if (p.bitmap != NULL)
    r = image_describe_bitmap (im, p.bitmap, buf, len);
  if (r == 0)
    snprintf (buf, len, "point in time of the live disk, %ssize %" PRIu64,
              p.bitmap != NULL ? "with what a bitmap has, " : "", size);
  free (p.token);
  return r;
}

static struct layer *
make_disk (const struct image *im, struct point *point, const void *opaque)
{
  (void) opaque;
  return im->kind->new_point_disk (im, point);
}

static struct layer *
make_bitmap_disk (const struct image *im, struct point *point,
                  const void *opaque)
{
  return im->kind->new_bitmap_disk (im, opaque, NULL, point);
}

/* No point is taken for what can't be opened. */
static struct layer *
open_bitmap (const struct image *im, const struct parts *p)
{
  struct layer *l = image_open_bitmap (im, p->bitmap, NULL);

  if (l == NULL)
    return NULL;
  image_close_disk (l);
  l = image_points_open (im, p->token, make_bitmap_disk, p->bitmap);
  if (l != NULL)
    image_points_keep_bits (im, l);
  return l;
}

struct layer *
image_open_frozen (const struct image *im, const char *export)
{
  struct parts p;
  struct layer *l;

  if (split (im, export, &p) == -1)
    return NULL;
  l = p.bitmap != NULL ? open_bitmap (im, &p)
    : image_points_open (im, p.token, make_disk, NULL);
  free (p.token);
  return l;
}
