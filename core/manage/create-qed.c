/* SPDX-License-Identifier: BSD-3-Clause */

/* New QED images: a header of one cluster, and an L1 table of zeros. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "manage/create-parts.h"
#include "qed/header.h"

#define FIRST_BYTES 512 /* written last */
#define HEADER_BYTES (QED_HEADER_BYTES + QED_MAX_BACKING_NAME)

_Static_assert (HEADER_BYTES <= 1 << QED_MIN_CLUSTER_BITS,
                "each name has room in the first cluster");

/* QEMU does not open images with tables of one cluster, nor such whose tables
 * could map more than it can count.
 */
static int
set_sizes (const char *name, const struct create_options *o,
           struct qed_header *h)
{
  if (!qed_header_set_sizes (h, o->cluster_size, 1))
    error_set (EINVAL, "%s: cluster size %" PRIu64 ": must be a power of two "
               "from 4K to 64M for QED", name, o->cluster_size);
  else if (o->table_size < 2 ||
           !qed_header_set_sizes (h, o->cluster_size, o->table_size))
    error_set (EINVAL, "%s: table size %u: must be 2, 4, 8 or 16 clusters",
               name, o->table_size);
  else if (qed_header_max_size (h) == INT64_MAX)
    error_set (EINVAL, "%s: table size %u is too large for clusters of %"
               PRIu64 " bytes: QEMU would not open the image", name,
               o->table_size, o->cluster_size);
  else if (o->size > qed_header_max_size (h) - 511)
    error_set (EINVAL, "%s: disk size %" PRIu64 ": the limit is %" PRIu64
               " with these clusters and tables", name, o->size,
               qed_header_max_size (h));
  else
    return 0;
  return -1;
}

static int
check_options (const struct storage *s, const struct create_options *o)
{
  if (s->size > 0)
    error_set (EINVAL, "%s: a QED image has to be able to grow, as a file does",
               s->name);
  else if (o->backing != NULL && strlen (o->backing) > QED_MAX_BACKING_NAME)
    error_set (EINVAL, "%s: a backing file name of %zu bytes: the limit is %d",
               s->name, strlen (o->backing), QED_MAX_BACKING_NAME);
  else
    return 0;
  return -1;
}

static void
set_backing (const struct create_options *o, struct qed_header *h)
{
  if (o->backing == NULL || o->backing[0] == '\0')
    return;
  h->features = QED_BACKING_FILE;
  if (o->backing_format != NULL && strcmp (o->backing_format, "raw") == 0)
    h->features |= QED_BACKING_NO_PROBE;
  h->backing_offset = QED_HEADER_BYTES;
  h->backing_size = strlen (o->backing);
}

int
create_qed (struct storage *s, const struct create_options *o)
{
  const struct host_off start = { 0 }, second = { FIRST_BYTES };
  struct qed_header h = { 0 };
  uint8_t bytes[HEADER_BYTES] = { 0 };

  if (check_options (s, o) == -1 || set_sizes (s->name, o, &h) == -1)
    return -1;
  h.disk_size = (o->size + 511) & ~UINT64_C (511);
  h.header_bytes = h.cluster_size;
  h.l1_offset.v = h.header_bytes;
  set_backing (o, &h);
  qed_header_encode (&h, bytes);
  if (h.backing_size > 0)
    memcpy (bytes + h.backing_offset, o->backing, h.backing_size);
  if (storage_resize (s, h.header_bytes + h.table_bytes) == -1 ||
      storage_write (s, bytes + FIRST_BYTES, sizeof bytes - FIRST_BYTES,
                     second) == -1 ||
      storage_flush (s) == -1 ||
      storage_write (s, bytes, FIRST_BYTES, start) == -1)
    return -1;
  return storage_flush (s);
}
