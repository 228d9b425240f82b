/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>

#include "base/bytes.h"
#include "image.h"
#include "meeting-disk.h"
#include "must-have.h"

#define ARRAY_SIZE(a) (sizeof (a) / sizeof (a)[0])

/* ---------------------------------------------------------------- subjects */

static const char *const subject_names[] = {
  "unallocated", "data", "shared", "zero", "zero-alloc", "compressed",
  "mixed", "shared-table", "no-table", "twin-table", NULL,
};

#define MIXED_DATA UINT64_C (0x00ff00ff)
#define MIXED_ZERO UINT64_C (0x0f000f00)

/* What each of the disk's L2 tables is for. */
enum {
  OWN_TABLE,       /* of most subjects, in every other cluster */
  SNAPSHOTS_TABLE, /* SHARED_TABLE */
  MISSING_TABLE,   /* NO_TABLE */
  FAR_TABLES,      /* so many that the smallest cache can't hold them */
  NR_FAR = 5,
  FIRST_TWIN = FAR_TABLES + NR_FAR, /* TWIN_TABLE: both are one table */
  SECOND_TWIN,
  LATE_TABLE, /* is missing, too */
  NR_TABLES,
};

#define FIRST_OTHER (2 * SHARED_TABLE + 1) /* clusters for other requests */
#define NR_OTHERS 3
#define NR_FIRST (FIRST_OTHER + 2 * NR_OTHERS)
#define NR_NEAR 3 /* of other tables */
#define SLICE 256 /* entries, of a table that has several */

/* ------------------------------------------------------------------- disks */

#define UNKNOWN_BIT (UINT64_C (1) << 40)

static struct meeting_disk disks[] = {
  { "v3-512", 3, 9, .snapshot = true },
  { "v2-512", 2, 9, .snapshot = true },
  { "v3-4k-base", 3, 12, .backing = true },
  { "v2-4k-base", 2, 12, .backing = true },
  { "extl2-snap", 3, 14, .extended = true, .snapshot = true },
  { "extl2-base", 3, 14, .extended = true, .backing = true },
};

bool
meeting_has_subject (const struct meeting_disk *d, enum subject s)
{
  switch (s) {
  case ZERO:
  case ZERO_ALLOC:
    return d->version >= 3;
  case MIXED:
    return d->extended;
  case TWIN_TABLE:
    return d->extended && d->snapshot;
  case SHARED:
  case SHARED_TABLE:
    return d->snapshot;
  default:
    return true;
  }
}

static uint64_t
subject_cluster (const struct meeting_disk *d, enum subject s)
{
  if (s == SHARED_TABLE)
    return SNAPSHOTS_TABLE * d->per_table + 1;
  if (s == NO_TABLE)
    return MISSING_TABLE * d->per_table + 1;
  if (s == TWIN_TABLE)
    return FIRST_TWIN * d->per_table + 1;
  return 2 * s + 1;
}

/* What is neither data nor zeros stays as it is below. */
static void
fill_mixed (uint8_t *content, const uint8_t *data, uint64_t subcluster)
{
  unsigned i;

  for (i = 0; i < 32; ++i) {
    if (MIXED_DATA >> i & 1)
      memcpy (content + i * subcluster, data + i * subcluster, subcluster);
    else if (MIXED_ZERO >> i & 1)
      memset (content + i * subcluster, 0, subcluster);
  }
}

/* Have the cluster be what the subject is. */
static void
make_cluster (struct meeting_disk *d, uint64_t cluster, enum subject s)
{
  struct builder *b = &d->image;
  const uint64_t all = d->extended ? UINT32_MAX : 0;
  const uint64_t seed = cluster + 1;
  uint8_t *content = d->content + cluster * b->cluster_size;
  uint8_t *pattern = must_have (malloc (b->cluster_size));

  build_pattern (pattern, b->cluster_size, seed);
  switch (s) {
  case UNALLOCATED:
  case NO_TABLE:
    break;
  case DATA:
  case SHARED:
  case SHARED_TABLE:
  case TWIN_TABLE:
    build_entry (b, cluster, build_data (b, seed), all);
    memcpy (content, pattern, b->cluster_size);
    break;
  case ZERO:
    build_entry (b, cluster, d->extended ? 0 : QCOW2_L2_ZERO, all << 32);
    memset (content, 0, b->cluster_size);
    break;
  case ZERO_ALLOC:
    build_entry (b, cluster, build_data (b, seed) |
                 (d->extended ? 0 : QCOW2_L2_ZERO), all << 32);
    memset (content, 0, b->cluster_size);
    break;
  case COMPRESSED:
    build_compressed (b, cluster, pattern, 0);
    memcpy (content, pattern, b->cluster_size);
    break;
  case MIXED:
    build_entry (b, cluster, build_data (b, seed), MIXED_DATA |
                 MIXED_ZERO << 32);
    fill_mixed (content, pattern, b->cluster_size / 32);
    break;
  case NR_SUBJECTS:
    abort ();
  }
  free (pattern);
}

/* One L2 table maps two parts of the disk.  Once both have been written it is
 * free: while snapshots stay no other L2 table in use ever is.
 */
