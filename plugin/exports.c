/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "exports.h"
#include "image.h"
#include "offer.h"
#include "report.h"

struct list_context {
  struct nbdkit_exports *exports;
  unsigned nr;
  bool failed; /* nbdkit has reported why */
};

static int
add_export (void *opaque, const char *name, const char *description)
{
  struct list_context *ctx = opaque;

  if (ctx->nr++ >= MAX_LISTED_EXPORTS)
    return 0;
  if (nbdkit_add_export (ctx->exports, name, description) == -1) {
    ctx->failed = true;
    return -1;
  }
  return 0;
}

/* The only export, by the name that the user has chosen. */
static int
list_only (struct image *im, struct nbdkit_exports *exports)
{
  const char *name, *export = offer_only (&name);
  char description[256];

  if (image_describe (im, export, description, sizeof description) == -1) {
    report_error ();
    return -1;
  }
  return nbdkit_add_export (exports, name, description);
}

int
exports_list (struct image *im, struct nbdkit_exports *exports)
{
  struct list_context ctx = { .exports = exports };
  const char *name;

  if (offer_only (&name) != NULL)
    return list_only (im, exports);
  if (image_list (im, add_export, &ctx) == -1) {
    if (!ctx.failed)
      report_error ();
    return -1;
  }
  if (ctx.nr > MAX_LISTED_EXPORTS)
    nbdkit_debug ("%u exports, of which the first %d are listed", ctx.nr,
                  MAX_LISTED_EXPORTS);
  return 0;
}
