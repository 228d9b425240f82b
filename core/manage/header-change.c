/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "manage/header-change.h"
#include "manage/tables.h"
#include "qcow2/qcow2.h"
#include "qcow2/write/writer.h"

int
header_change_read (struct storage *s, struct header *h,
                    struct header_wish *wish)
{
  const struct writer_options any_bitmaps = { .invalidate_bitmaps = true };

  if (qcow2_read_header (s, h) == -1 ||
      writer_check_header (s, h, &any_bitmaps) == -1)
    return -1;
  *wish = (struct header_wish) {
    .version = h->version,
    .incompatible = h->incompatible,
    .compatible = h->compatible,
    .autoclear = h->autoclear &
      ((writer_has_bitmaps (h) ? QCOW2_AUTOCLEAR_BITMAPS : 0) |
       (h->raw_data ? QCOW2_AUTOCLEAR_RAW_DATA_FILE : 0)),
    .compression = h->compression,
    .backing_name = h->backing_name,
    .backing_format = h->backing_format,
  };
  return 0;
}

/* From one first cluster to the next: what the former does not use, and then
 * the sector that switches.
 */
static int
take_step (struct storage *s, const struct header *h, const uint8_t *from,
           const uint8_t *to)
{
  const struct host_off rest = { HEADER_SECTOR };

  if (tables_write_changed (s, rest, from + rest.v, to + rest.v,
                            h->cluster_size - rest.v) == -1 ||
      storage_flush (s) == -1)
    return -1;
  if (storage_write (s, to, HEADER_SECTOR, (struct host_off) { 0 }) == 0 &&
      storage_flush (s) == 0)
    return 0;
  error_append (" (the header may have changed)");
  return -1;
}

int
header_change (struct storage *s, const struct header *h,
               const struct header_wish *wish)
{
  uint8_t *old = malloc (h->cluster_size);
  struct header_plan plan = { 0 };
  unsigned i;
  int r = -1;

  if (old == NULL)
    error_set (ENOMEM, "%s: out of memory", s->name);
  else
    r = storage_read (s, old, h->cluster_size, (struct host_off) { 0 });
  if (r == 0)
    r = header_plan_make (&plan, s->name, old, h, atomic_load (&s->size),
                          wish);
  for (i = 0; r == 0 && i < plan.nr; ++i)
    r = take_step (s, h, i == 0 ? old : plan.cluster[i - 1], plan.cluster[i]);
  header_plan_free (&plan);
  free (old);
  return r;
}

int
header_check_backing (const char *file, bool raw_data, const char *name,
                      const char *format)
{
  if (name[0] == '\0')
    return 0;
  if (strlen (name) > QCOW2_MAX_BACKING_NAME)
    error_set (EINVAL, "%s: the name of a backing file must have at most %d "
               "bytes", file, QCOW2_MAX_BACKING_NAME);
  else if (strlen (format) > QCOW2_MAX_BACKING_FORMAT)
    error_set (EINVAL, "%s: the name of a backing file's format must have at "
               "most %d bytes", file, QCOW2_MAX_BACKING_FORMAT);
  else if (format[0] == '\0')
    error_set (EINVAL, "%s: the format of the backing file must be recorded, "
               "since it is never guessed", file);
  else if (raw_data)
    error_set (EINVAL, "%s: its external data file is raw, which excludes a "
               "backing file", file);
  else
    return 0;
  return -1;
}

int
header_change_backing (struct storage *s, const char *name,
                       const char *format)
{
  struct header_wish wish;
  struct header h;

  if (header_change_read (s, &h, &wish) == -1 ||
      header_check_backing (s->name, h.raw_data, name, format) == -1)
    return -1;
  wish.backing_name = name;
  wish.backing_format = name[0] != '\0' ? format : "";
  return header_change (s, &h, &wish);
}
