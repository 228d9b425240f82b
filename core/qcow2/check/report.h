/* SPDX-License-Identifier: BSD-3-Clause */

/* What a check of an image finds, and what it is told to do. */

#ifndef CORE_QCOW2_CHECK_REPORT_H
#define CORE_QCOW2_CHECK_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum check_kind {
  /* Corruptions that `qemu-img check' counts as well. */
  CHECK_REFCOUNT,       /* a refcount is lower than the references */
  CHECK_COPIED,         /* the COPIED flag is set and should not be, or not */
  CHECK_UNALIGNED,      /* an offset is not a multiple of the cluster size */
  CHECK_BEYOND,         /* something is beyond the end of the file */
  CHECK_RESERVED,       /* reserved bits of an entry are set */
  CHECK_OVERFLOW,       /* more references than a refcount can tell */
  CHECK_SUBCLUSTERS,    /* an extended L2 entry contradicts itself */
  CHECK_COMPRESSED,     /* so does the entry of a compressed cluster */
  CHECK_REFCOUNT_BLOCK, /* a refcount block can't be where it is said to be */
  CHECK_SNAPSHOT,       /* an entry of the snapshot table is wrong */
  CHECK_BITMAPS,        /* the bitmap directory or a bitmap table is wrong */

  /* Corruptions that it does not look for. */
  CHECK_OVERLAP,    /* metadata is used as something else as well */
  CHECK_UNREADABLE, /* an entry that readers refuse */

  CHECK_LEAK,      /* a refcount is higher than the references */
  CHECK_NO_ANSWER, /* a refcount that can't be looked up */
};
#define CHECK_KINDS (CHECK_NO_ANSWER + 1)
#define CHECK_CORRUPTIONS (CHECK_UNREADABLE + 1) /* the first so many kinds */

struct check_report {
  /* As in qemu-img's output, which counts an entry once for each table that
   * has it.
   */
  uint64_t corruptions, leaks, check_errors;
  uint64_t total_clusters; /* of the disk */
  uint64_t allocated_clusters, fragmented_clusters, compressed_clusters;
  uint64_t image_end; /* behind the last cluster in use */

  uint64_t found[CHECK_KINDS];

  /* Damage hides tables, and with them references: what seems to be a leak
   * may be somebody's data.
   */
  bool blind;
  bool l1_cut; /* the same for the active L1 table, which is beyond the end of
                * the file in part or as a whole; not in blind */
  bool bitmaps_damaged; /* one of them, or the directory */
  uint64_t odd_snapshots; /* of what is in found[CHECK_SNAPSHOT]: entries with
                           * more or less extra data than they should have */

  bool dirty, corrupt; /* what the header says */

  /* How it went. */
  unsigned windows;     /* walks over all tables */
  size_t counts_memory; /* for counting references, at most */
};

/* No errors, though there may be leaks. */
static inline bool
check_report_is_sound (const struct check_report *r)
{
  return r->corruptions == 0 && r->check_errors == 0;
}

#define CHECK_MEMORY_DEFAULT ((size_t) 512 << 20)
#define CHECK_MAX_MESSAGES 1000

struct check_options {
  size_t memory;    /* bytes at most, about; 0: CHECK_MEMORY_DEFAULT */
  unsigned messages; /* so many for found, CHECK_MAX_MESSAGES at most */

  /* Both may be NULL.  found gets a line without its end.  progress is called now
   * and then; the check is given up if it returns false.
   */
  void (*found) (void *opaque, enum check_kind kind, const char *text);
  bool (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

/* What one walk has found so far.  It is thrown away if the walk has to be
 * begun again, hence messages are kept until its end.
 */
struct check_findings {
  const struct check_options *options;
  struct check_report report;
  unsigned said; /* messages of earlier walks */
  unsigned nr;
  char **message;
  enum check_kind *kind;
};

extern void check_findings_init (struct check_findings *f,
                                 const struct check_options *options);

/* Throw away. */
extern void check_findings_clear (struct check_findings *f);

/* Say them, and add them to a report. */
extern void check_findings_commit (struct check_findings *f,
                                   struct check_report *report);

/* Whether a message about what is found next would be said. */
extern bool check_findings_wanted (const struct check_findings *f);

/* Something was found n times. */
extern void check_found (struct check_findings *f, enum check_kind kind,
                         uint64_t n, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 4, 5), __cold__));

#endif /* CORE_QCOW2_CHECK_REPORT_H */
