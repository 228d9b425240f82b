/* SPDX-License-Identifier: BSD-3-Clause */

/* nbdkit-qcow2-tool: examines images with core/, without serving them. */

#ifndef QCOW2_TOOL_H
#define QCOW2_TOOL_H

#include <stdbool.h>

#include "disk/chain.h"
#include "manage/bitmap-change.h"
#include "manage/create.h"
#include "qcow2/bitmaps.h"
#include "qcow2/check/repair.h"
#include "storage/storage.h"

#define TOOL_NAME "nbdkit-qcow2-tool"

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

/* So many kinds of options can be told apart. */
#define TOOL_MAX_OPTIONS 64

struct tool_options {
  const char *file;
  const char *format; /* that it must be of; NULL: any that is known */
  bool json;
  bool force_share;
  bool progress;
  bool quiet;  /* check */
  bool repair; /* check */
  enum repair_mode mode;
  unsigned messages; /* check: to be printed */
  enum tool_snapshot snapshot; /* snapshot */
  bool acts;         /* snapshot: that was said */
  const char *name;  /* snapshot: of which one; bitmap: the one */
  const char *size;  /* resize: as it was given */
  bool help; /* of the command */
  bool shrink;       /* resize */
  enum preallocation preallocation; /* resize */
  bool keep;         /* commit: the image is not emptied */
  const char *base;  /* commit: NULL: its backing file; rebase: as it is to be
                      * recorded; bitmap: the image to merge from; increment:
                      * the full copy */
  const char *base_format; /* bitmap, rebase: of that, as it was given */
  struct bitmap_action *bitmap_actions; /* bitmap: in their order */
  size_t nr_bitmap_actions;
  bool dump;               /* bitmap */
  const char *granularity; /* bitmap: as it was given */
  bool unsafe;             /* rebase */
  const char *features;    /* amend, measure: as they were given; NULL: none were */
  const char *new_size;    /* measure: --size, as it was given */
  const char *new_format;  /* measure: of the new image, as it was given */
  const char *of;          /* measure: of which snapshot; NULL: of the disk */
  const char *uri;         /* increment: of what; file is the new image */
  const char *compress;    /* increment: zlib or zstd; NULL: not */
  bool resized;            /* increment */
  enum follow follow; /* info, map, measure, resize, commit */
  const char *passphrase; /* commit, compact, rebase, resize: as it was given */
  const char *backing_passphrases[CHAIN_MAX_DEPTH]; /* commit, rebase, resize */
  unsigned nr_backing_passphrases;
  const char *data_file; /* info, map, measure: NULL: what the image names */

  /* Of the backing files from the first on down; NULL after the last. */
  const char *formats[CHAIN_MAX_DEPTH];
  unsigned nr_formats;

  int given[TOOL_MAX_OPTIONS]; /* which options were, by options.c's numbers */
  unsigned nr_given;
};

/* Fill in what the options say, and resize's size, which looks like one.  Returns
 * how many arguments are left, from optind on those that are no options.  Exits
 * where they are wrong.
 */
extern int tool_parse (struct tool_options *o, int argc, char *argv[]);

/* Whether there is a command of this name. */
extern bool tool_is_command (const char *name);

/* Exit if an option was given that a command does not take. */
extern void tool_check_options (const struct tool_options *o,
                                const char *command, const char *takes);

/* Say what is wrong with the arguments, on stderr, and exit. */
extern void tool_wrong (const char *what, const char *accepted)
  __attribute__ ((__noreturn__));

extern int tool_amend (const struct tool_options *o);
extern int tool_bitmap (const struct tool_options *o);
extern int tool_check (const struct tool_options *o);
extern int tool_commit (const struct tool_options *o);
extern int tool_compact (const struct tool_options *o);
extern int tool_increment (const struct tool_options *o);
extern int tool_info (const struct tool_options *o);
extern int tool_map (const struct tool_options *o);
extern int tool_measure (const struct tool_options *o);
extern int tool_rebase (const struct tool_options *o);
extern int tool_resize (const struct tool_options *o);
extern int tool_snapshot (const struct tool_options *o);

/* What `help' says of each. */
extern const char tool_amend_usage[], tool_bitmap_usage[], tool_check_usage[],
  tool_commit_usage[], tool_compact_usage[], tool_increment_usage[],
  tool_info_usage[], tool_map_usage[], tool_measure_usage[],
  tool_rebase_usage[], tool_resize_usage[],
  tool_snapshot_usage[];

/* How far a command is, on stderr, if that is wanted. */
struct tool_progress {
  bool wanted;
  bool shown;       /* once */
  unsigned percent; /* that was shown */
};
extern void tool_show_progress (struct tool_progress *p, uint64_t done,
                                uint64_t total);

/* The same; opaque is the struct tool_progress.  False: the command is to end, by
 * tool_is_stopped.
 */
extern bool tool_progress (void *opaque, uint64_t done, uint64_t total);

/* From now on SIGINT and the like don't end the program, but are found by
 * tool_is_stopped: what was begun is ended properly, which is not long.  Another
 * SIGINT or SIGTERM, a second after the first signal or later, ends the program.
 */
extern void tool_catch_signals (void);
extern bool tool_is_stopped (void);

/* Print one of a list of bitmaps. */
extern void tool_print_bitmap (const struct bitmap_info *b, bool json);

/* Advice in terms of options, for advice_choose. */
extern const char *const tool_advice[];

/* Parse a size in bytes, as qemu-img does: a number, and a suffix that is a power
 * of 1024, before which it may have a fraction; at most 2^63 - 1.  Returns false
 * if it is none.
 */
extern bool tool_parse_size (const char *text, uint64_t *size);

/* The preallocation of this name; false: there is none. */
extern bool tool_parse_preallocation (const char *name,
                                      enum preallocation *preallocation);

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
