/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening an image and the backing files that it names, through a gate:
 * an image comes from a stranger, and the names in it must not make this
 * program open what its user did not mean to give away.
 */

#ifndef CORE_DISK_CHAIN_H
#define CORE_DISK_CHAIN_H

#include "cache/tables.h"
#include "disk/layer.h"
#include "disk/name-gate.h"
#include "storage/nbd.h"

/* Enough for any real chain; a chain costs a file descriptor a layer. */
#define CHAIN_MAX_DEPTH 256

_Static_assert (CHAIN_MAX_DEPTH <= CACHE_MAX_STORAGES,
                "each layer has an id in the cache");

struct chain_options {
  const char *file;           /* the image's path, or the URI of a server */

  /* A server is started that has the image, by this command (see
   * storage_nbd_start), and file is only its name in messages; NULL: none.
   */
  char *const *command;

  /* It must be this one, which was just made, and whose locks let no other
   * process use it; NULL: any.  And the same of its data file.
   */
  const struct storage *made;
  const struct storage *made_data;

  /* The image's server, to which file must not be asked to lead once more: it
   * could be another one by then.  chain_open_first owns it from there on.
   * NULL: what file leads to.
   */
  struct storage *far;

  /* The image's file, open already, which is owned from the call on; NULL: what
   * file leads to.  And file's directory, open; NULL: that of its path.
   */
  struct storage *opened;
  const struct directory *directory;
  enum follow follow;
  const char *data_file;      /* path or URI of its data file, or NULL: what it
                               * names */
  const char *backing;        /* path or URI of its backing file, or NULL: what
                               * it names */
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
  const struct storage *made, *made_data; /* until it is open: see above */
  bool force_share;
  enum storage_locking locking;
  unsigned nr;
  struct layer *layer[CHAIN_MAX_DEPTH]; /* the image itself is the first: NULL
                                         * until it is open */
};

/* The format whose magic a file begins with; if there is none, the other one,
 * whose message will say what is wrong.  NULL: the error is set.
 */
extern const struct format_ops *
format_recognize (const struct format_ops *const *formats,
                  const struct format_ops *otherwise, struct storage *s);

/* Open an image, of this format unless it is recognized as being of another
 * one, its backing files, and the data files that any of these have,
 * read-only, with the locks that QEMU takes on them, so that no QEMU writes
 * them meanwhile. No file may have two uses.  shared must outlive the chain.
 * Relative names are relative to the directory of the file that they are in,
 * as it was named. Formats of backing files are never probed.  Returns -1 with
 * the error set, naming the file that it is about.
 */
extern int chain_open (struct chain *c, const struct format_ops *format,
                       const struct chain_options *options,
                       struct shared *shared);

/* The same in two steps, for an image that is yet to be made: what it is going
 * to lie on, from options->backing down, if that is set; and then, once it is
 * made, the image and its data file.  In between, layer[0] is NULL.  Whatever
 * speaks against a backing file is thus known before something is overwritten.
 * After an error of either the chain is closed.
 */
extern int chain_open_below (struct chain *c,
                             const struct chain_options *options,
                             struct shared *shared);
extern int chain_open_first (struct chain *c, const struct format_ops *format,
                             const struct chain_options *options,
                             struct shared *shared);

/* The same for an image on the first of these storages and its backing files
 * on the others, each of them followed by its data file if it has one.  All of
 * them are owned from here on, even after an error.  The last image must not
 * have a backing file.
 */
extern int chain_open_storages (struct chain *c,
                                const struct format_ops *format,
                                struct storage *const *storages, unsigned nr,
                                struct shared *shared);

extern void chain_close (struct chain *c);

/* The same, but the storage of the first layer's tables, with its locks, is
 * left open, and the caller's.
 */
extern struct storage *chain_close_but_first (struct chain *c);

#endif /* CORE_DISK_CHAIN_H */
