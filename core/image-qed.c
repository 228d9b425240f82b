/* SPDX-License-Identifier: BSD-3-Clause */

/* QED images: no snapshots, no compressed clusters. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "image-parts.h"
#include "qed/check.h"
#include "qed/qed.h"
#include "qed/write.h"

#define MAX_PREFERRED (2 << 20)

static inline const struct qed_file *
qed_top (const struct image *im)
{
  return (const struct qed_file *) im->chain.layer[0];
}

static int
qed_opened (struct image *im)
{
  im->cluster_size = qed_top (im)->header.cluster_size;
  /* nbdkit takes 32 MiB at most, and clients' buffers would be as large. */
  im->preferred_size = im->cluster_size < MAX_PREFERRED ? im->cluster_size
    : MAX_PREFERRED;
  return 0;
}

static struct layer *
qed_new_disk (const struct image *im, const struct snapshot *sn)
{
  struct qed_disk *disk = malloc (sizeof *disk);

  (void) sn; /* there are none */
  if (disk == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  *disk = qed_top (im)->disk;
  return &disk->layer;
}

/* --------------------------------------------------------------- repairing */

static bool
qed_is_to_be_repaired (const struct image *im, enum image_repair mode)
{
  const bool need_check = qed_top (im)->header.features & QED_NEED_CHECK;

  switch (mode) {
  case IMAGE_REPAIR_NONE:
    return false;
  case IMAGE_REPAIR_DIRTY:
    return need_check;
  case IMAGE_REPAIR_LEAKS:
  case IMAGE_REPAIR_ALL:
    return true;
  }
  abort ();
}

static void
qed_finding (void *opaque, enum check_kind kind, const char *text)
{
  (void) kind;
  debug_message ("%s: %s", (const char *) opaque, text);
}

static int
qed_repair (struct image *im, enum image_repair mode, struct repaired *out)
{
  struct qed_file *f = (struct qed_file *) im->chain.layer[0];
  struct storage *s = image_storage (im);
  const struct check_options options = {
    .messages = CHECK_MAX_MESSAGES, .found = qed_finding, .opaque = s->name,
  };
  /* As QEMU does where the image asks for it. */
  const bool all = mode != IMAGE_REPAIR_LEAKS ||
    (f->header.features & QED_NEED_CHECK);
  struct repair_report r;
  struct qed_header h;

  if (qed_repair_storage (s, all ? REPAIR_ALL : REPAIR_LEAKS, &options,
                          &r) == -1 ||
      qed_read_header (s, &h) == -1)
    return -1;
  f->header.features = h.features; /* all that has changed */
  image_forget_tables (im, f->disk.map.id);
  *out = (struct repaired) {
    .errors = r.before.corruptions, .leaks = r.before.leaks,
    .errors_left = r.after.corruptions, .leaks_left = r.after.leaks,
    .marked = r.before.dirty, .why_not = r.why_not,
    .advice = all ? ADVICE_READ_ONLY : ADVICE_REPAIR,
  };
  return 0;
}

static struct points *
qed_points (const struct image *im)
{
  error_set (ENOTSUP, "%s: there are no points in time of QED images",
             image_storage (im)->name);
  return NULL;
}

/* ------------------------------------------------------------ made writable */

static int
qed_check (const struct image *im, const struct writer_options *options,
           bool repaired, enum image_repair mode)
{
  (void) options, (void) mode;
  if (repaired || !(qed_top (im)->header.features & QED_NEED_CHECK))
    return 0;
  error_set (ENOTSUP, "%s: it was not closed, and is to be checked before it "
             "is written (QED feature bit 1)", image_storage (im)->name);
  advise (ADVICE_REPAIR);
  return -1;
}

static void *
qed_open_writer (struct image *im, const struct writer_options *options)
{
  return qed_writer_open (im->chain.layer[0], options->keep_discarded);
}

/* ----------------------------------------------------------------- requests */

_Static_assert (QED_FUA == IMAGE_FUA && QED_MAY_TRIM == IMAGE_MAY_TRIM &&
                QED_FAST == IMAGE_FAST, "flags are passed on");

static int
qed_write (void *writer, const void *buf, uint64_t count,
           struct guest_off offset, unsigned flags)
{
  return qed_disk_write (writer, buf, count, offset, flags);
}

static int
qed_zero (void *writer, uint64_t count, struct guest_off offset,
          unsigned flags)
{
  return qed_disk_zero (writer, count, offset, flags);
}

static int
qed_trim (void *writer, uint64_t count, struct guest_off offset,
          unsigned flags)
{
  return qed_disk_trim (writer, count, offset, flags);
}

static int
qed_flush (void *writer)
{
  return qed_writer_flush (writer);
}

static uint64_t
qed_taken (void *writer)
{
  return atomic_load (&((struct qed_writer *) writer)->taken);
}

static int
qed_close_writer (void *writer, bool no_leaks)
{
  (void) no_leaks; /* nobody looks for them */
  return qed_writer_close (writer);
}

const struct image_kind image_qed = {
  .format = &qed_format,
  .opened = qed_opened,
  .new_disk = qed_new_disk,
  .points = qed_points,
  .is_to_be_repaired = qed_is_to_be_repaired,
  .check = qed_check,
  .repair = qed_repair,
  .open_writer = qed_open_writer,
  .write = qed_write,
  .zero = qed_zero,
  .trim = qed_trim,
  .flush = qed_flush,
  .taken = qed_taken,
  .close_writer = qed_close_writer,
};
