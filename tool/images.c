/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stddef.h>

#include "images.h"
#include "tool.h"

struct image_options
tool_image_options (const struct tool_options *o)
{
  static const struct passphrases locked = { .locked = true };

  return (struct image_options) {
    .chain = {
      .nbd = NBD_DEFAULTS,
      .file = o->file,
      .follow = o->follow,
      .data_file = o->data_file,
      .backing_format = o->formats[0],
      .lower_formats = o->nr_formats > 1 ? o->formats + 1 : NULL,
      .force_share = o->force_share,
    },
    .passphrases = &locked,
    .cache_size = IMAGE_DEFAULT_CACHE_SIZE / 8,
  };
}

int
tool_check_image_format (const struct tool_options *o, const struct image *im)
{
  struct layer *disk = image_open_disk (im, "");
  const int r = disk == NULL ? -1
    : tool_check_format (o, disk->format->name);

  image_close_disk (disk);
  return r;
}