static void
make_twin (struct meeting_disk *d)
{
  struct builder *b = &d->image;
  const uint64_t part = d->per_table * b->cluster_size;
  const uint64_t first = b->l1_offset + FIRST_TWIN * 8;

  put_be64 (b->data + first + 8, get_be64 (b->data + first));
  memcpy (d->content + SECOND_TWIN * part, d->content + FIRST_TWIN * part,
          NR_NEAR * b->cluster_size);
}

/* The subject, and where that makes a difference its neighbour as well. */
static void
make_subject (struct meeting_disk *d, enum subject s)
{
  const uint64_t cluster = subject_cluster (d, s);

  if (!meeting_has_subject (d, s))
    return;
  make_cluster (d, cluster, s);
  if (s == DATA || s == SHARED || s == COMPRESSED)
    make_cluster (d, cluster + 1, s);
  if (s == TWIN_TABLE)
    make_twin (d);
}

/* The disk has a copy of the first table for itself. */
static void
own_first_table (struct builder *b)
{
  const uint64_t to = build_clusters (b, 1);
  const uint64_t from = get_be64 (b->data + b->l1_offset) &
    QCOW2_ENTRY_OFFSET_MASK;

  memcpy (b->data + to, b->data + from, b->cluster_size);
  put_be64 (b->data + b->l1_offset, to);
}

uint64_t
meeting_watched (const struct meeting_disk *d, unsigned i, uint64_t *first)
{
  *first = i * d->per_table;
  if (i == NR_TABLES && d->extended) {
    *first = LATE_TABLE * d->per_table + SLICE;
    return NR_NEAR;
  }
  return i == OWN_TABLE ? NR_FIRST : i < NR_TABLES ? NR_NEAR : 0;
}

static void
fill_base (struct meeting_disk *d)
{
  const uint64_t size = d->image.cluster_size;
  uint64_t first, nr;
  unsigned i;

  d->base_size = (MISSING_TABLE * d->per_table + NR_NEAR) * size;
  d->base = must_have (calloc (1, d->base_size));
  for (i = 0; (nr = meeting_watched (d, i, &first)) > 0; ++i) {
    if ((first + nr) * size > d->base_size)
      break;
    build_pattern (d->base + first * size, nr * size, 1000 + i);
    memcpy (d->content + first * size, d->base + first * size, nr * size);
  }
}

static void
take_snapshot (struct meeting_disk *d)
{
  const uint64_t size = d->image.cluster_size;
  uint64_t first, nr, state = 1;
  unsigned i;

  build_snapshot (&d->image, 0, &state);
  own_first_table (&d->image);
  d->snapshot_content = must_have (calloc (1, d->image.disk_size));
  for (i = 0; (nr = meeting_watched (d, i, &first)) > 0; ++i)
    memcpy (d->snapshot_content + first * size, d->content + first * size,
            nr * size);
}

static void
make_disk (struct meeting_disk *d)
{
  struct builder *b = &d->image;
  const uint64_t cluster = UINT64_C (1) << d->cluster_bits;
  enum subject s;
  unsigned i;

  if (d->content != NULL)
    return;
  d->per_table = cluster / (d->extended ? 16 : 8);
  build_start (b, d->version, d->cluster_bits, d->extended,
               COMPRESSION_DEFLATE, NR_TABLES * d->per_table * cluster);
  d->content = must_have (calloc (1, b->disk_size));
  if (d->backing) {
    build_backing (b, "raw");
    fill_base (d);
    if (d->version >= 3)
      put_be64 (b->data + MEETING_AUTOCLEAR, UNKNOWN_BIT);
  }
  make_subject (d, SHARED);
  make_subject (d, SHARED_TABLE);
  if (d->snapshot)
    take_snapshot (d);
  for (s = 0; s < NR_SUBJECTS; ++s) {
    if (s != SHARED && s != SHARED_TABLE)
      make_subject (d, s);
  }
  for (i = FAR_TABLES; i < FAR_TABLES + NR_FAR; ++i)
    make_cluster (d, i * d->per_table + 1, DATA);
  build_finish (b);
}

static void
free_disk (struct meeting_disk *d)
{
  if (d->content == NULL)
    return;
  build_free (&d->image);
  free (d->content);
  free (d->snapshot_content);
  free (d->base);
  d->content = d->snapshot_content = d->base = NULL;
}

const struct meeting_disk *
meeting_disk (unsigned i)
{
  if (i >= ARRAY_SIZE (disks))
    return NULL;
  make_disk (&disks[i]);
  return &disks[i];
}

void
meeting_free_disks (void)
{
  unsigned i;

  for (i = 0; i < ARRAY_SIZE (disks); ++i)
    free_disk (&disks[i]);
}

const char *
meeting_subject_name (unsigned i)
{
  return subject_names[i];
}

/* ---------------------------------------------------------------- requests */

