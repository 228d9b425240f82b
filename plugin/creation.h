/* SPDX-License-Identifier: BSD-3-Clause */

/* create=true: the parameters of a new image, and making it. */

#ifndef QCOW2_CREATION_H
#define QCOW2_CREATION_H

#include "image.h"

/* Take one parameter.  Returns 1 if it is one of these, 0 if not, or -1 with
 * nbdkit_error called.
 */
extern int creation_set (const char *key, const char *value);

/* The value of backing=, as the user wrote it. */
extern int creation_set_backing (const char *value);

/* The value of data-file=, as the user wrote it. */
extern int creation_set_data_file (const char *value);

/* The compression type that compress= needs: the new image's default.  It is an
 * error if compression-type= differs.
 */
extern int creation_set_compression (enum compression c);

/* All parameters are known: chain's file, backing and backing_format.  If an
 * image is to be made, interpret a relative backing name as relative to the
 * image's directory, as it is recorded; so is that of a data file.  Returns -1
 * with nbdkit_error called.
 */
extern int creation_complete (struct chain_options *chain,
                              const struct passphrases *given);

/* Make the image, if one is to be made, and set chain->made until
 * creation_keep.  If nbdkit fails to start after that, the image is removed.
 * Returns -1 with nbdkit_error called.
 */
extern int creation_run (struct chain_options *chain);

/* The image is open: keep it when nbdkit forks, which is when it has started.
 * Not before, since a library may fork a process of its own while it opens
 * something.  Returns -1 with nbdkit_error called.
 */
extern int creation_keep_when_forked (void);

/* nbdkit has started: keep the image, and release it. */
extern void creation_keep (void);

extern void creation_free (void);

#define CREATION_HELP                                                   \
  "create=true|overwrite      Make the image first; overwrite: even over\n" \
  "                           what is there.\n"                           \
  "size=<SIZE>                Its disk's size; default: the backing's.\n" \
  "format=qcow2|qed           Of the new image (default qcow2).\n"        \
  "cluster-size=<SIZE>        From 512 to 2M (default 64K); QED: 4K to 64M.\n" \
  "table-size=<N>             QED: clusters of each table (default 4).\n" \
  "compat=0.10|1.1            Version 2 or 3 (default) of the format.\n"  \
  "refcount-bits=<N>          From 1 to 64 (default 16).\n"               \
  "lazy-refcounts=<BOOL>      (default false)\n"                          \
  "extended-l2=<BOOL>         Have subclusters (default false).\n"        \
  "compression-type=zlib|zstd (default zlib)\n"                           \
  "data-file-raw=<BOOL>       The new data file is a raw image of the disk.\n" \
  "preallocation=off|metadata|falloc|full\n"                              \
  "                           (default off)"

#endif /* QCOW2_CREATION_H */
