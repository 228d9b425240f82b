/* SPDX-License-Identifier: BSD-3-Clause */

/* The plugin: nbdkit's callbacks, each a thin layer over core/image.h.
 * One image is open for as long as nbdkit runs, shared by all connections; or,
 * with dir=, each for as long as it has some (directory.h).
 */

#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/advice.h"
#include "base/error.h"
#include "creation.h"
#include "directory.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "dump.h"
#include "exports.h"
#include "image.h"
#include "offer.h"
#include "params.h"
#include "report.h"
#include "served.h"
#include "signals.h"
#include "start.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* -D qcow2.map=1 and -D qcow2.cache=1; nbdkit finds them by these names. */
NBDKIT_DLL_PUBLIC int qcow2_debug_map;
NBDKIT_DLL_PUBLIC int qcow2_debug_cache;

/* The one image; not with dir=. */
static struct served only = { .noted = ATOMIC_FLAG_INIT };

/* A connection.  writable: the disk is the live one, its image could be opened
 * for writing, and the client may write.  The description is kept since the
 * export's name, which a filter can change on its way to .open, is known only
 * there.
 */
struct handle {
  struct served *served;
  struct layer *disk;
  bool writable;
  char description[256];
};

static void
qcow2_load (void)
{
  signals_catch ();
}

static void
qcow2_unload (void)
{
  if (image_close (only.image) == -1)
    nbdkit_error ("closing: %s", error_message ());
  directory_end ();
  params_free ();
  signals_release ();
}

/* A server that command= starts is a child of this process, and must be one of
 * the process that serves.
 */
static bool
opens_after_fork (void)
{
  return params_options ()->chain.command != NULL;
}

/* Open here, so that an image which can't be served stops nbdkit before it
 * forks, with its reason on stderr.
 */
static int
qcow2_get_ready (void)
{
  debug_hooks.message = report_debug;
  debug_hooks.note = report_note;
  debug_hooks.map = qcow2_debug_map > 0;
  debug_hooks.cache = qcow2_debug_cache > 0;
  advice_choose (params_advice);
  if (params_dir () != NULL)
    return directory_begin ();
  return opens_after_fork () ? 0 : start_open (&only.image);
}

static int
qcow2_after_fork (void)
{
  creation_keep ();
  return opens_after_fork () ? start_open (&only.image) : 0;
}

static int
qcow2_list_exports (int readonly, int is_tls, struct nbdkit_exports *exports)
{
  return params_dir () != NULL ? directory_list (exports)
    : exports_list (only.image, exports);
}

static const char *
qcow2_default_export (int readonly, int is_tls)
{
  if (params_dir () == NULL)
    return "";
  nbdkit_error ("there is no default export: each image of the folder is one, "
                "by its file's name");
  return NULL;
}

/* A client that may write can't: say why, once, unless the user asked for it.
 */
static void
note_read_only (struct served *served)
{
  if (!params_options ()->chain.force_share &&
      !atomic_flag_test_and_set (&served->noted))
    note_message ("%s: it is served read-only", error_text ());
}

/* Make the image writable, and repair it if need be, for the first client that
 * may write: before that it is unknown whether one will (nbdkit -r), and others
 * may read the image.  A file that can only be read is served read-only, as by
 * nbdkit's file plugin; any other reason is an error.
 */
static int
make_writable (struct handle *h)
{
  struct image *image = h->served->image;
  char repaired[1280];
  int r = image_repair (image, params_repair (), repaired, sizeof repaired);

  if (repaired[0] != '\0')
    report_note (repaired);
  if (r == 0)
    r = image_make_writable (image, params_writer_options ());
  if (r == 0) {
    h->writable = true;
    if (params_repair () != IMAGE_REPAIR_NONE)
      image_free_leaks (image);
    return 0;
  }
  switch (error_errno ()) {
  case EACCES:
  case EPERM:
  case EROFS:
    note_read_only (h->served);
    return 0;
  default:
    return -1;
  }
}

