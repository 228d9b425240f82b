/* SPDX-License-Identifier: BSD-3-Clause */

/* A writer and its disk, without the image above them, for tests that look into
 * it or give its disk two doors.
 */

#ifndef UNIT_BARE_WRITER_H
#define UNIT_BARE_WRITER_H

#include "disk/chain.h"
#include "qcow2/write/writer.h"

struct bare_writer {
  struct epoch epoch;
  struct shared shared;
  struct chain chain;
  struct layer *disk;
  struct writer *writer; /* NULL: the disk is only read */
};

/* Open the image in the storage tables; its backing file is base, its data is
 * in data, both of which may be NULL; data is its external data file if it has
 * one, and a second door of an ordinary image if not.  All are owned from here on.  Aborts if
 * that fails.
 */
extern void bare_open (struct bare_writer *b, struct storage *tables,
                       struct storage *base, struct storage *data);

/* Then have it written.  It has no snapshots. */
extern void bare_write (struct bare_writer *b,
                        const struct writer_options *options);

/* Returns what closing the writer did. */
extern int bare_close (struct bare_writer *b);

#endif /* UNIT_BARE_WRITER_H */
