/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-plugin.h>

#include "codec.h"
#include "params.h"

/* A metadata cache beyond this is a typing error. */
#define MAX_CACHE_SIZE (INT64_C (1) << 40)

static char *file;
static char *backing;
static char *backing_format;

static struct image_options options = {
  .chain.follow = FOLLOW_NONE,
  .cache_size = IMAGE_DEFAULT_CACHE_SIZE,
};

static struct writer_options writer_options;
static enum image_repair repair = IMAGE_REPAIR_DIRTY;

static bool compress;
static enum compression compression;
static bool has_level;
static unsigned compress_level;
static int detect_zeroes = -1; /* default: off, or on with compress */

/* nbdkit may change its directory later; symbolic links stay as they are,
 * since an image's names are relative to where the user says it is.
 */
static int
set_path (const char *key, const char *value, char **path)
{
  if (*path != NULL) {
    nbdkit_error ("%s= was given twice", key);
    return -1;
  }
  *path = nbdkit_absolute_path (value);
  return *path == NULL ? -1 : 0;
}

static int
set_follow (const char *value)
{
  if (strcmp (value, "none") == 0)
    options.chain.follow = FOLLOW_NONE;
  else if (strcmp (value, "beneath") == 0)
    options.chain.follow = FOLLOW_BENEATH;
  else if (strcmp (value, "any") == 0)
    options.chain.follow = FOLLOW_ANY;
  else {
    nbdkit_error ("follow=%s: must be none, beneath or any", value);
    return -1;
  }
  return 0;
}

static int
set_backing_format (const char *value)
{
  if (strcmp (value, "raw") != 0 && strcmp (value, "qcow2") != 0) {
    nbdkit_error ("backing-format=%s: must be raw or qcow2", value);
    return -1;
  }
  free (backing_format);
  backing_format = strdup (value);
  if (backing_format == NULL) {
    nbdkit_error ("out of memory");
    return -1;
  }
  return 0;
}

static int
set_force_share (const char *value)
{
  const int r = nbdkit_parse_bool (value);

  if (r == -1)
    return -1;
  options.chain.force_share = r;
  return 0;
}

static int
set_discard (const char *value)
{
  if (strcmp (value, "unmap") == 0)
    writer_options.keep_discarded = false;
  else if (strcmp (value, "keep") == 0)
    writer_options.keep_discarded = true;
  else {
    nbdkit_error ("discard=%s: must be unmap or keep", value);
    return -1;
  }
  return 0;
}

static int
set_bitmaps (const char *value)
{
  if (strcmp (value, "invalidate") != 0) {
    nbdkit_error ("bitmaps=%s: must be invalidate", value);
    return -1;
  }
  writer_options.invalidate_bitmaps = true;
  return 0;
}

static int
set_compress (const char *value)
{
  compress = true;
  if (strcmp (value, "zlib") == 0)
    compression = COMPRESSION_DEFLATE;
  else if (strcmp (value, "zstd") == 0)
    compression = COMPRESSION_ZSTD;
  else {
    nbdkit_error ("compress=%s: must be zlib or zstd", value);
    return -1;
  }
  return 0;
}

static int
set_compress_level (const char *key, const char *value)
{
  has_level = true;
  return nbdkit_parse_unsigned (key, value, &compress_level);
}

static int
set_detect_zeroes (const char *value)
{
  if (strcmp (value, "off") == 0)
    detect_zeroes = DETECT_ZEROES_OFF;
  else if (strcmp (value, "on") == 0)
    detect_zeroes = DETECT_ZEROES_ON;
  else if (strcmp (value, "unmap") == 0)
    detect_zeroes = DETECT_ZEROES_UNMAP;
  else {
    nbdkit_error ("detect-zeroes=%s: must be off, on or unmap", value);
    return -1;
  }
  return 0;
}

