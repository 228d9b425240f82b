/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdio.h>

#include "base/error.h"
#include "commit.h"
#include "image.h"
#include "images.h"
#include "passphrase.h"
#include "tool.h"

const char tool_commit_usage[] =
  "Usage: " TOOL_NAME " commit [-b BASE] [-d] [OPTION...] IMAGE\n"
  "\n"
  "Copies what an image that nobody serves has of its own into its backing file,\n"
  "which may be qcow2, QED or raw, and empties the image.\n"
  "\n"
  "  -b BASE                  into this file, further below; files between the\n"
  "                           two can't be used any more then.  Implies -d\n"
  "  -d                       leave the image as it is\n"
  "      --follow=beneath     backing files may be in the image's directory, or\n"
  "                           below it\n"
  "      --follow=any         backing files may be anywhere\n"
  "      --backing-format=raw|qcow2|qed\n"
  "                           the format of the backing file; again for each\n"
  "                           below it\n"
  "      --passphrase=+FILE|-|-FD|TEXT\n"
  "      --backing-passphrase=+FILE|-|-FD|TEXT\n"
  "                           of an encrypted image, and of its backing files, if\n"
  "                           they have another one: the first line of a file,\n"
  "                           asked for, from a descriptor; or itself, which\n"
  "                           everybody can see\n"
  "  -p, --progress           print how far it is, on standard error\n"
  "  -q, --quiet              print errors only\n"
  "\n"
  "One of --follow=beneath and --follow=any is wanted.  The image reads as before\n"
  "all the time: after a power cut or Ctrl-C, do it again.  Images that are marked\n"
  "as dirty or corrupt want a repair first.\n";

/* above: see commit_find_base.  Returns NULL with the error set. */
static struct image *
open_overlay (const struct tool_options *o,
              const struct passphrases *passphrases, unsigned *above)
{
  struct image_options options = tool_image_options (o);
  struct image *im;

  options.cache_size = IMAGE_DEFAULT_CACHE_SIZE;
  options.passphrases = passphrases;
  im = image_open (&options);
  *above = 1;
  if (im == NULL ||
      (tool_check_image_format (o, im) == 0 &&
       passphrases_check (o, im, NULL) == 0 && commit_check_base (im) == 0 &&
       (o->base == NULL || commit_find_base (im, o->base, above) == 0)))
    return im;
  (void) image_close (im); /* it was not written */
  return NULL;
}

/* *grown: the base has only been made larger, and the rest is to be done. */
static int
commit (const struct tool_options *o, const struct passphrases *passphrases,
        const struct commit_options *options, bool *grown)
{
  unsigned above;
  struct image *im = open_overlay (o, passphrases, &above);
  int r;

  if (im == NULL)
    return -1;
  r = commit_grow_base (im, above, options, grown);
  if (r == 0 && !*grown)
    r = commit_image (im, above, options);
  (void) image_close (im); /* all that was written is durable, or has failed */
  return r;
}

static int
commit_all (const struct tool_options *o, const struct commit_options *options)
{
  const struct passphrases *passphrases;
  bool grown;

  if (passphrases_read (o, &passphrases) == -1 ||
      commit (o, passphrases, options, &grown) == -1 ||
      (grown && commit (o, passphrases, options, &grown) == -1))
    return -1;
  if (!grown)
    return 0;
  error_set (EINVAL, "%s: its backing file is changed by somebody else", o->file);
  return -1;
}

int
tool_commit (const struct tool_options *o)
{
  struct tool_progress progress = { .wanted = o->progress };
  const struct commit_options options = {
    .keep = o->keep || o->base != NULL, .progress = tool_progress,
    .opaque = &progress,
  };

  int r;

  tool_catch_signals ();
  r = commit_all (o, &options);
  passphrases_wipe ();
  if (r == -1)
    return tool_failed ();
  if (!o->quiet)
    puts ("Image committed.");
  return TOOL_OK;
}
