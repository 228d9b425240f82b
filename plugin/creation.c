/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <nbdkit-plugin.h>

#include "base/error.h"
#include "creation.h"
#include "manage/create.h"
#include "passphrase.h"
#include "values.h"

static struct create_options options = CREATE_DEFAULTS;
static bool wanted, overwrite;
static bool has_size, has_compression;
static bool compress;
static bool encrypt, has_iter_time;
static const char *first_key; /* of a parameter that is only for creating */
static const char *qcow2_key; /* of one that only qcow2 images have */
static bool has_table_size;

static char *recorded; /* the backing's name */
static char *backing;  /* its path, if that is another */

static char *recorded_data; /* the same of the data file */
static char *data_file;

/* The new image, and what it has replaced, until nbdkit has started.  If it
 * exits before that the one is removed, and the other has its name again.
 */
static struct created made = CREATED_NOTHING;
static struct created made_data = CREATED_NOTHING; /* its data file */

static bool formatted; /* a server, which is not undone */

/* This process is the child that nbdkit has forked: its parent sees to these
 * files.
 */
static bool kept_elsewhere;

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
set_format (const char *key, const char *value)
{
  static const char *const words[] = {
    [CREATE_QCOW2] = "qcow2", [CREATE_QED] = "qed", NULL,
  };
  const int i = value_choose (key, value, words, "qcow2 or qed");

  if (i == -1)
    return -1;
  options.format = i;
  return 1;
}