static int
set_repair (const char *value)
{
  if (strcmp (value, "none") == 0)
    repair = IMAGE_REPAIR_NONE;
  else if (strcmp (value, "leaks") == 0)
    repair = IMAGE_REPAIR_LEAKS;
  else if (strcmp (value, "all") == 0)
    repair = IMAGE_REPAIR_ALL;
  else {
    nbdkit_error ("repair=%s: must be none, leaks or all", value);
    return -1;
  }
  return 0;
}

static int
set_cache_size (const char *value)
{
  const int64_t size = nbdkit_parse_size (value);

  if (size == -1)
    return -1;
  if (size < (int64_t) CACHE_MIN_BYTES || size > MAX_CACHE_SIZE) {
    nbdkit_error ("cache-size=%s: must be from 64K to 1T", value);
    return -1;
  }
  options.cache_size = size;
  return 0;
}

static int
set_backing (const char *key, const char *value)
{
  if (set_path (key, value, &backing) == -1)
    return -1;
  return creation_set_backing (value);
}

int
params_set (const char *key, const char *value)
{
  const int r = creation_set (key, value);

  if (r != 0)
    return r == -1 ? -1 : 0;
  if (strcmp (key, "file") == 0)
    return set_path (key, value, &file);
  if (strcmp (key, "backing") == 0)
    return set_backing (key, value);
  if (strcmp (key, "follow") == 0)
    return set_follow (value);
  if (strcmp (key, "backing-format") == 0)
    return set_backing_format (value);
  if (strcmp (key, "force-share") == 0)
    return set_force_share (value);
  if (strcmp (key, "cache-size") == 0)
    return set_cache_size (value);
  if (strcmp (key, "discard") == 0)
    return set_discard (value);
  if (strcmp (key, "bitmaps") == 0)
    return set_bitmaps (value);
  if (strcmp (key, "compress") == 0)
    return set_compress (value);
  if (strcmp (key, "compress-level") == 0)
    return set_compress_level (key, value);
  if (strcmp (key, "detect-zeroes") == 0)
    return set_detect_zeroes (value);
  if (strcmp (key, "repair") == 0)
    return set_repair (value);
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static int
complete_compress (void)
{
  if (!compress) {
    if (!has_level)
      return 0;
    nbdkit_error ("compress-level= without compress=");
    return -1;
  }
  if (!has_level)
    compress_level = codec_default_level (compression);
  if (compress_level < 1 ||
      compress_level > codec_max_level (compression)) {
    nbdkit_error ("compress-level=%u: must be from 1 to %u", compress_level,
                  codec_max_level (compression));
    return -1;
  }
  writer_options.compress_level = compress_level;
  return creation_set_compression (compression);
}

int
params_complete (void)
{
  if (file == NULL) {
    nbdkit_error ("the image is missing: say nbdkit qcow2 [file=]PATH");
    return -1;
  }
  options.chain.file = file;
  options.chain.backing = backing;
  options.chain.backing_format = backing_format;
  if (complete_compress () == -1)
    return -1;
  return creation_complete (&options.chain);
}

static const char *
compression_name (enum compression c)
{
  return c == COMPRESSION_ZSTD ? "zstd" : "zlib";
}

int
params_apply (struct image *im)
{
  if (compress && image_compression (im) != compression) {
    nbdkit_error ("%s: compress=%s: this image's compression type is %s", file,
                  compression_name (compression),
                  compression_name (image_compression (im)));
    return -1;
  }
  if (detect_zeroes == -1)
    detect_zeroes = compress ? DETECT_ZEROES_ON : DETECT_ZEROES_OFF;
  image_detect_zeroes (im, detect_zeroes);
  return 0;
}

const struct image_options *
params_options (void)
{
  return &options;
}

const struct writer_options *
params_writer_options (void)
{
  return &writer_options;
}

enum image_repair
params_repair (void)
{
  return repair;
}

void
params_free (void)
{
  free (file);
  free (backing);
  free (backing_format);
  creation_free ();
}
