/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "content.h"
#include "disk/read.h"
#include "guest-parts.h"
#include "image-parts.h"
#include "must-have.h"
#include "no-memory.h"
#include "qcow2/write/follow.h"
#include "takes.h"

/* As small as it can be, so that tables leave it. */
#define CACHE_SIZE CACHE_MIN_BYTES

bool
guest_wrong (struct guest *r, const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (r->why, sizeof r->why, fmt, ap);
  va_end (ap);
  return false;
}

void
guest_init (struct guest *r, const struct made *m)
{
  memset (r, 0, sizeof *r);
  r->m = m;
  r->disk = must_have (malloc (sizeof *r->disk));
  r->history = must_have (calloc (1, sizeof *r->history));
  r->takes = must_have (calloc (1, sizeof *r->takes));
  crash_disk_init (r->disk, m->bytes, m->size);
  crash_disk_init (&r->backing, m->backing, m->backing_size);
  r->disk->no_zero = m->no_zero;
  r->expect = must_have (malloc (m->disk_size));
  r->buf = must_have (malloc (m->disk_size));
  r->buf2 = must_have (malloc (m->disk_size));
}

void
guest_free (struct guest *r)
{
  if (r->im != NULL)
    (void) guest_close (r);
  crash_disk_free (r->disk);
  free (r->disk);
  crash_disk_free (&r->backing);
  history_free (r->history);
  free (r->history);
  takes_free (r->takes);
  free (r->takes);
  free (r->expect);
  free (r->buf);
  free (r->buf2);
  memset (r, 0, sizeof *r);
}

static struct storage *
open_disk (struct guest *r)
{
  if (r->far == NULL)
    return crash_storage_open (r->disk, "test");
  r->server = crash_server_start (r->disk, r->far);
  return crash_server_open (r->server, "test");
}

static void
end_server (struct guest *r)
{
  if (r->server != NULL)
    crash_server_end (r->server);
  r->server = NULL;
}

bool
guest_open (struct guest *r)
{
  struct storage *s[2];
  unsigned nr = 0;

  s[nr++] = open_disk (r);
  if (r->m->backing != NULL)
    s[nr++] = crash_storage_open_readonly (&r->backing, "backing");
  r->writable = false;
  r->im = r->m->aes
    ? image_open_encrypted (s, nr, CACHE_SIZE, &made_passphrases)
    : image_open_storages (s, nr, CACHE_SIZE);
  if (r->im == NULL) {
    end_server (r);
    return guest_wrong (r, "it does not open: %s", error_message ());
  }
  return guest_allow_points (r);
}

bool
guest_start (struct guest *r, const void *bytes, uint64_t size)
{
  if (r->im != NULL)
    (void) guest_close (r);
  crash_disk_reset (r->disk, bytes, size);
  r->disk->fault = r->next_fault;
  r->failed_requests = 0;
  r->sticky = r->blind = r->given_up = r->unclean = false;
  r->why[0] = '\0';
  return guest_open (r);
}

/* Read a range of a disk of the image. */
bool
guest_read_range (struct guest *r, const char *export, void *buf,
                  uint64_t count, uint64_t offset)
{
  struct layer *disk = image_open_disk (r->im, export);
  int ret;

  if (disk == NULL)
    return guest_wrong (r, "\"%s\" is not there: %s", export,
                        error_message ());
  if (disk->size != r->m->disk_size) {
    const uint64_t size = disk->size;

    image_close_disk (disk);
    return guest_wrong (r, "\"%s\" has %" PRIu64 " bytes", export, size);
  }
  ret = layer_read (disk, buf, count, (struct guest_off) { offset });
  image_close_disk (disk);
  if (ret == -1)
    return guest_wrong (r, "reading \"%s\" at %" PRIu64 ", %" PRIu64
                        " bytes: %s", export, offset, count,
                        error_message ());
  return true;
}

bool
guest_read (struct guest *r)
{
  return guest_read_range (r, "", r->buf, r->m->disk_size, 0);
}

void
guest_believe (struct guest *r)
{
  memcpy (r->expect, r->buf, r->m->disk_size);
  history_free (r->history);
  history_init (r->history, r->buf, r->m->disk_size / SECTOR);
}

/* Compare sectors of a disk. */
bool
guest_compare_range (struct guest *r, const char *what, const uint8_t *is,
                     const uint8_t *should, uint64_t first, uint64_t count)
{
  char is_name[160], should_name[160];
  uint64_t i;

  if (memcmp (is, should, count) == 0)
    return true;
  for (i = 0; memcmp (is + i, should + i, SECTOR) == 0; i += SECTOR)
    ;
  return guest_wrong (r, "%s: sector %" PRIu64 " holds %s; it should be %s",
                      what, (first + i) / SECTOR,
                      content_name (is + i, is_name, sizeof is_name),
                      content_name (should + i, should_name, sizeof should_name));
}

bool
guest_check_snapshots (struct guest *r)
{
  char name[64];
  unsigned i;

  for (i = 0; i < r->m->nr_snapshots; ++i) {
    snprintf (name, sizeof name, "%s%s", IMAGE_SNAPSHOT_PREFIX,
              r->m->snapshot_name[i]);
    if (!guest_read_range (r, name, r->buf2, r->m->disk_size, 0) ||
        !guest_compare_range (r, name, r->buf2, r->m->snapshot_content[i], 0,
                              r->m->disk_size))
      return false;
  }
  return true;
}

bool
guest_make_writable (struct guest *r)
{
  const struct writer_options options = {
    .invalidate_bitmaps = r->m->give_up,
    .bitmap_pages = MADE_BITMAPS, /* one of each */
    .bitmap_idle = BITMAP_NEVER_IDLE, /* but where a flush says so */
    .keep_discarded = r->m->keep,
    .compress_level = r->m->zip,
    .max_freed = r->m->tight ? 4 * r->m->cluster_size : 0,
  };
  int ret;

  r->why[0] = '\0';
  memory_armed = true;
  ret = image_make_writable (r->im, &options);
  memory_armed = false;
  if (ret == 0) {
    if (r->m->zip) /* as the plugin does unless told otherwise */
      image_detect_zeroes (r->im, DETECT_ZEROES_ON);
    r->writable = true;
    if (r->free_leaks)
      image_free_leaks (r->im);
    return true;
  }
  if (error_errno () == ENOTSUP && r->m->lazy)
    return false;
  return guest_wrong (r, "it can't be made writable: %s", error_message ());
}

int
guest_close (struct guest *r)
{
  const uint64_t issued = history_moment (r->history,
                                          crash_disk_now (r->disk));
  int ret;

  guest_drop_points (r);
  memory_armed = true;
  ret = image_close (r->im);
  memory_armed = false;
  r->im = NULL;
  end_server (r);
  r->unclean = ret == -1;
  if (ret == 0 && r->writable)
    history_flushed (r->history, issued, crash_disk_now (r->disk));
  return ret;
}

bool
guest_compare (struct guest *r)
{
  return guest_verify (r, "at the end", 0, r->m->disk_size) &&
    (guest_check_snapshots (r) || guest_reads_may_fail (r));
}

bool
guest_finish (struct guest *r)
{
  if (!guest_compare (r))
    return false;
  if (guest_close (r) == -1)
    return guest_wrong (r, "close: %s", error_message ());
  return true;
}
