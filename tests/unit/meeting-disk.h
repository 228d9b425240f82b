/* SPDX-License-Identifier: BSD-3-Clause */

/* Images of many kinds for requests to meet in, and the requests.  All are
 * about one cluster, the subject, and those around it; or about places that
 * are far enough away to want other tables and other space.
 */

#ifndef UNIT_MEETING_DISK_H
#define UNIT_MEETING_DISK_H

#include "build.h"

/* What a cluster is at first. */
enum subject {
  UNALLOCATED,
  DATA,
  SHARED,       /* data that the snapshot has as well */
  ZERO,
  ZERO_ALLOC,
  COMPRESSED,
  MIXED,        /* subclusters of all kinds */
  SHARED_TABLE, /* data, in an L2 table that the snapshot has as well */
  NO_TABLE,     /* unallocated, and so is its L2 table */
  TWIN_TABLE,   /* data, in an L2 table that maps another part as well */
  NR_SUBJECTS,
};

struct meeting_disk {
  const char *name;
  unsigned version, cluster_bits;
  bool extended, backing, snapshot;

  struct builder image; /* made when it is first wanted */
  uint64_t per_table;   /* clusters that an L2 table maps */
  uint8_t *content, *snapshot_content, *base;
  uint64_t base_size;
};

#define MEETING_MAX_CLUSTER 16384
#define MEETING_AUTOCLEAR 88 /* in the header; one unknown bit may be set */

/* NULL from their number on. */
extern const struct meeting_disk *meeting_disk (unsigned i);
extern const char *meeting_subject_name (unsigned i);

extern bool meeting_has_subject (const struct meeting_disk *d,
                                 enum subject s);

/* Clusters that requests may touch, and those around them: returns how many
 * they are in the i-th part of the disk, from *first on; 0: no more parts.
 */
extern uint64_t meeting_watched (const struct meeting_disk *d, unsigned i,
                                 uint64_t *first);
#define MEETING_MAX_WATCHED 64 /* in all */
#define MEETING_SNAPSHOT_PARTS 3 /* of those, that the snapshot has */

extern void meeting_free_disks (void);

/* Requests. */
enum action { READ, VIEW, WRITE, ZEROES, TRIM, FLUSH };

/* Which bytes: of the subject, or elsewhere. */
enum piece {
  NOTHING,
  WHOLE,
  LOW, MID, HIGH, /* part of it; LOW and HIGH overlap MID, not each other */
  ACROSS,         /* half of it, and of the next cluster */
  PAIR,           /* both */
  NEXT,           /* part of the next one */
  OTHER,          /* an unallocated cluster, not next to any other */
  FAR,            /* part of one in another table */
  LATE,           /* one that wants a new table */
  TWIN,           /* the other that the subject's entry maps, TWIN_TABLE */
  NEXT_SLICE,     /* one in another slice of the subject's table */
};

struct request {
  const char *name;
  enum action action;
  enum piece piece;
  unsigned arg; /* OTHER, FAR: which */
  unsigned flags;
};

struct range {
  uint64_t from, to;
};

/* NULL from their number on. */
extern const struct request *meeting_request (unsigned i);

/* The next request of a script, which has commas between them; *script is then
 * what follows it.  NULL: it is over; or it is wrong, and *script is not "".
 */
extern const struct request *meeting_next (const char **script);

extern bool meeting_allows (const struct meeting_disk *d, enum subject s,
                            const struct request *q);

/* The bytes that it is about, and those that it changes. */
extern struct range meeting_range (const struct meeting_disk *d,
                                   enum subject s, const struct request *q);
extern struct range meeting_change (const struct meeting_disk *d,
                                    enum subject s, const struct request *q);

/* Whether it is a trim that may change nothing, where it would have to write
 * zeros.
 */
extern bool meeting_is_advice (const struct meeting_disk *d,
                               const struct request *q);

#endif /* UNIT_MEETING_DISK_H */
