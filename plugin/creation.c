/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-plugin.h>

#include "base/error.h"
#include "creation.h"
#include "manage/create.h"
#include "values.h"

static struct create_options options = CREATE_DEFAULTS;
static bool wanted, overwrite;
static bool has_size, has_compression;
static const char *first_key; /* of a parameter that is only for creating */

static char *recorded; /* the backing's name */
static char *backing;  /* its path, if that is another */

/* The new image, until nbdkit has started; removed if it exits before that. */
static struct created made = CREATED_NOTHING;

/* --------------------------------------------------------------- parameters */

static int
set_bool (const char *key, const char *value, bool *b)
{
  return value_parse_bool (key, value, b) == -1 ? -1 : 1;
}

static int
set_create (const char *key, const char *value)
{
  if (strcmp (value, "overwrite") == 0) {
    wanted = overwrite = true;
    return 1;
  }
  overwrite = false;
  return set_bool (key, value, &wanted);
}

static int
set_size (const char *key, const char *value)
{
  has_size = true;
  return value_parse_size (key, value, &options.size) == -1 ? -1 : 1;
}

static int
set_cluster_size (const char *key, const char *value)
{
  return value_parse_size (key, value, &options.cluster_size) == -1 ? -1 : 1;
}

static int
set_compat (const char *key, const char *value)
{
  static const char *const words[] = { "0.10", "1.1", "v2", "v3", NULL };
  const int i = value_choose (key, value, words, "0.10 or 1.1");

  if (i == -1)
    return -1;
  options.version = 2 + i % 2;
  return 1;
}

static int
set_refcount_bits (const char *key, const char *value)
{
  return nbdkit_parse_unsigned (key, value, &options.refcount_bits) == -1
    ? -1 : 1;
}

static int
set_lazy_refcounts (const char *key, const char *value)
{
  return set_bool (key, value, &options.lazy_refcounts);
}

static int
set_extended_l2 (const char *key, const char *value)
{
  return set_bool (key, value, &options.extended_l2);
}

static int
set_compression_type (const char *key, const char *value)
{
  static const char *const words[] = { "zlib", "zstd", NULL };
  const int i = value_choose (key, value, words, "zlib or zstd");

  if (i == -1)
    return -1;
  options.compression = i == 0 ? COMPRESSION_DEFLATE : COMPRESSION_ZSTD;
  has_compression = true;
  return 1;
}

static int
set_preallocation (const char *key, const char *value)
{
  static const char *const words[] = {
    [PREALLOCATION_OFF] = "off", [PREALLOCATION_METADATA] = "metadata",
    [PREALLOCATION_FALLOC] = "falloc", [PREALLOCATION_FULL] = "full", NULL,
  };
  const int i = value_choose (key, value, words,
                               "off, metadata, falloc or full");

  if (i == -1)
    return -1;
  options.preallocation = i;
  return 1;
}

int
creation_set (const char *key, const char *value)
{
  static const struct {
    const char *key;
    int (*set) (const char *key, const char *value);
  } keys[] = {
    { "create", set_create },
    { "size", set_size },
    { "cluster-size", set_cluster_size },
    { "compat", set_compat },
    { "refcount-bits", set_refcount_bits },
    { "lazy-refcounts", set_lazy_refcounts },
    { "extended-l2", set_extended_l2 },
    { "compression-type", set_compression_type },
    { "preallocation", set_preallocation },
  };
  size_t i;

  for (i = 0; i < sizeof keys / sizeof keys[0]; ++i) {
    if (strcmp (key, keys[i].key) != 0)
      continue;
    if (i > 0 && first_key == NULL)
      first_key = keys[i].key;
    return keys[i].set (key, value);
  }
  return 0;
}

int
creation_set_backing (const char *value)
{
  recorded = strdup (value);
  if (recorded != NULL)
    return 0;
  nbdkit_error ("out of memory");
  return -1;
}

int
creation_set_compression (enum compression c)
{
  if (has_compression && c != options.compression) {
    nbdkit_error ("compress= and compression-type= contradict each other");
    return -1;
  }
  options.compression = c;
  return 0;
}

/* -------------------------------------------------------------- the backing */

/* The path to which a name leads that is recorded in an image at `file'. */
static char *
path_from (const char *file, const char *name)
{
  const char *slash = strrchr (file, '/');
  char *path;

  if (name[0] == '/' || slash == NULL)
    return strdup (name);
  if (asprintf (&path, "%.*s/%s", (int) (slash - file), file, name) == -1)
    return NULL;
  return path;
}

static int
complete_backing (struct chain_options *chain)
{
  const size_t n = strcspn (recorded, ":/");
  const bool uri = storage_nbd_is_uri (recorded);

  if (recorded[n] == ':' && !uri) { /* QEMU would take it for a protocol */
    nbdkit_error ("backing=%s: a name with a colon must be recorded as a path, "
                  "such as ./%s", recorded, recorded);
    return -1;
  }
  if (chain->backing_format == NULL) {
    nbdkit_error ("backing-format= is missing: a new image records the format "
                  "of its backing file");
    return -1;
  }
  backing = uri ? strdup (recorded) : path_from (chain->file, recorded);
  if (backing == NULL) {
    nbdkit_error ("out of memory");
    return -1;
  }
  chain->backing = backing;
  options.backing = recorded;
  options.backing_format = chain->backing_format;
  return 0;
}

int
creation_complete (struct chain_options *chain)
{
  if (!wanted) {
    if (first_key == NULL)
      return 0;
    nbdkit_error ("%s= is only for a new image: say create=true as well",
                  first_key);
    return -1;
  }
  if (storage_nbd_is_uri (chain->file)) {
    nbdkit_error ("create= makes files, not images on NBD servers");
    return -1;
  }
  if (recorded != NULL)
    return complete_backing (chain);
  if (chain->backing_format != NULL) {
    nbdkit_error ("backing-format= without backing=");
    return -1;
  }
  if (has_size)
    return 0;
  nbdkit_error ("size= is missing: how large is the new disk to be?");
  return -1;
}

/* ------------------------------------------------------------------- making */

/* Called when nbdkit has started successfully and is about to fork. */
void
creation_keep (void)
{
  create_release (&made);
}

/* If nbdkit can't start, it exits without telling its plugins.  create_undo
 * does nothing if another file has the image's name by then.
 */
static void __attribute__ ((destructor))
remove_image (void)
{
  create_undo (&made);
}

static int
keep_when_forked (const char *file)
{
  const int err = pthread_atfork (NULL, creation_keep, creation_keep);

  if (err == 0)
    return 0;
  nbdkit_error ("%s: %s", file, strerror (err));
  return -1;
}

/* Check the backing file before anything is overwritten.  The size of its disk
 * is the default for the new one.
 */
static int
look_at_backing (const struct chain_options *chain)
{
  uint64_t size;

  if (image_backing_size (chain, &size) == -1) {
    nbdkit_error ("%s", error_message ());
    return -1;
  }
  if (!has_size)
    options.size = size;
  return 0;
}

int
creation_run (struct chain_options *chain)
{
  if (!wanted)
    return 0;
  if (options.backing != NULL && look_at_backing (chain) == -1)
    return -1;
  options.locking = chain->locking;
  if (create_file (chain->file, overwrite, &options, &made) == -1) {
    nbdkit_error ("%s", error_message ());
    return -1;
  }
  chain->made = made.storage;
  return keep_when_forked (chain->file);
}

void
creation_free (void)
{
  free (recorded);
  free (backing);
}
