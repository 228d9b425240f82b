/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-plugin.h>

#include "hints.h"
#include "offer.h"
#include "params.h"
#include "passphrase.h"
#include "qcow2/codec.h"
#include "values.h"

/* A larger metadata cache is a typing error. */
#define MAX_CACHE_SIZE (UINT64_C (1) << 40)

static char *file; /* or uri=, dir=, or "command=CMD" */
static const char *file_key;
static const char *create_key; /* a parameter that is about making one */
static char *backing;
static char *data_file;

/* Of the backing files from the first on down: constants. */
static const char *formats[CHAIN_MAX_DEPTH];
static unsigned nr_formats;

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

#define MIN_POINT_MEMORY (UINT64_C (64) << 10)
#define MAX_POINT_LINGER 86400
static bool points; /* in time */
static unsigned point_linger = IMAGE_DEFAULT_POINT_LINGER;
static uint64_t point_memory = IMAGE_DEFAULT_POINT_MEMORY;

/* Make the path absolute, since nbdkit may change its directory later.
 * Symbolic links are not resolved, since names in an image are relative to
 * where the user says it is.
 */
static int
set_path (const char *key, const char *value, char **path)
{
  *path = nbdkit_absolute_path (value);
  return *path == NULL ? -1 : 0;
}

static int
set_command (const char *key, const char *value)
{
  if (servers_set_command (key, value) == -1)
    return -1;
  if (asprintf (&file, "%s=%s", key, value) != -1)
    return 0;
  file = NULL;
  nbdkit_error ("out of memory");
  return -1;
}

/* file=, uri=, command= or dir=. */
static int
set_image (const char *key, const char *value)
{
  const bool uri = strcmp (key, "uri") == 0;
  const bool command = strcmp (key, "command") == 0;
  const bool dir = strcmp (key, "dir") == 0;

  if (file != NULL && strcmp (file_key, key) != 0 &&
      (dir || params_dir () != NULL))
    nbdkit_error ("%s= and %s= exclude each other: dir= serves the images of a "
                  "folder, and no other", file_key, key);
  else if (file != NULL && strcmp (file_key, key) != 0)
    nbdkit_error ("two images: %s%s%s and %s=%s: one nbdkit serves one image",
                  strcmp (file_key, "command") == 0 ? "" : file_key,
                  strcmp (file_key, "command") == 0 ? "" : "=", file, key,
                  value);
  else if (file != NULL && dir)
    nbdkit_error ("two folders: dir= was given twice (%s): one nbdkit serves "
                  "one folder", value);
  else if (file != NULL)
    nbdkit_error ("two images: %s, and %s= was given twice (%s): one nbdkit "
                  "serves one image, and parameters are KEY=VALUE", file, key,
                  value);
  else if (!uri && !command && storage_nbd_is_uri (value))
    nbdkit_error ("%s=%s: that is an NBD URI: say uri=%s (or file=./%s if it "
                  "is a file)", key, value, value, value);
  else {
    file_key = command ? "command" : uri ? "uri" : dir ? "dir" : "file";
    return command ? set_command (key, value)
      : uri ? servers_set_uri (key, value, &file)
      : set_path (key, value, &file);
  }
  return -1;
}

static int
set_follow (const char *key, const char *value)
{
  static const char *const words[] = {
    [FOLLOW_NONE] = "none", [FOLLOW_BENEATH] = "beneath",
    [FOLLOW_ANY] = "any", NULL,
  };
  const int i = value_choose (key, value, words, "none, beneath or any");

  if (i == -1)
    return -1;
  options.chain.follow = i;
  return 0;
}

static int
set_backing_format (const char *key, const char *value)
{
  static const char *const words[] = { "raw", "qcow2", "qed", NULL };
  const int i = value_choose (key, value, words, "raw, qcow2 or qed");

  if (i == -1)
    return -1;
  if (nr_formats == CHAIN_MAX_DEPTH - 1) { /* a NULL follows the last */
    nbdkit_error ("%s= was given more than %u times: no backing chain is that "
                  "deep", key, nr_formats);
    return -1;
  }
  formats[nr_formats++] = words[i];
  return 0;
}

static int
set_locking (const char *key, const char *value)
{
  static const char *const words[] = {
    [STORAGE_LOCKING_AUTO] = "auto", [STORAGE_LOCKING_ON] = "on",
    [STORAGE_LOCKING_OFF] = "off", NULL,
  };
  const int i = value_choose (key, value, words, "auto, on or off");

  if (i == -1)
    return -1;
  options.chain.locking = i;
  return 0;
}

static int
set_discard (const char *key, const char *value)
{
  static const char *const words[] = { "unmap", "keep", NULL };
  const int i = value_choose (key, value, words, "unmap or keep");

  if (i == -1)
    return -1;
  writer_options.keep_discarded = i == 1;
  return 0;
}