/* Returns -1 with the error set.  A snapshot is made before it is open, so that the
 * image must be writable; it is not written itself.
 */
static int
open_export (struct handle *h, const char *name, bool readonly)
{
  struct image *image = h->served->image;
  const bool live = name[0] == '\0', take = image_is_take (name);

  /* Nothing is repaired for a name that can't be. */
  if (take && image_describe (image, name, h->description,
                              sizeof h->description) == -1)
    return -1;
  if (!readonly && (live || take) && make_writable (h) == -1)
    return -1;
  h->writable &= live;
  h->disk = image_open_disk (image, name);
  return h->disk == NULL ? -1
    : image_describe (image, name, h->description, sizeof h->description);
}

/* The disk of one of the image's exports, for this client. */
static struct handle *
open_disk (struct served *served, const char *name, bool readonly)
{
  struct handle *h = calloc (1, sizeof *h);

  if (h == NULL) {
    nbdkit_error ("out of memory");
    return NULL;
  }
  h->served = served;
  if (open_export (h, name, readonly) == -1) {
    report_error ();
    image_close_disk (h->disk);
    free (h);
    return NULL;
  }
  return h;
}

static struct served *
take_image (const char *asked, const char **name)
{
  if (params_dir () != NULL)
    return directory_take (asked, name);
  *name = offer_find (asked);
  return *name == NULL ? NULL : &only;
}

static void
give_image_back (struct served *served)
{
  if (served != &only)
    directory_give_back (served);
}

static void *
qcow2_open (int readonly)
{
  const char *asked = nbdkit_export_name (), *name;
  struct served *served;
  struct handle *h = NULL;

  if (asked == NULL || offer_enter () == -1)
    return NULL;
  served = take_image (asked, &name);
  if (served != NULL) {
    h = open_disk (served, name, readonly);
    if (h == NULL)
      give_image_back (served);
  }
  if (h == NULL)
    offer_leave ();
  return h;
}

static void
qcow2_close (void *handle)
{
  struct handle *h = handle;
  struct served *served = h->served;

  image_close_disk (h->disk);
  free (h);
  give_image_back (served);
  offer_leave ();
}

static const char *
qcow2_export_description (void *handle)
{
  struct handle *h = handle;

  return h->description;
}

static int64_t
qcow2_get_size (void *handle)
{
  struct handle *h = handle;

  return h->disk->size;
}

static int
qcow2_block_size (void *handle, uint32_t *minimum,
                  uint32_t *preferred, uint32_t *maximum)
{
  const struct handle *h = handle;

  *minimum = 1;
  *preferred = image_preferred_size (h->served->image);
  *maximum = UINT32_MAX;
  return 0;
}

static int
qcow2_can_write (void *handle)
{
  struct handle *h = handle;

  return h->writable;
}

/* Where nothing can be written there is nothing to flush.  nbdkit's cache filter
 * writes back what it has before a flush, and aborts if it can't write.
 */
static int
qcow2_can_flush (void *handle)
{
  struct handle *h = handle;

  return h->writable;
}

/* A flush on one connection flushes what was written on all. */
static int
qcow2_can_multi_conn (void *handle)
{
  return offer_several ();
}

static int
qcow2_can_fua (void *handle)
{
  return NBDKIT_FUA_NATIVE;
}

static int
qcow2_can_fast_zero (void *handle)
{
  return 1;
}

static int
qcow2_can_extents (void *handle)
{
  return 1;
}

static int
qcow2_can_cache (void *handle)
{
  return NBDKIT_CACHE_NATIVE;
}

static int
qcow2_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  struct handle *h = handle;
  const struct guest_off at = { offset };

  if (layer_read (h->disk, buf, count, at) == -1) {
    report_error ();
    return -1;
  }
  return 0;
}

