/* SPDX-License-Identifier: BSD-3-Clause */

/* The findings of a check, and its options. */

#ifndef CORE_QCOW2_CHECK_REPORT_H
#define CORE_QCOW2_CHECK_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum check_kind {
  /* Corruptions that `qemu-img check' counts as well. */
  CHECK_REFCOUNT,       /* a refcount is lower than the references */
  CHECK_COPIED,         /* the COPIED flag is wrong */
  CHECK_UNALIGNED,      /* an offset is not a multiple of the cluster size */
  CHECK_BEYOND,         /* something is beyond the end of the file */
  CHECK_RESERVED,       /* reserved bits of an entry are set */
  CHECK_OVERFLOW,       /* more references than a refcount can count */
  CHECK_SUBCLUSTERS,    /* an extended L2 entry contradicts itself */
  CHECK_COMPRESSED,     /* so does the entry of a compressed cluster */
  CHECK_REFCOUNT_BLOCK, /* the offset of a refcount block is impossible */
  CHECK_SNAPSHOT,       /* an entry of the snapshot table is wrong */
  CHECK_BITMAPS,        /* the bitmap directory or a bitmap table is wrong */

  /* Corruptions that it does not look for. */
  CHECK_OVERLAP,    /* metadata has another use as well */
  CHECK_UNREADABLE, /* an entry that readers refuse */
  CHECK_EXTERNAL,   /* data in an external file is not where the guest has it */

  CHECK_LEAK,      /* a refcount is higher than the references */
  CHECK_NO_ANSWER, /* a refcount that can't be looked up */
};
#define CHECK_KINDS (CHECK_NO_ANSWER + 1)
#define CHECK_CORRUPTIONS (CHECK_EXTERNAL + 1) /* kinds below are these */

struct check_report {
  /* As in qemu-img's output, which counts an entry once for each table that
   * has it.
   */
  uint64_t corruptions, leaks, check_errors;
  uint64_t total_clusters; /* of the disk */
  uint64_t allocated_clusters, fragmented_clusters, compressed_clusters;
  uint64_t image_end; /* the end of the last cluster in use */

  uint64_t found[CHECK_KINDS];

  /* Damage hides tables, and with them references: apparent leaks may be
   * data.
   */
  bool blind;
  bool l1_cut; /* the same where the end of the file cuts off the active L1
                * table, which doesn't set blind */
  bool bitmaps_damaged; /* one of them, or the directory */
  uint64_t odd_snapshots; /* how many of found[CHECK_SNAPSHOT] are entries with
                           * too much or too little extra data */

  bool dirty, corrupt; /* the header's feature bits */

  /* Statistics. */
  unsigned windows;     /* walks over all tables */
  size_t counts_memory; /* peak for counting references, in bytes */
};

/* Whether there are no errors; there may be leaks. */
static inline bool
check_report_is_sound (const struct check_report *r)
{
  return r->corruptions == 0 && r->check_errors == 0;
}

#define CHECK_MEMORY_DEFAULT ((size_t) 512 << 20)
#define CHECK_MAX_MESSAGES 1000

struct check_options {
  size_t memory;    /* approximate limit, in bytes; 0: CHECK_MEMORY_DEFAULT */
  unsigned messages; /* most calls of found, up to CHECK_MAX_MESSAGES */

  /* Both may be NULL.  found gets a line without a newline.  progress is
   * called now and then; if it returns false the check is given up.
   */
  void (*found) (void *opaque, enum check_kind kind, const char *text);
  bool (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

/* What one walk has found so far.  Messages are kept until its end, since all
 * is discarded if the walk has to start again.
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

/* Discard them. */
extern void check_findings_clear (struct check_findings *f);

/* Emit the messages, and add the findings to a report. */
extern void check_findings_commit (struct check_findings *f,
                                   struct check_report *report);

/* Whether a message about the next finding would be emitted. */
extern bool check_findings_wanted (const struct check_findings *f);

/* Something was found n times. */
extern void check_found (struct check_findings *f, enum check_kind kind,
                         uint64_t n, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 4, 5), __cold__));

#endif /* CORE_QCOW2_CHECK_REPORT_H */
