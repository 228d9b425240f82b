/* SPDX-License-Identifier: BSD-3-Clause */

/* Looks into the file, by core/. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "formats.h"
#include "image.h"
#include "qcow2/qcow2.h"
#include "qcow2/snapshot.h"
#include "standin.h"
#include "storage/locks.h"
#include "storage/open.h"

/* -------------------------------------------------------------- snapshots */

/* The one with this ID and this name, where they are not NULL. */
static const struct snapshot *
find_both (const struct snapshots *t, const char *id, const char *name)
{
  uint32_t i;

  for (i = 0; i < t->nr; ++i)
    if ((id == NULL || strcmp (t->snapshot[i].id, id) == 0) &&
        (name == NULL || strcmp (t->snapshot[i].name, name) == 0))
      return &t->snapshot[i];
  return NULL;
}

/* As qemu-nbd: an ID, or else a name; or said which. */
static const struct snapshot *
find_snapshot (const struct snapshots *t, const char *wanted)
{
  const struct snapshot *found;
  struct members m = { 0 };
  const char *id, *name;

  if (strncmp (wanted, "snapshot.", 9) == 0) {
    members_parse (&m, "-l", wanted, NULL);
    id = members_take (&m, "snapshot.", "id");
    name = members_take (&m, "snapshot.", "name");
    members_end (&m, "-l");
    return find_both (t, id, name);
  }
  found = find_both (t, wanted, NULL);
  return found != NULL ? found : find_both (t, NULL, wanted);
}

/* The export of a snapshot, which is called by its name if that is unique. */
static const char *
snapshot_export (struct storage *s, const struct header *h, const char *wanted)
{
  const struct snapshot *found;
  struct snapshots t;
  const char *label;

  if (snapshots_read (&t, h, s) == -1)
    die ("%s", error_message ());
  found = find_snapshot (&t, wanted);
  if (found == NULL)
    die ("Failed to load snapshot: Can't find snapshot '%s'", wanted);
  label = found->label != NULL ? found->label : found->id;
  if (snapshots_find (&t, label) != found)
    die ("snapshot '%s': another one is called by its ID: rename one", wanted);
  label = format ("%s%s", IMAGE_SNAPSHOT_PREFIX, label);
  snapshots_free (&t);
  return label;
}

/* ----------------------------------------------------------------- images */

/* In a backing file's place: an empty one, that nbdkit inherits, so that what is
 * not in the image itself reads as zeros.
 */
static const char *
open_nothing (void)
{
  const int fd = memfd_create ("no backing file", 0);

  if (fd == -1)
    die ("memfd_create: %s", strerror (errno));
  return format ("/proc/self/fd/%d", fd);
}

static void
look_at_qcow2 (struct disk *d, const struct request *r, struct storage *s)
{
  struct header h;

  if (qcow2_read_header (s, &h) == -1)
    die ("%s%s", error_message (),
         d->format == DISK_ANY ? "; a raw disk is not guessed: say -f raw" : "");
  if (r->snapshot != NULL)
    d->export = snapshot_export (s, &h, r->snapshot);
  if (d->compress)
    d->compression = h.compression == COMPRESSION_ZSTD ? "zstd" : "zlib";
  if (d->no_backing && h.backing_name[0] != '\0') {
    d->backing = open_nothing ();
    d->backing_format = "raw";
  }
}

static void
look_at_image (struct disk *d, const struct request *r, struct storage *s)
{
  const struct format_ops *found =
    format_recognize (all_formats, &qcow2_format, s);
  enum disk_format f;

  if (found == NULL)
    die ("%s", error_message ());
  f = found == &qcow2_format ? DISK_QCOW2 : DISK_QED;
  if (d->format != DISK_ANY && d->format != f)
    die ("%s: Image is not in %s format", d->file,
         d->format == DISK_QED ? "qed" : "qcow2");
  if (f == DISK_QCOW2)
    look_at_qcow2 (d, r, s);
  d->format = f;
}

void
disk_look (struct disk *d, const struct request *r)
{
  const struct nbd_options nbd = NBD_DEFAULTS;
  struct storage *s;

  if (d->format != DISK_RAW && d->format != DISK_LUKS) {
    s = storage_open (d->file, &nbd);
    if (s == NULL)
      die ("%s", error_message ());
    look_at_image (d, r, s);
    storage_close (s);
  }
  if (d->format != DISK_QCOW2 && (r->snapshot != NULL || d->compress))
    die ("%s: %s: only qcow2 has that", d->file,
         d->compress ? "driver=compress" : "-l");
}

/* --------------------------------------------------------------- raw disks */

void
disk_lock_raw (const struct disk *d, const struct request *r)
{
  const bool write = !r->read_only && !r->throw_away;
  const unsigned denies = STORAGE_RESIZE;
  unsigned uses = STORAGE_CONSISTENT_READ;
  int fd;

  if (d->locking != NULL && strcmp (d->locking, "off") == 0)
    return;
  if (write)
    uses |= STORAGE_WRITE;
  fd = open (d->file, write ? O_RDWR : O_RDONLY);
  if (fd == -1)
    die ("Could not open '%s': %s", d->file, strerror (errno));
  switch (locks_take (fd, uses, d->force_share ? 0 : denies, -1, 0)) {
  case LOCKS_TAKEN:
    break;
  case LOCKS_CONFLICT:
    die ("%s: another process uses it (it holds QEMU's lock)", d->file);
  case LOCKS_MISSING:
    if (d->locking != NULL && strcmp (d->locking, "on") == 0)
      die ("%s: locking=on: %s", d->file, strerror (errno));
  }
}