static int
set_bitmaps (const char *key, const char *value)
{
  static const char *const words[] = { "keep", "invalidate", NULL };
  const int i = value_choose (key, value, words, "keep or invalidate");

  if (i == -1)
    return -1;
  writer_options.invalidate_bitmaps = i == 1;
  return 0;
}

static int
set_compress (const char *key, const char *value)
{
  static const char *const words[] = {
    [COMPRESSION_DEFLATE] = "zlib", [COMPRESSION_ZSTD] = "zstd", NULL,
  };
  const int i = value_choose (key, value, words, "zlib or zstd");

  if (i == -1)
    return -1;
  compress = true;
  compression = i;
  return 0;
}

static int
set_compress_level (const char *key, const char *value)
{
  has_level = true;
  return nbdkit_parse_unsigned (key, value, &compress_level);
}

static int
set_detect_zeroes (const char *key, const char *value)
{
  static const char *const words[] = {
    [DETECT_ZEROES_OFF] = "off", [DETECT_ZEROES_ON] = "on",
    [DETECT_ZEROES_UNMAP] = "unmap", NULL,
  };

  detect_zeroes = value_choose (key, value, words, "off, on or unmap");
  return detect_zeroes == -1 ? -1 : 0;
}

static int
set_repair (const char *key, const char *value)
{
  static const enum image_repair modes[] = {
    IMAGE_REPAIR_NONE, IMAGE_REPAIR_LEAKS, IMAGE_REPAIR_ALL,
  };
  static const char *const words[] = { "none", "leaks", "all", NULL };
  const int i = value_choose (key, value, words, "none, leaks or all");

  if (i == -1)
    return -1;
  repair = modes[i];
  return 0;
}

static int
set_point_memory (const char *key, const char *value)
{
  if (value_parse_size (key, value, &point_memory) == -1)
    return -1;
  if (point_memory < MIN_POINT_MEMORY || point_memory > MAX_CACHE_SIZE) {
    nbdkit_error ("point-in-time-memory=%s: must be from 64K to 1T", value);
    return -1;
  }
  return 0;
}

static int
set_point_linger (const char *key, const char *value)
{
  if (nbdkit_parse_unsigned (key, value, &point_linger) == -1)
    return -1;
  if (point_linger > MAX_POINT_LINGER) {
    nbdkit_error ("point-in-time-linger=%s: must be at most %d seconds", value,
                  MAX_POINT_LINGER);
    return -1;
  }
  return 0;
}

/* Returns 1, 0 if it is none of these, or -1. */
static int
set_points (const char *key, const char *value)
{
  int r;

  if (strcmp (key, "point-in-time") == 0)
    r = value_parse_bool (key, value, &points);
  else if (strcmp (key, "point-in-time-linger") == 0)
    r = set_point_linger (key, value);
  else if (strcmp (key, "point-in-time-memory") == 0)
    r = set_point_memory (key, value);
  else
    return 0;
  return r == -1 ? -1 : 1;
}

static int
set_cache_size (const char *key, const char *value)
{
  uint64_t size;

  if (value_parse_size (key, value, &size) == -1)
    return -1;
  if (size < CACHE_MIN_BYTES || size > MAX_CACHE_SIZE) {
    nbdkit_error ("cache-size=%s: must be from 64K to 1T", value);
    return -1;
  }
  options.cache_size = size;
  options.check_memory = size;
  return 0;
}

static int
set_backing (const char *key, const char *value)
{
  int r;

  if (backing != NULL) {
    nbdkit_error ("%s= was given twice", key);
    return -1;
  }
  r = storage_nbd_is_uri (value) ? servers_set_uri (key, value, &backing)
    : set_path (key, value, &backing);
  if (r == -1)
    return -1;
  return creation_set_backing (value);
}

static int
set_data_file (const char *key, const char *value)
{
  int r;

  if (data_file != NULL) {
    nbdkit_error ("%s= was given twice", key);
    return -1;
  }
  r = storage_nbd_is_uri (value) ? servers_set_uri (key, value, &data_file)
    : set_path (key, value, &data_file);
  return r == -1 ? -1 : creation_set_data_file (value);
}

