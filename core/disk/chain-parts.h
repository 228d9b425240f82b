/* SPDX-License-Identifier: BSD-3-Clause */

/* What chain.c, chain-names.c and chain-layers.c share.  Where functions return
 * an int or a pointer, -1 or NULL means that the error is set.
 */

#ifndef CORE_DISK_CHAIN_PARTS_H
#define CORE_DISK_CHAIN_PARTS_H

#include "disk/chain.h"
#include "disk/format.h"

static inline struct layer *
chain_last (const struct chain *c)
{
  return c->layer[c->nr - 1];
}

/* ------------------------------------------------------------ chain-layers.c */

/* Open the next file of the chain, in a storage that is owned from here on. */
extern int chain_add_layer (struct chain *c, struct storage *s,
                            const struct format_ops *format,
                            struct shared *shared);

/* The same of the first one, whose place was kept free. */
extern int chain_add_first (struct chain *c, struct storage *s,
                            const struct format_ops *format,
                            struct shared *shared);

/* A layer's data is in this storage, which is owned from here on. */
extern int chain_set_data (const struct chain *c, struct layer *l,
                           struct storage *s);

/* ------------------------------------------------------------- chain-names.c */

/* The format of this name.  above: how many backing files are above the file
 * that has it.
 */
extern const struct format_ops *
chain_find_format (const struct format_ops *const *formats, const char *file,
                   const char *name, unsigned above);

/* The format that the user gives for the backing file of the last file of the
 * chain; NULL if he does not.
 */
extern const char *chain_format_given (const struct chain *c,
                                       const struct chain_options *options);

/* What a file says that the format of its backing file is; empty if it doesn't.
 */
extern const char *chain_format_recorded (const struct layer *l);

/* Go on from the last file of the chain, which is at this path, for as long as
 * files name others.
 */
extern int chain_follow_names (struct chain *c,
                               const struct chain_options *options,
                               const char *file, struct shared *shared);

/* Open the data file of a file that is at this path and was not named by
 * another one, if it has such.
 */
extern int chain_follow_data (const struct chain *c, struct layer *l,
                              const struct chain_options *options,
                              const char *file);

#endif /* CORE_DISK_CHAIN_PARTS_H */
