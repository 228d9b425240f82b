/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/error.h"
#include "image.h"
#include "images.h"
#include "manage/resize.h"
#include "qcow2/qcow2.h"
#include "tool.h"

const char tool_resize_usage[] =
  "Usage: " TOOL_NAME " resize [--shrink] [OPTION...] IMAGE [+|-]SIZE\n"
  "\n"
  "Gives the disk of an image that nobody serves another size: SIZE bytes, or so\n"
  "many more (+) or fewer (-); suffixes k, M, G, T, P and E are powers of 1024.\n"
  "\n"
  "      --shrink             what is beyond a smaller size may be lost\n"
  "      --follow=none|beneath|any\n"
  "                           for growing an image with a backing file, whose\n"
  "                           size must be known (none)\n"
  "      --backing-format=raw|qcow2|qed\n"
  "                           the format of that; again for each below it\n"
  "  -q, --quiet              print errors only\n"
  "\n"
  "After a power cut the size is as before or as after, and clusters may be\n"
  "leaked.  Images that are marked as dirty or corrupt want a repair first.\n";

/* The size of the backing file, if there is one that may be opened. */
static int
find_backing_size (const struct tool_options *o, uint64_t *size)
{
  const struct image_options options = tool_image_options (o);
  struct image *im;
  struct layer *disk;

  *size = RESIZE_NO_BACKING_SIZE;
  if (o->follow == FOLLOW_NONE)
    return 0;
  im = image_open (&options);
  disk = im != NULL ? image_open_disk (im, "") : NULL;
  if (disk != NULL && disk->backing != NULL)
    *size = disk->backing->size;
  image_close_disk (disk);
  (void) image_close (im); /* it was not written */
  return disk != NULL ? 0 : -1;
}

/* What the size says, which may be relative to the one that the disk has. */
static int
new_size (const struct tool_options *o, struct storage *s, uint64_t *size)
{
  const char *text = o->size;
  const bool more = *text == '+', less = *text == '-';
  char name[1024];
  struct header h;

  if (qcow2_read_header (s, &h) == -1)
    return -1;
  error_printable (name, sizeof name, o->file);
  if (!tool_parse_size (text + (more || less), size) ||
      (more && *size > INT64_MAX - h.disk_size)) {
    error_set (EINVAL, "%s: '%s' is no size: bytes, or with a suffix k, M, G, T, "
               "P or E", name, text);
    return -1;
  }
  if (less && *size >= h.disk_size) {
    error_set (EINVAL, "%s: the disk has %" PRIu64 " bytes, no more than what it "
               "is to lose", name, h.disk_size);
    return -1;
  }
  *size = more ? h.disk_size + *size : less ? h.disk_size - *size : *size;
  if (*size >= h.disk_size || o->shrink)
    return 0;
  error_set (EINVAL, "%s: the disk has %" PRIu64 " bytes, and would lose what is "
             "beyond %" PRIu64 ": --shrink allows that", name, h.disk_size,
             *size);
  return -1;
}

static int
run (const struct tool_options *o, struct storage *s, uint64_t backing_size)
{
  uint64_t size;

  return tool_check_qcow2 (o, s) == -1 || new_size (o, s, &size) == -1 ? -1
    : resize_disk (s, size, backing_size);
}

int
tool_resize (const struct tool_options *o)
{
  uint64_t backing_size;
  struct storage *s;
  int r;

  if (find_backing_size (o, &backing_size) == -1)
    return tool_failed ();
  s = tool_open (o, true);
  if (s == NULL)
    return tool_failed ();
  r = run (o, s, backing_size);
  storage_close (s);
  if (r == -1)
    return tool_failed ();
  if (!o->quiet)
    puts ("Image resized.");
  return TOOL_OK;
}