static const struct request requests[] = {
  { "read", READ, WHOLE },
  { "read-low", READ, LOW },
  { "read-two", READ, PAIR },
  { "view", VIEW, PAIR },
  { "write", WRITE, WHOLE },
  { "write-low", WRITE, LOW },
  { "write-mid", WRITE, MID },
  { "write-fua", WRITE, HIGH, .flags = IMAGE_FUA },
  { "write-two", WRITE, ACROSS },
  { "write-next", WRITE, NEXT },
  { "zero-mid", ZEROES, MID },
  { "zero-high", ZEROES, HIGH, .flags = IMAGE_MAY_TRIM },
  { "zero-keep", ZEROES, WHOLE },
  { "zero-trim", ZEROES, WHOLE, .flags = IMAGE_MAY_TRIM },
  { "trim-mid", TRIM, MID },
  { "trim", TRIM, WHOLE },
  { "trim-two", TRIM, PAIR },
  { "flush", FLUSH, NOTHING },
  { "other1", WRITE, OTHER, 0 },
  { "other2", WRITE, OTHER, 1 },
  { "other3", WRITE, OTHER, 2 },
  { "late", WRITE, LATE },
  { "twin", WRITE, TWIN },
  { "read-slice", READ, NEXT_SLICE },
  { "read-far1", READ, FAR, 0 },
  { "read-far2", READ, FAR, 1 },
  { "read-far3", READ, FAR, 2 },
  { "read-far4", READ, FAR, 3 },
  { "read-far5", READ, FAR, 4 },
  { "far1", WRITE, FAR, 0 },
  { "far2", WRITE, FAR, 1 },
  { "far3", WRITE, FAR, 2 },
  { "far4", WRITE, FAR, 3 },
  { "far5", WRITE, FAR, 4 },
};

const struct request *
meeting_request (unsigned i)
{
  return i < ARRAY_SIZE (requests) ? &requests[i] : NULL;
}

const struct request *
meeting_next (const char **script)
{
  const size_t length = strcspn (*script, ",");
  unsigned i;

  for (i = 0; i < ARRAY_SIZE (requests); ++i) {
    if (strlen (requests[i].name) != length ||
        strncmp (requests[i].name, *script, length) != 0)
      continue;
    *script += length;
    if (**script == ',')
      ++*script;
    return &requests[i];
  }
  return NULL;
}

/* MID is not aligned. */
static struct range
piece_of (const struct meeting_disk *d, enum subject s,
          const struct request *q)
{
  const uint64_t size = d->image.cluster_size;
  const uint64_t at = subject_cluster (d, s) * size;
  uint64_t cluster = 0;

  switch (q->piece) {
  case NOTHING:
    return (struct range) { 0, 0 };
  case WHOLE:
    return (struct range) { at, at + size };
  case LOW:
    return (struct range) { at + size / 8, at + size / 2 };
  case MID:
    return (struct range) {
      at + size / 4 + size / 64, at + 3 * size / 4 - size / 64
    };
  case HIGH:
    return (struct range) { at + 5 * size / 8, at + 7 * size / 8 };
  case ACROSS:
    return (struct range) { at + size / 2, at + 3 * size / 2 };
  case PAIR:
    return (struct range) { at, at + 2 * size };
  case NEXT:
    return (struct range) { at + size + size / 4, at + size + size / 2 };
  case OTHER: /* none follows another one */
    cluster = FIRST_OTHER + 2 * q->arg;
    break;
  case FAR:
    cluster = (FAR_TABLES + q->arg) * d->per_table + 2;
    return (struct range) { cluster * size + size / 4,
                            cluster * size + size / 2 };
  case LATE:
    cluster = LATE_TABLE * d->per_table + 1;
    break;
  case TWIN:
    cluster = SECOND_TWIN * d->per_table + 1;
    break;
  case NEXT_SLICE:
    cluster = subject_cluster (d, s) + SLICE;
    break;
  }
  return (struct range) { cluster * size, (cluster + 1) * size };
}

/* Sectors are read whole. */
struct range
meeting_range (const struct meeting_disk *d, enum subject s,
               const struct request *q)
{
  struct range r = piece_of (d, s, q);

  if (q->action == READ) {
    r.from &= -UINT64_C (512);
    r.to = (r.to + 511) & -UINT64_C (512);
  }
  return r;
}

/* Whole granules are trimmed. */
struct range
meeting_change (const struct meeting_disk *d, enum subject s,
                const struct request *q)
{
  const uint64_t granule = d->image.cluster_size >> (d->extended ? 5 : 0);
  struct range r = piece_of (d, s, q);

  switch (q->action) {
  case READ:
  case VIEW:
  case FLUSH:
    r.to = r.from;
    break;
  case WRITE:
  case ZEROES:
    break;
  case TRIM:
    r.from = (r.from + granule - 1) & -granule;
    r.to &= -granule;
    if (r.to < r.from)
      r.to = r.from;
    break;
  }
  return r;
}

bool
meeting_is_advice (const struct meeting_disk *d, const struct request *q)
{
  return q->action == TRIM &&
    (d->extended ? q->piece == MID : d->version == 2 && d->backing);
}

bool
meeting_allows (const struct meeting_disk *d, enum subject s,
                const struct request *q)
{
  if (q->action == VIEW)
    return d->snapshot;
  if (q->piece == TWIN || q->piece == NEXT_SLICE)
    return s == TWIN_TABLE;
  return true;
}
