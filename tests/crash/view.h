/* SPDX-License-Identifier: BSD-3-Clause */

/* What an image that was made shows: its disk, its snapshots and its bitmaps. */

#ifndef CRASH_VIEW_H
#define CRASH_VIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image.h"
#include "maker.h"

#define VIEW_MAX_EXPORTS 8

struct view {
  unsigned nr;
  char name[VIEW_MAX_EXPORTS][64];
  uint8_t *content[VIEW_MAX_EXPORTS]; /* the live disk's first */
  uint64_t size[VIEW_MAX_EXPORTS];
  char bitmaps[8192]; /* all of them, and what is dirty */
  size_t length;      /* of that */
};

/* Open the image, whose storage becomes the image's, over its backing file.
 * Returns NULL with the error set.
 */
extern struct image *view_open (const struct made *m, struct storage *s);

/* See what an open image shows, but for its bitmaps; or one that is so many bytes.
 * Returns false with the error set; to be freed in any case.
 */
extern bool view_image (const struct image *im, struct view *v);
extern bool view_state (const struct made *m, const void *bytes,
                        uint64_t size, struct view *v);
extern void view_free (struct view *v);

/* Whether they are the same; without the live disk and the bitmaps if these do
 * not count.
 */
extern bool views_equal (const struct view *a, const struct view *b,
                         bool live);

#endif /* CRASH_VIEW_H */