static int
set_table_size (const char *key, const char *value)
{
  has_table_size = true;
  return nbdkit_parse_unsigned (key, value, &options.table_size) == -1
    ? -1 : 1;
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
set_data_file_raw (const char *key, const char *value)
{
  return set_bool (key, value, &options.data_file_raw);
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
set_encrypt (const char *key, const char *value)
{
  static const char *const words[] = { "luks", NULL };

  if (value_choose (key, value, words, "luks") == -1)
    return -1;
  encrypt = true;
  return 1;
}

static int
set_iter_time (const char *key, const char *value)
{
  has_iter_time = true;
  return nbdkit_parse_unsigned (key, value, &options.iter_time) == -1
    ? -1 : 1;
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
    bool qcow2; /* only for such images */
  } keys[] = {
    { "create", set_create, false },
    { "size", set_size, false },
    { "format", set_format, false },
    { "cluster-size", set_cluster_size, false },
    { "table-size", set_table_size, false },
    { "compat", set_compat, true },
    { "refcount-bits", set_refcount_bits, true },
    { "lazy-refcounts", set_lazy_refcounts, true },
    { "extended-l2", set_extended_l2, true },
    { "compression-type", set_compression_type, true },
    { "preallocation", set_preallocation, true },
    { "data-file-raw", set_data_file_raw, true },
    { "encrypt", set_encrypt, true },
    { "iter-time", set_iter_time, true },
  };
  size_t i;

  for (i = 0; i < sizeof keys / sizeof keys[0]; ++i) {
    if (strcmp (key, keys[i].key) != 0)
      continue;
    if (i > 0 && first_key == NULL)
      first_key = keys[i].key;
    if (keys[i].qcow2 && qcow2_key == NULL)
      qcow2_key = keys[i].key;
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
creation_set_data_file (const char *value)
{
  recorded_data = strdup (value);
  if (recorded_data != NULL)
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
  compress = true;
  return 0;
}

/* -------------------------------------------------------------- the backing */

/* QEMU would take it for a protocol. */
static int
check_colon (const char *key, const char *name)
{
  if (name[strcspn (name, ":/")] != ':')
    return 0;
  nbdkit_error ("%s=%s: a name with a colon must be recorded as a path, such as "
                "./%s", key, name, name);
  return -1;
}

/* A name, or NULL, that an image on an NBD server is to record. */
static int
check_far_name (const char *key, const char *name)
{
  if (name == NULL || name[0] == '/' || storage_nbd_is_uri (name))
    return 0;
  nbdkit_error ("%s=%s: an image on an NBD server has no directory: say the "
                "absolute path", key, name);
  return -1;
}

static int
complete_data_file (struct chain_options *chain)
{
  if (recorded_data == NULL && options.data_file_raw) {
    nbdkit_error ("data-file-raw= without data-file=");
    return -1;
  }
  if (recorded_data == NULL)
    return 0;
  if (storage_nbd_is_uri (recorded_data)) {
    nbdkit_error ("data-file=%s: the data file of a new image must be a file; "
                  "it can be put on a server later", recorded_data);
    return -1;
  }
  if (check_colon ("data-file", recorded_data) == -1)
    return -1;
  data_file = create_path_from (chain->file, recorded_data);
  if (data_file == NULL) {
    nbdkit_error ("out of memory");
    return -1;
  }
  chain->data_file = data_file;
  options.data_file = recorded_data;
  return 0;
}

static int
complete_backing (struct chain_options *chain)
{
  const bool uri = storage_nbd_is_uri (recorded);

  if (!uri && check_colon ("backing", recorded) == -1)
    return -1;
  if (chain->backing_format == NULL) {
    nbdkit_error ("backing-format= is missing: a new image records the format "
                  "of its backing file");
    return -1;
  }
  backing = uri ? strdup (recorded) : create_path_from (chain->file, recorded);
  if (backing == NULL) {
    nbdkit_error ("out of memory");
    return -1;
  }
  chain->backing = backing;
  options.backing = recorded;
  options.backing_format = chain->backing_format;
  return 0;
}

/* What a format does not have. */
static int
check_format (void)
{
  if (options.format == CREATE_QED && qcow2_key != NULL)
    nbdkit_error ("%s= is not for format=qed", qcow2_key);
  else if (options.format == CREATE_QED && recorded_data != NULL)
    nbdkit_error ("data-file= is not for format=qed");
  else if (options.format == CREATE_QED && compress)
    nbdkit_error ("compress= is not for format=qed");
  else if (options.format != CREATE_QED && has_table_size)
    nbdkit_error ("table-size= is only for format=qed");
  else
    return 0;
  return -1;
}

/* Say so before anything is overwritten. */
static int
complete_encryption (const struct passphrases *given)
{
  if (!encrypt && given->image.bytes != NULL)
    nbdkit_error ("passphrase= was given, but a new image is not encrypted "
                  "without encrypt=luks");
  else if (!encrypt && has_iter_time)
    nbdkit_error ("iter-time= without encrypt=luks");
  else if (encrypt && given->image.bytes == NULL)
    nbdkit_error ("encrypt=luks without passphrase=");
  else if (encrypt && given->image.count == 0)
    nbdkit_error ("encrypt=luks: the passphrase is empty");
  else if (encrypt && compress)
    nbdkit_error ("encrypt= and compress= exclude each other: compressed "
                  "clusters would be in the clear");
  else if (given->nr_backing > 0 && recorded == NULL)
    nbdkit_error ("backing-passphrase= without backing=");
  else {
    options.passphrase = encrypt ? &given->image : NULL;
    return 0;
  }
  return -1;
}

int
creation_complete (struct chain_options *chain, const struct passphrases *given)
{
  if (!wanted) {
    if (first_key == NULL)
      return 0;
    nbdkit_error ("%s= is only for a new image: say create=true as well%s",
                  first_key, strcmp (first_key, "format") == 0
                  ? "; others are recognized (nbdkit file serves raw disks)"
                  : "");
    return -1;
  }
  if (chain->command != NULL) {
    nbdkit_error ("create= and command= exclude each other: the server is "
                  "started after nbdkit has gone to the background, when "
                  "nobody would see why the image can't be made");
    return -1;
  }
  if (storage_nbd_is_uri (chain->file) && chain->nbd.without_flush) {
    nbdkit_error ("create= and unsafe-no-flush= exclude each other on an NBD "
                  "server: without flushes a power loss while it is formatted "
                  "could leave anything");
    return -1;
  }
  if (storage_nbd_is_uri (chain->file) &&
      (check_far_name ("backing", recorded) == -1 ||
       check_far_name ("data-file", recorded_data) == -1))
    return -1;
  if (check_format () == -1 || complete_encryption (given) == -1 ||
      complete_data_file (chain) == -1)
    return -1;
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

/* ----------------------------------------------- keeping, or removing again */

/* Called when nbdkit has started. */
void
creation_keep (void)
{
  if (kept_elsewhere)
    create_let_go (&made);
  else
    create_release (&made);
  create_release (&made_data);
}

/* If nbdkit can't start, it exits without telling its plugins.  create_undo
 * does nothing if another file has the image's name by then.
 */
static void __attribute__ ((destructor))
remove_image (void)
{
  if (kept_elsewhere)
    return;
  create_undo (&made);
  if (!formatted) /* the image that stays needs it */
    create_undo (&made_data);
}

/* ------------------------------------------------------------------ forking */

/* The parent's fork handler runs when fork has failed, too, and isn't told.
 * Therefore the child says that it is there: by a byte in this pipe, which ends
 * without one if there is no child.  -1: not made.
 */
static int born[2] = { -1, -1 };
static int no_pipe; /* why there is none */

static void
close_end (int *fd)
{
  if (*fd != -1)
    close (*fd);
  *fd = -1;
}

static bool
made_something (void)
{
  return made.storage != NULL || made_data.storage != NULL;
}

static void
before_fork (void)
{
  if (made_something () && pipe2 (born, O_CLOEXEC) == -1)
    no_pipe = errno;
}

/* The parent, which exits or runs --run's command, gives up what was there
 * before: it can still tell the user if that fails, and with --run it is not
 * the user of -u yet.
 */
static void
in_child (void)
{
  const char here = 1;

  if (!made_something ())
    return;
  /* The other end is still open here: this can't raise SIGPIPE. */
  while (born[1] != -1 && write (born[1], &here, 1) == -1 && errno == EINTR)
    ;
  close_end (&born[0]);
  close_end (&born[1]);
  kept_elsewhere = true;
}

/* Whether the child that was to be forked is there. */
static bool
is_born (void)
{
  char here;
  ssize_t n;

  close_end (&born[1]);
  do
    n = read (born[0], &here, 1);
  while (n == -1 && errno == EINTR);
  close_end (&born[0]);
  return n == 1;
}

static void
in_parent (void)
{
  if (!made_something ())
    return;
  if (born[0] == -1) {
    /* There may be a child or not: none of the files is given up. */
    if (made.old_name != NULL)
      nbdkit_error ("%s: what was there before is %s now, in the same "
                    "directory: no pipe: %s", made.storage->name,
                    made.old_name, strerror (no_pipe));
    create_let_go (&made);
    create_release (&made_data);
  }
  else if (is_born ())
    creation_keep ();
}

int
creation_keep_when_forked (void)
{
  const int err = wanted
    ? pthread_atfork (before_fork, in_parent, in_child) : 0;

  if (err == 0)
    return 0;
  nbdkit_error ("create=: pthread_atfork: %s", strerror (err));
  return -1;
}

/* ------------------------------------------------------------------- making */

/* Open what the image will lie on, before anything is made or overwritten; and
 * the server that has the image, as that may be below it, too.  The size of the
 * disk below is the new one's default.
 */
static struct image *
open_below (struct image_options *o)
{
  struct image *below;

  if (storage_nbd_is_uri (o->chain.file)) {
    o->chain.far = storage_nbd_open (o->chain.file, &o->chain.nbd,
                                     o->chain.file);
    if (o->chain.far == NULL) {
      nbdkit_error ("%s", error_message ());
      return NULL;
    }
  }
  below = image_open_below (o);

  if (below == NULL)
    nbdkit_error ("%s", error_message ());
  else if (passphrases_check_below (below, o->chain.file) == -1) {
    (void) image_close (below);
    return NULL;
  }
  else if (!has_size)
    options.size = image_size_below (below);
  return below;
}

static int
make_image (const struct chain_options *chain)
{
  if (chain->far == NULL)
    return create_file (chain->file, overwrite, &options, &made);
  formatted = create_far (chain->far, overwrite, &options) == 0;
  return formatted ? 0 : -1;
}

static int
make (struct image_options *o, struct image **below)
{
  *below = open_below (o);
  if (*below == NULL)
    return -1;
  options.locking = o->chain.locking;
  if ((data_file == NULL ||
       create_data_file (data_file, &options, &made_data) == 0) &&
      make_image (&o->chain) == 0)
    return 0;
  nbdkit_error ("%s", error_message ());
  (void) image_close (*below);
  return -1;
}

int
creation_run (struct image_options *o, struct image **below)
{
  *below = NULL;
  if (!wanted)
    return 0;
  if (make (o, below) == -1) {
    storage_close (o->chain.far);
    return -1;
  }
  o->chain.made = made.storage;
  o->chain.made_data = made_data.storage;
  return 0;
}

void
creation_free (void)
{
  free (recorded);
  free (backing);
  free (recorded_data);
  free (data_file);
}