static unsigned
write_flags (uint32_t flags)
{
  unsigned r = 0;

  if (flags & NBDKIT_FLAG_FUA)
    r |= IMAGE_FUA;
  if (flags & NBDKIT_FLAG_MAY_TRIM)
    r |= IMAGE_MAY_TRIM;
  if (flags & NBDKIT_FLAG_FAST_ZERO)
    r |= IMAGE_FAST;
  return r;
}

static int
qcow2_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  const struct handle *h = handle;
  const struct guest_off at = { offset };

  if (image_write (h->served->image, buf, count, at,
                   write_flags (flags)) == -1) {
    report_error ();
    return -1;
  }
  return 0;
}

static int
qcow2_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const struct handle *h = handle;
  const struct guest_off at = { offset };

  if (image_zero (h->served->image, count, at, write_flags (flags)) == -1) {
    report_error ();
    return -1;
  }
  return 0;
}

static int
qcow2_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const struct handle *h = handle;
  const struct guest_off at = { offset };

  if (image_trim (h->served->image, count, at, write_flags (flags)) == -1) {
    report_error ();
    return -1;
  }
  return 0;
}

static int
qcow2_flush (void *handle, uint32_t flags)
{
  const struct handle *h = handle;

  if (image_flush (h->served->image) == -1) {
    report_error ();
    return -1;
  }
  return 0;
}

static int
qcow2_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct handle *h = handle;
  const struct guest_off at = { offset };

  layer_prefetch (h->disk, count, at);
  return 0;
}

/* For add_extent; failed distinguishes its error, which nbdkit has reported,
 * from core's.
 */
struct extents_context {
  struct nbdkit_extents *extents;
  bool failed;
};

static int
add_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct extents_context *ctx = opaque;
  uint32_t type = 0;

  if (flags & EXTENT_HOLE)
    type |= NBDKIT_EXTENT_HOLE;
  if (flags & EXTENT_ZERO)
    type |= NBDKIT_EXTENT_ZERO;
  if (nbdkit_add_extent (ctx->extents, offset, length, type) == -1) {
    ctx->failed = true;
    return -1;
  }
  return 0;
}

static int
qcow2_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
               struct nbdkit_extents *extents)
{
  struct handle *h = handle;
  const struct guest_off at = { offset };
  const bool one = (flags & NBDKIT_FLAG_REQ_ONE) != 0;
  struct extents_context ctx = { .extents = extents };

  if (layer_extents (h->disk, count, at, one, add_extent, &ctx) == -1) {
    if (!ctx.failed)
      report_error ();
    return -1;
  }
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "qcow2",
  .version = PACKAGE_VERSION,
  .longname = "nbdkit qcow2 plugin",
  .description = "Serve qcow2 disk images, their internal snapshots and "
                 "bitmaps.",
  .magic_config_key = "file",
  .config = params_set,
  .config_complete = params_complete,
  .config_help = PARAMS_HELP,
  .dump_plugin = dump_features,
  .get_ready = qcow2_get_ready,
  .after_fork = qcow2_after_fork,
  .load = qcow2_load,
  .unload = qcow2_unload,
  .list_exports = qcow2_list_exports,
  .default_export = qcow2_default_export,
  .export_description = qcow2_export_description,
  .open = qcow2_open,
  .close = qcow2_close,
  .get_size = qcow2_get_size,
  .block_size = qcow2_block_size,
  .can_write = qcow2_can_write,
  .can_flush = qcow2_can_flush,
  .can_multi_conn = qcow2_can_multi_conn,
  .can_fua = qcow2_can_fua,
  .can_fast_zero = qcow2_can_fast_zero,
  .can_extents = qcow2_can_extents,
  .can_cache = qcow2_can_cache,
  .pread = qcow2_pread,
  .pwrite = qcow2_pwrite,
  .zero = qcow2_zero,
  .trim = qcow2_trim,
  .flush = qcow2_flush,
  .cache = qcow2_cache,
  .extents = qcow2_extents,
  .errno_is_preserved = 0,
};

NBDKIT_REGISTER_PLUGIN (plugin)