int
params_set (const char *key, const char *value)
{
  int r = creation_set (key, value);

  if (r == 1 && create_key == NULL)
    create_key = key; /* which nbdkit keeps */
  if (r == 0)
    r = passphrase_set (key, value);
  if (r == 0)
    r = servers_set (key, value);
  if (r == 0)
    r = offer_set (key, value);
  if (r == 0)
    r = set_points (key, value);
  if (r != 0)
    return r == -1 ? -1 : 0;
  if (strcmp (key, "file") == 0 || strcmp (key, "uri") == 0 ||
      strcmp (key, "command") == 0 || strcmp (key, "dir") == 0)
    return set_image (key, value);
  if (strcmp (key, "backing") == 0)
    return set_backing (key, value);
  if (strcmp (key, "data-file") == 0)
    return set_data_file (key, value);
  if (strcmp (key, "follow") == 0)
    return set_follow (key, value);
  if (strcmp (key, "backing-format") == 0)
    return set_backing_format (key, value);
  if (strcmp (key, "force-share") == 0)
    return value_parse_bool (key, value, &options.chain.force_share);
  if (strcmp (key, "locking") == 0)
    return set_locking (key, value);
  if (strcmp (key, "cache-size") == 0)
    return set_cache_size (key, value);
  if (strcmp (key, "discard") == 0)
    return set_discard (key, value);
  if (strcmp (key, "bitmaps") == 0)
    return set_bitmaps (key, value);
  if (strcmp (key, "compress") == 0)
    return set_compress (key, value);
  if (strcmp (key, "compress-level") == 0)
    return set_compress_level (key, value);
  if (strcmp (key, "detect-zeroes") == 0)
    return set_detect_zeroes (key, value);
  if (strcmp (key, "repair") == 0)
    return set_repair (key, value);
  hints_unknown (key, PARAMS_HELP);
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
  if (data_file != NULL) {
    nbdkit_error ("compress= and data-file= exclude each other: clusters in an "
                  "external data file are not compressed");
    return -1;
  }
  writer_options.compress_level = compress_level;
  return creation_set_compression (compression);
}

/* What is about one image alone. */
static int
complete_dir (void)
{
  const char *name;
  const char *other = backing != NULL ? "backing"
    : data_file != NULL ? "data-file"
    : create_key != NULL ? create_key
    : offer_only (&name) != NULL ? "only= and export-name" : NULL;

  if (params_dir () == NULL || other == NULL)
    return 0;
  nbdkit_error ("dir= and %s= exclude each other: a folder has many images",
                other);
  return -1;
}

int
params_complete (void)
{
  if (file == NULL) {
    nbdkit_error ("the image is missing: say nbdkit qcow2 [file=]PATH");
    return -1;
  }
  if (complete_dir () == -1)
    return -1;
  options.passphrases = passphrases_given ();
  if (servers_complete (storage_nbd_is_uri (file) ||
                        (backing != NULL && storage_nbd_is_uri (backing)) ||
                        (data_file != NULL &&
                         storage_nbd_is_uri (data_file))) == -1)
    return -1;
  options.chain.nbd = servers_options ();
  options.chain.file = file;
  options.chain.command = servers_command ();
  options.chain.backing = backing;
  options.chain.data_file = data_file;
  options.chain.backing_format = formats[0];
  if (nr_formats > 1)
    options.chain.lower_formats = formats + 1;
  if (complete_compress () == -1)
    return -1;
  if (detect_zeroes == -1)
    detect_zeroes = compress ? DETECT_ZEROES_ON : DETECT_ZEROES_OFF;
  return creation_complete (&options.chain, options.passphrases);
}

const char *
params_dir (void)
{
  return file_key != NULL && strcmp (file_key, "dir") == 0 ? file : NULL;
}

static const char *
compression_name (enum compression c)
{
  return c == COMPRESSION_ZSTD ? "zstd" : "zlib";
}

/* Whether clusters of this image can be compressed as was asked for. */
static int
check_compress (const struct image *im, const char *name)
{
  enum compression of_image;
  bool encrypted, below;

  if (!image_compression (im, &of_image)) {
    nbdkit_error ("%s: compress=%s: images of this format have no compressed "
                  "clusters", name, compression_name (compression));
    return -1;
  }
  if (of_image != compression) {
    nbdkit_error ("%s: compress=%s: this image's compression type is %s", name,
                  compression_name (compression), compression_name (of_image));
    return -1;
  }
  image_is_encrypted (im, &encrypted, &below);
  if (encrypted) {
    nbdkit_error ("%s: compress=%s: the image is encrypted, and compressed "
                  "clusters would be in the clear", name,
                  compression_name (compression));
    return -1;
  }
  return 0;
}

int
params_apply (struct image *im, const char *name)
{
  if (passphrases_check (im, name) == -1 ||
      (compress && check_compress (im, name) == -1))
    return -1;
  image_detect_zeroes (im, detect_zeroes);
  if (points && image_allow_points (im, point_linger, point_memory) == -1) {
    nbdkit_error ("point-in-time=true: %s", error_message ());
    return -1;
  }
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
  passphrases_wipe ();
  free (file);
  free (backing);
  free (data_file);
  servers_free ();
  creation_free ();
}
