/* SPDX-License-Identifier: BSD-3-Clause */

/* The plugin: nbdkit's callbacks, each a thin layer over core/image.h.
 * One image is open for as long as nbdkit runs, shared by all connections.
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
#include "crypto/library.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "image.h"
#include "params.h"
#include "qcow2/codec.h"
#include "signals.h"
#include "storage/nbd.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* -D qcow2.map=1 and -D qcow2.cache=1; nbdkit finds them by these names. */
NBDKIT_DLL_PUBLIC int qcow2_debug_map;
NBDKIT_DLL_PUBLIC int qcow2_debug_cache;

static struct image *image;

/* A connection.  writable: the disk is the live one, its image could be opened
 * for writing, and the client may write.  The description is kept since the
 * export's name, which a filter can change on its way to .open, is known only
 * there.
 */
struct handle {
  struct layer *disk;
  bool writable;
  char description[256];
};

/* Pass core/'s error on to nbdkit: the errno to the client, and the message
 * to the log unless it is there already.
 */
static void
report_error (void)
{
  if (error_repeated ())
    nbdkit_debug ("%s", error_message ());
  else
    nbdkit_error ("%s", error_message ());
  nbdkit_set_error (error_errno ());
}

/* Notes are not errors but must be seen.  nbdkit logs only errors, apart from
 * what -v shows; and stderr may be a client's socket (nbdkit -s).
 */
static void
report_note (const char *text)
{
  nbdkit_error ("(not an error) note: %s", text);
}

static void
message_hook (const char *text)
{
  nbdkit_debug ("%s", text);
}

static void
qcow2_load (void)
{
  signals_catch ();
}

static void
qcow2_unload (void)
{
  if (image_close (image) == -1)
    nbdkit_error ("closing: %s", error_message ());
  params_free ();
  signals_release ();
}

static void
qcow2_dump_plugin (void)
{
  const char *libdeflate = codec_libdeflate_version ();
  const char *isal = codec_isal_version ();
  const char *gnutls = crypto_library ();
  const char *libnbd = storage_nbd_library ();

  printf ("qcow2_versions=2,3\n");
  printf ("qcow2_features=compression-type,extended-l2,snapshot-exports,"
          "bitmap-exports\n");
  printf ("qcow2_formats=qcow2,qed\n");
  printf ("qcow2_backing_formats=raw,qcow2,qed\n");
  printf ("qcow2_compression=deflate,zstd\n");
  printf ("qcow2_zlib=%s\n", codec_zlib_version ());
  printf ("qcow2_libdeflate=%s\n", libdeflate != NULL ? libdeflate : "no");
  printf ("qcow2_zstd=%s\n", codec_zstd_version ());
  printf ("qcow2_isal=%s\n", isal != NULL ? isal : "no");
  printf ("qcow2_encryption=%s\n", gnutls != NULL ? "luks,aes" : "no");
  printf ("qcow2_gnutls=%s\n", gnutls != NULL ? gnutls : "no");
  printf ("qcow2_libnbd=%s\n", libnbd != NULL ? libnbd : "no");
}

/* Warn when the server starts if its first client will be refused.  That is no
 * reason to stop: a plugin learns only from a client whether nbdkit was started
 * with -r, so that nothing is written.
 */
static void
warn_of_refusal (void)
{
  if (image_look_ahead (image, params_repair (),
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

/* Open what is to be served, and say what the user must know.  Returns -1 with
 * nbdkit_error called.
 */
static int
open_and_check (void)
{
  struct image_options options = *params_options ();

  image = open_image (&options);
  if (image == NULL)
    return -1;
  image_each_warning (image, log_warning, NULL);
  if (params_apply (image) == -1 || creation_keep_when_forked () == -1)
    return -1;
  passphrases_wipe ();
  warn_of_refusal ();
  return 0;
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
  debug_hooks.message = message_hook;
  debug_hooks.note = report_note;
  debug_hooks.map = qcow2_debug_map > 0;
  debug_hooks.cache = qcow2_debug_cache > 0;
  advice_choose (params_advice);
  return opens_after_fork () ? 0 : open_and_check ();
}

static int
qcow2_after_fork (void)
{
  creation_keep ();
  return opens_after_fork () ? open_and_check () : 0;
}

/* nbdkit refuses to list more; those beyond can still be opened. */
#define MAX_LISTED_EXPORTS 10000

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

static int
qcow2_list_exports (int readonly, int is_tls, struct nbdkit_exports *exports)
{
  struct list_context ctx = { .exports = exports };

  if (image_list (image, add_export, &ctx) == -1) {
    if (!ctx.failed)
      report_error ();
    return -1;
  }
  if (ctx.nr > MAX_LISTED_EXPORTS)
    nbdkit_debug ("%u exports, of which the first %d are listed", ctx.nr,
                  MAX_LISTED_EXPORTS);
  return 0;
}

static const char *
qcow2_default_export (int readonly, int is_tls)
{
  return "";
}

/* A client that may write can't: say why, once, unless the user asked for it.
 */
static void
note_read_only (void)
{
  static atomic_flag noted = ATOMIC_FLAG_INIT;

  if (!params_options ()->chain.force_share &&
      !atomic_flag_test_and_set (&noted))
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
    note_read_only ();
    return 0;
  default:
    return -1;
  }
}

static void *
qcow2_open (int readonly)
{
  const char *name = nbdkit_export_name ();
  struct handle *h;

  if (name == NULL)
    return NULL;
  h = calloc (1, sizeof *h);
  if (h == NULL) {
    nbdkit_error ("out of memory");
    return NULL;
  }
  h->disk = image_open_disk (image, name);
  if (h->disk == NULL ||
      image_describe (image, name, h->description,
                      sizeof h->description) == -1 ||
      (!readonly && name[0] == '\0' && make_writable (h) == -1)) {
    report_error ();
    image_close_disk (h->disk);
    free (h);
    return NULL;
  }
  return h;
}

static void
qcow2_close (void *handle)
{
  struct handle *h = handle;

  image_close_disk (h->disk);
  free (h);
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
  *minimum = 1;
  *preferred = image_preferred_size (image);
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
  return 1;
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
  const struct guest_off at = { offset };

  if (image_write (image, buf, count, at, write_flags (flags)) == -1) {
    report_error ();
    return -1;
  }
  return 0;
}

static int
qcow2_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const struct guest_off at = { offset };

  if (image_zero (image, count, at, write_flags (flags)) == -1) {
    report_error ();
    return -1;
  }
  return 0;
}

static int
qcow2_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const struct guest_off at = { offset };

  if (image_trim (image, count, at, write_flags (flags)) == -1) {
    report_error ();
    return -1;
  }
  return 0;
}

static int
qcow2_flush (void *handle, uint32_t flags)
{
  if (image_flush (image) == -1) {
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
  .dump_plugin = qcow2_dump_plugin,
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
