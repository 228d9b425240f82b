/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening an image and the backing files that it names, through a gate:
 * an image comes from a stranger, and the names in it must not make this
 * program open what its user did not mean to give away.
 */

#ifndef CORE_DISK_CHAIN_H
#define CORE_DISK_CHAIN_H

#include "cache/tables.h"
#include "disk/layer.h"
#include "storage/nbd.h"

/* Enough for any real chain; a chain costs a file descriptor a layer. */
#define CHAIN_MAX_DEPTH 256

_Static_assert (CHAIN_MAX_DEPTH <= CACHE_MAX_STORAGES,
                "each layer has an id in the cache");

/* Which files an image may make us open. */
enum follow {
  FOLLOW_NONE,
  FOLLOW_BENEATH, /* those under its own directory */
  FOLLOW_ANY,     /* any path on the host: see disk/backing-name.h */
};

struct chain_options {
  const char *file;           /* the image's path, or the URI of a server */
  const struct storage *made; /* it must be this one; NULL: any */
  enum follow follow;
  const char *backing;        /* the same of its backing file, or NULL: what it
                               * names */
  const char *backing_format; /* its name, or NULL: what it says */

  /* The same for the backing file's own, and so on down the chain; NULL after
   * the last.  NULL: all are what is recorded.
   */
  const char *const *lower_formats;
  bool force_share;           /* read even what another process writes */
  enum storage_locking locking;
  struct nbd_options nbd;
};

struct chain {
  bool force_share;
  enum storage_locking locking;
  unsigned nr;
  struct layer *layer[CHAIN_MAX_DEPTH]; /* the image itself is the first */
};

/* Open an image of this format and its backing files, read-only, with the
 * locks that QEMU takes on them, so that no QEMU writes them meanwhile.
 * shared must outlive the chain.  Relative names are relative to the directory
 * of the file that they are in, as it was named.  Formats are never probed.
 * Returns -1 with the error set, naming the file that it is about.
 */
extern int chain_open (struct chain *c, const struct format_ops *format,
                       const struct chain_options *options,
                       struct shared *shared);

/* The same for an image on the first of these storages and its backing files
 * on the others, all of which are owned from here on, even after an error.
 * The last one must not have a backing file.
 */
extern int chain_open_storages (struct chain *c,
                                const struct format_ops *format,
                                struct storage *const *storages, unsigned nr,
                                struct shared *shared);

extern void chain_close (struct chain *c);

#endif /* CORE_DISK_CHAIN_H */
