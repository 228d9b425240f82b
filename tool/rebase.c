/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "disk/backing-name.h"
#include "image-rebase.h"
#include "images.h"
#include "manage/header-change.h"
#include "passphrase.h"
#include "tool.h"

const char tool_rebase_usage[] =
  "Usage: nbdkit-qcow2-tool rebase -b BACKING -F FORMAT [OPTION...] IMAGE\n"
  "\n"
  "Gives an image that nobody serves another backing file; its disk keeps its\n"
  "content: where the two backing files differ, what it needs of the old one is\n"
  "copied into it.\n"
  "\n"
  "  -b BACKING               the name to be recorded, relative to the image's\n"
  "                           directory; '': no backing file any more\n"
  "  -F FORMAT                its format\n"
  "  -u                       look into no backing file, and copy nothing: the\n"
  "                           file was only moved, or has the same content\n"
  "      --follow=none|beneath|any\n"
  "                           which files to open that the image names, and\n"
  "                           that its backing files name (none)\n"
  "      --backing-format=raw|qcow2|qed\n"
  "                           the format of the old backing file; again for\n"
  "                           each below it\n"
  "      --passphrase=+FILE|-|-FD|TEXT\n"
  "      --backing-passphrase=+FILE|-|-FD|TEXT\n"
  "                           of an encrypted image, and of the backing files,\n"
  "                           old and new, if they have another one: the first\n"
  "                           line of a file, asked for, from a descriptor; or\n"
  "                           itself, which everybody can see.  Not with -u\n"
  "  -p, --progress           print how far it is, on standard error\n"
  "  -q, --quiet              print errors only\n"
  "\n"
  "After a power cut or SIGINT the content is the same, and the backing file is\n"
  "the old one or the new one.  Images that are marked as dirty or corrupt want a\n"
  "repair first.\n";

/* ------------------------------------------------------------------- names only */

static int
rebase_header (const struct tool_options *o, const char *format)
{
  struct storage *s = tool_open (o, true);
  int r;

  if (s == NULL)
    return -1;
  r = tool_check_qcow2 (o, s) == -1 ? -1
    : header_change_backing (s, o->base, format);
  storage_close (s);
  return r;
}

/* ---------------------------------------------------------------- with content */

/* The path to which the name leads, from the image's directory.  The caller
 * frees it.  Returns NULL with the error set.
 */
static char *
backing_path (const struct tool_options *o)
{
  const char *slash = strrchr (o->file, '/');
  struct backing_name name;
  char *path;

  if (storage_nbd_is_uri (o->base))
    path = strdup (o->base);
  else if (backing_name_parse (o->file, o->base, &name) == -1)
    return NULL;
  else if (name.path[0] != '/' && storage_nbd_is_uri (o->file)) {
    error_set (EINVAL, "%s: an image on an NBD server has no directory: the "
               "path of its backing file must be absolute", o->file);
    return NULL;
  }
  else if (name.path[0] == '/' || slash == NULL)
    path = strdup (name.path);
  else if (asprintf (&path, "%.*s/%s", (int) (slash - o->file), o->file,
                     name.path) == -1)
    path = NULL;
  if (path == NULL)
    error_set (ENOMEM, "out of memory");
  return path;
}

static struct image_options
options_for (const struct tool_options *o,
             const struct passphrases *passphrases)
{
  return (struct image_options) {
    .chain = { .nbd = NBD_DEFAULTS, .file = o->file, .follow = o->follow },
    .passphrases = passphrases,
    .cache_size = IMAGE_DEFAULT_CACHE_SIZE / 8,
  };
}

/* What is to be below; *below is NULL if that is nothing. */
static int
open_below (const struct tool_options *o,
            const struct passphrases *passphrases, struct image **below)
{
  struct image_options options = options_for (o, passphrases);
  char *path;

  *below = NULL;
  if (o->base[0] == '\0')
    return 0;
  path = backing_path (o);
  if (path == NULL)
    return -1;
  options.chain.backing = path;
  options.chain.backing_format = o->base_format;
  *below = image_open_below (&options);
  free (path);
  return *below == NULL ? -1 : 0;
}

/* below: see open_below. */
static struct image *
open_old (const struct tool_options *o, const struct passphrases *passphrases,
          const struct image *below)
{
  const struct writer_options writer = { .compress_level = 0 };
  struct image_options options = options_for (o, passphrases);
  struct image *im;

  options.chain.backing_format = o->formats[0];
  options.chain.lower_formats = o->nr_formats > 1 ? o->formats + 1 : NULL;
  im = image_open (&options);
  if (im == NULL)
    return NULL;
  if (tool_check_image_format (o, im) == 0 &&
      passphrases_check (o, im, below) == 0 &&
      image_make_writable (im, &writer) == 0)
    return im;
  (void) image_close (im); /* it was not written */
  return NULL;
}

static int
rebase_content (const struct tool_options *o, const char *format)
{
  struct tool_progress progress = { .wanted = o->progress };
  const struct passphrases *passphrases;
  struct image *below, *im;
  int r;

  if (passphrases_read (o, &passphrases) == -1 ||
      open_below (o, passphrases, &below) == -1)
    return -1;
  im = open_old (o, passphrases, below);
  passphrases_wipe ();
  tool_catch_signals ();
  r = im == NULL ? -1
    : image_rebase (im, below, o->base, format, tool_progress, &progress);
  (void) image_close (below); /* it was only read */
  return r;
}

int
tool_rebase (const struct tool_options *o)
{
  const char *format = o->base_format != NULL ? o->base_format : "";
  int r = -1;

  if (o->base == NULL)
    error_set (EINVAL, "rebase: -b must say which backing file it shall be, or "
               "with an empty name that there shall be none");
  else if (o->base[0] != '\0' && format[0] == '\0')
    error_set (EINVAL, "rebase: -F must say of what format %s is, since that is "
               "never guessed", o->base);
  else if (o->unsafe && passphrases_are_given (o))
    error_set (EINVAL, "rebase: -u reads no data, and takes no passphrase");
  else
    r = o->unsafe ? rebase_header (o, format) : rebase_content (o, format);
  passphrases_wipe ();
  if (r == -1)
    return tool_failed ();
  if (!o->quiet)
    puts ("Image rebased.");
  return TOOL_OK;
}
