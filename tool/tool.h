/* SPDX-License-Identifier: BSD-3-Clause */

/* nbdkit-qcow2-tool: examines images with core/, without serving them. */

#ifndef QCOW2_TOOL_H
#define QCOW2_TOOL_H

#include <stdbool.h>

#include "disk/chain.h"
#include "qcow2/check/repair.h"
#include "storage/storage.h"

/* Exit codes, which are those of `qemu-img check'. */
enum {
  TOOL_OK = 0,
  TOOL_FAILED = 1,
  TOOL_CORRUPT = 2,
  TOOL_LEAKS = 3,
};

/* What `snapshot' is to do. */
enum tool_snapshot {
  SNAPSHOT_LIST, /* the default */
  SNAPSHOT_CREATE,
  SNAPSHOT_APPLY,
  SNAPSHOT_DELETE,
};

struct tool_options {
  const char *file;
  const char *format; /* that it must be of; NULL: any that is known */
  bool json;
  bool force_share;
  bool progress; /* check, increment */
  bool quiet;  /* check */
  bool repair; /* check */
  enum repair_mode mode;
  unsigned messages; /* check: to be printed */
  enum tool_snapshot snapshot; /* snapshot */
  bool acts;         /* snapshot: that was said */
  const char *name;  /* snapshot: of which one */
  const char *size;  /* resize: as it was given */
  bool help; /* of the command */
  bool shrink;       /* resize */
  const char *uri;   /* increment: of what; file is the new image */
  const char *backing;  /* increment */
  const char *compress; /* increment: zlib or zstd; NULL: not */
  bool resized;      /* increment */
  enum follow follow; /* info, map, resize */
  const char *data_file; /* info, map: NULL: what the image names */

  /* info, map: of the backing files from the first on down; NULL after the
   * last.
   */
  const char *formats[CHAIN_MAX_DEPTH];
  unsigned nr_formats;
};

extern int tool_check (const struct tool_options *o);
extern int tool_increment (const struct tool_options *o);
extern int tool_info (const struct tool_options *o);
extern int tool_map (const struct tool_options *o);
extern int tool_resize (const struct tool_options *o);
extern int tool_snapshot (const struct tool_options *o);

/* Advice in terms of options, for advice_choose. */
extern const char *const tool_advice[];

/* Parse a size in bytes, as qemu-img does: a number, and a suffix that is a power
 * of 1024, before which it may have a fraction; at most 2^63 - 1.  Returns false
 * if it is none.
 */
extern bool tool_parse_size (const char *text, uint64_t *size);

/* Print a name on stdout, escaped: see core/base/error.h. */
extern void tool_print_name (const char *name);

/* Say why core/ failed, on stderr.  Returns TOOL_FAILED. */
extern int tool_failed (void);

/* Whether an image of this format is what was asked for.  Returns -1 with the
 * error set.
 */
extern int tool_check_format (const struct tool_options *o,
                              const char *format);

/* The same for commands that are for qcow2 alone. */
extern int tool_check_qcow2 (const struct tool_options *o, struct storage *s);

/* Open only the image, with QEMU's locks for reading or writing.  Returns NULL
 * with the error set.
 */
extern struct storage *tool_open (const struct tool_options *o, bool write);

#endif /* QCOW2_TOOL_H */
