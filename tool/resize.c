/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/error.h"
#include "image-resize.h"
#include "images.h"
#include "passphrase.h"
#include "qcow2/qcow2.h"
#include "tool.h"

const char tool_resize_usage[] =
  "Usage: " TOOL_NAME " resize [--shrink] [OPTION...] IMAGE [+|-]SIZE\n"
  "\n"
  "Gives the disk of an image that nobody serves another size: SIZE bytes, or so\n"
  "many more (+) or fewer (-); suffixes k, M, G, T, P and E are powers of 1024.\n"
  "\n"
  "      --shrink             what is beyond a smaller size may be lost\n"
  "      --preallocation=off|metadata|falloc|full\n"
  "                           clusters for all that is new: as holes of the file,\n"
  "                           as space, or written as zeros (off)\n"
  "      --follow=none|beneath|any\n"
  "                           for growing an image with a backing file, which\n"
  "                           must be open, so that what it has beyond the end\n"
  "                           stays hidden (none)\n"
  "      --backing-format=raw|qcow2|qed\n"
  "                           the format of that; again for each below it\n"
  "      --passphrase=+FILE|-|-FD|TEXT\n"
  "      --backing-passphrase=+FILE|-|-FD|TEXT\n"
  "                           for growing an encrypted image whose disk ends\n"
  "                           within a cluster, over a longer backing file: the\n"
  "                           image's, and those of its backing files, if they\n"
  "                           have another one: the first line of a file, asked\n"
  "                           for, from a descriptor; or itself, which everybody\n"
  "                           can see\n"
  "  -q, --quiet              print errors only\n"
  "\n"
  "After a power cut the size is as before or as after, and clusters may be\n"
  "leaked.  Images that are marked as dirty or corrupt want a repair first.\n";

/* What the size says, which may be relative to the old one. */
static int
new_size (const struct tool_options *o, uint64_t old, uint64_t *size)
{
  const char *text = o->size;
  const bool more = *text == '+', less = *text == '-';
  char name[1024];

  error_printable (name, sizeof name, o->file);
  if (!tool_parse_size (text + (more || less), size) ||
      (more && *size > INT64_MAX - old)) {
    error_set (EINVAL, "%s: '%s' is no size: bytes, or with a suffix k, M, G, T, "
               "P or E", name, text);
    return -1;
  }
  if (less && *size >= old) {
    error_set (EINVAL, "%s: the disk has %" PRIu64 " bytes, no more than what it "
               "is to lose", name, old);
    return -1;
  }
  *size = more ? old + *size : less ? old - *size : *size;
  if (*size >= old || o->shrink)
    return 0;
  error_set (EINVAL, "%s: the disk has %" PRIu64 " bytes, and would lose what is "
             "beyond %" PRIu64 ": --shrink allows that", name, old, *size);
  return -1;
}

/* The image alone. */
static int
resize_file (const struct tool_options *o, struct resize_options *options)
{
  struct storage *s = tool_open (o, true);
  struct header h;
  int r;

  if (s == NULL)
    return -1;
  r = tool_check_qcow2 (o, s) == -1 || qcow2_read_header (s, &h) == -1 ||
    new_size (o, h.disk_size, &options->size) == -1 ? -1
    : resize_disk (s, options);
  storage_close (s);
  return r;
}

/* The image over its backing files; with its data, if there are passphrases. */
static int
resize_chain (const struct tool_options *o, struct resize_options *options)
{
  struct image_options open = tool_image_options (o);
  struct image *im;
  int r;

  if (passphrases_are_given (o) &&
      passphrases_read (o, &open.passphrases) == -1)
    return -1;
  im = image_open (&open);
  passphrases_wipe ();
  if (im == NULL)
    return -1;
  r = passphrases_check (o, im, NULL) == -1 ||
    new_size (o, image_size (im), &options->size) == -1 ? -1
    : image_resize (im, options);
  (void) image_close (im); /* it has no writer */
  return r;
}

int
tool_resize (const struct tool_options *o)
{
  struct resize_options options = { .preallocation = o->preallocation };
  int r;

  if (o->follow == FOLLOW_NONE && passphrases_are_given (o))
    tool_wrong ("resize: passphrases are for images over backing files: ",
                "--follow=beneath or --follow=any is wanted");
  r = o->follow == FOLLOW_NONE ? resize_file (o, &options)
    : resize_chain (o, &options);
  passphrases_wipe ();
  if (r == -1)
    return tool_failed ();
  if (!o->quiet)
    puts ("Image resized.");
  return TOOL_OK;
}
