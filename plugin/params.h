/* SPDX-License-Identifier: BSD-3-Clause */

/* The plugin's parameters, from key=value to image_options. */

#ifndef QCOW2_PARAMS_H
#define QCOW2_PARAMS_H

#include "creation.h"
#include "image.h"
#include "offer.h"
#include "passphrase.h"
#include "servers.h"

/* nbdkit's .config: take one parameter.  Returns -1 with nbdkit_error called.
 */
extern int params_set (const char *key, const char *value);

/* nbdkit's .config_complete: check that all required parameters are there.
 * Returns -1 with nbdkit_error called.
 */
extern int params_complete (void);

/* dir=, an absolute path; NULL: there is one image.  Owned by params.c. */
extern const char *params_dir (void);

/* The options that result from the parameters, for the one image; with dir=,
 * for each but for what tells where it is.  Owned by params.c.
 */
extern const struct image_options *params_options (void);
extern const struct writer_options *params_writer_options (void);
extern enum image_repair params_repair (void);

/* Check the parameters that depend on an opened image, which is called so, and
 * apply them to it.  Several threads may do that at once.  Returns -1 with
 * nbdkit_error called.
 */
extern int params_apply (struct image *im, const char *name);

/* Advice in terms of parameters, for advice_choose. */
extern const char *const params_advice[];

extern void params_free (void);

/* One line per parameter, each starting with "key=". */
#define PARAMS_HELP                                                     \
  "file=<PATH>                The image, qcow2 or QED (this, uri=,\n"      \
  "                           command= or dir= is required).\n"           \
  "dir=<PATH>                 A folder, each image in which is an export by\n" \
  "                           its file's name.\n"                        \
  "follow=none|beneath|any    Which backing files and data files an image may\n" \
  "                           name: none (default), those in its own folder,\n" \
  "                           any.\n"                                    \
  "data-file=<PATH>           Use this external data file, whatever the image\n" \
  "                           names.\n"                                   \
  "backing=<PATH>             Use this backing file, whatever the image\n" \
  "                           names.\n"                                   \
  "backing-format=raw|qcow2|qed  Its format; default: what is recorded.\n" \
  "                           Again for each backing file below it.\n"    \
  "cache-size=<SIZE>          Size of the metadata cache (default 256M).\n" \
  "force-share=<BOOL>         Read even an image that another process\n"  \
  "                           writes (default false).\n"                  \
  "locking=auto|on|off        Whether QEMU's locks are taken: where they\n" \
  "                           can be had (default), always, never.\n"     \
  "discard=unmap|keep         Whether trimmed clusters give their space\n" \
  "                           back to the host (default) or not.\n"       \
  "bitmaps=keep|invalidate    Whether persistent bitmaps that are enabled\n" \
  "                           follow what is written (default), or are lost\n" \
  "                           by it.\n"                                   \
  "compress=zlib|zstd         Compress whole clusters that are written.\n" \
  "compress-level=<N>         zlib: from 1 to 9, fast up to 3 (default with\n" \
  "                           ISA-L 2, else 1); zstd: 1 to 22 (default 2).\n" \
  "detect-zeroes=off|on|unmap What becomes of zeros that are written\n" \
  "                           (default off; on with compress).\n"      \
  "point-in-time=<BOOL>       Exports \"now/TOKEN\" are the disk as it was when\n" \
  "                           the first client opened that (default false).\n" \
  "point-in-time-linger=<N>   They can be opened again for N seconds (default\n" \
  "                           30) after the last client has left.\n"  \
  "point-in-time-memory=<SIZE>  For what is changed meanwhile (default 64M).\n" \
  "repair=none|leaks|all      Check an image before it is written, and\n" \
  "                           repair it; default: all that is wrong, if\n" \
  "                           it is marked as dirty.\n"              \
  OFFER_HELP                                                            \
  PASSPHRASE_HELP                                                       \
  SERVERS_HELP                                                            \
  CREATION_HELP

#endif /* QCOW2_PARAMS_H */
