/* SPDX-License-Identifier: BSD-3-Clause */

/* What messages call a storage once they must not tell where it is. */

#include <config.h>

#include <errno.h>

#include "base/error.h"
#include "check.h"
#include "memory-storage.h"
#include "must-have.h"
#include "storage/align.h"
#include "storage/place.h"

static const struct {
  const char *name, *hidden;
} names[] = {
  { "disk.qcow2", "disk.qcow2" },
  { "/srv/images/disk.qcow2", "disk.qcow2" },
  { "../disk.qcow2", "disk.qcow2" },
  { "/srv/images/a?b#c.qcow2", "a?b#c.qcow2" },
  { "/srv/nbd://host/disk", "disk" },
  { "nbd://host/disk.qcow2", "disk.qcow2" },
  { "nbds://user@host:10810/a/disk?tls-certificates=/etc/pki", "disk" },
  { "nbd+unix:///disk?socket=/srv/images/socket", "disk" },
  { "nbd+unix:///?socket=/srv/images/socket", "nbd+unix" },
  { "nbd+unix://?socket=/srv/images/socket", "nbd+unix" },
  { "nbd://host", "nbd" },
  { "nbd://host/", "nbd" },
  { "nbd://host#/disk", "nbd" },
};

static void
test_names (void)
{
  unsigned i;

  for (i = 0; i < sizeof names / sizeof names[0]; ++i) {
    struct storage *s = memory_storage_new (names[i].name, "", 0, NULL);

    storage_hide_place (s);
    CHECK_STR (s->name, names[i].hidden);
    storage_hide_place (s);
    CHECK_STR (s->name, names[i].hidden);
    storage_close (s);
  }
}

static int
not_writable (const struct storage *s)
{
  error_set (EROFS, "%s: can only be read", s->name);
  return -1;
}

/* One that another lies on has messages of its own. */
static void
test_inner (void)
{
  struct memory_disk disk;
  struct storage *inner, *s;
  struct storage_ops ops;

  memory_disk_init (&disk, NULL, 4096);
  inner = must_have (memory_disk_open (&disk, "/srv/images/disk", NULL));
  ops = *inner->ops;
  ops.check_writable = not_writable;
  inner->ops = &ops;
  s = must_have (storage_align_new (inner, 512));
  storage_hide_place (s);
  CHECK_STR (s->name, "disk");
  CHECK (storage_check_writable (s) == -1);
  CHECK_STR (error_message (), "disk: can only be read");
  storage_close (s);
  memory_disk_free (&disk);
}

int
main (void)
{
  check_time_limit (60);
  test_names ();
  test_inner ();
  return check_result ();
}
