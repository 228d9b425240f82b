/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/error.h"
#include "creation.h"
#include "image.h"
#include "offer.h"
#include "params.h"
#include "start.h"

/* Warn when the server starts if its first client will be refused.  That is no
 * reason to stop: a plugin learns only from a client whether nbdkit was started
 * with -r, so that nothing is written.
 */
static void
warn_of_refusal (struct image *im)
{
  if (image_look_ahead (im, params_repair (),
                        params_writer_options ()) == -1)
    nbdkit_error ("warning: %s (without -r, clients will be refused)",
                  error_message ());
}

/* nbdkit logs nothing but errors without -v. */
static void
log_warning (void *opaque, const char *text)
{
  nbdkit_error ("warning: %s", text);
}

/* Make the image before, if one is to be made. */
static struct image *
open_image (struct image_options *options)
{
  struct image *below, *im;

  if (creation_run (options, &below) == -1)
    return NULL;
  im = below != NULL ? image_open_made (below, options) : image_open (options);
  if (im == NULL)
    nbdkit_error ("%s", error_message ());
  return im;
}

/* The export that is the only one must be there. */
static int
check_offer (struct image *im)
{
  const char *name, *export = offer_only (&name);
  char description[256];

  if (export == NULL ||
      image_describe (im, export, description, sizeof description) == 0)
    return 0;
  nbdkit_error ("only=%s: %s", export, error_message ());
  return -1;
}

int
start_apply (struct image *im, const char *name)
{
  image_each_warning (im, log_warning, NULL);
  return params_apply (im, name);
}

int
start_open (struct image **im)
{
  struct image_options options = *params_options ();

  *im = open_image (&options);
  if (*im == NULL)
    return -1;
  if (start_apply (*im, options.chain.file) == -1 || check_offer (*im) == -1 ||
      creation_keep_when_forked () == -1)
    return -1;
  passphrases_wipe ();
  warn_of_refusal (*im);
  /* nbdkit >= 1.42 sends errors to clients while they connect. */
  image_hide_places (*im);
  return 0;
}
